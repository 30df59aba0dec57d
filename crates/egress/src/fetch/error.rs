//! Why there is no page.

use std::time::Duration;

use crate::connect::ConnectError;
use crate::judge::Refusal;

/// Why a page could not be had. Each has a stable code and one sentence.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL, or where it redirects to, may not be asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The whole took too long.
    #[error("The page was not complete within {} s.", limit.as_secs_f32())]
    TimedOut {
        /// What was allowed.
        limit: Duration,
    },
    /// The host does not speak HTTP as it should.
    #[error("The host broke off or sent no valid HTTP: {0}.")]
    Protocol(String),
    /// The chain of redirects is too long.
    #[error("More than {limit} redirects.")]
    TooManyRedirects {
        /// How many are followed.
        limit: u8,
    },
    /// The decoded body is too large.
    #[error("The body is larger than {limit_bytes} bytes.")]
    TooLarge {
        /// The most it may have.
        limit_bytes: usize,
    },
    /// The body unpacks to far more than was sent.
    #[error("The body unpacks to more than {limit} times its size.")]
    Ratio {
        /// The highest ratio.
        limit: u64,
    },
    /// The body is packed in a way that was not asked for.
    #[error("The content encoding `{0}` is not known.")]
    Encoding(String),
    /// The packed body is damaged.
    #[error("The body cannot be unpacked: {0}.")]
    Decoding(String),
    /// The declared type is not one that is taken.
    #[error("The declared content type `{0}` is not taken.")]
    Type(String),
    /// The host's robots.txt forbids it.
    #[error("The robots.txt of `{host}` does not allow this page.")]
    Robots {
        /// The host.
        host: String,
    },
    /// The host's robots.txt cannot be had, which counts as a no (RFC 9309).
    #[error("The robots.txt of `{host}` could not be read, so the page is not fetched: {cause}")]
    RobotsUnreachable {
        /// The host.
        host: String,
        /// Why.
        cause: String,
    },
    /// Too many requests to this host wait already.
    #[error("Too many requests to `{host}` are waiting; one host is asked at most once a second.")]
    Busy {
        /// The host.
        host: String,
    },
}

impl FetchError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Connect(error) => error.code(),
            Self::TimedOut { .. } => "timed_out",
            Self::Protocol(_) => "protocol_error",
            Self::TooManyRedirects { .. } => "too_many_redirects",
            Self::TooLarge { .. } => "too_large",
            Self::Ratio { .. } => "ratio_exceeded",
            Self::Encoding(_) => "encoding_unknown",
            Self::Decoding(_) => "decoding_failed",
            Self::Type(_) => "type_refused",
            Self::Robots { .. } => "robots_denied",
            Self::RobotsUnreachable { .. } => "robots_unreachable",
            Self::Busy { .. } => "host_busy",
        }
    }

    /// Whether this is a judgement of ours and not an accident on the way.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Connect(ConnectError::Refused(_)))
    }
}
