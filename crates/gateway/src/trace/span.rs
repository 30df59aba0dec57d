//! What a span can say. The names are a closed set: nothing of a body, a key or an address has a name here (SR35).

use std::borrow::Cow;

use super::context::{SpanId, TraceId};

/// Longest text of one value, in bytes (GR section 9).
const TEXT_LIMIT: usize = 4096;

/// The phases of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Price, limits and the durable hold.
    Admission,
    /// Waiting for a node.
    Queue,
    /// One node's try.
    Attempt,
    /// From the beginning of an attempt to its first content.
    FirstToken,
    /// Counting is done; until the settlement is durable.
    Settle,
}

impl Phase {
    /// The name of its span.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Queue => "queue",
            Self::Attempt => "attempt",
            Self::FirstToken => "first_token",
            Self::Settle => "settle",
        }
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// The name of an attribute; OpenTelemetry's own where its conventions have one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Key {
            $($(#[$doc])* $name,)*
        }

        impl Key {
            /// Every name.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it stands in a span.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

keys! {
    /// The method, or `_OTHER`.
    HttpMethod = "http.request.method",
    /// The row of the route table, never the path as it was sent.
    HttpRoute = "http.route",
    /// The status.
    HttpStatus = "http.response.status_code",
    /// Our error code.
    ErrorType = "error.type",
    /// `chat`, `text_completion` or `embeddings`.
    Operation = "gen_ai.operation.name",
    /// Who serves the model, for programs that know many: `cxmpute`.
    ProviderName = "gen_ai.provider.name",
    /// The model's name as it was asked for, once it is known to be one.
    RequestModel = "gen_ai.request.model",
    /// The catalogue's id of the model that answered.
    ResponseModel = "gen_ai.response.model",
    /// Bound of the output.
    MaxTokens = "gen_ai.request.max_tokens",
    /// Outputs that were asked for.
    Choices = "gen_ai.request.choice.count",
    /// Id of the answer.
    ResponseId = "gen_ai.response.id",
    /// Why the outputs ended.
    FinishReasons = "gen_ai.response.finish_reasons",
    /// Tokens of the prompt, as counted for the bill.
    InputTokens = "gen_ai.usage.input_tokens",
    /// Tokens of the output, as counted for the bill.
    OutputTokens = "gen_ai.usage.output_tokens",
    /// Id of the request, as in `X-Request-Id` and in the log.
    RequestId = "cxmpute.request.id",
    /// Whether the answer is a stream.
    Streaming = "cxmpute.streaming",
    /// Attempts that were made.
    Attempts = "cxmpute.attempts",
    /// How the request, or one attempt, ended: a row of the abort table.
    Outcome = "cxmpute.outcome",
    /// Number of an attempt.
    AttemptNumber = "cxmpute.attempt.number",
    /// The node of an attempt.
    Provision = "cxmpute.provision.id",
    /// Spans of this request that were left out because there were too many.
    SpansLeftOut = "cxmpute.spans_left_out",
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// Texts.
    Texts(Vec<Cow<'static, str>>),
    /// A whole number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(mut text: String) -> Self {
        let end = text.floor_char_boundary(TEXT_LIMIT);
        text.truncate(end);
        Self::Text(Cow::Owned(text))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// The attributes of one span; a name stands once, with its last value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields(Vec<(Key, Value)>);

impl Fields {
    /// Sets one.
    pub fn set(&mut self, key: Key, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(have, _)| *have == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// All of them, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &(Key, Value)> {
        self.0.iter()
    }
}

/// Who a span belongs to, in OpenTelemetry's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work of our own.
    Internal = 1,
    /// A request that we answer.
    Server = 2,
    /// A request that we make.
    Client = 3,
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Its id.
    pub id: SpanId,
    /// The span it belongs below.
    pub parent: Option<SpanId>,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its kind.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub began: u64,
    /// Nanoseconds since 1970.
    pub ended: u64,
    /// What it says.
    pub fields: Fields,
    /// Whether it failed through a fault that is not the client's.
    pub failed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_once_and_long_texts_are_cut() {
        let mut fields = Fields::default();
        fields.set(Key::Attempts, 1u64);
        fields.set(Key::RequestModel, "\u{e4}".repeat(TEXT_LIMIT));
        fields.set(Key::Attempts, u64::MAX);
        let seen: Vec<_> = fields.iter().collect();
        assert_eq!(seen[0], &(Key::Attempts, Value::Number(i64::MAX)));
        let (_, Value::Text(text)) = seen[1] else { panic!("{seen:?}") };
        assert_eq!((seen.len(), text.len()), (2, TEXT_LIMIT));
    }
}
