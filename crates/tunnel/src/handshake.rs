//! What both ends agree on: the upgrade, and the head of a work stream.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use cxmpute_wire::{Epoch, Generation, Millis, RequestId, ServiceId};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

/// Where a node asks for the upgrade.
pub const TUNNEL_PATH: &str = "/api/v1/tunnel";
/// The protocol in the `Upgrade` header; a change of the wire that old ends cannot follow changes the number.
pub const UPGRADE_TOKEN: &str = "cxmpute-tunnel/1";
/// The tunnel's epoch, in the answer to the upgrade and in work streams.
pub const CX_EPOCH: HeaderName = HeaderName::from_static("cx-epoch");
/// The gateway's time in milliseconds, in the answer to the upgrade.
pub const CX_SERVER_TIME: HeaderName = HeaderName::from_static("cx-server-time");
/// The machine code of a refusal.
pub const CX_CODE: HeaderName = HeaderName::from_static("cx-code");
/// The id of the request, in work streams both ways.
pub const CX_REQUEST_ID: HeaderName = HeaderName::from_static("cx-request-id");
const CX_ATTEMPT: HeaderName = HeaderName::from_static("cx-attempt");
const CX_SERVICE: HeaderName = HeaderName::from_static("cx-service");
const CX_GENERATION: HeaderName = HeaderName::from_static("cx-generation");
const CX_DEADLINE_MS: HeaderName = HeaderName::from_static("cx-deadline-ms");
const CX_MAX_TOKENS: HeaderName = HeaderName::from_static("cx-max-tokens");
const CX_MAX_BYTES: HeaderName = HeaderName::from_static("cx-max-bytes");

/// Path of the control stream.
pub(crate) const CONTROL_PATH: &str = "/control";

/// What the engine is asked to do: the part of the OpenAI path after `/v1`, or of our own where OpenAI has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkPath {
    /// `/chat/completions`
    ChatCompletions,
    /// `/completions`
    Completions,
    /// `/embeddings`
    Embeddings,
    /// `/audio/speech`: JSON to a waveform.
    Speech,
    /// `/audio/transcriptions`: a form with a waveform to JSON.
    Transcription,
    /// `/read`: a picture to the text in it.
    Read,
    /// `/images/generations`: words to pictures.
    Draw,
    /// `/scrape`: addresses to pages.
    Scrape,
}

impl WorkPath {
    /// Every path.
    pub const ALL: [Self; 8] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Embeddings,
        Self::Speech,
        Self::Transcription,
        Self::Read,
        Self::Draw,
        Self::Scrape,
    ];

    /// The path as it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Speech => "/audio/speech",
            Self::Transcription => "/audio/transcriptions",
            Self::Read => "/read",
            Self::Draw => "/images/generations",
            Self::Scrape => "/scrape",
        }
    }

    /// Whether the answer is a stream of events; otherwise it is one body.
    #[must_use]
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions)
    }
}

impl WorkPath {
    /// Where a work stream is opened. Cloning these costs nothing, parsing them for every stream does.
    fn uri(self) -> Uri {
        static ALL: LazyLock<[Uri; 8]> = LazyLock::new(|| {
            WorkPath::ALL
                .map(|path| format!("http://node{path}").parse().expect("a path of ours is an address"))
        });
        let place = Self::ALL.iter().position(|path| *path == self).unwrap_or_default();
        ALL[place].clone()
    }
}

/// A value that does not come again: HTTP/2 keeps it out of its tables of headers, where it would only push out those
/// that do.
pub(crate) fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

impl fmt::Display for WorkPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for WorkPath {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        Self::ALL.into_iter().find(|path| path.as_str() == text).ok_or(HeadError { part: "path" })
    }
}

/// The head of one piece of work; its body follows on the same stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkHead {
    /// The user's request.
    pub request_id: RequestId,
    /// Which try of that request this is, from 1.
    pub attempt: u32,
    /// The tunnel's epoch; the node drops work of another one.
    pub epoch: Epoch,
    /// What should serve it.
    pub service: ServiceId,
    /// The desired state that made the service routable; the node drops work of an older one.
    pub generation: Generation,
    /// What is asked.
    pub path: WorkPath,
    /// Time left from the moment the stream opens.
    pub deadline: Millis,
    /// Most tokens the answer may have.
    pub max_tokens: u64,
    /// Most bytes the answer may have.
    pub max_bytes: u64,
}

/// The head of a work stream does not follow the agreed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the head of the work stream has no valid {part}")]
pub struct HeadError {
    /// The header, or the path.
    pub part: &'static str,
}

impl WorkHead {
    pub(crate) fn request(&self) -> Result<Request<()>, http::Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.path.uri();
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CX_REQUEST_ID, once(HeaderValue::from_str(self.request_id.as_str())?));
        headers.insert(CX_ATTEMPT, self.attempt.into());
        headers.insert(CX_EPOCH, self.epoch.0.into());
        headers.insert(CX_SERVICE, HeaderValue::from_str(self.service.as_str())?);
        headers.insert(CX_GENERATION, self.generation.0.into());
        headers.insert(CX_DEADLINE_MS, once(self.deadline.0.into()));
        headers.insert(CX_MAX_TOKENS, self.max_tokens.into());
        headers.insert(CX_MAX_BYTES, self.max_bytes.into());
        *request.headers_mut() = headers;
        Ok(request)
    }

    pub(crate) fn read(path: &str, headers: &HeaderMap) -> Result<Self, HeadError> {
        Ok(Self {
            request_id: parse(headers, &CX_REQUEST_ID, "cx-request-id")?,
            attempt: parse(headers, &CX_ATTEMPT, "cx-attempt")?,
            epoch: Epoch(parse(headers, &CX_EPOCH, "cx-epoch")?),
            service: parse(headers, &CX_SERVICE, "cx-service")?,
            generation: Generation(parse(headers, &CX_GENERATION, "cx-generation")?),
            path: path.parse()?,
            deadline: Millis(parse(headers, &CX_DEADLINE_MS, "cx-deadline-ms")?),
            max_tokens: parse(headers, &CX_MAX_TOKENS, "cx-max-tokens")?,
            max_bytes: parse(headers, &CX_MAX_BYTES, "cx-max-bytes")?,
        })
    }
}

pub(crate) fn parse<T: FromStr>(
    headers: &HeaderMap,
    name: &HeaderName,
    part: &'static str,
) -> Result<T, HeadError> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .ok_or(HeadError { part })
}

/// Whether these headers ask for the tunnel.
pub fn asks_for_tunnel(headers: &HeaderMap) -> bool {
    let has = |name, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value: &HeaderValue| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    has(http::header::CONNECTION, "upgrade") && has(http::header::UPGRADE, UPGRADE_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> WorkHead {
        WorkHead {
            request_id: "req_0190".parse().unwrap(),
            attempt: 2,
            epoch: Epoch(3),
            service: "llm:llama3.2:1b".parse().unwrap(),
            generation: Generation(4),
            path: WorkPath::ChatCompletions,
            deadline: Millis(5),
            max_tokens: 6,
            max_bytes: 7,
        }
    }

    #[test]
    fn a_head_survives_the_wire() {
        let request = head().request().unwrap();
        assert_eq!(WorkHead::read(request.uri().path(), request.headers()), Ok(head()));
    }

    #[test]
    fn work_goes_to_its_path() {
        for path in WorkPath::ALL {
            assert_eq!(path.uri().path(), path.as_str());
        }
    }

    #[test]
    fn a_head_with_a_missing_or_malformed_part_names_it() {
        let (parts, ()) = head().request().unwrap().into_parts();
        let names: Vec<_> = parts.headers.keys().cloned().collect();
        for name in names {
            for value in [None, Some("☃"), Some("")] {
                let mut headers = parts.headers.clone();
                headers.remove(&name);
                if let Some(value) = value {
                    headers.insert(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
                }
                let error = WorkHead::read(parts.uri.path(), &headers).unwrap_err();
                assert_eq!(error.part, name.as_str());
            }
        }
        assert_eq!(WorkHead::read("/admin", &parts.headers), Err(HeadError { part: "path" }));
    }
}
