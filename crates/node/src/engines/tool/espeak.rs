//! espeak-ng: text on its standard input, a waveform on its standard output.

use bytes::Bytes;
use cxmpute_wire::openai::SpeechRequest;
use cxmpute_wire::wave::Wave;

use super::{Failed, Tool, words};
use cxmpute_runtime::once::OnceError;

/// Words per minute at speed 1.
const RATE: f64 = 160.0;
/// What espeak-ng understands.
const RATES: std::ops::RangeInclusive<f64> = 40.0..=640.0;
/// Most bytes of speech: about 24 minutes.
const OUTPUT: usize = 64 * 1024 * 1024;

/// Says a text.
pub(super) async fn speak(tool: &Tool, body: &[u8]) -> Result<Bytes, Failed> {
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
    let printed = tool.run(&arguments, &[], request.input.as_bytes(), &[], OUTPUT).await?;
    let broken = |complaint: String| OnceError::Ended { status: "no speech".to_owned(), complaint };
    // The header that espeak-ng writes into a pipe does not know the length.
    let wave = Wave::read(&printed).map_err(|error| broken(error.to_string()))?;
    if wave.samples.is_empty() {
        return Err(Failed::Run(broken("it printed no samples".to_owned())));
    }
    Ok(wave.pack().into())
}
