//! Pictures of a conversation: taken out of its `data:` addresses or fetched through the guard, decoded, and put back as the small
//! pictures that a node gets.

use bytes::Bytes;
use cxmpute_market::picture::Detail;
use cxmpute_wire::openai::{ChatRequest, Content, ContentPart, ImageUrl};

use super::conversation::decode_data;
use super::validate::refuse;
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::media::View;
use crate::relay::Pictures;

/// Which addresses of pictures are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Pictures in the request, and those that are fetched for it.
    Anywhere,
    /// Pictures in the request only.
    Request,
}

/// Whether a conversation holds pictures.
#[must_use]
pub fn has_pictures(request: &ChatRequest) -> bool {
    request.messages.iter().filter_map(|message| message.content.as_ref()).any(Content::has_image)
}

/// Bytes of the addresses of a conversation's pictures.
#[must_use]
pub fn picture_bytes(request: &ChatRequest) -> usize {
    let contents = request.messages.iter().filter_map(|message| message.content.as_ref());
    let parts = contents.filter_map(|content| match content {
        Content::Parts(parts) => Some(parts),
        Content::Text(_) => None,
    });
    parts
        .flatten()
        .map(|part| match part {
            ContentPart::ImageUrl { image_url } => image_url.url.len(),
            _ => 0,
        })
        .sum()
}

/// Draws the pictures of a conversation anew, in their places, and says what they count as.
///
/// # Errors
/// The picture at fault.
pub async fn take_pictures(app: &App, request: &mut ChatRequest, from: Source) -> ApiResult<Pictures> {
    let mut pictures = Pictures::default();
    for (at, message) in request.messages.iter_mut().enumerate() {
        let Some(Content::Parts(parts)) = &mut message.content else { continue };
        for (place, part) in parts.iter_mut().enumerate() {
            let ContentPart::ImageUrl { image_url } = part else { continue };
            let param = format!("messages[{at}].content[{place}].image_url.url");
            let view = view(app, image_url, &param, from).await?;
            pictures.count += 1;
            pictures.tokens += view.tokens;
            pictures.bytes += view.url.len();
            if pictures.bytes > limits::PICTURES_BYTES {
                let most = limits::size(limits::PICTURES_BYTES);
                return refuse(
                    "messages",
                    format!(
                        "The pictures of a conversation have over {most}; send fewer, or with detail low."
                    ),
                );
            }
            *image_url = ImageUrl { url: view.url, detail: None };
        }
    }
    Ok(pictures)
}

async fn view(app: &App, image: &ImageUrl, param: &str, from: Source) -> ApiResult<View> {
    let detail = if image.detail.as_deref() == Some("low") { Detail::Low } else { Detail::High };
    if let Some((_, data)) = image.url.split_once(',').filter(|_| is_data(&image.url)) {
        let file = decode_data(data, param)?;
        let view = app.media.view(Bytes::from(file), detail).await;
        return view.map_err(|error| ApiError::invalid_parameter(param, sentence(&error.to_string())));
    }
    if from == Source::Request {
        let message = "A picture is counted from its bytes here; send it as base64.";
        return Err(ApiError::unsupported_parameter(param, message));
    }
    if image.url.len() > limits::URI {
        return refuse(param, format!("An address has at most {} bytes.", limits::URI));
    }
    // What went wrong with an address is told without what stands behind it.
    app.media.fetch_view(&image.url, detail).await.map_err(|error| {
        ApiError::invalid_parameter(param, sentence(&format!("the picture was not fetched: {error}")))
    })
}

fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// The words of an error as a sentence.
pub fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}
