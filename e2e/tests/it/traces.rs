//! Traces over a real socket: what arrives at a collector, and that a collector which does not work is nobody's trouble.

use std::time::{Duration, Instant};

use cxmpute_e2e::client::{Client, Event, Reply};
use cxmpute_e2e::collector::{Collector, Manner, Span};
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::house::free_address;
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::stand_in::{self, Mood, StandIn};
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::{Account, CHAT_MODEL, EMBEDDINGS_MODEL, World};
use cxmpute_gateway::config::TracesConfig;
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

struct Scene {
    world: World,
    node: StandIn,
    rich: Account,
}

async fn scene(change: impl FnOnce(&mut TracesConfig)) -> Scene {
    let world = World::plan(Setting::clean()).traces(change).start().await.unwrap();
    let node = world.stand_in("node").await.unwrap();
    let rich = world.account("rich@example.org", MicroCredits(1_000_000_000)).await.unwrap();
    Scene { world, node, rich }
}

fn to(collector: &Collector) -> impl FnOnce(&mut TracesConfig) {
    let endpoint = collector.endpoint();
    move |traces| {
        traces.endpoint = endpoint;
        traces.every_ms = 20;
    }
}

fn chat(prompt: &str, stream: bool) -> Value {
    json!({"model": CHAT_MODEL, "max_tokens": 8, "stream": stream, "messages": [{"role": "user", "content": prompt}]})
}

fn id_of(reply: &Reply) -> String {
    reply.header("x-request-id").unwrap().to_owned()
}

fn names(spans: &[Span]) -> Vec<&str> {
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(found.next().is_none(), "two {name} in {spans:#?}");
    span
}

/// Sends a request with more headers than the suite's client has.
async fn with_headers(client: &Client, path: &str, headers: &str, body: &Value) -> Reply {
    let body = body.to_string();
    let key = client.key.as_deref().unwrap();
    let text = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.exchange(text.as_bytes()).await.unwrap()
}

async fn finish(world: World) {
    let mut verdict = Verdict::new("traces");
    world.finish(&mut verdict).await.unwrap();
    assert!(verdict.broken().is_empty(), "{:?}", verdict.broken());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_chat_is_one_tree() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let Scene { world, node, rich } = scene(to(&collector)).await;
    let reply = rich.client.call("POST", CHAT, Some(&chat("say 5", true))).await.unwrap();
    assert_eq!(reply.status, 200);
    let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
    assert_eq!(
        names(&spans),
        ["POST /chat/completions", "admission", "attempt", "first_token", "queue", "settle"]
    );
    let root = &spans[0];
    assert_eq!((root.kind, root.failed(), root.parent_span_id.as_str()), (2, false, ""));
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let answer: Value =
        serde_json::from_str(text.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    let prompt = world.money.prompt_tokens(&chat("say 5", true)).unwrap();
    let wanted = json!({
        "http.request.method": "POST",
        "http.route": "/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "cxmpute",
        "gen_ai.request.model": CHAT_MODEL,
        "gen_ai.response.model": CHAT_MODEL,
        "gen_ai.response.id": answer["id"],
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": world.money.count(&stand_in::text(5)).unwrap(),
        "cxmpute.request.id": id_of(&reply),
        "cxmpute.streaming": true,
        "cxmpute.attempts": 1,
        "cxmpute.outcome": "finished",
    });
    assert_eq!(json!(root.fields()), wanted);
    for name in ["admission", "queue", "attempt", "settle"] {
        assert_eq!(one(&spans, name).parent_span_id, root.span_id, "{name}");
    }
    let attempt = one(&spans, "attempt");
    assert_eq!(
        json!(attempt.fields()),
        json!({"cxmpute.attempt.number": 1, "cxmpute.provision.id": node.provision.as_str(), "cxmpute.outcome": "finished"})
    );
    assert_eq!(one(&spans, "first_token").parent_span_id, attempt.span_id);
    // Every phase lies within the request, and they follow one another.
    let (began, ended) = root.times();
    let times: Vec<_> =
        ["admission", "queue", "attempt", "settle"].map(|name| one(&spans, name).times()).into();
    assert!(times.iter().all(|(from, to)| began <= *from && *to <= ended), "{spans:#?}");
    assert!(times.windows(2).all(|two| two[0].1 <= two[1].0), "{spans:#?}");
    assert!(one(&spans, "first_token").times().1 <= attempt.times().1);

    let body = json!({"model": EMBEDDINGS_MODEL, "input": "a text"});
    let reply = rich.client.call("POST", "/v1/embeddings", Some(&body)).await.unwrap();
    let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
    assert_eq!(names(&spans), ["POST /embeddings", "admission", "attempt", "queue", "settle"]);
    assert_eq!(spans[0].get("gen_ai.operation.name"), "embeddings");
    assert_eq!(spans[0].get("gen_ai.usage.input_tokens"), reply.json()["usage"]["prompt_tokens"]);
    drop(node);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_says_why_and_nothing_that_was_sent() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let Scene { world, node, rich } = scene(to(&collector)).await;
    let stranger = Client::with_key(world.address, "cxk_live_canarykey");
    let reply = stranger.call("POST", CHAT, Some(&chat("say 5", false))).await.unwrap();
    let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
    assert_eq!(names(&spans), ["POST /chat/completions"]);
    let seen = (spans[0].get("http.response.status_code"), spans[0].get("error.type"), spans[0].failed());
    assert_eq!(
        seen,
        (json!(401), json!("invalid_api_key"), false),
        "what the client got wrong is no failure"
    );

    let poor = world.account("poor@example.org", MicroCredits(0)).await.unwrap();
    let reply = poor.client.call("POST", CHAT, Some(&chat("say 5", true))).await.unwrap();
    let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
    assert_eq!(names(&spans), ["POST /chat/completions", "admission"]);
    assert_eq!(spans[0].get("http.response.status_code"), 402);
    assert!(spans.iter().all(|span| span.get("error.type") == "insufficient_credits"), "{spans:#?}");

    for (method, path) in [("GET", "/v1/canarypath?key=canaryquery"), ("CANARYMETHOD", "/v1/models")] {
        let reply = rich.client.call(method, path, None).await.unwrap();
        let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].name, if method == "GET" { "GET" } else { "_OTHER" });
        assert_eq!(spans[0].get("http.route"), Value::Null);
    }
    let bodies = collector.bodies().concat();
    let text = String::from_utf8_lossy(&bodies).to_lowercase();
    assert!(
        !text.contains("canary") && !text.contains("127.0.0.1") && !text.contains("example.org"),
        "{text}"
    );
    // Probes are asked for every second and say nothing of requests.
    rich.client.call("GET", "/readyz", None).await.unwrap();
    let last = rich.client.call("GET", "/v1/models", None).await.unwrap();
    collector.trace_of(&id_of(&last)).await.unwrap();
    assert!(!collector.spans().unwrap().iter().any(|span| span.name.contains("readyz")));
    drop(node);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_request_has_a_span_for_each_attempt() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let Scene { world, node, rich } = scene(to(&collector)).await;
    let bad = world.stand_in("bad").await.unwrap();
    bad.set_mood(Mood::Failing);
    let mut retried = None;
    for _ in 0..40 {
        let reply = rich.client.call("POST", CHAT, Some(&chat("say 3", true))).await.unwrap();
        assert_eq!(reply.status, 200);
        if !bad.notes().is_empty() {
            retried = Some(id_of(&reply));
            break;
        }
    }
    let spans = collector.trace_of(&retried.expect("the failing node gets work")).await.unwrap();
    assert_eq!(
        names(&spans),
        [
            "POST /chat/completions",
            "admission",
            "attempt",
            "attempt",
            "first_token",
            "queue",
            "queue",
            "settle"
        ]
    );
    assert_eq!(spans[0].get("cxmpute.attempts"), 2);
    assert_eq!((spans[0].failed(), spans[0].get("error.type")), (false, Value::Null));
    let mut attempts: Vec<_> = spans.iter().filter(|span| span.name == "attempt").collect();
    attempts.sort_by_key(|span| span.times());
    let seen: Vec<_> = attempts
        .iter()
        .map(|span| (span.get("cxmpute.attempt.number"), span.get("cxmpute.provision.id"), span.failed()))
        .collect();
    assert_eq!(
        seen,
        [(json!(1), json!(bad.provision.as_str()), true), (json!(2), json!(node.provision.as_str()), false)]
    );
    assert_eq!(attempts[0].get("cxmpute.outcome"), "engine_failed");
    assert_eq!(attempts[0].get("error.type"), "engine_failed");
    assert_eq!(one(&spans, "first_token").parent_span_id, attempts[1].span_id);

    // Lost after content: 200 has left, and the span says what the status cannot.
    drop(node);
    bad.set_mood(Mood::Losing { after: 2 });
    let mut conversation = rich.client.open("POST", CHAT, Some(&chat("say 5", true))).await.unwrap();
    assert_eq!(conversation.contents(1).await.unwrap().len(), 1);
    bad.lose_now();
    let mut last = None;
    while let Some(event) = conversation.event().await.unwrap() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Data(value)) if value["error"]["code"] == "provider_lost"));
    let spans = collector.trace_of(conversation.header("x-request-id").unwrap()).await.unwrap();
    assert_eq!(spans[0].get("error.type"), "provider_lost");
    assert_eq!(spans[0].get("http.response.status_code"), 200);
    assert_eq!(spans[0].get("cxmpute.outcome"), "provider_lost");
    assert!(spans[0].failed());
    drop(bad);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_trace_is_continued_and_never_passed_on() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let Scene { world, node, rich } = scene(to(&collector)).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = |flags: &str| format!("traceparent: 00-{trace}-b7ad6b7169203331-{flags}\r\n");
    let body = chat("say 2", false);

    let silent = with_headers(&rich.client, CHAT, &parent("00"), &body).await;
    let reply = with_headers(&rich.client, CHAT, &(parent("01") + "tracestate: canary=1\r\n"), &body).await;
    let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
    assert!(spans.iter().all(|span| span.trace_id == trace));
    assert_eq!(spans[0].parent_span_id, "b7ad6b7169203331");
    for bad in ["traceparent: 00-canary-01\r\n".to_owned(), parent("01") + &parent("01")] {
        let reply = with_headers(&rich.client, CHAT, &bad, &body).await;
        assert_eq!(reply.status, 200);
        let spans = collector.trace_of(&id_of(&reply)).await.unwrap();
        assert!(spans.iter().all(|span| span.trace_id != trace), "{bad}");
        assert_eq!(spans[0].parent_span_id, "");
    }
    let seen = collector.spans().unwrap();
    assert!(
        !seen.iter().any(|span| span.get("cxmpute.request.id") == id_of(&silent)),
        "flag 00 asks for silence"
    );
    // The tunnel's head has no field for it, and the body is the closed schema.
    let notes = node.notes();
    assert_eq!(notes.len(), 4);
    assert!(notes.iter().all(|note| !note.asked.to_string().contains(trace)));
    drop(node);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_sent_when_the_gateway_stops() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let endpoint = collector.endpoint();
    let Scene { world, node, rich } = scene(|traces| {
        traces.endpoint = endpoint;
        traces.every_ms = 3_600_000;
    })
    .await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(id_of(&rich.client.call("POST", CHAT, Some(&chat("say 1", false))).await.unwrap()));
    }
    assert_eq!(collector.requests(), 0, "it is not time yet");
    drop(node);
    finish(world).await;
    let roots: Vec<_> =
        collector.spans().unwrap().iter().map(|span| span.get("cxmpute.request.id")).collect();
    assert!(ids.iter().all(|id| roots.contains(&json!(id))), "{ids:?} in {roots:?}");
}

/// A collector that is not there, and one that never answers: requests do not notice, nothing grows, what is lost is
/// counted, and the stop is not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_work_is_nobodys_trouble() {
    const REQUESTS: usize = 40;
    /// Far below the deadlines of the collector (30 s), far above what a request takes.
    const AT_ONCE: Duration = Duration::from_secs(5);
    /// Last batches get 3 s; four times that.
    const STOPS_WITHIN: Duration = Duration::from_secs(12);
    let _alone = alone().unwrap();
    let hanging = Collector::start(Manner::Hangs).await.unwrap();
    let refusing = Collector::start(Manner::Refuses(503)).await.unwrap();
    let wrong = Collector::start(Manner::Refuses(400)).await.unwrap();
    let nobody = format!("http://{}", free_address().unwrap());
    for (endpoint, reason) in [
        (hanging.endpoint(), "queue_full"),
        (nobody, "collector"),
        (refusing.endpoint(), "collector"),
        (wrong.endpoint(), "collector"),
    ] {
        let metrics = free_address().unwrap();
        let plan = World::plan(Setting::clean()).metrics(metrics).traces(|traces| {
            traces.endpoint.clone_from(&endpoint);
            traces.every_ms = 20;
            traces.timeout_ms = 30_000;
            traces.queue = 8;
        });
        let world = plan.start().await.unwrap();
        let node = world.stand_in("node").await.unwrap();
        let rich = world.account("rich@example.org", MicroCredits(1_000_000_000)).await.unwrap();
        let dropped = async |reason: &str| {
            let page = Client::anonymous(metrics).call("GET", "/metrics", None).await.unwrap();
            let name = format!("cxmpute_trace_spans_dropped_total{{reason=\"{reason}\"}} ");
            let page = String::from_utf8(page.body).unwrap();
            let line = page.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("no {name} in {page}")).parse::<u64>().unwrap()
        };
        let before = dropped(reason).await;
        let mut longest = Duration::ZERO;
        for _ in 0..REQUESTS {
            let began = Instant::now();
            let reply = rich.client.call("POST", CHAT, Some(&chat("say 2", true))).await.unwrap();
            assert_eq!(reply.status, 200);
            longest = longest.max(began.elapsed());
        }
        assert!(longest < AT_ONCE, "{endpoint}: a request took {longest:?}");
        until("the loss to be counted", Duration::from_secs(60), async || {
            Ok((dropped(reason).await > before).then_some(()))
        })
        .await
        .unwrap();
        drop(node);
        let began = Instant::now();
        finish(world).await;
        assert!(began.elapsed() < STOPS_WITHIN, "{endpoint}: the stop took {:?}", began.elapsed());
    }
    assert!(hanging.requests() > 0 && wrong.requests() > 0);
    assert!(refusing.requests() >= 3, "503 asks for another try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_unless_asked_for() {
    let _alone = alone().unwrap();
    let collector = Collector::start(Manner::Takes).await.unwrap();
    let endpoint = collector.endpoint();
    for change in [
        Box::new(|_: &mut TracesConfig| {}) as Box<dyn FnOnce(&mut TracesConfig)>,
        Box::new(move |traces: &mut TracesConfig| {
            traces.endpoint = endpoint;
            traces.ratio = 0.0;
            traces.every_ms = 20;
        }),
    ] {
        let Scene { world, node, rich } = scene(change).await;
        let reply = rich.client.call("POST", CHAT, Some(&chat("say 2", true))).await.unwrap();
        assert_eq!(reply.status, 200);
        drop(node);
        finish(world).await;
        assert_eq!(collector.requests(), 0);
    }
}
