//! Model delivery through real sockets: good mirrors, bad mirrors, hubs, what stays on the disk and what does not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_node::NodeConfig;
use cxmpute_node::models::{DeliveryError, Models, Placed};
use cxmpute_runtime::Clock;
use cxmpute_wire::Code;
use cxmpute_wire::control::{DesiredFile, DesiredService, HubModel, Progress, ServiceState};
use parking_lot::Mutex;

use crate::gateway::{service, soon};
use crate::mirror::{Mirror, Play};

/// A GGUF file as far as its head goes, and noise behind it.
pub fn model(seed: u8, size: usize) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    let mut state = u32::from(seed) + 1;
    while bytes.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((state >> 24) as u8);
    }
    bytes
}

pub fn pinned(name: &str, sum: &str, size: usize) -> DesiredFile {
    DesiredFile {
        role: "model".into(),
        name: name.into(),
        sha256: Some(sum.into()),
        size: Some(cxmpute_wire::Bytes(size as u64)),
        urls: Vec::new(),
        hub: None,
    }
}

fn wants(name: &str, files: Vec<DesiredFile>) -> DesiredService {
    let mut wanted = service(name);
    wanted.files = files;
    wanted
}

struct Stage {
    dir: tempfile::TempDir,
    config: NodeConfig,
}

impl Stage {
    fn new(mirrors: &[&Mirror]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NodeConfig { data_dir: dir.path().to_owned(), ..NodeConfig::default() };
        config.api.url = "http://127.0.0.1:9".into();
        config.models.mirrors = mirrors.iter().map(|mirror| mirror.url()).collect();
        config.models.hub = String::new();
        config.models.margin_mb = 1;
        config.models.piece_kb = 64;
        config.models.stall_ms = 1_500;
        Self { dir, config }
    }

    fn models(&self) -> Models {
        Models::new(&self.config, None, Clock::system())
    }

    fn root(&self) -> std::path::PathBuf {
        self.config.models_dir()
    }

    async fn place(&self, files: Vec<DesiredFile>) -> Result<Placed, DeliveryError> {
        place(&self.models(), files).await
    }

    /// Files that are on their way or were.
    fn leftovers(&self) -> Vec<String> {
        let mut names = names(&self.root().join(".cxmpute/partial"));
        names.extend(names_of_blobs(&self.root()));
        names
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn names_of_blobs(root: &Path) -> Vec<String> {
    names(&root.join("blobs"))
}

async fn place(models: &Models, files: Vec<DesiredFile>) -> Result<Placed, DeliveryError> {
    soon(models.place(&wants("llm:a", files), Arc::new(|_, _| {}))).await
}

#[tokio::test]
async fn a_model_comes_from_a_mirror_and_its_states_are_told() {
    let mirror = Mirror::start().await;
    let content = model(1, 3_000_000);
    let sum = mirror.put(&content);
    mirror.play(vec![], Play::Slow(100_000, Duration::from_millis(30)));
    let stage = Stage::new(&[&mirror]);
    let told: Arc<Mutex<Vec<(ServiceState, Progress)>>> = Arc::default();
    let notes = told.clone();
    let tell = Arc::new(move |state, progress| notes.lock().push((state, progress)));
    let models = stage.models();
    let wanted = wants("llm:a", vec![pinned("deep/a.gguf", &sum, content.len())]);
    let placed = soon(models.place(&wanted, tell)).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("deep/a.gguf")).unwrap(), content);
    assert_eq!(mirror.sent(), content.len() as u64, "every byte came once");
    let told = told.lock().clone();
    let mut states: Vec<ServiceState> = told.iter().map(|(state, _)| *state).collect();
    states.dedup();
    assert_eq!(states, [ServiceState::Queued, ServiceState::Downloading, ServiceState::Verifying]);
    let bytes: Vec<u64> = told.iter().map(|(_, progress)| progress.bytes.0).collect();
    assert!(bytes.is_sorted() && bytes.last() == Some(&(content.len() as u64)), "{bytes:?}");
    let last = &told.last().unwrap().1;
    assert_eq!((last.total.0, &*last.source), (content.len() as u64, &*mirror.address.to_string()));
    assert!(told.iter().any(|(_, progress)| progress.rate > 100_000), "a rate was measured");
    // The next start finds it, without a word to anybody.
    drop(placed);
    let again = stage.place(vec![pinned("deep/a.gguf", &sum, content.len())]).await.unwrap();
    assert_eq!(std::fs::read(again.folder.join("deep/a.gguf")).unwrap(), content);
    assert_eq!(mirror.asked().len(), 1);
}

#[tokio::test]
async fn servers_that_break_off_or_are_busy_are_asked_for_the_rest() {
    for (script, then) in [
        (vec![Play::Cut(100_001), Play::Status(503), Play::Cut(1), Play::Cut(70_000)], Play::Serve),
        (vec![Play::Status(503), Play::Silence, Play::Status(429)], Play::Serve),
        (vec![Play::Cut(150_000)], Play::IgnoreRanges),
        (vec![Play::Trickle], Play::Serve),
    ] {
        let mirror = Mirror::start().await;
        let content = model(2, 400_000);
        let sum = mirror.put(&content);
        let told = format!("{script:?} {then:?}");
        let exact = !told.contains("IgnoreRanges");
        mirror.play(script, then);
        let stage = Stage::new(&[&mirror]);
        let placed = stage.place(vec![pinned("a.gguf", &sum, content.len())]).await.expect(&told);
        assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content, "{told}");
        if exact {
            let sent = mirror.sent();
            assert!(sent <= content.len() as u64 + 1_000, "{sent} bytes were sent: {told}");
        }
    }
}

#[tokio::test]
async fn servers_that_lie_are_left_for_others_and_nothing_of_theirs_stays() {
    for play in [Play::WrongByte, Play::LyingLength, Play::Endless, Play::Status(404), Play::Status(403)] {
        let (bad, good) = (Mirror::start().await, Mirror::start().await);
        let content = model(3, 300_000);
        let sum = bad.put(&content);
        good.put(&content);
        bad.play(vec![], play.clone());
        let stage = Stage::new(&[&bad, &good]);
        let wanted = vec![pinned("a.gguf", &sum, content.len())];
        let models = stage.models();
        let placed = place(&models, wanted.clone()).await.unwrap_or_else(|error| panic!("{play:?}: {error}"));
        assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content, "{play:?}");
        // Alone, it gets nothing on the disk.
        let stage = Stage::new(&[&bad]);
        let models = stage.models();
        let error = place(&models, wanted.clone()).await.unwrap_err();
        let expected = match play {
            Play::Status(_) => Code::ModelUnavailable,
            _ => Code::DigestMismatch,
        };
        assert_eq!(error.code(), expected, "{play:?}: {error}");
        assert!(error.to_string().contains(&bad.address.to_string()), "{error}");
        assert_eq!(names_of_blobs(&stage.root()), Vec::<String>::new(), "{play:?}");
        if expected == Code::DigestMismatch {
            assert_eq!(stage.leftovers(), Vec::<String>::new(), "{play:?}");
        }
        // It is not asked again at once.
        let asked = bad.asked().len();
        assert_eq!(place(&models, wanted).await.unwrap_err().code(), expected);
        assert_eq!(bad.asked().len(), asked, "{play:?}");
    }
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_no_answer() {
    let (bad, good) = (Mirror::start().await, Mirror::start().await);
    let content = model(4, 300_000);
    let sum = bad.put(&content);
    good.put(&content);
    bad.play(vec![Play::Cut(100_000)], Play::OtherRange);
    let stage = Stage::new(&[&bad, &good]);
    let placed = stage.place(vec![pinned("a.gguf", &sum, content.len())]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    assert_eq!(good.sent(), 200_000, "the other one goes on where the first broke off");
}

#[tokio::test]
async fn when_two_sources_made_a_wrong_file_each_has_to_give_all_of_it() {
    let (bad, good) = (Mirror::start().await, Mirror::start().await);
    let content = model(5, 300_000);
    let sum = bad.put(&content);
    good.put(&content);
    let mut wrong = content.clone();
    wrong[10_000] ^= 1;
    bad.put_at(&format!("/blobs/sha256-{sum}"), &wrong);
    // It gives a beginning, and then nothing more.
    bad.play(vec![Play::Cut(100_000)], Play::Status(404));
    let stage = Stage::new(&[&bad, &good]);
    let placed = stage.place(vec![pinned("a.gguf", &sum, content.len())]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    assert_eq!(good.sent(), 200_000 + 300_000);
}

#[tokio::test]
async fn a_wrong_source_costs_nothing_that_another_gave() {
    let (bad, good) = (Mirror::start().await, Mirror::start().await);
    let content = model(60, 300_000);
    let sum = bad.put(&content);
    good.put(&content);
    bad.play(vec![], Play::LyingLength);
    good.play(vec![Play::Cut(200_000)], Play::Status(503));
    let stage = Stage::new(&[&bad, &good]);
    let wanted = vec![pinned("a.gguf", &sum, content.len())];
    let models = stage.models();
    for _ in 0..2 {
        let error = place(&models, wanted.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelUnavailable, "the good one may come back: {error}");
        assert!(error.to_string().contains(&bad.address.to_string()), "{error}");
    }
    good.play(vec![], Play::Serve);
    let placed = stage.place(wanted).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    assert!(good.sent() <= 300_000 + 65_536, "{} bytes were sent", good.sent());
}

#[tokio::test]
async fn a_source_that_drips_is_left_for_another() {
    let (bad, good) = (Mirror::start().await, Mirror::start().await);
    let content = model(61, 300_000);
    let sum = bad.put(&content);
    good.put(&content);
    bad.play(vec![], Play::Trickle);
    let mut stage = Stage::new(&[&bad, &good]);
    stage.config.models.stall_ms = 200;
    let placed = stage.place(vec![pinned("a.gguf", &sum, content.len())]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    assert_eq!((bad.asked().len(), good.asked().len()), (5, 1));
}

#[tokio::test]
async fn after_a_source_that_sends_too_much_the_next_is_asked_from_the_beginning() {
    let (bad, good) = (Mirror::start().await, Mirror::start().await);
    let content = model(62, 300_000);
    let sum = bad.put(&content);
    good.put(&content);
    bad.play(vec![], Play::Endless);
    let stage = Stage::new(&[&bad, &good]);
    let placed = stage.place(vec![pinned("a.gguf", &sum, content.len())]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    assert_eq!(good.sent(), 300_000);
}

#[tokio::test]
async fn a_stop_in_the_middle_costs_at_most_a_piece() {
    let mirror = Mirror::start().await;
    let content = model(6, 1_000_000);
    let sum = mirror.put(&content);
    mirror.play(vec![Play::Slow(10_000, Duration::from_millis(5))], Play::Serve);
    let stage = Stage::new(&[&mirror]);
    let wanted = wants("llm:a", vec![pinned("a.gguf", &sum, content.len())]);
    let models = stage.models();
    {
        let mut fetching = std::pin::pin!(models.place(&wanted, Arc::new(|_, _| {})));
        // A piece is safe when the journal names it.
        let journal = stage.root().join(".cxmpute/partial").join(format!("sha256-{sum}.journal"));
        let lines = || std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
        tokio::select! {
            ended = &mut fetching => panic!("it ended: {:?}", ended.map(drop)),
            () = soon(async { while lines() < 4 { tokio::time::sleep(Duration::from_millis(2)).await } }) => {}
        }
    }
    let placed = stage.place(wanted.files).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    let ranges: Vec<u64> = mirror
        .asked()
        .iter()
        .filter_map(|(_, headers)| {
            headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
        })
        .collect();
    assert!(ranges.len() == 1 && ranges[0] >= 3 * 65_536 && ranges[0].is_multiple_of(65_536), "{ranges:?}");
}

#[tokio::test]
async fn a_hub_is_asked_by_its_layout_and_its_token_stays_there() {
    let (hub, storage) = (Mirror::start().await, Mirror::start().await);
    let content = model(7, 200_000);
    let sum = storage.put(&content);
    let to = format!("{}/blobs/sha256-{sum}", storage.url());
    let extra =
        |sum: &str| vec![("x-linked-etag", format!("\"{sum}\"")), ("x-linked-size", "200000".to_owned())];
    hub.play(vec![], Play::Redirect(to.clone(), extra(&sum)));
    let mut stage = Stage::new(&[]);
    stage.config.models.hub = hub.url();
    let token = stage.dir.path().join("token");
    std::fs::write(&token, "hf_sesame\n").unwrap();
    stage.config.models.hub_token_file = Some(token);
    let mut file = pinned("a.gguf", &sum, content.len());
    let hub_model =
        HubModel { repository: "o/n".into(), revision: Some("abc".into()), file: Some("q/a.gguf".into()) };
    file.hub = Some(Box::new(hub_model));
    // Where it redirects is on this machine, and the owner named only the hub.
    let error = stage.place(vec![file.clone()]).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelUnavailable);
    assert!(error.to_string().contains("redirects where it may not"), "{error}");
    assert_eq!(storage.asked().len(), 0);
    stage.config.models.mirrors = vec![format!("{}/elsewhere/{{sha256}}", storage.url())];
    let placed = stage.place(vec![file.clone()]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("a.gguf")).unwrap(), content);
    let (path, headers) = hub.asked().pop().unwrap();
    assert_eq!(path, "/o/n/resolve/abc/q/a.gguf");
    assert_eq!(headers["authorization"], "Bearer hf_sesame");
    assert!(storage.asked().iter().all(|(_, headers)| !headers.contains_key("authorization")));
    // A hub that names another sum is believed before a byte is fetched.
    let (sent, other) = (storage.sent(), "0".repeat(64));
    hub.play(vec![], Play::Redirect(to, extra(&other)));
    let mut stage = Stage::new(&[]);
    stage.config.models.hub = hub.url();
    let error = stage.place(vec![file]).await.unwrap_err();
    assert_eq!((error.code(), storage.sent()), (Code::DigestMismatch, sent));
}

#[tokio::test]
async fn the_plan_cannot_send_a_node_into_its_owners_network() {
    let mirror = Mirror::start().await;
    let content = model(8, 1_000);
    let sum = mirror.put(&content);
    let stage = Stage::new(&[]);
    let mut file = pinned("a.gguf", &sum, content.len());
    file.urls =
        vec![format!("{}/blobs/sha256-{sum}", mirror.url()), mirror.url().replace("127.0.0.1", "localhost")];
    let error = stage.place(vec![file]).await.unwrap_err();
    assert_eq!(error.code(), Code::ModelUnavailable);
    assert_eq!(mirror.asked().len(), 0, "{error}");
}

#[tokio::test]
async fn two_services_share_one_blob_and_fetch_it_once() {
    let mirror = Mirror::start().await;
    let content = model(9, 600_000);
    let sum = mirror.put(&content);
    mirror.play(vec![], Play::Slow(20_000, Duration::from_millis(5)));
    let stage = Stage::new(&[&mirror]);
    let models = stage.models();
    let (one, two) = tokio::join!(
        place(&models, vec![pinned("one.gguf", &sum, content.len())]),
        place(&models, vec![pinned("other/two.gguf", &sum, content.len())]),
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(mirror.sent(), content.len() as u64);
    let inode = |path: std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().ino()
    };
    assert_eq!(inode(one.folder.join("one.gguf")), inode(two.folder.join("other/two.gguf")));
    assert_eq!(names_of_blobs(&stage.root()), [format!("sha256-{sum}")]);
}

#[tokio::test]
async fn files_of_a_service_come_at_the_same_time_but_not_more_than_allowed() {
    let mirror = Mirror::start().await;
    let contents: Vec<Vec<u8>> = (0..6).map(|n| model(20 + n, 100_000)).collect();
    let files: Vec<DesiredFile> = contents
        .iter()
        .enumerate()
        .map(|(n, content)| pinned(&format!("{n}.gguf"), &mirror.put(content), content.len()))
        .collect();
    mirror.play(vec![], Play::Slow(10_000, Duration::from_millis(10)));
    let mut stage = Stage::new(&[&mirror]);
    stage.config.models.parallel = 2;
    let placed = stage.place(files).await.unwrap();
    for (n, content) in contents.iter().enumerate() {
        assert_eq!(&std::fs::read(placed.folder.join(format!("{n}.gguf"))).unwrap(), content);
    }
    assert_eq!(mirror.most_open(), 2);
}

#[tokio::test]
async fn the_owners_files_are_used_where_they_lie_and_never_touched() {
    let mirror = Mirror::start().await;
    let (own, other, fetched) = (model(30, 5_000), model(31, 5_000), model(32, 5_000));
    let [own_sum, other_sum, sum] = [&own, &other, &fetched].map(|content| mirror.put(content));
    let mut stage = Stage::new(&[&mirror]);
    let store = stage.dir.path().join("ollama");
    std::fs::create_dir_all(store.join("blobs")).unwrap();
    std::fs::write(store.join("blobs").join(format!("sha256-{other_sum}")), &other).unwrap();
    stage.config.models.search = vec![store.clone()];
    std::fs::create_dir_all(stage.root()).unwrap();
    std::fs::write(stage.root().join("own.gguf"), &own).unwrap();
    let before = std::fs::metadata(stage.root().join("own.gguf")).unwrap().modified().unwrap();
    let file = |name: &str, sum: &str| pinned(name, sum, 5_000);
    // Alone it is used in place: nothing of ours is made.
    let placed = stage.place(vec![file("own.gguf", &own_sum)]).await.unwrap();
    assert_eq!(placed.folder, stage.root());
    assert!(!stage.root().join(".cxmpute").exists());
    let all = vec![file("own.gguf", &own_sum), file("x/other.gguf", &other_sum), file("new.gguf", &sum)];
    let placed = stage.place(all).await.unwrap();
    for (name, content) in [("own.gguf", &own), ("x/other.gguf", &other), ("new.gguf", &fetched)] {
        assert_eq!(&std::fs::read(placed.folder.join(name)).unwrap(), content);
    }
    assert_eq!(mirror.sent(), 5_000, "only what was nowhere came");
    // The owner has another file under a name of the plan: it stays, and the right one comes beside it.
    let newer = model(33, 5_000);
    let newer_sum = mirror.put(&newer);
    let placed = stage.place(vec![file("own.gguf", &newer_sum)]).await.unwrap();
    assert_eq!(std::fs::read(placed.folder.join("own.gguf")).unwrap(), newer);
    assert_eq!(std::fs::read(stage.root().join("own.gguf")).unwrap(), own);
    assert_eq!(std::fs::metadata(stage.root().join("own.gguf")).unwrap().modified().unwrap(), before);
    // Without a source it is only said.
    stage.config.models.mirrors.clear();
    let strange = stage.place(vec![file("own.gguf", &"1".repeat(64))]).await.unwrap_err();
    assert_eq!(strange.code(), Code::DigestMismatch);
    let none = stage.place(vec![file("none.gguf", &"1".repeat(64))]).await.unwrap_err();
    assert_eq!(none.code(), Code::ModelMissing);
}

#[tokio::test]
async fn what_could_carry_code_never_becomes_a_blob() {
    let mirror = Mirror::start().await;
    let pickle = [b"\x80\x02}q\0.".as_slice(), &[0; 500]].concat();
    let sum = mirror.put(&pickle);
    let stage = Stage::new(&[&mirror]);
    let models = stage.models();
    let error = place(&models, vec![pinned("pytorch_model.bin", &sum, pickle.len())]).await.unwrap_err();
    assert_eq!((error.code(), mirror.asked().len()), (Code::ModelFormat, 0));
    for name in ["model.safetensors", "model.gguf", "model.onnx"] {
        let models = stage.models();
        let error = place(&models, vec![pinned(name, &sum, pickle.len())]).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelFormat, "{name}: {error}");
        assert_eq!(stage.leftovers(), Vec::<String>::new());
        let asked = mirror.asked().len();
        assert!(place(&models, vec![pinned(name, &sum, pickle.len())]).await.is_err());
        assert_eq!(mirror.asked().len(), asked, "it is not fetched again and again");
    }
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_now_is_kept() {
    let mirror = Mirror::start().await;
    let content = model(63, 4_000_000);
    let sum = mirror.put(&content);
    let stage = Stage::new(&[&mirror]);
    let wanted = vec![pinned("a.gguf", &sum, content.len())];
    drop(stage.place(wanted.clone()).await.unwrap());
    let blob = std::fs::File::open(stage.root().join("blobs").join(format!("sha256-{sum}"))).unwrap();
    // Something touches it again and again: no sum of it counts.
    let (touching, end) =
        (std::sync::mpsc::channel::<()>(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (begun, over) = (touching.0, end.clone());
    let toucher = std::thread::spawn(move || {
        for moment in 1_u64.. {
            blob.set_modified(std::time::UNIX_EPOCH + Duration::from_nanos(moment)).unwrap();
            let _ = begun.send(());
            if over.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
        }
    });
    touching.1.recv().unwrap();
    let error = stage.place(wanted.clone()).await.unwrap_err();
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    toucher.join().unwrap();
    assert_eq!(error.code(), Code::ModelUnavailable, "{error}");
    drop(stage.place(wanted).await.unwrap());
    assert_eq!(mirror.sent(), content.len() as u64, "it was not fetched again");
}

#[tokio::test]
async fn room_is_made_from_unused_blobs_only() {
    let mirror = Mirror::start().await;
    let contents: Vec<Vec<u8>> = (0..4).map(|n| model(40 + n, 300_000)).collect();
    let sums: Vec<String> = contents.iter().map(|content| mirror.put(content)).collect();
    let file = |n: usize| vec![pinned("a.gguf", &sums[n], 300_000)];
    let mut stage = Stage::new(&[&mirror]);
    std::fs::create_dir_all(stage.root()).unwrap();
    std::fs::write(stage.root().join("photos.zip"), [0; 50_000]).unwrap();
    let models = stage.models();
    let used = place(&models, file(0)).await.unwrap();
    drop(place(&models, file(1)).await.unwrap());
    drop(place(&models, file(2)).await.unwrap());
    // The owner lets models take so much that one more fits only if one goes.
    stage.config.models.margin_mb = 0;
    stage.config.owner.caps.disk_mib = Some(1);
    let placed = stage.place(file(3)).await.unwrap();
    let mut left = names_of_blobs(&stage.root());
    left.sort();
    let mut expected: Vec<String> = [0, 2, 3].map(|n| format!("sha256-{}", sums[n])).to_vec();
    expected.sort();
    assert_eq!(left, expected, "the one unused for longest went");
    assert_eq!(std::fs::read(used.folder.join("a.gguf")).unwrap(), contents[0]);
    assert!(stage.root().join("photos.zip").exists());
    // With everything in use, nothing goes, and it is said what is missing.
    let third = stage.place(file(2)).await.unwrap();
    let error = stage.place(file(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskLow, "{error}");
    assert_eq!(names_of_blobs(&stage.root()).len(), 3);
    assert_eq!(names(&stage.root().join(".cxmpute/partial")), Vec::<String>::new());
    drop((placed, third, used));
}
