//! Enrolment, tunnels that end, and codes that end the node.

use std::time::Duration;

use cxmpute_node::engines::fake::{Fake, Script};
use cxmpute_node::hold::Hold;
use cxmpute_node::local::{self, Question};
use cxmpute_node::{agent, identity};
use cxmpute_runtime::exit::{self, code_of};
use cxmpute_runtime::{Clock, Secret};
use cxmpute_wire::control::{ServiceState, ToNode};
use cxmpute_wire::{Code, MicroCredits};

use crate::gateway::{Gateway, Running, World, config, service, soon};

fn fake() -> Fake {
    Fake::new(1, |_, _| Script::saying(&["hi"]))
}

#[tokio::test]
async fn enrolment_is_signed_idempotent_and_remembered() {
    let gateway = Gateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(&gateway, dir.path().to_owned());
    let identity = identity::load_or_create(dir.path()).unwrap();
    let clock = Clock::system();
    let error = agent::ensure_enrolled(&config, &identity, None, &clock).await.unwrap_err();
    assert_eq!(code_of(error.as_ref()), exit::GRANT);
    let grant = Secret::new("grant".to_owned());
    for _ in 0..2 {
        agent::ensure_enrolled(&config, &identity, Some(&grant), &clock).await.unwrap();
    }
    let enrolments = gateway.desk.enrolments.lock().clone();
    assert_eq!(enrolments.len(), 2, "each start says what the machine is made of");
    assert_eq!(enrolments[0]["grant"], "grant");
    assert_eq!(enrolments[1]["grant"], serde_json::Value::Null, "the second run knows that it is enrolled");
    assert!(enrolments[0]["diagnostics"]["memory"]["total"].as_u64().unwrap() > 0);
    assert_eq!(enrolments[0]["diagnostics"]["net"]["control_plane"], true);
    let state = identity::read_state(dir.path()).unwrap();
    assert_eq!(state.api_url, Some(gateway.url()));
    assert_eq!(state.provision_id, Some(identity.provision_id));
    let everything: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    for entry in everything {
        assert!(!std::fs::read_to_string(entry.path()).unwrap_or_default().contains("grant"), "{entry:?}");
    }
}

#[tokio::test]
async fn a_fresh_node_says_which_model_files_it_holds_and_for_how_little_it_works() {
    let gateway = Gateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&gateway, dir.path().to_owned());
    config.services.least_price.insert("llm".to_owned(), MicroCredits(200_000));
    let sum = "ab".repeat(32);
    let blobs = config.models_dir().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("sha256-{sum}")), "some weights").unwrap();
    std::fs::write(config.models_dir().join("b.gguf"), "others").unwrap();
    let identity = identity::load_or_create(dir.path()).unwrap();
    let grant = Secret::new("grant".to_owned());
    agent::ensure_enrolled(&config, &identity, Some(&grant), &Clock::system()).await.unwrap();
    let told = gateway.desk.enrolments.lock()[0]["diagnostics"].clone();
    let files = serde_json::json!([{"sha256": sum, "size": 12}, {"name": "b.gguf", "size": 6}]);
    assert_eq!(told["files"], files);
    assert_eq!(told["services"], serde_json::json!({"least_price": {"llm": 200_000}}));
}

#[tokio::test]
async fn a_refused_enrolment_says_what_to_do_and_its_exit_code() {
    let gateway = Gateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(&gateway, dir.path().to_owned());
    let identity = identity::load_or_create(dir.path()).unwrap();
    for (code, exit_code, says) in [
        (Code::GrantSpent, exit::GRANT, "new grant"),
        (Code::NodeConflict, exit::GRANT, "another owner"),
        (Code::NodeRevoked, exit::REVOKED, "operator"),
        (Code::VersionTooOld, exit::VERSION_TOO_OLD, "Update"),
    ] {
        *gateway.desk.refuse_enrolments.lock() = Some(code);
        let grant = Secret::new("grant".to_owned());
        let error =
            agent::ensure_enrolled(&config, &identity, Some(&grant), &Clock::system()).await.unwrap_err();
        assert_eq!(code_of(error.as_ref()), exit_code, "{code}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_lost_tunnel_is_dialled_again_and_services_stay() {
    let mut world = World::start(1, |_, _| Script::saying(&["hi"])).await;
    let first = world.tunnel.until("llm:a", ServiceState::Ready).await;
    world.tunnel.link.close(Code::ProviderLost);
    let mut second = world.gateway.tunnel().await;
    assert!(second.epoch > world.tunnel.epoch);
    let heartbeat = second.heartbeat().await;
    assert_eq!(heartbeat.epoch, second.epoch);
    assert_eq!(heartbeat.observed_generation, world.tunnel.generation);
    let still = heartbeat.services.into_iter().find(|s| s.service_id == first.service_id).unwrap();
    assert_eq!(still.state, ServiceState::Ready, "no new plan is needed for what runs");
    world.tunnel = second;
    world.close().await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_keeps_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    identity::load_or_create(dir.path()).unwrap();
    let run = async |words: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cxmpute-provider"));
        command.args(words).arg("--data-dir").arg(dir.path()).env_remove("CXMPUTE_CONFIG_PATH");
        let output = soon(command.kill_on_drop(true).output()).await.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // One that is busy, or not yet so far that it answers.
    let hold = Hold::take_or_say(dir.path()).unwrap();
    let (went_well, said) = run(&["start"]).await;
    assert!(!went_well && said.contains("already runs"), "{said}");
    let (went_well, said) = run(&["pause"]).await;
    assert!(!went_well && said.contains("nothing changed"), "{said}");
    assert_eq!(identity::read_state(dir.path()).unwrap().pause, None);
    drop(hold);
    let (went_well, said) = run(&["pause"]).await;
    assert!(went_well, "{said}");
    assert!(identity::read_state(dir.path()).unwrap().pause.is_some());
}

#[tokio::test]
async fn a_reader_that_has_read_enough_breaks_no_command() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cxmpute-provider"));
    command.args(["models", "--data-dir"]).arg(dir.path()).env_remove("CXMPUTE_CONFIG_PATH");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdout(writer).stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn();
    let output = soon(child.unwrap().wait_with_output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_gateway_that_counts_from_an_older_plan_is_followed() {
    let mut world = World::start(1, |_, _| Script::saying(&["hi"])).await;
    for _ in 0..5 {
        world.tunnel.publish(vec![service("embeddings:e")]).await;
    }
    world.tunnel.publish(vec![service("llm:a"), service("embeddings:e")]).await;
    world.tunnel.until("llm:a", ServiceState::Ready).await;
    world.tunnel.link.close(Code::ProviderLost);
    let before = world.tunnel.generation;
    world.tunnel = world.gateway.tunnel().await;
    world.tunnel.publish(vec![service("llm:a"), service("llm:b")]).await;
    assert!(world.tunnel.generation < before);
    world.tunnel.until("llm:b", ServiceState::Ready).await;
    assert_eq!(world.tunnel.heartbeat().await.observed_generation, world.tunnel.generation);
    // What ran already works for the plan that is counted lower.
    soon(world.tunnel.chat("hello").accepted()).await.unwrap();
    // Within one tunnel older plans are still late ones.
    let (late, newer) = (world.tunnel.generation.0 - 1, world.tunnel.generation);
    world.tunnel.generation.0 = late - 1;
    world.tunnel.publish(vec![]).await;
    world.tunnel.generation = newer;
    world.tunnel.publish(vec![service("llm:a"), service("llm:b"), service("embeddings:e")]).await;
    world.tunnel.until("embeddings:e", ServiceState::Ready).await;
    let states = world.node.view.services.observed().1;
    assert!(states.iter().all(|service| service.state == ServiceState::Ready), "{states:?}");
    world.close().await;
}

#[tokio::test]
async fn codes_that_a_person_must_mend_end_the_node() {
    for (code, exit_code) in [(Code::EpochStale, exit::CLONED), (Code::NodeRevoked, exit::REVOKED)] {
        let mut gateway = Gateway::start().await;
        let node = Running::start(&gateway, Some(fake()), |_| {});
        let mut tunnel = gateway.tunnel().await;
        let closing = ToNode::Closing { code, message: "as the test says".into() };
        tunnel.sender.send(&closing).await.unwrap();
        let error = soon(node.result).await.unwrap().unwrap_err();
        assert_eq!(code_of(error.as_ref()), exit_code);
    }
    let gateway = Gateway::start().await;
    *gateway.desk.refuse_tunnels.lock() = Some(Code::NodeRevoked);
    let node = Running::start(&gateway, Some(fake()), |_| {});
    let error = soon(node.result).await.unwrap().unwrap_err();
    assert_eq!(code_of(error.as_ref()), exit::REVOKED);
}

#[tokio::test]
async fn a_gateway_that_forgot_the_node_gets_it_back_or_the_owner_learns_why_not() {
    let mut gateway = Gateway::start().await;
    *gateway.desk.refuse_tunnels.lock() = Some(Code::NodeUnknown);
    let node = Running::start(&gateway, Some(fake()), |_| {});
    soon(async {
        while gateway.desk.enrolments.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    *gateway.desk.refuse_tunnels.lock() = None;
    let tunnel = gateway.tunnel().await;
    drop(tunnel);
    *gateway.desk.refuse_tunnels.lock() = Some(Code::NodeUnknown);
    *gateway.desk.refuse_enrolments.lock() = Some(Code::GrantInvalid);
    let error = soon(node.result).await.unwrap().unwrap_err();
    assert_eq!(code_of(error.as_ref()), exit::GRANT);
    assert!(error.to_string().contains("has forgotten this node"), "{error}");
}

#[tokio::test]
async fn the_local_socket_answers_and_stops() {
    let world = World::start(1, |_, _| Script::saying(&["hi"])).await;
    let dir = world.node.config.data_dir.clone();
    assert!(local::ask(&dir, Question::Status).await.is_err());
    let socket = local::open(&dir, world.node.view.clone(), &world.node.tasks).await.unwrap();
    assert!(
        local::open(&dir, world.node.view.clone(), &world.node.tasks).await.is_err(),
        "one node per directory"
    );
    let answer = local::ask(&dir, Question::Status).await.unwrap();
    assert!(answer.connected && answer.services.len() == 2);
    assert_eq!(answer.reason.unwrap().code, "starting", "this gateway never sends a status");
    local::ask(&dir, Question::Stop).await.unwrap();
    soon(world.node.tasks.soft().cancelled()).await;
    drop(socket);
    world.close().await;
}

#[tokio::test]
async fn every_start_counts() {
    let mut gateway = Gateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    for boot in 1..=2 {
        let node = Running::again(config(&gateway, dir.path().to_owned()), Some(fake()));
        let mut tunnel = gateway.tunnel().await;
        tunnel.publish(vec![service("llm:a")]).await;
        assert_eq!(tunnel.heartbeat().await.boot, boot);
        node.stop().await;
    }
}
