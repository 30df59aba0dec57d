//! Getting one page: redirects judged one by one, a deadline over everything, and a bound on the decoded bytes.

mod decode;
mod error;
mod exchange;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Clock;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

pub use error::FetchError;
pub use stream::Stream;

use crate::connect::Connector;
use crate::judge::Target;
use crate::pace::Pacer;
use crate::robots::Robots;

/// What one fetch may take (SR26, NR52).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Redirects that are followed.
    pub redirects: u8,
    /// Bytes of the body after decoding.
    pub decoded_bytes: usize,
    /// Decoded bytes for each byte on the wire.
    pub ratio: u64,
    /// Time from the first lookup to the last byte, redirects included. Waiting for a host's turn is not counted.
    pub deadline: Duration,
    /// Bytes of an answer's head.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            redirects: 3,
            decoded_bytes: 5 * 1024 * 1024,
            ratio: 100,
            deadline: Duration::from_secs(10),
            head_bytes: 32 * 1024,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `Accept`; anything when empty.
    pub accept: String,
    /// Media types that are taken, such as `text/html`; every type when empty. What is declared counts.
    pub types: Vec<String>,
    /// Headers for the origin that the URL names: credentials, cookies. They do not travel to another origin.
    pub headers: HeaderMap,
    /// Whether the host's robots.txt is asked first.
    pub robots: bool,
    /// A body beyond the limit is cut there instead of being refused.
    pub cut: bool,
    /// Bytes of the decoded body, where fewer are wanted than [`Limits`] allow.
    pub most_bytes: Option<usize>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Page {
    /// The URL that answered, after all redirects.
    pub url: Url,
    /// Its status.
    pub status: StatusCode,
    /// `Content-Type` as declared; nothing is guessed from the content.
    pub content_type: Option<String>,
    /// The decoded body.
    pub body: Bytes,
    /// Bytes of the body on the wire.
    pub wire_bytes: u64,
    /// Redirects that were followed.
    pub redirects: u8,
}

impl Page {
    /// The media type without parameters, in lower case.
    #[must_use]
    pub fn media_type(&self) -> Option<String> {
        self.content_type.as_deref().map(essence)
    }
}

pub(crate) fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Gets pages. Cloning shares the pace and what is known of robots.txt files.
#[derive(Clone, Debug)]
pub struct Fetcher {
    pub(crate) connector: Connector,
    limits: Limits,
    agent: Arc<str>,
    clock: Clock,
    pacer: Option<Arc<Mutex<Pacer>>>,
    robots: Arc<Robots>,
}

impl Fetcher {
    /// A fetcher that calls itself `agent`, without a pace.
    #[must_use]
    pub fn new(connector: Connector, limits: Limits, agent: &str, clock: Clock) -> Self {
        let robots = Arc::new(Robots::new(agent));
        Self { connector, limits, agent: agent.into(), clock, pacer: None, robots }
    }

    /// The same with a pace.
    #[must_use]
    pub fn paced(mut self, pacer: Pacer) -> Self {
        self.pacer = Some(Arc::new(Mutex::new(pacer)));
        self
    }

    /// How it calls itself.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// The connector that it goes out through.
    #[must_use]
    pub const fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Gets a page.
    ///
    /// # Errors
    /// It may not be asked, does not answer, or breaks a limit.
    pub async fn get(&self, url: &str, wanted: &Wanted) -> Result<Page, FetchError> {
        let first = self.connector.target(url)?;
        let own = self.limits.decoded_bytes;
        let limits =
            Limits { decoded_bytes: wanted.most_bytes.map_or(own, |most| most.min(own)), ..self.limits };
        let mut left = self.limits.deadline;
        let mut target = first.clone();
        let mut redirects = 0;
        loop {
            if wanted.robots {
                // Boxed because the rules are fetched by this same function.
                Box::pin(self.robots.ask(self, &target, &self.clock)).await?;
            }
            self.take_turn(&target).await?;
            let headers = self.headers(wanted, target.same_origin(&first), &first);
            let begun = Instant::now();
            let exchange = exchange::exchange(&self.connector, &target, headers, wanted, &limits);
            let answer = match tokio::time::timeout(left, Box::pin(exchange)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(FetchError::TimedOut { limit: self.limits.deadline }),
            };
            left = left.saturating_sub(begun.elapsed());
            match answer {
                exchange::Answer::Page(page) => return Ok(Page { redirects, ..page }),
                exchange::Answer::Redirect(location) => {
                    redirects += 1;
                    target = self.follow(&target, &location, redirects)?;
                }
            }
        }
    }

    fn follow(&self, from: &Target, location: &str, redirects: u8) -> Result<Target, FetchError> {
        #[cfg(feature = "sabotage")]
        if self.connector.is_sabotaged(crate::sabotage::Sabotage::OwnRedirects) {
            let next = from.url().join(location).ok().and_then(Target::unjudged);
            return match next {
                Some(next) if redirects <= 10 => Ok(next),
                _ => Err(FetchError::TooManyRedirects { limit: 10 }),
            };
        }
        if redirects > self.limits.redirects {
            return Err(FetchError::TooManyRedirects { limit: self.limits.redirects });
        }
        Ok(self.connector.policy().redirected(from, location)?)
    }

    fn headers(&self, wanted: &Wanted, at_home: bool, first: &Target) -> HeaderMap {
        let mut headers = HeaderMap::new();
        #[cfg(feature = "sabotage")]
        let at_home = at_home || self.connector.is_sabotaged(crate::sabotage::Sabotage::OwnRedirects);
        if at_home {
            headers.extend(wanted.headers.clone());
        } else if !wanted.headers.is_empty() {
            tracing::debug!(host = %first.host(), "headers stay with the origin they were meant for");
        }
        let accept = if wanted.accept.is_empty() { "*/*" } else { &wanted.accept };
        let own = [
            (header::USER_AGENT, &*self.agent),
            (header::ACCEPT, accept),
            (header::ACCEPT_ENCODING, decode::ACCEPTED),
            (header::CONNECTION, "close"),
        ];
        for (name, value) in own {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// Takes a turn at the host of a URL and waits for it, for a request that somebody else will make.
    ///
    /// # Errors
    /// The URL may not be asked, or too many wait for its host.
    pub async fn wait_for_turn(&self, url: &str) -> Result<(), FetchError> {
        self.take_turn(&self.connector.target(url)?).await
    }

    /// Waits until the host may be asked again.
    async fn take_turn(&self, target: &Target) -> Result<(), FetchError> {
        let Some(pacer) = &self.pacer else { return Ok(()) };
        let host = target.host().to_string();
        let wait = pacer.lock().reserve(&host, self.clock.mono()).ok_or(FetchError::Busy { host })?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}
