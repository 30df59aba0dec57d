//! Signed enrolment: idempotent, bound to key and owner, never an overwrite.

use cxmpute_tunnel::sign::fresh_nonce;
use cxmpute_tunnel::{provision_id, sign_request};
use cxmpute_wire::{Millis, Timestamp, UserId};
use ed25519_dalek::SigningKey;
use http::Method;
use serde_json::{Value, json};

use super::world::{Answer, World};

/// A grant of `owner`, stored as the command line stores it.
async fn grant(world: &World, owner: &UserId, name: &str) -> String {
    let grant = format!("cxg_{name}");
    let now = world.app.clock.now();
    world
        .app
        .db
        .create_grant(&world.app.keys.hash(&grant), owner, now, now.plus(Millis(60_000)))
        .await
        .unwrap();
    grant
}

fn body(key: &SigningKey, grant: Option<&str>) -> Value {
    let public = data_encoding::BASE64.encode(key.verifying_key().as_bytes());
    let mut body = json!({"public_key": public, "name": "device", "location": {"country": "DE"}});
    if let Some(grant) = grant {
        body["grant"] = json!(grant);
    }
    body
}

struct Signed<'a> {
    world: &'a World,
    key: &'a SigningKey,
    nonce: String,
    skew_s: i64,
}

impl<'a> Signed<'a> {
    fn by(world: &'a World, key: &'a SigningKey) -> Self {
        Self { world, key, nonce: fresh_nonce(), skew_s: 0 }
    }

    async fn send(&self, method: Method, id: &str, body: &str) -> Answer {
        let path = format!("/api/v1/provisions/{id}");
        let authority = self.world.address.to_string();
        let created = self.world.app.clock.now().seconds() + self.skew_s;
        let signed = sign_request(
            self.key,
            &method,
            &authority,
            &path,
            None,
            Some(body.as_bytes()),
            created,
            &self.nonce,
        );
        let headers: Vec<(String, String)> = signed
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.world.call(method.as_str(), &path, &headers, body).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolling_is_idempotent_and_needs_one_grant() {
    let world = World::start().await;
    let owner = world.user("owner").await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = provision_id(&key.verifying_key()).to_string();
    let without = Signed::by(&world, &key).send(Method::PUT, &id, &body(&key, None).to_string()).await;
    assert_eq!((without.status, without.code().as_str()), (403, "grant_invalid"));
    let text = body(&key, Some(&grant(&world, &owner, "one").await)).to_string();
    let first = Signed::by(&world, &key).send(Method::PUT, &id, &text).await;
    assert_eq!(first.status, 201, "{}", first.body);
    assert_eq!(
        (first.json()["provision_id"].as_str(), first.json()["owner"].as_str()),
        (Some(&*id), Some(owner.as_str()))
    );
    let again = Signed::by(&world, &key).send(Method::PUT, &id, &body(&key, None).to_string()).await;
    assert_eq!(again.status, 200, "{}", again.body);
    let other = SigningKey::from_bytes(&[2; 32]);
    let spent = body(&other, Some("cxg_one")).to_string();
    let other_id = provision_id(&other.verifying_key()).to_string();
    let spent = Signed::by(&world, &other).send(Method::PUT, &other_id, &spent).await;
    assert_eq!((spent.status, spent.code().as_str()), (403, "grant_spent"));
    let read = Signed::by(&world, &key).send(Method::GET, &id, "").await;
    assert_eq!((read.status, read.json()["reason"].as_str()), (200, Some("no_tunnel")));
    let unknown = Signed::by(&world, &other).send(Method::GET, &other_id, "").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "node_unknown"));
    assert_eq!(unknown.json()["error"]["action"], "enrol");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_signature_writes_nothing_and_is_held_off() {
    let world = World::with(|config| config.limits.failed_keys_per_minute = 4).await;
    let owner = world.user("owner").await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = provision_id(&key.verifying_key()).to_string();
    let text = body(&key, Some(&grant(&world, &owner, "one").await)).to_string();
    assert_eq!(Signed::by(&world, &key).send(Method::PUT, &id, &text).await.status, 201);
    let everything = Timestamp(i64::MAX);
    assert_eq!(world.app.db.forget_nonces(everything).await.unwrap(), 1, "one request was worth a nonce");

    let stranger = SigningKey::from_bytes(&[5; 32]);
    let own_id = provision_id(&stranger.verifying_key()).to_string();
    for (at, grant, code) in [
        (&own_id, Some("cxg_one"), "grant_spent"),
        (&own_id, None, "grant_invalid"),
        (&own_id, Some("cxg_guess"), "grant_invalid"),
        (&id, None, "node_conflict"),
        (&"pv_free".to_owned(), None, "invalid_parameter"),
        (&own_id, None, "rate_limited"),
    ] {
        let asked = body(&stranger, grant).to_string();
        let refused = Signed::by(&world, &stranger).send(Method::PUT, at, &asked).await;
        assert_eq!(refused.code(), code, "{at} {grant:?}: {}", refused.body);
    }
    let unknown = Signed::by(&world, &stranger).send(Method::GET, &own_id, "").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (429, "rate_limited"));
    assert_eq!(world.app.db.forget_nonces(everything).await.unwrap(), 0, "none of it was written");
    let known = Signed::by(&world, &key).send(Method::GET, &id, "").await;
    assert_eq!(known.status, 200, "a node that is known goes on: {}", known.body);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_signs_all_the_time_is_held_off() {
    let world = World::with(|config| config.limits.node_requests_per_minute = 3).await;
    let owner = world.user("owner").await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = provision_id(&key.verifying_key()).to_string();
    let text = body(&key, Some(&grant(&world, &owner, "one").await)).to_string();
    assert_eq!(Signed::by(&world, &key).send(Method::PUT, &id, &text).await.status, 201);
    for _ in 0..2 {
        assert_eq!(Signed::by(&world, &key).send(Method::GET, &id, "").await.status, 200);
    }
    for method in [Method::GET, Method::PUT] {
        let asked = if method == Method::GET { "" } else { &text };
        let refused = Signed::by(&world, &key).send(method, &id, asked).await;
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
        assert!(refused.header("retry-after").is_some());
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_cannot_be_taken_over() {
    let world = World::start().await;
    let (owner, thief) = (world.user("owner").await, world.user("thief").await);
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = provision_id(&key.verifying_key()).to_string();
    let text = body(&key, Some(&grant(&world, &owner, "one").await)).to_string();
    assert_eq!(Signed::by(&world, &key).send(Method::PUT, &id, &text).await.status, 201);
    let before = world.app.db.find_provision(&id).await.unwrap();

    let attacker = SigningKey::from_bytes(&[3; 32]);
    let stolen = body(&attacker, Some(&grant(&world, &thief, "two").await)).to_string();
    let answer = Signed::by(&world, &attacker).send(Method::PUT, &id, &stolen).await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "node_conflict"), "same id, other key");
    let moved = body(&key, Some(&grant(&world, &thief, "three").await)).to_string();
    let answer = Signed::by(&world, &key).send(Method::PUT, &id, &moved).await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "node_conflict"), "same key, other owner");
    assert_eq!(world.app.db.find_provision(&id).await.unwrap(), before, "the record is untouched");
    let chosen = Signed::by(&world, &attacker).send(Method::PUT, "pv_free", &stolen).await;
    assert_eq!(chosen.status, 400, "an id cannot be chosen");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_skew_and_forgery_are_refused() {
    let world = World::start().await;
    let owner = world.user("owner").await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = provision_id(&key.verifying_key()).to_string();
    let text = body(&key, Some(&grant(&world, &owner, "one").await)).to_string();
    let signed = Signed::by(&world, &key);
    assert_eq!(signed.send(Method::PUT, &id, &text).await.status, 201);
    let replayed = signed.send(Method::PUT, &id, &text).await;
    assert_eq!((replayed.status, replayed.code().as_str()), (401, "invalid_signature"));
    let skewed = Signed { skew_s: -120, ..Signed::by(&world, &key) }.send(Method::PUT, &id, &text).await;
    assert_eq!((skewed.status, skewed.code().as_str()), (401, "clock_skew"));
    assert!(skewed.json()["error"]["server_time"].as_i64().is_some());
    let forger = SigningKey::from_bytes(&[9; 32]);
    let forged = Signed::by(&world, &forger).send(Method::PUT, &id, &text).await;
    assert_eq!((forged.status, forged.code().as_str()), (401, "invalid_signature"));
    let unsigned = world.call("PUT", &format!("/api/v1/provisions/{id}"), &[], &text).await;
    assert_eq!((unsigned.status, unsigned.code().as_str()), (401, "invalid_signature"));
    world.app.db.suspend_user(&owner, "test", world.app.clock.now()).await.unwrap();
    let suspended = Signed::by(&world, &key).send(Method::GET, &id, "").await;
    assert_eq!((suspended.status, suspended.code().as_str()), (403, "account_suspended"));
    world.stop().await;
}
