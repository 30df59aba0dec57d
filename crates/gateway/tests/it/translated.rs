//! Routes in other words than OpenAI's chat, through a real socket, as far as they get without a node.

use std::path::Path;

use cxmpute_store::{KeyKind, LimitSubject, Limits};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

use super::world::{Answer, World};

/// A world without nodes: paid work gets as far as its hold, then 503.
async fn world() -> World {
    World::with(|config| {
        config.relay.queue_ms = 20;
        config.catalogue.models_dir =
            Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model"));
    })
    .await
}

async fn payer(world: &World) -> String {
    let user = world.user("payer").await;
    let now = world.app.clock.now();
    world.app.db.grant_credits(&user, MicroCredits(10_000_000), "test", "test", "test", now).await.unwrap();
    world.key(&user, KeyKind::Api).await
}

fn asked(more: Value) -> String {
    let mut body =
        json!({"model": "cxm-tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

async fn message(world: &World, key: &str, body: &str) -> Answer {
    world.call("POST", "/v1/messages", &[("x-api-key", key), ("anthropic-version", "2023-06-01")], body).await
}

fn kind(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["type"], "error", "{}", answer.body);
    assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"));
    body["error"]["type"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_messages_have_anthropic_s_shape_whoever_refuses() {
    let world = world().await;
    let key = payer(&world).await;
    let body = asked(json!({}));
    let unserved = message(&world, &key, &body).await;
    assert_eq!((unserved.status, kind(&unserved).as_str()), (503, "overloaded_error"), "{}", unserved.body);
    assert_eq!(unserved.code(), "no_provider");
    let stranger = message(&world, "cxk_wrong", &body).await;
    assert_eq!((stranger.status, kind(&stranger).as_str()), (401, "authentication_error"));
    let words = "a".repeat(4 * 1024 * 1024);
    let most = format!(r#"{{"model":"{}"}}"#, words.repeat(5));
    for large in [asked(json!({"messages": [{"role": "user", "content": words}]})), most] {
        let large = message(&world, &key, &large).await;
        assert_eq!((large.status, kind(&large).as_str()), (413, "request_too_large"), "{}", large.body);
    }
    let bad = message(&world, &key, "{").await;
    assert_eq!(
        (bad.status, kind(&bad).as_str(), bad.code().as_str()),
        (400, "invalid_request_error", "invalid_json")
    );
    let missing = message(&world, &key, &asked(json!({"model": "no-such-model"}))).await;
    assert_eq!((missing.status, kind(&missing).as_str()), (404, "not_found_error"));
    // A key is cached for a second; this one was not seen yet.
    let key = world.key(&world.user("payer").await, KeyKind::Api).await;
    let (_, id) = cxmpute_gateway::auth::parse(&key).unwrap();
    let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
    assert!(world.app.db.set_limits(LimitSubject::Key(&id), &limits).await.unwrap());
    assert_eq!(message(&world, &key, &body).await.status, 503);
    let last = message(&world, &key, &body).await;
    assert_eq!((last.status, kind(&last).as_str()), (429, "rate_limit_error"), "{}", last.body);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_anthropic_s_clients_opens_their_routes_and_no_others() {
    let world = world().await;
    let key = payer(&world).await;
    let body = asked(json!({}));
    let bearer = format!("Bearer {key}");
    for (headers, status) in [
        (vec![("x-api-key", key.as_str())], 503),
        (vec![("authorization", bearer.as_str())], 503),
        (vec![("authorization", bearer.as_str()), ("x-api-key", key.as_str())], 503),
        (vec![("authorization", bearer.as_str()), ("x-api-key", "cxk_other")], 401),
        (vec![("authorization", "Bearer cxk_other"), ("x-api-key", key.as_str())], 401),
        (vec![("x-api-key", key.as_str()), ("x-api-key", key.as_str())], 401),
        (vec![], 401),
    ] {
        let answer = world.call("POST", "/v1/messages", &headers, &body).await;
        assert_eq!(answer.status, status, "{headers:?} {}", answer.body);
    }
    let chat = world.call("POST", "/v1/chat/completions", &[("x-api-key", &key)], &body).await;
    assert_eq!((chat.status, chat.code().as_str()), (401, "invalid_api_key"));
    assert_eq!(chat.json()["error"]["type"], "invalid_request_error", "other routes keep the envelope");
    let version = [("x-api-key", key.as_str()), ("anthropic-version", "latest")];
    let named = world.call("POST", "/v1/messages", &version, &body).await;
    assert_eq!((named.status, &named.json()["error"]["param"]), (400, &json!("anthropic-version")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_fields_are_named_as_they_were_sent() {
    let world = world().await;
    let key = payer(&world).await;
    for (more, field) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"stop_sequences": ["a", "b", "c", "d", "e"]}), "stop_sequences"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}),
            "messages[1]",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}]}]}),
            "messages",
        ),
        (
            json!({"system": "x", "tools": [{"name": "a b", "input_schema": {"type": "object"}}]}),
            "tools[0].name",
        ),
        (json!({"tools": [{"name": "f", "input_schema": 7}]}), "tools[0].input_schema"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"provider": {"sort": "best"}}), "provider.sort"),
    ] {
        let answer = message(&world, &key, &asked(more.clone())).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some(field)),
            "{more}: {}",
            answer.body
        );
    }
    for (more, field) in [
        (json!({"input": 7}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (
            json!({"instructions": "x", "input": [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": "x"}]}),
            "input[1]",
        ),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format.type"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}),
            "text.format.name",
        ),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name"),
        (json!({"metadata": {"a": 1}}), "metadata.a"),
    ] {
        let mut body = json!({"model": "cxm-tiny", "input": "hi", "max_output_tokens": 8});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let bearer = format!("Bearer {key}");
        let answer =
            world.call("POST", "/v1/responses", &[("authorization", &bearer)], &body.to_string()).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some(field)),
            "{more}: {}",
            answer.body
        );
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_without_a_node_and_without_money() {
    let world = world().await;
    let user = world.user("poor").await;
    let key = world.key(&user, KeyKind::Api).await;
    let count = async |more: Value| {
        let mut body = json!({"model": "cxm-tiny", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.call("POST", "/v1/messages/count_tokens", &[("x-api-key", &key)], &body.to_string()).await
    };
    let short = count(json!({})).await;
    assert_eq!(short.status, 200, "{}", short.body);
    let long =
        count(json!({"system": "Answer in one short sentence.", "cache_control": {"type": "ephemeral"}}))
            .await;
    let number = |answer: &Answer| answer.json()["input_tokens"].as_u64().unwrap();
    assert!(0 < number(&short) && number(&short) < number(&long));
    assert_eq!(long.header("x-cxmpute-ignored"), Some("cache_control"));
    assert_eq!(world.app.meter.stats().ops, 0, "nothing is held");
    let refused = count(json!({"messages": []})).await;
    assert_eq!((refused.status, kind(&refused).as_str()), (400, "invalid_request_error"));
    world.stop().await;

    let bare = World::start().await;
    let key = payer(&bare).await;
    let body = asked(json!({}));
    let blind = bare.call("POST", "/v1/messages/count_tokens", &[("x-api-key", &key)], &body).await;
    assert_eq!((blind.status, &blind.json()["error"]["param"]), (400, &json!("model")), "{}", blind.body);
    bare.stop().await;
}
