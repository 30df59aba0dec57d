//! Words and shapes of the routes that do paid work, and of the model list.

use cxmpute_wire::Code;
use cxmpute_wire::openai::{
    ChatChunk, ChatRequest, ChatResponse, CompletionRequest, CompletionResponse, EmbeddingList,
    EmbeddingRequest, ModelList, ModelObject,
};

use super::operation::{
    Answer, BODY, Content, Group, Header, KEY, Operation, Parameter, Payload, Place, Refusals, UNREAD, WORK,
};

pub(super) const STRICT: Parameter = Parameter {
    name: "X-Cxmpute-Strict",
    place: Place::Header,
    required: false,
    detail: "`1`: a field outside the schema is a 400 that names it, instead of being dropped and named in \
             `X-Cxmpute-Ignored`.",
    schema: r#"{"type":"string","enum":["0","1"]}"#,
    example: "1",
};

pub(super) const TITLE: Parameter = Parameter {
    name: "X-Title",
    place: Place::Header,
    required: false,
    detail: "Name of the calling application, for the receipt of the request; cut at 200 characters.",
    schema: r#"{"type":"string"}"#,
    example: "my-app",
};

pub(super) const REFERER: Parameter = Parameter {
    name: "HTTP-Referer",
    place: Place::Header,
    required: false,
    detail: "Address of the calling application, for the receipt of the request; cut at 200 characters.",
    schema: r#"{"type":"string"}"#,
    example: "https://example.org",
};

pub(super) const TIMEOUT: Parameter = Parameter {
    name: "X-Cxmpute-Timeout-Ms",
    place: Place::Header,
    required: false,
    detail: "The longest that the whole answer may take, in milliseconds; only shorter than the gateway's own bound \
             has an effect.",
    schema: r#"{"type":"string","pattern":"^[0-9]+$"}"#,
    example: "30000",
};

pub(super) const WORK_HEADERS: &[Header] = &[
    Header {
        name: "X-Generation-Id",
        detail: "The id by which `GET /generation` finds the receipt.",
        required: true,
        schema: r#"{"type":"string"}"#,
    },
    Header {
        name: "openai-processing-ms",
        detail: "Milliseconds from the request's head to the head of the answer.",
        required: true,
        schema: r#"{"type":"string","pattern":"^[0-9]+$"}"#,
    },
    Header {
        name: "X-Cxmpute-Provider",
        detail: "Public name of the node that serves.",
        required: false,
        schema: r#"{"type":"string"}"#,
    },
    Header {
        name: "X-Cxmpute-Overhead-Us",
        detail: "Microseconds that the gateway itself took until the node was asked.",
        required: false,
        schema: r#"{"type":"string","pattern":"^[0-9]+$"}"#,
    },
    Header {
        name: "X-Cxmpute-Ignored",
        detail: "Names of the fields that are outside the schema and were dropped, with commas between them.",
        required: false,
        schema: r#"{"type":"string"}"#,
    },
    Header {
        name: "Cache-Control",
        detail: "Answers to paid work are never kept.",
        required: true,
        schema: r#"{"const":"no-store"}"#,
    },
];

const CACHED: &[Header] = &[Header {
    name: "Cache-Control",
    detail: "How long the answer may be kept.",
    required: true,
    schema: r#"{"type":"string","pattern":"^public, max-age=[0-9]+$"}"#,
}];

const MODEL_ID: Parameter = Parameter {
    name: "id",
    place: Place::Path,
    required: true,
    detail: "Model id or alias. An id may hold slashes and colons; send it as it is.",
    schema: r#"{"type":"string","minLength":1}"#,
    example: "cxm-tiny",
};

pub(super) const CHAT: Operation = Operation {
    id: "createChatCompletion",
    group: Group::Inference,
    summary: "Answer a conversation",
    detail: "Answers the conversation, whole or (`stream: true`) as server-sent events. The request is held against \
             the balance at its bound and settled at what was relayed; when the end of the answer arrives, its bill is \
             durable. A stream that breaks ends in an error event, without `[DONE]`, and costs nothing.",
    parameters: &[STRICT, TIMEOUT, TITLE, REFERER],
    request: Some(Payload::of::<ChatRequest>(
        r#"{"model":"cxm-tiny","messages":[{"role":"user","content":"Say hello."}],"max_tokens":32}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Json(Payload::of::<ChatResponse>(
                r#"{"id":"chatcmpl-0197","object":"chat.completion","created":1790000000,"model":"cxm-tiny","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!","refusal":null},"finish_reason":"stop","logprobs":null}],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0},"cost":"0.000042","source":"counted"},"system_fingerprint":null}"#,
            )),
            headers: WORK_HEADERS,
        },
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Events(Payload::of::<ChatChunk>(
                r#"{"id":"chatcmpl-0197","object":"chat.completion.chunk","created":1790000000,"model":"cxm-tiny","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null,"logprobs":null}],"system_fingerprint":null}"#,
            )),
            headers: WORK_HEADERS,
        },
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const COMPLETION: Operation = Operation {
    id: "createCompletion",
    group: Group::Inference,
    summary: "Continue texts",
    detail: "The legacy route: continues one text or several, without a chat template. Billed and streamed like a \
             conversation.",
    parameters: &[STRICT, TIMEOUT, TITLE, REFERER],
    request: Some(Payload::of::<CompletionRequest>(
        r#"{"model":"cxm-tiny","prompt":"Once upon a time","max_tokens":16}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "The continuation.",
            content: Content::Json(Payload::of::<CompletionResponse>(
                r#"{"id":"cmpl-0197","object":"text_completion","created":1790000000,"model":"cxm-tiny","choices":[{"index":0,"text":" there was","finish_reason":"length","logprobs":null}],"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6,"cost":"0.000012","source":"counted"},"system_fingerprint":null}"#,
            )),
            headers: WORK_HEADERS,
        },
        Answer {
            status: 200,
            detail: "The continuation.",
            content: Content::Events(Payload::of::<CompletionResponse>(
                r#"{"id":"cmpl-0197","object":"text_completion","created":1790000000,"model":"cxm-tiny","choices":[{"index":0,"text":" there","finish_reason":null,"logprobs":null}],"system_fingerprint":null}"#,
            )),
            headers: WORK_HEADERS,
        },
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const EMBEDDING: Operation = Operation {
    id: "createEmbedding",
    group: Group::Inference,
    summary: "Turn texts into vectors",
    detail: "One vector per text, in the order of the texts, as numbers or base64 of little-endian 32-bit floats.",
    parameters: &[STRICT, TIMEOUT, TITLE, REFERER],
    request: Some(Payload::of::<EmbeddingRequest>(
        r#"{"model":"all-minilm","input":["a text","another"],"encoding_format":"float"}"#,
    )),
    answers: &[Answer {
        status: 200,
        detail: "The vectors.",
        content: Content::Json(Payload::of::<EmbeddingList>(
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.01,-0.02]}],"model":"all-minilm","usage":{"prompt_tokens":2,"completion_tokens":0,"total_tokens":2,"cost":"0.000001","source":"counted"}}"#,
        )),
        headers: WORK_HEADERS,
    }],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const MODELS: Operation = Operation {
    id: "listModels",
    group: Group::Models,
    summary: "List all models",
    detail: "Every model of the network with its price and whether nodes serve it now.",
    parameters: &[],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The models.",
        content: Content::Json(Payload::of::<ModelList>(r#"{"object":"list","data":[]}"#)),
        headers: CACHED,
    }],
    errors: &[],
    refusals: Refusals::Envelope,
};

pub(super) const MODEL: Operation = Operation {
    id: "getModel",
    group: Group::Models,
    summary: "Describe one model",
    detail: "One model by its id or an alias.",
    parameters: &[MODEL_ID],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The model.",
        content: Content::Json(Payload::of::<ModelObject>(
            r#"{"id":"cxm-tiny","object":"model","created":1790000000,"owned_by":"cxmpute","name":"Tiny","description":"A small model.","aliases":[],"kind":"llm","context_length":1024,"max_completion_tokens":512,"architecture":{"modality":"text->text","input_modalities":["text"],"output_modalities":["text"],"tokenizer":null},"pricing":{"prompt":"0.000001","completion":"0.000002","embedding":"0","character":"0","second":"0","image":"0","url":"0"},"pricing_micro":{"prompt":1000000,"completion":2000000,"embedding":0,"character":0,"second":0,"image":0,"url":0,"minimum":0,"share_bp":8000,"version":1},"availability":{"status":"ready","nodes":3,"regions":["DE"]},"quantizations":["q8_0"],"stats":{"ttft_ms_p50":41.5,"ttft_ms_p95":120.0,"tokens_per_s_p50":88.1,"uptime_30m":1.0},"supported_parameters":["temperature"],"digest":null}"#,
        )),
        headers: CACHED,
    }],
    errors: &[&[Code::InvalidParameter, Code::ModelNotFound]],
    refusals: Refusals::Envelope,
};
