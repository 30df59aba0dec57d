//! The API as strangers and users see it.

use std::time::{Duration, Instant};

use cxmpute_gateway::router::{Access, PREFIXES, ROUTES};
use cxmpute_store::KeyKind;
use cxmpute_wire::MicroCredits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{WITHIN_A_SECOND, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_under_both_prefixes_and_refuses_strangers_as_the_table_says() {
    let world = World::start().await;
    for route in ROUTES {
        let path = route.path.replace("{*id}", "cxm-tiny").replace("{provision_id}", "pv_aaaaaaaaaaaaaaaa");
        let prefixes: &[&str] = if route.prefixed { &PREFIXES } else { &[""] };
        for prefix in prefixes {
            let path = format!("{prefix}{path}");
            let answer = world.call(route.method.as_str(), &path, &[], "").await;
            assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{path}");
            let good = match route.access {
                Access::Public => answer.status == 200,
                Access::Key => answer.status == 401 && answer.code() == "invalid_api_key",
                // No signature, no upgrade, or no body: refused before anything is looked up.
                Access::Node | Access::ProviderKey => (400..=426).contains(&answer.status),
            };
            assert!(good, "{} {path}: {} {}", route.method, answer.status, answer.body);
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_and_methods_get_the_envelope() {
    let world = World::start().await;
    let missing = world.get("/v1/nothing", "").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "not_found"));
    assert_eq!(missing.json()["request_id"].as_str(), missing.header("x-request-id"));
    let wrong = world.call("DELETE", "/v1/models", &[], "").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (405, "method_not_allowed"));
    assert!(wrong.header("allow").is_some_and(|allow| allow.contains("GET")));
    let preflight = world.call("OPTIONS", "/v1/chat/completions", &[("origin", "https://x")], "").await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("*")));
    assert_eq!(preflight.header("access-control-allow-credentials"), None);
    let node = world.call("OPTIONS", "/v1/tunnel", &[("origin", "https://x")], "").await;
    assert_eq!(node.status, 200, "an address without a row for OPTIONS says nothing about its methods");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_requests_are_refused_and_the_connection_closed() {
    let world = World::start().await;
    let user = world.user("a").await;
    let key = world.key(&user, KeyKind::Api).await;
    let headers = [("authorization", &*format!("Bearer {key}"))];
    let words = "a".repeat(4 * 1024 * 1024);
    let talk = format!(r#"{{"model":"cxm-tiny","messages":[{{"role":"user","content":"{words}"}}]}}"#);
    let any = format!(r#"{{"model":"{words}"}}"#);
    // Pictures of a conversation may be larger than this, its words may not; nothing is larger than what holds both.
    let most = format!(r#"{{"model":"{}"}}"#, words.repeat(5));
    for (path, body) in [
        ("/v1/chat/completions", &talk),
        ("/v1/completions", &any),
        ("/v1/embeddings", &any),
        ("/v1/chat/completions", &most),
    ] {
        let large = world.call("POST", path, &headers, body).await;
        assert_eq!((large.status, large.code().as_str()), (413, "body_too_large"), "{path}");
    }
    let long = world.get(&format!("/v1/{}", "a".repeat(8192)), "").await;
    assert_eq!((long.status, long.code().as_str()), (414, "uri_too_long"));
    let wide = world.call("GET", "/v1/models", &[("x-a", &"a".repeat(33_000))], "").await;
    assert_eq!((wide.status, wide.code().as_str()), (431, "head_too_large"));
    let many: Vec<(String, String)> = (0..105).map(|at| (format!("x-{at}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let many = world.call("GET", "/v1/models", &many, "").await;
    assert_eq!((many.status, many.code().as_str()), (431, "head_too_large"));
    // Without `connection: close` of ours, the gateway closes by itself.
    let open = format!("GET /v1/{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(8192));
    assert_eq!(world.raw(open.as_bytes()).await.header("connection"), Some("close"));
    let broken = world.raw(b"GARBAGE\r\n\r\n").await;
    assert_eq!(broken.status, 400);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_work_until_they_are_revoked_or_the_account_is_suspended() {
    let world = World::start().await;
    let user = world.user("a").await;
    let key = world.key(&user, KeyKind::Api).await;
    let provider = world.key(&user, KeyKind::Provider).await;
    world
        .app
        .db
        .grant_credits(&user, MicroCredits(1_500_000), "test", "test", "test", world.app.clock.now())
        .await
        .unwrap();
    let credits = world.get("/api/v1/credits", &key).await.json();
    assert_eq!(credits["data"]["balance"], "1.500000");
    assert_eq!(credits["data"]["balance_micro"], 1_500_000);
    assert_eq!(world.get("/v1/key", &key).await.json()["data"]["usage"], "0.000000");
    let foreign = world.get("/v1/generation?id=req_00000000000000000000000000000000", &key).await;
    assert_eq!((foreign.status, foreign.code().as_str()), (404, "not_found"));
    assert_eq!(world.get("/v1/generation", &key).await.status, 400);
    assert_eq!(world.get("/v1/credits", &provider).await.status, 401, "a provider key opens no user route");
    let leaked = world.get(&format!("/v1/credits?key={key}"), &key).await;
    assert_eq!((leaked.status, leaked.code().as_str()), (401, "invalid_api_key"));

    let now = world.app.clock.now();
    world.app.db.suspend_user(&user, "test", now).await.unwrap();
    let suspended = until("a suspension works within a second (4 x)", WITHIN_A_SECOND, async || {
        Some(world.get("/v1/key", &key).await).filter(|answer| answer.status != 200)
    });
    let suspended = suspended.await;
    assert_eq!((suspended.status, suspended.code().as_str()), (403, "account_suspended"));
    world.app.db.unsuspend_user(&user).await.unwrap();
    let (_, id) = cxmpute_gateway::auth::parse(&key).unwrap();
    world.app.db.revoke_key(&id, None, now).await.unwrap();
    let revoked = until("a revocation works within a second (4 x)", WITHIN_A_SECOND, async || {
        Some(world.get("/v1/key", &key).await.status).filter(|status| *status == 401)
    });
    revoked.await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_never_a_401() {
    let world = World::start().await;
    let user = world.user("a").await;
    let key = world.key(&user, KeyKind::Api).await;
    world.app.db.close().await;
    let answer = world.get("/v1/credits", &key).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(world.get("/readyz", "").await.status, 503);
    assert_eq!(world.get("/healthz", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_bodies_are_cut_and_crowds_refused() {
    let world = World::with(|config| {
        config.server.head_ms = 300;
        config.server.keep_alive_ms = 600;
        config.server.body_grace_ms = 300;
        config.server.connections_per_address = 3;
    })
    .await;
    let user = world.user("a").await;
    let key = world.key(&user, KeyKind::Api).await;
    let cut_after = |start: &'static [u8]| async move {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(start).await.unwrap();
        let since = Instant::now();
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        // A reset is as good an end as a close.
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("the gateway closes");
        since.elapsed()
    };
    assert!(cut_after(b"").await < Duration::from_millis(1200));
    assert!(cut_after(b"GET /v1/mod").await < Duration::from_millis(1200));
    let idle = cut_after(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(idle > Duration::from_millis(500) && idle < Duration::from_millis(2400), "{idle:?}");
    let slow = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    let slow = world.raw(slow.as_bytes()).await;
    assert_eq!((slow.status, slow.code().as_str()), (408, "request_timeout"));

    let mut crowd = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        crowd.push(stream);
    }
    let mut refused = TcpStream::connect(world.address).await.unwrap();
    let _ = refused.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = refused.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "the fourth connection gets nothing");
    drop(crowd);
    world.stop().await;
}
