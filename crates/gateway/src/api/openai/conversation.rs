//! The messages of a conversation: their number, their parts, who may say what.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use cxmpute_wire::openai::{ChatMessage, Content, ContentPart, ImageUrl, Role};

use super::validate::refuse;
use crate::error::{ApiError, ApiResult};
use crate::limits;

/// Clients write base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A conversation that a model can be asked to continue.
///
/// # Errors
/// The message at fault.
pub fn check_messages(messages: &[ChatMessage]) -> ApiResult<()> {
    if messages.is_empty() || messages.len() > limits::MESSAGES {
        return refuse("messages", format!("messages must hold 1 to {} messages.", limits::MESSAGES));
    }
    let mut media = Media::default();
    let mut called = false;
    for (at, message) in messages.iter().enumerate() {
        called |= message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
            || message.function_call.is_some();
        check_message(message, at, called)?;
        if let Some(Content::Parts(parts)) = &message.content {
            if parts.len() > limits::PARTS {
                let message = format!("A message may have at most {} parts.", limits::PARTS);
                return refuse(&format!("messages[{at}].content"), message);
            }
            for (place, part) in parts.iter().enumerate() {
                media.check(part, &format!("messages[{at}].content[{place}]"))?;
            }
        }
    }
    media.refuse()
}

fn check_message(message: &ChatMessage, at: usize, called: bool) -> ApiResult<()> {
    let calls = message.tool_calls.as_deref().unwrap_or_default();
    let silent = message.content.is_none()
        && calls.is_empty()
        && message.function_call.is_none()
        && message.refusal.is_none();
    if silent {
        return refuse(&format!("messages[{at}].content"), "A message needs content, or tool_calls.");
    }
    if calls.len() > limits::CALLS {
        let message = format!("A message may have at most {} calls.", limits::CALLS);
        return refuse(&format!("messages[{at}].tool_calls"), message);
    }
    if !calls.is_empty() && message.role != Role::Assistant {
        return refuse(&format!("messages[{at}].tool_calls"), "Only an assistant calls tools.");
    }
    if let Some(place) = calls.iter().position(|call| call.kind != "function") {
        let param = format!("messages[{at}].tool_calls[{place}].type");
        return refuse(&param, "The type of a call is `function`.");
    }
    match message.role {
        Role::Tool if message.tool_call_id.is_none() => refuse(
            &format!("messages[{at}].tool_call_id"),
            "A message of a tool names the call that it answers in tool_call_id.",
        ),
        Role::Tool | Role::Function if !called => refuse(
            &format!("messages[{at}].role"),
            "A message of a tool must follow a message with tool_calls.",
        ),
        Role::Function if message.name.is_none() => {
            refuse(&format!("messages[{at}].name"), "A message of a function names it.")
        }
        _ => Ok(()),
    }
}

/// Images and sounds of a conversation.
#[derive(Default)]
struct Media {
    images: usize,
    sounds: usize,
}

impl Media {
    fn check(&mut self, part: &ContentPart, param: &str) -> ApiResult<()> {
        match part {
            ContentPart::Text { .. } | ContentPart::Refusal { .. } => Ok(()),
            ContentPart::ImageUrl { image_url } => {
                self.images += 1;
                if self.images > limits::IMAGES {
                    let message = format!("A conversation may have at most {} images.", limits::IMAGES);
                    return refuse("messages", message);
                }
                check_image(image_url, &format!("{param}.image_url"))
            }
            ContentPart::InputAudio { input_audio } => {
                self.sounds += 1;
                if !matches!(input_audio.format.as_str(), "wav" | "mp3") {
                    return refuse(&format!("{param}.input_audio.format"), "The format is wav or mp3.");
                }
                check_size(&input_audio.data, &format!("{param}.input_audio.data"))
            }
        }
    }

    /// No model of the catalogue listens in a conversation yet.
    fn refuse(&self) -> ApiResult<()> {
        match self.sounds {
            0 => Ok(()),
            _ => Err(ApiError::unsupported_parameter("messages", "This model does not take sounds.")),
        }
    }
}

fn check_image(image: &ImageUrl, param: &str) -> ApiResult<()> {
    if let Some(detail) = &image.detail
        && !matches!(detail.as_str(), "auto" | "low" | "high")
    {
        return refuse(&format!("{param}.detail"), "detail is auto, low or high.");
    }
    let param = format!("{param}.url");
    let Some((scheme, rest)) = image.url.split_once(':') else {
        return refuse(&param, "An image is given by an https: or data: address.");
    };
    match scheme.to_ascii_lowercase().as_str() {
        "https" | "http" if rest.starts_with("//") => Ok(()),
        "data" => {
            let Some((kind, data)) = rest.split_once(',') else {
                return refuse(&param, "A data: address has a comma before its data.");
            };
            match kind.strip_suffix(";base64") {
                Some(kind) if kind.starts_with("image/") => check_size(data, &param),
                _ => refuse(&param, "An image in a data: address is image/...;base64."),
            }
        }
        _ => refuse(&param, "An image is given by an https: or data: address."),
    }
}

/// The bytes of a picture in a `data:` address; none when they are no base64. Megabytes: blocking work.
pub fn decode_data(url: &str) -> Option<Vec<u8>> {
    let (_, data) = url.split_once(',')?;
    BASE64.decode(data).ok()
}

/// The refusal of data that [`decode_data`] makes nothing of.
pub fn no_base64(param: &str) -> ApiError {
    ApiError::invalid_parameter(param, "The data is not base64.")
}

/// How large data is; what it is, is found out where it is decoded, once.
fn check_size(data: &str, param: &str) -> ApiResult<()> {
    // Four characters are three bytes.
    if data.len() / 4 * 3 > limits::IMAGE_BYTES {
        return refuse(param, format!("The decoded data has more than {} bytes.", limits::IMAGE_BYTES));
    }
    if data.is_empty() { Err(no_base64(param)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn param(messages: Value) -> Option<String> {
        let messages: Vec<ChatMessage> = serde_json::from_value(messages).unwrap();
        check_messages(&messages).err().and_then(|error| error.param.clone())
    }

    fn image(url: &str) -> Value {
        json!({"type": "image_url", "image_url": {"url": url}})
    }

    #[test]
    fn the_message_at_fault_is_named() {
        let user = json!({"role": "user", "content": "x"});
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let parts = vec![json!({"type": "text", "text": "x"}); limits::PARTS + 1];
        for (messages, field) in [
            (json!([user]), None),
            (json!([]), Some("messages")),
            (json!(vec![user.clone(); limits::MESSAGES]), None),
            (json!(vec![user.clone(); limits::MESSAGES + 1]), Some("messages")),
            (json!([user, {"role": "user"}]), Some("messages[1].content")),
            (json!([{"role": "user", "content": parts}]), Some("messages[0].content")),
            (
                json!([user, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "7", "tool_call_id": "c"}]),
                None,
            ),
            (json!([{"role": "user", "content": "x", "tool_calls": [call]}]), Some("messages[0].tool_calls")),
            (json!([user, {"role": "tool", "content": "7", "tool_call_id": "c"}]), Some("messages[1].role")),
            (
                json!([{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "7"}]),
                Some("messages[1].tool_call_id"),
            ),
            (
                json!([{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, {"role": "function", "content": "7"}]),
                Some("messages[1].name"),
            ),
            (json!([{"role": "developer", "content": "x"}, user]), None),
        ] {
            assert_eq!(param(messages.clone()).as_deref(), field, "{messages}");
        }
    }

    #[test]
    fn images_are_measured_and_sounds_are_refused_as_not_supported() {
        let large = format!("data:image/png;base64,{}", "A".repeat(limits::IMAGE_BYTES / 3 * 4 + 8));
        let url = Some("messages[0].content[0].image_url.url");
        for (part, field) in [
            (image("https://example.org/a.png"), None),
            (image("data:image/png;base64,AAAA"), None),
            (image("data:image/png;base64,AAA"), None),
            (image("data:image/png;base64,A=A!"), None),
            (image("data:image/png;base64,"), url),
            (image("data:text/html;base64,AAAA"), url),
            (image("data:,"), url),
            (image(&large), url),
            (image("file:///etc/passwd"), url),
            (image("ftp://example.org/a"), url),
            (image("a.png"), url),
            (
                json!({"type": "image_url", "image_url": {"url": "https://x/", "detail": "x"}}),
                Some("messages[0].content[0].image_url.detail"),
            ),
            (
                json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
                Some("messages"),
            ),
            (
                json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "ogg"}}),
                Some("messages[0].content[0].input_audio.format"),
            ),
            (
                json!({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
                Some("messages[0].content[0].input_audio.data"),
            ),
        ] {
            assert_eq!(param(json!([{"role": "user", "content": [part]}])).as_deref(), field, "{part}");
        }
        assert_eq!(decode_data("data:image/png;base64,AAAA").unwrap(), [0; 3]);
        assert_eq!(decode_data("data:image/png;base64,AAA").unwrap(), [0; 2], "padding may be missing");
        assert_eq!(decode_data("data:image/png;base64,A=A!"), None);
        let many = vec![image("https://example.org/a.png"); limits::IMAGES + 1];
        assert_eq!(param(json!([{"role": "user", "content": many}])).as_deref(), Some("messages"));
    }
}
