//! `functions` and `function_call`, the form that tools had before: turned into tools on the way in; the answer is
//! written in the old form again (`relay/answer.rs`).

use cxmpute_wire::openai::{ChatRequest, FunctionCall, Role, Tool, ToolCall};

use crate::error::{ApiError, ApiResult};

/// Turns an old request into a new one. True when it was old.
///
/// # Errors
/// It mixes both forms, or names a function without declaring any.
pub fn modernise(request: &mut ChatRequest) -> ApiResult<bool> {
    modernise_messages(request);
    let Some(functions) = request.functions.take() else {
        if request.function_call.is_some() {
            return Err(ApiError::invalid_parameter("function_call", "function_call needs functions."));
        }
        return Ok(false);
    };
    if request.tools.is_some() || request.tool_choice.is_some() {
        let message = "functions is the old form of tools; use one of them.";
        return Err(ApiError::invalid_parameter("functions", message));
    }
    if functions.is_empty() {
        return Err(ApiError::invalid_parameter("functions", "functions must not be empty."));
    }
    let tool = |function| Tool { kind: "function".to_owned(), function };
    request.tools = Some(functions.into_iter().map(tool).collect());
    request.tool_choice = request.function_call.take().map(Into::into);
    request.parallel_tool_calls = Some(false);
    Ok(true)
}

/// Calls and answers of earlier turns: templates know the new form only.
fn modernise_messages(request: &mut ChatRequest) {
    let mut last = None;
    for (at, message) in request.messages.iter_mut().enumerate() {
        if let Some(FunctionCall { name, arguments }) = message.function_call.take()
            && message.tool_calls.is_none()
        {
            let id = format!("call_{at}");
            last = Some(id.clone());
            let function = FunctionCall { name, arguments };
            message.tool_calls = Some(vec![ToolCall { id, kind: "function".to_owned(), function }]);
        }
        if message.role == Role::Function {
            message.role = Role::Tool;
            message.tool_call_id = message.tool_call_id.take().or_else(|| last.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(more: serde_json::Value) -> ChatRequest {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn functions_become_tools_and_the_old_turns_new_ones() {
        let mut old = request(json!({
            "messages": [
                {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "7"},
            ],
            "functions": [{"name": "f", "parameters": {"type": "object"}}],
            "function_call": {"name": "f"},
        }));
        assert!(modernise(&mut old).unwrap());
        let body = serde_json::to_value(&old).unwrap();
        assert_eq!(body["tools"][0]["function"]["name"], "f");
        assert_eq!(body["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
        assert_eq!(body["parallel_tool_calls"], false);
        assert_eq!(body["messages"][0]["tool_calls"][0]["id"], "call_0");
        assert_eq!(body["messages"][1]["role"], "tool");
        assert_eq!(body["messages"][1]["tool_call_id"], "call_0");
        assert_eq!(body.get("functions"), None);
    }

    #[test]
    fn a_mixture_of_both_forms_is_refused() {
        for (more, field) in [
            (json!({"functions": [{"name": "f"}], "tools": []}), "functions"),
            (json!({"functions": []}), "functions"),
            (json!({"function_call": "auto"}), "function_call"),
        ] {
            let error = modernise(&mut request(more)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(field));
        }
        assert!(!modernise(&mut request(json!({}))).unwrap());
    }
}
