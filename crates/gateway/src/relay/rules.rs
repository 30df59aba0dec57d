//! What an answer must keep to, whoever computes it: the tools that were declared, the choice among them, the shape of
//! the output. A node that does not keep to it is at fault (GR7).

use std::sync::Arc;

use cxmpute_wire::openai::{ChatRequest, CompletionRequest, FinishReason, ResponseFormat, ToolChoice};

use super::retry::Fault;
use crate::error::ApiError;
use crate::limits;
use crate::schema::{Schema, SchemaFault, Verdict};

/// Texts up to this size are looked at where they come in; longer ones off the async threads.
const SMALL: usize = 4 * 1024;

/// The rules of one answer.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// How many likely tokens to list at each place; none when probabilities were not asked for.
    pub logprobs: Option<usize>,
    /// Shape of the text.
    pub format: Format,
    tools: Vec<ToolRule>,
    /// The one function that must be called.
    named: Option<String>,
    /// Whether there must be a call.
    forced: bool,
    /// Calls of one choice.
    calls: usize,
    /// Whether calls are written in the old form, `function_call`.
    pub old_form: bool,
}

/// The shape of the text.
#[derive(Debug, Clone, Default)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    Object,
    /// JSON by schema.
    Schema(Arc<Schema>),
}

#[derive(Debug, Clone)]
struct ToolRule {
    name: String,
    /// The shape of its arguments, where they must follow it.
    arguments: Option<Arc<Schema>>,
}

impl Rules {
    /// The rules of a chat, whose `functions` were turned into tools before; blocking work when it holds schemas.
    ///
    /// # Errors
    /// A schema is not acceptable; the field is named.
    pub fn of_chat(request: &ChatRequest, old_form: bool) -> Result<Self, ApiError> {
        let choice = request.tool_choice.as_ref();
        let forbidden = choice.is_some_and(ToolChoice::forbids);
        let mut tools = Vec::new();
        for (at, tool) in request.tools.iter().flatten().enumerate().filter(|_| !forbidden) {
            let function = &tool.function;
            let strict = function.strict == Some(true);
            let arguments = function.parameters.as_ref().filter(|_| strict).map(|schema| {
                Schema::compile(schema).map(Arc::new).map_err(|fault| refuse_tool(&fault, &function.name, at))
            });
            tools.push(ToolRule { name: function.name.clone(), arguments: arguments.transpose()? });
        }
        let format = match &request.response_format {
            None | Some(ResponseFormat::Text) => Format::Text,
            Some(ResponseFormat::JsonObject) => Format::Object,
            Some(ResponseFormat::JsonSchema { json_schema }) => match &json_schema.schema {
                // Any JSON.
                None => Format::Schema(Arc::new(
                    Schema::compile(&serde_json::json!({})).map_err(ApiError::internal)?,
                )),
                Some(schema) => Format::Schema(Arc::new(Schema::compile(schema).map_err(|fault| {
                    fault.refuse(&format!("response_format '{}'", json_schema.name), "response_format")
                })?)),
            },
        };
        let single = request.parallel_tool_calls == Some(false) || old_form;
        Ok(Self {
            logprobs: request
                .logprobs
                .unwrap_or(false)
                .then(|| usize::try_from(request.top_logprobs.unwrap_or(0)).unwrap_or(0)),
            format,
            tools,
            named: choice.and_then(ToolChoice::named).map(str::to_owned),
            forced: choice.is_some_and(ToolChoice::forces),
            calls: if single { 1 } else { limits::CALLS },
            old_form,
        })
    }

    /// The rules of a legacy completion.
    #[must_use]
    pub fn of_completion(request: &CompletionRequest) -> Self {
        Self { logprobs: request.logprobs.and_then(|top| usize::try_from(top).ok()), ..Self::default() }
    }

    /// Whether call number `index` may begin, of the function `name`.
    ///
    /// # Errors
    /// Nobody declared it, another one was asked for, or it is one too many.
    pub fn may_call(&self, index: usize, name: &str) -> Result<(), Fault> {
        let declared = self.tools.iter().any(|tool| tool.name == name);
        let wanted = self.named.as_deref().is_none_or(|named| named == name);
        if declared && wanted && index < self.calls { Ok(()) } else { Err(Fault::Protocol) }
    }

    /// Whether the arguments of calls must be kept, to be looked at in the end.
    #[must_use]
    pub fn keeps_arguments(&self) -> bool {
        self.tools.iter().any(|tool| tool.arguments.is_some())
    }

    /// Why a choice ended, as OpenAI says it, whatever the node calls it.
    ///
    /// # Errors
    /// It ended without the call that it had to hold.
    pub fn finish(&self, reason: FinishReason, called: bool) -> Result<FinishReason, Fault> {
        match reason {
            FinishReason::Length | FinishReason::ContentFilter => Ok(reason),
            // OpenAI ends a choice that could not but call this function with `stop`.
            _ if called && self.named.is_some() => Ok(FinishReason::Stop),
            _ if called && self.old_form => Ok(FinishReason::FunctionCall),
            _ if called => Ok(FinishReason::ToolCalls),
            _ if self.forced => Err(Fault::Schema),
            _ => Ok(FinishReason::Stop),
        }
    }

    /// Looks at a choice that ended by itself; `calls` are names and arguments.
    ///
    /// # Errors
    /// The text or the arguments are not of the shape that was asked for.
    pub async fn judge(&self, text: &str, calls: &[(String, String)]) -> Result<(), Fault> {
        if calls.is_empty() {
            match &self.format {
                Format::Text => {}
                Format::Object => object(text).await?,
                Format::Schema(schema) => follows(schema, text).await?,
            }
        }
        for (name, arguments) in calls {
            let rule = self.tools.iter().find(|tool| tool.name == *name);
            if let Some(schema) = rule.and_then(|rule| rule.arguments.as_ref()) {
                follows(schema, arguments).await?;
            }
        }
        Ok(())
    }
}

fn refuse_tool(fault: &SchemaFault, name: &str, at: usize) -> ApiError {
    fault.refuse(&format!("function '{name}'"), &format!("tools[{at}].function.parameters"))
}

async fn object(text: &str) -> Result<(), Fault> {
    fn is_object(text: &str) -> bool {
        text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    }
    let sound = if text.len() <= SMALL {
        is_object(text)
    } else {
        let text = text.to_owned();
        tokio::task::spawn_blocking(move || is_object(&text)).await.unwrap_or(false)
    };
    if sound { Ok(()) } else { Err(Fault::Schema) }
}

async fn follows(schema: &Arc<Schema>, text: &str) -> Result<(), Fault> {
    let (schema, text) = (schema.clone(), text.to_owned());
    let verdict = tokio::task::spawn_blocking(move || schema.judge(&text)).await;
    match verdict {
        Ok(Verdict::Follows) => Ok(()),
        Ok(Verdict::Unchecked) => {
            metrics::counter!("cxmpute_outputs_unchecked_total").increment(1);
            Ok(())
        }
        Ok(Verdict::Breaks) => Err(Fault::Schema),
        // The check itself failed; that is nothing to blame a node for.
        Err(error) => {
            tracing::error!(%error, "an output could not be checked");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(more: serde_json::Value) -> Rules {
        let mut body = json!({"model": "m", "messages": [], "tools": [
            {"type": "function", "function": {"name": "f", "strict": true,
                "parameters": {"type": "object", "required": ["a"]}}},
            {"type": "function", "function": {"name": "g"}}]});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        Rules::of_chat(&serde_json::from_value(body).unwrap(), false).unwrap()
    }

    #[test]
    fn only_declared_and_wanted_functions_may_be_called() {
        let auto = rules(json!({}));
        assert!(auto.may_call(0, "f").is_ok() && auto.may_call(1, "g").is_ok());
        assert!(auto.may_call(0, "h").is_err());
        assert!(auto.may_call(limits::CALLS, "f").is_err());
        let single = rules(json!({"parallel_tool_calls": false}));
        assert!(single.may_call(0, "f").is_ok() && single.may_call(1, "f").is_err());
        let named = rules(json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}));
        assert!(named.may_call(0, "f").is_ok() && named.may_call(0, "g").is_err());
        assert!(rules(json!({"tool_choice": "none"})).may_call(0, "f").is_err());
    }

    #[test]
    fn the_end_is_named_as_openai_names_it() {
        use FinishReason::{FunctionCall, Length, Stop, ToolCalls};
        let auto = rules(json!({}));
        let named = rules(json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}));
        let required = rules(json!({"tool_choice": "required"}));
        let old = Rules { old_form: true, ..auto.clone() };
        for (rules, reason, called, said) in [
            (&auto, Stop, false, Ok(Stop)),
            (&auto, ToolCalls, false, Ok(Stop)),
            (&auto, Stop, true, Ok(ToolCalls)),
            (&auto, FunctionCall, true, Ok(ToolCalls)),
            (&auto, Length, true, Ok(Length)),
            (&named, ToolCalls, true, Ok(Stop)),
            (&named, Stop, false, Err(Fault::Schema)),
            (&required, ToolCalls, true, Ok(ToolCalls)),
            (&required, Stop, false, Err(Fault::Schema)),
            (&required, Length, false, Ok(Length)),
            (&old, ToolCalls, true, Ok(FunctionCall)),
        ] {
            assert_eq!(rules.finish(reason, called), said, "{reason:?} {called}");
        }
    }

    #[tokio::test]
    async fn texts_and_arguments_are_held_to_their_shapes() {
        let call = |name: &str, arguments: &str| vec![(name.to_owned(), arguments.to_owned())];
        let free = rules(json!({}));
        free.judge("anything", &[]).await.unwrap();
        free.judge("", &call("f", r#"{"a":1}"#)).await.unwrap();
        free.judge("", &call("g", "not even JSON")).await.unwrap();
        assert_eq!(free.judge("", &call("f", "{}")).await, Err(Fault::Schema));
        let object = rules(json!({"response_format": {"type": "json_object"}}));
        object.judge(" {\"a\":[1]}\n", &[]).await.unwrap();
        object.judge(&format!("{{\"a\":\"{}\"}}", "x".repeat(2 * SMALL)), &[]).await.unwrap();
        object.judge("", &call("g", "x")).await.unwrap();
        for bad in ["", "[1]", "7", "{\"a\":", "{} {}", "Sure: {}"] {
            assert_eq!(object.judge(bad, &[]).await, Err(Fault::Schema), "{bad}");
        }
        let schema = rules(json!({"response_format": {"type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "array", "items": {"type": "integer"}}}}}));
        schema.judge("[1,2]", &[]).await.unwrap();
        assert_eq!(schema.judge("[1,\"2\"]", &[]).await, Err(Fault::Schema));
    }

    #[test]
    fn a_bad_schema_names_its_field() {
        let body = json!({"model": "m", "messages": [], "tools": [{"type": "function", "function": {
            "name": "f", "strict": true, "parameters": {"type": "dog"}}}]});
        let error = Rules::of_chat(&serde_json::from_value(body).unwrap(), false).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools[0].function.parameters"));
        let body = json!({"model": "m", "messages": [], "response_format": {"type": "json_schema",
            "json_schema": {"name": "n", "schema": {"$ref": "#"}}}});
        let error = Rules::of_chat(&serde_json::from_value(body).unwrap(), false).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("response_format"));
    }
}
