//! Converting in a process of its own: a page that makes the parser burn time or memory loses its process, not ours.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_runtime::confine::{Calls, Terms, files};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;
use url::Url;

use super::content::{self, Made};
use super::request;
use cxmpute_wire::scrape::{PageError, PageFormat};

/// Pages that are converted at a time: it is work for a core, on a machine that has other work.
const AT_A_TIME: usize = 2;
/// Seconds of a core that one page gets.
const CPU_SECONDS: u64 = 5;
/// Time that one page gets on a busy machine.
const WALL_TIME: Duration = Duration::from_secs(20);
/// Address space that one page gets: the tree of the largest page that passes takes a tenth of it.
const MEMORY_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Most that is read of the answer; JSON may write one byte as six.
const ANSWER_LIMIT_BYTES: u64 = 6 * content::DATA_LIMIT_BYTES as u64 + 64 * 1024;

/// Converts pages by calling `cxmpute-provider engine convert`.
#[derive(Debug)]
pub struct Converter {
    program: PathBuf,
    turns: Semaphore,
}

/// What the process is told in its first line; the page follows.
#[derive(Debug, Deserialize, Serialize)]
struct Order {
    url: String,
    format: PageFormat,
    main: bool,
}

impl Converter {
    /// A converter that starts this program.
    #[must_use]
    pub const fn new(program: PathBuf) -> Self {
        Self { program, turns: Semaphore::const_new(AT_A_TIME) }
    }

    /// Makes a page ready.
    ///
    /// # Errors
    /// The page is too much for its process, or has no such form.
    pub async fn convert(
        &self,
        html: &str,
        url: &Url,
        format: PageFormat,
        main: bool,
    ) -> Result<Made, PageError> {
        let unreadable = |why: String| {
            request::error("page_unreadable", format!("The page could not be converted: {why}."))
        };
        let order = serde_json::to_string(&Order { url: url.to_string(), format, main });
        let order = order.map_err(|error| unreadable(error.to_string()))?;
        let _turn = self.turns.acquire().await.map_err(|error| unreadable(error.to_string()))?;
        match tokio::time::timeout(WALL_TIME, self.run(&order, html)).await {
            Ok(Ok(Some(answer))) => {
                serde_json::from_slice(&answer).map_err(|error| unreadable(error.to_string()))?
            }
            Ok(Err(error)) => Err(unreadable(error.to_string())),
            Ok(Ok(None)) | Err(_) => {
                Err(request::error("page_too_complex", "Converting the page takes too much time or memory."))
            }
        }
    }

    /// The answer; none if the process did not live to give one.
    async fn run(&self, order: &str, html: &str) -> std::io::Result<Option<Vec<u8>>> {
        let mut child = Command::new(&self.program)
            .args(["engine", "convert"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let telling = async {
            if let Some(mut stdin) = stdin {
                // A process that is gone already says so by its end.
                let _ = stdin.write_all(format!("{order}\n").as_bytes()).await;
                let _ = stdin.write_all(html.as_bytes()).await;
            }
        };
        let hearing = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer).await?;
            }
            std::io::Result::Ok(answer)
        };
        let ((), answer) = tokio::join!(telling, hearing);
        let answer = answer?;
        Ok(child.wait().await?.success().then_some(answer))
    }
}

/// The process: reads an order and a page from standard input, answers on standard output.
///
/// # Errors
/// It is told nonsense, or cannot answer.
pub fn serve() -> Result<()> {
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS)?;
    setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES)?;
    // Dying of a hostile page is no accident worth a file.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // It reads and writes what it holds already. Where the system cannot take the rest away, that was said when the node
    // started.
    let _ = set_no_new_privs();
    let _ = files::confine(&Terms::default(), false);
    let _ = Calls::default().confine();
    let mut told = String::new();
    std::io::stdin().lock().read_to_string(&mut told)?;
    let (order, html) = told.split_once('\n').context("no order")?;
    let Order { url, format, main } = serde_json::from_str(order)?;
    let url = Url::parse(&url)?;
    let made = content::make(html.to_owned(), &url, format, main);
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &made)?;
    out.flush()?;
    Ok(())
}
