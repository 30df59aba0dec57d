//! The engines of the suite.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_node::engines::found::Kind;
use cxmpute_node::engines::tool::Program;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{DesiredFile, DesiredService};
use cxmpute_wire::form;
use cxmpute_wire::wave::Wave;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::owner::OwnersServer;
use super::{Hold, Life, Row, StandIn, conforms, programs};
use crate::docker::ground::Ground;
use crate::gateway::service;
use crate::scrape::Site;

/// The tiny model under an engine.
fn tiny(engine: &str) -> (PathBuf, DesiredService) {
    let (folder, name) = programs::tiny();
    let mut wanted = service("llm:cxm-tiny");
    wanted.engines = vec![engine.to_owned()];
    wanted.context_length = Some(1024);
    wanted.files = vec![crate::gateway::file(name)];
    (folder, wanted)
}

fn chat(question: &str, tokens: u32) -> Bytes {
    chat_with("cxm-tiny", question, tokens)
}

fn chat_with(model: &str, question: &str, tokens: u32) -> Bytes {
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

fn knows_tokyo(answer: &[u8]) -> bool {
    said(answer) == "The capital of Japan is Tokyo."
}

#[tokio::test]
async fn the_builtin_engine_conforms() {
    let program = programs::builtin();
    let (models, service) = tiny("builtin");
    let (failing, waiting) = (program.clone(), program.clone());
    conforms(Row {
        engine: "builtin",
        service,
        configure: Box::new(move |config| {
            config.models.dir = Some(models.clone());
            config.engine.program = Some(program.clone());
            config.engine.slots = 1;
            config.engine.queue = 1;
            config.engine.pace = Some(30.0);
        }),
        cards: Vec::new(),
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server {
            stand_ins: Some((
                Box::new(move |config, dir| {
                    config.engine.program = Some(programs::failing(dir, "cxmpute-engine", &failing));
                }),
                Box::new(move |config, dir| {
                    config.engine.program = Some(programs::waiting(dir, "cxmpute-engine", &waiting));
                }),
            )),
            confined: false,
        },
    })
    .await;
}

#[tokio::test]
async fn llama_server_conforms() {
    let Some(program) = programs::llama_server() else { return };
    llama_server(program, true).await;
}

/// A build that says nothing of unix sockets listens on the loopback, behind a key.
#[tokio::test]
async fn llama_server_without_sockets_conforms() {
    let Some(program) = programs::llama_server() else { return };
    let dir = tempfile::tempdir().unwrap();
    llama_server(programs::without_sockets(dir.path(), &program), false).await;
}

async fn llama_server(program: PathBuf, sockets: bool) {
    let (models, service) = tiny("llama-server");
    let (failing, waiting) = (program.clone(), program.clone());
    let stand_ins = sockets.then(|| -> (StandIn, StandIn) {
        (
            Box::new(move |config, dir| {
                config.engines.llama_server = Some(programs::failing(dir, "llama-server", &failing));
            }),
            Box::new(move |config, dir| {
                config.engines.llama_server = Some(programs::waiting(dir, "llama-server", &waiting));
            }),
        )
    });
    conforms(Row {
        engine: "llama-server",
        service,
        configure: Box::new(move |config| {
            config.models.dir = Some(models.clone());
            config.engines.llama_server = Some(program.clone());
            config.engine.slots = 2;
        }),
        cards: Vec::new(),
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server {
            stand_ins,
            // Without sockets it keeps the network: the loopback is its only door.
            confined: sockets,
        },
    })
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
    conforms(Row {
        engine: "vllm",
        service,
        configure: Box::new(move |config| {
            config.models.dir = Some(folder.clone());
            config.engines.vllm = Some(program.clone());
            config.engine.slots = 2;
        }),
        cards: vec![serde_json::from_value(card).unwrap()],
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server {
            stand_ins: Some((
                Box::new(move |config, dir| {
                    let before = format!("echo {} >&2; exit 3", super::REASON);
                    config.engines.vllm = Some(programs::vllm(dir, &before));
                }),
                Box::new(move |config, dir| {
                    let before = format!("while [ ! -e {}/go ]; do sleep 0.05; done", dir.display());
                    config.engines.vllm = Some(programs::vllm(dir, &before));
                }),
            )),
            confined: true,
        },
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
        engine: "docker",
        service,
        cards: Vec::new(),
        configure: Box::new(move |config| {
            config.models.dir = Some(models.clone());
            config.docker.enabled = true;
            config.docker.socket = socket.clone();
            config.engine.slots = 1;
            config.engine.queue = 1;
        }),
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        // What stands in the reports is the first process of the container; the engine is its child.
        hold: Hold::Process(Box::new(|| contained("unix:/run/cxmpute/e.sock"))),
        life: Life::Server { stand_ins: None, confined: true },
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

/// A program that runs once for a request, where it is installed.
#[expect(clippy::print_stderr, reason = "a skip is visible")]
async fn tool_conforms(program: Program, work: Work, long: Bytes, is_good: fn(&[u8]) -> bool) {
    if program.find().is_none() {
        eprintln!("skipped: {} is not installed", program.name());
        return;
    }
    let (path, work) = work;
    let mut service = service(&cxmpute_wire::ServiceId::new(program.kind(), work_model(program)).to_string());
    service.engines = vec![program.name().to_owned()];
    conforms(Row {
        engine: program.name(),
        service,
        configure: Box::new(|config| config.engine.slots = 1),
        cards: Vec::new(),
        path,
        work,
        is_good,
        long,
        other: WorkPath::Embeddings,
        // One runs, and four wait for a processor.
        capacity: 5,
        hold: Hold::Long,
        life: Life::Tool(match program {
            Program::Espeak => "espeak-ng",
            Program::Pocketsphinx => "pocketsphinx_continuous",
            Program::Tesseract => "tesseract",
        }),
    })
    .await;
}

type Work = (WorkPath, Bytes);

const fn work_model(program: Program) -> &'static str {
    match program {
        Program::Espeak => "espeak-ng",
        Program::Pocketsphinx => "pocketsphinx-digits",
        Program::Tesseract => "tesseract",
    }
}

fn body(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[tokio::test]
async fn espeak_conforms() {
    let say =
        |text: &str| body(&json!({"model": "espeak-ng", "input": text, "voice": "en-us", "speed": 0.5}));
    let is_good = |answer: &[u8]| Wave::read(answer).is_ok_and(|wave| !wave.is_silent());
    let work = (WorkPath::Speech, say("one two three"));
    tool_conforms(Program::Espeak, work, say(&"many words ".repeat(370)), is_good).await;
}

#[tokio::test]
async fn pocketsphinx_conforms() {
    let hear = |seconds: usize| {
        // Not quite silence: what changes is listened to.
        let samples: Vec<u8> = (0..seconds * 16_000_u32 as usize)
            .flat_map(|n| (((n * n / 7) % 4001) as i16 - 2000).to_le_bytes())
            .collect();
        let wave = Wave { rate: 16_000, channels: 1, samples: &samples }.pack();
        // The boundary of a form is its request's id; the suite's work streams have this one.
        Bytes::from(form::compose(&"req_1".parse().unwrap(), "pocketsphinx-digits", &[], &wave))
    };
    let is_good = |answer: &[u8]| {
        serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer["text"].is_string())
    };
    let work = (WorkPath::Transcription, hear(1));
    tool_conforms(Program::Pocketsphinx, work, hear(60), is_good).await;
}

#[tokio::test]
async fn tesseract_conforms() {
    let read = |picture: &[u8]| {
        body(
            &json!({"model": "tesseract", "image": base64::engine::general_purpose::STANDARD.encode(picture)}),
        )
    };
    let is_good = |answer: &[u8]| {
        serde_json::from_slice::<Value>(answer)
            .is_ok_and(|answer| answer["text"] == "Invoice 4711\n\nTotal: 128.50 EUR")
    };
    let work = (WorkPath::Read, read(include_bytes!("../../../src/engines/tool/invoice.png")));
    tool_conforms(Program::Tesseract, work, read(&noise(1600, 1200)), is_good).await;
}

/// A picture that is hard to read: grey noise, not compressed.
fn noise(width: u32, height: u32) -> Vec<u8> {
    let mut state = 1u32;
    let mut rows = Vec::new();
    for _ in 0..height {
        rows.push(0);
        rows.extend((0..width).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
    }
    let mut packed = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = rows.chunks(65_535).collect();
    for (n, block) in blocks.iter().enumerate() {
        let length = u16::try_from(block.len()).unwrap();
        packed.push(u8::from(n + 1 == blocks.len()));
        packed.extend(length.to_le_bytes().into_iter().chain((!length).to_le_bytes()));
        packed.extend_from_slice(block);
    }
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    packed.extend((b << 16 | a).to_be_bytes());
    let mut picture = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 0, 0, 0, 0]);
    for (name, data) in [(b"IHDR", header), (b"IDAT", packed), (b"IEND", Vec::new())] {
        picture.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        let part = [&name[..], &data].concat();
        let crc = !part.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(
                crc ^ u32::from(*byte),
                |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
            )
        });
        picture.extend(part);
        picture.extend(crc.to_be_bytes());
    }
    picture
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
        engine: "scrape",
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
        life: Life::Server { stand_ins: None, confined: false },
    })
    .await;
}

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
        engine: "external",
        service,
        configure: Box::new(move |config| {
            config.discover.ollama = if kind == Kind::Ollama { vec![address.clone()] } else { Vec::new() };
            config.discover.vllm = if kind == Kind::Vllm { vec![address.clone()] } else { Vec::new() };
            config.discover.llama_server = Vec::new();
            config.discover.slots = Some(2);
        }),
        cards: Vec::new(),
        path: WorkPath::ChatCompletions,
        work: chat_with("llama3.2:1b", "What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat_with("llama3.2:1b", "Tell me a story.", 700),
        other: WorkPath::Embeddings,
        capacity: 2,
        hold: Hold::Long,
        life: Life::Owner {
            leave: Box::new(move || leaving.leave()),
            come: Box::new(move || coming.come()),
            unharmed: Box::new(move || only_asks(&server.asked.lock())),
        },
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
        engine: "external",
        service,
        configure: Box::new(move |config| {
            config.discover.llama_server = vec![address.to_string()];
            // It may still be loading when it is looked for first.
            config.discover.every_s = 1;
            config.discover.ollama = Vec::new();
            config.discover.vllm = Vec::new();
        }),
        cards: Vec::new(),
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Embeddings,
        capacity: 2,
        hold: Hold::Process(Box::new(move || running.lock().as_ref().unwrap().0.id())),
        life: Life::Owner {
            leave: Box::new(move || drop(leaving.lock().take())),
            come: Box::new(move || *coming.lock() = Some(Owned(start()))),
            unharmed: Box::new(move || {
                checked.lock().as_mut().is_some_and(|owned| owned.0.try_wait().unwrap().is_none())
            }),
        },
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
