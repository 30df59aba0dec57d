//! What shape a chat request wants its answer to have: JSON, calls of tools, or text.

use cxmpute_wire::Code;
use cxmpute_wire::openai::{ChatRequest, ResponseFormat, Tool, ToolChoice};
use serde_json::{Map, Value};

use crate::constrain::{Constraint, Grammars};
use crate::grammar::{Callable, Calls, Format};
use crate::refusal::Refusal;
use crate::tools::{Syntax, ToolParser};

/// Longest name of a function.
const MAX_NAME: usize = 64;
/// Most declared functions.
const MAX_FUNCTIONS: usize = 128;

/// The shape of an answer.
#[derive(Default)]
pub struct Plan {
    format: Option<Format>,
    calls: Option<Calls>,
    /// Some function is declared strict: its arguments must keep to their schema or the request is refused.
    strict: bool,
}

impl Plan {
    /// Reads a request for a model whose template teaches `syntax`.
    ///
    /// # Errors
    /// When tools are declared or chosen in a way that makes no sense, or the model knows none.
    pub fn read(request: &ChatRequest, syntax: Option<Syntax>) -> Result<Self, Refusal> {
        let format = match &request.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(Format::Object),
            Some(ResponseFormat::JsonSchema { json_schema }) => {
                Some(Format::Schema(json_schema.schema.clone().unwrap_or_else(|| Map::new().into())))
            }
        };
        let tools = request.tools.as_deref().unwrap_or_default();
        let choice = request.tool_choice.as_ref();
        let forced = choice.is_some_and(ToolChoice::forces);
        if tools.is_empty() && forced {
            return Err(Refusal::parameter("tool_choice", "tool_choice asks for a call and tools is empty."));
        }
        if tools.is_empty() || choice.is_some_and(ToolChoice::forbids) {
            return Ok(Self { format, calls: None, strict: false });
        }
        let syntax = syntax.ok_or_else(|| {
            Refusal::new(Code::UnsupportedParameter, "This model has no way to call tools.").at("tools")
        })?;
        if tools.len() > MAX_FUNCTIONS {
            return Err(Refusal::parameter("tools", format!("tools takes up to {MAX_FUNCTIONS} functions.")));
        }
        let mut functions = tools.iter().map(callable).collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = choice.and_then(ToolChoice::named) {
            functions.retain(|function| function.name == name);
            functions.truncate(1);
            if functions.is_empty() {
                let message = "tool_choice names a function that tools does not declare.";
                return Err(Refusal::parameter("tool_choice", message));
            }
        }
        let several = request.parallel_tool_calls.unwrap_or(true);
        let strict = tools.iter().any(|tool| tool.function.strict == Some(true));
        Ok(Self { format, calls: Some(Calls { syntax, functions, several, forced }), strict })
    }

    /// What takes the calls out of an answer, if it may hold any.
    pub fn parser(&self) -> Option<ToolParser> {
        let Calls { syntax, several, forced, .. } = *self.calls.as_ref()?;
        let held = forced || !syntax.open.is_empty();
        Some(if held { ToolParser::live(syntax) } else { ToolParser::lenient(syntax, several) })
    }

    /// Marks around calls; where they are control tokens, their names are part of the text.
    pub fn marks(&self) -> Vec<&'static str> {
        self.calls.as_ref().map(|calls| calls.syntax.marks()).unwrap_or_default()
    }

    /// Makes the constraint that holds an answer to its shape.
    ///
    /// # Errors
    /// When a schema cannot be guaranteed.
    pub fn compile(mut self, grammars: &Grammars) -> Result<Option<Constraint>, Refusal> {
        let refused = |field: &'static str, reason: &str| {
            let message = format!("The schema in {field} cannot be guaranteed: {reason}.");
            Refusal::parameter(field, message)
        };
        let Some(calls) = &self.calls else {
            let compiled = grammars.compile(self.format.as_ref(), None);
            return compiled.map_err(|reason| refused("response_format", &reason));
        };
        if self.format.is_some() {
            let alone = grammars.compile(self.format.as_ref(), None);
            alone.map_err(|reason| refused("response_format", &reason))?;
        }
        match grammars.compile(self.format.as_ref(), Some(calls)) {
            Ok(constraint) => Ok(constraint),
            Err(reason) if calls.forced || self.strict => Err(refused("tools", &reason)),
            // The model may call as it likes; what cannot be guaranteed is any object, as without strict elsewhere.
            Err(_) => {
                for function in self.calls.iter_mut().flat_map(|calls| &mut calls.functions) {
                    function.parameters = None;
                }
                let loose = grammars.compile(self.format.as_ref(), self.calls.as_ref());
                loose.map_err(|reason| refused("tools", &reason))
            }
        }
    }
}

fn callable(tool: &Tool) -> Result<Callable, Refusal> {
    let name = tool.function.name.clone();
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if tool.kind != "function" {
        return Err(Refusal::parameter("tools", "The type of a tool must be `function`."));
    }
    if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(usable) {
        let message = format!("The name of a function is 1 to {MAX_NAME} letters, digits, `_`, `-` and `.`.");
        return Err(Refusal::parameter("tools", message));
    }
    let parameters = match tool.function.parameters.clone() {
        None | Some(Value::Null) => None,
        Some(Value::Object(fields)) if fields.is_empty() => None,
        Some(Value::Object(mut fields)) => {
            // Arguments are an object, whether the schema says so or not.
            if fields.entry("type").or_insert_with(|| "object".into()) != "object" {
                let message = format!("The parameters of the function `{name}` must be of type `object`.");
                return Err(Refusal::parameter("tools", message));
            }
            Some(Value::Object(fields))
        }
        Some(_) => {
            let message = format!("The parameters of the function `{name}` must be a JSON schema.");
            return Err(Refusal::parameter("tools", message));
        }
    };
    Ok(Callable { name, parameters })
}
