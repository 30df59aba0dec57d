//! Every kind of work with one body each way, for the gates that must hold on all of them: what is asked, what a node
//! answers, what the client gets of it, and what is billed.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_market::price::Units;
use cxmpute_wire::wave::Wave;
use image::ImageFormat;
use serde_json::{Value, json};

use crate::client::{Payload, Reply};
use crate::money::Money;
use crate::stand_in::{SAID, SEEN, drawing, drawn, heard, pages, read_text, seen, speech};
use crate::world::{DRAWING_MODEL, LISTENING_MODEL, PAGES_MODEL, READING_MODEL, SEEING_MODEL, SPEECH_MODEL};

/// The text that is said.
pub const TEXT: &str = "Seven words that are to be said";

/// Milliseconds of the recording; two seconds are charged.
const RECORDING_MS: usize = 1_500;

/// Samples per second of the recording.
const RATE: u32 = 16_000;

/// The size of the picture.
pub const PICTURE: (u32, u32) = (64, 32);

/// A grey PNG of that size.
pub const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAgCAAAAACH9iFYAAAAYElEQVR42mNgYOHgERCRkFFQ0dAxMLGwcXDx8AkIiYhJSMnIKSipqGlo6eiZMGXGnAVLVqzZsGXHngNHTpy5cOXGnQdPXrz58OXHH4ZRA0YNGDVg1IBRA0YNGDVguBkAAE2b8C4hf07QAAAAAElFTkSuQmCC";

/// A PNG that says it is 60,000 pixels wide and high, with a right checksum; it has 158 bytes.
pub const BOMB: &str = "iVBORw0KGgoAAAANSUhEUgAA6mAAAOpgCAAAAACluSqeAAAAYElEQVR42mNgYOHgERCRkFFQ0dAxMLGwcXDx8AkIiYhJSMnIKSipqGlo6eiZMGXGnAVLVqzZsGXHngNHTpy5cOXGnQdPXrz58OXHH4ZRA0YNGDVg1IBRA0YNGDVguBkAAE2b8C4hf07QAAAAAElFTkSuQmCC";

/// What is asked about the picture.
const QUESTION: &str = "Which colours?";

/// Characters of the question, and those that the picture counts as: 85 tokens and 170 for its only tile, four characters each.
const INPUT_CHARACTERS: u64 = QUESTION.len() as u64 + 255 * 4;

/// Pictures that are drawn.
pub const DRAWN: u64 = 2;

/// Their size.
pub const DRAWN_SIZE: (u32, u32) = (128, 64);

/// The addresses that are fetched.
pub const URLS: [&str; 2] = ["https://pages.example/one", "https://pages.example/two"];

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `POST /audio/speech`.
    Speech,
    /// `POST /audio/transcriptions`.
    Transcript,
    /// `POST /m/caption`.
    Picture,
    /// `POST /m/query` with a model that talks.
    Look,
    /// `POST /images/generations`.
    Drawing,
    /// `POST /scrape`.
    Pages,
}

/// The plain fields of a request for a transcript.
const TRANSCRIPT_FIELDS: [(&str, &str); 4] = [
    ("model", LISTENING_MODEL),
    ("response_format", "verbose_json"),
    ("timestamp_granularities[]", "word"),
    ("timestamp_granularities[]", "segment"),
];

impl Service {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Speech, Self::Transcript, Self::Picture, Self::Look, Self::Drawing, Self::Pages];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Speech => "speech",
            Self::Transcript => "transcript",
            Self::Picture => "picture",
            Self::Look => "look",
            Self::Drawing => "drawing",
            Self::Pages => "pages",
        }
    }

    /// The assertion that its bill is exact.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Speech => "speech: the bill is what the table says",
            Self::Transcript => "transcript: the bill is what the table says",
            Self::Picture => "picture: the bill is what the table says",
            Self::Look => "look: the bill is what the table says",
            Self::Drawing => "drawing: the bill is what the table says",
            Self::Pages => "pages: the bill is what the table says",
        }
    }

    /// Where to send it.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Speech => "/v1/audio/speech",
            Self::Transcript => "/v1/audio/transcriptions",
            Self::Picture => "/v1/m/caption",
            Self::Look => "/v1/m/query",
            Self::Drawing => "/v1/images/generations",
            Self::Pages => "/v1/scrape",
        }
    }

    /// Who does it.
    #[must_use]
    pub const fn model(self) -> &'static str {
        match self {
            Self::Speech => SPEECH_MODEL,
            Self::Transcript => LISTENING_MODEL,
            Self::Picture => READING_MODEL,
            Self::Look => SEEING_MODEL,
            Self::Drawing => DRAWING_MODEL,
            Self::Pages => PAGES_MODEL,
        }
    }

    /// The path on the tunnel: the name of the script that a stand-in plays for it.
    #[must_use]
    pub const fn script(self) -> &'static str {
        match self {
            Self::Speech => "/audio/speech",
            Self::Transcript => "/audio/transcriptions",
            Self::Picture => "/read",
            Self::Look => "/chat/completions",
            Self::Drawing => "/images/generations",
            Self::Pages => "/scrape",
        }
    }

    /// A good request.
    #[must_use]
    pub fn request(self) -> Payload {
        match self {
            Self::Speech => Payload::json(
                &json!({"model": SPEECH_MODEL, "input": TEXT, "voice": "alloy", "response_format": "wav"}),
            ),
            Self::Transcript => Payload::form(&TRANSCRIPT_FIELDS, Some(&recording(RECORDING_MS))),
            Self::Picture => Payload::json(&json!({"model": READING_MODEL, "imageBase64": PNG})),
            Self::Look => {
                Payload::json(&json!({"model": SEEING_MODEL, "imageBase64": PNG, "question": QUESTION}))
            }
            Self::Drawing => Payload::json(
                &json!({"model": DRAWING_MODEL, "prompt": format!("{DRAWING_MODEL}: a slope of colours"),
                "n": DRAWN, "size": format!("{}x{}", DRAWN_SIZE.0, DRAWN_SIZE.1)}),
            ),
            Self::Pages => Payload::json(&json!({"urls": URLS})),
        }
    }

    /// A good request for which a node of this name is asked first.
    #[must_use]
    pub fn request_of(self, provider: &str) -> Payload {
        let wishes = json!({"order": [provider]});
        if self == Self::Transcript {
            let wishes = wishes.to_string();
            return Payload::form(
                &[&TRANSCRIPT_FIELDS[..], &[("provider", &wishes)]].concat(),
                Some(&recording(RECORDING_MS)),
            );
        }
        let mut body: Value = serde_json::from_slice(&self.request().bytes).unwrap_or_default();
        body["provider"] = wishes;
        Payload::json(&body)
    }

    /// What a good node answers to it.
    #[must_use]
    pub fn answer(self) -> Vec<u8> {
        match self {
            Self::Speech => speech(TEXT),
            Self::Transcript => heard(SAID, 1.5).to_string().into_bytes(),
            Self::Picture => read_text("Total: 128.50 EUR", PICTURE).to_string().into_bytes(),
            Self::Look => seen(SEEN).into_bytes(),
            Self::Drawing => drawn(DRAWN_SIZE, DRAWN).to_string().into_bytes(),
            Self::Pages => pages(&URLS).to_string().into_bytes(),
        }
    }

    /// Whether this is what the client gets of it.
    #[must_use]
    pub fn is_good(self, reply: &Reply) -> bool {
        let body = reply.json();
        let right = match self {
            Self::Speech => reply.body == speech(TEXT),
            Self::Transcript => {
                body["text"] == SAID && body["words"][3]["word"] == "one" && body["usage"]["seconds"] == 2
            }
            Self::Picture => body["caption"] == "Total: 128.50 EUR",
            Self::Look => body["answer"] == SEEN && body["usage"]["images"] == 1,
            Self::Drawing => are_drawn(&body, DRAWN),
            Self::Pages => (0..URLS.len()).all(|at| {
                let page = &body["results"][at];
                page["url"] == URLS[at] && page["data"] == format!("<p>{}</p>", URLS[at])
            }),
        };
        reply.status == 200 && right
    }

    /// What a good answer costs.
    ///
    /// # Errors
    /// A world without services.
    pub fn price(self, money: &Money) -> Result<i64> {
        let units = match self {
            Self::Speech => Units { characters: TEXT.len() as u64, ..Units::default() },
            Self::Transcript => Units { seconds: 2, ..Units::default() },
            Self::Picture => Units { images: 1, ..Units::default() },
            Self::Look => Units { characters: INPUT_CHARACTERS + SEEN.len() as u64, ..Units::default() },
            // Each picture has twice the pixels that are charged as one.
            Self::Drawing => Units { images: 2 * DRAWN, ..Units::default() },
            Self::Pages => Units { urls: URLS.len() as u64, ..Units::default() },
        };
        money.price_of(self.model(), &units)
    }

    /// What is paid by a client that leaves after a node accepted: the input, where it is what is priced (MR31).
    ///
    /// # Errors
    /// A world without services.
    pub fn price_of_input(self, money: &Money) -> Result<i64> {
        match self {
            Self::Speech | Self::Transcript => self.price(money),
            Self::Look => {
                money.price_of(self.model(), &Units { characters: INPUT_CHARACTERS, ..Units::default() })
            }
            Self::Picture | Self::Drawing | Self::Pages => Ok(0),
        }
    }
}

/// Whether the pictures of an answer show, pixel by pixel, what the stand-in drew, and are files of our own making.
#[must_use]
pub fn are_drawn(body: &Value, count: u64) -> bool {
    let file = |at: usize| STANDARD.decode(body["data"][at]["b64_json"].as_str().unwrap_or_default()).ok();
    let shows = |number: u64| {
        let sent = drawing(DRAWN_SIZE, number, ImageFormat::Png);
        let pixels = |file: &[u8]| image::load_from_memory(file).ok().map(|picture| picture.to_rgb8());
        let got = usize::try_from(number).ok().and_then(file).and_then(|file| pixels(&file));
        got.is_some() && got == pixels(&sent)
    };
    body["data"].as_array().is_some_and(|list| list.len() as u64 == count) && (0..count).all(shows)
}

/// A recording of a hum, so many milliseconds long.
#[must_use]
pub fn recording(millis: usize) -> Vec<u8> {
    let hum = |at: usize| i16::try_from(at % 128).unwrap_or(0) * 64 - 4_096;
    samples(millis, hum)
}

/// A recording in which nothing sounds.
#[must_use]
pub fn silence(millis: usize) -> Vec<u8> {
    samples(millis, |_| 0)
}

fn samples(millis: usize, of: impl Fn(usize) -> i16) -> Vec<u8> {
    let samples: Vec<u8> = (0..millis * RATE as usize / 1_000).flat_map(|at| of(at).to_le_bytes()).collect();
    Wave { rate: RATE, channels: 1, samples: &samples }.pack()
}
