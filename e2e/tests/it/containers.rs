//! An operator's image from the catalogue to the bill: planned, pulled by its digest, checked, asked, paid, replaced by the
//! next catalogue, and gone with its node, even one that was killed.

#[path = "../../../crates/node/tests/it/docker/ground.rs"]
#[allow(dead_code, reason = "the node's own tests use the rest")]
mod ground;

use std::path::Path;
use std::time::Duration;

use cxmpute_e2e::client::Client;
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::house::House;
use cxmpute_e2e::process::{self, Program};
use serde_json::{Value, json};

use ground::Ground;

const MODEL: &str = "boxed:1b";
const WITHIN: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn write_catalogue(file: &Path, image: &str, says: &str) {
    let entry = format!(
        r#"
[[model]]
id = "{MODEL}"
name = "Boxed"
kind = "llm"
context_length = 1024
max_completion_tokens = 128
engines = ["docker"]
memory_mb = 64
target = 1
price = {{ version = 1, prompt = 100_000_000, completion = 200_000_000, character = 50_000_000, minimum = 1 }}

[model.container]
image = "{image}"
command = ["/engine", "--socket", "{{socket}}", "--model", "{{model}}", "--says", "{says}"]
pids = 64
ready = {{ path = "/health", body = "awake" }}
"#
    );
    std::fs::write(file, entry).unwrap();
}

struct Scene {
    house: House,
    client: Client,
}

/// What makes a node run the model in a container.
fn settings(socket: &str) -> Vec<(&str, &str)> {
    vec![
        ("CXMPUTE_DOCKER_ENABLED", "true"),
        ("CXMPUTE_DOCKER_SOCKET", socket),
        ("CXMPUTE_SERVICES_ALLOW", "llm:boxed:1b"),
    ]
}

impl Scene {
    /// A gateway with this catalogue, a user with credits, and a node that serves the image.
    async fn open(
        folder: &Path,
        catalogue: &Path,
        image: &str,
        settings: &[(&str, &str)],
    ) -> (Self, Program) {
        let mut house = House::plan(folder, None).unwrap();
        house.set("CXMPUTE_CATALOGUE_FILES", &catalogue.display().to_string());
        let shown = house.command(&["catalogue", "show", MODEL]).unwrap();
        assert_eq!(shown["container"]["image"], image);
        house.start_gateway().await.unwrap();
        let user = house.create_user("user@example.org").unwrap();
        house.grant_credits(&user, 10_000_000).unwrap();
        let key = house.create_key(&user).unwrap();
        let owner = house.create_user("owner@example.org").unwrap();
        let grant = house.enrol_grant(&owner).unwrap();
        let node = house.start_node("node", Some(&grant), house.address, settings).unwrap();
        house.routable(MODEL, 1).await.unwrap();
        let client = Client::with_key(house.address, &key);
        (Self { house, client }, node)
    }

    /// The text of one streamed answer, and its bill.
    async fn answer(&self) -> Option<(String, Value)> {
        let body = json!({"model": MODEL, "stream": true, "max_tokens": 64,
            "messages": [{"role": "user", "content": "Say something."}]});
        let reply = self.client.call("POST", "/v1/chat/completions", Some(&body)).await.ok()?;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        if reply.status != 200 || !text.ends_with("data: [DONE]\n\n") {
            return None;
        }
        let said: String = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        let id = reply.header("x-request-id").unwrap();
        let bill = self.client.call("GET", &format!("/v1/generation?id={id}"), None).await.unwrap().json();
        Some((said, bill["data"].clone()))
    }

    async fn says(&self, wanted: &str) -> Value {
        until(&format!("the answer {wanted:?}"), WITHIN, async || {
            let answer = self.answer().await;
            Ok(answer.filter(|(said, _)| said == wanted).map(|(_, bill)| bill))
        })
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_image_is_planned_pulled_asked_paid_replaced_and_removed() {
    let _alone = alone().unwrap();
    let Some(docker) = Ground::start().await else { return };
    let first = docker.push("llm/first", 16 * MIB, "").await;
    let second = docker.push("llm/second", 1, "").await;
    let folder = tempfile::tempdir().unwrap();
    let catalogue = folder.path().join("own.toml");
    write_catalogue(&catalogue, &first, "I live in a box.");
    let socket = docker.socket.display().to_string();
    let settings = settings(&socket);
    let (mut scene, mut node) = Scene::open(folder.path(), &catalogue, &first, &settings).await;

    let bill = scene.says("I live in a box.").await;
    // 14 characters asked and 16 answered, at 50 micro-credits each.
    assert_eq!((&bill["outcome"], &bill["total_cost_micro"]), (&json!("finished"), &json!(1500)), "{bill}");

    // Only the node dies: what it started is removed by its next start, before a new one comes.
    let orphans = docker.containers().await;
    assert_eq!(orphans.len(), 1);
    node.kill_hard().unwrap();
    assert_eq!(docker.containers().await, orphans);
    node = scene.house.start_node("node", None, scene.house.address, &settings).unwrap();
    scene.says("I live in a box.").await;
    let now = docker.containers().await;
    assert!(now.len() == 1 && now != orphans, "{now:?} after {orphans:?}");

    // The operator's next catalogue names another image.
    write_catalogue(&catalogue, &second, "I live in another box.");
    scene.house.gateway().unwrap().stop(WITHIN).await.unwrap();
    scene.house.start_gateway().await.unwrap();
    scene.says("I live in another box.").await;
    assert_eq!(docker.containers().await.len(), 1);
    assert_eq!(docker.images().await, [second.as_str()]);

    scene.house.check_ledger().unwrap();
    let data = folder.path().join("node").display().to_string();
    process::run("cxmpute-provider", &["stop", "--json", "--data-dir", &data], &[]).unwrap();
    assert!(!node.alive());
    assert_eq!(docker.containers().await, Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(folder.path().join("node/run")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The owner's login lies with a helper of Docker's, a program on the node's path; the registry gives nothing without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_behind_a_login_is_pulled_with_what_the_owners_helper_knows() {
    let _alone = alone().unwrap();
    let Some(mut docker) = Ground::start().await else { return };
    let image = docker.push("llm/guarded", 1, "").await;
    docker.guard_registry().await;
    let folder = tempfile::tempdir().unwrap();
    let catalogue = folder.path().join("own.toml");
    write_catalogue(&catalogue, &image, "I live behind a door.");
    let (user, password) = ground::LOGIN.split_once(':').unwrap();
    let helper = folder.path().join("docker-credential-tests");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {registry} ] || exit 1\n\
         echo '{{\"ServerURL\": \"{registry}\", \"Username\": \"{user}\", \"Secret\": \"{password}\"}}'\n",
        registry = docker.registry
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let logins = folder.path().join("config.json");
    let configured = json!({"credHelpers": {docker.registry.as_str(): "tests"}});
    std::fs::write(&logins, configured.to_string()).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.path().display());
    let (socket, logins) = (docker.socket.display().to_string(), logins.display().to_string());
    let mut settings = settings(&socket);
    settings.extend([
        ("CXMPUTE_DOCKER_CONFIG", logins.as_str()),
        ("PATH", path.as_str()),
        ("CXMPUTE_LOG_LEVEL", "trace"),
    ]);
    let (scene, node) = Scene::open(folder.path(), &catalogue, &image, &settings).await;
    scene.says("I live behind a door.").await;
    let data = folder.path().join("node").display().to_string();
    process::run("cxmpute-provider", &["stop", "--json", "--data-dir", &data], &[]).unwrap();
    let log = node.logged();
    assert!(log.contains("TRACE"), "the log has not everything");
    assert!(!log.contains(password), "the password is in the log");
}
