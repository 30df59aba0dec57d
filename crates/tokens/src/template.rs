//! Chat templates: a conversation as the text that the model was trained to continue.
//!
//! Templates are Jinja, written for the `transformers` library; its surroundings are reproduced here: trimmed
//! blocks, Python's string methods, `raise_exception`, and a `tojson` that prints like Python's `json.dumps`.

use std::sync::Arc;

use cxmpute_wire::openai::{ChatMessage, Tool};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value as Json};

use crate::guard::Guard;

/// Instructions one rendering may take. A long conversation takes some 100,000; a hostile template ends here.
const FUEL: u64 = 5_000_000;
/// The name under which the one template of an environment is kept.
const NAME: &str = "chat";

/// Why a prompt could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the model's chat template cannot be read: {0}")]
    Syntax(String),
    /// The template refuses the conversation, for example because roles do not alternate.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template fails.
    #[error("the model's chat template fails: {0}")]
    Failed(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of the tokens that begin and end a sequence.
    ///
    /// # Errors
    /// When the source is not valid.
    pub fn from_source(jinja: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, jinja.to_owned())
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        Ok(Self { environment, source: jinja.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The Jinja text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes a conversation down, as it is.
    ///
    /// # Errors
    /// When the template refuses the conversation or fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        Ok(self.render_guarded(messages, tools, add_generation_prompt, &Guard::default())?.0)
    }

    /// Writes a conversation down, with the names that `guard` knows cut in what it says; also gives the mark of the
    /// cuts, if there are any.
    ///
    /// # Errors
    /// When the template refuses the conversation or fails.
    pub(crate) fn render_guarded(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        add_generation_prompt: bool,
        guard: &Guard,
    ) -> Result<(String, Option<char>), TemplateError> {
        let tools = tools.filter(|tools| !tools.is_empty());
        if tools.is_none()
            && let Some(said) = messages.iter().map(|message| Said::of(message, guard)).collect()
        {
            let said: Vec<Value> = said;
            return Ok((self.write(Value::from(said), Value::from(()), add_generation_prompt)?, None));
        }
        let mut messages: Vec<Json> = messages.iter().map(message_value).collect();
        let tools = tools.map(serde_json::to_value).transpose();
        let mut tools = tools.map_err(|error| TemplateError::Failed(error.to_string()))?;
        let mut said: Vec<&mut Json> = messages.iter_mut().chain(&mut tools).collect();
        let cut = guard.cut_all(&mut said).map_err(|error| TemplateError::Refused(error.to_string()))?;
        let text =
            self.write(Value::from(Serde(messages)), Value::from(Serde(tools)), add_generation_prompt)?;
        Ok((text, cut))
    }

    fn write(
        &self,
        messages: Value,
        tools: Value,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let context = minijinja::context! {
            messages => messages,
            tools => tools,
            add_generation_prompt => add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        template.render(context).map_err(|error| failure(&error))
    }
}

/// A message that holds nothing but a plain text: most do, and for them the way over JSON costs more than the template.
#[derive(Debug)]
struct Said {
    role: &'static str,
    content: Value,
}

impl Said {
    /// The message as a value for templates; `None` where it holds more, or says a guarded name.
    fn of(message: &ChatMessage, guard: &Guard) -> Option<Value> {
        let plain = message.name.is_none() && message.tool_calls.is_none() && message.tool_call_id.is_none();
        let text = message.content.as_ref().filter(|_| plain)?.text();
        (!guard.speaks(&text)).then(|| {
            Value::from_object(Self { role: message.role.template_name(), content: Value::from(text) })
        })
    }
}

impl Object for Said {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(self.role)),
            "content" => Some(self.content.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// A message as templates expect it: content as one text, the arguments of calls as objects.
fn message_value(message: &ChatMessage) -> Json {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.template_name().into());
    let content =
        message.content.as_ref().map_or(Json::Null, |content| Json::String(content.text().into_owned()));
    fields.insert("content".into(), content);
    if let Some(name) = &message.name {
        fields.insert("name".into(), name.as_str().into());
    }
    if let Some(calls) = message.tool_calls.as_ref().filter(|calls| !calls.is_empty()) {
        let calls = calls.iter().map(|call| {
            let arguments = match serde_json::from_str::<Json>(&call.function.arguments) {
                Ok(object @ Json::Object(_)) => object,
                _ => Json::String(call.function.arguments.clone()),
            };
            serde_json::json!({
                "id": call.id,
                "type": call.kind,
                "function": { "name": call.function.name, "arguments": arguments },
            })
        });
        fields.insert("tool_calls".into(), calls.collect());
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".into(), id.as_str().into());
    }
    Json::Object(fields)
}

/// What a template said when it refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn failure(error: &Error) -> TemplateError {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        next = cause.source();
    }
    TemplateError::Failed(error.to_string())
}

fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's default of the wrapper is `ensure_ascii=False`; order is kept unless asked otherwise.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    if sorted {
        json.sort_all_objects();
    }
    let written = match indent {
        None => write(&json, PythonFormatter),
        Some(width) => write(&json, PrettyFormatter::with_indent(" ".repeat(width.min(16)).as_bytes())),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn write(json: &Json, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `{"a": 1, "b": [1, 2]}`: a space after every comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(json: Json) -> Vec<ChatMessage> {
        serde_json::from_value(json).unwrap()
    }

    fn render(source: &str, conversation: Json) -> Result<String, TemplateError> {
        ChatTemplate::from_source(source, "<s>", "</s>").unwrap().render(&messages(conversation), None, true)
    }

    #[test]
    fn a_conversation_is_written_as_transformers_writes_it() {
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'user' %}\n[U]{{ message.content.strip() }}\n  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}[A]{% endif %}";
        let said = serde_json::json!([{"role": "user", "content": "  a <b> & 'c' "}, {"role": "developer", "content": "x"}]);
        assert_eq!(render(source, said).unwrap(), "<s>[U]a <b> & 'c'\n[A]");
    }

    #[test]
    fn json_looks_like_pythons() {
        let source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{{ m.content is none }}{% endfor %}";
        let call = serde_json::json!([{"role": "assistant", "content": null, "tool_calls": [{
            "id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"z\":[1,2],\"a\":\"é<\"}"}}]}]);
        assert_eq!(render(source, call).unwrap(), "{\"z\": [1, 2], \"a\": \"é<\"}True");
    }

    #[test]
    fn parts_are_joined_and_tools_are_none_when_absent() {
        let source = "{{ messages[0].content }}{{ tools is none }}{{ 'tool_calls' in messages[0] }}";
        let parts = serde_json::json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        assert_eq!(render(source, parts).unwrap(), "a\nbTrueFalse");
    }

    #[test]
    fn a_plain_message_is_the_same_value_by_either_way() {
        let source = "{% for m in messages %}{{ m | tojson }}{{ m }}{{ m.items() | list }}{{ m.get('name', 'no') }}\
            {{ 'content' in m }}{{ 'name' in m }}{{ m['role'] }}{{ m.content | length }}{{ m is mapping }}{{ m.name is defined }}\
            {{ m | length }}{% for key in m %}{{ key }}{% endfor %}{{ m.content is string }}{{ m.content[1:] }}{{ (m | items | list)[0] }}\
            {{ m == messages[0] }}{{ dict(m, x=1) | tojson }}{% endfor %}{{ tools is none }}{{ messages | length }}{{ messages[1:] | length }}\
            {{ messages | tojson }}{{ messages[-1].content }}{{ messages | map(attribute='role') | list }}";
        let template = ChatTemplate::from_source(source, "", "").unwrap();
        let said = messages(serde_json::json!([
            {"role": "system", "content": "a \"b\"\n\u{e9}"},
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "<y>"}]},
            {"role": "assistant", "content": ""},
        ]));
        let plain = template.render(&said, None, true).unwrap();
        let by_json = said.iter().map(message_value).collect::<Vec<_>>();
        let by_json = template.write(Value::from(Serde(by_json)), Value::from(()), true).unwrap();
        assert_eq!(plain, by_json);
    }

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let said = serde_json::json!([{"role": "user", "content": "x"}]);
        let refused = render("{{ raise_exception('roles must alternate') }}", said.clone());
        assert!(matches!(refused, Err(TemplateError::Refused(text)) if text == "roles must alternate"));
        assert!(matches!(render("{{ nothing.at.all }}", said.clone()), Err(TemplateError::Failed(_))));
        assert!(matches!(ChatTemplate::from_source("{% if %}", "", ""), Err(TemplateError::Syntax(_))));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, said), Err(TemplateError::Failed(_))));
    }
}
