//! An OpenAI-compatible server with eyes and hands, as an owner may run one: it decodes the pictures that it is sent and answers
//! from their pixels, and draws pictures of the size that it is asked for. It takes no field that its contract does not name.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The colours that it knows.
const COLOURS: [(&str, [u8; 3]); 5] = [
    ("red", [200, 30, 30]),
    ("green", [30, 160, 40]),
    ("blue", [30, 50, 200]),
    ("white", [240, 240, 240]),
    ("black", [12, 12, 12]),
];

/// What its contract for pictures names.
const DRAWING: [&str; 8] =
    ["model", "prompt", "n", "size", "response_format", "negative_prompt", "num_inference_steps", "seed"];

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct Atelier {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Value>>>,
    _accept: AbortOnDropHandle<()>,
}

impl Atelier {
    /// Opens it on port 0.
    ///
    /// # Errors
    /// No port is free.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let noted = asked.clone();
        let accept = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let noted = noted.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| respond(request, noted.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, asked, _accept: AbortOnDropHandle::new(accept) })
    }

    /// A node configuration that offers it for these services.
    #[must_use]
    pub fn node_configuration(&self, services: &[&str]) -> String {
        let entry = |service: &&str| {
            format!(
                "[[external]]\nservice = \"{service}\"\nbase_url = \"http://{}/v1\"\nmodel = \"own name\"\n",
                self.address
            )
        };
        services.iter().map(entry).collect()
    }

    /// The address of a picture that it shows: half red, half blue.
    #[must_use]
    pub fn picture_url(&self) -> String {
        format!("http://{}/picture.png", self.address)
    }

    /// The bodies of all requests so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().clone()
    }
}

/// A picture whose left half has one colour and whose right half another, as a file.
#[must_use]
pub fn halves(left: &str, right: &str, (width, height): (u32, u32), format: ImageFormat) -> Vec<u8> {
    let colour =
        |name: &str| COLOURS.iter().find(|(known, _)| *known == name).map_or([0; 3], |(_, colour)| *colour);
    let (left, right) = (colour(left), colour(right));
    let picture = RgbImage::from_fn(width, height, |x, _| Rgb(if x < width / 2 { left } else { right }));
    let mut file = Cursor::new(Vec::new());
    let written = DynamicImage::ImageRgb8(picture).write_to(&mut file, format);
    written.map(|()| file.into_inner()).unwrap_or_default()
}

/// The name of the nearest colour.
#[must_use]
pub fn name_of(pixel: Rgb<u8>) -> &'static str {
    let distance = |colour: [u8; 3]| -> i32 {
        pixel.0.iter().zip(colour).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
    };
    COLOURS.iter().min_by_key(|(_, colour)| distance(*colour)).map_or("", |(name, _)| name)
}

async fn respond(
    request: Request<Incoming>,
    noted: Arc<Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    noted.lock().push(asked.clone());
    let (status, kind, text) = match path.as_str() {
        "/v1/models" => {
            let model = json!({"id": "own name", "object": "model", "created": 0, "owned_by": "owner"});
            (200, "application/json", json!({"object": "list", "data": [model]}).to_string().into_bytes())
        }
        "/v1/chat/completions" => chat(&asked),
        "/v1/images/generations" => draw(&asked),
        "/picture.png" => (200, "image/png", halves("red", "blue", (600, 300), ImageFormat::Png)),
        _ => (404, "application/json", b"{}".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

type Answer = (u16, &'static str, Vec<u8>);

fn refuse(message: &str) -> Answer {
    let error = json!({"error": {"message": message, "type": "invalid_request_error"}});
    (400, "application/json", error.to_string().into_bytes())
}

fn chat(asked: &Value) -> Answer {
    let parts =
        asked["messages"].as_array().into_iter().flatten().flat_map(|message| match &message["content"] {
            Value::Array(parts) => parts.clone(),
            text => vec![json!({"type": "text", "text": text})],
        });
    let (mut pictures, mut words) = (Vec::new(), String::new());
    for part in parts {
        if part["type"] != "image_url" {
            words.push_str(part["text"].as_str().unwrap_or_default());
            continue;
        }
        let data = part["image_url"]["url"].as_str().and_then(|url| url.split_once(";base64,"));
        let file = data.and_then(|(_, data)| STANDARD.decode(data).ok());
        match file.and_then(|file| image::load_from_memory(&file).ok()) {
            Some(picture) => pictures.push(picture.to_rgb8()),
            None => return refuse("a picture that cannot be decoded"),
        }
    }
    let said = say(&words, &pictures);
    if asked["stream"] != true {
        return refuse("only streams");
    }
    let chunk = |delta: Value, finish: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        format!(
            "data: {}\n\n",
            json!({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "x", "choices": choices})
        )
    };
    let half = said.char_indices().nth(said.chars().count() / 2).map_or(0, |(at, _)| at);
    // Every picture is 577 tokens to it; no more words are claimed than may be said.
    let words = asked["max_tokens"].as_u64().unwrap_or(9).min(9);
    let usage = json!({"prompt_tokens": 577, "completion_tokens": words, "total_tokens": 577 + words});
    let events = [
        chunk(json!({"role": "assistant", "content": ""}), Value::Null),
        chunk(json!({"content": said[..half]}), Value::Null),
        chunk(json!({"content": said[half..]}), Value::Null),
        chunk(json!({}), json!("stop")),
        format!(
            "data: {}\n\n",
            json!({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "x", "choices": [], "usage": usage})
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    // Of words only it claims nothing, so that what the gateway counts stands.
    let events = events.iter().filter(|event| !pictures.is_empty() || !event.contains("\"usage\"")).cloned();
    (200, "text/event-stream", events.collect::<String>().into_bytes())
}

/// What it says: where something is, when it is asked for that, else which colours it sees from left to right.
fn say(words: &str, pictures: &[RgbImage]) -> String {
    let target =
        |before: &str| words.strip_prefix(before).and_then(|rest| rest.split(" in this picture").next());
    let Some(first) = pictures.first() else { return "I see no picture.".to_owned() };
    if let Some(target) = target("Locate every ") {
        let found = pixels(first, target).map(|place| json!({"bbox_2d": place, "label": target}));
        return format!("```json\n{}\n```", json!(found.into_iter().collect::<Vec<_>>()));
    }
    if let Some(target) = target("Point at every ").filter(|_| words.contains("point_2d")) {
        let middle = pixels(first, target).map(|[left, top, right, bottom]| {
            json!({"point_2d": [u32::midpoint(left, right), u32::midpoint(top, bottom)], "label": target})
        });
        return json!({"points": middle.into_iter().collect::<Vec<_>>()}).to_string();
    }
    if let Some(target) = target("Find every ") {
        let found =
            place(first, target).map(|place| json!({"label": target, "box": place, "confidence": 0.75}));
        return match target {
            "unicorn" => "There is no unicorn.".to_owned(),
            _ => format!("```json\n{}\n```", json!({"objects": found.into_iter().collect::<Vec<_>>()})),
        };
    }
    if let Some(target) = target("Point at every ") {
        let middle = place(first, target)
            .map(|[left, top, right, bottom]| json!({"x": f64::midpoint(left, right), "y": f64::midpoint(top, bottom)}));
        return json!({"points": middle.into_iter().collect::<Vec<_>>()}).to_string();
    }
    let seen: Vec<String> = pictures
        .iter()
        .map(|picture| {
            let (width, height) = picture.dimensions();
            let at = |x: u32| name_of(*picture.get_pixel(x.min(width - 1), height / 2));
            format!("{} beside {} in {width}x{height}", at(width / 4), at(width / 4 * 3))
        })
        .collect();
    format!("I see {}.", seen.join("; "))
}

/// The same as a model says it that counts the pixels of its own, resized picture.
fn pixels(picture: &RgbImage, colour: &str) -> Option<[u32; 4]> {
    let (width, height) = picture.dimensions();
    // Sides of a multiple of 28 pixels; the pictures of the tests are large enough for that.
    let cells = |side: u32| f64::from((side + 14) / 28 * 28);
    let at = |part: f64, side: u32| (part * cells(side)).round().to_string().parse().unwrap_or_default();
    let [left, top, right, bottom] = place(picture, colour)?;
    Some([at(left, width), at(top, height), at(right, width), at(bottom, height)])
}

/// The box around all pixels of a colour, as parts of the picture.
fn place(picture: &RgbImage, colour: &str) -> Option<[f64; 4]> {
    let (width, height) = picture.dimensions();
    let hits = || picture.enumerate_pixels().filter(|(_, _, pixel)| name_of(**pixel) == colour);
    let part = |at: u32, of: u32| f64::from(at) / f64::from(of);
    let left = hits().map(|(x, ..)| x).min()?;
    let right = hits().map(|(x, ..)| x).max()? + 1;
    let top = hits().map(|(_, y, _)| y).min()?;
    let bottom = hits().map(|(_, y, _)| y).max()? + 1;
    Some([part(left, width), part(top, height), part(right, width), part(bottom, height)])
}

fn draw(asked: &Value) -> Answer {
    let Some(fields) = asked.as_object() else { return refuse("no object") };
    if let Some(stray) = fields.keys().find(|name| !DRAWING.contains(&name.as_str())) {
        return refuse(&format!("unknown field {stray}"));
    }
    let size = asked["size"].as_str().and_then(cxmpute_wire::openai::read_size);
    let (Some(size), Some(count), true) = (size, asked["n"].as_u64(), asked["response_format"] == "b64_json")
    else {
        return refuse("size, n and response_format are needed");
    };
    let prompt = asked["prompt"].as_str().unwrap_or_default();
    let colour = COLOURS.iter().map(|(name, _)| *name).find(|name| prompt.contains(name)).unwrap_or("green");
    // A real server of this kind answers in JPEG when its owner set it so.
    let format = if prompt.contains("photo") { ImageFormat::Jpeg } else { ImageFormat::Png };
    let picture = |_| json!({"b64_json": STANDARD.encode(halves(colour, "white", size, format)), "revised_prompt": prompt});
    let count = if prompt.contains("nothing") { 0 } else { count };
    let list = json!({"created": 1, "data": (0..count).map(picture).collect::<Vec<_>>()});
    (200, "application/json", list.to_string().into_bytes())
}
