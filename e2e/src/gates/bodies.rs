//! U1: JSON that is no JSON, bodies that are none, and heads that two readers could read differently. Each is refused at
//! once with its status, nothing reaches a node, and the next good request works.

use std::time::{Duration, Instant};

use anyhow::Result;
use cxmpute_wire::MicroCredits;

use crate::client::{Client, Reply};
use crate::paths::Path;
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches untyped parsing.
pub const CAUGHT_BY: &str = "what is no acceptable JSON is refused with its status";

/// A refusal is asserted at four times its value.
const REFUSED_WITHIN: Duration = Duration::from_millis(4 * 50);

/// What the process may grow by beside a body, in bytes: pools and buffers of both ends of the connection.
const NOISE: u64 = 16 << 20;

/// Fields of a request in Anthropic's words.
const VERSIONED: &str = "content-type: application/json\r\nanthropic-version: 2023-06-01\r\n";

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("U1");
    let world = World::plan(setting).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("parser@example.org", MicroCredits(1_000_000_000)).await?;
    let mut spans = Vec::new();
    for _ in 0..setting.counts.pick(1, 20) {
        let served = node.notes().len();
        for (name, body, wanted) in bodies() {
            let request = post(&account.client, "content-type: application/json\r\n", &body);
            refuse(&world, name, &request, wanted, &mut spans, &mut verdict).await?;
        }
        let counted = post_to("/v1/messages/count_tokens", &account.client, VERSIONED, &turns());
        refuse(&world, "10,000 turns to join", &counted, 400, &mut spans, &mut verdict).await?;
        for (name, fields, wanted) in [
            ("text", "content-type: text/plain\r\n", 415),
            ("a form", "content-type: application/x-www-form-urlencoded\r\n", 415),
            ("gzip", "content-type: application/json\r\ncontent-encoding: gzip\r\n", 415),
        ] {
            let body = if name == "gzip" { bomb() } else { good_body("say 3", "").into_bytes() };
            refuse(&world, name, &post(&account.client, fields, &body), wanted, &mut spans, &mut verdict)
                .await?;
        }
        for (name, request) in heads(&account.client) {
            refuse(&world, name, &request, 400, &mut spans, &mut verdict).await?;
        }
        verdict.check(
            "nothing of it reaches a node",
            node.notes().len() == served,
            format!("{:?}", node.notes()),
        );
        let body = Path::ChatWhole.body("say 3", 8);
        let got = Path::ChatWhole.ask(&account.client, &body).await?;
        verdict.check("the next good request works", got.complete, format!("{got:?}"));
    }
    verdict.measured("refusal", REFUSED_WITHIN / 4, spans);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

async fn refuse(
    world: &World,
    name: &str,
    request: &[u8],
    wanted: u16,
    spans: &mut Vec<Duration>,
    verdict: &mut Verdict,
) -> Result<()> {
    verdict.count += 1;
    let (before, start) = (resident(), Instant::now());
    let reply = Client::anonymous(world.address).exchange(request).await;
    let (took, grown) = (start.elapsed(), resident().saturating_sub(before));
    let seen = reply.as_ref().map(|reply| (reply.status, reply.error_code()));
    verdict.check(
        CAUGHT_BY,
        reply.as_ref().is_ok_and(|reply| reply.status == wanted),
        format!("{name}: {seen:?}, wanted {wanted}"),
    );
    let enveloped = |reply: &Reply| !reply.error_code().is_empty() && reply.header("x-request-id").is_some();
    verdict.check(
        "every refusal has the envelope",
        reply.as_ref().is_ok_and(enveloped),
        format!("{name}: {reply:?}"),
    );
    // Sending a large body is the client's time.
    if request.len() < 1 << 20 {
        spans.push(took);
        verdict.check(
            "a refusal takes at most 50 ms (4 x)",
            took <= REFUSED_WITHIN,
            format!("{name}: {took:?}"),
        );
    }
    let most = 2 * request.len() as u64 + NOISE;
    verdict.check("memory grows by at most twice the body", grown <= most, format!("{name}: {grown} bytes"));
    verdict.equal("no hold is taken", &world.money.open_holds().await?, &0);
    Ok(())
}

fn good_body(prompt: &str, more: &str) -> String {
    format!(
        r#"{{"model":"{CHAT_MODEL}","max_tokens":8,"messages":[{{"role":"user","content":"{prompt}"}}]{more}}}"#
    )
}

/// Bodies, and the status of their refusal.
fn bodies() -> Vec<(&'static str, Vec<u8>, u16)> {
    let nested = |depth: usize| format!(",\"x\":{}{}", "[".repeat(depth), "]".repeat(depth));
    let with = |more: &str| good_body("say 3", more).into_bytes();
    let mut bodies = vec![
        ("depth 65", with(&nested(64)), 400),
        ("depth 128", with(&nested(127)), 400),
        ("depth 10^6", "[".repeat(1_000_000).into_bytes(), 400),
        ("1e400", with(",\"temperature\":1e400"), 400),
        ("1e400 in an unknown field", with(",\"x\":1e400"), 400),
        ("minus zero as a count", with(",\"n\":-0"), 400),
        ("2^64", with(",\"seed\":18446744073709551616"), 400),
        ("a duplicate key", with(",\"max_tokens\":9"), 400),
        ("a duplicate unknown key", with(",\"x\":1,\"x\":2"), 400),
        ("a duplicate key in escapes", with(",\"n\":1,\"\\u006e\":2"), 400),
        ("a lone surrogate", good_body("\\ud800", "").into_bytes(), 400),
        ("a raw NUL", good_body("a\u{0}b", "").into_bytes(), 400),
        ("trailing data", [with(""), b" {}".to_vec()].concat(), 400),
        ("NaN", with(",\"temperature\":NaN"), 400),
        ("Infinity", with(",\"temperature\":-Infinity"), 400),
        ("a comment", with("/* */"), 400),
        ("a trailing comma", with(","), 400),
        ("single quotes", b"{'model':'stage'}".to_vec(), 400),
        ("nothing", Vec::new(), 400),
        ("a list", b"[]".to_vec(), 400),
        ("a text", b"\"stage\"".to_vec(), 400),
        ("null", b"null".to_vec(), 400),
        ("a wrong type", with(",\"stop\":{\"a\":1}"), 400),
        ("a string of 20 MiB", good_body(&"a".repeat(20 << 20), "").into_bytes(), 413),
    ];
    bodies.push(("a byte order mark", [b"\xef\xbb\xbf".to_vec(), with("")].concat(), 400));
    bodies.push((
        "not UTF-8",
        with("").into_iter().map(|byte| if byte == b'y' { 0xff } else { byte }).collect(),
        400,
    ));
    let keys: Vec<String> = (0..100_000).map(|number| format!("\"k{}\":0", number % 99_999)).collect();
    bodies.push(("100,000 keys, one twice", format!("{{{}}}", keys.join(",")).into_bytes(), 400));
    bodies
}

/// The beginning of a member that promises far more than it has; nobody may unpack it.
fn bomb() -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    bytes.resize(10_000, 0);
    bytes
}

/// More turns of the user than a conversation has, each of which follows another one.
fn turns() -> Vec<u8> {
    let turns = vec![r#"{"role":"user","content":"x"}"#; 10_000].join(",");
    format!(r#"{{"model":"{CHAT_MODEL}","messages":[{turns}]}}"#).into_bytes()
}

fn post(client: &Client, fields: &str, body: &[u8]) -> Vec<u8> {
    post_to("/v1/chat/completions", client, fields, body)
}

fn post_to(path: &str, client: &Client, fields: &str, body: &[u8]) -> Vec<u8> {
    let key = client.key.clone().unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Heads that two readers could read differently, with a whole good request around them.
fn heads(client: &Client) -> Vec<(&'static str, Vec<u8>)> {
    let key = client.key.clone().unwrap_or_default();
    let body = good_body("say 3", "");
    let length = body.len();
    let request = |line: &str, fields: &str| {
        format!("{line}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n{fields}\r\n\r\n{body}").into_bytes()
    };
    let line = "POST /v1/chat/completions HTTP/1.1";
    let host = "host: x\r\n";
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    vec![
        ("both lengths", format!("{line}\r\nauthorization: Bearer {key}\r\n{host}content-type: application/json\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}").into_bytes()),
        ("two lengths", request(line, &format!("{host}content-length: {length}\r\ncontent-length: {length}"))),
        ("a length with a sign", request(line, &format!("{host}content-length: +{length}"))),
        ("a folded field", request(line, &format!("{host}x: a\r\n b\r\ncontent-length: {length}"))),
        ("a space before the colon", request(line, &format!("{host}content-length : {length}"))),
        ("NUL in a field", request(line, &format!("{host}x: a\0b\r\ncontent-length: {length}"))),
        ("a bare line feed", request(line, &format!("{host}x: a\ncontent-length: {length}"))),
        ("only bare line feeds", "GET /v1/models HTTP/1.1\nhost: x\n\n".to_string().into_bytes()),
        ("no host", request(line, &format!("content-length: {length}"))),
        ("two hosts", request(line, &format!("{host}host: y\r\ncontent-length: {length}"))),
        ("another host in the address", request("POST http://y/v1/chat/completions HTTP/1.1", &format!("{host}content-length: {length}"))),
        ("an unknown encoding", request(line, &format!("{host}transfer-encoding: identity"))),
        ("no HTTP", b"HELO example.org\r\n\r\n".to_vec()),
    ]
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}
