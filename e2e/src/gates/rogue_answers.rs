//! P2: nodes that inject fields, ids, roles, calls, probabilities and headers. Only our schema leaves, with our id, our
//! model and headers from the allowlist.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use cxmpute_wire::MicroCredits;
use cxmpute_wire::openai::{ChatChunk, ChatResponse, CompletionResponse, EmbeddingList, ErrorEnvelope};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::paths::{DONE, Got, OWN_WORD, Path};
use crate::settings::Setting;
use crate::stand_in::{DIMENSIONS, Script, Step};
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a relay that proxies headers.
pub const CAUGHT_BY: &str = "only headers of the allowlist leave";

/// `max_tokens` of the gate's requests.
const LIMIT: u64 = 64;

/// Good answers between two refusals, so that the breaker stays closed.
const GOOD: usize = 4;

/// What an answer of the relay may have in its head.
pub(super) const ALLOWED: [&str; 22] = [
    "access-control-allow-origin",
    "access-control-expose-headers",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "idempotent-replayed",
    "openai-processing-ms",
    "retry-after",
    "transfer-encoding",
    "vary",
    "x-accel-buffering",
    "x-content-type-options",
    "x-cxmpute-ignored",
    "x-cxmpute-overhead-us",
    "x-cxmpute-provider",
    "x-generation-id",
    "x-request-id",
    "x-cxmpute-model",
    "traceparent",
    "x-cxmpute-model-evidence",
];

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("P2");
    let world = World::plan(setting).queue(Duration::from_millis(100)).start().await?;
    let node = world.stand_in("rogue").await?;
    let account = world.account("reader@example.org", MicroCredits(1_000_000_000)).await?;
    for _ in 0..setting.counts.pick(1, 20) {
        for path in Path::ALL {
            for (name, events, wanted) in answers(path) {
                verdict.count += 1;
                let title = format!("{name}-{path:?}");
                let script = Script { headers: headers(), steps: vec![Step::Raw(events)] };
                node.learn(&title, script);
                let mut body = path.body(&format!("play {title}"), LIMIT);
                if name.starts_with("tools") {
                    body["tools"] = json!([{"type": "function", "function": {"name": "sum"}}]);
                }
                let got = path.ask(&account.client, &body).await.with_context(|| title.clone())?;
                judge(&title, path, &body, &got, wanted, &mut verdict)?;
                if wanted.is_none() {
                    good(&account, path, &mut verdict).await?;
                }
            }
        }
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

fn judge(
    title: &str,
    path: Path,
    body: &Value,
    got: &Got,
    wanted: Option<&str>,
    verdict: &mut Verdict,
) -> Result<()> {
    let raw = String::from_utf8_lossy(&got.reply.body).into_owned();
    let short: String = raw.chars().take(600).collect();
    let foreign = |(name, value): &&(String, String)| {
        !(ALLOWED.contains(&name.as_str()) || name.starts_with("x-ratelimit-")) || value.contains(OWN_WORD)
    };
    let stray: Vec<_> = got.reply.headers.iter().filter(foreign).collect();
    verdict.check(CAUGHT_BY, stray.is_empty(), format!("{title}: {stray:?}"));
    verdict.check("nothing that was injected leaves", !raw.contains(OWN_WORD), format!("{title}: {short}"));
    let kind = got.reply.header("content-type").unwrap_or_default();
    let right_kind = if path.streamed() && got.reply.status == 200 {
        "text/event-stream; charset=utf-8"
    } else {
        "application/json"
    };
    verdict.check("the content type is ours", kind == right_kind, format!("{title}: {kind}"));
    for event in &got.events {
        verdict.check("only our schema leaves", fits(path, event), format!("{title}: {event}"));
    }
    match wanted {
        None => {
            let code = if got.reply.status == 200 { "provider_protocol_error" } else { "provider_error" };
            verdict.check(
                "what breaks the schema is refused",
                !got.complete && got.code == code && [200, 502].contains(&got.reply.status),
                format!("{title}: {} {} {short}", got.reply.status, got.code),
            );
        }
        Some(text) => {
            verdict.check(
                "an answer with additions is complete",
                got.complete,
                format!("{title}: {} {short}", got.reply.status),
            );
            verdict.check(
                "content passes as content, and only so",
                got.text == text,
                format!("{title}: {:?}", got.text),
            );
            own_names(title, path, body, got, verdict)?;
        }
    }
    Ok(())
}

/// Id, model, time and object are ours and constant.
fn own_names(title: &str, path: Path, body: &Value, got: &Got, verdict: &mut Verdict) -> Result<()> {
    let tail = got.request_id.split_once('_').context("an id without a tail")?.1;
    let (prefix, object) = match path {
        Path::ChatStream => ("chatcmpl-", "chat.completion.chunk"),
        Path::ChatWhole => ("chatcmpl-", "chat.completion"),
        Path::CompletionStream | Path::CompletionWhole => ("cmpl-", "text_completion"),
        Path::Embeddings => ("", "list"),
    };
    let created = got.events[0]["created"].clone();
    for event in &got.events {
        let named = event["model"] == body["model"]
            && event["object"] == object
            && event["created"] == created
            && (path == Path::Embeddings
                || (event["id"] == format!("{prefix}{tail}")
                    && created.as_i64().unwrap_or_default() > 1_700_000_000));
        verdict.check("id, model, time and object are ours", named, format!("{title}: {event}"));
        let roles = event["choices"].as_array().into_iter().flatten();
        let role = |choice: &Value| {
            let said = choice["delta"]["role"].as_str().or_else(|| choice["message"]["role"].as_str());
            said.is_none_or(|role| role == "assistant")
        };
        verdict.check(
            "the role is the assistant's",
            roles.into_iter().all(role),
            format!("{title}: {event}"),
        );
    }
    Ok(())
}

/// Whether an event is exactly what our types print.
fn fits(path: Path, event: &Value) -> bool {
    fn same<T: DeserializeOwned + Serialize>(value: &Value) -> bool {
        let read: Option<T> = serde_json::from_value(value.clone()).ok();
        read.and_then(|read| serde_json::to_value(read).ok()).as_ref() == Some(value)
    }
    if event.get("error").is_some() {
        return same::<ErrorEnvelope>(event);
    }
    match path {
        Path::ChatStream => same::<ChatChunk>(event),
        Path::ChatWhole => same::<ChatResponse>(event),
        Path::CompletionStream | Path::CompletionWhole => same::<CompletionResponse>(event),
        Path::Embeddings => same::<EmbeddingList>(event),
    }
}

async fn good(account: &Account, path: Path, verdict: &mut Verdict) -> Result<()> {
    for _ in 0..GOOD {
        let got = path.ask(&account.client, &path.body("say 3", LIMIT)).await?;
        verdict.check("the next good request works", got.complete, format!("{got:?}"));
    }
    Ok(())
}

/// Headers that a careless proxy would pass on.
pub(super) fn headers() -> HeaderMap {
    let names = [
        "set-cookie",
        "location",
        "server",
        "refresh",
        "x-powered-by",
        "x-request-id",
        "x-generation-id",
        "x-cxmpute-provider",
        "access-control-allow-credentials",
        "content-security-policy",
        "strict-transport-security",
        "www-authenticate",
        "content-disposition",
        "content-encoding",
        "alt-svc",
        "link",
    ];
    let value = HeaderValue::from_static("rogue-own-word=1; path=/");
    names.into_iter().map(|name| (HeaderName::from_static(name), value.clone())).collect()
}

/// A script of a page, as a model may well write it.
const PAGE: &str = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\u{202e}";

/// What the node sends, and the text that must arrive; none where the answer must be refused.
fn answers(path: Path) -> Vec<(&'static str, Bytes, Option<&'static str>)> {
    if path == Path::Embeddings {
        return vectors();
    }
    let mut answers = vec![
        ("extras", additions(path), Some("The the")),
        ("page", [path.piece(PAGE), path.finish("stop"), DONE].concat().into(), Some(PAGE)),
        ("probabilities", probabilities(path), Some("The")),
        (
            "another-choice",
            [path.event(&said(path, 1, OWN_WORD)), path.finish("stop"), DONE].concat().into(),
            None,
        ),
        (
            "a-negative-choice",
            [path.event(&said(path, -1, OWN_WORD)), path.finish("stop"), DONE].concat().into(),
            None,
        ),
        ("an-unknown-end", [path.piece("The"), path.finish(OWN_WORD), DONE].concat().into(), None),
        ("a-list", Bytes::from(format!("data: [\"{OWN_WORD}\"]\n\ndata: [DONE]\n\n")), None),
    ];
    if path.is_chat() {
        let call = |name: Value| {
            let part = json!({"index": 0, "id": OWN_WORD, "type": OWN_WORD, "function": {"name": name, "arguments": format!("{{\"{OWN_WORD}\":1}}")}});
            let delta = json!({"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": null});
            Bytes::from([path.event(&delta), path.finish("tool_calls"), DONE].concat())
        };
        answers.push(("no-tools-a-call", call(json!("sum")), None));
        answers.push(("tools-an-undeclared-call", call(json!(OWN_WORD)), None));
        answers.push(("tools-a-nameless-call", call(Value::Null), None));
    }
    answers
}

fn said(path: Path, index: i64, text: &str) -> Value {
    if path.is_chat() {
        json!({"index": index, "delta": {"content": text}, "finish_reason": null})
    } else {
        json!({"index": index, "text": text, "finish_reason": null})
    }
}

/// A proper answer with additions of every kind, and names that change on the way.
fn additions(path: Path) -> Bytes {
    let event = |number: u64, text: &str, finish: Option<&str>| {
        let mut choice = said(path, 0, text);
        choice["finish_reason"] = json!(finish);
        for field in ["stop_reason", "native_finish_reason", "content_filter_results"] {
            choice[field] = json!(OWN_WORD);
        }
        if path.is_chat() {
            for field in ["role", "reasoning_content", "refusal", "annotations", "audio", "function_call"] {
                choice["delta"][field] = json!(OWN_WORD);
            }
        }
        let event = json!({
            "id": format!("{OWN_WORD}-{number}"), "model": format!("{OWN_WORD}-{number}"), "object": OWN_WORD,
            "created": number, "system_fingerprint": OWN_WORD, "service_tier": OWN_WORD, "provider": OWN_WORD,
            "choices": [choice], "x": {"y": [OWN_WORD]},
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "cost": OWN_WORD, "x": OWN_WORD},
        });
        format!("event: {OWN_WORD}\nid: {OWN_WORD}\nretry: 1\n: {OWN_WORD}\ndata: {event}\n\n")
    };
    let all = event(1, "The", None) + &event(2, " the", None) + &event(3, "", Some("stop"));
    Bytes::from(all + "data: [DONE]\n\n")
}

/// Probabilities that nobody asked for.
fn probabilities(path: Path) -> Bytes {
    let mut choice = said(path, 0, "The");
    choice["logprobs"] = if path.is_chat() {
        json!({"content": [{"token": OWN_WORD, "logprob": -1.0, "bytes": null, "top_logprobs": []}], "refusal": null})
    } else {
        json!({"tokens": [OWN_WORD], "token_logprobs": [-1.0], "top_logprobs": [{OWN_WORD: -1.0}], "text_offset": [0]})
    };
    [path.event(&choice), path.finish("stop"), DONE].concat().into()
}

fn vectors() -> Vec<(&'static str, Bytes, Option<&'static str>)> {
    let item = |index: u64| json!({"object": OWN_WORD, "index": index, "embedding": vec![0.5; DIMENSIONS], "x": OWN_WORD});
    let list = |items: Vec<Value>| {
        let usage = json!({"prompt_tokens": 1, "total_tokens": 1, "cost": OWN_WORD});
        Bytes::from(json!({"object": OWN_WORD, "model": OWN_WORD, "id": OWN_WORD, "data": items, "usage": usage, "x": OWN_WORD}).to_string())
    };
    vec![
        ("extras", list(vec![item(0)]), Some("")),
        ("another-index", list(vec![item(1)]), None),
        ("one-too-many", list(vec![item(0), item(1)]), None),
        ("twice", list(vec![item(0), item(0)]), None),
        ("none", list(Vec::new()), None),
        ("a-list", Bytes::from(json!([[item(0)], null]).to_string()), None),
        ("page", Bytes::from_static(PAGE.as_bytes()), None),
    ]
}
