//! espeak-ng: text on its standard input, a waveform on its standard output, which leaves while it is made.

use cxmpute_wire::openai::SpeechRequest;

use super::{Body, Failed, Tool, words};
use cxmpute_runtime::once::OnceError;

/// Words per minute at speed 1.
const RATE: f64 = 160.0;
/// What espeak-ng understands.
const RATES: std::ops::RangeInclusive<f64> = 40.0..=640.0;
/// Most bytes of speech: about 24 minutes.
const OUTPUT: usize = 64 * 1024 * 1024;

/// Says a text. The header that it writes into a pipe does not know the length.
pub(super) async fn speak(tool: &Tool, body: &[u8]) -> Result<Body, Failed> {
    let request: SpeechRequest =
        serde_json::from_slice(body).map_err(|_| Failed::Request("the request is no request for speech"))?;
    let voice = request.voice.as_str();
    // The only word of a request that becomes an argument: a name such as `en-us+f5`, never a path or an option.
    let plain = voice.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'_'));
    if !plain || voice.is_empty() || voice.starts_with('-') || voice.len() > 64 {
        return Err(Failed::Request("this is no name of a voice"));
    }
    let rate = request.speed.unwrap_or(1.0) * RATE;
    if !RATES.contains(&rate) {
        return Err(Failed::Request("speed is outside 0.25 to 4"));
    }
    let rate = format!("{rate:.0}");
    let arguments = words(&["-b", "1", "-v", voice, "-s", &rate, "--stdin", "--stdout"]);
    let mut speaking = tool.start(&arguments, request.input.as_bytes(), OUTPUT)?;
    speaking.close();
    // What it cannot do at all it says before its first sample; then this is a refusal, not half an answer.
    match speaking.chunk().await {
        Some(first) => Ok(Body::Pieces { first: Some(first?), rest: Box::new(speaking) }),
        None => Err(OnceError::Ended { status: "no speech".to_owned(), complaint: String::new() }.into()),
    }
}
