//! The routes of the first seed: each call twice, and unknown ids.

use cxmpute_gateway::auth;
use cxmpute_store::KeyKind;
use serde_json::{Value, json};

use super::world::{Answer, World};

const DEVICE: &str = "3d2c1a5e-1111-4222-8333-0123456789ab";

async fn post(world: &World, route: &str, body: &Value) -> Answer {
    world.call("POST", &format!("/api/v1/providers/{route}"), &[], &body.to_string()).await
}

fn resources() -> Value {
    json!({"type": "nogpu", "compute": {
        "memory": {"total": 16384, "used": 1, "free": 8000},
        "storage": {"total": 100_000, "used": 1, "free": 50_000}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_first_seed_lives_its_life_twice() {
    let world = World::start().await;
    let owner = world.user("owner").await;
    let key = world.key(&owner, KeyKind::Provider).await;
    let new = json!({"providerId": owner, "providerAk": key, "provisionId": DEVICE,
        "deviceDiagnostics": resources(), "location": {"country": "DE", "state": "", "city": ""}});
    let start = json!({"providerAk": key, "provisionId": DEVICE, "availableResources": resources()});
    let callback = json!({"providerAk": key, "provisionId": DEVICE, "startedServices": ["llm:cxm-tiny"],
        "providedUrl": "http://device.example"});
    let bare = json!({"providerAk": key, "provisionId": DEVICE});
    for (route, body) in [("new", &new), ("start", &start), ("start/callback", &callback), ("end", &bare)] {
        let (first, second) = (post(&world, route, body).await, post(&world, route, body).await);
        assert_eq!((first.status, second.status), (200, 200), "{route}: {} {}", first.body, second.body);
        assert_eq!(first.body, second.body, "{route}");
    }
    let unroutable = world.app.db.find_provision(DEVICE).await.unwrap().unwrap();
    assert!(unroutable.public_key.is_none() && unroutable.desired_generation.0 == 1);
    assert_eq!(unroutable.provided_url.as_deref(), Some("http://device.example"));
    let delete = world.call("DELETE", "/api/v1/providers/delete", &[], &bare.to_string()).await;
    assert_eq!(delete.body, post(&world, "delete", &bare).await.body);
    let gone = post(&world, "start", &start).await;
    assert_eq!(gone.status, 404);
    assert_eq!(gone.body, r#"{"error":"Provision not found.","code":"node_unknown","action":"enrol"}"#);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_devices_look_missing_and_wrong_bodies_are_named() {
    let world = World::start().await;
    let (owner, other) = (world.user("owner").await, world.user("other").await);
    let key = world.key(&owner, KeyKind::Provider).await;
    let foreign = world.key(&other, KeyKind::Provider).await;
    let new = json!({"providerId": owner, "providerAk": key, "provisionId": DEVICE,
        "deviceDiagnostics": {}, "location": {"country": "DE"}});
    assert_eq!(post(&world, "new", &new).await.status, 200);
    let theirs = json!({"providerAk": foreign, "provisionId": DEVICE});
    for route in ["end", "delete"] {
        assert_eq!(post(&world, route, &theirs).await.json()["code"], "node_unknown", "{route}");
    }
    let mut taken = new.clone();
    taken["providerId"] = json!(other);
    taken["providerAk"] = json!(foreign);
    let taken = post(&world, "new", &taken).await;
    assert_eq!((taken.status, taken.json()["code"].as_str()), (409, Some("node_conflict")));
    let mut mixed = new.clone();
    mixed["providerAk"] = json!(foreign);
    assert_eq!(post(&world, "new", &mixed).await.status, 401);
    let empty = json!({"providerAk": key, "provisionId": DEVICE, "startedServices": [], "providedUrl": "x"});
    assert_eq!(post(&world, "start/callback", &empty).await.status, 400);
    let unknown = json!({"providerAk": key, "provisionId": DEVICE, "startedServices": ["llm:nope"], "providedUrl": "x"});
    assert_eq!(post(&world, "start/callback", &unknown).await.status, 400);
    let missing = post(&world, "start", &json!({})).await;
    assert_eq!(missing.status, 400);
    assert!(missing.json()["error"].as_str().unwrap().contains("provisionId"), "{}", missing.body);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_guesses_provider_keys_is_held_off_and_a_known_key_is_not() {
    let world = World::with(|config| config.limits.failed_keys_per_minute = 3).await;
    let key = world.key(&world.user("owner").await, KeyKind::Provider).await;
    let ended = async |key: &str| {
        let answer = post(&world, "end", &json!({"providerAk": key, "provisionId": DEVICE})).await;
        (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ended(&key).await, (404, "node_unknown".to_owned()));
    for guess in ["cxp_live_nonsense", "sk-other", auth::mint(KeyKind::Provider).text.expose().as_str()] {
        assert_eq!(ended(guess).await, (401, "invalid_api_key".to_owned()), "{guess}");
    }
    for guess in ["cxp_live_nonsense", auth::mint(KeyKind::Provider).text.expose().as_str()] {
        assert_eq!(ended(guess).await, (429, "rate_limited".to_owned()), "{guess}");
    }
    assert_eq!(ended(&key).await, (404, "node_unknown".to_owned()), "a key that is in use goes on");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_key_that_asks_all_the_time_is_held_off() {
    let world = World::with(|config| config.limits.node_requests_per_minute = 3).await;
    let owner = world.user("owner").await;
    let key = world.key(&owner, KeyKind::Provider).await;
    let new = json!({"providerId": owner, "providerAk": key, "provisionId": DEVICE,
        "deviceDiagnostics": resources(), "location": {"country": "DE"}});
    let start = json!({"providerAk": key, "provisionId": DEVICE, "availableResources": resources()});
    assert_eq!(post(&world, "new", &new).await.status, 200);
    for _ in 0..2 {
        assert_eq!(post(&world, "start", &start).await.status, 200);
    }
    for (route, body) in [("start", &start), ("new", &new), ("delete", &start)] {
        let refused = post(&world, route, body).await;
        assert_eq!((refused.status, refused.json()["code"].as_str()), (429, Some("rate_limited")), "{route}");
        assert!(refused.header("retry-after").is_some());
    }
    world.stop().await;
}
