//! The engines of the suite.

use std::path::PathBuf;

use bytes::Bytes;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{DesiredFile, DesiredService};
use serde_json::json;

use super::{Hold, Life, Row, conforms, programs};
use crate::gateway::service;

/// The tiny model under an engine.
fn tiny(engine: &str) -> (PathBuf, DesiredService) {
    let (folder, name) = programs::tiny();
    let mut wanted = service("llm:cxm-tiny");
    wanted.engines = vec![engine.to_owned()];
    wanted.context_length = Some(1024);
    wanted.files = vec![DesiredFile { role: "model".into(), name: name.into(), sha256: None, size: None }];
    (folder, wanted)
}

fn chat(question: &str, tokens: u32) -> Bytes {
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"model": "cxm-tiny", "messages": messages, "stream": true, "temperature": 0,
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
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server {
            failing: Box::new(move |config, dir| {
                config.engine.program = Some(programs::failing(dir, "cxmpute-engine", &failing));
            }),
            waiting: Box::new(move |config, dir| {
                config.engine.program = Some(programs::waiting(dir, "cxmpute-engine", &waiting));
            }),
            confined: false,
        },
    })
    .await;
}

#[tokio::test]
async fn llama_server_conforms() {
    let Some(program) = programs::llama_server() else { return };
    let (models, service) = tiny("llama-server");
    let (failing, waiting) = (program.clone(), program.clone());
    conforms(Row {
        engine: "llama-server",
        service,
        configure: Box::new(move |config| {
            config.models.dir = Some(models.clone());
            config.engines.llama_server = Some(program.clone());
            config.engine.slots = 2;
        }),
        path: WorkPath::ChatCompletions,
        work: chat("What is the capital of Japan?", 20),
        is_good: knows_tokyo,
        long: chat("Tell me a story.", 700),
        other: WorkPath::Speech,
        capacity: 2,
        hold: Hold::Stop,
        life: Life::Server {
            failing: Box::new(move |config, dir| {
                config.engines.llama_server = Some(programs::failing(dir, "llama-server", &failing));
            }),
            waiting: Box::new(move |config, dir| {
                config.engines.llama_server = Some(programs::waiting(dir, "llama-server", &waiting));
            }),
            confined: true,
        },
    })
    .await;
}
