//! What a row of the route table says about itself: the words and shapes from which the OpenAPI document and the
//! reference page are made. Everything is required, so a route without words does not compile.

use cxmpute_wire::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::error::Shape;

/// A route for people and for generated clients.
#[derive(Debug)]
pub struct Operation {
    /// Name of the call in generated clients; unique.
    pub id: &'static str,
    /// Chapter of the reference.
    pub group: Group,
    /// A few words.
    pub summary: &'static str,
    /// What it does, in whole sentences.
    pub detail: &'static str,
    /// Path, query and header parameters.
    pub parameters: &'static [Parameter],
    /// The body, where the route takes one.
    pub request: Option<Payload>,
    /// Answers that are no refusals.
    pub answers: &'static [Answer],
    /// Codes of its refusals, beside those that every route has ([`EDGE`]).
    pub errors: &'static [&'static [Code]],
    /// How the bodies of its refusals look.
    pub refusals: Refusals,
}

impl Operation {
    /// Every code it can answer with.
    #[must_use]
    pub fn codes(&self) -> Vec<Code> {
        let mut codes = EDGE.to_vec();
        for code in self.errors.iter().copied().flatten() {
            if !codes.contains(code) {
                codes.push(*code);
            }
        }
        codes.sort_by_key(|code| (code.status(), Code::ALL.iter().position(|known| known == code)));
        codes
    }
}

/// Chapters of the reference, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Text and vectors.
    Inference,
    /// What can be asked for.
    Models,
    /// Balance, key, receipts.
    Account,
    /// Enrolment and tunnels.
    Nodes,
    /// Routes of the first seed.
    Devices,
    /// Probes and this document.
    Service,
}

impl Group {
    /// Every chapter.
    pub const ALL: [Self; 6] =
        [Self::Inference, Self::Models, Self::Account, Self::Nodes, Self::Devices, Self::Service];

    /// Its title.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Inference => "Inference",
            Self::Models => "Models",
            Self::Account => "Account",
            Self::Nodes => "Nodes",
            Self::Devices => "Devices",
            Self::Service => "Service",
        }
    }

    /// What its routes are for.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Inference => "Chat, text and embeddings in OpenAI's shapes, paid per use.",
            Self::Models => "What can be asked for, at what price, and whether somebody serves it now.",
            Self::Account => "What it cost: the balance, the key, and the receipt of each request.",
            Self::Nodes => "For the provider program: enrolment and the tunnel. Every request is signed.",
            Self::Devices => {
                "For programs written for the first version of the network. The provider key travels in the body."
            }
            Self::Service => "Probes for load balancers, and this document.",
        }
    }
}

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the path.
    Path,
    /// In the query.
    Query,
    /// In the head.
    Header,
}

impl Place {
    /// The word of OpenAPI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

/// A parameter.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Where it stands.
    pub place: Place,
    /// Whether it must be there.
    pub required: bool,
    /// What it is.
    pub detail: &'static str,
    /// Its JSON schema, as JSON text.
    pub schema: &'static str,
    /// A good value.
    pub example: &'static str,
}

/// Makes the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A body: JSON, or a form whose fields the schema describes.
#[derive(Debug, Clone, Copy)]
pub struct Payload {
    /// Its schema.
    pub schema: SchemaOf,
    /// A good body, as JSON text.
    pub example: &'static str,
    /// Whether it is sent as `multipart/form-data`.
    pub form: bool,
}

impl Payload {
    /// The body that a type describes.
    #[must_use]
    pub const fn of<T: JsonSchema>(example: &'static str) -> Self {
        Self { schema: SchemaGenerator::subschema_for::<T>, example, form: false }
    }

    /// The form whose fields a type describes.
    #[must_use]
    pub const fn form<T: JsonSchema>(example: &'static str) -> Self {
        Self { schema: SchemaGenerator::subschema_for::<T>, example, form: true }
    }

    /// Its content type.
    #[must_use]
    pub const fn media_type(&self) -> &'static str {
        if self.form { "multipart/form-data" } else { "application/json" }
    }
}

/// An answer that is no refusal.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// When it comes.
    pub detail: &'static str,
    /// Its body.
    pub content: Content,
    /// Headers beside `X-Request-Id`, which every answer has.
    pub headers: &'static [Header],
}

/// The body of an answer.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// JSON.
    Json(Payload),
    /// Server-sent events with names, errors among them; the schema is that of the data of each, and a good stream ends
    /// with an event that says so.
    Named(Payload),
    /// Server-sent events; the schema is that of one event's data, `data: [DONE]` ends a good stream.
    Events(Payload),
    /// Bytes of this type.
    Bytes(&'static str),
    /// Text of this type.
    Text(&'static str),
    /// The OpenAPI document.
    Document,
    /// A page.
    Page,
    /// None.
    Empty,
}

impl Content {
    /// Its content type.
    #[must_use]
    pub const fn media_type(self) -> Option<&'static str> {
        match self {
            Self::Json(_) | Self::Document => Some("application/json"),
            Self::Events(_) | Self::Named(_) => Some("text/event-stream"),
            Self::Bytes(media) | Self::Text(media) => Some(media),
            Self::Page => Some("text/html"),
            Self::Empty => None,
        }
    }
}

/// A header of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub detail: &'static str,
    /// Whether it is always there.
    pub required: bool,
    /// Its JSON schema, as JSON text.
    pub schema: &'static str,
}

/// How the bodies of refusals look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusals {
    /// OpenAI's envelope.
    Envelope,
    /// The flat object of the first seed; what is refused before the body was read still has the envelope.
    Seed,
    /// Anthropic's object, whatever refused.
    Anthropic,
}

impl Refusals {
    /// The shape of a refusal that would come in `shape`.
    #[must_use]
    pub fn shape(self, shape: Shape) -> Shape {
        if self == Self::Anthropic { Shape::Anthropic } else { shape }
    }
}

/// What any route may answer with: the head is too large, or the gateway itself failed.
pub const EDGE: &[Code] = &[Code::UriTooLong, Code::HeadTooLarge, Code::InternalError];

/// Refusals of an API key, and of what is asked for too often.
pub const KEY: &[Code] = &[
    Code::InvalidApiKey,
    Code::ExpiredApiKey,
    Code::RouteNotPermitted,
    Code::AccountSuspended,
    Code::RateLimited,
    Code::StoreUnavailable,
];

/// Refusals of a node's signature.
pub const SIGNED: &[Code] = &[
    Code::InvalidSignature,
    Code::ClockSkew,
    Code::AccountSuspended,
    Code::NodeRevoked,
    Code::NodeUnknown,
    Code::RateLimited,
    Code::StoreUnavailable,
];

/// Refusals while a body is read, whatever is in it.
pub const UNREAD: &[Code] = &[Code::RequestTimeout, Code::BodyTooLarge, Code::QueueFull];

/// Refusals of what is in a body.
pub const BODY: &[Code] = &[Code::InvalidJson, Code::InvalidParameter];

/// Refusals of work: the model, the money, and the nodes.
pub const WORK: &[Code] = &[
    Code::UnsupportedMediaType,
    Code::UnsupportedParameter,
    Code::ContextLengthExceeded,
    Code::InsufficientCredits,
    Code::BudgetExceeded,
    Code::ModelNotPermitted,
    Code::ModelNotFound,
    Code::ConcurrencyLimited,
    Code::QueueFull,
    Code::ProviderError,
    Code::NoProvider,
    Code::ModelLoading,
    Code::Draining,
    Code::FirstTokenTimeout,
    Code::DeadlineExceeded,
];

/// Codes of an error event, which ends a stream that had begun.
pub const IN_STREAM: &[Code] = &[
    Code::ProviderLost,
    Code::ProviderStalled,
    Code::ProviderProtocolError,
    Code::ProviderError,
    Code::FirstTokenTimeout,
    Code::DeadlineExceeded,
    Code::GatewayDraining,
    Code::StoreUnavailable,
    Code::InternalError,
];

/// Answers of these codes always say when to come back.
#[must_use]
pub fn says_when(status: u16) -> bool {
    matches!(status, 429 | 503)
}
