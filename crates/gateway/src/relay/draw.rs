//! Pictures from words as an errand: a prompt to a node, pictures back, each decoded and written anew here. Of a node's bytes
//! nothing reaches a client but pixels.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::{
    DrawRequest, Drawn, ImageDatum, ImageList, ImageResponse, PictureFormat, read_size,
};

use super::errand::{Errand, Misread, Printed, Ticket, failure, object};
use super::retry::Fault;
use super::usage::picture_usage;
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::media::{Frame, FrameError};

/// Bytes of a pixel that a node may send: three colours and transparency without any compression, a third more as base64,
/// and half as much again for what the container needs.
const BYTES_PER_PIXEL: u64 = 8;
/// Bytes of an answer beside its pixels.
const AROUND: u64 = 256 * 1024;

/// A picture to draw.
#[derive(Debug)]
pub struct Drawing {
    /// What the node is given, but for the model's name.
    pub request: DrawRequest,
    /// Pixels across and down; those of the request.
    pub size: (u32, u32),
    /// How often one picture of this size is charged.
    pub units: u64,
    /// How the pictures are packed.
    pub format: PictureFormat,
    /// How they are handed over.
    pub form: DrawingForm,
}

/// How pictures are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawingForm {
    /// OpenAI's list; with the time of the request in seconds since 1970.
    List(i64),
    /// One picture as the body.
    Bare,
}

impl Drawing {
    /// What a request asks for.
    ///
    /// # Errors
    /// The size of the request is none, which whoever made it rules out.
    pub fn new(
        request: DrawRequest,
        units: u64,
        format: PictureFormat,
        form: DrawingForm,
    ) -> ApiResult<Self> {
        let size = read_size(&request.size)
            .ok_or_else(|| ApiError::internal(anyhow::anyhow!("a drawing without a size")))?;
        Ok(Self { request, size, units, format, form })
    }
}

impl Errand for Drawing {
    /// The pictures, packed as the client wants them.
    type Answer = Vec<Bytes>;

    fn path(&self) -> WorkPath {
        WorkPath::Draw
    }

    fn bound(&self) -> Units {
        Units { images: self.request.n.saturating_mul(self.units), ..Units::default() }
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        let request = DrawRequest {
            model: ticket.model.id.clone(),
            response_format: ImageResponse::B64Json,
            ..self.request.clone()
        };
        serde_json::to_vec(&request).map(Bytes::from).map_err(ApiError::internal)
    }

    fn max_bytes(&self) -> u64 {
        let pixels = u64::from(self.size.0) * u64::from(self.size.1);
        (pixels * BYTES_PER_PIXEL + AROUND).saturating_mul(self.request.n)
    }

    async fn read(&self, app: &App, body: Vec<u8>) -> Result<Vec<Bytes>, Misread> {
        if let Some(fault) = failure(&body) {
            return Err(fault.into());
        }
        let drawn: Drawn = object(&body)?;
        drop(body);
        if drawn.data.is_empty() {
            return Err(Fault::Empty.into());
        }
        if drawn.data.len() as u64 > self.request.n {
            return Err(Fault::Protocol.into());
        }
        let mut pictures = Vec::with_capacity(drawn.data.len());
        for picture in drawn.data {
            #[cfg(feature = "sabotage")]
            if app.sabotage == Some(crate::sabotage::Sabotage::UncheckedShape) {
                pictures.push(STANDARD.decode(&picture.b64_json).unwrap_or_default().into());
                continue;
            }
            let (size, format) = (self.size, self.format);
            let made = app.media.frame(move || {
                let file = STANDARD.decode(&picture.b64_json).map_err(|_| FrameError::Broken)?;
                Frame::read(&file, size)?.pack(format)
            });
            pictures.push(made.await.map_err(|error| match error {
                FrameError::Blank => Misread::Node(Fault::Empty),
                FrameError::Broken | FrameError::Size => Misread::Node(Fault::Protocol),
                FrameError::Pack => Misread::Ours(ApiError::internal(error)),
            })?);
        }
        Ok(pictures)
    }

    /// Only what is delivered is paid (MR31).
    fn delivered(&self, exact: Units, answer: &Vec<Bytes>) -> Units {
        Units { images: exact.images.min((answer.len() as u64).saturating_mul(self.units)), ..exact }
    }

    fn print(&self, ticket: &Ticket, mut answer: Vec<Bytes>, units: &Units, settled: &Settled) -> Printed {
        match self.form {
            DrawingForm::Bare => Printed {
                bytes: answer.pop().unwrap_or_default(),
                content_type: crate::media::content_type(self.format),
            },
            DrawingForm::List(created) => Printed::json(&ImageList {
                created,
                data: answer.iter().map(|file| ImageDatum { b64_json: STANDARD.encode(file) }).collect(),
                output_format: self.format,
                size: self.request.size.clone(),
                usage: picture_usage(units, &ticket.model.price, settled),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_paid_by_its_size_and_only_when_it_came() {
        let request = DrawRequest {
            model: String::new(),
            prompt: "a cat".to_owned(),
            n: 3,
            size: "1024x512".to_owned(),
            response_format: ImageResponse::B64Json,
            negative_prompt: None,
            num_inference_steps: None,
            seed: None,
        };
        let drawing = Drawing::new(request, 2, PictureFormat::Png, DrawingForm::Bare).unwrap();
        let bound = drawing.bound();
        assert_eq!((bound.images, drawing.size), (6, (1024, 512)));
        assert_eq!(drawing.delivered(bound, &vec![Bytes::new(); 2]).images, 4);
        assert_eq!(drawing.abandoned(), Units::default());
    }
}
