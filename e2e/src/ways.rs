//! Every kind of answer that the relay gives, for the gates that must hold on all of them: what is asked, what a node sends
//! for it token by token, and what of the answer is billed.

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::client::{Conversation, Event};
use crate::money::Money;
use crate::paths::{DONE, Path};
use crate::stand_in::{DIMENSIONS, Script, Step};
use crate::world::{CHAT_MODEL, EMBEDDINGS_MODEL};

/// The tool that a node calls.
const TOOL: &str = "sum";

/// Choices of a request for several.
const SEVERAL: usize = 2;

/// What is special about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    /// With the usage as an event of its own.
    Usage,
    /// A call instead of text.
    Call,
    /// More than one choice.
    Several,
    /// JSON by schema.
    Schema,
}

/// One kind of answer.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Its name in reports, and in the names of scripts.
    pub name: &'static str,
    /// The assertion that its bill is exact.
    pub rule: &'static str,
    /// Its route, streamed or whole.
    pub path: Path,
    form: Form,
}

macro_rules! way {
    ($name:literal, $path:ident, $form:ident) => {
        Way {
            name: $name,
            rule: concat!($name, ": the bill is what the table says"),
            path: Path::$path,
            form: Form::$form,
        }
    };
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 12] = [
        way!("chat-stream", ChatStream, Plain),
        way!("chat-stream-with-usage", ChatStream, Usage),
        way!("chat-whole", ChatWhole, Plain),
        way!("tools-stream", ChatStream, Call),
        way!("tools-whole", ChatWhole, Call),
        way!("two-choices-stream", ChatStream, Several),
        way!("two-choices-whole", ChatWhole, Several),
        way!("schema-stream", ChatStream, Schema),
        way!("schema-whole", ChatWhole, Schema),
        way!("completion-stream", CompletionStream, Plain),
        way!("completion-whole", CompletionWhole, Plain),
        way!("embeddings", Embeddings, Plain),
    ];

    /// Whether the answer is a stream.
    #[must_use]
    pub const fn streamed(&self) -> bool {
        self.path.streamed()
    }

    /// A request that asks for the script of that name.
    #[must_use]
    pub fn body(&self, script: &str, max_tokens: u64) -> Value {
        let mut body = self.path.body(&format!("play {script}"), max_tokens);
        match self.form {
            Form::Plain => {}
            Form::Usage => body["stream_options"] = json!({"include_usage": true}),
            Form::Call => {
                let parameters = json!({"type": "object"});
                body["tools"] =
                    json!([{"type": "function", "function": {"name": TOOL, "parameters": parameters}}]);
            }
            Form::Several => body["n"] = json!(SEVERAL),
            Form::Schema => {
                let schema = json!({"type": "array", "items": {"type": "integer"}});
                body["response_format"] = json!({"type": "json_schema",
                    "json_schema": {"name": "list", "strict": true, "schema": schema}});
            }
        }
        body
    }

    /// The first `count` tokens, one event each; choices take turns. Vectors have none.
    #[must_use]
    pub fn tokens(&self, count: u64) -> Vec<Bytes> {
        if self.path == Path::Embeddings { Vec::new() } else { (0..count).map(|n| self.token(n)).collect() }
    }

    /// Token number `n` of all choices.
    #[must_use]
    pub fn token(&self, n: u64) -> Bytes {
        let word = if n == 0 { "The" } else { " the" };
        match self.form {
            Form::Plain | Form::Usage => self.path.piece(word),
            Form::Call => {
                let (function, id) = if n == 0 {
                    (json!({"name": TOOL, "arguments": "{}"}), json!("call"))
                } else {
                    (json!({"arguments": " "}), Value::Null)
                };
                let call = json!({"index": 0, "id": id, "type": "function", "function": function});
                let delta = json!({"tool_calls": [call]});
                self.path.event(&json!({"index": 0, "delta": delta, "finish_reason": null}))
            }
            Form::Several => {
                let (choice, n) = (n % SEVERAL as u64, n / SEVERAL as u64);
                let word = if n == 0 { "The" } else { " the" };
                self.path.event(&json!({"index": choice, "delta": {"content": word}, "finish_reason": null}))
            }
            Form::Schema => self.path.piece(if n == 0 { "[1" } else { ",1" }),
        }
    }

    /// The events after the last token, to the end marker; the whole body of vectors.
    #[must_use]
    pub fn end(&self) -> Vec<Bytes> {
        if self.path == Path::Embeddings {
            let vector = json!({"index": 0, "embedding": vec![0.5; DIMENSIONS]});
            return vec![Bytes::from(json!({"data": [vector]}).to_string())];
        }
        let reason = if self.form == Form::Call { "tool_calls" } else { "stop" };
        let mut events = match self.form {
            Form::Several => (0..SEVERAL)
                .map(|choice| {
                    let end = json!({"index": choice, "delta": {}, "finish_reason": reason});
                    self.path.event(&end)
                })
                .collect(),
            Form::Schema => vec![self.path.piece("]"), self.path.finish(reason)],
            _ => vec![self.path.finish(reason)],
        };
        events.push(DONE);
        events
    }

    /// A script of `count` tokens and whatever comes after them.
    #[must_use]
    pub fn script(&self, count: u64, after: Vec<Step>) -> Script {
        let mut steps: Vec<Step> = self.tokens(count).into_iter().map(Step::Raw).collect();
        steps.extend(after);
        Script::of(steps)
    }

    /// A script of `count` tokens and a proper end.
    #[must_use]
    pub fn whole_script(&self, count: u64) -> Script {
        self.script(count, self.end().into_iter().map(Step::Raw).collect())
    }

    /// What the request costs with the answer that was got, by our own count and the published price.
    ///
    /// # Errors
    /// The body is no request of this kind.
    pub fn price(&self, money: &Money, body: &Value, got: &Answer) -> Result<i64> {
        let prompt = match self.path {
            Path::Embeddings => {
                let texts = body["input"].as_array().into_iter().flatten();
                let texts: Vec<&str> = texts.filter_map(Value::as_str).collect();
                return money.embeddings_price(EMBEDDINGS_MODEL, &texts);
            }
            Path::CompletionStream | Path::CompletionWhole => {
                money.completion_prompt_tokens(body["prompt"].as_str().unwrap_or_default())?
            }
            _ => money.prompt_tokens(body)?,
        };
        money.price(CHAT_MODEL, prompt, got.tokens(money)?)
    }
}

/// What a client got of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// What is billed, per choice: text, names and arguments of calls.
    pub texts: Vec<String>,
    /// Events that held some of it.
    pub pieces: u64,
    /// `error.code`, where there was one.
    pub code: Option<String>,
    /// The end marker came, or the whole body.
    pub complete: bool,
    /// `usage` came.
    pub usage: Option<Value>,
}

impl Answer {
    /// Tokens over all choices.
    ///
    /// # Errors
    /// Never with our tokenizer.
    pub fn tokens(&self, money: &Money) -> Result<u64> {
        self.texts
            .iter()
            .filter(|text| !text.is_empty())
            .try_fold(0, |sum, text| Ok(sum + money.count(text)?))
    }

    /// Takes in one event of a stream, or a whole answer.
    pub fn take(&mut self, value: &Value) {
        if let Some(code) = value["error"]["code"].as_str() {
            self.code = Some(code.to_owned());
        }
        if value["usage"].is_object() {
            self.usage = Some(value["usage"].clone());
        }
        for choice in value["choices"].as_array().into_iter().flatten() {
            let said = Self::said(choice);
            self.pieces += u64::from(!said.is_empty());
            let place = usize::try_from(choice["index"].as_u64().unwrap_or_default()).unwrap_or_default();
            if self.texts.len() <= place {
                self.texts.resize(place + 1, String::new());
            }
            self.texts[place].push_str(&said);
        }
    }

    fn said(choice: &Value) -> String {
        let message = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
        let mut said = message["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned();
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            for field in ["name", "arguments"] {
                said.push_str(call["function"][field].as_str().unwrap_or_default());
            }
        }
        said
    }

    /// Reads a stream until that many pieces came, or to its end.
    ///
    /// # Errors
    /// A connection that breaks.
    pub async fn read(&mut self, conversation: &mut Conversation, pieces: u64) -> Result<()> {
        while self.pieces < pieces {
            match conversation.event().await? {
                Some(Event::Data(value)) => self.take(&value),
                Some(Event::Done) => {
                    self.complete = true;
                    break;
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Reads what is left, head included, streamed or whole; what breaks off is what was got.
    pub async fn read_rest(&mut self, conversation: &mut Conversation) {
        if conversation.status == 0 && conversation.read_head().await.is_err() {
            return;
        }
        if conversation.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
            let _ = self.read(conversation, u64::MAX).await;
            return;
        }
        if let Ok(body) = conversation.rest().await
            && let Ok(value) = serde_json::from_slice(&body)
        {
            self.take(&value);
            self.complete = conversation.status == 200;
        }
    }
}
