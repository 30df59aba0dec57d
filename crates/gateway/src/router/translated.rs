//! Words and shapes of the routes that speak another API's words over the relay of chats.

use cxmpute_wire::Code;
use cxmpute_wire::anthropic::{CountRequest, Message, MessageEvent, MessagesRequest, TokenCount};
use cxmpute_wire::openai::{ResponseEvent, ResponseObject, ResponsesRequest};

use super::inference::{REFERER, STRICT, TIMEOUT, TITLE, WORK_HEADERS};
use super::operation::{
    Answer, BODY, Content, Group, Header, KEY, Operation, Parameter, Payload, Place, Refusals, UNREAD, WORK,
};

const VERSION: Parameter = Parameter {
    name: "anthropic-version",
    place: Place::Header,
    required: false,
    detail: "The version of the API, a date; Anthropic's clients send it. Answers have the shape of 2023-06-01 for all.",
    schema: r#"{"type":"string","pattern":"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}"#,
    example: "2023-06-01",
};

const IGNORED: &[Header] = &[Header {
    name: "X-Cxmpute-Ignored",
    detail: "Names of the fields that are outside the schema and were dropped, with commas between them.",
    required: false,
    schema: r#"{"type":"string"}"#,
}];

pub(super) const RESPONSES: Operation = Operation {
    id: "createResponse",
    group: Group::Inference,
    summary: "Answer in OpenAI's Responses",
    detail: "The same work as a conversation, in the words of OpenAI's Responses: items instead of messages, and events \
             with names and numbers. Answers are not kept, so each request holds all its turns; only functions are \
             tools. A stream that breaks ends in `response.failed` and costs nothing.",
    parameters: &[STRICT, TIMEOUT, TITLE, REFERER],
    request: Some(Payload::of::<ResponsesRequest>(
        r#"{"model":"cxm-tiny","input":"Say hello.","max_output_tokens":32}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Json(Payload::of::<ResponseObject>(
                r#"{"id":"resp_0197","object":"response","created_at":1790000000,"status":"completed","error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":32,"model":"cxm-tiny","output":[{"type":"message","id":"msg_0197_0","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello!","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{},"temperature":null,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":null,"truncation":"disabled","usage":{"input_tokens":12,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":15,"cost":"0.000042","source":"counted"},"metadata":{}}"#,
            )),
            headers: WORK_HEADERS,
        },
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Named(Payload::of::<ResponseEvent>(
                r#"{"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_0197_0","output_index":0,"content_index":0,"delta":"Hello","logprobs":[]}"#,
            )),
            headers: WORK_HEADERS,
        },
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const MESSAGES: Operation = Operation {
    id: "createMessage",
    group: Group::Inference,
    summary: "Answer in Anthropic's Messages",
    detail: "The same work as a conversation, in the words of Anthropic's Messages API; refusals have its shape, too, with \
             our `code` in them. The key may come as `x-api-key`. A stream that breaks ends in an `error` event, without \
             `message_stop`, and costs nothing.",
    parameters: &[VERSION, STRICT, TIMEOUT, TITLE, REFERER],
    request: Some(Payload::of::<MessagesRequest>(
        r#"{"model":"cxm-tiny","max_tokens":32,"messages":[{"role":"user","content":"Say hello."}]}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Json(Payload::of::<Message>(
                r#"{"id":"msg_0197","type":"message","role":"assistant","model":"cxm-tiny","content":[{"type":"text","text":"Hello!"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":12,"output_tokens":3,"cost":"0.000042","source":"counted"}}"#,
            )),
            headers: WORK_HEADERS,
        },
        Answer {
            status: 200,
            detail: "The answer.",
            content: Content::Named(Payload::of::<MessageEvent>(
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}"#,
            )),
            headers: WORK_HEADERS,
        },
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Anthropic,
};

pub(super) const COUNT_TOKENS: Operation = Operation {
    id: "countMessageTokens",
    group: Group::Inference,
    summary: "Count the tokens of a message",
    detail: "The number of prompt tokens that `POST /messages` would be billed for, with the model's own tokenizer and \
             template. It costs nothing. A model whose tokenizer is not here has no such number: 400.",
    parameters: &[VERSION, STRICT],
    request: Some(Payload::of::<CountRequest>(
        r#"{"model":"cxm-tiny","messages":[{"role":"user","content":"Say hello."}]}"#,
    )),
    answers: &[Answer {
        status: 200,
        detail: "The number.",
        content: Content::Json(Payload::of::<TokenCount>(r#"{"input_tokens":12}"#)),
        headers: IGNORED,
    }],
    errors: &[
        KEY,
        UNREAD,
        BODY,
        &[
            Code::UnsupportedMediaType,
            Code::UnsupportedParameter,
            Code::ModelNotPermitted,
            Code::ModelNotFound,
        ],
    ],
    refusals: Refusals::Anthropic,
};
