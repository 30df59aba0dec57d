//! Servers that the node starts.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use cxmpute_node::NodeConfig;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{DesiredFile, DesiredService};
use serde_json::json;

use super::tools::body;
use super::{Hold, Life, Row, StandIn, Walls, conforms, programs};
use crate::docker::ground::Ground;
use crate::gateway::service;
use crate::scrape::Site;

/// The tiny model under an engine.
pub fn tiny(engine: &str) -> (PathBuf, DesiredService) {
    let (folder, name) = programs::tiny();
    let mut wanted = service("llm:cxm-tiny");
    wanted.engines = vec![engine.to_owned()];
    wanted.context_length = Some(1024);
    wanted.files = vec![crate::gateway::file(name)];
    (folder, wanted)
}

pub fn chat(question: &str, tokens: u32) -> Bytes {
    chat_with("cxm-tiny", question, tokens)
}

pub fn chat_with(model: &str, question: &str, tokens: u32) -> Bytes {
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"model": model, "messages": messages, "stream": true, "temperature": 0,
        "max_tokens": tokens, "stream_options": {"include_usage": true}});
    Bytes::from(body.to_string())
}

/// The words of a streamed answer.
fn said(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let parsed = events.filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok());
    parsed.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

pub fn knows_tokyo(answer: &[u8]) -> bool {
    said(answer) == "The capital of Japan is Tokyo."
}

impl Row {
    /// A server of a chat model that takes two requests at a time.
    pub fn chat(
        service: DesiredService,
        walls: Walls,
        stand_ins: Option<(StandIn, StandIn)>,
        configure: impl Fn(&mut NodeConfig) + 'static,
    ) -> Self {
        Self {
            engine: service.engines[0].clone(),
            service,
            configure: Box::new(configure),
            cards: Vec::new(),
            path: WorkPath::ChatCompletions,
            work: chat("What is the capital of Japan?", 20),
            is_good: knows_tokyo,
            long: chat("Tell me a story.", 700),
            other: WorkPath::Speech,
            capacity: 2,
            hold: Hold::Stop,
            life: Life::Server { stand_ins, walls },
        }
    }
}

/// Programs in place of the real one: one that fails to start, and one that starts late.
fn stand_ins(
    name: &'static str,
    real: &Path,
    set: fn(&mut NodeConfig, PathBuf),
) -> Option<(StandIn, StandIn)> {
    let stand_in = |make: fn(&Path, &str, &Path) -> PathBuf| -> StandIn {
        let real = real.to_owned();
        Box::new(move |config, dir| set(config, make(dir, name, &real)))
    };
    Some((stand_in(programs::failing), stand_in(programs::waiting)))
}

#[tokio::test]
async fn the_builtin_engine_conforms() {
    let program = programs::builtin();
    let (models, service) = tiny("builtin");
    let stand_ins =
        stand_ins("cxmpute-engine", &program, |config, program| config.engine.program = Some(program));
    conforms(Row::chat(service, Walls::Whole, stand_ins, move |config| {
        config.models.dir = Some(models.clone());
        config.engine.program = Some(program.clone());
        config.engine.slots = 1;
        config.engine.queue = 1;
        config.engine.pace = Some(30.0);
    }))
    .await;
}

#[tokio::test]
async fn llama_server_conforms() {
    let Some(program) = programs::llama_server() else { return };
    let stand_ins = stand_ins("llama-server", &program, |config, program| {
        config.engines.llama_server = Some(program);
    });
    llama_server(program, Walls::Whole, stand_ins).await;
}

/// A build that says nothing of unix sockets listens on the loopback, behind a key, and keeps the network for that.
#[tokio::test]
async fn llama_server_without_sockets_conforms() {
    let Some(program) = programs::llama_server() else { return };
    let dir = tempfile::tempdir().unwrap();
    llama_server(programs::without_sockets(dir.path(), &program), Walls::Network, None).await;
}

async fn llama_server(program: PathBuf, walls: Walls, stand_ins: Option<(StandIn, StandIn)>) {
    let (models, service) = tiny("llama-server");
    conforms(Row::chat(service, walls, stand_ins, move |config| {
        config.models.dir = Some(models.clone());
        config.engines.llama_server = Some(program.clone());
        config.engine.slots = 2;
    }))
    .await;
}

/// vLLM by its command line: the numbers of its card are made up, its answers come from the built-in engine.
#[tokio::test]
async fn vllm_conforms() {
    const GIB: u64 = 1 << 30;
    let (folder, mut service) = tiny("vllm");
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models/tiny");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::copy(folder.join("cxm-tiny-q8.gguf"), models.join("model.safetensors")).unwrap();
    std::fs::write(models.join("config.json"), "{}").unwrap();
    let file = |role: &str, name: &str| DesiredFile {
        role: role.into(),
        name: format!("tiny/{name}"),
        ..crate::gateway::file(name)
    };
    service.files = vec![file("model", "model.safetensors"), file("config", "config.json")];
    service.gpus = vec![cxmpute_wire::control::GpuShare { index: 0, memory: cxmpute_wire::Bytes(20 * GIB) }];
    let card = json!({"index": 0, "vendor": "nvidia", "name": "stand-in", "uuid": "u", "driver": "1",
        "memory_total": 80 * GIB, "memory_free": 79 * GIB});
    let programs = dir.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let (program, folder) = (programs::vllm(&programs, ""), dir.path().join("models"));
    let stand_in = |before: fn(&Path) -> String| -> StandIn {
        Box::new(move |config, dir| config.engines.vllm = Some(programs::vllm(dir, &before(dir))))
    };
    let stand_ins = (
        stand_in(|_| format!("echo {} >&2; exit 3", super::REASON)),
        stand_in(|dir| format!("while [ ! -e {}/go ]; do sleep 0.05; done", dir.display())),
    );
    conforms(Row {
        cards: vec![serde_json::from_value(card).unwrap()],
        ..Row::chat(service, Walls::Whole, Some(stand_ins), move |config| {
            config.models.dir = Some(folder.clone());
            config.engines.vllm = Some(program.clone());
            config.engine.slots = 2;
        })
    })
    .await;
}

/// The built-in engine's program in a container: a real model, mounted read-only, behind the only door.
#[tokio::test]
async fn an_engine_in_a_container_conforms() {
    let Some(ground) = Ground::start().await else { return };
    let image = ground.push_program("llm/engine", &programs::builtin()).await;
    let (models, mut service) = tiny("docker");
    service.memory_claim = cxmpute_wire::Bytes(256 << 20);
    service.container = Some(Box::new(
        serde_json::from_value(json!({
            "image": image, "pids": 64, "tmp": 1 << 20, "shared_memory": 1 << 20,
            "command": ["/cxmpute-engine", "--listen", "unix:{socket}", "--slots", "{slots}", "--queue", "1",
                "--model", "{model}={model_file}", "--context", "{context}", "--pace", "30"],
        }))
        .unwrap(),
    ));
    let socket = ground.socket.clone();
    conforms(Row {
        // What stands in the reports is the first process of the container; the engine is its child.
        hold: Hold::Process(Box::new(|| contained("unix:/run/cxmpute/e.sock"))),
        ..Row::chat(service, Walls::Whole, None, move |config| {
            config.models.dir = Some(models.clone());
            config.docker.enabled = true;
            config.docker.socket = socket.clone();
            config.engine.slots = 1;
            config.engine.queue = 1;
        })
    })
    .await;
    assert_eq!(ground.containers().await, Vec::<String>::new());
}

/// The process with this argument whose parent has it too: Docker's first process hands its own on.
fn contained(argument: &str) -> u32 {
    let has = |pid: u32| {
        let all = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        all.split(|byte| *byte == 0).any(|one| one == argument.as_bytes())
    };
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| has(*pid) && has(parent(*pid))).expect("the engine in its container")
}

#[tokio::test]
async fn the_scrape_engine_conforms() {
    let site = Site::start(|_| (200, "text/html", "<title>t</title><p>tides and clocks</p>".into())).await;
    // It takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let allowed = vec![site.address.to_string(), silent.local_addr().unwrap().to_string()];
    let mut service = service("scrape:scrape");
    service.engines = vec!["scrape".to_owned()];
    conforms(Row {
        engine: "scrape".to_owned(),
        service,
        configure: Box::new(move |config| {
            config.scrape = serde_json::from_value(json!({
                "enabled": true, "host_gap_ms": 1, "allow_addresses": allowed, "render": false, "slots": 2,
            }))
            .unwrap();
        }),
        cards: Vec::new(),
        path: WorkPath::Scrape,
        work: body(&json!({"urls": [site.url("/a")], "format": "text"})),
        is_good: |answer| String::from_utf8_lossy(answer).contains("tides and clocks"),
        long: body(&json!({"urls": [format!("http://{}/", silent.local_addr().unwrap())]})),
        other: WorkPath::ChatCompletions,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server { stand_ins: None, walls: Walls::Nested },
    })
    .await;
}
