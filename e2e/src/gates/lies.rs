//! GR7: a node that breaks the shape that was asked for, a JSON schema or the strict arguments of a tool. The answer is
//! refused, nobody pays for it, and it counts against the node until it gets no more work.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

use super::faults::provider_of;
use crate::paths::{DONE, Path, settled};
use crate::settings::Setting;
use crate::stand_in::{Script, StandIn};
use crate::verdict::Verdict;
use crate::ways::Answer;
use crate::world::{Account, World};

/// The assertion that catches answers that nobody looks at.
pub const CAUGHT_BY: &str = "an answer that breaks its shape is refused";

/// The assertion that catches a gateway that forgives.
pub const COUNTED: &str = "lies count against the node";

/// Faults in a row after which a node gets no more work.
const FAULTS: usize = 5;

/// Good requests around the lies, so that there is a budget for retries.
const WARM_UP: usize = 40;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Schema,
    Arguments,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("GR7");
    for _ in 0..setting.counts.pick(1, 10) {
        alone(setting, &mut verdict).await?;
        beside_an_honest_one(setting, &mut verdict).await?;
    }
    Ok(verdict)
}

/// The only node lies: each answer is refused with its documented code, and is free.
async fn alone(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).queue(Duration::from_millis(100)).start().await?;
    let node = world.stand_in("liar").await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
    for shape in [Shape::Schema, Shape::Arguments] {
        for path in [Path::ChatWhole, Path::ChatStream] {
            for (name, text) in lies(shape) {
                verdict.count += 1;
                let what = format!("{shape:?} {path:?} {name}");
                let row = refused(&world, &node, &account, (shape, path, text), &what, verdict).await?;
                verdict.check(
                    "the attempt is recorded with its fault",
                    row["attempts"][0]["code"] == "provider_protocol_error",
                    format!("{what}: {row}"),
                );
            }
            let (got, request_id) = ask(&account, &node, (shape, path, honest(shape))).await?;
            let row = settled(&account.client, &request_id, Duration::from_secs(10)).await?;
            verdict.check(
                "an answer of the right shape is delivered and paid",
                got.complete && got.code.is_none() && world.cost_of(&row)? > 0,
                format!("{shape:?} {path:?}: {got:?}, {row}"),
            );
        }
    }
    world.finish(verdict).await
}

async fn refused(
    world: &World,
    node: &StandIn,
    account: &Account,
    (shape, path, text): (Shape, Path, &str),
    what: &str,
    verdict: &mut Verdict,
) -> Result<Value> {
    let (got, request_id) = ask(account, node, (shape, path, text)).await?;
    // In a stream the shape is known to be broken when it ends, after content: an error event, and no end marker.
    let code = if path.streamed() { "provider_protocol_error" } else { "provider_error" };
    verdict.check(
        CAUGHT_BY,
        got.code.as_deref() == Some(code) && !got.complete,
        format!("{what}: {got:?}, wanted {code}"),
    );
    let row = settled(&account.client, &request_id, Duration::from_secs(10)).await?;
    verdict.check(
        "nobody pays for an answer that breaks its shape",
        world.cost_of(&row)? == 0 && world.money.reward_of(&request_id).await? == 0,
        format!("{what}: {row}"),
    );
    Ok(row)
}

/// Two nodes, one lies: clients get the honest answer, and after a few lies the liar is not asked any more.
async fn beside_an_honest_one(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    for shape in [Shape::Schema, Shape::Arguments] {
        let world = World::plan(setting).start().await?;
        let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
        let liar = world.stand_in("liar").await?;
        let name = provider_of(&account, None).await?;
        let other = world.stand_in("honest").await?;
        let mut body = request(shape, Path::ChatWhole);
        other.learn("shape", script(shape, honest(shape)));
        liar.learn("shape", script(shape, honest(shape)));
        // Named first, the liar is asked as long as it is in the running at all.
        body["provider"] = json!({"order": [name]});
        for _ in 0..WARM_UP {
            Path::ChatWhole.ask(&account.client, &body).await?;
        }
        let (_, lie) = lies(shape)[0];
        liar.learn("shape", script(shape, lie));
        let before = liar.notes().len();
        for _ in 0..WARM_UP {
            verdict.count += 1;
            let got = Path::ChatWhole.ask(&account.client, &body).await?;
            let mut answer = Answer::default();
            got.events.iter().for_each(|event| answer.take(event));
            let said = answer.texts.concat();
            verdict.check(
                "the honest answer is what arrives",
                got.complete && said.ends_with(honest(shape)),
                format!("{shape:?}: {got:?}"),
            );
        }
        let asked = liar.notes().len() - before;
        verdict.check(
            COUNTED,
            (1..=FAULTS).contains(&asked),
            format!("{shape:?}: asked {asked} times, at most {FAULTS}"),
        );
        world.finish(verdict).await?;
    }
    Ok(())
}

/// Asks for the shape; the node answers with this text.
async fn ask(
    account: &Account,
    node: &StandIn,
    (shape, path, text): (Shape, Path, &str),
) -> Result<(Answer, String)> {
    node.learn("shape", script(shape, text));
    let mut conversation = account.client.send("POST", path.url(), Some(&request(shape, path))).await?;
    conversation.read_head().await?;
    let request_id = conversation.header("x-request-id").context("no request id")?.to_owned();
    let mut answer = Answer::default();
    answer.read_rest(&mut conversation).await;
    Ok((answer, request_id))
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"],
        "additionalProperties": false})
}

fn request(shape: Shape, path: Path) -> Value {
    let mut body = path.body("play shape", 64);
    match shape {
        Shape::Schema => {
            body["response_format"] = json!({"type": "json_schema",
                "json_schema": {"name": "answer", "strict": true, "schema": schema()}});
        }
        Shape::Arguments => {
            let function = json!({"name": "add", "strict": true, "parameters": schema()});
            body["tools"] = json!([{"type": "function", "function": function}]);
        }
    }
    body
}

/// What a node sends, in two pieces.
fn script(shape: Shape, text: &str) -> Script {
    let path = Path::ChatStream;
    let (first, second) = text.split_at(text.len() / 2);
    let call = |name: Option<&str>, part: &str| {
        let function = json!({"name": name, "arguments": part});
        let call = json!({"index": 0, "id": name.map(|_| "call"), "type": "function", "function": function});
        path.event(&json!({"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null}))
    };
    let events: [Bytes; 4] = match shape {
        Shape::Schema => [path.piece(first), path.piece(second), path.finish("stop"), DONE],
        Shape::Arguments => [call(Some("add"), first), call(None, second), path.finish("tool_calls"), DONE],
    };
    Script::raw(events.concat())
}

fn honest(_: Shape) -> &'static str {
    r#"{"sum":42}"#
}

fn lies(shape: Shape) -> Vec<(&'static str, &'static str)> {
    let mut lies = vec![
        ("another type", r#"{"sum":"42"}"#),
        ("a field more", r#"{"sum":42,"more":1}"#),
        ("a field less", r#"{"total":42}"#),
        ("no JSON", "The sum is 42."),
        ("JSON and more", r#"{"sum":42} is it"#),
    ];
    if matches!(shape, Shape::Schema) {
        lies.push(("a list", "[42]"));
    }
    lies
}
