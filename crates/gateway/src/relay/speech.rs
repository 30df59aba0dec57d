//! Speech as an errand: a text to a node, a waveform back, checked and packed as the client asked; as a whole, or while it is made.

mod ear;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::{AudioFormat, SpeechEvent, StreamFormat};
use cxmpute_wire::wave::Wave;

use super::errand::{Errand, Incoming, Live, Misread, Outflow, Printed, Ticket, failure};
use super::respond::EVENTS;
use super::retry::Fault;
use super::usage::speech_usage;
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::media::{PackError, Packing};
use ear::Ear;

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
    /// How it is handed on while it is made; `None` as a whole.
    pub live: Option<StreamFormat>,
}

impl Speech {
    fn longest_ms(&self) -> f64 {
        self.text.chars().count() as f64 * CHARACTER_MS / self.speed + EXTRA_MS
    }

    /// Whether there is something to say.
    fn says(&self) -> bool {
        self.text.chars().any(char::is_alphanumeric)
    }

    /// A part of a live answer.
    fn part(&self, audio: &Bytes) -> Bytes {
        match self.live {
            Some(StreamFormat::Sse) => event(&SpeechEvent::Delta { audio: STANDARD.encode(audio) }),
            Some(StreamFormat::Audio) | None => audio.clone(),
        }
    }
}

/// What was packed next. Waits for ever while nothing is being packed.
async fn next(packing: &mut Option<Packing>) -> Option<Result<Bytes, PackError>> {
    match packing {
        Some(packing) => packing.made().await,
        None => std::future::pending().await,
    }
}

fn event(event: &SpeechEvent) -> Bytes {
    let data = serde_json::to_string(event).unwrap_or_default();
    format!("event: {}\ndata: {data}\n\n", event.name()).into()
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

    fn live(&self) -> Option<Live> {
        Some(match self.live? {
            StreamFormat::Audio => Live { content_type: self.format.content_type(), failure: None },
            StreamFormat::Sse => {
                Live { content_type: EVENTS, failure: Some(|error| event(&SpeechEvent::Failed(error))) }
            }
        })
    }

    async fn receive(&self, app: &App, node: &mut Incoming<'_>, out: &mut Outflow) -> Result<Bytes, Misread> {
        if self.live.is_none() {
            return self.read(app, node.whole().await?).await;
        }
        let ours = |error: PackError| Misread::Ours(ApiError::internal(error));
        let mut ear = Ear::new(self.longest_ms(), self.says());
        let mut packing: Option<Packing> = None;
        let mut ended = false;
        loop {
            let room = !ended && packing.as_ref().is_none_or(|packing| !packing.is_full());
            tokio::select! {
                made = next(&mut packing) => match made {
                    Some(part) => out.send(self.part(&part.map_err(ours)?)).await?,
                    None => return Ok(Bytes::new()),
                },
                chunk = node.chunk(), if room => match chunk? {
                    Some(chunk) => {
                        let Some(samples) = ear.hear(&chunk)? else { continue };
                        let packing = match (&mut packing, ear.format()) {
                            (Some(packing), _) => packing,
                            (none, Some((rate, channels))) => {
                                let packer = &app.media.packer;
                                let time = app.config.relay.speech_total();
                                none.insert(packer.begin(self.format, rate, channels, time).map_err(ours)?)
                            }
                            (_, None) => continue,
                        };
                        packing.give(samples).map_err(ours)?;
                    }
                    None => {
                        ear.finish()?;
                        ended = true;
                        match &mut packing {
                            Some(packing) => packing.close().map_err(ours)?,
                            None => return Err(Fault::Empty.into()),
                        }
                    }
                },
            }
        }
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
        if wave.samples.is_empty() || (self.says() && wave.is_silent()) {
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

    fn print(&self, ticket: &Ticket, answer: Bytes, units: &Units, settled: &Settled) -> Printed {
        let bytes = match self.live {
            Some(StreamFormat::Sse) => {
                event(&SpeechEvent::Done { usage: speech_usage(units, &ticket.model.price, settled) })
            }
            Some(StreamFormat::Audio) | None => answer,
        };
        Printed { bytes, content_type: self.format.content_type() }
    }
}
