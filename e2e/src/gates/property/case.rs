//! One case: who calls what with what. A case's number decides all of it.

use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::contract::Contract;
use crate::contract::generate::Source;
use crate::services::PNG;
use crate::stand_in::Identity;

/// Everybody who calls, and what they know.
#[derive(Debug)]
pub struct Cast {
    /// Paths and methods of the document.
    pub operations: Vec<(String, String)>,
    /// Those of them that do paid work.
    pub paid: Vec<(String, String)>,
    /// Ids and kinds of the models.
    pub models: Vec<(String, String)>,
    /// Has money, and the devices.
    pub user: Client,
    /// Another account with money.
    pub stranger: Client,
    /// Has next to nothing.
    pub poor: Client,
    /// The user's account, as the routes of the first seed name it.
    pub provider_id: String,
    /// A provider key of the user.
    pub provider_key: String,
    /// An enrolled node of the user.
    pub node: Identity,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The case in a few words.
    pub what: String,
    /// The status.
    pub status: u16,
    /// Whether the document says so.
    pub judged: Result<()>,
    /// A 5xx that the client's own conditions on nodes ask for.
    pub excused: bool,
    /// `X-Request-Id` of an answer that the user paid for.
    pub receipt: Option<String>,
}

/// How a request is treated before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Good,
    Spoilt,
    Broken,
    Elsewhere,
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Names conditions on nodes.
    choosy: bool,
}

/// Plays the case of this number.
///
/// # Errors
/// No answer came.
pub async fn play(number: u64, cast: &Cast, contract: &Contract) -> Result<Answer> {
    let mut source = Source::new(contract.document(), number);
    let treatment = match source.below(10) {
        0..=4 => Treatment::Good,
        5..=7 => Treatment::Spoilt,
        8 => Treatment::Broken,
        _ => Treatment::Elsewhere,
    };
    // Paid work has the largest schemas and the longest way, so it gets more than its share.
    let pool = if source.chance(30) { &cast.paid } else { &cast.operations };
    let (path, method) = source.one_of(pool).clone();
    let operation = &contract.document()["paths"][&path][&method];
    let access = operation["x-access"].as_str().unwrap_or_default();
    let mut request = compose(&mut source, cast, contract, &path, &method, operation, treatment);
    let caller = match source.below(10) {
        0 => None,
        1 => Some(&cast.stranger),
        2 => Some(&cast.poor),
        _ => Some(&cast.user),
    };
    if let Some(key) = caller.and_then(|client| client.key.as_ref()) {
        request.headers.push(("authorization".to_owned(), format!("Bearer {key}")));
    }
    if access == "node_signature" && source.chance(80) {
        sign(&mut request, cast);
    }
    let what = format!(
        "{treatment:?} {} {} {}",
        request.method,
        request.target,
        String::from_utf8_lossy(&request.body).chars().take(600).collect::<String>()
    );
    let (status, headers, body) = send(&cast.user, &request).await?;
    // A node's tunnel that opens is no answer with a body.
    let judged = contract.check(&request.method, &request.target, status, &headers, &body);
    let refused = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let excused = status == 503 && request.choosy && refused["error"]["code"] == "no_provider";
    let paid = status == 200 && operation["x-meter"].is_string() && request.method == "POST";
    let ours = caller.is_some_and(|client| client.key == cast.user.key);
    let receipt = headers.iter().find(|(name, _)| name == "x-request-id").map(|(_, value)| value.clone());
    Ok(Answer { what, status, judged, excused, receipt: receipt.filter(|_| paid && ours) })
}

fn compose(
    source: &mut Source,
    cast: &Cast,
    contract: &Contract,
    path: &str,
    method: &str,
    operation: &Value,
    treatment: Treatment,
) -> Request {
    let mut target = match contract.is_at_root(path) {
        true => String::new(),
        false => (*source.one_of(&["/v1", "/api/v1"])).to_owned(),
    };
    let mut query = Vec::new();
    let mut filled = path.to_owned();
    let mut headers = Vec::new();
    let good = treatment != Treatment::Elsewhere && source.chance(85);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        let value = match (name, good) {
            ("id", true) if path.contains("{id}") => source.one_of(&cast.models).0.clone(),
            ("provision_id", true) => cast.node.provision_id().to_string(),
            (_, true) => text_of(&source.good(&parameter["schema"])),
            (_, false) => source.text(),
        };
        match parameter["in"].as_str() {
            Some("path") => filled = filled.replace(&format!("{{{name}}}"), &encoded(&value, false)),
            Some("query") if source.chance(90) => query.push(format!("{name}={}", encoded(&value, true))),
            Some("header") if name.starts_with("X-") && source.chance(30) => {
                headers.push((name.to_lowercase(), printable(&value)));
            }
            _ => {}
        }
    }
    target.push_str(&filled);
    if !query.is_empty() {
        target.push_str(&format!("?{}", query.join("&")));
    }
    let mut method = method.to_uppercase();
    if treatment == Treatment::Elsewhere {
        match source.below(3) {
            0 => {
                method =
                    (*source.one_of(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])).to_owned()
            }
            1 => target.push_str(&format!("/{}", encoded(&source.text(), true))),
            _ => {}
        }
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let (mut body, mut choosy) = (Vec::new(), false);
    if !schema.is_null() {
        let mut value = source.good(schema);
        adapt(source, cast, path, &mut value);
        choosy = value.get("provider").is_some_and(|provider| !provider.is_null());
        if treatment == Treatment::Spoilt {
            for _ in 0..=source.below(2) {
                source.spoil(&mut value);
            }
        }
        let text = value.to_string();
        body = match treatment {
            Treatment::Broken => source.break_text(&text),
            _ => text.into_bytes(),
        };
        let kinds =
            ["application/json", "application/json; charset=utf-8", "text/plain", "application/x-ndjson"];
        let kind = if source.chance(95) { kinds[0] } else { *source.one_of(&kinds) };
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    Request { method, target, headers, body, choosy }
}

/// Puts what a schema cannot know into a body: models that exist, keys that work, prompts that the node plays.
fn adapt(source: &mut Source, cast: &Cast, path: &str, value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    let wanted = match path {
        "/embeddings" | "/rerank" => "embeddings",
        "/audio/speech" | "/tts" => "tts",
        "/scrape" => "scrape",
        _ if path.starts_with("/m/") => "vision",
        _ => "llm",
    };
    if fields.contains_key("model") && source.chance(92) {
        let fitting: Vec<&String> =
            cast.models.iter().filter(|(_, kind)| kind == wanted).map(|(id, _)| id).collect();
        if !fitting.is_empty() {
            let model = (*source.one_of(&fitting)).clone();
            fields.insert("model".to_owned(), json!(model));
        }
    }
    // Most good requests are plain ones; a field of every kind at once is seldom served by anybody.
    if fields.contains_key("model") && source.chance(60) {
        let plain = [
            "model",
            "messages",
            "prompt",
            "input",
            "stream",
            "max_tokens",
            "temperature",
            "seed",
            "stop",
            "user",
            "voice",
            "documents",
            "query",
            "urls",
            "imageBase64",
            "question",
            "target",
        ];
        fields.retain(|name, _| plain.contains(&name.as_str()));
        if fields.contains_key("messages") {
            fields.insert("messages".to_owned(), json!([{"role": "user", "content": "say 2"}]));
        }
        for (name, plain) in [("prompt", "say 2"), ("input", "a text")] {
            if fields.contains_key(name) {
                fields.insert(name.to_owned(), json!(plain));
            }
        }
    }
    if wanted == "tts" && source.chance(80) {
        fields.retain(|name, _| !["instructions", "stream_format", "speed"].contains(&name.as_str()));
        fields.insert("voice".to_owned(), json!("alloy"));
        if path == "/audio/speech" {
            fields.insert("response_format".to_owned(), json!(source.one_of(&["wav", "pcm"])));
        }
    }
    if wanted == "vision" && source.chance(80) {
        fields.retain(|name, _| !["imageUrl", "imageUint8"].contains(&name.as_str()));
        fields.insert("imageBase64".to_owned(), json!(PNG));
    }
    if fields.contains_key("providerAk") && source.chance(90) {
        fields.insert("providerAk".to_owned(), json!(cast.provider_key));
        if fields.contains_key("providerId") {
            fields.insert("providerId".to_owned(), json!(cast.provider_id));
        }
        let id = format!("device-{:04}", source.below(20));
        fields.insert("provisionId".to_owned(), json!(id));
    }
    if fields.contains_key("public_key") && source.chance(90) {
        fields.insert("public_key".to_owned(), json!(cast.node.public_key()));
    }
}

/// Signs as the user's node does.
fn sign(request: &mut Request, cast: &Cast) {
    let Ok(method) = Method::from_bytes(request.method.as_bytes()) else { return };
    let authority = cast.user.address.to_string();
    for (name, value) in cast.node.signer().sign(&method, &authority, &request.target, &request.body) {
        request.headers.push((name.to_string(), value.to_str().unwrap_or_default().to_owned()));
    }
}

async fn send(client: &Client, request: &Request) -> Result<(u16, Vec<(String, String)>, Vec<u8>)> {
    let Request { method, target, headers, body, .. } = request;
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", client.address)
            .into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    let mut conversation = client.send_bytes(&bytes).await?;
    conversation.read_head().await?;
    let bodiless = method == "HEAD" || conversation.status == 101;
    let body = if bodiless { Vec::new() } else { conversation.rest().await? };
    Ok((conversation.status, conversation.headers, body))
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// As it may stand in an address; nothing becomes a byte that is no text.
fn encoded(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes().take(9_000) {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) || (byte == b'/' && !slashes);
        match plain {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    if out.is_empty() { "%FF".to_owned() } else { out }
}

/// As it may stand in a header.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(2_000).collect()
}
