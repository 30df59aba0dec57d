//! Programs that run once for a request.

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_node::engines::tool::Program;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::form;
use cxmpute_wire::wave::Wave;
use serde_json::{Value, json};

use super::{Hold, Life, Row, conforms};
use crate::gateway::service;

/// A program that runs once for a request, where it is installed.
#[expect(clippy::print_stderr, reason = "a skip is visible")]
async fn tool_conforms(program: Program, work: Work, long: Bytes, is_good: fn(&[u8]) -> bool) {
    if program.find().is_none() {
        eprintln!("skipped: {} is not installed", program.name());
        return;
    }
    let (path, work) = work;
    let mut service = service(&cxmpute_wire::ServiceId::new(program.kind(), work_model(program)).to_string());
    service.engines = vec![program.name().to_owned()];
    conforms(Row {
        engine: program.name().to_owned(),
        service,
        configure: Box::new(|config| config.engine.slots = 1),
        cards: Vec::new(),
        path,
        work,
        is_good,
        long,
        other: WorkPath::Embeddings,
        // One runs, and four wait for a processor.
        capacity: 5,
        hold: Hold::Long,
        life: Life::Tool(match program {
            Program::Espeak => "espeak-ng",
            Program::Pocketsphinx => "pocketsphinx_continuous",
            Program::Tesseract => "tesseract",
        }),
    })
    .await;
}

type Work = (WorkPath, Bytes);

const fn work_model(program: Program) -> &'static str {
    match program {
        Program::Espeak => "espeak-ng",
        Program::Pocketsphinx => "pocketsphinx-digits",
        Program::Tesseract => "tesseract",
    }
}

pub fn body(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[tokio::test]
async fn espeak_conforms() {
    let say =
        |text: &str| body(&json!({"model": "espeak-ng", "input": text, "voice": "en-us", "speed": 0.5}));
    let is_good = |answer: &[u8]| Wave::read(answer).is_ok_and(|wave| !wave.is_silent());
    let work = (WorkPath::Speech, say("one two three"));
    tool_conforms(Program::Espeak, work, say(&"many words ".repeat(370)), is_good).await;
}

#[tokio::test]
async fn pocketsphinx_conforms() {
    let hear = |seconds: usize| {
        // Not quite silence: what changes is listened to.
        let samples: Vec<u8> = (0..seconds * 16_000_u32 as usize)
            .flat_map(|n| (((n * n / 7) % 4001) as i16 - 2000).to_le_bytes())
            .collect();
        let wave = Wave { rate: 16_000, channels: 1, samples: &samples }.pack();
        // The boundary of a form is its request's id; the suite's work streams have this one.
        Bytes::from(form::compose(&"req_1".parse().unwrap(), "pocketsphinx-digits", &[], &wave))
    };
    let is_good = |answer: &[u8]| {
        serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer["text"].is_string())
    };
    let work = (WorkPath::Transcription, hear(1));
    tool_conforms(Program::Pocketsphinx, work, hear(60), is_good).await;
}

#[tokio::test]
async fn tesseract_conforms() {
    let read = |picture: &[u8]| {
        body(
            &json!({"model": "tesseract", "image": base64::engine::general_purpose::STANDARD.encode(picture)}),
        )
    };
    let is_good = |answer: &[u8]| {
        serde_json::from_slice::<Value>(answer)
            .is_ok_and(|answer| answer["text"] == "Invoice 4711\n\nTotal: 128.50 EUR")
    };
    let work = (WorkPath::Read, read(include_bytes!("../../../src/engines/tool/invoice.png")));
    tool_conforms(Program::Tesseract, work, read(&noise(1600, 1200)), is_good).await;
}

/// A picture that is hard to read: grey noise, not compressed.
fn noise(width: u32, height: u32) -> Vec<u8> {
    let mut state = 1u32;
    let mut rows = Vec::new();
    for _ in 0..height {
        rows.push(0);
        rows.extend((0..width).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
    }
    let mut packed = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = rows.chunks(65_535).collect();
    for (n, block) in blocks.iter().enumerate() {
        let length = u16::try_from(block.len()).unwrap();
        packed.push(u8::from(n + 1 == blocks.len()));
        packed.extend(length.to_le_bytes().into_iter().chain((!length).to_le_bytes()));
        packed.extend_from_slice(block);
    }
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    packed.extend((b << 16 | a).to_be_bytes());
    let mut picture = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 0, 0, 0, 0]);
    for (name, data) in [(b"IHDR", header), (b"IDAT", packed), (b"IEND", Vec::new())] {
        picture.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        let part = [&name[..], &data].concat();
        let crc = !part.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(
                crc ^ u32::from(*byte),
                |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
            )
        });
        picture.extend(part);
        picture.extend(crc.to_be_bytes());
    }
    picture
}
