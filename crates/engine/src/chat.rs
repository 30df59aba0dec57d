//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cxmpute_wire::openai::{
    ChatChoice, ChatChunk, ChatRequest, ChatResponse, ChunkChoice, Delta, FinishReason, FunctionDelta,
    ResponseMessage, Role, ToolCall, ToolCallDelta, Usage,
};

use crate::llm::Event;
use crate::params::{Admitted, Params, admit};
use crate::refusal::{JsonBody, Refusal};
use crate::server::{DONE, Engine, broken, event, event_stream, fresh_id};
use crate::tools::ToolFilter;

/// What is the same in all chunks of an answer.
struct Head {
    id: String,
    created: i64,
    model: String,
    /// Tool calls are looked for.
    tools: bool,
}

/// Answers a conversation, as a stream or whole.
pub async fn complete_chat(
    State(engine): State<Arc<Engine>>,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, Refusal> {
    let llm = engine.llm(&request.model)?;
    let params = Params::of_chat(&request)?;
    let streamed = request.streamed();
    let head = Head {
        id: fresh_id("chatcmpl-"),
        created: engine.clock.now().seconds(),
        model: request.model.clone(),
        tools: request.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
    };
    let counter = llm.counter.clone();
    let admitted = admit(llm, params, move || Ok(vec![counter.encode_prompt(&request)?])).await?;
    if streamed { Ok(stream(head, admitted)) } else { collect(head, admitted).await }
}

fn stream(head: Head, admitted: Admitted) -> Response {
    let Admitted { mut events, prompt_tokens } = admitted;
    event_stream(async_stream::stream! {
        let mut filter = head.tools.then(ToolFilter::default);
        loop {
            match events.recv().await {
                Some(Event::Started) => {
                    yield Ok(head.change(Delta { role: Some(Role::Assistant), ..Delta::default() }, None));
                }
                Some(Event::Text { text, .. }) => {
                    let text = filter.as_mut().map_or_else(|| text.clone(), |filter| filter.push(&text));
                    if !text.is_empty() {
                        yield Ok(head.text(text));
                    }
                }
                Some(Event::Finished { mut reason, .. }) => {
                    match filter.take().map_or_else(|| Err(String::new()), ToolFilter::finish) {
                        Ok(calls) => {
                            reason = FinishReason::ToolCalls;
                            yield Ok(head.calls(calls));
                        }
                        Err(rest) if !rest.is_empty() => yield Ok(head.text(rest)),
                        Err(_) => {}
                    }
                    yield Ok(head.change(Delta::default(), Some(reason)));
                }
                Some(Event::Done { completion_tokens }) => {
                    yield Ok(head.usage(Usage::new(prompt_tokens, completion_tokens)));
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

async fn collect(head: Head, admitted: Admitted) -> Result<Response, Refusal> {
    let Admitted { mut events, prompt_tokens } = admitted;
    let mut filter = head.tools.then(ToolFilter::default);
    let mut content = String::new();
    let mut finish = FinishReason::Stop;
    let completion_tokens = loop {
        match events.recv().await {
            Some(Event::Started) => {}
            Some(Event::Text { text, .. }) => match filter.as_mut() {
                Some(filter) => content.push_str(&filter.push(&text)),
                None => content.push_str(&text),
            },
            Some(Event::Finished { reason, .. }) => finish = reason,
            Some(Event::Done { completion_tokens }) => break completion_tokens,
            last => return Err(broken(last)),
        }
    };
    let tool_calls = match filter.map(ToolFilter::finish) {
        Some(Ok(calls)) => {
            finish = FinishReason::ToolCalls;
            Some(calls)
        }
        Some(Err(rest)) => {
            content.push_str(&rest);
            None
        }
        None => None,
    };
    let content = Some(content).filter(|content| tool_calls.is_none() || !content.is_empty());
    let message =
        ResponseMessage { role: Role::Assistant, content, refusal: None, tool_calls, function_call: None };
    let answer = ChatResponse {
        id: head.id,
        object: "chat.completion".into(),
        created: head.created,
        model: head.model,
        choices: vec![ChatChoice { index: 0, message, finish_reason: Some(finish), logprobs: None }],
        usage: Some(Usage::new(prompt_tokens, completion_tokens)),
        system_fingerprint: None,
    };
    Ok(Json(answer).into_response())
}

impl Head {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>) -> Bytes {
        event(&ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".into(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: None,
        })
    }

    fn change(&self, delta: Delta, finish_reason: Option<FinishReason>) -> Bytes {
        self.chunk(vec![ChunkChoice { index: 0, delta, finish_reason, logprobs: None }], None)
    }

    fn text(&self, text: String) -> Bytes {
        self.change(Delta { content: Some(text), ..Delta::default() }, None)
    }

    fn calls(&self, calls: Vec<ToolCall>) -> Bytes {
        let calls = (0..).zip(calls).map(|(index, call)| ToolCallDelta {
            index,
            id: Some(call.id),
            kind: Some(call.kind),
            function: Some(FunctionDelta {
                name: Some(call.function.name),
                arguments: Some(call.function.arguments),
            }),
        });
        self.change(Delta { tool_calls: Some(calls.collect()), ..Delta::default() }, None)
    }

    /// Always sent: whoever runs the engine accounts by it, whatever the client asked for.
    fn usage(&self, usage: Usage) -> Bytes {
        self.chunk(Vec::new(), Some(Some(usage)))
    }
}
