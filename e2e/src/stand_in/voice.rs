//! The shapes in which a stand-in speaks: chat, legacy completions with as many choices as were asked for, or one body.

use bytes::Bytes;
use cxmpute_tunnel::WorkPath;
use serde_json::{Value, json};

/// Length of the vectors of a stand-in.
pub const DIMENSIONS: usize = 4;

/// The text of token number `n` of an answer: a word the tiny model's tokenizer knows, so that events and tokens go
/// together.
pub(super) fn word(n: u64) -> &'static str {
    if n == 0 { "The" } else { " the" }
}

/// How one request is answered.
#[derive(Clone, Debug)]
pub(super) struct Voice {
    pub path: WorkPath,
    pub choices: u64,
    /// The tool that is called instead of saying words.
    tool: Option<String>,
    /// The answer, where it comes as one body: vectors, and all that [`super::errand`] knows.
    pub whole: Option<Bytes>,
}

impl Voice {
    pub fn new(path: WorkPath, asked: &Value) -> Self {
        let many = |field: &str| asked[field].as_array().map_or(1, Vec::len);
        let prompts = if path == WorkPath::Completions { many("prompt") as u64 } else { 1 };
        Self {
            path,
            choices: asked["n"].as_u64().unwrap_or(1) * prompts,
            tool: asked["tools"][0]["function"]["name"].as_str().map(str::to_owned),
            whole: (path == WorkPath::Embeddings).then(|| vectors(many("input")).to_string().into()),
        }
    }

    /// Answers with one body.
    pub fn of(path: WorkPath, answer: Bytes) -> Self {
        Self { path, choices: 1, tool: None, whole: Some(answer) }
    }

    /// Token number `number` of all choices, which take turns.
    pub fn token(&self, number: u64) -> Value {
        let (choice, number) = (number % self.choices, number / self.choices);
        if self.path == WorkPath::Completions {
            return self.chunk(json!([{"index": choice, "text": word(number), "finish_reason": null}]));
        }
        let delta = match (&self.tool, number) {
            (Some(name), 0) => {
                let call = json!({"index": 0, "id": format!("call_{choice}"), "type": "function", "function": {"name": name, "arguments": word(0)}});
                json!({"role": "assistant", "tool_calls": [call]})
            }
            (Some(_), _) => {
                json!({"tool_calls": [{"index": 0, "function": {"arguments": word(number)}}]})
            }
            (None, 0) => json!({"role": "assistant", "content": word(0)}),
            (None, _) => json!({"content": word(number)}),
        };
        self.chunk(json!([{"index": choice, "delta": delta, "finish_reason": null}]))
    }

    pub fn finish(&self, choice: u64, reason: &str) -> Value {
        let reason = if self.tool.is_some() && reason == "stop" { "tool_calls" } else { reason };
        if self.path == WorkPath::Completions {
            return self.chunk(json!([{"index": choice, "text": "", "finish_reason": reason}]));
        }
        self.chunk(json!([{"index": choice, "delta": {}, "finish_reason": reason}]))
    }

    pub fn usage(&self, prompt: u64, completion: u64) -> Value {
        let mut usage = self.chunk(json!([]));
        usage["usage"] = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion});
        usage
    }

    fn chunk(&self, choices: Value) -> Value {
        let (id, object) = match self.path {
            WorkPath::Completions => ("cmpl-stand-in", "text_completion"),
            _ => ("chatcmpl-stand-in", "chat.completion.chunk"),
        };
        json!({"id": id, "object": object, "created": 0, "model": "stand-in", "choices": choices})
    }
}

fn vectors(inputs: usize) -> Value {
    let vector = |index| json!({"object": "embedding", "index": index, "embedding": vec![0.5; DIMENSIONS]});
    let data: Vec<Value> = (0..inputs).map(vector).collect();
    json!({"object": "list", "data": data, "model": "stand-in", "usage": {"prompt_tokens": 1_000_000, "total_tokens": 1_000_000}})
}

pub(super) fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
