//! The programs themselves, where they are installed; a machine without one skips its test visibly.

use base64::Engine as _;
use cxmpute_wire::form;
use cxmpute_wire::openai::Heard;
use cxmpute_wire::sight::ReadText;
use cxmpute_wire::wave::Wave;
use serde_json::json;

use super::*;

fn tool(program: Program, model: &str) -> Option<Tool> {
    let desired: DesiredService = serde_json::from_value(json!({
        "service_id": cxmpute_wire::ServiceId::new(program.kind(), model),
        "kind": program.kind(),
        "model": model,
        "engines": ["kokoro", program.name()],
    }))
    .unwrap();
    let tool = Tool::choose(&desired, Walls::new(None, Vec::new()), 1);
    #[expect(clippy::print_stderr, reason = "a skip is visible")]
    if tool.is_none() {
        eprintln!("skipped: {} is not installed", program.name());
    }
    tool
}

fn request() -> RequestId {
    RequestId::from_tail("0123456789abcdef0123456789abcdef")
}

async fn ask(tool: &Tool, path: WorkPath, body: &[u8]) -> (u16, Bytes) {
    let mut made = tool.ask(path, &request(), body).await.unwrap();
    let mut whole = Vec::new();
    while let Some(piece) = made.chunk().await {
        whole.extend_from_slice(&piece.unwrap());
    }
    (made.status.as_u16(), whole.into())
}

#[tokio::test]
async fn a_text_is_said_and_a_bad_voice_is_refused() {
    let Some(tool) = tool(Program::Espeak, "espeak-ng") else { return };
    tool.ready().await.unwrap();
    let say = |voice: &str, speed: f64| json!({"model": "m", "input": "one two three", "voice": voice, "speed": speed});
    let (status, slow) = ask(&tool, WorkPath::Speech, say("en-us", 0.8).to_string().as_bytes()).await;
    assert_eq!(status, 200);
    let slow = Wave::read(&slow).unwrap();
    assert!((500..10_000).contains(&slow.millis()) && !slow.is_silent(), "{}", slow.millis());
    let (_, quick) = ask(&tool, WorkPath::Speech, say("en-us", 2.0).to_string().as_bytes()).await;
    assert!(Wave::read(&quick).unwrap().millis() * 3 < slow.millis() * 2);
    for (voice, speed) in [("--stdout", 1.0), ("../x", 1.0), ("", 1.0), ("en us", 1.0), ("en-us", 9.0)] {
        let (status, _) = ask(&tool, WorkPath::Speech, say(voice, speed).to_string().as_bytes()).await;
        assert_eq!(status, 400, "{voice} {speed}");
    }
    assert_eq!(ask(&tool, WorkPath::Read, b"{}").await.0, 400);
    assert_eq!(ask(&tool, WorkPath::Speech, say("nobody", 1.0).to_string().as_bytes()).await.0, 502);
}

/// A long text comes by pieces, the first of them long before the end, and whoever stops listening ends the program.
#[tokio::test]
async fn speech_leaves_while_it_is_made() {
    let Some(tool) = tool(Program::Espeak, "espeak-ng") else { return };
    let text = "many words that take a while to say ".repeat(100);
    let body = json!({"model": "m", "input": text, "voice": "en-us", "speed": 0.5}).to_string();
    let mut made = tool.ask(WorkPath::Speech, &request(), body.as_bytes()).await.unwrap();
    let first = made.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"RIFF") && first.len() < 100_000, "{}", first.len());
    let mut pieces = 1;
    while let Some(piece) = made.chunk().await {
        piece.unwrap();
        pieces += 1;
    }
    assert!(pieces > 20, "{pieces}");
}

#[tokio::test]
async fn spoken_digits_are_written_down() {
    let (Some(speaker), Some(listener)) =
        (tool(Program::Espeak, "espeak-ng"), tool(Program::Pocketsphinx, "pocketsphinx-digits"))
    else {
        return;
    };
    listener.ready().await.unwrap();
    let say = json!({"model": "m", "input": "4 7 1 1", "voice": "en-us+f5", "speed": 0.9});
    let (_, said) = ask(&speaker, WorkPath::Speech, say.to_string().as_bytes()).await;
    let wave = Wave::read(&said).unwrap();
    // Every sample is given as often as it takes: good enough for an engine that hears 16,000 of them.
    let sample = |at: usize| {
        let from = (at * wave.rate as usize / 16_000) * 2;
        [wave.samples[from], wave.samples[from + 1]]
    };
    let count = wave.samples.len() / 2 * 16_000 / wave.rate as usize;
    let samples: Vec<u8> = (0..count).flat_map(sample).collect();
    let sound = Wave { rate: 16_000, channels: 1, samples: &samples }.pack();
    let form = form::compose(&request(), "m", &[], &sound);
    let (status, body) = ask(&listener, WorkPath::Transcription, &form).await;
    let heard: Heard = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, heard.text.as_str()), (200, "four seven one one"));
    assert_eq!(heard.words.len(), 4);
    assert!(heard.words.windows(2).all(|pair| pair[0].end <= pair[1].start + 0.02), "{heard:?}");
    let raw = form::compose(&request(), "m", &[], &said);
    assert_eq!(ask(&listener, WorkPath::Transcription, &raw).await.0, 400, "not at 16,000 samples");
    assert_eq!(ask(&listener, WorkPath::Transcription, b"--x").await.0, 400);
}

#[tokio::test]
async fn the_text_in_a_picture_is_read() {
    let Some(tool) = tool(Program::Tesseract, "tesseract") else { return };
    tool.ready().await.unwrap();
    let read = |image: &[u8]| json!({"model": "m", "image": base64::engine::general_purpose::STANDARD.encode(image)});
    let picture = include_bytes!("invoice.png");
    let (status, body) = ask(&tool, WorkPath::Read, read(picture).to_string().as_bytes()).await;
    let text: ReadText = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, text.text.as_str()), (200, "Invoice 4711\n\nTotal: 128.50 EUR"));
    assert!(text.words.iter().all(|word| word.confidence > 0.5), "{text:?}");
    let bad = json!({"model": "m", "image": "AAAA", "languages": ["../../etc"]});
    assert_eq!(ask(&tool, WorkPath::Read, bad.to_string().as_bytes()).await.0, 400);
    assert_eq!(ask(&tool, WorkPath::Read, read(b"no picture").to_string().as_bytes()).await.0, 502);
}
