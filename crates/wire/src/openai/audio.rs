//! Speech: text to sound and sound to text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CostDetails, ErrorEnvelope, ProviderPreferences};

/// `POST /audio/speech`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SpeechRequest {
    /// Model id or alias.
    pub model: String,
    /// What to say.
    pub input: String,
    /// Name of a voice of the model.
    pub voice: Voice,
    /// How the sound is packed; `mp3` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<AudioFormat>,
    /// How fast, 1 being usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// How to say it; models that cannot be told so refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// `audio`: the sound as the body; `sse`: as events. Without it a wav is sent when its length is known, everything else while
    /// it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_format: Option<StreamFormat>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// A voice by its name, or as OpenAI's object with an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Voice {
    /// By name.
    Name(String),
    /// By id.
    Id {
        /// The id.
        id: String,
    },
}

impl Voice {
    /// The name or id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(name) | Self::Id { id: name } => name,
        }
    }
}

/// How sound is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AudioFormat {
    /// MPEG layer 3.
    Mp3,
    /// Opus in Ogg.
    Opus,
    /// Advanced audio coding.
    Aac,
    /// Free lossless audio codec.
    Flac,
    /// Waveform with a header.
    Wav,
    /// 16-bit little-endian samples of one channel, 24,000 a second, without a header.
    Pcm,
}

impl AudioFormat {
    /// Its type in headers.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Mp3 => "audio/mpeg",
            Self::Opus => "audio/ogg",
            Self::Aac => "audio/aac",
            Self::Flac => "audio/flac",
            Self::Wav => "audio/wav",
            Self::Pcm => "audio/pcm",
        }
    }

    /// Its name in requests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mp3 => "mp3",
            Self::Opus => "opus",
            Self::Aac => "aac",
            Self::Flac => "flac",
            Self::Wav => "wav",
            Self::Pcm => "pcm",
        }
    }
}

/// How the sound is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamFormat {
    /// As the body.
    Audio,
    /// As server-sent events.
    Sse,
}

/// An event of speech that is sent while it is made, as OpenAI has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum SpeechEvent {
    /// A part of the sound.
    #[serde(rename = "speech.audio.delta")]
    Delta {
        /// Base64 of the next bytes of the file.
        audio: String,
    },
    /// The sound is complete and paid.
    #[serde(rename = "speech.audio.done")]
    Done {
        /// What it cost.
        usage: SpeechUsage,
    },
    /// The sound broke off, and costs nothing.
    #[serde(rename = "error")]
    Failed(ErrorEnvelope),
}

impl SpeechEvent {
    /// Its type.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Delta { .. } => "speech.audio.delta",
            Self::Done { .. } => "speech.audio.done",
            Self::Failed(_) => "error",
        }
    }
}

/// What was counted of a text that was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpeechUsage {
    /// 0: tokens are not counted here.
    pub input_tokens: u64,
    /// 0.
    pub output_tokens: u64,
    /// 0.
    pub total_tokens: u64,
    /// Characters that are charged.
    pub characters: u64,
    /// What it cost, in credits.
    pub cost: String,
    /// What `cost` is made of.
    pub cost_details: CostDetails,
}

/// `POST /tts`: the first seed's form of speech.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TtsRequest {
    /// What to say.
    pub text: String,
    /// Name of a voice; `af_bella` when absent, as the first seed has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice: Option<String>,
    /// Model id or alias; the first that speaks when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How fast, 1 being usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// How a transcript is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TranscriptFormat {
    /// An object with the text.
    #[default]
    Json,
    /// The bare text.
    Text,
    /// `SubRip` subtitles.
    Srt,
    /// `WebVTT` subtitles.
    Vtt,
    /// An object with segments and words and their times.
    VerboseJson,
}

/// A transcript: the answer to `response_format=json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Transcription {
    /// What was said.
    pub text: String,
    /// What was counted and what it cost.
    pub usage: DurationUsage,
}

/// A transcript with times: the answer to `response_format=verbose_json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerboseTranscription {
    /// `transcribe`.
    pub task: String,
    /// Language, in English, such as `english`.
    pub language: String,
    /// Seconds of sound.
    pub duration: f64,
    /// What was said.
    pub text: String,
    /// In pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<Segment>>,
    /// Word by word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
    /// What was counted and what it cost.
    pub usage: DurationUsage,
}

/// A piece of a transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    /// Position.
    pub id: u64,
    /// Where the engine had to seek, in hundredths of a second.
    pub seek: u64,
    /// Begin, in seconds.
    pub start: f64,
    /// End, in seconds.
    pub end: f64,
    /// What was said.
    pub text: String,
    /// Token ids, where the engine has tokens.
    pub tokens: Vec<u64>,
    /// Temperature of sampling; 0 where nothing is sampled.
    pub temperature: f64,
    /// Mean natural logarithm of the probability of its words.
    pub avg_logprob: f64,
    /// Length of the text over the length of the text compressed.
    pub compression_ratio: f64,
    /// Part of the piece in which nobody speaks.
    pub no_speech_prob: f64,
}

/// One word with its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Word {
    /// The word.
    pub word: String,
    /// Begin, in seconds.
    pub start: f64,
    /// End, in seconds.
    pub end: f64,
}

/// What was counted of sound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DurationUsage {
    /// `duration`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Seconds that are charged: the length rounded up.
    pub seconds: u64,
    /// What it cost, in credits.
    pub cost: String,
    /// What `cost` is made of.
    pub cost_details: CostDetails,
}

/// What an engine makes of sound; between gateway and node only.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Heard {
    /// What was said.
    pub text: String,
    /// Language, in English.
    #[serde(default)]
    pub language: Option<String>,
    /// In pieces.
    #[serde(default)]
    pub segments: Vec<HeardSegment>,
    /// Word by word.
    #[serde(default)]
    pub words: Vec<Word>,
}

/// A piece as an engine heard it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HeardSegment {
    /// Begin, in seconds.
    pub start: f64,
    /// End, in seconds.
    pub end: f64,
    /// What was said.
    pub text: String,
    /// Mean natural logarithm of the probability of its words.
    #[serde(default)]
    pub avg_logprob: Option<f64>,
    /// Part of the piece in which nobody speaks.
    #[serde(default)]
    pub no_speech_prob: Option<f64>,
    /// Temperature of sampling.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Token ids.
    #[serde(default)]
    pub tokens: Vec<u64>,
}
