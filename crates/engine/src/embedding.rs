//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_wire::Code;
use cxmpute_wire::openai::{
    EmbeddingItem, EmbeddingList, EmbeddingRequest, EmbeddingValue, EncodingFormat, Usage,
};
use tokio::sync::oneshot;

use crate::embed::Inputs;
use crate::refusal::{JsonBody, Refusal};
use crate::server::{Engine, in_background};

/// Most inputs of one request, as at `OpenAI`.
const MAX_INPUTS: usize = 2048;

/// Embeds one text or several.
pub async fn embed_texts(
    State(engine): State<Arc<Engine>>,
    JsonBody(request, _): JsonBody<EmbeddingRequest>,
) -> Result<Response, Refusal> {
    let embedder = engine.embedder(&request.model)?;
    let texts = request.input.texts();
    if texts.is_empty() || texts.len() > MAX_INPUTS || texts.iter().any(String::is_empty) {
        let message = format!("input takes 1 to {MAX_INPUTS} texts, none of them empty.");
        return Err(Refusal::parameter("input", message));
    }
    if request.dimensions.is_some_and(|wanted| wanted != embedder.dimensions as u64) {
        let message = format!("This model has {} dimensions and no others.", embedder.dimensions);
        return Err(Refusal::new(Code::UnsupportedParameter, message).at("dimensions"));
    }
    let may_cut = request.truncate.unwrap_or(true);
    let format = request.encoding_format.unwrap_or_default();
    let model = request.model.clone();
    let (counter, limit) = (embedder.counter.clone(), embedder.limit);
    let tokens = in_background(move || {
        let encode = |text: &String| encode_input(&counter, text, limit, may_cut);
        request.input.texts().iter().map(encode).collect::<Result<Vec<_>, _>>()
    })
    .await??;
    let prompt_tokens = tokens.iter().map(|input| input.len() as u64).sum();
    let (out, answer) = oneshot::channel();
    embedder.pool.submit(Inputs { tokens, out })?;
    let failed = |message: String| Refusal::new(Code::EngineFailed, message);
    let vectors = answer.await.map_err(|_| failed("the computation failed".into()))?.map_err(failed)?;
    let item = |(index, vector): (u64, Vec<f32>)| EmbeddingItem {
        object: "embedding".into(),
        index,
        embedding: value(vector, format),
    };
    let list = EmbeddingList {
        object: "list".into(),
        data: (0..).zip(vectors).map(item).collect(),
        model,
        usage: Usage::new(prompt_tokens, 0),
    };
    Ok(Json(list).into_response())
}

fn encode_input(
    counter: &cxmpute_tokens::TokenCounter,
    text: &str,
    limit: usize,
    may_cut: bool,
) -> Result<Vec<u32>, Refusal> {
    let encoded = counter.tokenizer().encode_marked(text, limit).map_err(cxmpute_tokens::CountError::from);
    match encoded? {
        (_, true) if !may_cut => {
            let message = format!("An input is longer than {limit} tokens.");
            Err(Refusal::new(Code::ContextLengthExceeded, message).at("input"))
        }
        (tokens, _) => Ok(tokens),
    }
}

fn value(vector: Vec<f32>, format: EncodingFormat) -> EmbeddingValue {
    match format {
        EncodingFormat::Float => EmbeddingValue::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|part| part.to_le_bytes()).collect();
            EmbeddingValue::Base64(STANDARD.encode(bytes))
        }
    }
}
