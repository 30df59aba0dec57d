//! Servers that the owner runs already.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_node::engines::found::Kind;
use cxmpute_tunnel::WorkPath;
use parking_lot::Mutex;
use serde_json::json;

use super::owner::OwnersServer;
use super::rows::{chat_with, tiny};
use super::{Hold, Life, Row, Walls, conforms, programs};
use crate::gateway::service;

/// What is asked of an owner's server and changes nothing there.
fn only_asks(asked: &[String]) -> bool {
    let harmless = [
        "GET /api/version",
        "GET /api/tags",
        "GET /api/ps",
        "POST /api/show",
        "GET /v1/models",
        "GET /version",
        "POST /v1/chat/completions",
    ];
    asked.iter().all(|request| harmless.contains(&request.as_str()))
}

async fn found_server_conforms(kind: Kind, model: &'static str) {
    let server = OwnersServer::start(kind, model).await;
    let mut service = service("llm:llama3.2:1b");
    service.engines = vec!["builtin".into(), kind.name().to_owned()];
    service.ollama = Some("llama3.2:1b".into());
    service.hub = serde_json::from_value(json!({"repository": "meta-llama/Llama-3.2-1B-Instruct"})).unwrap();
    service.engines.remove(0);
    let (leaving, coming, address) = (server.clone(), server.clone(), server.address.to_string());
    conforms(Row {
        engine: "external".to_owned(),
        work: chat_with("llama3.2:1b", "What is the capital of Japan?", 20),
        long: chat_with("llama3.2:1b", "Tell me a story.", 700),
        other: WorkPath::Embeddings,
        hold: Hold::Long,
        life: Life::Owner {
            leave: Box::new(move || leaving.leave()),
            come: Box::new(move || coming.come()),
            unharmed: Box::new(move || only_asks(&server.asked.lock())),
        },
        ..Row::chat(service, Walls::None, None, move |config| {
            config.discover.ollama = if kind == Kind::Ollama { vec![address.clone()] } else { Vec::new() };
            config.discover.vllm = if kind == Kind::Vllm { vec![address.clone()] } else { Vec::new() };
            config.discover.llama_server = Vec::new();
            config.discover.slots = Some(2);
        })
    })
    .await;
}

#[tokio::test]
async fn an_ollama_that_is_found_conforms() {
    found_server_conforms(Kind::Ollama, "llama3.2:1b").await;
}

#[tokio::test]
async fn a_vllm_that_is_found_conforms() {
    found_server_conforms(Kind::Vllm, "meta-llama/Llama-3.2-1B-Instruct").await;
}

/// llama.cpp's own server, as an owner runs it: found on its port, its model compared with the pinned one.
#[tokio::test]
async fn a_llama_server_that_is_found_conforms() {
    let Some(program) = programs::llama_server() else { return };
    let (folder, mut service) = tiny("llama-server");
    service.engines = vec!["external".to_owned()];
    service.files[0].sha256 =
        Some("7cc003a86318fd3d007ff86cf364e07da380b040c78513e8cdee7b91d5d55ba5".to_owned());
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = move || {
        std::process::Command::new(&program)
            .args(["-m", folder.join("cxm-tiny-q8.gguf").to_str().unwrap(), "--alias", "cxm-tiny"])
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string(), "--parallel", "2"])
            .args(["--ctx-size", "2048", "--no-webui"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let running = Arc::new(Mutex::new(Some(Owned(start()))));
    let listens = async {
        while std::net::TcpStream::connect(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::gateway::LONG, listens).await.expect("the owner's server listens");
    let (leaving, coming, checked) = (running.clone(), running.clone(), running.clone());
    conforms(Row {
        other: WorkPath::Embeddings,
        hold: Hold::Process(Box::new(move || running.lock().as_ref().unwrap().0.id())),
        life: Life::Owner {
            leave: Box::new(move || drop(leaving.lock().take())),
            come: Box::new(move || *coming.lock() = Some(Owned(start()))),
            unharmed: Box::new(move || {
                checked.lock().as_mut().is_some_and(|owned| owned.0.try_wait().unwrap().is_none())
            }),
        },
        ..Row::chat(service, Walls::None, None, move |config| {
            config.discover.llama_server = vec![address.to_string()];
            // It may still be loading when it is looked for first.
            config.discover.every_s = 1;
            config.discover.ollama = Vec::new();
            config.discover.vllm = Vec::new();
        })
    })
    .await;
}

/// A process of the owner; it ends with the test.
struct Owned(std::process::Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
