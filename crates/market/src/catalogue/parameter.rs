//! What a model can do, in the words of requests: a field that a model lacks is refused by name, never ignored (GR7).

use cxmpute_wire::ServiceKind;

use super::Capability;

macro_rules! parameters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A field of requests that a model may lack.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Parameter { $($(#[$doc])* $variant,)* }

        impl Parameter {
            /// Every parameter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name, as it stands in requests, in the catalogue and in `GET /models`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

parameters! {
    /// Bound on output tokens (old name).
    MaxTokens = "max_tokens",
    /// Bound on output tokens.
    MaxCompletionTokens = "max_completion_tokens",
    /// Answers as events.
    Stream = "stream",
    /// Options of the stream.
    StreamOptions = "stream_options",
    /// Temperature.
    Temperature = "temperature",
    /// Nucleus.
    TopP = "top_p",
    /// The k likeliest tokens.
    TopK = "top_k",
    /// Tokens at least this likely.
    MinP = "min_p",
    /// Penalty by occurrences.
    FrequencyPenalty = "frequency_penalty",
    /// Penalty for occurring.
    PresencePenalty = "presence_penalty",
    /// Penalty as a divisor.
    RepetitionPenalty = "repetition_penalty",
    /// Scores of single tokens.
    LogitBias = "logit_bias",
    /// Probabilities of the output's tokens.
    Logprobs = "logprobs",
    /// The likeliest tokens at each place.
    TopLogprobs = "top_logprobs",
    /// Seed of the sampler.
    Seed = "seed",
    /// Stop texts.
    Stop = "stop",
    /// Several choices.
    N = "n",
    /// Tools.
    Tools = "tools",
    /// Which tool to use.
    ToolChoice = "tool_choice",
    /// Several calls in one answer.
    ParallelToolCalls = "parallel_tool_calls",
    /// Output as a JSON object.
    ResponseFormat = "response_format",
    /// Output by a JSON schema.
    StructuredOutputs = "structured_outputs",
    /// How long to think.
    ReasoningEffort = "reasoning_effort",
    /// Texts to embed.
    Input = "input",
    /// Print of vectors.
    EncodingFormat = "encoding_format",
}

impl Parameter {
    /// The parameter with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|parameter| parameter.name() == name)
    }

    /// Whether models with these capabilities know it; a field that belongs to no capability is known to all.
    #[must_use]
    pub fn is_of(self, capabilities: &[Capability]) -> bool {
        let needs = match self {
            Self::Tools | Self::ToolChoice | Self::ParallelToolCalls => Capability::Tools,
            Self::StructuredOutputs => Capability::JsonSchema,
            Self::Logprobs | Self::TopLogprobs => Capability::Logprobs,
            Self::ReasoningEffort => Capability::Reasoning,
            _ => return true,
        };
        capabilities.contains(&needs)
    }

    /// Whether Ollama's OpenAI-compatible routes ignore it.
    #[must_use]
    pub const fn is_unknown_to_ollama(self) -> bool {
        matches!(self, Self::TopK | Self::MinP | Self::RepetitionPenalty | Self::LogitBias | Self::N)
    }

    /// What a model of a kind can do when the catalogue does not say: what every engine does. No model thinks before
    /// it says so.
    #[must_use]
    pub fn usual(kind: ServiceKind) -> Vec<Self> {
        let input = matches!(kind, ServiceKind::Embeddings);
        let of_embeddings = |parameter: &Self| matches!(parameter, Self::Input | Self::EncodingFormat);
        match kind {
            ServiceKind::Llm | ServiceKind::Embeddings => Self::ALL
                .iter()
                .copied()
                .filter(|parameter| of_embeddings(parameter) == input && *parameter != Self::ReasoningEffort)
                .collect(),
            ServiceKind::Tts
            | ServiceKind::Stt
            | ServiceKind::Vision
            | ServiceKind::Image
            | ServiceKind::Scrape => Vec::new(),
        }
    }
}
