//! Words and shapes of the routes for speech, sound, pictures and pages, and for the order of documents.

use cxmpute_wire::openai::{
    ImageList, ImageRequest, RerankRequest, RerankResponse, SeedImageRequest, SpeechEvent, SpeechRequest,
    TranscriptFormat, Transcription, TtsRequest, VerboseTranscription,
};
use cxmpute_wire::scrape::{ScrapeRequest, ScrapeResponse};
use cxmpute_wire::sight::{Caption, Detection, Pointing, SightAnswer, SightRequest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inference::{REFERER, STRICT, TIMEOUT, TITLE, WORK_HEADERS};
use super::operation::{
    Answer, BODY, Content, Group, KEY, Operation, Parameter, Payload, Refusals, UNREAD, WORK,
};

const HEADERS: &[Parameter] = &[STRICT, TIMEOUT, TITLE, REFERER];

/// The fields of a form with a recording.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct TranscriptionForm {
    /// The recording: wav, mp3, flac, ogg (vorbis), m4a (aac); opus in ogg or webm where the gateway has ffmpeg.
    #[schemars(extend("format" = "binary"))]
    file: String,
    /// Model id or alias.
    model: String,
    /// Language of the recording, such as `en`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    language: Option<String>,
    /// Words that are expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    /// How the transcript is printed.
    #[serde(default)]
    response_format: TranscriptFormat,
    /// Temperature of sampling, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// `segment`, `word` or both; with `verbose_json` only.
    #[serde(default, rename = "timestamp_granularities[]", skip_serializing_if = "Option::is_none")]
    timestamp_granularities: Option<Vec<String>>,
    /// What the caller wants of the nodes: the object of the other routes, as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
}

const fn json(detail: &'static str, payload: Payload) -> Answer {
    Answer { status: 200, detail, content: Content::Json(payload), headers: WORK_HEADERS }
}

const fn bytes(media: &'static str) -> Answer {
    Answer { status: 200, detail: "The speech.", content: Content::Bytes(media), headers: WORK_HEADERS }
}

const fn text(media: &'static str) -> Answer {
    Answer { status: 200, detail: "The transcript.", content: Content::Text(media), headers: WORK_HEADERS }
}

pub(super) const SPEECH: Operation = Operation {
    id: "createSpeech",
    group: Group::Inference,
    summary: "Say a text",
    detail: "Says a text in a voice of the model. Paid per character. The answer is packed as `response_format` says: wav \
             and pcm always, mp3 (the default), opus, aac and flac where the gateway has an encoder. It is sent while it is made; a \
             wav, whose header says how long it is, only where `stream_format` is given. What breaks off costs nothing: the \
             connection is cut, a stream of events (`sse`) ends in `error`.",
    parameters: HEADERS,
    request: Some(Payload::of::<SpeechRequest>(
        r#"{"model":"tts-1","input":"Good morning.","voice":"alloy","response_format":"wav"}"#,
    )),
    answers: &[
        bytes("audio/mpeg"),
        bytes("audio/ogg"),
        bytes("audio/aac"),
        bytes("audio/flac"),
        bytes("audio/wav"),
        bytes("audio/pcm"),
        Answer {
            status: 200,
            detail: "The speech as events, with `stream_format: sse`.",
            content: Content::Named(Payload::of::<SpeechEvent>(
                r#"{"type":"speech.audio.delta","audio":"UklGRv////9XQVZF"}"#,
            )),
            headers: WORK_HEADERS,
        },
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const TTS: Operation = Operation {
    id: "createTts",
    group: Group::Inference,
    summary: "Say a text, in the first seed's form",
    detail: "Says a text and answers with a waveform. Without `model` the first model that has the voice speaks.",
    parameters: HEADERS,
    request: Some(Payload::of::<TtsRequest>(r#"{"text":"Good morning.","voice":"af_bella"}"#)),
    answers: &[bytes("audio/wav")],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const TRANSCRIPTION: Operation = Operation {
    id: "createTranscription",
    group: Group::Inference,
    summary: "Write down what is said",
    detail: "Writes down what is said in a recording. Paid per second of it, rounded up.",
    parameters: HEADERS,
    request: Some(Payload::form::<TranscriptionForm>(
        r#"{"file":"speech.wav","model":"whisper-1","response_format":"json"}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "The transcript.",
            content: Content::Json(Payload {
                schema: |generator| {
                    schemars::json_schema!({
                        "anyOf": [
                            generator.subschema_for::<VerboseTranscription>(),
                            generator.subschema_for::<Transcription>(),
                        ]
                    })
                },
                example: r#"{"text":"four seven one one","usage":{"type":"duration","seconds":2,"cost":"0.000200","cost_details":{"prompt":"0","completion":"0","seconds":"0.0002","adjustment":"0","price_version":1}}}"#,
                form: false,
            }),
            headers: WORK_HEADERS,
        },
        text("text/plain"),
        text("text/vtt"),
    ],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const RERANK: Operation = Operation {
    id: "createRerank",
    group: Group::Inference,
    summary: "Order documents by a query",
    detail: "Orders documents by how near their vectors are to the query's. Paid per embedded token.",
    parameters: HEADERS,
    request: Some(Payload::of::<RerankRequest>(
        r#"{"model":"all-minilm","query":"a pet","documents":["a cat","a stone"],"top_n":1}"#,
    )),
    answers: &[json(
        "The order.",
        Payload::of::<RerankResponse>(
            r#"{"id":"req_0197","model":"all-minilm","results":[{"index":0,"relevance_score":0.81}],"usage":{"prompt_tokens":9,"completion_tokens":0,"total_tokens":9,"cost":"0.000018","source":"counted"}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

const PICTURE: Payload = Payload::of::<SightRequest>(
    r#"{"imageUrl":"https://example.org/page.png","question":"What is written here?"}"#,
);
const TARGET: Payload =
    Payload::of::<SightRequest>(r#"{"imageUrl":"https://example.org/page.png","target":"Total"}"#);

pub(super) const CAPTION: Operation = Operation {
    id: "createCaption",
    group: Group::Inference,
    summary: "Say what a picture shows",
    detail: "Says what a picture shows. A model that only reads gives the text that stands in it. Paid per picture.",
    parameters: HEADERS,
    request: Some(PICTURE),
    answers: &[json(
        "The caption.",
        Payload::of::<Caption>(
            r#"{"caption":"Invoice 4711","usage":{"images":1,"cost":"0.012000","cost_details":{"prompt":"0","completion":"0","images":"0.012","adjustment":"0","price_version":1}}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const QUERY: Operation = Operation {
    id: "createSightAnswer",
    group: Group::Inference,
    summary: "Ask about a picture",
    detail: "Answers a question about a picture. A model that only reads answers every question with the text that \
             stands in it. Paid per picture.",
    parameters: HEADERS,
    request: Some(PICTURE),
    answers: &[json(
        "The answer.",
        Payload::of::<SightAnswer>(
            r#"{"answer":"Invoice 4711","usage":{"images":1,"cost":"0.012000","cost_details":{"prompt":"0","completion":"0","images":"0.012","adjustment":"0","price_version":1}}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const DETECT: Operation = Operation {
    id: "createDetection",
    group: Group::Inference,
    summary: "Find things in a picture, as boxes",
    detail: "Finds `target` in a picture. A model that only reads finds words. Paid per picture.",
    parameters: HEADERS,
    request: Some(TARGET),
    answers: &[json(
        "What was found.",
        Payload::of::<Detection>(
            r#"{"objects":[{"label":"Total:","box":[0.1,0.8,0.2,0.9],"confidence":0.96}],"usage":{"images":1,"cost":"0.012000","cost_details":{"prompt":"0","completion":"0","images":"0.012","adjustment":"0","price_version":1}}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const POINT: Operation = Operation {
    id: "createPointing",
    group: Group::Inference,
    summary: "Find things in a picture, as points",
    detail: "Finds the middles of `target` in a picture. A model that only reads finds words. Paid per picture.",
    parameters: HEADERS,
    request: Some(TARGET),
    answers: &[json(
        "What was found.",
        Payload::of::<Pointing>(
            r#"{"points":[{"x":0.15,"y":0.85}],"usage":{"images":1,"cost":"0.012000","cost_details":{"prompt":"0","completion":"0","images":"0.012","adjustment":"0","price_version":1}}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const IMAGES: Operation = Operation {
    id: "createImages",
    group: Group::Inference,
    summary: "Draw pictures",
    detail: "Draws pictures from words. Paid per picture that is delivered; a larger picture counts once for each begun number of \
             pixels that the model's page names. Pictures come as base64: none is kept here, so `response_format: url` is \
             refused. A picture of one single colour is none, and costs nothing.",
    parameters: HEADERS,
    request: Some(Payload::of::<ImageRequest>(
        r#"{"model":"stable-diffusion-2-1-base","prompt":"A lighthouse at night","n":1,"size":"512x512"}"#,
    )),
    answers: &[json(
        "The pictures.",
        Payload::of::<ImageList>(
            r#"{"created":1767225600,"data":[{"b64_json":"iVBORw0KGgo="}],"output_format":"png","size":"512x512","usage":{"images":1,"cost":"0.050000","cost_details":{"prompt":"0","completion":"0","images":"0.05","adjustment":"0","price_version":1}}}"#,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const IMAGE: Operation = Operation {
    id: "createImage",
    group: Group::Inference,
    summary: "Draw a picture, in the first seed's form",
    detail: "Draws one picture and answers with it as PNG. Without `model` the first model that draws is asked.",
    parameters: HEADERS,
    request: Some(Payload::of::<SeedImageRequest>(
        r#"{"prompt":"A lighthouse at night","negativePrompt":"people","numInferenceSteps":30,"width":512,"height":512}"#,
    )),
    answers: &[Answer {
        status: 200,
        detail: "The picture.",
        content: Content::Bytes("image/png"),
        headers: WORK_HEADERS,
    }],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};

pub(super) const SCRAPE: Operation = Operation {
    id: "createScrape",
    group: Group::Inference,
    summary: "Fetch pages",
    detail: "Fetches public pages through a node whose owner agreed to that. Each address has a result of its own: content, \
             or a code that says why there is none. Only pages with content are paid. Addresses of private networks are \
             never asked.",
    parameters: HEADERS,
    request: Some(Payload::of::<ScrapeRequest>(
        r#"{"urls":["https://example.org/"],"format":"markdown","main_content":true}"#,
    )),
    answers: &[json(
        "One result for each address, in order.",
        Payload::of::<ScrapeResponse>(
            r##"{"results":[{"url":"https://example.org/","final_url":"https://example.org/","status":200,"success":true,"content_type":"text/html","data":"# Example","metadata":{"title":"Example"}}],"usage":{"urls":1,"cost":"0.000600","cost_details":{"prompt":"0","completion":"0","urls":"0.0006","adjustment":"0","price_version":1}}}"##,
        ),
    )],
    errors: &[KEY, UNREAD, BODY, WORK],
    refusals: Refusals::Envelope,
};
