//! Pictures of a conversation: taken out of its `data:` addresses or fetched through the guard, decoded, and put back as the small
//! pictures that a node gets.

use cxmpute_market::picture::Detail;
use cxmpute_wire::openai::{ChatRequest, Content, ContentPart, ImageUrl};

use super::conversation::{decode_data, no_base64};
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
    // All at once: a site that is slow holds up no other, and the desk decodes as many as there are processors.
    let places: Vec<(usize, usize)> = places(request);
    let views = places.iter().map(|&(at, place)| {
        // Taken, not copied: it may have megabytes, and what stands there in the end is the picture that a node gets.
        let image = image_at(request, at, place)
            .map(|image| std::mem::replace(image, ImageUrl { url: String::new(), detail: None }));
        async move {
            let param = format!("messages[{at}].content[{place}].image_url.url");
            match image {
                Some(image) => view(app, image, &param, from).await,
                None => Err(ApiError::internal(anyhow::anyhow!("a picture is gone"))),
            }
        }
    });
    let views = futures_util::future::join_all(views.collect::<Vec<_>>()).await;
    let mut pictures = Pictures::default();
    for ((at, place), view) in places.into_iter().zip(views) {
        let view = view?;
        pictures.count += 1;
        pictures.tokens += view.tokens;
        pictures.bytes += view.url.len();
        if pictures.bytes > limits::PICTURES_BYTES {
            let most = limits::size(limits::PICTURES_BYTES);
            let message =
                format!("The pictures of a conversation have over {most}; send fewer, or with detail low.");
            return refuse("messages", message);
        }
        if let Some(Content::Parts(parts)) = &mut request.messages[at].content
            && let ContentPart::ImageUrl { image_url } = &mut parts[place]
        {
            *image_url = ImageUrl { url: view.url, detail: None };
        }
    }
    Ok(pictures)
}

/// Where the pictures of a conversation are: message and part.
fn places(request: &ChatRequest) -> Vec<(usize, usize)> {
    let parts = request.messages.iter().enumerate().filter_map(|(at, message)| match &message.content {
        Some(Content::Parts(parts)) => Some((at, parts)),
        _ => None,
    });
    let pictures = parts.flat_map(|(at, parts)| {
        let is_picture = |part: &ContentPart| matches!(part, ContentPart::ImageUrl { .. });
        parts.iter().enumerate().filter(move |(_, part)| is_picture(part)).map(move |(place, _)| (at, place))
    });
    pictures.collect()
}

fn image_at(request: &mut ChatRequest, at: usize, place: usize) -> Option<&mut ImageUrl> {
    match request.messages.get_mut(at)?.content.as_mut()? {
        Content::Parts(parts) => match parts.get_mut(place)? {
            ContentPart::ImageUrl { image_url } => Some(image_url),
            _ => None,
        },
        Content::Text(_) => None,
    }
}

async fn view(app: &App, image: ImageUrl, param: &str, from: Source) -> ApiResult<View> {
    let detail = if image.detail.as_deref() == Some("low") { Detail::Low } else { Detail::High };
    if is_data(&image.url) {
        let view = app.media.view_of(move || decode_data(&image.url), detail).await;
        let view = view.map_err(|error| ApiError::invalid_parameter(param, sentence(&error.to_string())))?;
        return view.ok_or_else(|| no_base64(param));
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
