//! Speech as an errand: a text to a node, a waveform back, checked and packed as the client asked.

use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::AudioFormat;
use cxmpute_wire::wave::Wave;

use super::errand::{Errand, Misread, Printed, Ticket, failure};
use super::retry::Fault;
use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// Longest that one character is said at speed 1, in milliseconds: three times what slow voices take.
const CHARACTER_MS: f64 = 250.0;
/// What every answer may have beyond, in milliseconds: pauses at both ends, digits that are whole words.
const EXTRA_MS: f64 = 20_000.0;
/// Bytes of a millisecond of the finest sound that is taken: 48,000 samples of one channel per second.
const BYTES_PER_MS: f64 = 96.0;
/// Most bytes of speech, whatever the text.
const MOST: u64 = 64 * 1024 * 1024;

/// A text to say.
#[derive(Debug)]
pub struct Speech {
    /// The text.
    pub text: String,
    /// The engine's name of the voice.
    pub voice: String,
    /// How fast, 1 being usual.
    pub speed: f64,
    /// How the answer is packed.
    pub format: AudioFormat,
}

impl Speech {
    fn longest_ms(&self) -> f64 {
        self.text.chars().count() as f64 * CHARACTER_MS / self.speed + EXTRA_MS
    }
}

impl Errand for Speech {
    type Answer = Bytes;

    fn path(&self) -> WorkPath {
        WorkPath::Speech
    }

    fn bound(&self) -> Units {
        Units { characters: self.text.chars().count() as u64, ..Units::default() }
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        let body = serde_json::json!({
            "model": ticket.model.id,
            "input": self.text,
            "voice": self.voice,
            "speed": self.speed,
            // The one form that can be checked; the client's own is made here.
            "response_format": AudioFormat::Wav,
        });
        Ok(body.to_string().into())
    }

    fn max_bytes(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive and bounded below"
        )]
        let bytes = (self.longest_ms() * BYTES_PER_MS) as u64;
        bytes.min(MOST)
    }

    async fn read(&self, app: &App, body: Vec<u8>) -> Result<Bytes, Misread> {
        if let Some(fault) = failure(&body) {
            return Err(fault.into());
        }
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::UncheckedShape) {
            return Ok(body.into());
        }
        let wave = Wave::read(&body).map_err(|_| Fault::Protocol)?;
        // Silence for a text with something to say in it is no speech.
        let says = self.text.chars().any(char::is_alphanumeric);
        if wave.samples.is_empty() || (says && wave.is_silent()) {
            return Err(Fault::Empty.into());
        }
        if wave.millis() as f64 > self.longest_ms() {
            return Err(Fault::Protocol.into());
        }
        let packed = app.media.packer.pack(wave.pack().into(), self.format).await;
        packed.map_err(|error| Misread::Ours(ApiError::internal(error)))
    }

    /// The characters that a node accepted are paid (MR31).
    fn abandoned(&self) -> Units {
        self.bound()
    }

    fn print(&self, _ticket: &Ticket, answer: Bytes, _units: &Units, _settled: &Settled) -> Printed {
        Printed { bytes: answer, content_type: self.format.content_type() }
    }
}
