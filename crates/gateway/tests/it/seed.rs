//! The routes of the first seed: each call twice, and unknown ids.

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
