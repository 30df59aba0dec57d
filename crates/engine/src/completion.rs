//! `POST /v1/completions`: one prompt or several, answered as choices in order.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cxmpute_wire::openai::{
    CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, FinishReason, Usage,
};

use crate::generate::{Event, Prompt};
use crate::logprobs::CompletionOffsets;
use crate::params::{Admitted, Params, Task, admit};
use crate::refusal::{JsonBody, Refusal};
use crate::server::{DONE, Engine, broken, event, event_stream, fresh_id};
use crate::text::Span;

/// Continues texts, as a stream or whole.
pub async fn complete_text(
    State(engine): State<Arc<Engine>>,
    JsonBody(request, salt): JsonBody<CompletionRequest>,
) -> Result<Response, Refusal> {
    let llm = engine.llm(&request.model)?;
    let params = Params::of_completion(&request)?.salted(salt);
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
    let count = request.prompt.texts().len().saturating_mul(usize::try_from(params.choices()).unwrap_or(0));
    let writer = Writer { logprobs: request.logprobs, offsets: Vec::new() };
    let counter = llm.counter.clone();
    let admitted = admit(llm, params, "prompt", move || {
        let echo = request.echo.unwrap_or(false);
        let prompt = |text: &String| {
            let tokens = counter.encode_completion_prompt(text).map_err(Refusal::from)?;
            Ok(Prompt { tokens, echo: echo.then(|| text.clone()) })
        };
        let prompts: Result<_, Refusal> = request.prompt.texts().iter().map(prompt).collect();
        Ok(Task { prompts: prompts?, constraint: None, marks: Vec::new() })
    })
    .await?;
    if streamed { Ok(stream(head, writer, admitted)) } else { collect(head, writer, count, admitted).await }
}

/// Writes the tokens of each answer in the shape of their lists.
struct Writer {
    /// Wanted, with this many of the likeliest tokens.
    logprobs: Option<u64>,
    offsets: Vec<CompletionOffsets>,
}

impl Writer {
    fn choice(&mut self, index: u64, span: Span) -> CompletionChoice {
        let text = span.text.clone();
        let logprobs = self.logprobs.and_then(|listed| {
            let place = usize::try_from(index).ok()?;
            if self.offsets.len() <= place {
                self.offsets.resize_with(place + 1, CompletionOffsets::default);
            }
            Some(self.offsets[place].place(span, listed > 0))
        });
        CompletionChoice { index, text, finish_reason: None, logprobs }
    }
}

fn last(index: u64, reason: Option<FinishReason>) -> CompletionChoice {
    CompletionChoice { index, text: String::new(), finish_reason: reason, logprobs: None }
}

fn stream(head: CompletionResponse, mut writer: Writer, admitted: Admitted) -> Response {
    let Admitted { mut events, prompt_tokens } = admitted;
    let part = move |choices: Vec<CompletionChoice>, usage: Option<Usage>| {
        event(&CompletionResponse { choices, usage, ..head.clone() })
    };
    event_stream(async_stream::stream! {
        loop {
            match events.recv().await {
                Some(Event::Started) => {}
                Some(Event::Text { index, span }) => yield Ok(part(vec![writer.choice(index, span)], None)),
                Some(Event::Finished { index, reason }) => {
                    yield Ok(part(vec![last(index, Some(reason))], None));
                }
                Some(Event::Done { completion_tokens, cached_tokens }) => {
                    let usage = Usage::new(prompt_tokens, completion_tokens).with_cached(cached_tokens);
                    yield Ok(part(Vec::new(), Some(usage)));
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

async fn collect(
    head: CompletionResponse,
    mut writer: Writer,
    count: usize,
    admitted: Admitted,
) -> Result<Response, Refusal> {
    let Admitted { mut events, prompt_tokens } = admitted;
    let mut choices: Vec<CompletionChoice> = (0..).take(count).map(|index| last(index, None)).collect();
    let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    let usage = loop {
        match events.recv().await {
            Some(Event::Started) => {}
            Some(Event::Text { index, span }) => {
                let part = writer.choice(index, span);
                if let Some(choice) = choices.get_mut(at(index)) {
                    choice.text.push_str(&part.text);
                    append(&mut choice.logprobs, part.logprobs);
                }
            }
            Some(Event::Finished { index, reason }) => {
                if let Some(choice) = choices.get_mut(at(index)) {
                    choice.finish_reason = Some(reason);
                }
            }
            Some(Event::Done { completion_tokens, cached_tokens }) => {
                break Usage::new(prompt_tokens, completion_tokens).with_cached(cached_tokens);
            }
            last => return Err(broken(last)),
        }
    };
    Ok(Json(CompletionResponse { choices, usage: Some(usage), ..head }).into_response())
}

fn append(all: &mut Option<CompletionLogprobs>, more: Option<CompletionLogprobs>) {
    let Some(mut more) = more else { return };
    let Some(all) = all else {
        *all = Some(more);
        return;
    };
    all.tokens.append(&mut more.tokens);
    all.token_logprobs.append(&mut more.token_logprobs);
    all.text_offset.append(&mut more.text_offset);
    if let (Some(all), Some(mut more)) = (&mut all.top_logprobs, more.top_logprobs) {
        all.append(&mut more);
    }
}
