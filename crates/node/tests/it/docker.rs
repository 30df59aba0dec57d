//! Engines in containers, on a real Docker daemon and a real registry: what they see from inside, and that nothing of them
//! stays behind.

pub mod ground;

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder};
use bytes::Bytes;
use cxmpute_node::NodeConfig;
use cxmpute_node::config::DockerSection;
use cxmpute_node::models::Wait;
use cxmpute_tunnel::{WorkError, WorkPath};
use cxmpute_wire::Code;
use cxmpute_wire::control::{DesiredService, ObservedService, ServiceState};
use serde_json::{Value, json};

use crate::gateway::{Gateway, Running, Tunnel, config, file, read, service, soon};
use ground::Ground;

const MIB: u64 = 1 << 20;

fn planned(image: &str, says: &str) -> DesiredService {
    let mut wanted = service("llm:a");
    wanted.engines = vec!["docker".into()];
    wanted.memory_claim = cxmpute_wire::Bytes(64 * MIB);
    wanted.container = Some(Box::new(
        serde_json::from_value(json!({
            "image": image,
            "command": ["/engine", "--socket", "{socket}", "--model", "{model}", "--says", says],
            "environment": {"FLAVOUR": "plain"},
            "millicpus": 500, "pids": 40, "tmp": 4 * MIB, "shared_memory": MIB,
            "ready": {"path": "/health", "status": 200, "body": "awake"},
            "paths": ["/chat/completions"],
        }))
        .unwrap(),
    ));
    wanted
}

fn allow(ground: &Ground, models: &Path) -> impl FnOnce(&mut NodeConfig) {
    let (socket, models) = (ground.socket.clone(), models.to_owned());
    move |config| {
        config.docker = DockerSection { enabled: true, socket, ..DockerSection::default() };
        config.models.dir = Some(models);
    }
}

/// A directory with the file of the model.
fn models() -> tempfile::TempDir {
    let models = tempfile::tempdir().unwrap();
    std::fs::create_dir(models.path().join("a")).unwrap();
    std::fs::write(models.path().join("a/weights.bin"), "weights").unwrap();
    models
}

/// The whole answer's text.
async fn say(tunnel: &Tunnel, question: &str) -> (String, Option<WorkError>) {
    let mut stream = tunnel.chat(question);
    if let Err(error) = soon(stream.accepted()).await {
        return (String::new(), Some(error));
    }
    let (answer, error) = read(&mut stream).await;
    let text = answer
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    (text, error)
}

/// All that is observed of the service until it looks as wanted.
async fn watch(tunnel: &mut Tunnel, is: impl Fn(&ObservedService) -> bool) -> Vec<ObservedService> {
    soon(async {
        let mut seen = Vec::new();
        loop {
            let services = tunnel.heartbeat().await.services;
            seen.extend(services.into_iter().find(|service| service.service_id.as_str() == "llm:a"));
            if seen.last().is_some_and(&is) {
                return seen;
            }
        }
    })
    .await
}

async fn failed(tunnel: &mut Tunnel, wanted: DesiredService) -> (Code, String) {
    tunnel.publish(vec![wanted]).await;
    let generation = tunnel.generation;
    soon(async {
        loop {
            let heartbeat = tunnel.heartbeat().await;
            if heartbeat.observed_generation != generation {
                continue;
            }
            if let Some(service) = heartbeat.services.into_iter().find(|it| it.state == ServiceState::Failed)
            {
                return (service.code.unwrap(), service.detail.unwrap());
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_container_is_pulled_limited_killed_for_its_memory_replaced_and_removed() {
    let Some(ground) = Ground::start().await else { return };
    let first = ground.push("llm/first", 24 * MIB, "").await;
    let second = ground.push("llm/second", 1, "").await;
    let (mut gateway, models) = (Gateway::start().await, models());
    let node = Running::start(&gateway, None, allow(&ground, models.path()));
    let mut tunnel = gateway.tunnel().await;
    let mut wanted = planned(&first, "I am the first.");
    wanted.files = vec![file("a/weights.bin")];
    tunnel.publish(vec![wanted]).await;

    let seen = watch(&mut tunnel, |service| service.state == ServiceState::Ready).await;
    let pulling: Vec<&str> = seen
        .iter()
        .filter(|service| service.state == ServiceState::Downloading)
        .map(|service| service.detail.as_deref().unwrap())
        // At first it is not known whether the network costs.
        .filter(|said| *said != Wait::Asking.sentence())
        .collect();
    assert!(pulling.iter().all(|said| said.starts_with(&format!("pulling {first}: "))), "{pulling:?}");
    assert!(!pulling.is_empty(), "{seen:#?}");
    let ready = seen.last().unwrap();
    assert_eq!((ready.engine.as_str(), ready.code, &ready.detail), ("docker", None, &None));
    assert_eq!(ground.containers().await.len(), 1);
    assert_eq!(ground.images().await, [first.as_str()]);

    let (report, error) = say(&tunnel, "report").await;
    assert_eq!(error, None);
    let report: BTreeMap<&str, &str> = report.split(' ').filter_map(|pair| pair.split_once('=')).collect();
    let limits = [
        ("Uid", "65534"),
        ("Gid", "65534"),
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("interfaces", "lo"),
        ("root", "ReadOnlyFilesystem"),
        ("models", "ReadOnlyFilesystem"),
        ("proc", "ReadOnlyFilesystem"),
        ("tmp", "writable"),
        ("model", "weights"),
        ("docker", "0"),
        ("devices", "0"),
        ("memory", "67108864"),
        ("swap", "67108864"),
        ("cpu", "50000"),
    ];
    let wrong: Vec<_> = limits.iter().filter(|(what, value)| report.get(what) != Some(value)).collect();
    assert!(wrong.is_empty(), "not as it should be: {wrong:#?}\n{report:#?}");
    let mut mounts: Vec<&str> =
        report["mounts"].split(',').filter(|at| !at.starts_with("/sbin/docker-init")).collect();
    mounts.sort_unstable();
    assert_eq!(mounts, ["/:ro", "/models:ro", "/run/cxmpute:rw", "/tmp:rw"], "{report:#?}");
    // The engine's own thread, this request's, and the two of Docker's first process.
    let threads: usize = report["threads"].parse().unwrap();
    assert!((30..40).contains(&threads), "{threads} threads within a limit of 40");
    let environment: Vec<&str> = report["environment"].split(',').collect();
    assert!(
        environment.contains(&"FLAVOUR") && !environment.iter().any(|name| name.contains("CARGO")),
        "{environment:?}"
    );

    assert_eq!(say(&tunnel, "hello").await, ("I am the first.".to_owned(), None));
    let head = tunnel.head("llm:a", WorkPath::Completions);
    let mut stream = tunnel.link.open(&head, Bytes::from_static(b"{}")).unwrap();
    let refused = soon(stream.accepted()).await.unwrap_err();
    assert!(
        matches!(refused, WorkError::Refused { .. }),
        "a path that the catalogue does not name: {refused:?}"
    );

    let pid = ready.pid.unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the process id is one of this machine");
    let (_, error) = say(&tunnel, "eat").await;
    assert!(error.is_some() || !ground.containers().await.is_empty());
    let seen = watch(&mut tunnel, |service| service.code == Some(Code::OutOfMemory)).await;
    let detail = seen.last().unwrap().detail.clone().unwrap();
    for number in ["64 MiB", "67108864 bytes", "exit status 137", "llm-a.log"] {
        assert!(detail.contains(number), "{number}: {detail}");
    }
    let again = watch(&mut tunnel, |service| service.state == ServiceState::Ready).await.pop().unwrap();
    assert_ne!(again.pid, Some(pid), "it is another container");
    assert_eq!(say(&tunnel, "hello").await.0, "I am the first.");
    assert_eq!(ground.containers().await.len(), 1, "the dead one is gone");
    let logs = node.config.logs_dir();
    let before = std::fs::read_to_string(logs.join("llm-a.previous.log")).unwrap();
    assert_eq!(before, "listening as a\neating\n");
    assert_eq!(std::fs::read_to_string(logs.join("llm-a.log")).unwrap(), "listening as a\n");

    tunnel.publish(vec![planned(&second, "I am the second.")]).await;
    let seen =
        watch(&mut tunnel, |service| service.state == ServiceState::Ready && service.pid != again.pid).await;
    assert!(seen.iter().any(|service| service.state != ServiceState::Ready), "it was started anew");
    assert_eq!(say(&tunnel, "hello").await.0, "I am the second.");
    assert_eq!(ground.containers().await.len(), 1, "one is replaced by the other");
    assert_eq!(ground.images().await, [second.as_str()], "what no plan names goes");
    let (report, _) = say(&tunnel, "report").await;
    assert!(!report.contains("/models"), "a container without model files sees none: {report}");

    tunnel.publish(Vec::new()).await;
    soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    ground.is_clean().await;
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_leaves_nothing_but_the_image_that_it_will_need_again() {
    let Some(ground) = Ground::start().await else { return };
    let image = ground.push("llm/kept", 1, "").await;
    let (mut gateway, models) = (Gateway::start().await, models());
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(&gateway, dir.path().to_owned());
    allow(&ground, models.path())(&mut settings);
    let node = Running::again(settings.clone(), None);
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![planned(&image, "hi")]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    let provision = node.view.provision_id.to_string();
    node.stop().await;
    assert_eq!(ground.containers().await, Vec::<String>::new());
    assert_eq!(ground.images().await, [image.as_str()]);

    // What a killed node leaves behind, beside a container of somebody else.
    let leave = async |provision: &str| {
        let labels = [("org.cxmpute.provision", provision), ("org.cxmpute.service", "llm:gone")];
        let body = ContainerCreateBody {
            image: Some(image.clone()),
            cmd: Some(["/engine", "--socket", "/tmp/s"].map(str::to_owned).to_vec()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        ground.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id
    };
    let (_own, other) = (leave(&provision).await, leave("pv_somebodyelse").await);
    let door = cxmpute_node::place::door(dir.path());
    std::fs::create_dir_all(&door).unwrap();
    std::fs::write(door.join("e.sock"), "").unwrap();
    let node = Running::again(settings, None);
    let mut tunnel = gateway.tunnel().await;
    assert_eq!(ground.containers().await, [other.as_str()], "only what is ours is removed");
    assert!(!door.exists());
    tunnel.generation.0 += 1;
    tunnel.publish(vec![planned(&image, "hi")]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    ground.docker.remove_container(&other, Some(force)).await.unwrap();
    tunnel.publish(Vec::new()).await;
    soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    node.stop().await;
    // The second run did not pull it, and yet knows that the first did.
    ground.is_clean().await;
}

#[tokio::test]
async fn what_cannot_run_says_why_and_leaves_nothing() {
    let Some(mut ground) = Ground::start().await else { return };
    let good = ground.push("llm/good", 1, "").await;
    let volumes = ground.push("llm/volumes", 2, "VOLUME /data").await;
    let tampered = ground.push("llm/tampered", 3, "").await;
    let (mut gateway, models) = (Gateway::start().await, models());
    let node = Running::start(&gateway, None, allow(&ground, models.path()));
    let mut tunnel = gateway.tunnel().await;

    let unknown = format!("{}@sha256:{}", good.split_once('@').unwrap().0, "0".repeat(64));
    let (code, said) = failed(&mut tunnel, planned(&unknown, "x")).await;
    assert_eq!(code, Code::EngineFailed);
    assert!(said.contains(&format!("the registry has no {unknown}")), "{said}");

    // The registry gives other bytes than the digest promises.
    let digest = tampered.rsplit(':').next().unwrap();
    let blob = ground
        .registry_folder()
        .join("docker/registry/v2/blobs/sha256")
        .join(&digest[..2])
        .join(digest)
        .join("data");
    let manifest = std::fs::read_to_string(&blob).unwrap();
    std::fs::write(&blob, manifest.replacen("\"schemaVersion\": 2", "\"schemaVersion\":  2", 1)).unwrap();
    assert_ne!(std::fs::read_to_string(&blob).unwrap(), manifest);
    let (code, said) = failed(&mut tunnel, planned(&tampered, "x")).await;
    assert_eq!(code, Code::DigestMismatch, "{said}");
    assert!(said.contains("another digest"), "{said}");

    let (_, said) = failed(&mut tunnel, planned(&volumes, "x")).await;
    assert!(said.contains("/data") && said.contains("not used"), "{said}");

    let mut accelerated = planned(&good, "x");
    accelerated.container.as_mut().unwrap().gpu = true;
    accelerated.gpus = vec![cxmpute_wire::control::GpuShare { index: 0, memory: cxmpute_wire::Bytes(MIB) }];
    let (_, said) = failed(&mut tunnel, accelerated).await;
    assert!(said.contains("container toolkit"), "{said}");

    let mut ends = planned(&good, "x");
    ends.container.as_mut().unwrap().command.push("--end".into());
    let (code, said) = failed(&mut tunnel, ends).await;
    assert_eq!(code, Code::EngineFailed);
    assert!(said.contains("exit status: 3"), "{said}");
    let log = std::fs::read_to_string(node.config.logs_dir().join("llm-a.log")).unwrap();
    assert_eq!(log, "no such device\n");

    let (_, said) = failed(&mut tunnel, planned("docker.io/library/busybox:latest", "x")).await;
    assert!(said.contains("sha256"), "{said}");

    let away = ground.push("llm/away", 4, "").await;
    ground.close_registry();
    let (_, said) = failed(&mut tunnel, planned(&away, "x")).await;
    assert!(said.contains("cannot be reached") && said.contains(&ground.registry), "{said}");
    ground.open_registry().await;
    tunnel.until("llm:a", ServiceState::Ready).await;

    tunnel.publish(Vec::new()).await;
    soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    ground.is_clean().await;
    node.stop().await;
}

#[tokio::test]
async fn an_image_behind_a_login_is_pulled_with_the_owners() {
    let Some(mut ground) = Ground::start().await else { return };
    let image = ground.push("llm/guarded", 1, "").await;
    ground.guard_registry().await;
    let (mut gateway, models, own) = (Gateway::start().await, models(), tempfile::tempdir().unwrap());
    let logins = own.path().join("config.json");
    let write = |registry: &str, pair: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(pair);
        std::fs::write(&logins, json!({"auths": {registry: {"auth": auth}}}).to_string()).unwrap();
    };
    let node = Running::start(&gateway, None, |config| {
        allow(&ground, models.path())(config);
        config.docker.config = Some(logins.clone());
    });
    let mut tunnel = gateway.tunnel().await;
    let mut refused = async |registry: &str, pair: &str| {
        write(registry, pair);
        let (code, said) = failed(&mut tunnel, planned(&image, "x")).await;
        assert_eq!(code, Code::EngineFailed);
        assert!(said.contains(&format!("docker login {}", ground.registry)), "{said}");
        assert!(!said.contains("sesame"), "{said}");
        tunnel.publish(Vec::new()).await;
        soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    };
    refused(&ground.registry, "owner:wrong sesame").await;
    refused("127.0.0.1:1", ground::LOGIN).await;
    write(&ground.registry, ground::LOGIN);
    tunnel.publish(vec![planned(&image, "Behind the door.")]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    assert_eq!(say(&tunnel, "x").await, ("Behind the door.".to_owned(), None));
    tunnel.publish(Vec::new()).await;
    soon(async { while !tunnel.heartbeat().await.services.is_empty() {} }).await;
    ground.is_clean().await;
    node.stop().await;
}

#[tokio::test]
async fn without_the_owners_word_no_container_runs() {
    let mut gateway = Gateway::start().await;
    let node = Running::start(&gateway, None, |_| {});
    let mut tunnel = gateway.tunnel().await;
    let digest = "0".repeat(64);
    let (code, said) = failed(&mut tunnel, planned(&format!("a.b/c@sha256:{digest}"), "x")).await;
    assert_eq!(code, Code::NotReady);
    assert!(said.contains("llm:a"), "{said}");
    node.stop().await;
}
