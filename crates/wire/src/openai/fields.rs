//! The fields of requests by name, inside nested objects, too: what is not listed here is not part of the schema. The
//! types read the same names, and a test holds this table to them.

use self::Inner::{Free, List, Object};
use super::{
    ChatRequest, CompletionRequest, EmbeddingRequest, ImageRequest, RerankRequest, ResponsesRequest,
    SeedImageRequest, SpeechRequest, TtsRequest,
};
use crate::anthropic::{CountRequest, MessagesRequest};
use crate::scrape::ScrapeRequest;
use crate::sight::SightRequest;

/// The fields of one object, each with what stands in it.
#[derive(Debug)]
pub struct Fields(pub &'static [(&'static str, Inner)]);

/// What stands in a field.
#[derive(Debug, Clone, Copy)]
pub enum Inner {
    /// No object of the schema: a plain value, or something of the client's own, such as a JSON schema.
    Free,
    /// An object, or a plain value instead of it.
    Object(&'static Fields),
    /// A list of objects, or a plain value instead of it.
    List(&'static Fields),
}

impl Fields {
    /// What is known of a field; none when it is not part of the schema.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Inner> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, inner)| *inner)
    }
}

/// A request with a closed schema.
pub trait Closed {
    /// Its fields.
    const FIELDS: &'static Fields;
}

impl Closed for ChatRequest {
    const FIELDS: &'static Fields = &CHAT;
}

impl Closed for CompletionRequest {
    const FIELDS: &'static Fields = &COMPLETION;
}

impl Closed for EmbeddingRequest {
    const FIELDS: &'static Fields = &EMBEDDING;
}

impl Closed for SpeechRequest {
    const FIELDS: &'static Fields = &SPEECH;
}

impl Closed for TtsRequest {
    const FIELDS: &'static Fields = &TTS;
}

impl Closed for RerankRequest {
    const FIELDS: &'static Fields = &RERANK;
}

impl Closed for SightRequest {
    const FIELDS: &'static Fields = &SIGHT;
}

impl Closed for ImageRequest {
    const FIELDS: &'static Fields = &IMAGE;
}

impl Closed for SeedImageRequest {
    const FIELDS: &'static Fields = &SEED_IMAGE;
}

impl Closed for ScrapeRequest {
    const FIELDS: &'static Fields = &SCRAPE;
}

impl Closed for ResponsesRequest {
    const FIELDS: &'static Fields = &RESPONSES;
}

impl Closed for MessagesRequest {
    const FIELDS: &'static Fields = &MESSAGES;
}

impl Closed for CountRequest {
    const FIELDS: &'static Fields = &COUNT;
}

static CHAT: Fields = Fields(&[
    ("model", Free),
    ("models", Free),
    ("messages", List(&MESSAGE)),
    ("stream", Free),
    ("stream_options", Object(&STREAM_OPTIONS)),
    ("max_tokens", Free),
    ("max_completion_tokens", Free),
    ("temperature", Free),
    ("top_p", Free),
    ("top_k", Free),
    ("min_p", Free),
    ("frequency_penalty", Free),
    ("presence_penalty", Free),
    ("repetition_penalty", Free),
    ("logit_bias", Free),
    ("logprobs", Free),
    ("top_logprobs", Free),
    ("seed", Free),
    ("stop", Free),
    ("n", Free),
    ("tools", List(&TOOL)),
    ("tool_choice", Object(&TOOL_CHOICE)),
    ("parallel_tool_calls", Free),
    ("functions", List(&FUNCTION)),
    ("function_call", Object(&NAMED)),
    ("response_format", Object(&RESPONSE_FORMAT)),
    ("reasoning_effort", Free),
    ("metadata", Free),
    ("store", Free),
    ("service_tier", Free),
    ("user", Free),
    ("usage", Object(&USAGE)),
    ("provider", Object(&PROVIDER)),
]);

static COMPLETION: Fields = Fields(&[
    ("model", Free),
    ("models", Free),
    ("prompt", Free),
    ("stream", Free),
    ("stream_options", Object(&STREAM_OPTIONS)),
    ("max_tokens", Free),
    ("temperature", Free),
    ("top_p", Free),
    ("top_k", Free),
    ("min_p", Free),
    ("frequency_penalty", Free),
    ("presence_penalty", Free),
    ("repetition_penalty", Free),
    ("logit_bias", Free),
    ("logprobs", Free),
    ("echo", Free),
    ("best_of", Free),
    ("suffix", Free),
    ("seed", Free),
    ("stop", Free),
    ("n", Free),
    ("user", Free),
    ("usage", Object(&USAGE)),
    ("provider", Object(&PROVIDER)),
]);

static EMBEDDING: Fields = Fields(&[
    ("model", Free),
    ("input", Free),
    ("encoding_format", Free),
    ("dimensions", Free),
    ("truncate", Free),
    ("keep_alive", Free),
    ("user", Free),
    ("provider", Object(&PROVIDER)),
]);

static SPEECH: Fields = Fields(&[
    ("model", Free),
    ("input", Free),
    ("voice", Object(&VOICE)),
    ("response_format", Free),
    ("speed", Free),
    ("instructions", Free),
    ("stream_format", Free),
    ("provider", Object(&PROVIDER)),
]);

static VOICE: Fields = Fields(&[("id", Free)]);

static TTS: Fields = Fields(&[
    ("text", Free),
    ("voice", Free),
    ("model", Free),
    ("speed", Free),
    ("provider", Object(&PROVIDER)),
]);

static RERANK: Fields = Fields(&[
    ("model", Free),
    ("query", Free),
    ("documents", List(&DOCUMENT)),
    ("top_n", Free),
    ("return_documents", Free),
    ("provider", Object(&PROVIDER)),
]);

static DOCUMENT: Fields = Fields(&[("text", Free)]);

static SIGHT: Fields = Fields(&[
    ("imageUrl", Free),
    ("imageBase64", Free),
    ("imageUint8", Free),
    ("length", Free),
    ("question", Free),
    ("target", Free),
    ("model", Free),
    ("provider", Object(&PROVIDER)),
]);

static IMAGE: Fields = Fields(&[
    ("prompt", Free),
    ("model", Free),
    ("n", Free),
    ("size", Free),
    ("quality", Free),
    ("response_format", Free),
    ("output_format", Free),
    ("background", Free),
    ("stream", Free),
    ("negative_prompt", Free),
    ("num_inference_steps", Free),
    ("seed", Free),
    ("user", Free),
    ("provider", Object(&PROVIDER)),
]);

static SEED_IMAGE: Fields = Fields(&[
    ("prompt", Free),
    ("negativePrompt", Free),
    ("numInferenceSteps", Free),
    ("width", Free),
    ("height", Free),
    ("model", Free),
    ("provider", Object(&PROVIDER)),
]);

static SCRAPE: Fields = Fields(&[
    ("urls", Free),
    ("format", Free),
    ("main_content", Free),
    ("render", Free),
    ("respect_robots", Free),
    ("model", Free),
    ("provider", Object(&PROVIDER)),
]);

static MESSAGE: Fields = Fields(&[
    ("role", Free),
    ("content", List(&PART)),
    ("name", Free),
    ("tool_calls", List(&CALL)),
    ("tool_call_id", Free),
    ("function_call", Object(&FUNCTION_CALL)),
    ("refusal", Free),
]);

static PART: Fields = Fields(&[
    ("type", Free),
    ("text", Free),
    ("image_url", Object(&IMAGE_URL)),
    ("input_audio", Object(&INPUT_AUDIO)),
    ("refusal", Free),
]);

static IMAGE_URL: Fields = Fields(&[("url", Free), ("detail", Free)]);

static INPUT_AUDIO: Fields = Fields(&[("data", Free), ("format", Free)]);

static CALL: Fields = Fields(&[("id", Free), ("type", Free), ("function", Object(&FUNCTION_CALL))]);

static FUNCTION_CALL: Fields = Fields(&[("name", Free), ("arguments", Free)]);

static TOOL: Fields = Fields(&[("type", Free), ("function", Object(&FUNCTION))]);

static FUNCTION: Fields =
    Fields(&[("name", Free), ("description", Free), ("parameters", Free), ("strict", Free)]);

static TOOL_CHOICE: Fields = Fields(&[("type", Free), ("function", Object(&NAMED))]);

static NAMED: Fields = Fields(&[("name", Free)]);

static RESPONSE_FORMAT: Fields = Fields(&[("type", Free), ("json_schema", Object(&JSON_SCHEMA))]);

static JSON_SCHEMA: Fields =
    Fields(&[("name", Free), ("description", Free), ("schema", Free), ("strict", Free)]);

static STREAM_OPTIONS: Fields = Fields(&[("include_usage", Free)]);

static USAGE: Fields = Fields(&[("include", Free)]);

static PROVIDER: Fields = Fields(&[
    ("order", Free),
    ("only", Free),
    ("ignore", Free),
    ("allow_fallbacks", Free),
    ("require_parameters", Free),
    ("data_collection", Free),
    ("zdr", Free),
    ("quantizations", Free),
    ("sort", Object(&SORT)),
    ("preferred_min_throughput", Object(&PERCENTILES)),
    ("preferred_max_latency", Object(&PERCENTILES)),
    ("max_price", Object(&MAX_PRICE)),
    ("evidence", Free),
    ("region", Free),
    ("own_nodes", Free),
]);

static SORT: Fields = Fields(&[("by", Free), ("partition", Free)]);

static PERCENTILES: Fields = Fields(&[("p50", Free), ("p75", Free), ("p90", Free), ("p99", Free)]);

static MAX_PRICE: Fields =
    Fields(&[("prompt", Free), ("completion", Free), ("request", Free), ("image", Free)]);

static RESPONSES: Fields = Fields(&[
    ("model", Free),
    ("models", Free),
    ("input", List(&ITEM)),
    ("instructions", Free),
    ("max_output_tokens", Free),
    ("temperature", Free),
    ("top_p", Free),
    ("tools", List(&RESPONSE_TOOL)),
    ("tool_choice", Object(&RESPONSE_NAMED)),
    ("parallel_tool_calls", Free),
    ("text", Object(&TEXT_OPTIONS)),
    ("reasoning", Object(&REASONING)),
    ("stream", Free),
    ("metadata", Free),
    ("store", Free),
    ("previous_response_id", Free),
    ("conversation", Free),
    ("background", Free),
    ("truncation", Free),
    ("service_tier", Free),
    ("user", Free),
    ("provider", Object(&PROVIDER)),
]);

static ITEM: Fields = Fields(&[
    ("type", Free),
    ("role", Free),
    ("content", List(&ITEM_PART)),
    ("call_id", Free),
    ("name", Free),
    ("arguments", Free),
    ("output", List(&ITEM_PART)),
    ("id", Free),
    ("status", Free),
]);

static ITEM_PART: Fields = Fields(&[
    ("type", Free),
    ("text", Free),
    ("refusal", Free),
    ("image_url", Free),
    ("detail", Free),
    ("annotations", Free),
    ("logprobs", Free),
]);

static RESPONSE_TOOL: Fields =
    Fields(&[("type", Free), ("name", Free), ("description", Free), ("parameters", Free), ("strict", Free)]);

static RESPONSE_NAMED: Fields = Fields(&[("type", Free), ("name", Free)]);

static TEXT_OPTIONS: Fields = Fields(&[("format", Object(&TEXT_FORMAT))]);

static TEXT_FORMAT: Fields =
    Fields(&[("type", Free), ("name", Free), ("description", Free), ("schema", Free), ("strict", Free)]);

static REASONING: Fields = Fields(&[("effort", Free)]);

static MESSAGES: Fields = Fields(&[
    ("model", Free),
    ("models", Free),
    ("messages", List(&INPUT_MESSAGE)),
    ("max_tokens", Free),
    ("system", List(&BLOCK)),
    ("stop_sequences", Free),
    ("stream", Free),
    ("temperature", Free),
    ("top_p", Free),
    ("top_k", Free),
    ("tools", List(&ANTHROPIC_TOOL)),
    ("tool_choice", Object(&ANTHROPIC_TOOL_CHOICE)),
    ("metadata", Object(&MESSAGE_METADATA)),
    ("thinking", Object(&THINKING)),
    ("service_tier", Free),
    ("provider", Object(&PROVIDER)),
]);

static COUNT: Fields = Fields(&[
    ("model", Free),
    ("messages", List(&INPUT_MESSAGE)),
    ("system", List(&BLOCK)),
    ("tools", List(&ANTHROPIC_TOOL)),
    ("tool_choice", Object(&ANTHROPIC_TOOL_CHOICE)),
    ("thinking", Object(&THINKING)),
]);

static INPUT_MESSAGE: Fields = Fields(&[("role", Free), ("content", List(&BLOCK))]);

static BLOCK: Fields = Fields(&[
    ("type", Free),
    ("text", Free),
    ("source", Object(&SOURCE)),
    ("id", Free),
    ("name", Free),
    ("input", Free),
    ("tool_use_id", Free),
    ("content", List(&RESULT_BLOCK)),
]);

static RESULT_BLOCK: Fields = Fields(&[("type", Free), ("text", Free), ("source", Object(&SOURCE))]);

static SOURCE: Fields = Fields(&[("type", Free), ("media_type", Free), ("data", Free), ("url", Free)]);

static ANTHROPIC_TOOL: Fields = Fields(&[
    ("type", Free),
    ("name", Free),
    ("description", Free),
    ("input_schema", Free),
    ("strict", Free),
]);

static ANTHROPIC_TOOL_CHOICE: Fields =
    Fields(&[("type", Free), ("name", Free), ("disable_parallel_tool_use", Free)]);

static MESSAGE_METADATA: Fields = Fields(&[("user_id", Free)]);

static THINKING: Fields = Fields(&[("type", Free)]);

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::value::Error;
    use serde::de::{Deserializer, Error as _, Visitor};
    use serde::forward_to_deserialize_any;

    use super::*;
    use crate::{anthropic, openai};

    /// Asks a type which fields it reads, and answers with nothing else.
    struct Asking<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for Asking<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            self.0.extend_from_slice(fields);
            Err(Error::custom("that is all"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn read_by<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
        let mut fields = Vec::new();
        assert!(T::deserialize(Asking(&mut fields)).is_err());
        fields.sort_unstable();
        fields
    }

    #[test]
    fn the_table_names_what_the_types_read() {
        let table: [(&Fields, Vec<&str>); 45] = [
            (&SPEECH, read_by::<SpeechRequest>()),
            (&RESPONSES, read_by::<ResponsesRequest>()),
            (&ITEM, read_by::<openai::ResponseItem>()),
            (&ITEM_PART, read_by::<openai::ItemPart>()),
            (&RESPONSE_TOOL, read_by::<openai::ResponseTool>()),
            (&RESPONSE_NAMED, read_by::<openai::ResponseNamedTool>()),
            (&TEXT_OPTIONS, read_by::<openai::TextOptions>()),
            (&REASONING, read_by::<openai::ReasoningOptions>()),
            (&MESSAGES, read_by::<MessagesRequest>()),
            (&COUNT, read_by::<CountRequest>()),
            (&INPUT_MESSAGE, read_by::<anthropic::InputMessage>()),
            (&BLOCK, read_by::<anthropic::InputBlock>()),
            (&RESULT_BLOCK, read_by::<anthropic::ResultBlock>()),
            (&SOURCE, read_by::<anthropic::ImageSource>()),
            (&ANTHROPIC_TOOL, read_by::<anthropic::AnthropicTool>()),
            (&ANTHROPIC_TOOL_CHOICE, read_by::<anthropic::AnthropicToolChoice>()),
            (&MESSAGE_METADATA, read_by::<anthropic::MessageMetadata>()),
            (&THINKING, read_by::<anthropic::Thinking>()),
            (&TTS, read_by::<TtsRequest>()),
            (&RERANK, read_by::<RerankRequest>()),
            (&SIGHT, read_by::<SightRequest>()),
            (&IMAGE, read_by::<ImageRequest>()),
            (&SEED_IMAGE, read_by::<SeedImageRequest>()),
            (&SCRAPE, read_by::<ScrapeRequest>()),
            (&CHAT, read_by::<ChatRequest>()),
            (&COMPLETION, read_by::<CompletionRequest>()),
            (&EMBEDDING, read_by::<EmbeddingRequest>()),
            (&MESSAGE, read_by::<openai::ChatMessage>()),
            (&IMAGE_URL, read_by::<openai::ImageUrl>()),
            (&INPUT_AUDIO, read_by::<openai::InputAudio>()),
            (&CALL, read_by::<openai::ToolCall>()),
            (&FUNCTION_CALL, read_by::<openai::FunctionCall>()),
            (&TOOL, read_by::<openai::Tool>()),
            (&FUNCTION, read_by::<openai::FunctionSpec>()),
            (&TOOL_CHOICE, read_by::<openai::NamedTool>()),
            (&NAMED, read_by::<openai::NamedFunction>()),
            (&JSON_SCHEMA, read_by::<openai::JsonSchemaFormat>()),
            (&STREAM_OPTIONS, read_by::<openai::StreamOptions>()),
            (&USAGE, read_by::<openai::UsageOptions>()),
            (&PROVIDER, read_by::<openai::ProviderPreferences>()),
            (&SORT, read_by::<openai::SortOrder>()),
            (&PERCENTILES, read_by::<openai::Percentiles>()),
            (&MAX_PRICE, read_by::<openai::MaxPrice>()),
            // Enums with a tag: each field belongs to one of the variants.
            (&RESPONSE_FORMAT, vec!["json_schema", "type"]),
            (&TEXT_FORMAT, vec!["description", "name", "schema", "strict", "type"]),
        ];
        for (fields, read) in table {
            let mut names: Vec<&str> = fields.0.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            assert_eq!(names, read);
        }
        for (field, kind) in [
            ("text", "text"),
            ("image_url", "image_url"),
            ("input_audio", "input_audio"),
            ("refusal", "refusal"),
        ] {
            assert!(PART.find(field).is_some());
            let without = serde_json::json!({ "type": kind });
            let error = serde_json::from_value::<openai::ContentPart>(without).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
