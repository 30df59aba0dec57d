//! X1: unique canary texts as prompt, output, enrolment code, key, e-mail and tunnel secret; none of them may appear in
//! logs at trace level, metrics, traces, error bodies, the database and its log, or an argument vector.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::client::Client;
use crate::collector::{Collector, Manner};
use crate::ground::until;
use crate::house::{CHAT_MODEL, House};
use crate::process;
use crate::settings::Setting;
use crate::upstream::Upstream;
use crate::verdict::Verdict;

/// The assertion that catches a body in a log field.
pub const CAUGHT_BY: &str = "no secret is in a log";

/// The assertion that catches a body in a trace.
pub const CAUGHT_IN_TRACES_BY: &str = "no secret is in a trace";

/// Canaries: texts that occur nowhere else in the world.
const PROMPT: &str = "canaryprompt7f3a91c2";
const OUTPUT: &str = "canaryoutput5d20be48";
const EMAIL: &str = "canaryemail9c41d7e0@example.org";
/// Stands in headers, in a path and in a query: labels are kept with a request on purpose, but not in its trace.
const LABEL: &str = "canarylabel3e6b02fd";
/// Where the clients of this gate call from.
const ADDRESS: &str = "127.0.0.1";
/// Requests for chat that [`traffic`] and [`labelled`] send.
const CHATS: usize = 8;

/// The gate.
///
/// # Errors
/// A program is missing or does not start.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("X1");
    let folder = tempfile::tempdir()?;
    let mut house = House::plan(folder.path(), setting.bad)?;
    let collector = Collector::start(Manner::Takes).await?;
    house.set("CXMPUTE_LOG_LEVEL", "trace");
    house.set("CXMPUTE_TRACES_ENDPOINT", &collector.endpoint());
    house.set("CXMPUTE_TRACES_EVERY_MS", "50");
    house.start_gateway().await?;
    let user = house.create_user(EMAIL)?;
    house.grant_credits(&user, 1_000_000_000)?;
    let key = house.create_key(&user)?;
    let grant = house.enrol_grant(&house.create_user("canary-owner@example.org")?)?;

    // The node serves an engine of its owner, which answers with the output canary.
    let upstream = Upstream::start(OUTPUT).await?;
    let configuration = folder.path().join("node.toml");
    std::fs::write(&configuration, upstream.node_configuration(CHAT_MODEL))?;
    let configuration = configuration.to_string_lossy().into_owned();
    let extra = [("CXMPUTE_CONFIG_PATH", configuration.as_str()), ("CXMPUTE_LOG_LEVEL", "trace")];
    let node = house.start_node("node", Some(&grant), house.address, &extra)?;
    house.routable(CHAT_MODEL, 1).await.with_context(|| node.logged())?;

    let answers = traffic(&house, &key, &mut verdict).await?;
    labelled(&house, &key, &mut verdict).await?;
    let traced = until("the traces", Duration::from_secs(30), async || {
        let chats =
            collector.spans()?.iter().filter(|span| span.get("http.route") == "/chat/completions").count();
        Ok((chats >= CHATS).then(|| collector.bodies().concat()))
    })
    .await?;
    let secrets = canaries(&key, &grant, &folder.path().join("node"))?;

    let gateway = house.gateway()?.pid();
    let arguments: Vec<String> = [gateway, node.pid()]
        .into_iter()
        .chain(process::children(node.pid()))
        .map(process::arguments)
        .collect();
    let metrics = Client::anonymous(house.setting("CXMPUTE_METRICS_BIND").context("no metrics")?.parse()?)
        .call("GET", "/metrics", None)
        .await?;
    verdict.check("metrics were read", metrics.status == 200 && metrics.body.len() > 200, metrics.status);
    let logs = files(folder.path(), |name| {
        Path::new(name).extension().is_some_and(|kind| kind == "log" || kind == "out")
    })?;
    verdict.check(
        "logs were written at trace level",
        logs.values().any(|log| log.windows(5).any(|word| word == b"TRACE")),
        format!("{:?}", logs.keys()),
    );
    let database = files(&folder.path().join("gateway"), |name| name.contains(".db"))?;
    verdict.check(
        "the database was read",
        database.values().map(Vec::len).sum::<usize>() > 4096,
        format!("{:?}", database.keys()),
    );
    for (what, text) in [("label", LABEL), ("client address", ADDRESS)] {
        verdict.check(CAUGHT_IN_TRACES_BY, !holds(&traced, text), what);
    }
    for (what, secret) in &secrets {
        verdict.count += 1;
        let told = |place: &BTreeMap<String, Vec<u8>>| {
            place.iter().find(|(_, text)| holds(text, secret)).map(|(name, _)| name.clone())
        };
        verdict.check(CAUGHT_BY, told(&logs).is_none(), format!("{what} in {:?}", told(&logs)));
        verdict.check(CAUGHT_IN_TRACES_BY, !holds(&traced, secret), what);
        verdict.check("no secret is in a metric", !holds(&metrics.body, secret), what);
        verdict.check("no secret is in an error body", answers.iter().all(|body| !holds(body, secret)), what);
        verdict.check(
            "no secret is in an argument vector",
            arguments.iter().all(|line| !line.contains(secret.as_str())),
            what,
        );
        // An account's address is in its row on purpose.
        let stored = if *what == "e-mail" { None } else { told(&database) };
        verdict.check(
            "no secret is in the database or its log",
            stored.is_none(),
            format!("{what} in {stored:?}"),
        );
    }
    Ok(verdict)
}

/// Good and bad requests with the canaries in every place; gives the bodies of the errors.
async fn traffic(house: &House, key: &str, verdict: &mut Verdict) -> Result<Vec<Vec<u8>>> {
    let client = Client::with_key(house.address, key);
    let chat = |messages: serde_json::Value, stream: bool| json!({"model": CHAT_MODEL, "max_tokens": 8, "stream": stream, "messages": messages});
    let prompt = json!([{"role": "user", "content": format!("{PROMPT} and nothing else")}]);
    for stream in [false, true] {
        let reply = client.call("POST", "/v1/chat/completions", Some(&chat(prompt.clone(), stream))).await?;
        verdict.check(
            "the output canary reaches the client",
            reply.status == 200 && holds(&reply.body, OUTPUT),
            format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
        );
    }
    let long = PROMPT.repeat(200_000);
    let bad = [
        json!({"model": "no-such-model", "messages": prompt}),
        json!({"model": CHAT_MODEL, "messages": prompt, "max_tokens": -1}),
        json!({"model": CHAT_MODEL, "messages": prompt, "temperature": PROMPT}),
        json!({"model": CHAT_MODEL, "messages": [{"role": PROMPT, "content": "x"}]}),
        json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": long}]}),
    ];
    let mut bodies = Vec::new();
    for body in &bad {
        let reply = client.call("POST", "/v1/chat/completions", Some(body)).await?;
        verdict.check(
            "a bad request is refused",
            (400..500).contains(&reply.status),
            format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
        );
        bodies.push(reply.body);
    }
    let mut typo = key.to_owned();
    typo.pop();
    let reply = Client::with_key(house.address, &typo).call("GET", "/v1/credits", None).await?;
    verdict.check("a mistyped key is refused", reply.status == 401, reply.status);
    bodies.push(reply.body);
    Ok(bodies)
}

/// Requests that name things in other places than the body.
async fn labelled(house: &House, key: &str, verdict: &mut Verdict) -> Result<()> {
    let client = Client::with_key(house.address, key);
    let chat = json!({"model": CHAT_MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]});
    let body = chat.to_string();
    for (line, wanted) in
        [("POST /v1/chat/completions".to_owned(), 200), (format!("POST /v1/{LABEL}?name={LABEL}"), 404)]
    {
        let text = format!(
            "{line} HTTP/1.1\r\nhost: {LABEL}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             x-title: {LABEL}\r\nhttp-referer: https://{LABEL}.example\r\nuser-agent: {LABEL}\r\n\
             tracestate: a={LABEL}\r\nbaggage: a={LABEL}\r\nx-request-id: {LABEL}\r\nx-user-id: {LABEL}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = client.exchange(text.as_bytes()).await?;
        let seen = format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body));
        verdict.check("labels are no error", reply.status == wanted, seen);
    }
    Ok(())
}

/// What must not be seen anywhere, by name.
fn canaries(key: &str, grant: &str, node: &Path) -> Result<Vec<(&'static str, String)>> {
    let secret_part = key.rsplit('_').next().unwrap_or(key).to_owned();
    let mut all = vec![
        ("prompt", PROMPT.to_owned()),
        ("output", OUTPUT.to_owned()),
        ("e-mail", EMAIL.to_owned()),
        ("API key", secret_part),
        ("enrolment code", grant.to_owned()),
    ];
    let identity = std::fs::read_to_string(node.join("node.key")).context("the node's private key")?;
    all.push(("tunnel secret", identity.trim().to_owned()));
    Ok(all)
}

fn files(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path, wanted)?);
        } else if path.is_file() && wanted(&name) {
            found.insert(path.to_string_lossy().into_owned(), std::fs::read(&path)?);
        }
    }
    Ok(found)
}

fn holds(text: &[u8], secret: &str) -> bool {
    text.windows(secret.len()).any(|window| window == secret.as_bytes())
}
