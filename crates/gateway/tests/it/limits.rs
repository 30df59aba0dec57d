//! Limits of keys, accounts and addresses, through a real socket.

use std::path::Path;
use std::time::{Duration, Instant};

use cxmpute_gateway::auth;
use cxmpute_store::{KeyKind, KeySettings, LimitSubject, Limits};
use cxmpute_wire::{KeyId, MicroCredits, ServiceKind, Timestamp};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::world::{Answer, WITHIN_A_SECOND, World, until};

const CHAT: &str = r#"{"model":"cxm-tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":8}"#;

/// A world without nodes: paid work gets as far as its hold, then 503.
async fn world() -> World {
    World::with(|config| {
        config.relay.queue_ms = 20;
        config.catalogue.models_dir =
            Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model"));
    })
    .await
}

/// A key with money, and its public part.
async fn payer(world: &World) -> (String, KeyId) {
    let user = world.user("payer").await;
    let now = world.app.clock.now();
    world.app.db.grant_credits(&user, MicroCredits(10_000_000), "test", "test", "test", now).await.unwrap();
    let key = world.key(&user, KeyKind::Api).await;
    let (_, id) = auth::parse(&key).unwrap();
    (key, id)
}

async fn chat(world: &World, key: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    world.call("POST", "/v1/chat/completions", &[("authorization", &bearer)], body).await
}

async fn set(world: &World, key: &KeyId, limits: Limits) {
    assert!(world.app.db.set_limits(LimitSubject::Key(key), &limits).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_rate_get_429_before_their_body_is_read() {
    let world = world().await;
    let (key, id) = payer(&world).await;
    set(
        &world,
        &id,
        Limits { requests_per_minute: Some(3), tokens_per_minute: Some(100_000), ..Limits::default() },
    )
    .await;
    for left in ["2", "1", "0"] {
        let answer = chat(&world, &key, CHAT).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_provider"), "{}", answer.body);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
        assert!(answer.header("x-ratelimit-reset-requests").is_some_and(|reset| reset.ends_with('s')));
        assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("100000"));
        assert_eq!(answer.header("x-ratelimit-remaining-tokens"), Some("100000"), "nothing was delivered");
        assert_eq!(answer.header("x-ratelimit-reset-tokens"), Some("0s"));
    }
    let holds = world.app.meter.stats().ops;
    // The body never comes; the refusal does not wait for it.
    let unread = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    );
    let refused = world.raw(unread.as_bytes()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((15..=26).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(world.app.meter.stats().ops, holds, "a refusal writes nothing");
    let other = world.key(&world.user("payer").await, KeyKind::Api).await;
    assert_eq!(chat(&world, &other, CHAT).await.status, 503, "one key does not slow another");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_and_the_tokens_come_back_when_the_request_ends() {
    let world = World::with(|config| {
        config.relay.queue_ms = 60_000;
        config.catalogue.models_dir =
            Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model"));
    })
    .await;
    let (key, id) = payer(&world).await;
    set(&world, &id, Limits { concurrent: Some(1), tokens_per_minute: Some(500), ..Limits::default() }).await;
    // Waits for a node that never comes.
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let mut first = Box::pin(world.call("POST", "/v1/chat/completions", &headers, CHAT));
    let at_most = Instant::now() + Duration::from_secs(10);
    while world.app.meter.stats().open_holds == 0 {
        let _ = tokio::time::timeout(Duration::from_millis(5), &mut first).await;
        assert!(Instant::now() < at_most, "the first request is admitted");
    }
    let second = chat(&world, &key, CHAT).await;
    assert_eq!((second.status, second.code().as_str()), (429, "concurrency_limited"));
    assert!(second.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok_and(|wait| wait >= 1)));
    assert_ne!(second.header("x-ratelimit-remaining-tokens"), Some("500"), "the first has reserved some");
    // Disconnects.
    drop(first);
    let third = loop {
        let bad = chat(&world, &key, "{}").await;
        if bad.status == 400 {
            break bad;
        }
        assert_eq!(bad.status, 429);
        assert!(Instant::now() < at_most, "the slot comes back");
    };
    assert_eq!(third.header("x-ratelimit-remaining-tokens"), Some("500"));
    assert_eq!(chat(&world, &key, "{}").await.status, 400, "a refused request gives its slot back");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_only_its_models_and_routes_until_its_end() {
    let world = world().await;
    let (key, id) = payer(&world).await;
    set(&world, &id, Limits { models: Some(vec!["other".into()]), ..Limits::default() }).await;
    let answer = chat(&world, &key, CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "model_not_permitted"));
    assert_eq!(answer.json()["error"]["param"], "model");
    let only = Limits { routes: Some(vec!["/embeddings".into()]), ..Limits::default() };
    set(&world, &id, only).await;
    let closed = until("a change holds within a second (4 x)", WITHIN_A_SECOND, async || {
        Some(chat(&world, &key, CHAT).await).filter(|answer| answer.code() == "route_not_permitted")
    });
    assert_eq!(closed.await.status, 403);
    assert_eq!(world.get("/v1/credits", &key).await.status, 403);
    let shown = world.get("/v1/key", &key).await.json();
    assert_eq!(shown["data"]["routes"], serde_json::json!(["/embeddings"]), "what it may do, a key may ask");
    let settings = KeySettings { expires_at: Some(Timestamp(1)), ..KeySettings::default() };
    assert!(world.app.db.set_key_settings(&id, "old", None, settings).await.unwrap());
    let ended = until("an end holds within a second (4 x)", WITHIN_A_SECOND, async || {
        Some(world.get("/v1/key", &key).await).filter(|answer| answer.status == 401)
    });
    assert_eq!(ended.await.code(), "expired_api_key");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_a_spend_limit_gets_402_with_figures_and_the_key_shows_them() {
    let world = world().await;
    let (key, id) = payer(&world).await;
    let limits = Limits {
        spend_per_day: Some(MicroCredits(3)),
        spend_per_month: Some(MicroCredits(9_000_000)),
        requests_per_minute: Some(600),
        tokens_per_minute: Some(0),
        concurrent: Some(7),
        ..Limits::default()
    };
    set(&world, &id, limits).await;
    let settings = KeySettings { strict: true, force_usage: true, ..KeySettings::default() };
    assert!(
        world.app.db.set_key_settings(&id, "limited", Some(MicroCredits(5_000_000)), settings).await.unwrap()
    );
    let answer = chat(&world, &key, CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (402, "budget_exceeded"), "{}", answer.body);
    let error = &answer.json()["error"];
    assert_eq!((error["available"].as_str(), error["limit"].as_str()), (Some("0.000003"), Some("key_day")));
    assert!(error["required"].as_str().is_some_and(|amount| amount > "0.000003"));
    assert_eq!(error["affordable_max_tokens"], 0);
    let strict = chat(&world, &key, r#"{"model":"cxm-tiny","messages":[],"guided_json":{}}"#).await;
    assert_eq!((strict.status, strict.code().as_str()), (400, "unsupported_parameter"));
    let data = world.get("/v1/key", &key).await.json()["data"].clone();
    assert_eq!(data["label"], "limited");
    assert_eq!((&data["limit"], &data["limit_remaining"]), (&"5.000000".into(), &"5.000000".into()));
    assert_eq!(data["day"]["limit_remaining"], "0.000003");
    assert_eq!(data["month"]["limit"], "9.000000");
    assert_eq!(data["rate_limit"], serde_json::json!({"requests": 600, "interval": "1m"}));
    assert_eq!((&data["concurrent"], &data["strict"]), (&7.into(), &true.into()));
    assert!(data["tokens_per_minute"].is_null(), "0 lifts the default");
    assert_eq!(world.app.db.running_requests().await.unwrap(), 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_guesses_keys_is_held_off_and_a_known_key_is_not() {
    let world = World::with(|config| config.limits.failed_keys_per_minute = 5).await;
    let (key, _) = payer(&world).await;
    assert_eq!(world.get("/v1/key", &key).await.status, 200);
    for _ in 0..5 {
        let guess = auth::mint(KeyKind::Api);
        assert_eq!(world.get("/v1/key", guess.text.expose()).await.status, 401);
    }
    for guess in [auth::mint(KeyKind::Api).text.expose().as_str(), "cxk_live_nonsense", "sk-other"] {
        let refused = world.get("/v1/key", guess).await;
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"), "{guess}");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(world.get("/v1/key", &key).await.status, 200, "a key that is in use goes on");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_origins_may_read_answers_when_there_is_a_list() {
    let world = World::with(|config| config.server.cors_origins = vec!["https://app.example".into()]).await;
    let origin = |origin: &'static str| [("origin", origin)];
    let good = world.call("GET", "/v1/models", &origin("https://app.example"), "").await;
    assert_eq!(good.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(
        good.header("access-control-expose-headers")
            .is_some_and(|names| names.contains("x-ratelimit-reset-tokens"))
    );
    assert_eq!(good.header("vary"), Some("origin"));
    assert_eq!(good.header("access-control-allow-credentials"), None);
    for other in ["https://app.example.evil", "http://app.example", "null"] {
        let bad = world.call("OPTIONS", "/v1/chat/completions", &origin(other), "").await;
        assert_eq!((bad.status, bad.header("access-control-allow-origin")), (200, None), "{other}");
    }
    let preflight = world.call("OPTIONS", "/v1/chat/completions", &origin("https://app.example"), "").await;
    assert!(
        preflight.header("access-control-allow-headers").is_some_and(|names| names.contains("traceparent"))
    );
    assert_eq!(good.header("server"), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_decoded_for_who_may_not_use_the_model_or_cannot_pay() {
    let world = world().await;
    let entries = world.app.catalogue.entries();
    let model = entries.iter().find(|entry| entry.kind == ServiceKind::Stt).unwrap().id.clone();
    let transcribe = async |key: &str| {
        // No decoder knows this file; who gets that far is told so.
        let form = format!(
            "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--B\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nnone\r\n--B--\r\n"
        );
        let request = format!(
            "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             content-type: multipart/form-data; boundary=B\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        world.raw(request.as_bytes()).await
    };
    let poor = world.key(&world.user("poor").await, KeyKind::Api).await;
    let refused = transcribe(&poor).await;
    assert_eq!((refused.status, refused.code().as_str()), (402, "insufficient_credits"), "{}", refused.body);
    let (key, id) = payer(&world).await;
    set(&world, &id, Limits { models: Some(vec!["other".into()]), ..Limits::default() }).await;
    let refused = transcribe(&key).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "model_not_permitted"), "{}", refused.body);
    let key = world.key(&world.user("payer").await, KeyKind::Api).await;
    let tried = transcribe(&key).await;
    assert_eq!(
        (tried.status, tried.json()["error"]["param"].as_str()),
        (400, Some("file")),
        "{}",
        tried.body
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_share_the_room_that_there_is() {
    const MIB: usize = 1024 * 1024;
    let world = World::with(|config| config.server.bodies_mib = 32).await;
    let (key, _) = payer(&world).await;
    let head = |length: usize| {
        format!(
            "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             content-type: multipart/form-data; boundary=B\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let large = [head(20 * MIB).into_bytes(), vec![b'x'; 20 * MIB]].concat();
    let alone = world.raw(&large).await;
    assert_eq!((alone.status, alone.code().as_str()), (400, "invalid_parameter"), "no form, but read");
    let mut first = TcpStream::connect(world.address).await.unwrap();
    first.write_all(head(26 * MIB).as_bytes()).await.unwrap();
    // Most of it: what the buffers of the connection keep back leaves no room for another one, either.
    first.write_all(&vec![b'x'; 25 * MIB]).await.unwrap();
    let second = world.raw(&large).await;
    assert_eq!((second.status, second.code().as_str()), (429, "queue_full"), "{}", second.body);
    assert!(second.header("retry-after").is_some());
    assert_eq!(chat(&world, &key, CHAT).await.status, 503, "small ones are not concerned");
    drop(first);
    let freed = until("room comes back (4 x)", WITHIN_A_SECOND, async || {
        Some(world.raw(&large).await).filter(|answer| answer.status == 400)
    });
    freed.await;
    world.stop().await;
}
