//! Downloads of a whole node: what it reports, what a kill costs, what a full disk does to the other services.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cxmpute_wire::Code;
use cxmpute_wire::control::ServiceState;
use tokio::process::{Child, Command};

use crate::delivery::{model, pinned};
use crate::engines::program;
use crate::gateway::{Gateway, Running, Tunnel, service, soon};
use crate::mirror::{Mirror, Play};

const PIECE: u64 = 64 * 1024;

struct Provider {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Provider {
    /// A data directory with an engine that starts and says nothing.
    fn new(gateway: &Gateway, mirror: &Mirror) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = program(dir.path(), "exec sleep 1000");
        let config = dir.path().join("node.toml");
        let text = format!(
            "data_dir = {:?}\n[api]\nurl = {:?}\n[models]\nhub = \"\"\nmirrors = [{:?}]\nmargin_mb = 1\npiece_kb = {}\n\
             [engine]\nprogram = {engine:?}\n",
            dir.path().join("data"),
            gateway.url(),
            mirror.url(),
            PIECE / 1024,
        );
        std::fs::write(&config, text).unwrap();
        Self { dir, config }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("data/models")
    }

    fn start(&self, before: &[&str]) -> Child {
        let own = [env!("CARGO_BIN_EXE_cxmpute-provider"), "start", "--json"];
        let words: Vec<&str> = before.iter().chain(&own).copied().collect();
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        Command::new(words[0])
            .args(&words[1..])
            .env("CXMPUTE_CONFIG_PATH", &self.config)
            .env("CXMPUTE_GRANT", "grant")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

async fn end(mut child: Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
    soon(child.wait()).await.unwrap();
}

/// Reads heartbeats until the service has an engine.
async fn until_started(tunnel: &mut Tunnel, name: &str) {
    soon(async { while tunnel.until(name, ServiceState::Loading).await.pid.is_none() {} }).await;
}

#[tokio::test]
async fn a_killed_node_goes_on_where_it_was() {
    let mirror = Mirror::start().await;
    let content = model(50, 2_000_000);
    let sum = mirror.put(&content);
    mirror.play(vec![Play::Slow(10_000, Duration::from_millis(10))], Play::Serve);
    let mut gateway = Gateway::start().await;
    let provider = Provider::new(&gateway, &mirror);
    let mut wanted = service("llm:a");
    wanted.files = vec![pinned("a.gguf", &sum, content.len())];
    let node = provider.start(&[]);
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![wanted.clone()]).await;
    let seen = tunnel.until("llm:a", ServiceState::Downloading).await.progress.unwrap();
    assert_eq!((seen.total.0, seen.source), (2_000_000, mirror.address.to_string()));
    let journal = provider.models().join(".cxmpute/partial").join(format!("sha256-{sum}.journal"));
    let pieces = || std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    soon(async {
        while pieces() < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    })
    .await;
    let safe = (pieces() as u64 - 1) * PIECE;
    end(node, nix::sys::signal::Signal::SIGKILL).await;
    let before = mirror.sent();
    assert!(before < 2_000_000, "the kill came too late to show anything");
    let node = provider.start(&[]);
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![wanted]).await;
    until_started(&mut tunnel, "llm:a").await;
    let blob = provider.models().join("blobs").join(format!("sha256-{sum}"));
    assert_eq!(std::fs::read(blob).unwrap(), content);
    let again = mirror.asked().pop().unwrap().1["range"].clone();
    let from: u64 = again.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    assert!(from >= safe, "{from} of {safe} bytes that were safe");
    // What was on its way in sockets when the node died is the server's count, not the node's.
    let sent = mirror.sent();
    assert!(sent <= 2_000_000 + PIECE + 100_000, "{sent} bytes were sent");
    end(node, nix::sys::signal::Signal::SIGTERM).await;
    assert!(!journal.exists());
}

#[tokio::test]
async fn a_full_disk_stops_one_service_and_no_other() {
    let mirror = Mirror::start().await;
    let (small, large) = (model(51, 300_000), model(52, 6_000_000));
    let [small_sum, large_sum] = [&small, &large].map(|content| mirror.put(content));
    let mut gateway = Gateway::start().await;
    let provider = Provider::new(&gateway, &mirror);
    let models = provider.models();
    std::fs::create_dir_all(&models).unwrap();
    // A disk of its own, in a namespace that ends with the node.
    let mount = format!("mount -t tmpfs -o size=6m tmpfs '{}' && exec \"$@\"", models.display());
    let tried = std::process::Command::new("unshare").args(["-m", "sh", "-c", &mount, "sh", "true"]).status();
    if !tried.is_ok_and(|status| status.success()) {
        // This system lets nobody mount a disk: nothing can be shown here.
        return;
    }
    let node = provider.start(&["unshare", "-m", "sh", "-c", &mount, "sh"]);
    let mut tunnel = gateway.tunnel().await;
    let (mut one, mut two) = (service("llm:small"), service("llm:large"));
    one.files = vec![pinned("small.gguf", &small_sum, small.len())];
    two.files = vec![pinned("large.gguf", &large_sum, large.len())];
    tunnel.publish(vec![two, one]).await;
    let failed = tunnel.until("llm:large", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::DiskLow));
    assert!(failed.detail.unwrap().contains("MiB are needed"), "it says how much");
    until_started(&mut tunnel, "llm:small").await;
    let inside = Path::new("/proc").join(node.id().unwrap().to_string()).join("root");
    let inside = inside.join(models.strip_prefix("/").unwrap());
    let count = |name: &str| std::fs::read_dir(inside.join(name)).unwrap().count();
    assert_eq!((count("blobs"), count(".cxmpute/partial")), (1, 0), "nothing half-written stays");
    assert!(mirror.asked().iter().all(|(path, _)| path.ends_with(&small_sum)), "nothing of it was fetched");
    end(node, nix::sys::signal::Signal::SIGTERM).await;
}

/// Room that was promised can be lost: file systems without promises, and whoever digs holes. What the disk says in the middle of
/// a write counts.
#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_write_keeps_nothing_of_the_file() {
    use nix::fcntl::{FallocateFlags, fallocate};

    let mirror = Mirror::start().await;
    let content = model(57, 3_000_000);
    let sum = mirror.put(&content);
    mirror.play(vec![Play::Slow(10_000, Duration::from_millis(10))], Play::Serve);
    let mut gateway = Gateway::start().await;
    let provider = Provider::new(&gateway, &mirror);
    let models = provider.models();
    std::fs::create_dir_all(&models).unwrap();
    let mount = format!("mount -t tmpfs -o size=6m tmpfs '{}' && exec \"$@\"", models.display());
    let tried = std::process::Command::new("unshare").args(["-m", "sh", "-c", &mount, "sh", "true"]).status();
    if !tried.is_ok_and(|status| status.success()) {
        // This system lets nobody mount a disk: nothing can be shown here.
        return;
    }
    let node = provider.start(&["unshare", "-m", "sh", "-c", &mount, "sh"]);
    let mut tunnel = gateway.tunnel().await;
    let mut wanted = service("llm:a");
    wanted.files = vec![pinned("a.gguf", &sum, content.len())];
    tunnel.publish(vec![wanted]).await;
    let inside = Path::new("/proc").join(node.id().unwrap().to_string()).join("root");
    let inside = inside.join(models.strip_prefix("/").unwrap());
    let partial = inside.join(".cxmpute/partial");
    let file = partial.join(format!("sha256-{sum}"));
    soon(async {
        while std::fs::metadata(&file).map_or(0, |meta| meta.len()) < 500_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // The promise is taken back, and somebody else fills the disk to its last byte.
    let promised = std::fs::File::options().read(true).write(true).open(&file).unwrap();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&promised, hole, 2_000_000, 1_000_000).unwrap();
    drop(promised);
    let filler = inside.join("filler");
    let full = std::fs::write(&filler, vec![1; 7 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let failed = tunnel.until("llm:a", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::DiskLow), "{:?}", failed.detail);
    let count = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!((count(&inside.join("blobs")), count(&partial)), (0, 0), "nothing half-written stays");
    let asked = mirror.asked().len();
    assert_eq!(asked, 1, "it was in the middle of the file");
    std::fs::remove_file(filler).unwrap();
    until_started(&mut tunnel, "llm:a").await;
    let blob = inside.join("blobs").join(format!("sha256-{sum}"));
    assert!(std::fs::read(blob).unwrap() == content, "it came whole in the end");
    end(node, nix::sys::signal::Signal::SIGTERM).await;
}

#[tokio::test]
async fn a_model_that_fails_keeps_no_other_from_its_work() {
    let mirror = Mirror::start().await;
    let (good, slow) = (model(53, 200_000), model(54, 900_000));
    let [good_sum, slow_sum] = [&good, &slow].map(|content| mirror.put(content));
    let wrong = model(55, 200_000);
    let wrong_sum = mirror.put(&wrong);
    mirror.put_at(&format!("/blobs/sha256-{wrong_sum}"), &good);
    let mut gateway = Gateway::start().await;
    let place = tempfile::tempdir().unwrap();
    let engine = program(place.path(), "exec sleep 1000");
    let node = Running::start(&gateway, None, |config| {
        config.models.mirrors = vec![mirror.url()];
        config.models.hub = String::new();
        config.models.margin_mb = 1;
        config.engine.program = Some(engine);
    });
    let mut tunnel = gateway.tunnel().await;
    mirror.play(vec![Play::Slow(1_000, Duration::from_millis(10))], Play::Serve);
    let mut first = service("llm:slow");
    first.files = vec![pinned("slow.gguf", &slow_sum, slow.len())];
    tunnel.publish(vec![first.clone()]).await;
    tunnel.until("llm:slow", ServiceState::Downloading).await;
    let (mut one, mut two) = (service("llm:good"), service("llm:wrong"));
    one.files = vec![pinned("good.gguf", &good_sum, good.len())];
    two.files = vec![pinned("wrong.gguf", &wrong_sum, wrong.len())];
    tunnel.publish(vec![first, one, two]).await;
    let failed = tunnel.until("llm:wrong", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::DigestMismatch));
    assert!(failed.detail.unwrap().contains("nothing of it was loaded"));
    until_started(&mut tunnel, "llm:good").await;
    let heartbeat = tunnel.heartbeat().await;
    let slow = heartbeat.services.iter().find(|s| s.service_id.as_str() == "llm:slow").unwrap();
    assert_eq!(slow.state, ServiceState::Downloading, "it still comes, slowly");
    // A plan without it ends its download at once; what came stays for another time.
    tunnel.publish(vec![]).await;
    soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    let blobs = std::fs::read_dir(node.config.models_dir().join("blobs")).unwrap().flatten();
    let names: Vec<_> = blobs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(names, [format!("sha256-{good_sum}")]);
    node.stop().await;
}
