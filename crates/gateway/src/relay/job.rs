//! One request for text, checked and ready to be priced: what is asked, of which model, within which bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::picture::CHARACTERS_PER_TOKEN;
use cxmpute_market::price::Units;
use cxmpute_market::wish::Wishes;
use cxmpute_tokens::TokenCounter;
use cxmpute_tokens::count::CountError;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::{ChatRequest, CompletionRequest, StreamOptions};
use cxmpute_wire::{RequestId, Tokens};

use super::answer::Writer;
use super::events::{Asked, Dialect};
use super::rules::Rules;
use super::so_far::SoFar;
use crate::error::{ApiError, ApiResult};
use crate::trace::{Key, Watch};

/// What was asked.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A conversation.
    Chat(Box<ChatRequest>),
    /// A text to continue.
    Completion(Box<CompletionRequest>),
}

/// In whose words the client speaks; the relay works on the same chat for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OpenAI's chat completions, or its legacy completions.
    OpenAi,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
}

/// A model that may answer when the ones before it have no node (`models` of a request).
#[derive(Debug, Clone)]
pub struct Alternative {
    /// The model.
    pub model: Arc<ModelEntry>,
    /// Its name as the client wrote it.
    pub model_name: String,
    /// As in [`Job::limit`].
    pub limit: u64,
    /// As in [`Job::explicit_limit`].
    pub explicit_limit: bool,
    /// Its tokenizer.
    pub counter: Option<TokenCounter>,
}

/// The pictures of a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pictures {
    /// How many.
    pub count: u64,
    /// Prompt tokens that they count as, each by its size.
    pub tokens: u64,
    /// Bytes of them in the request, which are no text.
    pub bytes: usize,
}

impl Pictures {
    /// What they count as where characters are priced.
    #[must_use]
    pub const fn characters(&self) -> u64 {
        self.tokens.saturating_mul(CHARACTERS_PER_TOKEN)
    }
}

/// A request for text on its way.
#[derive(Debug, Clone)]
pub struct Job {
    /// Made at the edge.
    pub request_id: RequestId,
    /// The request's trace.
    pub watch: Watch,
    /// When the request arrived, on the app's monotonic clock.
    pub arrived: Duration,
    /// Seconds since 1970, constant over the answer.
    pub created: i64,
    /// The request.
    pub ask: Ask,
    /// Its pictures, drawn anew.
    pub pictures: Pictures,
    /// In whose words the client speaks.
    pub form: Form,
    /// What the answer must keep to.
    pub rules: Rules,
    /// The model that answers.
    pub model: Arc<ModelEntry>,
    /// The model's name as the client wrote it.
    pub model_name: String,
    /// Number of outputs.
    pub choices: usize,
    /// Most output tokens per choice; with `explicit_limit` as asked for, else what the model allows.
    pub limit: u64,
    /// Whether the client gave the limit.
    pub explicit_limit: bool,
    /// What is wished for of the nodes.
    pub wishes: Arc<Wishes>,
    /// Models that may answer when this one has no node, in this order.
    pub alternatives: Vec<Alternative>,
    /// The model's tokenizer; absent where the model is priced per character.
    pub counter: Option<TokenCounter>,
    /// Label of the calling application.
    pub title: Option<String>,
    /// Address of the calling application.
    pub referer: Option<String>,
    /// The key's setting: a usage chunk whether asked for or not.
    pub force_usage: bool,
    /// The time the client gives the request, if it is shorter than ours.
    pub timeout: Option<Duration>,
    /// What the known-bad variant sends along: names of fields outside the schema.
    #[cfg(feature = "sabotage")]
    pub extra: Vec<String>,
}

/// A request as a node gets it.
#[derive(serde::Serialize)]
struct Salted<'a, T> {
    #[serde(flatten)]
    request: T,
    cache_salt: &'a str,
}

impl Job {
    /// Writes its answer.
    #[must_use]
    pub(super) fn writer(&self) -> Writer {
        Writer::new(
            self.dialect(),
            self.answer_id(),
            self.created,
            self.model_name.clone(),
            self.wants_usage(),
            self.rules.old_form,
        )
    }

    /// The same request for the next of its models.
    #[must_use]
    pub fn next_model(&self) -> Option<Self> {
        let (next, rest) = self.alternatives.split_first()?;
        Some(Self {
            model: next.model.clone(),
            model_name: next.model_name.clone(),
            limit: next.limit,
            explicit_limit: next.explicit_limit,
            counter: next.counter.clone(),
            alternatives: rest.to_vec(),
            ..self.clone()
        })
    }

    /// Whether the answer is a stream.
    #[must_use]
    pub fn streamed(&self) -> bool {
        match &self.ask {
            Ask::Chat(request) => request.streamed(),
            Ask::Completion(request) => request.streamed(),
        }
    }

    /// Whether the client gives the request less time than the `total` that we do.
    #[must_use]
    pub fn hurries(&self, total: Duration) -> bool {
        self.timeout.is_some_and(|timeout| timeout < total)
    }

    /// Whether a usage chunk was asked for.
    #[must_use]
    pub fn wants_usage(&self) -> bool {
        if self.force_usage {
            return true;
        }
        match &self.ask {
            Ask::Chat(request) => request.wants_usage(),
            Ask::Completion(request) => request.wants_usage(),
        }
    }

    /// Shape of the answer's events.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.ask {
            Ask::Chat(_) => Dialect::Chat,
            Ask::Completion(_) => Dialect::Completion,
        }
    }

    /// The route, as it stands in the request's row.
    #[must_use]
    pub fn route(&self) -> &'static str {
        match (self.form, &self.ask) {
            (Form::OpenAi, Ask::Chat(_)) => "/chat/completions",
            (Form::OpenAi, Ask::Completion(_)) => "/completions",
            (Form::Responses, _) => "/responses",
            (Form::Messages, _) => "/messages",
        }
    }

    /// What the engine is asked to do.
    #[must_use]
    pub fn path(&self) -> WorkPath {
        match self.ask {
            Ask::Chat(_) => WorkPath::ChatCompletions,
            Ask::Completion(_) => WorkPath::Completions,
        }
    }

    /// What the request's span says of it.
    pub(super) fn describe(&self) {
        self.watch.describe(|fields| {
            let operation = match self.ask {
                Ask::Chat(_) => "chat",
                Ask::Completion(_) => "text_completion",
            };
            fields.set(Key::Operation, operation);
            fields.set(Key::ProviderName, "cxmpute");
            fields.set(Key::RequestModel, self.model_name.clone());
            fields.set(Key::ResponseModel, self.model.id.clone());
            fields.set(Key::ResponseId, self.answer_id());
            fields.set(Key::MaxTokens, self.limit);
            fields.set(Key::Choices, self.choices as u64);
            fields.set(Key::Streaming, self.streamed());
        });
    }

    /// The id of the answer as clients see it.
    #[must_use]
    pub fn answer_id(&self) -> String {
        let prefix = match (self.form, &self.ask) {
            (Form::OpenAi, Ask::Chat(_)) => "chatcmpl-",
            (Form::OpenAi, Ask::Completion(_)) => "cmpl-",
            (Form::Responses, _) => "resp_",
            (Form::Messages, _) => "msg_",
        };
        let id = self.request_id.as_str();
        format!("{prefix}{}", id.strip_prefix(RequestId::PREFIX).unwrap_or(id))
    }

    /// What a node may send, as far as it was asked for.
    #[must_use]
    pub fn asked(&self) -> Asked {
        Asked { dialect: self.dialect(), choices: self.choices, logprobs: self.rules.logprobs }
    }

    /// The prompt that is repeated before the output of a choice; it is not billed as output.
    #[must_use]
    pub fn repeated(&self, choice: usize) -> Option<&str> {
        match &self.ask {
            Ask::Completion(request) if request.echo == Some(true) => {
                let prompts = request.prompt.texts();
                let each = (self.choices / prompts.len().max(1)).max(1);
                prompts.get(choice / each).map(String::as_str)
            }
            Ask::Chat(_) | Ask::Completion(_) => None,
        }
    }

    /// The state of an attempt that has not begun.
    #[must_use]
    pub fn nothing_yet(&self) -> SoFar {
        SoFar::new(self.choices, |choice| {
            self.repeated(choice).map_or(0, |prompt| prompt.chars().count() as u64)
        })
    }

    /// The body a node gets: the closed schema, the catalogue's model id, our bound, always as a stream with usage.
    ///
    /// # Errors
    /// The request cannot be printed, which its types rule out.
    pub fn node_body(&mut self, cache_salt: &str) -> ApiResult<Bytes> {
        let options = Some(StreamOptions { include_usage: true });
        let body = match &mut self.ask {
            // Changed where it stands, and changed back: a copy of a conversation costs as much as printing it.
            Ask::Chat(request) => {
                let asked = (
                    std::mem::replace(&mut request.model, self.model.id.clone()),
                    request.stream.replace(true),
                    std::mem::replace(&mut request.stream_options, options),
                    request.max_tokens.replace(self.limit),
                    request.max_completion_tokens.take(),
                );
                let body = serde_json::to_vec(&Salted { request: &**request, cache_salt });
                (
                    request.model,
                    request.stream,
                    request.stream_options,
                    request.max_tokens,
                    request.max_completion_tokens,
                ) = asked;
                body
            }
            Ask::Completion(request) => {
                let asked = (
                    std::mem::replace(&mut request.model, self.model.id.clone()),
                    request.stream.replace(true),
                    std::mem::replace(&mut request.stream_options, options),
                    request.max_tokens.replace(self.limit),
                    // The prompt is repeated here, where nobody pays for it.
                    request.echo.take(),
                );
                let body = serde_json::to_vec(&Salted { request: &**request, cache_salt });
                (request.model, request.stream, request.stream_options, request.max_tokens, request.echo) =
                    asked;
                body
            }
        };
        body.map(Bytes::from).map_err(ApiError::internal)
    }

    /// At most so many tokens (or characters) the prompt can have, without tokenizing: a token is at least one byte
    /// of the rendered prompt, and a template adds little to each message (DESIGN D5).
    #[must_use]
    pub fn prompt_bound(&self) -> u64 {
        /// What a template writes around one message, and around a conversation.
        const AROUND_MESSAGE: usize = 64;
        const AROUND_PROMPT: usize = 512;
        let bytes = match &self.ask {
            Ask::Chat(request) => {
                let printed = crate::json::printed_length(&request.messages);
                let tools = request.tools.as_ref().map_or(0, |tools| {
                    // Templates may print declarations with indentation.
                    serde_json::to_vec_pretty(tools).map_or(usize::MAX / 4, |text| text.len() * 2)
                });
                let text = printed.saturating_sub(self.pictures.bytes);
                text + tools + request.messages.len() * AROUND_MESSAGE + AROUND_PROMPT
            }
            Ask::Completion(request) => {
                request.prompt.texts().iter().map(|text| text.len() + AROUND_MESSAGE).sum()
            }
        };
        let pictures = match self.counter {
            Some(_) => self.pictures.tokens,
            None => self.pictures.characters(),
        };
        (bytes as u64).saturating_add(pictures)
    }

    /// The exact number of prompt tokens; blocking work.
    ///
    /// # Errors
    /// The template refuses the conversation, or the text has no tokens.
    pub fn count_prompt(&self) -> Result<Tokens, CountError> {
        let Some(counter) = &self.counter else { return Ok(Tokens::ZERO) };
        match &self.ask {
            Ask::Chat(request) => {
                counter.count_prompt(request).map(|text| text.saturating_add(Tokens(self.pictures.tokens)))
            }
            Ask::Completion(request) => request.prompt.texts().iter().try_fold(Tokens::ZERO, |sum, text| {
                counter.count_completion_prompt(text).map(|count| sum.saturating_add(count))
            }),
        }
    }

    /// Characters of the prompt, for models without a tokenizer.
    #[must_use]
    pub fn prompt_characters(&self) -> u64 {
        let count = |text: &str| text.chars().count() as u64;
        match &self.ask {
            Ask::Chat(request) => {
                let contents = request.messages.iter().filter_map(|message| message.content.as_ref());
                let text: u64 = contents.map(|content| count(&content.text())).sum();
                text.saturating_add(self.pictures.characters())
            }
            Ask::Completion(request) => request.prompt.texts().iter().map(|text| count(text)).sum(),
        }
    }

    /// Units of output that the bound of one token comes to: itself, or so many characters.
    #[must_use]
    pub const fn per_token(&self) -> u64 {
        /// Characters that one token can come to; only for a bound.
        const CHARACTERS: u64 = 16;
        if self.counter.is_some() { 1 } else { CHARACTERS }
    }

    /// The tokens of an output, or its characters where those are priced; blocking work for a long text.
    #[must_use]
    pub fn count_output(&self, text: &str) -> u64 {
        match &self.counter {
            _ if text.is_empty() => 0,
            Some(counter) => counter.count_text(text).0,
            None => text.chars().count() as u64,
        }
    }

    /// The units of an answer whose billed texts are `texts`, one per choice; blocking work. No choice counts more
    /// than the `covered` tokens that the hold covers, or the characters of so many. `prompt` is the count where it is
    /// known already.
    #[must_use]
    pub fn count(&self, prompt: Option<Tokens>, texts: &[&str], covered: u64) -> Units {
        let most = covered.saturating_mul(self.per_token());
        let output =
            texts.iter().fold(0_u64, |sum, text| sum.saturating_add(self.count_output(text).min(most)));
        if self.counter.is_none() {
            let characters = self.prompt_characters().saturating_add(output);
            return Units { characters, images: self.pictures.count, ..Units::default() };
        }
        let prompt = prompt.unwrap_or_else(|| {
            // A prompt that cannot be counted is not paid for; the engine could not have read it either.
            self.count_prompt().unwrap_or(Tokens::ZERO)
        });
        Units { images: self.pictures.count, ..Units::chat(prompt, Tokens(output)) }
    }

    /// What a node claims, in our units; none where characters are counted, of which a claim of tokens says nothing.
    /// Engines count pictures each in their own way: of a prompt that holds some, the claim says nothing either.
    #[must_use]
    pub fn claimed(&self, prompt: u64, completion: u64, counted: &Units) -> Option<Units> {
        self.counter.as_ref()?;
        let prompt = if self.pictures.count > 0 { counted.prompt } else { Tokens(prompt) };
        Some(Units { images: counted.images, ..Units::chat(prompt, Tokens(completion)) })
    }

    /// The units of a prompt of `prompt` tokens with `output` tokens per choice, and of the pictures in it: what is held at
    /// first.
    #[must_use]
    pub fn opening_units(&self, prompt: u64, output: u64) -> Units {
        Units { images: self.pictures.count, ..self.units_of(prompt, output) }
    }

    /// The units of a prompt of `prompt` tokens with `output` tokens per choice, for holds.
    #[must_use]
    pub fn units_of(&self, prompt: u64, output: u64) -> Units {
        let output = output.saturating_mul(self.choices as u64);
        if self.counter.is_some() {
            Units::chat(Tokens(prompt), Tokens(output))
        } else {
            let characters = prompt.saturating_add(output.saturating_mul(self.per_token()));
            Units { characters, ..Units::default() }
        }
    }
}
