//! Pages with scripts: one run of a headless browser for each page, with a fresh profile, in a cage whose only door is
//! the guard's proxy, under limits of time, memory and output. Whatever happens, its whole process group is ended.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cxmpute_egress::Connector;
use cxmpute_egress::proxy::{Proxy, ProxyLimits};
use cxmpute_runtime::{Tasks, config, random};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, Uid, User, chown};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use url::Url;

use super::cage;
use super::content::DATA_LIMIT_BYTES;
use super::request;
use super::settings::{AGENT, ScrapeSection};
use cxmpute_wire::scrape::PageError;

/// Programs that are looked for.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
/// Time of one run, from the start of the browser to the last byte.
const RUN_TIME: Duration = Duration::from_secs(20);
/// Time of the page's own clock that its scripts get.
const SCRIPT_TIME_MS: u32 = 5000;
/// Time after which the browser is told to give what it has.
const PAGE_TIME_MS: u32 = 12_000;
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Flags besides those that depend on the run (engines.md, "Scraping"). The browser's own sandbox stays on.
const FLAGS: [&str; 20] = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-client-side-phishing-detection",
    "--disable-features=OptimizationHints,MediaRouter,Translate,DialMediaRouteProvider",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--mute-audio",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--proxy-bypass-list=<-loopback>",
];

/// A browser that can be started.
#[derive(Debug)]
pub struct Browser {
    program: PathBuf,
    /// Our own program, which makes the cage.
    keeper: PathBuf,
    user: String,
    memory_bytes: u64,
    tasks: Tasks,
    /// One run at a time: each takes most of a gigabyte.
    turn: Semaphore,
}

impl Browser {
    /// The browser of this machine, if there is one, the owner allows it, and the system makes cages.
    pub async fn find(settings: &ScrapeSection, keeper: PathBuf, tasks: &Tasks) -> Option<Self> {
        if !settings.render {
            return None;
        }
        let program = match &settings.browser {
            Some(program) => Some(program.clone()).filter(|program| program.is_file()),
            None => PROGRAMS.into_iter().find_map(on_path),
        };
        let Some(program) = program else {
            tracing::info!("no browser is installed, so no page is rendered");
            return None;
        };
        cage::works(&keeper).await.then(|| Self {
            program,
            keeper,
            user: settings.browser_user.clone(),
            memory_bytes: settings.browser_memory_mib.saturating_mul(1024 * 1024),
            tasks: tasks.clone(),
            turn: Semaphore::new(1),
        })
    }

    /// The page after its scripts have run.
    ///
    /// # Errors
    /// The browser fails, is too slow, too large, or says too much.
    pub async fn render(&self, url: &Url, connector: &Connector) -> Result<String, PageError> {
        let failed =
            |why: String| request::error("render_failed", format!("The page could not be rendered: {why}."));
        let _turn = self.turn.acquire().await.map_err(|error| failed(error.to_string()))?;
        let place = Place::make(&self.user).map_err(|error| failed(error.to_string()))?;
        let socket = place.0.join("out.sock");
        let proxy = Proxy::on_socket(&socket, connector.clone(), ProxyLimits::default(), &self.tasks)
            .map_err(|error| failed(error.to_string()))?;
        let mut run = self.start(&place.0, &socket, url).map_err(|error| failed(error.to_string()))?;
        let pid = run.pid();
        let run_ended = tokio::select! {
            ended = run.read() => ended,
            () = grows_beyond(pid, self.memory_bytes) => Err("the browser took too much memory".to_owned()),
            () = tokio::time::sleep(RUN_TIME) => {
                Err(format!("the browser was not done within {} s", RUN_TIME.as_secs()))
            }
        };
        let usage = proxy.usage();
        tracing::debug!(connections = usage.connections, bytes = usage.bytes, refused = ?usage.refused, "rendered");
        let html = run_ended.map_err(failed)?;
        // What the browser shows when it could not load the page.
        if html.contains("class=\"neterror\"") {
            return Err(failed("the browser could not load it".into()));
        }
        Ok(html)
    }

    fn start(&self, place: &Path, socket: &Path, url: &Url) -> std::io::Result<Run> {
        let mut command = Command::new(&self.keeper);
        command.args(["engine", "cage", "--user", &self.user, "--socket"]).arg(socket).arg("--");
        command.arg(&self.program).args(FLAGS);
        command.arg(format!("--user-data-dir={}", place.join("profile").display()));
        command.arg(format!("--proxy-server=http://{}", cage::DOOR));
        command.arg(format!("--user-agent={AGENT}"));
        command.arg(format!("--virtual-time-budget={SCRIPT_TIME_MS}"));
        command.arg(format!("--timeout={PAGE_TIME_MS}"));
        command.args(["--dump-dom", url.as_str()]);
        command.env_clear().env("HOME", place).env("TMPDIR", place).current_dir(place);
        if let Some(path) = config::env_var("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.process_group(0).kill_on_drop(true).spawn().map(Run)
    }
}

/// A running browser in its cage. Dropping it ends the whole group.
struct Run(Child);

impl Run {
    /// Everything it says, once it has ended well.
    async fn read(&mut self) -> Result<String, String> {
        let mut said = Vec::new();
        let Some(stdout) = self.0.stdout.as_mut() else { return Err("it cannot be heard".into()) };
        let limit = DATA_LIMIT_BYTES as u64 + 1;
        stdout.take(limit).read_to_end(&mut said).await.map_err(|error| error.to_string())?;
        if said.len() as u64 == limit {
            return Err(format!("it is larger than {} bytes", DATA_LIMIT_BYTES));
        }
        let status = self.0.wait().await.map_err(|error| error.to_string())?;
        if status.code() == Some(cage::NO_CAGE.into()) {
            return Err("no network namespace can be made".into());
        }
        if !status.success() || said.is_empty() {
            return Err(format!("the browser ended with {status}"));
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// The process id, as long as nobody waited for its end.
    fn pid(&self) -> Option<i32> {
        self.0.id().and_then(|pid| i32::try_from(pid).ok())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(root) = self.pid() else { return };
        // Helpers of the browser leave the group, but not the family.
        for (pid, _) in family(root) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = killpg(Pid::from_raw(root), Signal::SIGKILL);
    }
}

/// A private directory of one run, removed when this is dropped. It lies where the browser's user can reach it.
struct Place(PathBuf);

impl Place {
    fn make(user: &str) -> std::io::Result<Self> {
        let name = format!("cxm-browser-{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>()));
        let place = Self(std::env::temp_dir().join(name));
        std::fs::create_dir(&place.0)?;
        std::fs::set_permissions(&place.0, Permissions::from_mode(0o700))?;
        if Uid::current().is_root() {
            let user = User::from_name(user)?
                .ok_or_else(|| std::io::Error::other(format!("there is no user {user}")))?;
            chown(&place.0, Some(user.uid), Some(user.gid))?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, place = %self.0.display(), "the directory of a browser stays");
        }
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = config::env_var("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// One line of the table of processes: process, parent, resident bytes.
fn processes() -> Vec<(i32, i32, u64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let read = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything; the numbers follow the last bracket.
        let numbers: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let (parent, pages) = (numbers.get(1)?.parse().ok()?, numbers.get(21)?.parse::<u64>().ok()?);
        Some((pid, parent, pages * 4096))
    };
    entries.flatten().filter_map(read).collect()
}

/// A process and everything it started, with their memory.
fn family(root: i32) -> Vec<(i32, u64)> {
    let all = processes();
    let mut found: Vec<(i32, u64)> =
        all.iter().filter(|(pid, ..)| *pid == root).map(|(pid, _, bytes)| (*pid, *bytes)).collect();
    let mut at = 0;
    while let Some(&(parent, _)) = found.get(at) {
        found.extend(all.iter().filter(|(_, of, _)| *of == parent).map(|(pid, _, bytes)| (*pid, *bytes)));
        at += 1;
    }
    found
}

/// Returns when a process and everything it started take more than this.
async fn grows_beyond(root: Option<i32>, bytes: u64) {
    let Some(root) = root else { return std::future::pending().await };
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if family(root).into_iter().map(|(_, bytes)| bytes).sum::<u64>() > bytes {
            return;
        }
    }
}
