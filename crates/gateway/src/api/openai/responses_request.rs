//! What a request for a response asks, as a chat.

use cxmpute_wire::openai::{
    ChatMessage, ChatRequest, Content, ContentPart, FunctionCall, FunctionSpec, ImageUrl, ItemContent,
    ItemPart, JsonSchemaFormat, NamedFunction, NamedTool, ResponseFormat, ResponseInput, ResponseItem,
    ResponseObject, ResponseTool, ResponseToolChoice, ResponsesRequest, Role, StreamOptions, TextFormat,
    TextOptions, Tool, ToolCall, ToolChoice,
};

use super::validate::refuse;
use crate::api::translation::Names;
use crate::error::{ApiError, ApiResult};

/// A chat, what its fields were called, and the response that has not begun.
pub struct Translation {
    pub request: ChatRequest,
    pub names: Names,
    pub response: ResponseObject,
}

/// The chat that a request asks for.
///
/// # Errors
/// It asks for what has no counterpart here; the field is named.
pub fn translate(asked: ResponsesRequest) -> ApiResult<Translation> {
    check(&asked)?;
    let response = echo(&asked);
    let mut conversation = Conversation::default();
    if let Some(text) = asked.instructions.filter(|text| !text.is_empty()) {
        conversation.push(ChatMessage::new(Role::System, Content::Text(text)), "instructions".to_owned());
    }
    match asked.input {
        ResponseInput::Text(text) => {
            conversation.push(ChatMessage::new(Role::User, Content::Text(text)), "input".to_owned());
        }
        ResponseInput::Items(items) if items.is_empty() => {
            return refuse("input", "input must not be empty.");
        }
        ResponseInput::Items(items) => {
            for (at, item) in items.into_iter().enumerate() {
                conversation.add(item, format!("input[{at}]"))?;
            }
        }
    }
    let request = ChatRequest {
        model: asked.model,
        models: asked.models,
        messages: conversation.messages,
        stream: asked.stream,
        // Every stream of events ends with its usage.
        stream_options: (asked.stream == Some(true)).then_some(StreamOptions { include_usage: true }),
        max_completion_tokens: asked.max_output_tokens,
        temperature: asked.temperature,
        top_p: asked.top_p,
        tools: asked.tools.map(tools).transpose()?,
        tool_choice: asked.tool_choice.map(tool_choice).transpose()?,
        parallel_tool_calls: asked.parallel_tool_calls,
        response_format: asked.text.and_then(|text| text.format).map(format),
        reasoning_effort: asked.reasoning.and_then(|reasoning| reasoning.effort),
        metadata: asked.metadata,
        store: asked.store,
        service_tier: asked.service_tier,
        user: asked.user,
        provider: asked.provider,
        ..ChatRequest::default()
    };
    let names = Names {
        messages: conversation.origins,
        list: "input",
        fields: &[
            ("max_completion_tokens", "max_output_tokens"),
            ("response_format.json_schema", "text.format"),
            ("response_format", "text.format"),
            ("reasoning_effort", "reasoning.effort"),
        ],
        tools: &[(".function.", ".")],
    };
    Ok(Translation { request, names, response })
}

/// What needs answers to be kept, or to be made while nobody waits.
fn check(asked: &ResponsesRequest) -> ApiResult<()> {
    let unsupported =
        |field: &str, message: &'static str| Err(ApiError::unsupported_parameter(field, message));
    if asked.previous_response_id.is_some() {
        return unsupported(
            "previous_response_id",
            "Answers are not kept here; send the items of earlier turns in input.",
        );
    }
    if asked.conversation.as_ref().is_some_and(|conversation| !conversation.is_null()) {
        return unsupported(
            "conversation",
            "Conversations are not kept here; send the items of earlier turns in input.",
        );
    }
    if asked.background == Some(true) {
        return unsupported(
            "background",
            "Every answer is waited for here; leave background out, or stream.",
        );
    }
    match asked.truncation.as_deref() {
        None | Some("auto" | "disabled") => Ok(()),
        Some(_) => refuse("truncation", "truncation is auto or disabled."),
    }
}

/// The response that has not begun; its id and its time are not known yet.
fn echo(asked: &ResponsesRequest) -> ResponseObject {
    let mut response = ResponseObject::begun(String::new(), 0, asked.model.clone());
    response.instructions.clone_from(&asked.instructions);
    response.max_output_tokens = asked.max_output_tokens;
    response.parallel_tool_calls = asked.parallel_tool_calls.unwrap_or(true);
    response.reasoning = asked.reasoning.clone().unwrap_or_default();
    response.temperature = asked.temperature;
    response.top_p = asked.top_p;
    response.tools = asked.tools.clone().unwrap_or_default();
    response.metadata = asked.metadata.clone().unwrap_or_default();
    if let Some(choice) = &asked.tool_choice {
        response.tool_choice = choice.clone();
    }
    if let Some(TextOptions { format: Some(format) }) = &asked.text {
        response.text.format = Some(format.clone());
    }
    response
}

/// Messages of the chat, each with the place that it came from.
#[derive(Default)]
struct Conversation {
    messages: Vec<ChatMessage>,
    origins: Vec<String>,
}

impl Conversation {
    fn push(&mut self, message: ChatMessage, origin: String) {
        self.messages.push(message);
        self.origins.push(origin);
    }

    fn add(&mut self, item: ResponseItem, here: String) -> ApiResult<()> {
        match item.kind.as_deref() {
            None | Some("message") => {
                let role = given(item.role, &here, "role")?;
                if matches!(role, Role::Tool | Role::Function) {
                    return refuse(
                        &format!("{here}.role"),
                        "The role of a message is user, assistant, system or developer.",
                    );
                }
                let content = content(given(item.content, &here, "content")?, &format!("{here}.content"))?;
                self.push(ChatMessage::new(role, content), here);
            }
            Some("function_call") => {
                let function = FunctionCall {
                    name: given(item.name, &here, "name")?,
                    arguments: given(item.arguments, &here, "arguments")?,
                };
                let id = given(item.call_id, &here, "call_id")?;
                self.call(ToolCall { id, kind: "function".to_owned(), function }, here);
            }
            Some("function_call_output") => {
                let output = content(given(item.output, &here, "output")?, &format!("{here}.output"))?;
                let mut message = ChatMessage::new(Role::Tool, output);
                message.tool_call_id = Some(given(item.call_id, &here, "call_id")?);
                self.push(message, here);
            }
            Some("reasoning") => {}
            Some(_) => {
                let message =
                    "An item is message, function_call or function_call_output; others are not taken here.";
                return Err(ApiError::unsupported_parameter(&format!("{here}.type"), message));
            }
        }
        Ok(())
    }

    /// Calls, and the text before them, are one message of the assistant.
    fn call(&mut self, call: ToolCall, here: String) {
        match self.messages.last_mut().filter(|last| last.role == Role::Assistant) {
            Some(last) => last.tool_calls.get_or_insert_default().push(call),
            None => {
                let mut message = ChatMessage::new(Role::Assistant, Content::Text(String::new()));
                message.content = None;
                message.tool_calls = Some(vec![call]);
                self.push(message, here);
            }
        }
    }
}

fn given<T>(field: Option<T>, here: &str, name: &str) -> ApiResult<T> {
    field.ok_or_else(|| {
        let field = format!("{here}.{name}");
        ApiError::invalid_parameter(&field, format!("`{field}` is missing."))
    })
}

/// One text is a text; templates do not all take lists.
fn content(content: ItemContent, here: &str) -> ApiResult<Content> {
    let parts = match content {
        ItemContent::Text(text) => return Ok(Content::Text(text)),
        ItemContent::Parts(parts) => parts,
    };
    let parts = parts.into_iter().enumerate().map(|(place, part)| read(part, &format!("{here}[{place}]")));
    let mut parts = parts.collect::<ApiResult<Vec<ContentPart>>>()?;
    Ok(match parts.as_mut_slice() {
        [] => Content::Text(String::new()),
        [ContentPart::Text { text }] => Content::Text(std::mem::take(text)),
        _ => Content::Parts(parts),
    })
}

fn read(part: ItemPart, here: &str) -> ApiResult<ContentPart> {
    Ok(match part.kind.as_str() {
        "input_text" | "output_text" => ContentPart::Text { text: given(part.text, here, "text")? },
        "refusal" => ContentPart::Refusal { refusal: given(part.refusal, here, "refusal")? },
        "input_image" => {
            let url = given(part.image_url, here, "image_url")?;
            ContentPart::ImageUrl { image_url: ImageUrl { url, detail: part.detail } }
        }
        _ => {
            let message =
                "A part is input_text, input_image, output_text or refusal; others are not taken here.";
            return Err(ApiError::unsupported_parameter(&format!("{here}.type"), message));
        }
    })
}

fn tools(declared: Vec<ResponseTool>) -> ApiResult<Vec<Tool>> {
    let tool = |(at, tool): (usize, ResponseTool)| {
        let here = format!("tools[{at}]");
        if tool.kind != "function" {
            let message = "Only tools of type function are taken; this gateway runs none itself.";
            return Err(ApiError::unsupported_parameter(&format!("{here}.type"), message));
        }
        let function = FunctionSpec {
            name: given(tool.name, &here, "name")?,
            description: tool.description,
            parameters: tool.parameters,
            strict: tool.strict,
        };
        Ok(Tool { kind: "function".to_owned(), function })
    };
    declared.into_iter().enumerate().map(tool).collect()
}

fn tool_choice(choice: ResponseToolChoice) -> ApiResult<ToolChoice> {
    Ok(match choice {
        ResponseToolChoice::Mode(mode) => ToolChoice::Mode(mode),
        ResponseToolChoice::Named(named) if named.kind == "function" => {
            let function = NamedFunction { name: given(named.name, "tool_choice", "name")? };
            ToolChoice::Named(NamedTool { kind: named.kind, function })
        }
        ResponseToolChoice::Named(_) => {
            let message = "tool_choice is none, auto, required or a function by its name.";
            return Err(ApiError::unsupported_parameter("tool_choice.type", message));
        }
    })
}

fn format(format: TextFormat) -> ResponseFormat {
    match format {
        TextFormat::Text => ResponseFormat::Text,
        TextFormat::JsonObject => ResponseFormat::JsonObject,
        TextFormat::JsonSchema { name, description, schema, strict } => ResponseFormat::JsonSchema {
            json_schema: JsonSchemaFormat { name, description, schema: Some(schema), strict },
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(more: Value) -> ResponsesRequest {
        let mut body = json!({"model": "m", "input": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn a_conversation_with_tools_becomes_a_chat() {
        let Translation { request, names, response } = translate(asked(json!({
            "instructions": "Be short.",
            "input": [
                {"role": "user", "content": "What is the weather?"},
                {"type": "reasoning", "id": "rs_1"},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                    "content": [{"type": "output_text", "text": "Let me look.", "annotations": [], "logprobs": []}]},
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}", "status": "completed"},
                {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "https://example.org/a.png"}]},
            ],
            "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": false,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            "max_output_tokens": 9, "stream": true, "store": false, "reasoning": {"effort": "low"}, "truncation": "auto",
        })))
        .unwrap();
        assert_eq!(
            names.messages,
            ["instructions", "input[0]", "input[2]", "input[5]", "input[6]", "input[7]"]
        );
        let wanted = json!({
            "model": "m", "max_completion_tokens": 9, "stream": true, "stream_options": {"include_usage": true},
            "tool_choice": {"type": "function", "function": {"name": "look"}}, "parallel_tool_calls": false,
            "reasoning_effort": "low",
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": true}}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "content": "Let me look.", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
                    {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
                ]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                {"role": "tool", "tool_call_id": "c2", "content": "sun"},
                {"role": "user", "content": [{"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
            ],
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), wanted);
        let echoed = serde_json::to_value(&response).unwrap();
        assert_eq!(
            (&echoed["max_output_tokens"], &echoed["text"]["format"]["name"]),
            (&json!(9), &json!("n"))
        );
        assert_eq!(echoed["tool_choice"], json!({"type": "function", "name": "look"}));
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let item = |item: Value| json!({"input": [item]});
        let part = |part: Value| json!({"input": [{"role": "user", "content": [part]}]});
        for (more, field) in [
            (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"background": true}), "background"),
            (json!({"truncation": "middle"}), "truncation"),
            (json!({"input": []}), "input"),
            (item(json!({"content": "x"})), "input[0].role"),
            (item(json!({"role": "user"})), "input[0].content"),
            (item(json!({"role": "tool", "content": "x"})), "input[0].role"),
            (item(json!({"type": "item_reference", "id": "msg_1"})), "input[0].type"),
            (item(json!({"type": "function_call", "name": "f", "arguments": ""})), "input[0].call_id"),
            (item(json!({"type": "function_call_output", "call_id": "c"})), "input[0].output"),
            (part(json!({"type": "input_file", "file_id": "f"})), "input[0].content[0].type"),
            (part(json!({"type": "input_image", "file_id": "f"})), "input[0].content[0].image_url"),
            (part(json!({"type": "input_text"})), "input[0].content[0].text"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
            (json!({"tool_choice": {"type": "web_search"}}), "tool_choice.type"),
            (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        ] {
            let error = translate(asked(more.clone())).err().unwrap();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(field)), "{more}");
        }
    }
}
