//! Pictures that a model draws from words: OpenAI's shape, the first seed's, and what an engine is given.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ProviderPreferences;
use crate::sight::PieceUsage;

/// `POST /images/generations`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ImageRequest {
    /// What the picture shows.
    pub prompt: String,
    /// Model id or alias; the first that draws when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Number of pictures; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Pixels across and down, such as `512x512`; `auto` is what the model is made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// `auto`, `standard` or `medium`: no model here has more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<String>,
    /// `b64_json`, also when absent. Nothing is kept here, so there is no address to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ImageResponse>,
    /// How the picture is packed; `png` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_format: Option<PictureFormat>,
    /// `auto` or `opaque`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<String>,
    /// Pictures come whole; only `false` is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What the picture does not show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Steps of a diffusion; the engine's own number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<u64>,
    /// Seed of the noise at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// A name of the caller's own for its user; no node sees it.
    #[serde(default, skip_serializing)]
    pub user: Option<String>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// How a picture is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageResponse {
    /// In the answer, as base64.
    B64Json,
    /// By address; not offered.
    Url,
}

/// How a picture is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// Without loss.
    #[default]
    Png,
    /// Smaller, with loss.
    Jpeg,
    /// Without loss, smaller than PNG.
    Webp,
}

/// `POST /image`, as the first seed had it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SeedImageRequest {
    /// What the picture shows.
    pub prompt: String,
    /// What it does not show.
    #[serde(default, rename = "negativePrompt", skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Steps of the diffusion; 30 when absent.
    #[serde(default, rename = "numInferenceSteps", skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<u64>,
    /// Pixels across; 512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// Pixels down; 512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// Model id or alias; the first that draws when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// The answer of `/images/generations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    /// Seconds since 1970.
    pub created: i64,
    /// The pictures; fewer than asked for where the engine made fewer, and only these are paid.
    pub data: Vec<ImageDatum>,
    /// How they are packed.
    pub output_format: PictureFormat,
    /// Pixels across and down.
    pub size: String,
    /// What it cost.
    pub usage: PieceUsage,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageDatum {
    /// The picture as base64.
    pub b64_json: String,
}

/// What an engine that draws is given; between gateway, node and engine only. The node reads this type and nothing else
/// of a request, so it is the list of what may reach an owner's server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawRequest {
    /// Name of the model.
    pub model: String,
    /// What the picture shows.
    pub prompt: String,
    /// Number of pictures.
    pub n: u64,
    /// Pixels across and down.
    pub size: String,
    /// Always `b64_json`.
    pub response_format: ImageResponse,
    /// What the picture does not show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Steps of the diffusion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<u64>,
    /// Seed of the noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
}

/// What an engine that draws answers; other fields are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// The pictures.
    pub data: Vec<ImageDatum>,
}

/// Width and height of a size such as `512x512`; none of another text.
#[must_use]
pub fn read_size(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let plain = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| plain)
    };
    let (width, height) = text.split_once('x')?;
    Some((number(width)?, number(height)?))
}

/// Whether a prompt holds what servers of pictures take for commands to themselves: `<lora:NAME:1>` loads files,
/// `<sd_cpp_extra_args>` sets fields that the closed schema keeps out.
#[must_use]
pub fn commands_engine(prompt: &str) -> bool {
    const COMMANDS: [&str; 5] =
        ["<lora:", "<lyco:", "<hypernet:", "<sd_cpp_extra_args", "</sd_cpp_extra_args"];
    let bare: String = prompt.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect();
    COMMANDS.iter().any(|command| bare.contains(command))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(read_size("512x768"), Some((512, 768)));
        for bad in
            ["", "x", "512", "512x", "x512", "512x512x3", "+5x5", "5 x5", "512X512", "123456x1", "auto"]
        {
            assert_eq!(read_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_for_the_server_are_told_from_words_for_the_picture() {
        for bad in
            ["a cat <lora:x:1>", "< LoRA : x:1>", "<sd_cpp_extra_args>{\"steps\":999}</sd_cpp_extra_args>"]
        {
            assert!(commands_engine(bad), "{bad}");
        }
        for fine in ["", "a < b > c", "a flora: <3", "lora: a girl"] {
            assert!(!commands_engine(fine), "{fine}");
        }
    }

    #[test]
    fn an_engine_is_given_the_fields_of_the_list_only() {
        let body = json!({"model": "m", "prompt": "p", "n": 1, "size": "64x64", "response_format": "b64_json",
            "lora": "x", "user": "u", "num_inference_steps": 4});
        let read: DrawRequest = serde_json::from_value(body).unwrap();
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            json!({"model": "m", "prompt": "p", "n": 1, "size": "64x64", "response_format": "b64_json",
                "num_inference_steps": 4})
        );
    }
}
