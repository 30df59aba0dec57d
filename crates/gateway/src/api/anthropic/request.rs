//! What a message asks, as a chat.

use cxmpute_wire::anthropic::{
    AnthropicTool, AnthropicToolChoice, BlockContent, CountRequest, ImageSource, InputBlock, InputMessage,
    MessageRole, MessagesRequest, ResultContent, Thinking,
};
use cxmpute_wire::openai::{
    ChatMessage, ChatRequest, Content, ContentPart, FunctionCall, FunctionSpec, ImageUrl, NamedFunction,
    NamedTool, Role, Stop, StreamOptions, Tool, ToolCall, ToolChoice, ToolMode,
};

use crate::api::openai::validate::refuse;
use crate::api::translation::Names;
use crate::error::{ApiError, ApiResult};
use crate::limits;

/// A chat, and what its fields were called.
pub struct Translation {
    pub request: ChatRequest,
    pub names: Names,
}

/// The chat that a message asks for.
///
/// # Errors
/// It asks for what has no counterpart here; the field is named.
pub fn translate(asked: MessagesRequest) -> ApiResult<Translation> {
    let stream = asked.stream;
    let count = CountRequest {
        model: asked.model,
        messages: asked.messages,
        system: asked.system,
        tools: asked.tools,
        tool_choice: asked.tool_choice,
        thinking: asked.thinking,
    };
    let Translation { request, names } = translate_count(count)?;
    let request = ChatRequest {
        models: asked.models,
        max_tokens: Some(asked.max_tokens),
        stop: asked.stop_sequences.filter(|texts| !texts.is_empty()).map(Stop::Many),
        stream,
        // Every stream of messages ends with its usage.
        stream_options: (stream == Some(true)).then_some(StreamOptions { include_usage: true }),
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k,
        user: asked.metadata.and_then(|metadata| metadata.user_id),
        service_tier: asked.service_tier,
        provider: asked.provider,
        ..request
    };
    Ok(Translation { request, names })
}

/// The same for what is only counted.
///
/// # Errors
/// As [`translate`].
pub fn translate_count(asked: CountRequest) -> ApiResult<Translation> {
    if let Some(Thinking { kind }) = &asked.thinking
        && kind != "disabled"
    {
        return Err(ApiError::unsupported_parameter(
            "thinking",
            "No model here thinks in blocks of its own; leave thinking out.",
        ));
    }
    let mut conversation = Conversation::default();
    if let Some(system) = asked.system {
        conversation.add_system(system)?;
    }
    match asked.messages.last() {
        None => return refuse("messages", "messages must not be empty."),
        // Here already: what is translated may become fewer messages, and costs work for each.
        Some(_) if asked.messages.len() > limits::MESSAGES => {
            return refuse("messages", format!("messages must hold 1 to {} messages.", limits::MESSAGES));
        }
        Some(InputMessage { role: MessageRole::Assistant, .. }) => {
            let message = "The last message is the user's; a text of the assistant is not continued here.";
            return refuse(&format!("messages[{}].role", asked.messages.len() - 1), message);
        }
        Some(_) => {}
    }
    for (at, message) in asked.messages.into_iter().enumerate() {
        conversation.add(message, at)?;
    }
    let parallel = asked.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
    let request = ChatRequest {
        model: asked.model,
        messages: conversation.messages,
        tools: asked.tools.map(tools).transpose()?,
        tool_choice: asked.tool_choice.map(tool_choice).transpose()?,
        parallel_tool_calls: parallel.map(|disabled| !disabled),
        ..ChatRequest::default()
    };
    let names = Names {
        messages: conversation.origins,
        list: "messages",
        fields: &[("stop", "stop_sequences")],
        tools: &[(".function.parameters", ".input_schema"), (".function.", ".")],
    };
    Ok(Translation { request, names })
}

/// Messages of the chat, each with the place that it came from.
#[derive(Default)]
struct Conversation {
    messages: Vec<ChatMessage>,
    origins: Vec<String>,
}

impl Conversation {
    fn push(&mut self, mut message: ChatMessage, origin: &str) {
        // Turns of the user that follow each other are one turn; templates insist on it.
        if message.role == Role::User
            && let Some(last) = self.messages.last_mut().filter(|last| last.role == Role::User)
            && let Some(more) = message.content.take()
        {
            // In place: any number of turns may follow each other.
            let mut whole = last.content.take().map(parts).unwrap_or_default();
            whole.extend(parts(more));
            last.content = Some(Content::Parts(whole));
            return;
        }
        self.messages.push(message);
        self.origins.push(origin.to_owned());
    }

    fn add_system(&mut self, system: BlockContent) -> ApiResult<()> {
        let content = match system {
            BlockContent::Text(text) if text.is_empty() => return Ok(()),
            BlockContent::Text(text) => Content::Text(text),
            BlockContent::Blocks(blocks) => {
                let texts = blocks.into_iter().enumerate().map(|(place, block)| match block {
                    InputBlock { kind, text: Some(text), .. } if kind == "text" => Ok(text),
                    _ => refuse(&format!("system[{place}]"), "system holds blocks of type text."),
                });
                let texts = texts.collect::<ApiResult<Vec<String>>>()?;
                if texts.is_empty() {
                    return Ok(());
                }
                joined(texts.into_iter().map(|text| ContentPart::Text { text }).collect())
            }
        };
        self.push(ChatMessage::new(Role::System, content), "system");
        Ok(())
    }

    fn add(&mut self, message: InputMessage, at: usize) -> ApiResult<()> {
        let origin = format!("messages[{at}]");
        let blocks = match (message.role, message.content) {
            (MessageRole::User, BlockContent::Text(text)) => {
                self.push(ChatMessage::new(Role::User, Content::Text(text)), &origin);
                return Ok(());
            }
            (MessageRole::Assistant, BlockContent::Text(text)) => {
                self.push(ChatMessage::new(Role::Assistant, Content::Text(text)), &origin);
                return Ok(());
            }
            (_, BlockContent::Blocks(blocks)) if blocks.is_empty() => {
                return refuse(&format!("{origin}.content"), "A message needs content.");
            }
            (_, BlockContent::Blocks(blocks)) => blocks,
        };
        let (mut said, mut calls) = (Vec::new(), Vec::new());
        for (place, block) in blocks.into_iter().enumerate() {
            let here = format!("{origin}.content[{place}]");
            match (block.kind.as_str(), message.role) {
                ("text", _) => said.push(ContentPart::Text { text: given(block.text, &here, "text")? }),
                ("image", MessageRole::User) => {
                    said.push(image(given(block.source, &here, "source")?, &here)?)
                }
                ("tool_use", MessageRole::Assistant) => calls.push(called(block, &here)?),
                ("tool_result", MessageRole::User) => {
                    let answer = result(block, &here)?;
                    self.push(answer, &origin);
                }
                ("thinking" | "redacted_thinking", MessageRole::Assistant) => {}
                ("image" | "tool_result", _) => {
                    return refuse(
                        &format!("{here}.type"),
                        "Only the user's messages hold blocks of this type.",
                    );
                }
                ("tool_use", _) => {
                    return refuse(
                        &format!("{here}.type"),
                        "Only the assistant's messages hold blocks of this type.",
                    );
                }
                _ => {
                    let message =
                        "A block is text, image, tool_use or tool_result; others are not taken here.";
                    return Err(ApiError::unsupported_parameter(&format!("{here}.type"), message));
                }
            }
        }
        let role = match message.role {
            MessageRole::User => Role::User,
            MessageRole::Assistant => Role::Assistant,
        };
        if said.is_empty() && calls.is_empty() {
            // Results of tools alone, or thoughts alone.
            return Ok(());
        }
        let mut whole = ChatMessage::new(role, joined(Vec::new()));
        whole.content = (!said.is_empty()).then(|| joined(said));
        whole.tool_calls = (!calls.is_empty()).then_some(calls);
        self.push(whole, &origin);
        Ok(())
    }
}

/// One text is a text; templates do not all take lists.
fn joined(mut parts: Vec<ContentPart>) -> Content {
    match parts.as_mut_slice() {
        [] => Content::Text(String::new()),
        [ContentPart::Text { text }] => Content::Text(std::mem::take(text)),
        _ => Content::Parts(parts),
    }
}

fn parts(content: Content) -> Vec<ContentPart> {
    match content {
        Content::Text(text) => vec![ContentPart::Text { text }],
        Content::Parts(parts) => parts,
    }
}

fn given<T>(field: Option<T>, here: &str, name: &str) -> ApiResult<T> {
    field.ok_or_else(|| {
        let field = format!("{here}.{name}");
        ApiError::invalid_parameter(&field, format!("`{field}` is missing."))
    })
}

fn image(source: ImageSource, here: &str) -> ApiResult<ContentPart> {
    let here = format!("{here}.source");
    let url = match source.kind.as_str() {
        "url" => given(source.url, &here, "url")?,
        "base64" => {
            let kind = given(source.media_type, &here, "media_type")?;
            format!("data:{kind};base64,{}", given(source.data, &here, "data")?)
        }
        _ => return refuse(&format!("{here}.type"), "The source of an image is base64 or url."),
    };
    Ok(ContentPart::ImageUrl { image_url: ImageUrl { url, detail: None } })
}

fn called(block: InputBlock, here: &str) -> ApiResult<ToolCall> {
    let input = given(block.input, here, "input")?;
    if !input.is_object() {
        return refuse(&format!("{here}.input"), "The input of a tool is an object.");
    }
    let function = FunctionCall { name: given(block.name, here, "name")?, arguments: input.to_string() };
    Ok(ToolCall { id: given(block.id, here, "id")?, kind: "function".to_owned(), function })
}

fn result(block: InputBlock, here: &str) -> ApiResult<ChatMessage> {
    let content = match block.content {
        None => Content::Text(String::new()),
        Some(ResultContent::Text(text)) => Content::Text(text),
        Some(ResultContent::Blocks(blocks)) => {
            let parts = blocks.into_iter().enumerate().map(|(place, block)| {
                let here = format!("{here}.content[{place}]");
                match block.kind.as_str() {
                    "text" => Ok(ContentPart::Text { text: given(block.text, &here, "text")? }),
                    "image" => image(given(block.source, &here, "source")?, &here),
                    _ => {
                        let message = "A tool answers with blocks of type text or image.";
                        Err(ApiError::unsupported_parameter(&format!("{here}.type"), message))
                    }
                }
            });
            joined(parts.collect::<ApiResult<_>>()?)
        }
    };
    let mut message = ChatMessage::new(Role::Tool, content);
    message.tool_call_id = Some(given(block.tool_use_id, here, "tool_use_id")?);
    Ok(message)
}

fn tools(declared: Vec<AnthropicTool>) -> ApiResult<Vec<Tool>> {
    let tool = |(at, tool): (usize, AnthropicTool)| {
        let here = format!("tools[{at}]");
        if tool.kind.as_deref().is_some_and(|kind| kind != "custom") {
            let message = "Only tools of your own (custom) are taken; this gateway runs none itself.";
            return Err(ApiError::unsupported_parameter(&format!("{here}.type"), message));
        }
        let function = FunctionSpec {
            name: tool.name,
            description: tool.description,
            parameters: Some(given(tool.input_schema, &here, "input_schema")?),
            strict: tool.strict,
        };
        Ok(Tool { kind: "function".to_owned(), function })
    };
    declared.into_iter().enumerate().map(tool).collect()
}

fn tool_choice(choice: AnthropicToolChoice) -> ApiResult<ToolChoice> {
    Ok(match choice.kind.as_str() {
        "auto" => ToolChoice::Mode(ToolMode::Auto),
        "any" => ToolChoice::Mode(ToolMode::Required),
        "none" => ToolChoice::Mode(ToolMode::None),
        "tool" => {
            let function = NamedFunction { name: given(choice.name, "tool_choice", "name")? };
            ToolChoice::Named(NamedTool { kind: "function".to_owned(), function })
        }
        _ => return refuse("tool_choice.type", "The type of tool_choice is auto, any, tool or none."),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(more: Value) -> Value {
        let mut body =
            json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    fn chat(more: Value) -> Value {
        let translation = translate(serde_json::from_value(asked(more)).unwrap()).unwrap();
        assert_eq!(translation.names.messages.len(), translation.request.messages.len());
        serde_json::to_value(&translation.request).unwrap()
    }

    #[test]
    fn a_conversation_with_tools_becomes_a_chat() {
        let chat = chat(json!({
            "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Let me look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 7}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And now?"},
                ]},
                {"role": "user", "content": "Say it."},
            ],
            "tools": [{"name": "look", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["x", "y"], "stream": true, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
        }));
        let wanted = json!({
            "model": "m", "max_tokens": 9, "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ["x", "y"], "tool_choice": "required",
            "parallel_tool_calls": false,
            "tools": [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}],
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "content": "Let me look.", "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{\"at\":7}"}},
                ]},
                {"role": "tool", "tool_call_id": "t1", "content": "rain"},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "text", "text": "Say it."}]},
            ],
        });
        assert_eq!(chat, wanted);
    }

    #[test]
    fn turns_that_follow_each_other_are_joined_without_copies() {
        let mut conversation = Conversation::default();
        let texts: Vec<String> = (0..1_000).map(|turn| format!("turn {turn}")).collect();
        let places: Vec<*const u8> = texts.iter().map(|text| text.as_ptr()).collect();
        for text in texts {
            conversation.push(ChatMessage::new(Role::User, Content::Text(text)), "x");
        }
        let [ChatMessage { content: Some(Content::Parts(parts)), .. }] = &conversation.messages[..] else {
            panic!("one turn: {}", conversation.messages.len());
        };
        let joined = parts.iter().map(|part| match part {
            ContentPart::Text { text } => text.as_ptr(),
            other => panic!("{other:?}"),
        });
        assert_eq!(joined.collect::<Vec<_>>(), places, "each text is the one that came");
    }

    #[test]
    fn more_messages_than_a_conversation_has_are_refused_before_they_are_joined() {
        let turns = |count: usize| json!({"messages": vec![json!({"role": "user", "content": "x"}); count]});
        let refused = |more: Value| translate(serde_json::from_value(asked(more)).unwrap()).err();
        assert!(refused(turns(limits::MESSAGES)).is_none());
        let error = refused(turns(limits::MESSAGES + 1)).unwrap();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("messages")));
    }

    #[test]
    fn images_and_choices_are_carried_over() {
        let content = json!([
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        ]);
        let chat_of = chat(json!({"messages": [{"role": "user", "content": content}]}));
        let parts = &chat_of["messages"][0]["content"];
        assert_eq!(parts[0]["image_url"]["url"], "data:image/png;base64,AAAA");
        assert_eq!(parts[1]["image_url"]["url"], "https://example.org/a.png");
        for (choice, wanted) in [
            (json!({"type": "auto"}), json!("auto")),
            (json!({"type": "none"}), json!("none")),
            (json!({"type": "tool", "name": "f"}), json!({"type": "function", "function": {"name": "f"}})),
        ] {
            assert_eq!(chat(json!({"tool_choice": choice}))["tool_choice"], wanted);
        }
        assert_eq!(
            chat(json!({"thinking": {"type": "disabled"}, "system": ""}))["messages"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
        let assistant = |block: Value| json!({"messages": [{"role": "assistant", "content": [block]}, {"role": "user", "content": "x"}]});
        for (more, field) in [
            (json!({"messages": []}), "messages"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
                "messages[1].role",
            ),
            (json!({"messages": [{"role": "user", "content": []}]}), "messages[0].content"),
            (json!({"system": [{"type": "image"}]}), "system[0]"),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
            (user(json!({"type": "text"})), "messages[0].content[0].text"),
            (user(json!({"type": "document"})), "messages[0].content[0].type"),
            (user(json!({"type": "tool_use"})), "messages[0].content[0].type"),
            (user(json!({"type": "image"})), "messages[0].content[0].source"),
            (
                user(json!({"type": "image", "source": {"type": "file"}})),
                "messages[0].content[0].source.type",
            ),
            (user(json!({"type": "image", "source": {"type": "url"}})), "messages[0].content[0].source.url"),
            (
                user(json!({"type": "image", "source": {"type": "base64", "data": "A"}})),
                "messages[0].content[0].source.media_type",
            ),
            (user(json!({"type": "tool_result"})), "messages[0].content[0].tool_use_id"),
            (
                user(
                    json!({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "search_result"}]}),
                ),
                "messages[0].content[0].content[0].type",
            ),
            (assistant(json!({"type": "tool_result"})), "messages[0].content[0].type"),
            (assistant(json!({"type": "tool_use", "id": "t", "name": "f"})), "messages[0].content[0].input"),
            (
                assistant(json!({"type": "tool_use", "id": "t", "name": "f", "input": []})),
                "messages[0].content[0].input",
            ),
            (assistant(json!({"type": "tool_use", "id": "t", "input": {}})), "messages[0].content[0].name"),
            (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0].type"),
            (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
            (json!({"tool_choice": {"type": "required"}}), "tool_choice.type"),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
        ] {
            let error = translate(serde_json::from_value(asked(more.clone())).unwrap()).err().unwrap();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(field)), "{more}");
        }
    }
}
