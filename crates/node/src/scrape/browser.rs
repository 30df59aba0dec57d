//! Pages with scripts: one run of a headless browser for each page, with a fresh profile, in a cage whose only door is
//! the guard's proxy, under limits of time, memory and output. Whatever happens, its whole process group is ended.

use std::fs::{File, Permissions};
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
        Place::tidy(&std::env::temp_dir());
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
        let socket = place.path.join("out.sock");
        let proxy = Proxy::on_socket(&socket, connector.clone(), ProxyLimits::default(), &self.tasks)
            .map_err(|error| failed(error.to_string()))?;
        let mut run = self.start(&place.path, &socket, url).map_err(|error| failed(error.to_string()))?;
        let pid = run.root;
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
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let root = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Run { child, root })
    }
}

/// A running browser in its cage. Dropping it ends the whole group.
struct Run {
    child: Child,
    /// Its process, which leads the group. Its number is nobody else's as long as one of the group runs.
    root: Option<i32>,
}

impl Run {
    /// Everything it says, once it has ended well.
    async fn read(&mut self) -> Result<String, String> {
        let mut said = Vec::new();
        let Some(stdout) = self.child.stdout.as_mut() else { return Err("it cannot be heard".into()) };
        let limit = DATA_LIMIT_BYTES as u64 + 1;
        stdout.take(limit).read_to_end(&mut said).await.map_err(|error| error.to_string())?;
        if said.len() as u64 == limit {
            return Err(format!("it is larger than {} bytes", DATA_LIMIT_BYTES));
        }
        let status = self.child.wait().await.map_err(|error| error.to_string())?;
        if status.code() == Some(cage::NO_CAGE.into()) {
            return Err("no network namespace can be made".into());
        }
        if !status.success() || said.is_empty() {
            return Err(format!("the browser ended with {status}"));
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(root) = self.root else { return };
        if self.child.id().is_some() {
            // Helpers of the browser leave the group, but not the family.
            for pid in family(root) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        // Also where it has ended: what it started may have stayed. An error means that nothing did.
        let _ = killpg(Pid::from_raw(root), Signal::SIGKILL);
    }
}

/// What the directories of runs are called.
const PLACE_PREFIX: &str = "cxm-browser-";

/// A private directory of one run, removed when this is dropped. It lies where the browser's user can reach it.
struct Place {
    path: PathBuf,
    /// Says that somebody needs it; a killed engine cannot remove it, but it lets go.
    _held: File,
}

impl Place {
    fn make(user: &str) -> std::io::Result<Self> {
        let name = format!("{PLACE_PREFIX}{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>()));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        let held = File::open(&path)?;
        held.lock_shared()?;
        let place = Self { path, _held: held };
        std::fs::set_permissions(&place.path, Permissions::from_mode(0o700))?;
        if Uid::current().is_root() {
            let user = User::from_name(user)?
                .ok_or_else(|| std::io::Error::other(format!("there is no user {user}")))?;
            chown(&place.path, Some(user.uid), Some(user.gid))?;
        }
        Ok(place)
    }

    /// Removes the directories of engines that were killed. What belongs to others stays.
    fn tidy(folder: &Path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let ours = entry.file_name().as_encoded_bytes().starts_with(PLACE_PREFIX.as_bytes())
                && entry.file_type().is_ok_and(|kind| kind.is_dir());
            if ours && File::open(entry.path()).is_ok_and(|held| held.try_lock().is_ok()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, place = %self.path.display(), "the directory of a browser stays");
        }
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = config::env_var("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Every process with its parent.
fn processes() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let read = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything; the numbers follow the last bracket.
        Some((pid, stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?))
    };
    entries.flatten().filter_map(read).collect()
}

/// A process and everything it started.
fn family(root: i32) -> Vec<i32> {
    let all = processes();
    let mut found: Vec<i32> = all.iter().map(|(pid, _)| *pid).filter(|pid| *pid == root).collect();
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// Memory that a process takes, in bytes; the kernel says it in KiB, whatever its pages are.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Returns when a process and everything it started take more than this.
async fn grows_beyond(root: Option<i32>, bytes: u64) {
    let Some(root) = root else { return std::future::pending().await };
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if family(root).into_iter().map(resident).sum::<u64>() > bytes {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_killed_engines_go_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("profile")).unwrap();
            path
        };
        let (used, left, others) = (made("cxm-browser-1"), made("cxm-browser-2"), made("photos"));
        let held = File::open(&used).unwrap();
        held.lock_shared().unwrap();
        Place::tidy(dir.path());
        assert!(used.exists() && !left.exists() && others.exists());
    }

    #[tokio::test]
    async fn what_a_browser_leaves_behind_ends_with_its_run() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 >/dev/null & echo $!"]).stdout(Stdio::piped()).process_group(0);
        let child = command.spawn().unwrap();
        let root = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut run = Run { child, root };
        let helper: i32 = run.read().await.unwrap().trim().parse().unwrap();
        assert!(kill(Pid::from_raw(helper), None).is_ok(), "it outlives the program that ended well");
        drop(run);
        let gone = async {
            let stat = || std::fs::read_to_string(format!("/proc/{helper}/stat")).unwrap_or_default();
            while stat().rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it is gone");
    }

    #[test]
    fn memory_is_told_in_bytes_whatever_the_pages_are() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(family(own).first(), Some(&own));
        let before = resident(own);
        let held = vec![1_u8; 64 << 20];
        let grown = resident(own).saturating_sub(before);
        assert!((32 << 20..256 << 20).contains(&grown), "{grown} for {}", held.len());
        assert_eq!(resident(i32::MAX), 0);
    }
}
