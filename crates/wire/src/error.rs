//! The machine codes that both sides of the tunnel, and clients of the API, know. Codes are stable: they may gain
//! members, never change meaning.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($(#[doc = $doc:literal] $name:ident = $text:literal, $status:literal;)*) => {
        /// A stable machine code with its HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code { $(#[doc = $doc] $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The printed form.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence for people.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc.trim_ascii(),)* }
            }

            /// The HTTP status that goes with it when it is a whole answer.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not acceptable JSON.
    InvalidJson = "invalid_json", 400;
    /// A field has a wrong type or value.
    InvalidParameter = "invalid_parameter", 400;
    /// A field that this model or route does not support.
    UnsupportedParameter = "unsupported_parameter", 400;
    /// Prompt and wanted output do not fit the model's context.
    ContextLengthExceeded = "context_length_exceeded", 400;
    /// The key is missing, malformed, unknown or revoked.
    InvalidApiKey = "invalid_api_key", 401;
    /// The key's end date has passed.
    ExpiredApiKey = "expired_api_key", 401;
    /// A node's signature does not verify.
    InvalidSignature = "invalid_signature", 401;
    /// The signature's time is outside the window; the answer carries `server_time`.
    ClockSkew = "clock_skew", 401;
    /// The account cannot pay for the request.
    InsufficientCredits = "insufficient_credits", 402;
    /// The key's own budget is used up.
    BudgetExceeded = "budget_exceeded", 402;
    /// The key may not use this route.
    RouteNotPermitted = "route_not_permitted", 403;
    /// The key may not use this model.
    ModelNotPermitted = "model_not_permitted", 403;
    /// The account is suspended.
    AccountSuspended = "account_suspended", 403;
    /// The provision was retired or revoked.
    NodeRevoked = "node_revoked", 403;
    /// The enrolment grant is unknown.
    GrantInvalid = "grant_invalid", 403;
    /// The enrolment grant was used before.
    GrantSpent = "grant_spent", 403;
    /// The enrolment grant is too old.
    GrantExpired = "grant_expired", 403;
    /// No such model.
    ModelNotFound = "model_not_found", 404;
    /// No such object for this caller.
    NotFound = "not_found", 404;
    /// The control plane does not know this provision.
    NodeUnknown = "node_unknown", 404;
    /// The route exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The body came too slowly.
    RequestTimeout = "request_timeout", 408;
    /// The provision belongs to another owner or key.
    NodeConflict = "node_conflict", 409;
    /// A newer tunnel of the same provision is active.
    EpochStale = "epoch_stale", 409;
    /// The work belongs to an older plan.
    GenerationStale = "generation_stale", 409;
    /// The body is larger than the route allows.
    BodyTooLarge = "body_too_large", 413;
    /// The address is longer than allowed.
    UriTooLong = "uri_too_long", 414;
    /// The body's content type is not accepted.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// The program is too old for this control plane.
    VersionTooOld = "version_too_old", 426;
    /// Too many requests.
    RateLimited = "rate_limited", 429;
    /// Too many requests of one key or account at the same time.
    ConcurrencyLimited = "concurrency_limited", 429;
    /// The queue of the engine or the model is full.
    QueueFull = "queue_full", 429;
    /// All slots of the node are taken.
    CapacityFull = "capacity_full", 429;
    /// The head of the request is larger than allowed.
    HeadTooLarge = "head_too_large", 431;
    /// The client went away (log only).
    ClientClosed = "client_closed", 499;
    /// A fault of the gateway itself.
    InternalError = "internal_error", 500;
    /// Every attempt failed before the first content.
    ProviderError = "provider_error", 502;
    /// The node was lost after content had been relayed.
    ProviderLost = "provider_lost", 502;
    /// The node stopped sending after content had been relayed.
    ProviderStalled = "provider_stalled", 504;
    /// The node broke the protocol after content had been relayed.
    ProviderProtocolError = "provider_protocol_error", 502;
    /// The engine on the node failed.
    EngineFailed = "engine_failed", 502;
    /// The engine was ended at its limit of memory.
    OutOfMemory = "out_of_memory", 503;
    /// No node can serve the model now.
    NoProvider = "no_provider", 503;
    /// A node is loading the model.
    ModelLoading = "model_loading", 503;
    /// The service is not ready on the node.
    NotReady = "not_ready", 503;
    /// A file of the model is not on the node.
    ModelMissing = "model_missing", 503;
    /// A file of the model on the node is not the one that the catalogue names.
    DigestMismatch = "digest_mismatch", 503;
    /// No source has a file of the model that the node could take.
    ModelUnavailable = "model_unavailable", 503;
    /// A file of the model is not of a format that nodes load.
    ModelFormat = "model_format", 503;
    /// The files of the plan are not those of the sealed catalogue that the node follows.
    CatalogueRefused = "catalogue_refused", 503;
    /// The disk of the node has no room for the model.
    DiskLow = "disk_low", 503;
    /// The owner of the node took the machine back while it worked; nobody is to blame.
    OwnerWithdrew = "owner_withdrew", 503;
    /// The store is away.
    StoreUnavailable = "store_unavailable", 503;
    /// The process is shutting down.
    Draining = "draining", 503;
    /// The gateway shut down while content was being relayed.
    GatewayDraining = "gateway_draining", 503;
    /// No content came in time.
    FirstTokenTimeout = "first_token_timeout", 504;
    /// The request's total time is over.
    DeadlineExceeded = "deadline_exceeded", 504;
    /// The hold is used up and could not be extended.
    CreditsExhausted = "credits_exhausted", 402;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(UnknownCode)
    }
}

/// The text is no known code; a newer peer may know more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown code")]
pub struct UnknownCode;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_print_parse_and_serialise_alike() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse::<Code>(), Ok(*code));
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert!((400..600).contains(&code.status()));
        }
    }
}
