//! Embeddings as an errand: texts to a node, vectors back, checked number by number.

use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tokens::TokenCounter;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::Tokens;
use cxmpute_wire::openai::{EmbeddingInput, EmbeddingRequest, EncodingFormat};

use super::errand::{Errand, Misread, Printed, Ticket};
use super::usage::usage;
use super::vectors::{Vectors, print, read};
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::limits::INPUT_TOKENS;

/// Bytes that one number of a vector may take in JSON.
const PER_NUMBER: u64 = 32;
/// Bytes around the vectors.
const ENVELOPE: u64 = 64 * 1024;
/// Dimensions where the catalogue names none.
const DIMENSIONS: u64 = 4096;

/// Texts whose vectors are wanted.
#[derive(Debug)]
pub struct Embedding {
    /// The texts.
    pub texts: Vec<String>,
    /// Whether vectors are printed as base64.
    pub base64: bool,
    /// Whether texts that are too long are cut.
    pub truncate: Option<bool>,
    /// Most tokens of one text that are read; 0 where there is no bound.
    pub context: Tokens,
    /// Length of the vectors.
    pub dimensions: Option<u64>,
    /// The model's tokenizer.
    pub counter: Option<TokenCounter>,
}

impl Embedding {
    /// The texts of a request.
    #[must_use]
    pub fn of(request: EmbeddingRequest, ticket: &Ticket, counter: Option<TokenCounter>) -> Self {
        Self {
            base64: request.encoding_format == Some(EncodingFormat::Base64),
            truncate: request.truncate,
            context: ticket.model.context_length,
            dimensions: ticket.model.dimensions,
            texts: match request.input {
                EmbeddingInput::One(text) => vec![text],
                EmbeddingInput::Many(texts) => texts,
            },
            counter,
        }
    }

    fn units(&self, tokens: u64) -> Units {
        if self.counter.is_some() {
            return Units::embedding(Tokens(tokens));
        }
        let characters = self.texts.iter().map(|text| text.chars().count() as u64).sum();
        Units { characters, ..Units::default() }
    }
}

impl Errand for Embedding {
    type Answer = Vectors;

    fn path(&self) -> WorkPath {
        WorkPath::Embeddings
    }

    /// A token is at least one byte, and a few marks stand around a text.
    fn bound(&self) -> Units {
        const MARKS: usize = 8;
        let context = self.context.0;
        let of_text = |text: &String| {
            let bytes = (text.len() + MARKS) as u64;
            if context > 0 { bytes.min(context) } else { bytes }
        };
        self.units(self.texts.iter().map(of_text).sum())
    }

    /// A text that has no tokens counts nothing.
    fn count(&self) -> Units {
        let limit = match self.context {
            Tokens(0) => Tokens(u64::MAX),
            limit => limit,
        };
        let count = |text: &String| {
            let counter = self.counter.as_ref()?;
            counter.count_embedding_input(text, limit).ok().map(|tokens| tokens.0)
        };
        self.units(self.texts.iter().filter_map(count).sum())
    }

    fn is_plausible(&self, bound: &Units) -> bool {
        bound.embedding.0 <= INPUT_TOKENS
    }

    fn check(&self, exact: &Units) -> ApiResult<()> {
        if exact.embedding.0 <= INPUT_TOKENS {
            return Ok(());
        }
        let message =
            format!("The inputs have {} tokens; at most {INPUT_TOKENS} fit one request.", exact.embedding);
        Err(ApiError::invalid_parameter("input", message))
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        // Nodes always send numbers; the wanted print is made here.
        let request = EmbeddingRequest {
            model: ticket.model.id.clone(),
            input: EmbeddingInput::Many(self.texts.clone()),
            encoding_format: None,
            dimensions: None,
            truncate: self.truncate,
            keep_alive: None,
            user: None,
            provider: None,
        };
        serde_json::to_vec(&request).map(Bytes::from).map_err(ApiError::internal)
    }

    fn max_bytes(&self) -> u64 {
        ENVELOPE + self.texts.len() as u64 * self.dimensions.unwrap_or(DIMENSIONS) * PER_NUMBER
    }

    async fn read(&self, _app: &App, body: Vec<u8>) -> Result<Vectors, Misread> {
        Ok(read(&body, self.texts.len(), self.dimensions)?)
    }

    fn claimed(&self, _counted: &Units, answer: &Vectors) -> Option<Units> {
        answer.claim.map(|tokens| self.units(tokens))
    }

    fn print(&self, ticket: &Ticket, answer: Vectors, units: &Units, settled: &Settled) -> Printed {
        let usage = usage(units, &ticket.model.price, settled, false);
        Printed {
            bytes: print(&ticket.model_name, self.base64, answer.vectors, usage),
            content_type: "application/json",
        }
    }
}
