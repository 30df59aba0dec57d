//! One file from one source: an HTTP request from the byte that is missing, redirects judged one by one, every byte
//! counted, hashed and written while it arrives. The guarded way out of `egress` opens the connections: what the owner
//! named in the configuration may be anywhere, everything else only on the public internet.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_egress::connect::{Dialler, Resolver, Trust};
use cxmpute_egress::judge::{Host, Policy, Target};
use cxmpute_egress::{Connector, FetchError, fetch};
use cxmpute_runtime::Secret;
use cxmpute_tunnel::Signer;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::{Position, Url};

use super::digest::Digest;
use super::gate::Gate;
use super::partial::Partial;
use super::source::{Pass, Source};

/// Redirects that are followed; hubs use one or two.
const REDIRECTS: usize = 5;
/// Longest head of an answer.
const HEAD_LIMIT_BYTES: usize = 64 * 1024;
/// Bytes that are gathered before they are hashed and written.
const GATHER_BYTES: usize = 1 << 20;
/// A source that brings less than this in the time of a stall has stalled.
pub(super) const STALL_BYTES: u64 = 64 * 1024;
/// Longest wait that a source may ask for.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);

/// Asks sources.
#[derive(Clone)]
pub struct Client {
    public: Connector,
    named: Connector,
    /// Origins that the owner named.
    origins: Arc<Vec<Target>>,
    signer: Option<Signer>,
    hub_token: Option<Arc<Secret<String>>>,
    stall: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("origins", &self.origins).finish_non_exhaustive()
    }
}

/// Why a source did not give a file.
#[derive(Debug)]
pub enum Trouble {
    /// It can be asked again, after this time where it said so.
    Away(String, Option<Duration>),
    /// It does not have the file, or does not give it to us.
    Absent(String),
    /// What it gives is not the file.
    Wrong(String),
    /// Nothing may be fetched now; it goes on where it is.
    Held,
    /// The disk of this machine failed.
    Disk(io::Error),
}

impl Client {
    /// A client for sources at `origins`, and for the public internet. `authorities` is the PEM text of authorities that are
    /// trusted beside the public ones.
    ///
    /// # Errors
    /// The authorities cannot be used.
    pub fn new(
        origins: &[Url],
        authorities: Option<&[u8]>,
        signer: Option<Signer>,
        hub_token: Option<Secret<String>>,
        stall: Duration,
    ) -> Result<Self, String> {
        let trust = match authorities {
            Some(pem) => Trust::public().and(pem).map_err(|error| error.to_string())?,
            None => Trust::public(),
        };
        let everywhere = ["0.0.0.0/0", "::/0"].into_iter().filter_map(|network| network.parse().ok());
        let mut named = Policy { allowed: everywhere.collect(), ..Policy::default() };
        named.ports.extend(origins.iter().filter_map(Url::port_or_known_default));
        let targets = origins.iter().filter_map(|url| named.target(url.as_str()).ok()).collect();
        Ok(Self {
            public: Connector::with(Policy::default(), Resolver::System, Dialler::System, &trust),
            named: Connector::with(named, Resolver::System, Dialler::System, &trust),
            origins: Arc::new(targets),
            signer,
            hub_token: hub_token.map(Arc::new),
            stall,
        })
    }

    /// Fetches what is missing while `gate` lets it. The partial file comes back with everything that arrived; `came` is told
    /// of each piece.
    pub async fn fetch(
        &self,
        source: &Source,
        digest: Digest,
        mut partial: Partial,
        gate: &Gate,
        mut came: impl FnMut(u64),
    ) -> (Option<Partial>, Result<(), Trouble>) {
        let label = source.label();
        let mut answer = match self.open(source, digest, &partial).await {
            Ok(answer) => answer,
            Err(trouble) => return (Some(partial), Err(trouble)),
        };
        let mut gathered = Vec::with_capacity(GATHER_BYTES);
        let mut watch = Stall::new(self.stall);
        loop {
            let chunk = watch.next(&mut answer.stream).await;
            let (bytes, end) = match chunk {
                Ok(Some(bytes)) => (bytes, None),
                Ok(None) => (bytes::Bytes::new(), Some(Ok(()))),
                Err(error) => (bytes::Bytes::new(), Some(Err(error))),
            };
            let held = !gate.count(bytes.len() as u64);
            // A server that does not know ranges begins at the beginning.
            let skipped = usize::try_from(answer.skip).unwrap_or(usize::MAX).min(bytes.len());
            answer.skip -= skipped as u64;
            let mut bytes = &bytes[skipped..];
            let room = partial.size() - partial.at() - gathered.len() as u64;
            let too_much = bytes.len() as u64 > room;
            if too_much {
                bytes = &bytes[..usize::try_from(room).unwrap_or(usize::MAX)];
            }
            gathered.extend_from_slice(bytes);
            // What a piece holds is written at once: a crash must not cost more than one.
            let most = GATHER_BYTES.min(usize::try_from(partial.left_of_piece()).unwrap_or(GATHER_BYTES));
            let flush = gathered.len() >= most || end.is_some() || too_much || held;
            if flush && !gathered.is_empty() {
                let count = gathered.len() as u64;
                match write(partial, gathered, label.clone()).await {
                    Ok((back, buffer)) => (partial, gathered) = (back, buffer),
                    Err(error) => return (None, Err(Trouble::Disk(error))),
                }
                came(count);
            }
            if too_much {
                let why = format!("it sends more than the {} bytes that the catalogue names", partial.size());
                return (Some(partial), Err(Trouble::Wrong(why)));
            }
            let complete = partial.at() == partial.size();
            match end {
                None if held && !complete => return (Some(partial), Err(Trouble::Held)),
                None => {}
                Some(Ok(())) if complete => return (Some(partial), Ok(())),
                Some(Ok(())) => {
                    let why = format!("it ended at {} of {} bytes", partial.at(), partial.size());
                    return (Some(partial), Err(Trouble::Away(why, None)));
                }
                // Everything is here; how the connection ended does not matter.
                Some(Err(_)) if complete => return (Some(partial), Ok(())),
                Some(Err(why)) => return (Some(partial), Err(Trouble::Away(why, None))),
            }
        }
    }

    async fn open(&self, source: &Source, digest: Digest, partial: &Partial) -> Result<Answer, Trouble> {
        let asking = self.follow(source, digest, partial);
        tokio::time::timeout(self.stall, Box::pin(asking))
            .await
            .unwrap_or_else(|_| Err(Trouble::Away("it does not answer".into(), None)))
    }

    /// Asks, and follows redirects.
    async fn follow(&self, source: &Source, digest: Digest, partial: &Partial) -> Result<Answer, Trouble> {
        let mut target = self.target(source.url.as_str())?;
        let first = target.clone();
        for _ in 0..=REDIRECTS {
            let headers = self.headers(source, &target, &first, partial.at());
            let named = self.is_named(&target);
            let connector = if named { &self.named } else { &self.public };
            let stream = connector.ask(&target, headers, HEAD_LIMIT_BYTES).await.map_err(unreachable)?;
            check_tags(&stream.head.headers, digest, partial.size())?;
            match stream.location() {
                Some(location) => target = self.redirected(&target, &location)?,
                None => return judge(stream, partial),
            }
        }
        Err(Trouble::Absent(format!("it redirects more than {REDIRECTS} times")))
    }

    fn is_named(&self, target: &Target) -> bool {
        self.origins.iter().any(|origin| origin.same_origin(target))
    }

    fn target(&self, url: &str) -> Result<Target, Trouble> {
        let named = self.named.target(url).ok().filter(|target| self.is_named(target));
        let judged = named.map_or_else(|| self.public.target(url), Ok);
        judged.map_err(|refusal| Trouble::Absent(refusal.to_string()))
    }

    fn redirected(&self, from: &Target, location: &str) -> Result<Target, Trouble> {
        let named = self.named.policy().redirected(from, location).ok();
        let named = named.filter(|target| self.is_named(target));
        let judged = named.map_or_else(|| self.public.policy().redirected(from, location), Ok);
        judged.map_err(|refusal| Trouble::Absent(format!("it redirects where it may not: {refusal}")))
    }

    /// What is asked. Signatures and tokens go to the origin that they are meant for and to no other.
    fn headers(&self, source: &Source, target: &Target, first: &Target, at: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("cxmpute-provider/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if at > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={at}-"))
        {
            headers.insert(header::RANGE, range);
        }
        let at_home = target.same_origin(first);
        match source.pass {
            Pass::Signature if at_home => {
                let path = &target.url()[Position::BeforePath..Position::AfterQuery];
                let signed = self
                    .signer
                    .as_ref()
                    .map(|signer| signer.sign(&Method::GET, &target.authority(), path, &[]));
                headers.extend(signed.into_iter().flatten());
            }
            Pass::HubToken if at_home && may_see_token(target) => {
                let token = self.hub_token.as_ref();
                let value =
                    token.and_then(|token| HeaderValue::try_from(format!("Bearer {}", token.expose())).ok());
                if let Some(mut value) = value {
                    value.set_sensitive(true);
                    headers.insert(header::AUTHORIZATION, value);
                }
            }
            _ => {}
        }
        headers
    }
}

/// Whether nobody on the way can read a token.
fn may_see_token(target: &Target) -> bool {
    let loopback = matches!(target.host(), Host::Address(address) if address.is_loopback());
    target.is_https() || loopback
}

struct Answer {
    stream: fetch::Stream,
    /// Bytes at the beginning of the body that are here already.
    skip: u64,
}

/// Whether the answer is the rest of the file.
fn judge(stream: fetch::Stream, partial: &Partial) -> Result<Answer, Trouble> {
    let (at, size) = (partial.at(), partial.size());
    let headers = &stream.head.headers;
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let status = stream.head.status;
    let skip = match status {
        StatusCode::OK => at,
        StatusCode::PARTIAL_CONTENT => {
            let range = text(header::CONTENT_RANGE).and_then(content_range);
            match range {
                Some((from, total)) if from == at && total.is_none_or(|total| total == size) => 0,
                _ => return Err(Trouble::Wrong("it sends another range than was asked for".into())),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            return Err(Trouble::Wrong(format!("its file is shorter than {at} bytes")));
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            return Err(Trouble::Away(format!("it answers {status}"), retry_after(headers)));
        }
        status if status.is_server_error() => {
            return Err(Trouble::Away(format!("it answers {status}"), retry_after(headers)));
        }
        status => return Err(Trouble::Absent(format!("it answers {status}"))),
    };
    if text(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Trouble::Wrong("it packs the file although nobody asked for that".into()));
    }
    let announced = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let wanted = size - at + skip;
    match announced {
        Some(announced) if announced != wanted => {
            Err(Trouble::Wrong(format!("it announces {announced} bytes where the catalogue leaves {wanted}")))
        }
        _ => Ok(Answer { stream, skip }),
    }
}

/// The first byte and the size of the whole, of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let from = range.split_once('-')?.0.trim().parse().ok()?;
    Some((from, total.trim().parse().ok()))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_CAP))
}

/// Hubs name the sum and the size of large files, also where they redirect.
fn check_tags(headers: &HeaderMap, digest: Digest, size: u64) -> Result<(), Trouble> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text("x-linked-etag").or_else(|| text("etag"));
    let named = tag.and_then(|tag| tag.trim_start_matches("W/").trim_matches('"').parse::<Digest>().ok());
    if let Some(named) = named.filter(|named| *named != digest) {
        return Err(Trouble::Wrong(format!("its file has the hash {named}")));
    }
    let named = text("x-linked-size").and_then(|size| size.parse::<u64>().ok());
    match named {
        Some(named) if named != size => {
            Err(Trouble::Wrong(format!("its file has {named} bytes, not {size}")))
        }
        _ => Ok(()),
    }
}

fn unreachable(error: FetchError) -> Trouble {
    if error.is_refusal() {
        Trouble::Absent(error.to_string())
    } else {
        Trouble::Away(error.to_string(), None)
    }
}

/// Hashes and writes on a thread that may block.
async fn write(mut partial: Partial, mut bytes: Vec<u8>, source: String) -> io::Result<(Partial, Vec<u8>)> {
    let writing = move || {
        let written = partial.write(&bytes, &source);
        if let Err(error) = written {
            // What is half there only takes room that the owner needs.
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                let _ = partial.discard();
            }
            return Err(error);
        }
        bytes.clear();
        Ok((partial, bytes))
    };
    tokio::task::spawn_blocking(writing).await.map_err(io::Error::other)?
}

/// Notices a source that brings nothing, or next to nothing.
struct Stall {
    span: Duration,
    until: tokio::time::Instant,
    brought: u64,
}

impl Stall {
    fn new(span: Duration) -> Self {
        Self { span, until: tokio::time::Instant::now() + span, brought: 0 }
    }

    async fn next(&mut self, stream: &mut fetch::Stream) -> Result<Option<bytes::Bytes>, String> {
        let Ok(chunk) = tokio::time::timeout_at(self.until, stream.chunk()).await else {
            return Err(format!("it brought only {} bytes in {:?}", self.brought, self.span));
        };
        let Some(chunk) = chunk else { return Ok(None) };
        let bytes = chunk.map_err(|error| error.to_string())?;
        self.brought += bytes.len() as u64;
        if self.brought >= STALL_BYTES {
            (self.until, self.brought) = (tokio::time::Instant::now() + self.span, 0);
        }
        Ok(Some(bytes))
    }
}
