//! Real processes in place of engines: shell scripts and a small HTTP server that the owner might run.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_node::NodeConfig;
use cxmpute_node::config::{DiscoverSection, External};
use cxmpute_node::engines::discover;
use cxmpute_runtime::Tasks;
use cxmpute_tunnel::{WorkError, WorkPath};
use cxmpute_wire::Code;
use cxmpute_wire::control::{DesiredService, ServiceState};
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::delivery::{model, pinned};
use crate::gateway::{Gateway, Running, file, read, service, soon};

pub fn program(dir: &Path, script: &str) -> std::path::PathBuf {
    let path = dir.join("engine");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Engines run as nobody where the node is root.
    for path in [dir, &path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

/// A server that an owner might run: what it says to each path.
pub struct OwnersServer {
    pub address: std::net::SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl OwnersServer {
    pub async fn start<Answer>(answer: impl Fn(String) -> Answer + Clone + Send + 'static) -> Self
    where
        Answer: Future<Output = &'static str> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let answered = answer(request.uri().path().to_owned());
                    async move {
                        request.into_body().collect().await.unwrap();
                        let text = Bytes::from_static(answered.await.as_bytes());
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(text)))
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(tcp), service));
            }
        });
        Self { address, task }
    }
}

impl Drop for OwnersServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_missing_model_is_named_and_found_when_it_comes() {
    let mut gateway = Gateway::start().await;
    let models = tempfile::tempdir().unwrap();
    let engine = program(models.path(), "exec sleep 1000");
    let node = Running::start(&gateway, None, |config| {
        config.models.dir = Some(models.path().to_owned());
        config.engine.program = Some(engine);
    });
    let mut tunnel = gateway.tunnel().await;
    let mut wanted = service("llm:a");
    wanted.files = vec![file("a.gguf")];
    tunnel.publish(vec![wanted]).await;
    let failed = tunnel.until("llm:a", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::ModelMissing));
    assert!(failed.detail.unwrap().contains("a.gguf is missing"));
    std::fs::write(models.path().join("a.gguf"), "weights").unwrap();
    let loading = soon(async {
        loop {
            let loading = tunnel.until("llm:a", ServiceState::Loading).await;
            if loading.pid.is_some() {
                return loading;
            }
        }
    })
    .await;
    let pid = loading.pid.unwrap();
    // The launcher becomes the program.
    soon(async {
        loop {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if arguments.contains("sleep 1000") || arguments.contains("--model a=") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    node.stop().await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the engine outlived its node");
}

#[tokio::test]
async fn a_program_that_does_not_say_its_version_keeps_the_node_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = NodeConfig { data_dir: dir.path().to_owned(), ..NodeConfig::default() };
    config.engines.llama_server = Some(program(dir.path(), "exec sleep 60"));
    let begun = std::time::Instant::now();
    let asked = tokio::spawn(async move { cxmpute_node::engines::present(&config, &[], false).await });
    // This runtime has one thread, as the node's.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "the thread was taken");
    let present = soon(asked).await.unwrap();
    let llama = present.iter().find(|engine| engine.name == "llama-server").expect("it is still there");
    assert_eq!(llama.version, "");
}

#[tokio::test]
async fn an_engine_that_ends_at_once_is_reported_with_its_log() {
    let mut gateway = Gateway::start().await;
    let models = tempfile::tempdir().unwrap();
    std::fs::write(models.path().join("a.gguf"), "weights").unwrap();
    let engine = program(models.path(), "echo no such device >&2; exit 3");
    let node = Running::start(&gateway, None, |config| {
        config.models.dir = Some(models.path().to_owned());
        config.engine.program = Some(engine);
    });
    let mut tunnel = gateway.tunnel().await;
    let mut wanted = service("llm:a");
    wanted.files = vec![file("a.gguf")];
    tunnel.publish(vec![wanted]).await;
    let failed = tunnel.until("llm:a", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::EngineFailed));
    let detail = failed.detail.unwrap();
    assert!(detail.contains("exit status: 3") && detail.contains("llm-a.log"), "{detail}");
    // It is written beside the report.
    let log = node.config.data_dir.join("logs/llm-a.log");
    soon(until_says(&log, "device")).await;
    assert_eq!(std::fs::read_to_string(log).unwrap(), "no such device\n");
    node.stop().await;
}

#[tokio::test]
async fn a_found_server_with_another_model_of_that_name_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let (right, other) = (model(70, 5_000), dir.path().join("other.gguf"));
    std::fs::write(models.join("a.gguf"), &right).unwrap();
    std::fs::write(&other, model(71, 5_000)).unwrap();
    let props: &'static str =
        format!("{{\"model_path\":{other:?},\"total_slots\":1,\"build_info\":\"b1\"}}").leak();
    let server = OwnersServer::start(move |path| async move {
        match path.as_str() {
            "/v1/models" => "{\"data\":[{\"id\":\"a\",\"owned_by\":\"llamacpp\"}]}",
            "/props" => props,
            _ => "{}",
        }
    })
    .await;
    let mut gateway = Gateway::start().await;
    let engine = program(dir.path(), "exec sleep 1000");
    let node = Running::start(&gateway, None, |config| {
        config.models.dir = Some(models);
        config.engine.program = Some(engine);
        config.engines.llama_server = Some(dir.path().join("none"));
        config.discover.llama_server = vec![server.address.to_string()];
    });
    let mut tunnel = gateway.tunnel().await;
    let sum = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&right));
    let files = vec![pinned("a.gguf", &sum, right.len())];
    let (mut found, mut own) = (service("llm:a"), service("llm:a"));
    (found.engines, found.files) = (vec!["llama-server".into()], files.clone());
    tunnel.publish(vec![found]).await;
    let failed = tunnel.until("llm:a", ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::DigestMismatch));
    assert!(failed.detail.unwrap().contains(&sum));
    (own.engines, own.files) = (vec!["llama-server".into(), "builtin".into()], files);
    tunnel.publish(vec![own]).await;
    soon(async { while tunnel.until("llm:a", ServiceState::Loading).await.pid.is_none() {} }).await;
    node.stop().await;
}

/// An owner's Ollama with many models, one of them `a`, whose weights have this hash.
async fn ollama(models: usize, weights: Arc<Mutex<String>>, pause: Duration) -> OwnersServer {
    let names: Vec<String> =
        std::iter::once("a".to_owned()).chain((1..models).map(|n| format!("m{n}"))).collect();
    OwnersServer::start(move |path| {
        let (names, weights) = (names.clone(), weights.lock().clone());
        async move {
            let value = match path.as_str() {
                "/api/version" => serde_json::json!({"version": "0.11.4"}),
                "/api/tags" => {
                    let tag = |name: &String| serde_json::json!({"name": name, "digest": format!("{name}-{weights}")});
                    serde_json::json!({"models": names.iter().map(tag).collect::<Vec<_>>()})
                }
                "/api/show" => {
                    tokio::time::sleep(pause).await;
                    serde_json::json!({"modelfile": format!("FROM /m/blobs/sha256-{weights}")})
                }
                "/v1/models" => serde_json::json!({"data": [{"id": "a"}]}),
                _ => serde_json::json!({"models": []}),
            };
            &*value.to_string().leak()
        }
    })
    .await
}

#[tokio::test]
async fn an_ollama_with_many_models_is_found_whole() {
    let weights = Arc::new(Mutex::new("1".repeat(64)));
    let server = ollama(40, weights, Duration::from_millis(300)).await;
    let mut section =
        DiscoverSection { ollama: vec![server.address.to_string()], ..DiscoverSection::default() };
    (section.vllm, section.llama_server) = (Vec::new(), Vec::new());
    let found = soon(discover::look(&section, &Tasks::new())).await;
    assert_eq!((found.len(), found[0].models.len()), (1, 40));
    assert!(found[0].models.iter().all(|model| model.digest == Some("1".repeat(64))), "{:?}", found[0]);
}

#[tokio::test]
async fn weights_that_the_owner_pulls_anew_do_not_serve_as_the_pinned_ones() {
    let weights = Arc::new(Mutex::new("2".repeat(64)));
    let server = ollama(1, weights.clone(), Duration::ZERO).await;
    let mut gateway = Gateway::start().await;
    let address = server.address.to_string();
    let node = Running::start(&gateway, None, |config| {
        config.discover.ollama = vec![address];
        (config.discover.vllm, config.discover.llama_server) = (Vec::new(), Vec::new());
    });
    let mut wanted = service("llm:a");
    (wanted.engines, wanted.files) = (vec!["ollama".into()], vec![pinned("a.gguf", &"2".repeat(64), 7)]);
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![wanted]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    *weights.lock() = "3".repeat(64);
    // What the node does every minute.
    let seen = soon(discover::look(&node.config.discover, &Tasks::new())).await;
    assert!(node.view.finds.take(seen), "the same name with other weights is news");
    tunnel.until("llm:a", ServiceState::Failed).await;
    node.stop().await;
}

#[tokio::test]
async fn a_server_that_takes_its_time_to_answer_gets_ready() {
    let server = OwnersServer::start(|_| async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        "{\"data\":[]}"
    })
    .await;
    let mut gateway = Gateway::start().await;
    let node = Running::start(&gateway, None, |config| {
        config.external = vec![External {
            service: "llm:a".into(),
            base_url: format!("http://{}/v1", server.address),
            model: None,
            api_key_file: None,
            slots: None,
        }];
    });
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![service("llm:a")]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    node.stop().await;
}

#[tokio::test]
async fn what_failed_before_a_server_was_ready_ends_it_not_again() {
    let listens = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let asked = listens.clone();
    let server = OwnersServer::start(move |path| {
        if path == "/v1/models" {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        async { "{\"data\":[]}" }
    })
    .await;
    let mut gateway = Gateway::start().await;
    let node = Running::start(&gateway, None, |config| {
        config.external = vec![External {
            service: "llm:a".into(),
            base_url: format!("http://{}/v1", server.address),
            model: None,
            api_key_file: None,
            slots: Some(4),
        }];
    });
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![service("llm:a")]).await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    let asked = || listens.load(std::sync::atomic::Ordering::SeqCst);
    // Two requests could not reach it: the first word ends it, the second is still there when it is ready again.
    let places: Vec<_> = (0..2)
        .map(|_| node.view.services.enter(&"llm:a".parse().unwrap(), tunnel.generation).unwrap())
        .collect();
    let before = asked();
    places[0].unreachable();
    soon(async {
        while asked() == before {
            places[1].unreachable();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    tunnel.until("llm:a", ServiceState::Ready).await;
    drop(places);
    let settled = asked();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked(), settled, "it stays ready");
    node.stop().await;
}

#[tokio::test]
async fn two_plans_in_a_row_kill_no_engine_that_still_ends() {
    let mut gateway = Gateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    let script =
        "exec >&2; trap 'sleep 2; echo politely; exit 0' TERM; echo began; while :; do sleep 0.05; done";
    let engine = program(dir.path(), script);
    std::fs::write(dir.path().join("a.gguf"), "weights").unwrap();
    let node = Running::start(&gateway, None, |config| {
        config.models.dir = Some(dir.path().to_owned());
        config.engine.program = Some(engine);
    });
    let logs = node.config.data_dir.join("logs");
    let mut tunnel = gateway.tunnel().await;
    let wanted = |context| DesiredService {
        context_length: Some(context),
        files: vec![file("a.gguf")],
        ..service("llm:a")
    };
    tunnel.publish(vec![wanted(1000)]).await;
    soon(until_says(&logs.join("llm-a.log"), "began")).await;
    for context in [2000, 3000] {
        tunnel.publish(vec![wanted(context)]).await;
        soon(async { while tunnel.heartbeat().await.observed_generation != tunnel.generation {} }).await;
    }
    // The third engine begins once the first has gone, and the second never had to.
    soon(until_says(&logs.join("llm-a.previous.log"), "politely")).await;
    // Some shells tell of the child that they waited for.
    let said = std::fs::read_to_string(logs.join("llm-a.previous.log")).unwrap();
    assert_eq!((said.matches("began").count(), said.lines().last()), (1, Some("politely")), "{said}");
    node.stop().await;
}

async fn until_says(log: &Path, word: &str) {
    while !std::fs::read_to_string(log).is_ok_and(|text| text.contains(word)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_owners_server_serves_under_its_own_name_of_the_model() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let key = parts.headers[http::header::AUTHORIZATION].to_str().unwrap().to_owned();
                let text = match parts.uri.path() {
                    "/v1/models" => "{\"data\":[]}".to_owned(),
                    path => {
                        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                        format!("data: {{\"said\":\"{path} {} {key}\"}}\n\ndata: [DONE]\n\n", body["model"])
                            .replace("\"tiny:1b\"", "tiny:1b")
                    }
                };
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service),
            );
        }
    });
    let mut gateway = Gateway::start().await;
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key");
    std::fs::write(&key, "sesame\n").unwrap();
    let node = Running::start(&gateway, None, |config| {
        config.external = vec![External {
            service: "llm:a".into(),
            base_url: format!("http://{address}/v1"),
            model: Some("tiny:1b".into()),
            api_key_file: Some(key),
            slots: Some(2),
        }];
    });
    let mut tunnel = gateway.tunnel().await;
    tunnel.publish(vec![service("llm:a")]).await;
    let ready = tunnel.until("llm:a", ServiceState::Ready).await;
    assert_eq!((ready.engine.as_str(), ready.slots, ready.pid), ("external", 2, None));
    let mut stream = tunnel.chat("hello");
    soon(stream.accepted()).await.unwrap();
    let (text, error) = read(&mut stream).await;
    assert_eq!(error, None);
    assert_eq!(text, "data: {\"said\":\"/v1/chat/completions tiny:1b Bearer sesame\"}\n\ndata: [DONE]\n\n");
    // The owner stops the server: the next request is refused, and the service leaves the choice.
    server.abort();
    let head = tunnel.head("llm:a", WorkPath::ChatCompletions);
    soon(async {
        loop {
            let mut stream = tunnel.link.open(&head, Bytes::from_static(b"{}")).unwrap();
            match stream.accepted().await {
                Err(WorkError::Refused { code: Some(Code::NotReady), .. }) => return,
                other => drop(other),
            }
        }
    })
    .await;
    let away = tunnel.until("llm:a", ServiceState::Loading).await;
    assert!(away.detail.unwrap().contains("owner's server is away"));
    node.stop().await;
}
