//! Counting what is billed: the same function encodes a prompt in the gateway, which counts it, and in the engine,
//! which feeds it to the model.

use std::path::Path;
use std::sync::Arc;

use cxmpute_wire::openai::{ChatRequest, ToolChoice};
use cxmpute_wire::unit::Tokens;

use crate::gguf::{GgufError, Header};
use crate::guard::Guard;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{TextTokenizer, TokenizerError};

/// Why a prompt could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// The model file cannot be read.
    #[error(transparent)]
    Header(#[from] GgufError),
    /// The tokenizer cannot be made or used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be compiled, refuses the conversation or fails.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model has no chat template: it completes text and holds no conversations.
    #[error("the model has no chat template; use /completions")]
    NoTemplate,
}

impl CountError {
    /// Whether the request, not the model file, is at fault.
    #[must_use]
    pub fn is_request_fault(&self) -> bool {
        matches!(
            self,
            Self::NoTemplate | Self::Template(TemplateError::Refused(_) | TemplateError::Failed(_))
        )
    }
}

/// Tokenizer and chat template of one model. Cloning shares them.
#[derive(Debug, Clone)]
pub struct TokenCounter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    guard: Guard,
}

impl TokenCounter {
    /// The counter of a GGUF model file. Only its header is read.
    ///
    /// # Errors
    /// When the file cannot be read, or its tokenizer or template is of an unknown kind.
    pub fn from_gguf(path: &Path) -> Result<Self, CountError> {
        Self::from_header(&Header::read(path)?)
    }

    /// The counter of a GGUF header.
    ///
    /// # Errors
    /// When its tokenizer or template is of an unknown kind.
    pub fn from_header(header: &Header) -> Result<Self, CountError> {
        let tokenizer = TextTokenizer::from_header(header)?;
        let template = header
            .chat_template()
            .map(|source| ChatTemplate::from_source(source, tokenizer.bos_text(), tokenizer.eos_text()))
            .transpose()?;
        // A user's own tokens may be ordinary text; those that the template writes mean something to the model.
        let taught = template.as_ref().map_or("", ChatTemplate::source);
        let marks = tokenizer.defined_tokens().filter(|text| {
            text.starts_with(['<', '[']) && taught.contains(text.as_str()) && !looks_for(taught, text)
        });
        let control = tokenizer.control_tokens().map(|(_, text)| text);
        let guard = Guard::new(control.chain(marks.map(String::as_str)).map(str::to_owned));
        Ok(Self { inner: Arc::new(Inner { tokenizer, template, guard }) })
    }

    /// The counter of a `tokenizer.json`, as embedding models have it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn from_tokenizer_json(path: &Path) -> Result<Self, CountError> {
        let tokenizer = TextTokenizer::from_json_file(path)?;
        Ok(Self { inner: Arc::new(Inner { tokenizer, template: None, guard: Guard::default() }) })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.inner.tokenizer
    }

    /// The source of the chat template, which tells how the model's family writes calls of tools.
    #[must_use]
    pub fn template_source(&self) -> Option<&str> {
        self.inner.template.as_ref().map(ChatTemplate::source)
    }

    /// The prompt of a chat request, as the model reads it.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the conversation.
    pub fn render_prompt(&self, request: &ChatRequest) -> Result<String, CountError> {
        let (text, cut) = self.render(request)?;
        Ok(cut.map_or_else(|| text.clone(), |cut| text.replace(cut, "")))
    }

    /// The prompt with the names of control tokens cut where the request says them, and the mark of the cuts.
    fn render(&self, request: &ChatRequest) -> Result<(String, Option<char>), CountError> {
        let template = self.inner.template.as_ref().ok_or(CountError::NoTemplate)?;
        // `tool_choice: "none"`: the model does not hear of the tools.
        let forbidden = request.tool_choice.as_ref().is_some_and(ToolChoice::forbids);
        let tools = request.tools.as_deref().filter(|_| !forbidden);
        Ok(template.render_guarded(&request.messages, tools, true, &self.inner.guard)?)
    }

    /// The prompt of a chat request in tokens. Control tokens come from the template alone: their names in messages
    /// and tools are read as the text they are.
    ///
    /// # Errors
    /// As [`Self::render_prompt`].
    pub fn encode_prompt(&self, request: &ChatRequest) -> Result<Vec<u32>, CountError> {
        let (text, cut) = self.render(request)?;
        let Some(cut) = cut else { return Ok(self.inner.tokenizer.encode(&text)?) };
        let parts: Result<Vec<_>, _> =
            text.split(cut).map(|part| self.inner.tokenizer.encode(part)).collect();
        Ok(parts?.concat())
    }

    /// The prompt of a legacy completion in tokens.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn encode_completion_prompt(&self, text: &str) -> Result<Vec<u32>, CountError> {
        Ok(self.inner.tokenizer.encode_prompt(text)?)
    }

    /// Tokens of the prompt of a chat request, with everything the template adds.
    ///
    /// # Errors
    /// As [`Self::render_prompt`].
    pub fn count_prompt(&self, request: &ChatRequest) -> Result<Tokens, CountError> {
        let (text, cut) = self.render(request)?;
        let mut count = 0;
        for part in cut.map_or_else(|| vec![text.as_str()], |cut| text.split(cut).collect()) {
            count += self.inner.tokenizer.count(part)?;
        }
        Ok(tokens(count))
    }

    /// Tokens of the prompt of a legacy completion.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn count_completion_prompt(&self, text: &str) -> Result<Tokens, CountError> {
        self.encode_completion_prompt(text).map(|ids| tokens(ids.len()))
    }

    /// Tokens of an output text. A text that cannot be tokenized (no known vocabulary has one) counts nothing:
    /// nobody pays for what cannot be counted.
    #[must_use]
    pub fn count_text(&self, text: &str) -> Tokens {
        tokens(self.inner.tokenizer.count(text).unwrap_or(0))
    }

    /// Tokens of one input of an embedding model with the marks around it; inputs over `limit` tokens are cut.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn count_embedding_input(&self, text: &str, limit: Tokens) -> Result<Tokens, CountError> {
        let limit = usize::try_from(limit.0).unwrap_or(usize::MAX);
        Ok(self.inner.tokenizer.encode_marked(text, limit).map(|(ids, _)| tokens(ids.len()))?)
    }
}

fn tokens(count: usize) -> Tokens {
    Tokens(count as u64)
}

/// Whether a template takes contents apart by a name, as those of thinking models do with `</think>`. It has to find
/// the name as it was written.
fn looks_for(template: &str, name: &str) -> bool {
    ["'", "\""].into_iter().any(|quote| {
        let quoted = format!("{quote}{name}{quote}");
        [format!("{quoted} in "), format!("split({quoted})")].iter().any(|used| template.contains(used))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_template_takes_contents_apart_by_are_told_from_those_it_writes() {
        let template = r"{% if '</think>' in content %}{{ content.split('</done>')[-1] }}{% endif %}{{ '<tool_call>' }}<x>";
        assert_eq!(
            ["</think>", "</done>", "<tool_call>", "<x>"].map(|name| looks_for(template, name)),
            [true, true, false, false]
        );
    }
}
