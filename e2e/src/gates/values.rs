//! U2: values out of range name their field, fields that nobody knows never reach a node.

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

use crate::paths::Path;
use crate::settings::Setting;
use crate::stand_in::StandIn;
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a pass-through of the extra body.
pub const CAUGHT_BY: &str = "a field that nobody knows never reaches a node";

/// Fields that engines know and no client may set through us (GR2).
const UNKNOWN: [&str; 14] = [
    "prompt_embeds",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "grammar",
    "priority",
    "cache_salt",
    "ignore_eos",
    "min_tokens",
    "extra_body",
    "chat_template",
    "mm_processor_kwargs",
    "kv_transfer_params",
];

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("U2");
    let world = World::plan(setting).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("values@example.org", MicroCredits(1_000_000_000)).await?;
    for _ in 0..setting.counts.pick(1, 20) {
        for path in [Path::ChatWhole, Path::ChatStream] {
            refuse_all(&world, &node, &account, path, chat_values(), &mut verdict).await?;
        }
        refuse_all(&world, &node, &account, Path::CompletionWhole, completion_values(), &mut verdict).await?;
        refuse_all(&world, &node, &account, Path::Embeddings, embeddings_values(), &mut verdict).await?;
        for path in Path::ALL {
            pass_nothing(&node, &account, path, &mut verdict).await?;
        }
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

async fn refuse_all(
    world: &World,
    node: &StandIn,
    account: &Account,
    path: Path,
    values: Vec<(&'static str, Value)>,
    verdict: &mut Verdict,
) -> Result<()> {
    for (field, value) in values {
        verdict.count += 1;
        let mut body = path.body("say 3", 8);
        body[field] = value;
        let seen = node.notes().len();
        let got = path.ask(&account.client, &body).await?;
        let short: String = body[field].to_string().chars().take(100).collect();
        let named = got.events[0]["error"]["param"].as_str().unwrap_or_default();
        let what = format!("{path:?} {field} {short}: {} {}", got.reply.status, got.events[0]);
        verdict.check("a value out of range is refused with 400", got.reply.status == 400, &what);
        verdict.check("the refusal names the field", named.starts_with(field), &what);
        verdict.check("a refused request reaches no node", node.notes().len() == seen, &what);
        verdict.check("no hold is taken", world.money.open_holds().await? == 0, &what);
    }
    let got = path.ask(&account.client, &path.body("say 3", 8)).await?;
    verdict.check("the next good request works", got.complete, format!("{got:?}"));
    Ok(())
}

async fn pass_nothing(node: &StandIn, account: &Account, path: Path, verdict: &mut Verdict) -> Result<()> {
    for field in UNKNOWN {
        verdict.count += 1;
        let mut body = path.body("say 3", 8);
        body[field] = json!({"url": "file:///etc/passwd"});
        let seen = node.notes().len();
        let got = path.ask(&account.client, &body).await?;
        let ignored = got.reply.header("x-cxmpute-ignored").unwrap_or_default().to_owned();
        let refused = got.reply.status == 400 && node.notes().len() == seen;
        let what = format!("{path:?} {field}: {} {ignored:?}", got.reply.status);
        verdict.check(
            "an unknown field is dropped and named, or refused",
            refused || (got.complete && ignored == field),
            &what,
        );
        let reached = node.notes().get(seen).map(|note| note.asked.to_string()).unwrap_or_default();
        // The gateway gives a salt of its own to the node; the client's must not get there.
        let named = field != "cache_salt" && reached.contains(field);
        verdict.check(CAUGHT_BY, !named && !reached.contains("passwd"), format!("{what}: {reached}"));
    }
    Ok(())
}

fn many(count: usize, value: &Value) -> Value {
    Value::Array(vec![value.clone(); count])
}

fn chat_values() -> Vec<(&'static str, Value)> {
    let biases: serde_json::Map<String, Value> =
        (0..100_000).map(|token| (token.to_string(), json!(1))).collect();
    let labels: serde_json::Map<String, Value> =
        (0..17).map(|label| (format!("l{label}"), json!("x"))).collect();
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let schema =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    let deep = (0..20)
        .fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]);
    vec![
        ("n", json!(-1)),
        ("n", json!(0)),
        ("n", json!(9)),
        ("n", json!(1_000_000_000)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1_u64 << 63)),
        ("max_tokens", json!("100")),
        ("max_tokens", json!(1.5)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-1)),
        ("min_p", json!(1.1)),
        ("frequency_penalty", json!(2.1)),
        ("presence_penalty", json!(-2.1)),
        ("repetition_penalty", json!(0)),
        ("top_logprobs", json!(21)),
        ("stop", many(10_000, &json!("x"))),
        ("stop", json!("x".repeat(300))),
        ("logit_bias", Value::Object(biases)),
        ("logit_bias", json!({"1": 101})),
        ("tools", many(10_000, &tool)),
        ("metadata", Value::Object(labels)),
        ("response_format", schema(json!({"type": "string", "description": "x".repeat(70_000)}))),
        ("response_format", schema(deep)),
        ("messages", json!([])),
        ("messages", many(2_049, &json!({"role": "user", "content": "x"}))),
        ("messages", json!([{"role": "pope", "content": "x"}])),
        ("messages", image),
        ("model", json!(7)),
        ("stream", json!("yes")),
    ]
}

fn completion_values() -> Vec<(&'static str, Value)> {
    vec![
        ("n", json!(0)),
        ("n", json!(9)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1_u64 << 63)),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", many(17, &json!("x"))),
        ("prompt", json!([1, 2])),
        ("logprobs", json!(6)),
        ("best_of", json!(2)),
        ("suffix", json!("x")),
        ("temperature", json!(-1)),
    ]
}

fn embeddings_values() -> Vec<(&'static str, Value)> {
    vec![
        ("input", json!("")),
        ("input", json!([])),
        ("input", many(2_049, &json!("x"))),
        ("input", json!([1, 2])),
        ("dimensions", json!(3)),
        ("encoding_format", json!("zip")),
    ]
}
