//! Words and shapes of what a user can ask about an account, and of the routes for everybody.

use cxmpute_wire::Code;

use super::operation::{Answer, Content, Group, Header, KEY, Operation, Parameter, Payload, Place, Refusals};
use crate::api::account::{Data, credits::Credits, generation::Generation, key::KeyView};
use crate::api::health::Health;

pub(super) const GENERATION: Operation = Operation {
    id: "getGeneration",
    group: Group::Account,
    summary: "The receipt of one request",
    detail: "What a request was, who served it and what it cost. Readable by its own account only, at the latest one \
             second after its end.",
    parameters: &[Parameter {
        name: "id",
        place: Place::Query,
        required: true,
        detail: "`X-Request-Id` or `X-Generation-Id` of the answer.",
        schema: r#"{"type":"string","pattern":"^([a-z]+[_-])?[A-Za-z0-9]+$","maxLength":85}"#,
        example: "req_019a0000000070008000000000000000",
    }],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The receipt.",
        content: Content::Json(Payload::of::<Data<Generation>>(
            r#"{"data":{"id":"req_0197","model":"cxm-tiny","created_at":1790000000000,"finished_at":1790000000500,"streamed":true,"outcome":"completed","cancelled":false,"finish_reason":"stop","provider":"pv_abcdefghij","latency_ms":500,"first_token_ms":80,"generation_ms":420,"tokens_prompt":12,"tokens_completion":3,"tokens_embedding":0,"characters":0,"seconds":0,"images":0,"urls":0,"provider_claimed":{"prompt":12,"completion":3},"total_cost":"0.000042","total_cost_micro":42,"cost_details":{"prompt":"0.000024","completion":"0.000018","adjustment":"0","price_version":1},"price":"cxm-tiny","price_version":1,"attempts":[],"title":null,"referer":null}}"#,
        )),
        headers: &[],
    }],
    errors: &[KEY, &[Code::InvalidParameter, Code::NotFound]],
    refusals: Refusals::Envelope,
};

pub(super) const CREDITS: Operation = Operation {
    id: "getCredits",
    group: Group::Account,
    summary: "The balance of the account",
    detail: "Credits as exact decimal texts, and the same in whole micro-credits (1 credit = 1,000,000). `available` is \
             what new requests can be held against.",
    parameters: &[],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The balance.",
        content: Content::Json(Payload::of::<Data<Credits>>(
            r#"{"data":{"balance":"1.500000","held":"0.000000","available":"1.500000","promo":"0.000000","total_credits":"2.000000","total_usage":"0.500000","balance_micro":1500000,"held_micro":0,"available_micro":1500000,"promo_micro":0,"total_usage_micro":500000,"currency":"credits"}}"#,
        )),
        headers: &[],
    }],
    errors: &[KEY],
    refusals: Refusals::Envelope,
};

pub(super) const OWN_KEY: Operation = Operation {
    id: "getKey",
    group: Group::Account,
    summary: "The key of this request",
    detail: "What the key may do and has spent. What is not limited is null.",
    parameters: &[],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The key, without its secret.",
        content: Content::Json(Payload::of::<Data<KeyView>>(
            r#"{"data":{"id":"A1b2C3d4E5f6","label":"laptop","usage":"0.500000","limit":null,"limit_remaining":null,"rate_limit":null,"models":null,"routes":null,"expires_at":null}}"#,
        )),
        headers: &[],
    }],
    errors: &[KEY],
    refusals: Refusals::Envelope,
};

const HEALTH_CONTENT: Content = Content::Json(Payload::of::<Health>(r#"{"status":"ok"}"#));

pub(super) const HEALTHZ: Operation = Operation {
    id: "getHealth",
    group: Group::Service,
    summary: "Whether the process runs",
    detail: "Answers as long as the process does; looks at nothing else.",
    parameters: &[],
    request: None,
    answers: &[Answer { status: 200, detail: "It runs.", content: HEALTH_CONTENT, headers: &[] }],
    errors: &[],
    refusals: Refusals::Envelope,
};

pub(super) const READYZ: Operation = Operation {
    id: "getReadiness",
    group: Group::Service,
    summary: "Whether it should get traffic",
    detail: "503 while the process stops and while its store does not answer.",
    parameters: &[],
    request: None,
    answers: &[Answer { status: 200, detail: "It is ready.", content: HEALTH_CONTENT, headers: &[] }],
    errors: &[&[Code::StoreUnavailable, Code::Draining]],
    refusals: Refusals::Envelope,
};

const DOCUMENT_HEADERS: &[Header] = &[
    Header {
        name: "ETag",
        detail: "Send it back as `If-None-Match`; an unchanged document is then a 304.",
        required: true,
        schema: r#"{"type":"string","pattern":"^\"[0-9a-f]+\"$"}"#,
    },
    Header {
        name: "Cache-Control",
        detail: "How long the answer may be kept.",
        required: true,
        schema: r#"{"type":"string","pattern":"^public, max-age=[0-9]+$"}"#,
    },
];

const IF_NONE_MATCH: Parameter = Parameter {
    name: "If-None-Match",
    place: Place::Header,
    required: false,
    detail: "The `ETag` of what the caller has.",
    schema: r#"{"type":"string"}"#,
    example: "\"0123456789abcdef\"",
};

pub(super) const DOCUMENT: Operation = Operation {
    id: "getOpenApi",
    group: Group::Service,
    summary: "This document",
    detail: "The OpenAPI 3.1 description of every route, made from the same table that serves them.",
    parameters: &[IF_NONE_MATCH],
    request: None,
    answers: &[
        Answer {
            status: 200,
            detail: "The document.",
            content: Content::Document,
            headers: DOCUMENT_HEADERS,
        },
        Answer {
            status: 304,
            detail: "The caller has it.",
            content: Content::Empty,
            headers: DOCUMENT_HEADERS,
        },
    ],
    errors: &[],
    refusals: Refusals::Envelope,
};

pub(super) const REFERENCE: Operation = Operation {
    id: "getReference",
    group: Group::Service,
    summary: "The reference page",
    detail: "This document as a page for people: no script, nothing from elsewhere.",
    parameters: &[IF_NONE_MATCH],
    request: None,
    answers: &[
        Answer { status: 200, detail: "The page.", content: Content::Page, headers: DOCUMENT_HEADERS },
        Answer {
            status: 304,
            detail: "The caller has it.",
            content: Content::Empty,
            headers: DOCUMENT_HEADERS,
        },
    ],
    errors: &[],
    refusals: Refusals::Envelope,
};
