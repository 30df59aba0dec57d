//! `POST /v1/completions`: one prompt or several, answered as choices in order.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cxmpute_wire::openai::{CompletionChoice, CompletionRequest, CompletionResponse, FinishReason, Usage};

use crate::llm::Event;
use crate::params::{Admitted, Params, admit};
use crate::refusal::{JsonBody, Refusal};
use crate::server::{DONE, Engine, broken, event, event_stream, fresh_id};

/// Continues texts, as a stream or whole.
pub async fn complete_text(
    State(engine): State<Arc<Engine>>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, Refusal> {
    let llm = engine.llm(&request.model)?;
    let params = Params::of_completion(&request);
    let head = CompletionResponse {
        id: fresh_id("cmpl-"),
        object: "text_completion".into(),
        created: engine.clock.now().seconds(),
        model: request.model.clone(),
        choices: Vec::new(),
        usage: None,
        system_fingerprint: None,
    };
    let streamed = request.streamed();
    let count = request.prompt.texts().len();
    let counter = llm.counter.clone();
    let admitted = admit(llm, params, move || {
        let encode = |text: &String| counter.encode_completion_prompt(text).map_err(Refusal::from);
        request.prompt.texts().iter().map(encode).collect()
    })
    .await?;
    if streamed { Ok(stream(head, admitted)) } else { collect(head, count, admitted).await }
}

fn stream(head: CompletionResponse, admitted: Admitted) -> Response {
    let Admitted { mut events, prompt_tokens } = admitted;
    let part = move |choices: Vec<CompletionChoice>, usage: Option<Usage>| {
        event(&CompletionResponse { choices, usage, ..head.clone() })
    };
    event_stream(async_stream::stream! {
        loop {
            match events.recv().await {
                Some(Event::Started) => {}
                Some(Event::Text { index, text }) => yield Ok(part(vec![choice(index, text, None)], None)),
                Some(Event::Finished { index, reason }) => {
                    yield Ok(part(vec![choice(index, String::new(), Some(reason))], None));
                }
                Some(Event::Done { completion_tokens }) => {
                    yield Ok(part(Vec::new(), Some(Usage::new(prompt_tokens, completion_tokens))));
                    yield Ok(DONE);
                    return;
                }
                last => {
                    yield Ok(event(&broken(last).envelope()));
                    return;
                }
            }
        }
    })
}

async fn collect(head: CompletionResponse, count: usize, admitted: Admitted) -> Result<Response, Refusal> {
    let Admitted { mut events, prompt_tokens } = admitted;
    let mut choices: Vec<CompletionChoice> =
        (0..).take(count).map(|index| choice(index, String::new(), None)).collect();
    let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    let completion_tokens = loop {
        match events.recv().await {
            Some(Event::Started) => {}
            Some(Event::Text { index, text }) => {
                if let Some(choice) = choices.get_mut(at(index)) {
                    choice.text.push_str(&text);
                }
            }
            Some(Event::Finished { index, reason }) => {
                if let Some(choice) = choices.get_mut(at(index)) {
                    choice.finish_reason = Some(reason);
                }
            }
            Some(Event::Done { completion_tokens }) => break completion_tokens,
            last => return Err(broken(last)),
        }
    };
    let usage = Some(Usage::new(prompt_tokens, completion_tokens));
    Ok(Json(CompletionResponse { choices, usage, ..head }).into_response())
}

fn choice(index: u64, text: String, finish_reason: Option<FinishReason>) -> CompletionChoice {
    CompletionChoice { index, text, finish_reason, logprobs: None }
}
