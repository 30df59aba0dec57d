//! Looking at pictures: the first seed's four routes below `/m`, and what an engine answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openai::{CostDetails, ProviderPreferences};

/// A picture and what is wanted of it. Exactly one of `imageUrl`, `imageBase64` and `imageUint8` is given.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct SightRequest {
    /// Address of the picture, `http` or `https`.
    #[serde(default, rename = "imageUrl", skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// The picture as base64, with or without `data:image/…;base64,` in front.
    #[serde(default, rename = "imageBase64", skip_serializing_if = "Option::is_none")]
    pub image_base64: Option<String>,
    /// The picture as numbers from 0 to 255.
    #[serde(default, rename = "imageUint8", skip_serializing_if = "Option::is_none")]
    pub image_uint8: Option<Vec<u8>>,
    /// `/m/caption`: how long the caption is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<CaptionLength>,
    /// `/m/query`: the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// `/m/detect` and `/m/point`: what to look for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Model id or alias; the first that can do it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// How long a caption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CaptionLength {
    /// A few words.
    Short,
    /// A sentence.
    #[default]
    Normal,
    /// A paragraph.
    Long,
}

/// The answer of `/m/caption`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Caption {
    /// What the picture shows; of a model that only reads, the text that stands in it.
    pub caption: String,
    /// What it cost.
    pub usage: PieceUsage,
}

/// The answer of `/m/query`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SightAnswer {
    /// The answer.
    pub answer: String,
    /// What it cost.
    pub usage: PieceUsage,
}

/// The answer of `/m/detect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Detection {
    /// What was found.
    pub objects: Vec<DetectedObject>,
    /// What it cost.
    pub usage: PieceUsage,
}

/// The answer of `/m/point`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pointing {
    /// Middles of what was found.
    pub points: Vec<Point>,
    /// What it cost.
    pub usage: PieceUsage,
}

/// Something that was found. Places are parts of the picture's width and height, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DetectedObject {
    /// What it is.
    pub label: String,
    /// Left, top, right, bottom.
    #[serde(rename = "box")]
    pub place: [f64; 4],
    /// How sure the model is, from 0 to 1; null where it does not say.
    pub confidence: Option<f64>,
}

/// A place in a picture, as parts of its width and height.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// From the left, 0 to 1.
    pub x: f64,
    /// From the top, 0 to 1.
    pub y: f64,
}

/// What was counted by the piece.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PieceUsage {
    /// Pictures that are charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Pages that are charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<u64>,
    /// Tokens of the question and the picture, where a model that talks looked at it and its tokens are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// What it cost, in credits.
    pub cost: String,
    /// What `cost` is made of.
    pub cost_details: CostDetails,
}

/// What an engine that reads is given; between gateway and node only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Catalogue id of the model.
    pub model: String,
    /// A PNG as base64.
    pub image: String,
    /// Languages, such as `eng`; the engine's own choice when empty.
    #[serde(default)]
    pub languages: Vec<String>,
}

/// The text in a picture as an engine read it; between gateway and node only.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReadText {
    /// All of it, lines as in the picture.
    pub text: String,
    /// Word by word.
    #[serde(default)]
    pub words: Vec<ReadWord>,
}

/// One word in a picture.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReadWord {
    /// The word.
    pub text: String,
    /// Left, top, right, bottom in pixels.
    #[serde(rename = "box")]
    pub place: [u32; 4],
    /// How sure the engine is, from 0 to 1.
    pub confidence: f64,
}
