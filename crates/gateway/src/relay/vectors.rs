//! The vectors of an answer: checked number by number as they come, printed as they were asked for.

use bytes::Bytes;
use cxmpute_wire::openai::{EmbeddingItem, EmbeddingList, EmbeddingValue, Usage};
use serde::Deserialize;

use super::errand::{failure, object};
use super::retry::Fault;

/// What came back, checked.
pub struct Vectors {
    /// One per text, in order.
    pub vectors: Vec<Vec<f32>>,
    /// The node's claim of tokens.
    pub claim: Option<u64>,
}

#[derive(Deserialize)]
struct NodeAnswer {
    #[serde(default)]
    data: Vec<NodeVector>,
    #[serde(default)]
    usage: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct NodeVector {
    index: usize,
    embedding: Vec<f32>,
}

/// Every text has exactly one vector of the right length with finite numbers.
pub(super) fn read(body: &[u8], texts: usize, dimensions: Option<u64>) -> Result<Vectors, Fault> {
    if let Some(fault) = failure(body) {
        return Err(fault);
    }
    let answer: NodeAnswer = object(body)?;
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); texts];
    let mut length = dimensions;
    for item in answer.data {
        let place = vectors.get_mut(item.index).ok_or(Fault::Protocol)?;
        let wanted = *length.get_or_insert(item.embedding.len() as u64);
        let sound = !item.embedding.is_empty()
            && item.embedding.len() as u64 == wanted
            && item.embedding.iter().all(|number| number.is_finite());
        if !sound || !place.is_empty() {
            return Err(Fault::Protocol);
        }
        *place = item.embedding;
    }
    if vectors.iter().any(Vec::is_empty) {
        return Err(Fault::Protocol);
    }
    let claim = answer.usage.and_then(|usage| usage.get("prompt_tokens").and_then(serde_json::Value::as_u64));
    Ok(Vectors { vectors, claim })
}

/// The answer, with the vectors in the print that was asked for.
pub(super) fn print(model: &str, base64: bool, vectors: Vec<Vec<f32>>, usage: Usage) -> Bytes {
    use base64::Engine as _;
    let value = |vector: Vec<f32>| {
        if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            EmbeddingValue::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            EmbeddingValue::Float(vector)
        }
    };
    let data = vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingItem {
        object: "embedding".to_owned(),
        index: index as u64,
        embedding: value(vector),
    });
    let list =
        EmbeddingList { object: "list".to_owned(), data: data.collect(), model: model.to_owned(), usage };
    serde_json::to_vec(&list).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: &str) -> Option<Fault> {
        read(body.as_bytes(), 2, Some(2)).err()
    }

    #[test]
    fn every_text_has_one_sound_vector() {
        let good = r#"{"object":"list","data":[{"index":1,"embedding":[3,4]},{"index":0,"embedding":[1,2]}],
            "usage":{"prompt_tokens":7,"total_tokens":7},"model":"x","extra":1}"#;
        let read = read(good.as_bytes(), 2, Some(2)).unwrap();
        assert_eq!(read.vectors, [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(read.claim, Some(7));
        for bad in [
            "",
            "{}",
            r#"{"data":[{"index":0,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":0,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":2,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":1,"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":1,"embedding":[1,1e60]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":1,"embedding":["a",2]}]}"#,
        ] {
            assert_eq!(fault(bad), Some(Fault::Protocol), "{bad}");
        }
        assert_eq!(fault(r#"{"error":{"code":"engine_failed"}}"#), Some(Fault::Engine));
    }

    #[test]
    fn base64_is_little_endian_32_bit_floats() {
        let bytes = print("m", true, vec![vec![1.0, -2.5]], Usage::new(3, 0));
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["data"][0]["embedding"], "AACAPwAAIMA=");
        let bytes = print("m", false, vec![vec![1.0, -2.5]], Usage::new(3, 0));
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["data"][0]["embedding"], serde_json::json!([1.0, -2.5]));
        assert_eq!(json["model"], "m");
    }
}
