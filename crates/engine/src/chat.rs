//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cxmpute_runtime::random;
use cxmpute_wire::openai::{
    ChatChoice, ChatChunk, ChatLogprobs, ChatRequest, ChatResponse, ChunkChoice, Delta, FinishReason,
    FunctionCall, FunctionDelta, ResponseMessage, Role, ToolCall, ToolCallDelta, ToolChoice, Usage,
};

use crate::generate::{Event, Prompt};
use crate::logprobs;
use crate::params::{Admitted, Params, Task, admit};
use crate::plan::Plan;
use crate::refusal::{JsonBody, Refusal};
use crate::server::{DONE, Engine, broken, event, event_stream, fresh_id};
use crate::text::Span;
use crate::tools::{Part, Syntax, ToolParser};

/// Answers a conversation, as a stream or whole.
pub async fn complete_chat(
    State(engine): State<Arc<Engine>>,
    JsonBody(request, salt): JsonBody<ChatRequest>,
) -> Result<Response, Refusal> {
    let llm = engine.llm(&request.model)?;
    let params = Params::of_chat(&request)?.salted(salt);
    let streamed = request.streamed();
    let plan = Plan::read(&request, llm.counter.template_source().and_then(Syntax::of_template))?;
    let choices = (0..params.choices()).map(|_| Choice { tools: plan.parser(), calls: 0 });
    let reply = Reply {
        head: ChatChunk {
            id: fresh_id("chatcmpl-"),
            object: "chat.completion.chunk".into(),
            created: engine.clock.now().seconds(),
            model: request.model.clone(),
            choices: Vec::new(),
            usage: None,
            system_fingerprint: None,
        },
        choices: choices.collect(),
        logprobs: request.logprobs.unwrap_or(false),
        named: request.tool_choice.as_ref().and_then(ToolChoice::named).is_some(),
    };
    let (counter, grammars) = (llm.counter.clone(), llm.grammars.clone());
    let prepare = move || {
        let tokens = counter.encode_prompt(&request)?;
        let marks = plan.marks();
        let constraint = plan.compile(&grammars)?;
        Ok(Task { prompts: vec![Prompt { tokens, echo: None }], constraint, marks })
    };
    let admitted = admit(llm, params, "messages", prepare).await?;
    if streamed { Ok(stream(reply, admitted)) } else { collect(reply, admitted).await }
}

/// Turns what happens in a generation into changes of the answer.
struct Reply {
    /// What is the same in all chunks.
    head: ChatChunk,
    choices: Vec<Choice>,
    /// Probabilities are wanted.
    logprobs: bool,
    /// One function was named as the one to call.
    named: bool,
}

struct Choice {
    /// Present when the model may call tools.
    tools: Option<ToolParser>,
    /// Calls so far.
    calls: u64,
}

impl Reply {
    /// The changes of one event; `Err` when it is the last one.
    fn changes(&mut self, event: Option<Event>) -> Result<Vec<ChunkChoice>, End> {
        match event {
            Some(Event::Started) => {
                let role = || Delta { role: Some(Role::Assistant), ..Delta::default() };
                Ok((0..).zip(&self.choices).map(|(index, _)| change(index, role(), None)).collect())
            }
            Some(Event::Text { index, span }) => {
                let parts = match self.tools(index) {
                    Some(tools) => tools.push(span),
                    None => vec![Part::Text(span)],
                };
                Ok(self.parts(index, parts))
            }
            Some(Event::Finished { index, mut reason }) => {
                let named = self.named;
                let mut rest = Vec::new();
                if let Some(tools) = self.tools(index) {
                    rest = tools.finish();
                    if tools.called() && reason == FinishReason::Stop && !named {
                        reason = FinishReason::ToolCalls;
                    }
                }
                let mut changes = self.parts(index, rest);
                changes.push(change(index, Delta::default(), Some(reason)));
                Ok(changes)
            }
            Some(Event::Done { completion_tokens, cached_tokens }) => {
                Err(End::Complete { completion_tokens, cached_tokens })
            }
            last => Err(End::Broken(broken(last))),
        }
    }

    fn tools(&mut self, index: u64) -> Option<&mut ToolParser> {
        self.choices.get_mut(usize::try_from(index).ok()?)?.tools.as_mut()
    }

    fn parts(&mut self, index: u64, parts: Vec<Part>) -> Vec<ChunkChoice> {
        parts.into_iter().filter_map(|part| self.part(index, part)).collect()
    }

    fn part(&mut self, index: u64, part: Part) -> Option<ChunkChoice> {
        let choice = self.choices.get_mut(usize::try_from(index).ok()?)?;
        let call = match part {
            Part::Text(Span { text, tokens }) => {
                let delta = Delta { content: Some(text), ..Delta::default() };
                let logprobs = self.logprobs.then(|| logprobs::of_chat(tokens));
                return Some(ChunkChoice { logprobs, ..change(index, delta, None) });
            }
            Part::Call(name) => {
                choice.calls += 1;
                let id = data_encoding::HEXLOWER.encode(&random::bytes::<12>());
                ToolCallDelta {
                    index: choice.calls - 1,
                    id: Some(format!("call_{id}")),
                    kind: Some("function".into()),
                    function: Some(FunctionDelta { name: Some(name), arguments: Some(String::new()) }),
                }
            }
            Part::Arguments(text) => ToolCallDelta {
                index: choice.calls.saturating_sub(1),
                id: None,
                kind: None,
                function: Some(FunctionDelta { name: None, arguments: Some(text) }),
            },
        };
        Some(change(index, Delta { tool_calls: Some(vec![call]), ..Delta::default() }, None))
    }
}

/// How an answer ends.
enum End {
    /// Whole.
    Complete {
        /// Tokens of all choices.
        completion_tokens: u64,
        /// Tokens of the prompt that were known already.
        cached_tokens: u64,
    },
    /// Before its time.
    Broken(Refusal),
}

fn change(index: u64, delta: Delta, finish_reason: Option<FinishReason>) -> ChunkChoice {
    ChunkChoice { index, delta, finish_reason, logprobs: None }
}

fn stream(mut reply: Reply, admitted: Admitted) -> Response {
    let Admitted { mut events, prompt_tokens } = admitted;
    event_stream(async_stream::stream! {
        loop {
            match reply.changes(events.recv().await) {
                Ok(changes) => for change in changes {
                    yield Ok(event(&ChatChunk { choices: vec![change], ..reply.head.clone() }));
                },
                Err(End::Complete { completion_tokens, cached_tokens }) => {
                    // Always sent: whoever runs the engine accounts by it, whatever the client asked for.
                    let usage = Usage::new(prompt_tokens, completion_tokens).with_cached(cached_tokens);
                    yield Ok(event(&ChatChunk { usage: Some(Some(usage)), ..reply.head }));
                    yield Ok(DONE);
                    return;
                }
                Err(End::Broken(refusal)) => {
                    yield Ok(event(&refusal.envelope()));
                    return;
                }
            }
        }
    })
}

async fn collect(mut reply: Reply, admitted: Admitted) -> Result<Response, Refusal> {
    let Admitted { mut events, prompt_tokens } = admitted;
    let mut choices: Vec<ChatChoice> = (0..).zip(&reply.choices).map(|(index, _)| empty(index)).collect();
    let usage = loop {
        match reply.changes(events.recv().await) {
            Ok(changes) => changes.into_iter().for_each(|change| add(&mut choices, change)),
            Err(End::Complete { completion_tokens, cached_tokens }) => {
                break Usage::new(prompt_tokens, completion_tokens).with_cached(cached_tokens);
            }
            Err(End::Broken(refusal)) => return Err(refusal),
        }
    };
    for choice in &mut choices {
        let message = &mut choice.message;
        if message.tool_calls.is_none() {
            message.content.get_or_insert_default();
            if reply.logprobs {
                choice.logprobs.get_or_insert_with(|| logprobs::of_chat(Vec::new()));
            }
        }
    }
    let ChatChunk { id, created, model, .. } = reply.head;
    let answer = ChatResponse {
        id,
        object: "chat.completion".into(),
        created,
        model,
        choices,
        usage: Some(usage),
        system_fingerprint: None,
    };
    Ok(Json(answer).into_response())
}

fn empty(index: u64) -> ChatChoice {
    let message = ResponseMessage {
        role: Role::Assistant,
        content: None,
        refusal: None,
        tool_calls: None,
        function_call: None,
    };
    ChatChoice { index, message, finish_reason: None, logprobs: None }
}

/// Adds a change to a whole answer.
fn add(choices: &mut [ChatChoice], change: ChunkChoice) {
    let Some(choice) = usize::try_from(change.index).ok().and_then(|index| choices.get_mut(index)) else {
        return;
    };
    if change.finish_reason.is_some() {
        choice.finish_reason = change.finish_reason;
    }
    if let Some(text) = change.delta.content {
        choice.message.content.get_or_insert_default().push_str(&text);
    }
    if let Some(ChatLogprobs { content: Some(mut tokens), .. }) = change.logprobs {
        let all = choice.logprobs.get_or_insert_with(|| logprobs::of_chat(Vec::new()));
        all.content.get_or_insert_default().append(&mut tokens);
    }
    for part in change.delta.tool_calls.into_iter().flatten() {
        let calls = choice.message.tool_calls.get_or_insert_default();
        let function = part.function.unwrap_or_default();
        if let Some(id) = part.id {
            let kind = part.kind.unwrap_or_default();
            let function = FunctionCall { name: function.name.unwrap_or_default(), arguments: String::new() };
            calls.push(ToolCall { id, kind, function });
        }
        if let Some(call) = calls.last_mut() {
            call.function.arguments.push_str(&function.arguments.unwrap_or_default());
        }
    }
}
