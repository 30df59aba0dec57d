//! Words and shapes of the routes for nodes and for devices of the first seed.

use cxmpute_wire::Code;
use cxmpute_wire::control::{
    EnrolAnswer, EnrolRequest, SeedCallback, SeedDelete, SeedDone, SeedEnd, SeedNew, SeedNewAnswer,
    SeedServices, SeedStart,
};

use super::operation::{
    Answer, BODY, Content, Group, Header, Operation, Parameter, Payload, Place, Refusals, SIGNED, UNREAD,
};
use crate::api::provider::provision::ProvisionView;

const SIGNATURE_INPUT: Parameter = Parameter {
    name: "Signature-Input",
    place: Place::Header,
    required: true,
    detail: "RFC 9421: what is signed (method, authority, path, query and, where there is a body, its digest), when, \
             with a nonce that is used once, and the provision as `keyid`.",
    schema: r#"{"type":"string"}"#,
    example: "cx=(\"@method\" \"@authority\" \"@path\" \"@query\");created=1790000000;nonce=\"…\";keyid=\"pv_…\"",
};

const CONTENT_DIGEST: Parameter = Parameter {
    name: "Content-Digest",
    place: Place::Header,
    required: true,
    detail: "RFC 9530: SHA-256 of the body.",
    schema: r#"{"type":"string"}"#,
    example: "sha-256=:…:",
};

const PROVISION_ID: Parameter = Parameter {
    name: "provision_id",
    place: Place::Path,
    required: true,
    detail: "`pv_` and the lower-case base32 of the first 20 bytes of SHA-256 of the public key.",
    schema: r#"{"type":"string","pattern":"^pv_[A-Za-z0-9_-]{1,80}$"}"#,
    example: "pv_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
};

const ENROLLED: Payload = Payload::of::<EnrolAnswer>(
    r#"{"provision_id":"pv_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","owner":"us_0197","state":"enrolled","server_time":1790000000000,"epoch":0,"control_plane":"cxmpute"}"#,
);

pub(super) const TUNNEL: Operation = Operation {
    id: "openTunnel",
    group: Group::Nodes,
    summary: "Open a node's tunnel",
    detail: "The connection becomes HTTP/2 with the roles reversed: the gateway asks, the node answers. Only over \
             HTTP/1.1 with `Upgrade: cxmpute-tunnel/1`. The newest tunnel of a provision is the only valid one.",
    parameters: &[
        SIGNATURE_INPUT,
        Parameter {
            name: "Upgrade",
            place: Place::Header,
            required: true,
            detail: "The protocol of the tunnel.",
            schema: r#"{"const":"cxmpute-tunnel/1"}"#,
            example: "cxmpute-tunnel/1",
        },
    ],
    request: None,
    answers: &[Answer {
        status: 101,
        detail: "The tunnel begins.",
        content: Content::Empty,
        headers: &[
            Header {
                name: "CX-Epoch",
                detail: "Number of this tunnel among all of the provision.",
                required: true,
                schema: r#"{"type":"string","pattern":"^[0-9]+$"}"#,
            },
            Header {
                name: "CX-Server-Time",
                detail: "The server's clock in milliseconds since 1970.",
                required: true,
                schema: r#"{"type":"string","pattern":"^[0-9]+$"}"#,
            },
        ],
    }],
    errors: &[SIGNED, &[Code::VersionTooOld, Code::Draining]],
    refusals: Refusals::Envelope,
};

pub(super) const PUT_PROVISION: Operation = Operation {
    id: "enrolProvision",
    group: Group::Nodes,
    summary: "Enrol a device",
    detail: "Enrols the device, or confirms it: the same request twice changes nothing. A record of another owner or \
             key is never overwritten.",
    parameters: &[PROVISION_ID, SIGNATURE_INPUT, CONTENT_DIGEST],
    request: Some(Payload::of::<EnrolRequest>(
        r#"{"public_key":"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=","grant":"cxg_…","name":"workstation","location":{"country":"DE"}}"#,
    )),
    answers: &[
        Answer {
            status: 200,
            detail: "It was enrolled before.",
            content: Content::Json(ENROLLED),
            headers: &[],
        },
        Answer { status: 201, detail: "It is enrolled now.", content: Content::Json(ENROLLED), headers: &[] },
    ],
    errors: &[
        SIGNED,
        UNREAD,
        BODY,
        &[Code::GrantInvalid, Code::GrantSpent, Code::GrantExpired, Code::NodeConflict],
    ],
    refusals: Refusals::Envelope,
};

pub(super) const GET_PROVISION: Operation = Operation {
    id: "getProvision",
    group: Group::Nodes,
    summary: "A node reads its own record",
    detail: "What the server knows of the node that signs; the record of another one looks like a missing one.",
    parameters: &[PROVISION_ID, SIGNATURE_INPUT],
    request: None,
    answers: &[Answer {
        status: 200,
        detail: "The record.",
        content: Content::Json(Payload::of::<ProvisionView>(
            r#"{"provision_id":"pv_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","owner":"us_0197","state":"enrolled","server_time":1790000000000,"epoch":3,"control_plane":"cxmpute","generation":2,"services":[{"service_id":"llm:cxm-tiny","state":"ready","detail":null}],"reason":null}"#,
        )),
        headers: &[],
    }],
    errors: &[SIGNED, &[Code::InvalidParameter]],
    refusals: Refusals::Envelope,
};

pub(super) const GET_BLOB: Operation = Operation {
    id: "getBlob",
    group: Group::Nodes,
    summary: "A node fetches a model file",
    detail: "A file of the catalogue by its SHA-256, where this gateway has it. `Range: bytes=FIRST-` gives the rest from a \
             byte on. The node checks the sum.",
    parameters: &[
        Parameter {
            name: "sha256",
            place: Place::Path,
            required: true,
            detail: "SHA-256 of the file in lower-case hexadecimal.",
            schema: r#"{"type":"string","pattern":"^[0-9a-f]{64}$"}"#,
            example: "7cc003a86318fd3d007ff86cf364e07da380b040c78513e8cdee7b91d5d55ba5",
        },
        SIGNATURE_INPUT,
    ],
    request: None,
    answers: &[
        Answer {
            status: 200,
            detail: "The whole file.",
            content: Content::Bytes("application/octet-stream"),
            headers: &[],
        },
        Answer {
            status: 206,
            detail: "The rest of it.",
            content: Content::Bytes("application/octet-stream"),
            headers: &[],
        },
    ],
    errors: &[SIGNED, &[Code::NotFound]],
    refusals: Refusals::Envelope,
};

const SEED: &[Code] = &[
    Code::InvalidApiKey,
    Code::ExpiredApiKey,
    Code::AccountSuspended,
    Code::RateLimited,
    Code::StoreUnavailable,
];
const KNOWN: &[Code] = &[Code::NodeUnknown];

const fn device(
    id: &'static str,
    summary: &'static str,
    detail: &'static str,
    request: Payload,
    answers: &'static [Answer],
    errors: &'static [&'static [Code]],
) -> Operation {
    Operation {
        id,
        group: Group::Devices,
        summary,
        detail,
        parameters: &[],
        request: Some(request),
        answers,
        errors,
        refusals: Refusals::Seed,
    }
}

const DONE: &[Answer] = &[Answer {
    status: 200,
    detail: "Done.",
    content: Content::Json(Payload::of::<SeedDone>(r#"{"success":true,"message":"Services ended."}"#)),
    headers: &[],
}];

pub(super) const SEED_NEW: Operation = device(
    "enrolDevice",
    "Enrol a device",
    "Enrols a device under a UUID that its program made. The device gets no work until a node with a key takes it over.",
    Payload::of::<SeedNew>(
        r#"{"providerId":"us_0197","providerAk":"cxp_live_…","provisionId":"3d2c1a5e-1111-4222-8333-0123456789ab","deviceDiagnostics":{"type":"cpu","compute":{"cpu":{"name":"C","cores":4,"threads":8}}},"location":{"country":"DE"}}"#,
    ),
    &[Answer {
        status: 200,
        detail: "It is enrolled.",
        content: Content::Json(Payload::of::<SeedNewAnswer>(
            r#"{"success":true,"deviceId":"3d2c1a5e-1111-4222-8333-0123456789ab"}"#,
        )),
        headers: &[],
    }],
    &[
        SEED,
        UNREAD,
        BODY,
        &[Code::NodeRevoked, Code::NodeConflict, Code::GrantInvalid, Code::GrantSpent, Code::GrantExpired],
    ],
);

pub(super) const SEED_START: Operation = device(
    "startDevice",
    "Read the assignment",
    "Takes fresh measures in and gives the services that the device should run.",
    Payload::of::<SeedStart>(
        r#"{"provisionId":"3d2c1a5e-1111-4222-8333-0123456789ab","providerAk":"cxp_live_…","availableResources":{"memory":{"total":16384}}}"#,
    ),
    &[Answer {
        status: 200,
        detail: "The assignment.",
        content: Content::Json(Payload::of::<SeedServices>(r#"{"services":["llm:cxm-tiny"]}"#)),
        headers: &[],
    }],
    &[SEED, UNREAD, BODY, KNOWN],
);

pub(super) const SEED_CALLBACK: Operation = device(
    "reportStarted",
    "Report what runs",
    "Records the services that the device says it runs. `providedUrl` is a label and is never dialled.",
    Payload::of::<SeedCallback>(
        r#"{"provisionId":"3d2c1a5e-1111-4222-8333-0123456789ab","providerAk":"cxp_live_…","startedServices":["llm:cxm-tiny"],"providedUrl":"http://device"}"#,
    ),
    DONE,
    &[SEED, UNREAD, BODY, KNOWN],
);

pub(super) const SEED_END: Operation = device(
    "endServices",
    "End services",
    "Ends the named services, or all of them.",
    Payload::of::<SeedEnd>(
        r#"{"provisionId":"3d2c1a5e-1111-4222-8333-0123456789ab","providerAk":"cxp_live_…","services":["llm:cxm-tiny"]}"#,
    ),
    DONE,
    &[SEED, UNREAD, BODY, KNOWN],
);

const DELETE: Payload = Payload::of::<SeedDelete>(
    r#"{"provisionId":"3d2c1a5e-1111-4222-8333-0123456789ab","providerAk":"cxp_live_…"}"#,
);

pub(super) const SEED_DELETE: Operation = device(
    "retireDevice",
    "Delete a device",
    "Retires the device for good; its id does not come back.",
    DELETE,
    DONE,
    &[SEED, UNREAD, BODY, KNOWN],
);

pub(super) const SEED_DELETE_POST: Operation = device(
    "retireDeviceByPost",
    "Delete a device, by POST",
    "The same as DELETE, for clients that cannot send a body with it.",
    DELETE,
    DONE,
    &[SEED, UNREAD, BODY, KNOWN],
);
