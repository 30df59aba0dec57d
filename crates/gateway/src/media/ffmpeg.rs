//! ffmpeg, where the operator has it: for what no library in safe Rust knows. It runs once for a piece of work, confined like
//! an engine of a node, in bounded memory and time, and it is told what it is given: it never guesses a format, and reads and
//! writes nothing but its two pipes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cxmpute_runtime::confine::{Confiner, Terms};
use cxmpute_runtime::once::{FILE, MEMORY, Once, OnceError, Running, Sandbox};

/// Longest that it may run.
const TIME: Duration = Duration::from_secs(60);
/// Where it is looked for.
const PLACES: [&str; 3] = ["/usr/local/bin/ffmpeg", "/usr/bin/ffmpeg", "/opt/homebrew/bin/ffmpeg"];

/// The program with its sandbox. Cloning shares nothing but where it is.
#[derive(Debug, Clone)]
pub struct Ffmpeg {
    program: PathBuf,
    sandbox: Sandbox,
}

impl Ffmpeg {
    /// Looks for it: where the configuration says, else in the usual places. `data_dir` is out of its sight.
    #[must_use]
    pub fn find(configured: Option<&Path>, data_dir: &Path) -> Option<Self> {
        let program = match configured {
            Some(path) if path.as_os_str().is_empty() => None,
            Some(path) => Some(path.to_owned()),
            None => PLACES.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        program.map(|program| Self { sandbox: sandbox(&program, data_dir), program })
    }

    /// Turns `input`, in the format `from`, into what `to` says, at most `limit` bytes of it. Nothing of a request is an
    /// argument, and no tag says who made the result.
    ///
    /// # Errors
    /// It failed, ran too long or made too much.
    pub async fn turn(
        &self,
        from: &str,
        input: &[u8],
        to: &[&str],
        limit: usize,
    ) -> Result<Vec<u8>, OnceError> {
        let arguments = line(&["-f", from], to);
        self.once(&arguments, input, limit, TIME).run(&self.sandbox).await
    }

    /// The same with bare samples that are given piece by piece, and a result that is taken as it comes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(
        &self,
        (rate, channels): (u32, u16),
        to: &[&str],
        limit: usize,
        time: Duration,
    ) -> Result<Running, OnceError> {
        let (rate, channels) = (rate.to_string(), channels.to_string());
        // It knows what comes and looks at nothing first, and what it has made it does not keep.
        let given =
            ["-probesize", "32", "-analyzeduration", "0", "-f", "s16le", "-ar", &rate, "-ac", &channels];
        let to: Vec<&str> = to.iter().copied().chain(["-flush_packets", "1"]).collect();
        self.once(&line(&given, &to), b"", limit, time).start(&self.sandbox)
    }

    fn once<'a>(
        &'a self,
        arguments: &'a [String],
        input: &'a [u8],
        limit: usize,
        time: Duration,
    ) -> Once<'a> {
        Once { program: &self.program, arguments, environment: &[], input, output_limit: limit, time }
    }
}

/// What is around it: what the gateway's own program takes away, or, where this is another program (a test), what those of
/// the system do.
fn sandbox(program: &Path, data_dir: &Path) -> Sandbox {
    let own =
        std::env::current_exe().ok().filter(|own| own.file_name().is_some_and(|name| name == "cxmpute"));
    let Some(confiner) = own.and_then(|own| Confiner::probe(own, &["confined"])) else {
        return Sandbox::probe();
    };
    let folder = program.parent().filter(|folder| folder.is_absolute());
    confiner.sandbox(&Terms {
        hidden: std::path::absolute(data_dir).into_iter().collect(),
        readable: folder.map(Path::to_owned).into_iter().collect(),
        address_space: Some(MEMORY),
        files: Some(FILE),
        ..Terms::default()
    })
}

/// Its arguments.
fn line(given: &[&str], wanted: &[&str]) -> Vec<String> {
    let quiet =
        ["-hide_banner", "-loglevel", "error", "-nostdin", "-threads", "1", "-protocol_whitelist", "pipe"];
    let between = ["-i", "pipe:0", "-map", "0:a:0", "-map_metadata", "-1"];
    let all = quiet.iter().chain(given).chain(&between).chain(wanted).chain(&["pipe:1"]);
    all.map(|&word| word.to_owned()).collect()
}
