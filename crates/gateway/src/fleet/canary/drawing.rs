//! The check of a service that draws: one small picture, of the right size and with something on it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_wire::openai::{DrawRequest, Drawn, ImageResponse};

use super::Failed;
use crate::media::Frame;

/// What is drawn, by turns: no filter of a server takes offence at these.
const SUBJECTS: [&str; 4] = [
    "A red apple on a white table",
    "A lighthouse on a cliff",
    "A bowl of oranges beside a window",
    "A bicycle in front of a brick wall",
];
/// Steps: enough to see that the engine works.
const STEPS: u64 = 4;
/// Bytes of a pixel without any compression, as base64, and half as much again.
const BYTES_PER_PIXEL: usize = 8;

/// Pixels across and down: what the model is made for.
fn size(entry: &ModelEntry) -> (u32, u32) {
    entry.canvas.map_or((512, 512), |canvas| canvas.usual)
}

/// What the node is asked to draw.
pub(super) fn body(entry: &ModelEntry, tries: u32) -> serde_json::Value {
    let (width, height) = size(entry);
    let request = DrawRequest {
        model: entry.id.clone(),
        prompt: SUBJECTS[tries as usize % SUBJECTS.len()].to_owned(),
        n: 1,
        size: format!("{width}x{height}"),
        response_format: ImageResponse::B64Json,
        negative_prompt: None,
        num_inference_steps: Some(STEPS),
        seed: None,
    };
    serde_json::to_value(request).unwrap_or_default()
}

/// Most bytes of the answer.
pub(super) fn bytes(entry: &ModelEntry) -> usize {
    let (width, height) = size(entry);
    width as usize * height as usize * BYTES_PER_PIXEL
}

/// Looks at the answer, off the async threads.
pub(super) async fn judge(entry: &ModelEntry, body: Vec<u8>) -> Result<(), Failed> {
    let size = size(entry);
    let judged = tokio::task::spawn_blocking(move || {
        let drawn: Drawn = serde_json::from_slice(&body).map_err(|_| Failed::new("no pictures"))?;
        let [picture] = drawn.data.as_slice() else { return Err(Failed::new("not one picture")) };
        let file = STANDARD.decode(&picture.b64_json).map_err(Failed::new)?;
        Frame::read(&file, size).map(|_| ()).map_err(Failed::new)
    });
    judged.await.map_err(Failed::new)?
}

#[cfg(test)]
mod tests {
    use cxmpute_market::catalogue::Catalogue;

    use super::*;

    #[tokio::test]
    async fn a_drawing_is_a_picture_of_the_size_that_was_asked_for() {
        let text = "[[model]]\nid = \"m\"\nkind = \"image\"\ncanvas = { usual = \"320x96\", most_side = 320 }\n\
                    price = { version = 1, image = 1 }";
        let entry = Catalogue::parse(text, "models.toml").unwrap().resolve("m").unwrap().clone();
        assert_eq!(body(&entry, 5)["size"], "320x96");
        assert_ne!(body(&entry, 5)["prompt"], body(&entry, 6)["prompt"]);
        let drawn = |file: &[u8]| {
            serde_json::to_vec(&serde_json::json!({"data": [{"b64_json": STANDARD.encode(file)}]})).unwrap()
        };
        // 320 x 90.
        let other_size = include_bytes!("page.png");
        assert!(judge(&entry, drawn(other_size)).await.is_err());
        assert!(judge(&entry, drawn(b"no picture")).await.is_err());
        assert!(judge(&entry, b"[]".to_vec()).await.is_err());
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = image::RgbImage::from_fn(320, 96, |x, y| image::Rgb([x as u8, y as u8, 9]));
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        assert!(judge(&entry, drawn(file.get_ref())).await.is_ok());
    }
}
