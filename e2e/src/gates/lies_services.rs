//! GR7 for speech, recordings, pictures and pages: a node that answers with something else than was asked for. The answer is
//! refused, nothing of it reaches the client, nobody pays, and it counts against the node until it gets no more work.

use std::io::Cursor;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cxmpute_wire::MicroCredits;
use cxmpute_wire::wave::Wave;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use super::rogue_answers::{ALLOWED, headers};
use crate::client::{Client, Payload, Reply};
use crate::paths::{OWN_WORD, settled};
use crate::services::{BOMB, DRAWN, DRAWN_SIZE, PICTURE, Service, TEXT, URLS};
use crate::settings::Setting;
use crate::stand_in::{Mood, SEEN, Script, StandIn, Step, drawing, drawn, seen, speech};
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches answers that nobody looks at.
pub const CAUGHT_BY: &str = "an answer that is none is refused";

/// The assertion that catches a gateway that forgives.
pub const COUNTED: &str = "lies count against the node";

/// Faults in a row after which a node gets no more work.
const FAULTS: usize = 5;

/// Good answers between two refusals, so that the breaker stays closed.
const GOOD: usize = 4;

/// Good requests around the lies, so that there is a budget for retries.
const WARM_UP: usize = 40;

/// A mark that a terminal obeys.
const MARK: &str = "\u{1b}[2J";

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("GR7-services");
    for _ in 0..setting.counts.pick(1, 10) {
        alone(setting, &mut verdict).await?;
        beside_an_honest_one(setting, &mut verdict).await?;
    }
    Ok(verdict)
}

/// The only node lies: each answer is refused with its documented code, and is free.
async fn alone(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).services().queue(Duration::from_millis(100)).start().await?;
    let node = world.stand_in("liar").await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
    let mut stage = Stage { world: &world, node: &node, account: &account, verdict: &mut *verdict };
    for service in Service::ALL {
        for (name, steps) in lies(service) {
            let what = format!("{} {name}", service.name());
            stage.node.learn(service.script(), Script { headers: headers(), steps });
            stage.refused(service, &what, true).await.context(what)?;
        }
        for (name, mood) in [
            ("another request's name", Mood::Impersonating),
            ("an older tunnel", Mood::Outdated),
            ("an engine that fails", Mood::Failing),
            ("an answer that breaks off", Mood::Resetting { after: 0 }),
            ("a refusal", Mood::Rejecting),
        ] {
            let what = format!("{} {name}", service.name());
            stage.node.set_mood(mood);
            stage.refused(service, &what, false).await.context(what)?;
        }
        for (name, answer, wanted) in additions(service) {
            let what = format!("{} {name}", service.name());
            stage.node.learn(service.script(), Script { headers: headers(), steps: vec![Step::Raw(answer)] });
            stage.cleaned(service, &what, &wanted).await.context(what)?;
        }
    }
    world.finish(verdict).await
}

struct Stage<'a> {
    world: &'a World,
    node: &'a StandIn,
    account: &'a Account,
    verdict: &'a mut Verdict,
}

impl Stage<'_> {
    /// What the node says is refused; afterwards it does its work well for a while.
    async fn refused(&mut self, service: Service, what: &str, protocol: bool) -> Result<()> {
        self.verdict.count += 1;
        let (reply, request_id, row) = self.ask(service).await?;
        self.verdict.check(
            CAUGHT_BY,
            reply.status == 502 && reply.error_code() == "provider_error",
            format!("{what}: {} {}", reply.status, short(&reply)),
        );
        self.nothing_leaves(&reply, what);
        self.verdict.check(
            "nobody pays for an answer that is none",
            self.world.cost_of(&row)? == 0 && self.world.money.reward_of(&request_id).await? == 0,
            format!("{what}: {row}"),
        );
        self.verdict.check(
            "the attempt is recorded with its fault",
            !protocol || row["attempts"][0]["code"] == "provider_protocol_error",
            format!("{what}: {row}"),
        );
        self.node.forget(service.script());
        self.node.set_mood(Mood::Willing);
        for _ in 0..GOOD {
            let reply = self.account.client.post(service.url(), &service.request()).await?;
            let good = service.is_good(&reply);
            let seen = format!("after {what}: {} {}", reply.status, short(&reply));
            self.verdict.check("the next good request works", good, seen);
        }
        Ok(())
    }

    /// An answer with additions is delivered without them.
    async fn cleaned(&mut self, service: Service, what: &str, wanted: &Value) -> Result<()> {
        self.verdict.count += 1;
        let (reply, _, row) = self.ask(service).await?;
        self.nothing_leaves(&reply, what);
        let mut body = reply.json();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("usage");
        }
        let right = if matches!(service, Service::Speech | Service::Drawing) {
            service.is_good(&reply)
        } else {
            body == *wanted
        };
        self.verdict.check(
            "an answer with additions is delivered without them",
            reply.status == 200 && right,
            format!("{what}: {} {} wanted {wanted}", reply.status, short(&reply)),
        );
        self.verdict.check(
            "an answer with additions is paid",
            self.world.cost_of(&row)? == service.price(&self.world.money)?,
            format!("{what}: {row}"),
        );
        self.node.forget(service.script());
        Ok(())
    }

    async fn ask(&self, service: Service) -> Result<(Reply, String, Value)> {
        // Whatever comes is judged here.
        let client = Client { lenient: true, ..self.account.client.clone() };
        let reply = client.post(service.url(), &service.request()).await?;
        let request_id = reply.header("x-request-id").context("no request id")?.to_owned();
        let row = settled(&self.account.client, &request_id, Duration::from_secs(10)).await?;
        Ok((reply, request_id, row))
    }

    fn nothing_leaves(&mut self, reply: &Reply, what: &str) {
        let foreign = |(name, value): &&(String, String)| {
            !(ALLOWED.contains(&name.as_str()) || name.starts_with("x-ratelimit-"))
                || value.contains(OWN_WORD)
        };
        let stray: Vec<_> = reply.headers.iter().filter(foreign).collect();
        self.verdict.check(
            "only headers of the allowlist leave",
            stray.is_empty(),
            format!("{what}: {stray:?}"),
        );
        let text = String::from_utf8_lossy(&reply.body);
        // Any byte may be a sample.
        let is_sound = reply.header("content-type").is_some_and(|kind| kind.starts_with("audio/"));
        let marked = text.contains("\\u001b") || text.contains('\u{1b}');
        let own = text.contains(OWN_WORD) || (marked && !is_sound);
        self.verdict.check(
            "nothing of the node's own bytes leaves",
            !own,
            format!("{what}: {}", short(reply)),
        );
    }
}

fn short(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).chars().take(400).collect()
}

/// Two nodes, one lies: clients get the honest answer, and after a few lies the liar is not asked any more.
async fn beside_an_honest_one(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    for service in Service::ALL {
        let world = World::plan(setting).services().start().await?;
        let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
        let liar = world.stand_in("liar").await?;
        let _honest = world.stand_in("honest").await?;
        // Named first, the liar is asked as long as it is in the running at all.
        let request: Payload = service.request_of(&liar.slug());
        for _ in 0..WARM_UP {
            account.client.post(service.url(), &request).await?;
        }
        let (_, steps) = lies(service).swap_remove(0);
        liar.learn(service.script(), Script::of(steps));
        let before = liar.notes().len();
        for _ in 0..WARM_UP {
            verdict.count += 1;
            let reply = account.client.post(service.url(), &request).await?;
            let good = service.is_good(&reply);
            verdict.check(
                "the honest answer is what arrives",
                good,
                format!("{}: {} {}", service.name(), reply.status, short(&reply)),
            );
        }
        let asked = liar.notes().len() - before;
        verdict.check(
            COUNTED,
            (1..=FAULTS).contains(&asked),
            format!("{}: asked {asked} times, at most {FAULTS}", service.name()),
        );
        world.finish(verdict).await?;
    }
    Ok(())
}

/// What a node sends that must be refused.
fn lies(service: Service) -> Vec<(&'static str, Vec<Step>)> {
    let raw = |bytes: Vec<u8>| vec![Step::Raw(bytes.into())];
    let of = |value: Value| raw(value.to_string().into_bytes());
    let mut lies = match service {
        Service::Speech => speeches(),
        Service::Transcript => transcripts().into_iter().map(|(name, value)| (name, of(value))).collect(),
        Service::Picture => readings().into_iter().map(|(name, value)| (name, of(value))).collect(),
        Service::Look => looks().into_iter().map(|(name, text)| (name, raw(text.into_bytes()))).collect(),
        Service::Drawing => drawings().into_iter().map(|(name, value)| (name, of(value))).collect(),
        Service::Pages => all_pages().into_iter().map(|(name, value)| (name, of(value))).collect(),
    };
    lies.extend([
        ("nothing", Vec::new()),
        ("a list", of(json!([OWN_WORD]))),
        ("another object", of(json!({"words": OWN_WORD}))),
        ("a page", raw(format!("<script>{OWN_WORD}</script>").into_bytes())),
        // Far above the bound of every kind of answer here.
        ("no end", vec![Step::Repeat(Bytes::from(vec![b' '; 1 << 20]), 64)]),
    ]);
    lies
}

fn speeches() -> Vec<(&'static str, Vec<Step>)> {
    let raw = |bytes: Vec<u8>| vec![Step::Raw(bytes.into())];
    let good = speech(TEXT);
    let wave = |rate: u32, samples: &[u8]| Wave { rate, channels: 1, samples }.pack();
    let mut eight_bits = good.clone();
    eight_bits[34] = 8;
    let minute = vec![1; 8_000 * 2 * 60];
    vec![
        ("no waveform", raw(format!("ID3 {OWN_WORD}").into_bytes())),
        ("silence", raw(wave(16_000, &vec![0; 32_000]))),
        ("no samples", raw(wave(16_000, &[]))),
        ("an hour", vec![Step::Raw(wave(16_000, &[]).into()), Step::Repeat(vec![1; 32_000].into(), 3_600)]),
        ("a minute in few bytes", raw(wave(8_000, &minute))),
        ("JSON", raw(json!({"audio": OWN_WORD}).to_string().into_bytes())),
        ("a header that is cut off", raw(good[..30].to_vec())),
        ("samples of another size", raw(eight_bits)),
    ]
}

fn transcripts() -> Vec<(&'static str, Value)> {
    let words = |word: &str, start: f64, end: f64| json!({"text": OWN_WORD, "words": [{"word": word, "start": start, "end": end}]});
    let piece = |text: &str, start: f64, end: f64| json!({"text": OWN_WORD, "segments": [{"start": start, "end": end, "text": text}]});
    vec![
        ("a word beyond the end", words("one", 0.0, 9.0)),
        ("a piece beyond the end", piece("one", 8.0, 9.0)),
        ("times that go back", piece("one", 1.0, 0.5)),
        ("a time before the beginning", words("one", -1.0, 1.0)),
        ("control characters in the text", json!({"text": format!("one {MARK}")})),
        ("control characters in a word", words(MARK, 0.0, 1.0)),
        ("control characters in a piece", piece(MARK, 0.0, 1.0)),
        ("control characters in the language", json!({"text": OWN_WORD, "language": MARK})),
        ("a language that is a novel", json!({"text": OWN_WORD, "language": "long ".repeat(1_000)})),
        ("a novel", json!({"text": "word ".repeat(100_000)})),
        ("no text", json!({"language": OWN_WORD})),
    ]
}

fn readings() -> Vec<(&'static str, Value)> {
    let (width, height) = PICTURE;
    let word = |place: Value, confidence: f64, text: &str| json!({"text": OWN_WORD, "words": [{"text": text, "box": place, "confidence": confidence}]});
    vec![
        ("a box outside the picture", word(json!([0, 0, width + 1, height]), 0.5, "one")),
        ("a box below the picture", word(json!([0, height, width, height + 9]), 0.5, "one")),
        ("a box before the picture", word(json!([-1, 0, 1, 1]), 0.5, "one")),
        ("a box inside out", word(json!([9, 0, 3, 9]), 0.5, "one")),
        ("a box with three sides", word(json!([0, 0, 9]), 0.5, "one")),
        ("confidence 7", word(json!([0, 0, 9, 9]), 7.0, "one")),
        ("confidence below 0", word(json!([0, 0, 9, 9]), -0.5, "one")),
        ("control characters in a word", word(json!([0, 0, 9, 9]), 0.5, MARK)),
        ("control characters in the text", json!({"text": MARK, "words": []})),
        ("no text", json!({"words": []})),
    ]
}

fn looks() -> Vec<(&'static str, String)> {
    let good = seen(OWN_WORD);
    let whole = json!({"choices": [{"index": 0, "message": {"content": OWN_WORD}, "finish_reason": "stop"}]});
    let call =
        json!({"index": 0, "id": "x", "type": "function", "function": {"name": OWN_WORD, "arguments": "{}"}});
    let called = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null}]});
    let second = json!({"choices": [{"index": 1, "delta": {"content": OWN_WORD}, "finish_reason": null}]});
    vec![
        ("an answer that is no stream", whole.to_string()),
        ("no end of the stream", good.replace("data: [DONE]\n\n", "")),
        ("no end of the choice", good.replace("\"stop\"", "null")),
        ("an answer without words", seen("")),
        ("an answer of spaces", seen(" \n\t ")),
        ("a tool that nobody declared", format!("data: {called}\n\n{good}")),
        ("a second choice", format!("data: {second}\n\n{good}")),
        ("a novel", seen(&OWN_WORD.repeat(400_000))),
    ]
}

fn drawings() -> Vec<(&'static str, Value)> {
    let (width, height) = DRAWN_SIZE;
    let good = drawing(DRAWN_SIZE, 0, ImageFormat::Png);
    let of = |file: &[u8]| json!({"data": [{"b64_json": STANDARD.encode(file)}], "x": OWN_WORD});
    let flat = RgbImage::from_pixel(width, height, Rgb([0, 0, 0]));
    let mut black = Cursor::new(Vec::new());
    let written = flat.write_to(&mut black, ImageFormat::Png);
    debug_assert!(written.is_ok());
    vec![
        ("no picture in the list", json!({"data": [], "x": OWN_WORD})),
        ("a picture too many", drawn(DRAWN_SIZE, DRAWN + 1)),
        ("a smaller picture", of(&drawing((64, 64), 0, ImageFormat::Png))),
        ("a larger picture", of(&drawing((256, 256), 0, ImageFormat::Png))),
        ("a picture on its side", of(&drawing((height, width), 0, ImageFormat::Png))),
        ("a picture of one colour", of(black.get_ref())),
        ("half a picture", of(&good[..good.len() / 2])),
        ("a bomb", of(&STANDARD.decode(BOMB).unwrap_or_default())),
        ("a picture of a kind that nobody knows", of(format!("<svg>{OWN_WORD}</svg>").as_bytes())),
        ("no base64", json!({"data": [{"b64_json": OWN_WORD}]})),
        ("an address", json!({"data": [{"url": format!("https://{OWN_WORD}.example/a.png")}]})),
        (
            "a good picture and a bad one",
            json!({"data": [{"b64_json": STANDARD.encode(&good)}, {"b64_json": "AAAA"}]}),
        ),
    ]
}

fn all_pages() -> Vec<(&'static str, Value)> {
    let page = |url: &str, data: &str| json!({"url": url, "success": true, "status": 200, "data": data});
    let both = |second: Value| json!({"results": [page(URLS[0], OWN_WORD), second]});
    let mut reason = page(URLS[1], OWN_WORD);
    reason["error"] = json!({"code": "timeout", "message": OWN_WORD});
    vec![
        ("a result too few", json!({"results": [page(URLS[0], OWN_WORD)]})),
        (
            "a result too many",
            json!({"results": [page(URLS[0], OWN_WORD), page(URLS[1], "x"), page(URLS[1], "x")]}),
        ),
        ("another address", both(page("https://pages.example/three", OWN_WORD))),
        (
            "results that changed places",
            json!({"results": [page(URLS[1], OWN_WORD), page(URLS[0], OWN_WORD)]}),
        ),
        ("success without data", both(json!({"url": URLS[1], "success": true, "status": 200}))),
        ("success with empty data", both(page(URLS[1], ""))),
        ("success with a reason", both(reason)),
        ("no success and data", both(json!({"url": URLS[1], "success": false, "data": OWN_WORD}))),
        ("no success and no reason", both(json!({"url": URLS[1], "success": false}))),
        (
            "a code that is none",
            both(json!({"url": URLS[1], "success": false, "error": {"code": "Rogue Own", "message": "x"}})),
        ),
        ("6 MiB of data", both(page(URLS[1], &"x".repeat(6 << 20)))),
    ]
}

/// What a node sends that is delivered, and what of it: what is not ours is left out.
fn additions(service: Service) -> Vec<(&'static str, Bytes, Value)> {
    match service {
        Service::Speech => {
            // A chunk that players show, in front of the samples and behind them.
            let good = speech(TEXT);
            let mut tagged = good[..36].to_vec();
            let note = [b"LIST".as_slice(), &14_u32.to_le_bytes(), OWN_WORD.as_bytes()].concat();
            tagged.extend_from_slice(&note);
            tagged.extend_from_slice(&good[36..]);
            tagged.extend_from_slice(&note);
            vec![("other chunks", tagged.into(), Value::Null)]
        }
        Service::Transcript => {
            let sent = json!({"text": "one", "language": "english", "x": OWN_WORD, "id": OWN_WORD, "task": OWN_WORD,
                "usage": {"cost": OWN_WORD}, "duration": 9_000,
                "words": [{"word": "one", "start": 0.0, "end": 1.0, "x": OWN_WORD}], "segments": []});
            let got = json!({"task": "transcribe", "language": "english", "duration": 1.5, "text": "one",
                "segments": [], "words": [{"word": "one", "start": 0.0, "end": 1.0}]});
            vec![("extras", sent.to_string().into(), got)]
        }
        Service::Picture => {
            let sent = json!({"text": "one", "x": OWN_WORD, "caption": OWN_WORD, "usage": {"cost": OWN_WORD},
                "words": [{"text": "one", "box": [0, 0, 9, 9], "confidence": 0.5, "x": OWN_WORD}]});
            vec![("extras", sent.to_string().into(), json!({"caption": "one"}))]
        }
        Service::Look => {
            let said = format!("{}\u{1b}{}", &SEEN[..4], &SEEN[4..]);
            let said = json!({"id": OWN_WORD, "model": OWN_WORD, "x": OWN_WORD, "system_fingerprint": OWN_WORD,
                "choices": [{"index": 0, "delta": {"role": "system", "content": said, "x": OWN_WORD}, "finish_reason": null}],
                "usage": {"cost": OWN_WORD}});
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            let sent = format!(
                ": {OWN_WORD}\n\ndata: {said}\n\ndata: {end}\n\ndata: [DONE]\n\ndata: {OWN_WORD}\n\n"
            );
            vec![("extras and control characters", sent.into(), json!({"answer": SEEN}))]
        }
        Service::Drawing => {
            // A note in front of the pixels, more behind the end, and fields of the node's own.
            let tagged = |number| {
                let good = drawing(DRAWN_SIZE, number, ImageFormat::Png);
                let note = [b"tEXt".as_slice(), b"Comment\0", OWN_WORD.as_bytes()].concat();
                let size = u32::try_from(note.len() - 4).unwrap_or(0).to_be_bytes();
                let sum = crc32fast::hash(&note).to_be_bytes();
                let chunk = [size.as_slice(), &note, &sum].concat();
                // The head of a PNG has 33 bytes.
                let file = [&good[..33], &chunk, &good[33..], OWN_WORD.as_bytes()].concat();
                json!({"b64_json": STANDARD.encode(file), "revised_prompt": OWN_WORD, "url": OWN_WORD})
            };
            let sent = json!({"created": OWN_WORD, "model": OWN_WORD, "usage": {"cost": OWN_WORD}, "data": [tagged(0), tagged(1)]});
            vec![("notes and fields of its own", sent.to_string().into(), Value::Null)]
        }
        Service::Pages => {
            let sent = |url: &str| {
                let says = json!({"title": format!("one{MARK}two"), "author": "\u{7}", "x": OWN_WORD});
                json!({"url": url, "final_url": format!("javascript:{OWN_WORD}"), "status": 7_000, "success": true,
                    "content_type": format!("text/{MARK}html"), "data": "x", "metadata": says, "x": OWN_WORD})
            };
            let got = |url: &str| {
                json!({"url": url, "success": true, "content_type": "text/[2Jhtml", "data": "x",
                    "metadata": {"title": "one[2Jtwo", "author": ""}})
            };
            let all = |of: &dyn Fn(&str) -> Value| json!({"results": URLS.map(of)});
            let mut answer = all(&sent);
            answer["usage"] = json!({"cost": OWN_WORD});
            vec![("extras and control characters", answer.to_string().into(), all(&got))]
        }
    }
}
