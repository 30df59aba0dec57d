//! GR16: nothing on the way collects events. The node sends the next one only when the client has the one before, so a
//! gateway that holds back a single event stops the stream for good.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{Conversation, Event};
use crate::paths::{DONE, Path};
use crate::settings::Setting;
use crate::stand_in::{Script, StandIn, Step};
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a gateway that collects events.
pub const CAUGHT_BY: &str = "the client has each event before the next one is sent";

/// Events of one stream.
const EVENTS: usize = 200;

/// What counts is whether an event comes at all, not how soon.
const COMES_WITHIN: Duration = Duration::from_secs(5);

/// A way of a stream through the relay: what is asked, what the node sends, and where the client finds it.
struct Way {
    name: &'static str,
    path: Path,
    /// Fields of the request beside those of every request.
    extra: Value,
    /// The events of the node and what each brings to the client.
    events: Vec<(Bytes, String)>,
    finish: &'static str,
    /// What of an event of the client is content.
    content: fn(&Value) -> Option<&str>,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("GR16");
    let world = World::plan(setting).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("reader@example.org", MicroCredits(1_000_000_000)).await?;
    for _ in 0..setting.counts.pick(1, 10) {
        for way in ways() {
            if verdict.broken().is_empty() {
                walk(&node, &account, &way, &mut verdict).await?;
            }
        }
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

async fn walk(node: &StandIn, account: &Account, way: &Way, verdict: &mut Verdict) -> Result<()> {
    let mut steps: Vec<Step> =
        way.events.iter().flat_map(|(event, _)| [Step::Raw(event.clone()), Step::Await]).collect();
    steps.extend([Step::Raw(way.path.finish(way.finish)), Step::Raw(DONE)]);
    node.learn(way.name, Script::of(steps));
    let mut body = way.path.body(&format!("play {}", way.name), EVENTS as u64 * 4);
    if let (Some(body), Some(extra)) = (body.as_object_mut(), way.extra.as_object()) {
        body.extend(extra.clone());
    }
    let mut conversation = account.client.send("POST", way.path.url(), Some(&body)).await?;
    for (number, (_, wanted)) in way.events.iter().enumerate() {
        verdict.count += 1;
        let came = timeout(COMES_WITHIN, next(&mut conversation, way.content)).await;
        let held = matches!(&came, Ok(Ok(Some(text))) if text == wanted);
        verdict.check(CAUGHT_BY, held, format!("{}: event {number}: {came:?}, wanted {wanted:?}", way.name));
        if !held {
            // Leaving ends the stream; the node waits no longer.
            return Ok(());
        }
        node.go_on();
    }
    let mut rest = Vec::new();
    while let Some(event) = conversation.event().await? {
        rest.push(event);
    }
    let finished = rest.iter().any(
        |event| matches!(event, Event::Data(value) if value["choices"][0]["finish_reason"] == way.finish),
    );
    verdict.check(
        "the stream ends whole",
        finished && rest.last() == Some(&Event::Done),
        format!("{}: {rest:?}", way.name),
    );
    Ok(())
}

/// The next content; `None` when the stream ended without.
async fn next(
    conversation: &mut Conversation,
    content: fn(&Value) -> Option<&str>,
) -> Result<Option<String>> {
    if conversation.status == 0 {
        conversation.read_head().await?;
    }
    while let Some(event) = conversation.event().await? {
        let Event::Data(value) = event else { return Ok(None) };
        if let Some(text) = content(&value).filter(|text| !text.is_empty()) {
            return Ok(Some(text.to_owned()));
        }
    }
    Ok(None)
}

fn ways() -> Vec<Way> {
    let words = |path: Path| pieces(|text| path.piece(text), "The", " the");
    let json = |path: Path| pieces(|text| path.piece(text), "{\"a\":\"the", " the");
    let text: fn(&Value) -> Option<&str> = |event| event["choices"][0]["text"].as_str();
    let said: fn(&Value) -> Option<&str> = |event| event["choices"][0]["delta"]["content"].as_str();
    let called: fn(&Value) -> Option<&str> =
        |event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str();
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false,
    });
    let function = json!({"name": "note", "parameters": schema});
    let tools =
        |choice: Value| json!({"tools": [{"type": "function", "function": function}], "tool_choice": choice});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "note", "strict": true, "schema": schema}});
    let chat = Path::ChatStream;
    let way = |name, path, extra, events, finish, content| Way { name, path, extra, events, finish, content };
    vec![
        way("chat", chat, json!({}), words(chat), "stop", said),
        way("completion", Path::CompletionStream, json!({}), words(Path::CompletionStream), "stop", text),
        way("json-schema", chat, json!({"response_format": format}), closed(json(chat), chat), "stop", said),
        way("tool-auto", chat, tools(json!("auto")), calls(), "tool_calls", called),
        way("tool-required", chat, tools(json!("required")), calls(), "tool_calls", called),
        way(
            "usage-asked-for",
            chat,
            json!({"stream_options": {"include_usage": true}}),
            words(chat),
            "stop",
            said,
        ),
    ]
}

/// Events that bring `first` and then `next`, again and again.
fn pieces(event: impl Fn(&str) -> Bytes, first: &str, next: &str) -> Vec<(Bytes, String)> {
    let text = |number| if number == 0 { first } else { next };
    (0..EVENTS).map(|number| (event(text(number)), text(number).to_owned())).collect()
}

/// The same with an end that makes them one JSON object.
fn closed(mut events: Vec<(Bytes, String)>, path: Path) -> Vec<(Bytes, String)> {
    events.push((path.piece("\"}"), "\"}".to_owned()));
    events
}

/// A call of the tool, its arguments piece by piece.
fn calls() -> Vec<(Bytes, String)> {
    let event = |text: &str| {
        let part = if text.starts_with('{') {
            json!({"index": 0, "id": "call_0", "type": "function", "function": {"name": "note", "arguments": text}})
        } else {
            json!({"index": 0, "function": {"arguments": text}})
        };
        Path::ChatStream.event(&json!({"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": null}))
    };
    let mut events = pieces(event, "{\"a\":\"the", " the");
    events.push((event("\"}"), "\"}".to_owned()));
    events
}
