//! The provider program as its owner meets it: enrolment, supervision, status, stop, and what is left behind.

use std::path::Path;
use std::time::Duration;

use cxmpute_e2e::client::Client;
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::house::{CHAT_MODEL, House};
use cxmpute_e2e::process::{self, Program};
use cxmpute_e2e::settings::program;
use serde_json::{Value, json};

/// Four times the ten seconds in which a killed engine must answer again.
const ANSWERS_AGAIN_WITHIN: Duration = Duration::from_secs(40);

struct Scene {
    house: House,
    node: Program,
    key: String,
    owner: String,
    folder: tempfile::TempDir,
}

async fn scene() -> Scene {
    scene_in(tempfile::tempdir().unwrap(), &[]).await
}

/// The same in a folder that is there, with more settings of the node.
async fn scene_in(folder: tempfile::TempDir, extra: &[(&str, &str)]) -> Scene {
    let mut house = House::plan(folder.path(), None).unwrap();
    house.start_gateway().await.unwrap();
    let user = house.create_user("user@example.org").unwrap();
    house.grant_credits(&user, 10_000_000).unwrap();
    let key = house.create_key(&user).unwrap();
    let owner = house.create_user("owner@example.org").unwrap();
    let grant = house.enrol_grant(&owner).unwrap();
    let node = house.start_node("node", Some(&grant), house.address, extra).unwrap();
    house.routable(CHAT_MODEL, 1).await.unwrap();
    Scene { house, node, key, owner, folder }
}

impl Scene {
    fn dir(&self) -> std::path::PathBuf {
        self.folder.path().join("node")
    }

    async fn answer(&self) -> u16 {
        let body =
            json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "What is 3 plus 4?"}]});
        let client = Client::with_key(self.house.address, &self.key);
        client.call("POST", "/v1/chat/completions", Some(&body)).await.map_or(0, |reply| reply.status)
    }

    fn services(&self) -> Vec<Value> {
        let printed = ask(&self.dir(), "services").unwrap();
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn engine(&self) -> Option<u32> {
        let services = self.services();
        let chat = services.iter().find(|s| s["service_id"] == format!("llm:{CHAT_MODEL}"))?;
        u32::try_from(chat["pid"].as_u64()?).ok()
    }
}

fn ask(dir: &Path, command: &str) -> anyhow::Result<String> {
    process::run("cxmpute-provider", &[command, "--json", "--data-dir", &dir.display().to_string()], &[])
}

fn runs(pid: u32) -> bool {
    process::arguments(pid).contains("cxmpute-engine")
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_is_replaced_and_answers_again() {
    let _alone = alone().unwrap();
    let scene = scene().await;
    let first = scene.engine().unwrap();
    kill(first);
    let second = until("another engine", ANSWERS_AGAIN_WITHIN, async || {
        Ok(scene.engine().filter(|pid| *pid != first && runs(*pid)))
    });
    assert_ne!(second.await.unwrap(), first);
    until("an answer", ANSWERS_AGAIN_WITHIN, async || Ok((scene.answer().await == 200).then_some(())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_leaves_no_engine_and_comes_back_without_a_grant() {
    let _alone = alone().unwrap();
    let mut scene = scene().await;
    let pids: Vec<u32> =
        scene.services().iter().filter_map(|s| u32::try_from(s["pid"].as_u64()?).ok()).collect();
    assert!(!pids.is_empty() && pids.iter().all(|pid| runs(*pid)));
    // Only the node dies; its engines must notice by themselves.
    kill(scene.node.pid());
    until("the engines to end", Duration::from_secs(20), async || {
        Ok((!pids.iter().any(|pid| runs(*pid))).then_some(()))
    })
    .await
    .unwrap();
    let _ = scene.node.kill_hard();
    scene.node = scene.house.start_node("node", None, scene.house.address, &[]).unwrap();
    until("an answer", ANSWERS_AGAIN_WITHIN, async || Ok((scene.answer().await == 200).then_some(())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_stop_talk_to_the_running_node() {
    let _alone = alone().unwrap();
    let mut scene = scene().await;
    let status = until("a node that may earn", Duration::from_secs(30), async || {
        let status: Value = serde_json::from_str(&ask(&scene.dir(), "status")?)?;
        Ok((status["connected"] == true && status["reason"].is_null()).then_some(status))
    });
    let status = status.await.unwrap();
    assert_eq!(status["pid"].as_u64().unwrap(), u64::from(scene.node.pid()));
    assert_eq!(status["server"]["state"], "online");
    assert!(status["provision_id"].as_str().unwrap().starts_with("pv_"));

    let second = scene.house.start_node("node", None, scene.house.address, &[]).unwrap();
    until("the second node to be refused", Duration::from_secs(20), async || {
        Ok(second.logged().contains("already runs").then_some(()))
    })
    .await
    .unwrap();
    drop(second);

    let engines: Vec<u32> =
        scene.services().iter().filter_map(|s| u32::try_from(s["pid"].as_u64()?).ok()).collect();
    ask(&scene.dir(), "stop").unwrap();
    assert!(!scene.node.alive(), "stop returns when the node has ended");
    assert!(engines.iter().all(|pid| !runs(*pid)), "no engine is left");
    let error = ask(&scene.dir(), "status").unwrap_err().to_string();
    assert!(error.contains("No node runs in") && error.contains("cxmpute-provider start"), "{error}");
    let left: Vec<String> = std::fs::read_dir(scene.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("sock") || name.contains("tmp"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "no socket and no temporary file is left");
}

#[test]
fn bad_starts_end_with_a_sentence_and_a_documented_code() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = folder.path().join("fresh").display().to_string();
    let config = folder.path().join("node.toml");
    std::fs::write(&config, "[engine]\nslots = \"many\"\n").unwrap();
    let config = config.display().to_string();
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (&["start", "--data-dir", &fresh], 10, &["not enrolled", "enrol --grant-file"]),
        (&["start", "--data-dir", "/proc/nowhere"], 5, &["/proc/nowhere", "--data-dir"]),
        (&["start", "--config", &config], 3, &["node.toml", "engine.slots", "many"]),
        (
            &["enrol", "--data-dir", &fresh, "--api-url", "http://127.0.0.1:1"],
            1,
            &["127.0.0.1:1", "cannot be reached"],
        ),
        (&["enrol", "--data-dir", &fresh, "--api-url", "http://192.0.2.1"], 1, &["192.0.2.1", "https"]),
        (&["dance"], 2, &["dance"]),
    ];
    for (arguments, code, texts) in cases {
        let done = std::process::Command::new(program("cxmpute-provider").unwrap())
            .args(arguments)
            .env_remove("CXMPUTE_GRANT")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {said}");
        for text in texts {
            assert!(said.contains(text), "{arguments:?} says {said:?}, without {text:?}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

/// A machine without a single model file: the gateway has them, the node fetches them with its signature, and is paid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_files_fetches_them_and_is_paid() {
    let _alone = alone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Where a node keeps them when nobody says: the command that lists them is not told either.
    let models = folder.path().join("node/models");
    let models = models.display().to_string();
    let service = format!("llm:{CHAT_MODEL}");
    let extra = [
        ("CXMPUTE_MODELS_DIR", models.as_str()),
        ("CXMPUTE_MODELS_HUB", ""),
        ("CXMPUTE_MODELS_MARGIN_MB", "16"),
        ("CXMPUTE_SERVICES_ALLOW", service.as_str()),
    ];
    let scene = scene_in(folder, &extra).await;
    assert_eq!(scene.answer().await, 200);
    let listed: Value = serde_json::from_str(&ask(&scene.dir(), "models").unwrap()).unwrap();
    let files = listed["files"].as_array().unwrap();
    assert!(files.len() == 1 && files[0]["fetched"] == true, "{listed}");
    assert!(files[0]["name"].as_str().unwrap().starts_with("blobs/sha256-"), "{listed}");
    // A stranger gets nothing of it.
    let path = format!("/api/v1/{}", files[0]["name"].as_str().unwrap().replace("sha256-", ""));
    let reply = Client::anonymous(scene.house.address).call("GET", &path, None).await.unwrap();
    assert_eq!(reply.status, 401);
    let earned = scene.house.command(&["admin", "credits", "show", &scene.owner]).unwrap();
    assert!(earned["provider_pending_micro"].as_i64().unwrap() > 0, "{earned}");
    scene.house.check_ledger().unwrap();
}
