//! Every bound on what a client or a node may send, in one place (GR section 9). The code, the OpenAPI document and the
//! reference page take their numbers from here.

mod rows;

pub use rows::{Row, rows, size};

/// Bytes of an address.
pub const URI: usize = 8 * 1024;
/// Bytes of the head of a request.
pub const HEAD: usize = 32 * 1024;
/// Fields of the head of a request.
pub const FIELDS: usize = 100;
/// Bytes of a body.
pub const BODY: usize = 4 * 1024 * 1024;
/// Bytes of a body of the routes for providers.
pub const PROVIDER_BODY: usize = 256 * 1024;
/// Depth of arrays and objects in JSON.
pub const JSON_DEPTH: usize = 64;
/// Messages of a conversation.
pub const MESSAGES: usize = 2_048;
/// Parts of a message.
pub const PARTS: usize = 64;
/// Images of a conversation.
pub const IMAGES: usize = 16;
/// Bytes of an image, after decoding.
pub const IMAGE_BYTES: usize = 10 * 1024 * 1024;
/// Pixels of an image.
pub const IMAGE_PIXELS: u64 = 40_000_000;
/// Bytes of all images of a conversation as a node gets them, base64 counted; a node takes 24 MiB.
pub const PICTURES_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a body that holds a conversation with images; without them it is [`BODY`].
pub const CONVERSATION_BODY: usize = 20 * 1024 * 1024;
/// Bytes of a page that is fetched.
pub const PAGE_BYTES: usize = 5 * 1024 * 1024;
/// Declared tools.
pub const TOOLS: usize = 128;
/// Bytes of the name of a tool, a function or a schema.
pub const NAME: usize = 64;
/// Bytes of a description.
pub const DESCRIPTION: usize = 16 * 1024;
/// Tool calls of one choice.
pub const CALLS: usize = 128;
/// Stop texts.
pub const STOPS: usize = 4;
/// Bytes of a stop text.
pub const STOP_BYTES: usize = 256;
/// Choices of one prompt.
pub const N: u64 = 8;
/// Choices of one request: `n`, or prompts times `n`.
pub const CHOICES: usize = 16;
/// Entries of `logit_bias`.
pub const BIASES: usize = 1_024;
/// Likely tokens at each place of a chat.
pub const TOP_LOGPROBS: u64 = 20;
/// Likely tokens at each place of a legacy completion.
pub const LOGPROBS: u64 = 5;
/// `top_k`.
pub const TOP_K: u64 = 1_000_000;
/// Entries of `metadata`.
pub const METADATA: usize = 16;
/// Bytes of a key of `metadata`.
pub const METADATA_KEY: usize = 64;
/// Bytes of a value of `metadata`.
pub const METADATA_VALUE: usize = 512;
/// Bytes of a JSON schema.
pub const SCHEMA: usize = 64 * 1024;
/// Nesting of a JSON schema.
pub const SCHEMA_DEPTH: usize = 16;
/// Regular expressions of a JSON schema.
pub const PATTERNS: usize = 32;
/// Bytes of a regular expression.
pub const PATTERN: usize = 512;
/// Models to fall back to.
pub const FALLBACKS: usize = 8;
/// Inputs of a request for embeddings.
pub const INPUTS: usize = 2_048;
/// Tokens of all inputs of a request for embeddings.
pub const INPUT_TOKENS: u64 = 300_000;
/// Bytes of one event of a chat that is translated into another API's words; nodes may send much less.
pub const TRANSLATED_EVENT: usize = 64 * 1024 * 1024;
/// Bytes of a body that carries sound or a picture.
pub const MEDIA_BODY: usize = 26 * 1024 * 1024;
/// Bytes of a recording.
pub const SOUND_BYTES: usize = 25 * 1024 * 1024;
/// Seconds of a recording: as a plain waveform it then fits the body that a node takes.
pub const SOUND_SECONDS: u64 = 600;
/// Characters of a text to say.
pub const SPEECH_CHARACTERS: usize = 10_000;
/// Pictures that one request has drawn.
pub const DRAWN: u64 = 4;
/// Characters of what a picture shows, and of what it does not show.
pub const DRAWN_CHARACTERS: usize = 4_000;
/// Shortest side of a picture that is drawn, in pixels, and what its sides are multiples of.
pub const DRAWN_SIDE: (u32, u32) = (64, 8);
/// Steps of a diffusion: a node is paid by the picture, whatever it takes.
pub const DRAWN_STEPS: u64 = 50;
/// Characters of a question about a picture, or of what to look for in it.
pub const QUESTION_CHARACTERS: usize = 2_000;
/// Pages of one request.
pub const PAGES: usize = 20;
/// Names in `X-Cxmpute-Ignored`.
pub const IGNORED: usize = 32;
/// Bytes of the text of one token that a node names.
pub const TOKEN_BYTES: usize = 1_024;
/// Bytes of tokens whose text has not come yet.
pub const TOKENS_AHEAD: usize = 16 * 1024;
/// Longest time that a client may name in `X-Cxmpute-Timeout-Ms`, in milliseconds: a day.
pub const TIMEOUT_MS: u64 = 86_400_000;
