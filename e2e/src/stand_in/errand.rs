//! Work with one body each way as a stand-in does it: what was asked, whether the gateway asks to check the service, and a
//! good answer.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cxmpute_egress::judge::Class;
use cxmpute_tunnel::{WorkHead, WorkPath};
use cxmpute_wire::form;
use cxmpute_wire::openai::read_size;
use cxmpute_wire::wave::Wave;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::world::DRAWING_MODEL;

/// What a stand-in hears in every recording that is not silent; so it passes the check of a service that listens.
pub const SAID: &str = "four seven one one";

/// What a stand-in sees in every picture.
pub const SEEN: &str = "Grey all over.";

/// What is written in the picture of the gateway's check.
const WRITTEN: &str = "Page 4711 of 9";

/// The size of that picture; those of tests have others.
const CHECKED_PICTURE: (u32, u32) = (320, 90);

/// The one address that the check of a fetcher names.
const CHECKED_ADDRESS: &str = "http://127.0.0.1/";

/// Samples per second of a stand-in's voice.
const RATE: u32 = 16_000;

/// Bytes of its voice per character: 20 ms.
const BYTES_PER_CHARACTER: usize = RATE as usize / 50 * 2;

/// One piece of such work.
pub(super) struct Task {
    /// The request, for notes; of a form, its fields and the bytes of its file.
    pub asked: Value,
    /// The gateway checks the service.
    pub is_check: bool,
    /// What a good node answers.
    pub answer: Bytes,
}

/// Reads work of these kinds; none for the others.
pub(super) fn read(head: &WorkHead, body: &[u8]) -> Option<Task> {
    let json = || serde_json::from_slice::<Value>(body).unwrap_or_default();
    Some(match head.path {
        // A question about a picture is answered as a whole, too; other chats are not.
        WorkPath::ChatCompletions if json()["messages"][0]["content"][0]["type"] == "image_url" => {
            Task { asked: json(), is_check: false, answer: seen(SEEN).into() }
        }
        WorkPath::ChatCompletions | WorkPath::Completions | WorkPath::Embeddings => return None,
        WorkPath::Speech => {
            let asked = json();
            let answer = speech(asked["input"].as_str().unwrap_or_default()).into();
            // Requests of users always name a speed.
            Task { is_check: asked.get("speed").is_none(), asked, answer }
        }
        WorkPath::Transcription => {
            let parts = form::take_apart(&head.request_id, body);
            let (fields, file) = parts.map_or((Vec::new(), &[][..]), |parts| (parts.fields, parts.file));
            let named = fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
            let mut asked = Value::Object(named.collect());
            asked["file"] = json!(file.len());
            let answer = Wave::read(file).map_or(Value::Null, |wave| match wave.is_silent() {
                true => heard("", 0.0),
                false => heard(SAID, wave.millis() as f64 / 1_000.0),
            });
            // Requests of users always name a temperature.
            let is_check = asked.get("temperature").is_none();
            Task { asked, is_check, answer: answer.to_string().into() }
        }
        WorkPath::Read => {
            let asked = json();
            let size = size(asked["image"].as_str().unwrap_or_default());
            let is_check = size == CHECKED_PICTURE;
            let answer = read_text(if is_check { WRITTEN } else { "Total: 128.50 EUR" }, size);
            Task {
                asked: json!({"width": size.0, "height": size.1}),
                is_check,
                answer: answer.to_string().into(),
            }
        }
        WorkPath::Draw => {
            let asked = json();
            let size = asked["size"].as_str().and_then(read_size).unwrap_or((64, 64));
            let count = asked["n"].as_u64().unwrap_or(1);
            // What users want drawn begins with the name of the test's model.
            let is_check = !asked["prompt"].as_str().unwrap_or_default().starts_with(DRAWING_MODEL);
            Task { asked, is_check, answer: drawn(size, count).to_string().into() }
        }
        WorkPath::Scrape => {
            let asked = json();
            let urls: Vec<&str> =
                asked["urls"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let (is_check, answer) = (urls == [CHECKED_ADDRESS], pages(&urls).to_string().into());
            Task { asked, is_check, answer }
        }
    })
}

/// A sound as long as it takes to say a text.
#[must_use]
pub fn speech(text: &str) -> Vec<u8> {
    let length = text.chars().count().max(20) * BYTES_PER_CHARACTER;
    let sample = |at: usize| i16::try_from(at % 64).unwrap_or(0) * 256 - 8_192;
    let samples: Vec<u8> = (0..length / 2).flat_map(|at| sample(at).to_le_bytes()).collect();
    Wave { rate: RATE, channels: 1, samples: &samples }.pack()
}

/// A transcript of a recording that is so many seconds long.
#[must_use]
pub fn heard(text: &str, seconds: f64) -> Value {
    let words: Vec<&str> = text.split_whitespace().collect();
    let each = seconds / words.len().max(1) as f64;
    let word = |(at, word): (usize, &&str)| json!({"word": word, "start": at as f64 * each, "end": (at + 1) as f64 * each});
    let timed: Vec<Value> = words.iter().enumerate().map(word).collect();
    let segments =
        if words.is_empty() { json!([]) } else { json!([{"start": 0.0, "end": seconds, "text": text}]) };
    json!({"text": text, "language": "english", "segments": segments, "words": timed})
}

/// The text in a picture of this size, its words side by side.
#[must_use]
pub fn read_text(text: &str, (width, height): (u32, u32)) -> Value {
    let words: Vec<&str> = text.split_whitespace().collect();
    let each = width / u32::try_from(words.len().max(1)).unwrap_or(1);
    let word = |(at, word): (u32, &&str)| json!({"text": word, "box": [at * each, 0, (at + 1) * each, height], "confidence": 0.9});
    json!({"text": text, "words": (0..).zip(&words).map(word).collect::<Vec<_>>()})
}

/// A chat that says a text.
#[must_use]
pub fn seen(text: &str) -> String {
    let chunk = |delta: Value, finish: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        format!(
            "data: {}\n\n",
            json!({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "x", "choices": choices})
        )
    };
    let said = chunk(json!({"role": "assistant", "content": text}), Value::Null);
    format!("{said}{}data: [DONE]\n\n", chunk(json!({}), json!("stop")))
}

/// So many pictures of this width and height, each with other colours.
#[must_use]
pub fn drawn(size: (u32, u32), count: u64) -> Value {
    let picture = |at| json!({"b64_json": STANDARD.encode(drawing(size, at, ImageFormat::Png))});
    json!({"created": 0, "data": (0..count).map(picture).collect::<Vec<_>>()})
}

/// A picture with a slope of colours, as a file.
#[must_use]
pub fn drawing((width, height): (u32, u32), number: u64, format: ImageFormat) -> Vec<u8> {
    let shade = |at: u32| u8::try_from(at % 256).unwrap_or(0);
    let blue = u8::try_from(number * 60 % 256).unwrap_or(0);
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([shade(x), shade(y), blue]));
    let mut file = Cursor::new(Vec::new());
    let written = DynamicImage::ImageRgb8(picture).write_to(&mut file, format);
    written.map(|()| file.into_inner()).unwrap_or_default()
}

/// A page for each address; none for the address of the check, which is the node's own machine, and for those that end in
/// `/gone`.
#[must_use]
pub fn pages(urls: &[&str]) -> Value {
    let page = |url: &&str| match *url {
        CHECKED_ADDRESS => {
            json!({"url": url, "success": false, "error": {"code": Class::Loopback.code(), "message": "refused"}})
        }
        url if url.ends_with("/gone") => {
            json!({"url": url, "success": false, "status": 404, "error": {"code": "site_status", "message": "The site says 404."}})
        }
        url => {
            json!({"url": url, "final_url": url, "status": 200, "success": true, "content_type": "text/html",
            "data": format!("<p>{url}</p>"), "metadata": {"title": "A page"}})
        }
    };
    json!({"results": urls.iter().map(page).collect::<Vec<_>>()})
}

/// Width and height of a PNG in base64.
fn size(image: &str) -> (u32, u32) {
    let bytes = STANDARD.decode(image).unwrap_or_default();
    let number = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map_or(0, u32::from_be_bytes)
    };
    (number(16), number(20))
}
