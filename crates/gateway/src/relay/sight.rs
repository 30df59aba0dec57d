//! A picture as an errand for engines that read text in pictures: a PNG to a node, words with places back, and of these
//! what the client wanted.

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::sight::{
    Caption, CaptionLength, DetectedObject, Detection, Point, Pointing, ReadRequest, ReadText, ReadWord,
    SightAnswer,
};

use super::errand::{Errand, Misread, Printed, Ticket, failure, object};
use super::retry::Fault;
use super::usage::picture_usage;
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::media::Picture;

/// Most bytes of what stands in a picture.
const ANSWER: u64 = 8 * 1024 * 1024;

/// What is wanted of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A caption; of a model that reads, the text.
    Caption(CaptionLength),
    /// The answer to a question; of a model that reads, the text.
    Answer(String),
    /// Where these things, or words, are, as boxes.
    Boxes(String),
    /// Where these things, or words, are, as points.
    Points(String),
}

/// A picture to read.
#[derive(Debug)]
pub struct Sight {
    /// The picture.
    pub picture: Picture,
    /// What is wanted of it.
    pub wanted: Wanted,
}

impl Errand for Sight {
    type Answer = ReadText;

    fn path(&self) -> WorkPath {
        WorkPath::Read
    }

    fn bound(&self) -> Units {
        Units { images: 1, ..Units::default() }
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        let request = ReadRequest {
            model: ticket.model.id.clone(),
            image: base64::engine::general_purpose::STANDARD.encode(&self.picture.png),
            languages: Vec::new(),
        };
        serde_json::to_vec(&request).map(Bytes::from).map_err(ApiError::internal)
    }

    fn max_bytes(&self) -> u64 {
        ANSWER
    }

    async fn read(&self, _app: &App, body: Vec<u8>) -> Result<ReadText, Misread> {
        if let Some(fault) = failure(&body) {
            return Err(fault.into());
        }
        let read: ReadText = object(&body)?;
        let plain = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        let inside = |word: &ReadWord| {
            let [left, top, right, bottom] = word.place;
            left <= right
                && top <= bottom
                && right <= self.picture.width
                && bottom <= self.picture.height
                && (0.0..=1.0).contains(&word.confidence)
                && plain(&word.text)
        };
        let sound = plain(&read.text) && read.words.iter().all(inside);
        if sound { Ok(read) } else { Err(Fault::Protocol.into()) }
    }

    fn print(&self, ticket: &Ticket, answer: ReadText, units: &Units, settled: &Settled) -> Printed {
        let usage = picture_usage(units, &ticket.model.price, settled);
        let found = |target: &str| find(&answer.words, target, self.picture.width, self.picture.height);
        match &self.wanted {
            Wanted::Caption(_) => Printed::json(&Caption { caption: answer.text, usage }),
            Wanted::Answer(_) => Printed::json(&SightAnswer { answer: answer.text, usage }),
            Wanted::Boxes(target) => Printed::json(&Detection { objects: found(target), usage }),
            Wanted::Points(target) => {
                let middle = |object: DetectedObject| {
                    let [left, top, right, bottom] = object.place;
                    Point { x: f64::midpoint(left, right), y: f64::midpoint(top, bottom) }
                };
                Printed::json(&Pointing { points: found(target).into_iter().map(middle).collect(), usage })
            }
        }
    }
}

/// Where the words of `target` stand in a row, whatever their case and the marks around them.
fn find(words: &[ReadWord], target: &str, width: u32, height: u32) -> Vec<DetectedObject> {
    let bare = |text: &str| text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let wanted: Vec<String> = target.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let hits = words
        .windows(wanted.len())
        .filter(|row| row.iter().map(|word| bare(&word.text)).eq(wanted.iter().cloned()));
    hits.map(|row| {
        let least = |of: fn(&ReadWord) -> u32| f64::from(row.iter().map(of).min().unwrap_or(0));
        let most = |of: fn(&ReadWord) -> u32| f64::from(row.iter().map(of).max().unwrap_or(0));
        let texts: Vec<&str> = row.iter().map(|word| word.text.as_str()).collect();
        DetectedObject {
            label: texts.join(" "),
            place: [
                least(|word| word.place[0]) / width,
                least(|word| word.place[1]) / height,
                most(|word| word.place[2]) / width,
                most(|word| word.place[3]) / height,
            ],
            confidence: Some(row.iter().map(|word| word.confidence).fold(1.0, f64::min)),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_a_row_are_found_with_their_place() {
        let word = |text: &str, left: u32, confidence: f64| ReadWord {
            text: text.to_owned(),
            place: [left, 10, left + 10, 20],
            confidence,
        };
        let words =
            [word("Total:", 0, 0.9), word("128.50", 20, 0.8), word("EUR", 40, 0.95), word("total", 60, 0.5)];
        let found = find(&words, "total 128.50", 100, 40);
        let [object] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((object.label.as_str(), object.place), ("Total: 128.50", [0.0, 0.25, 0.3, 0.5]));
        assert!((object.confidence.unwrap() - 0.8).abs() < 1e-9);
        assert_eq!(find(&words, "TOTAL", 100, 40).len(), 2);
        assert_eq!(find(&words, "nothing", 100, 40), []);
        assert_eq!(find(&words, " -- ", 100, 40), []);
    }
}
