//! robots.txt (RFC 9309): asked once an hour and origin, obeyed before every hop.

mod rules;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::Clock;
use parking_lot::Mutex;
use url::Position;

pub use rules::Rules;

use crate::fetch::{FetchError, Fetcher, Wanted};
use crate::judge::Target;

/// How long an answer is believed. The standard allows a day; an hour lets a host change its mind.
const KEEP: Duration = Duration::from_hours(1);
/// How long a failure to ask is believed.
const KEEP_FAILURE: Duration = Duration::from_mins(5);
/// Origins that are remembered.
const ORIGINS_LIMIT: usize = 2000;
/// What of a file is read, in bytes; the standard asks for 500 KiB at least.
const FILE_LIMIT_BYTES: usize = 512 * 1024;
/// What the rules of all origins together may take, in bytes.
const KEPT_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// What is known of the rules of hosts.
#[derive(Debug)]
pub(crate) struct Robots {
    /// How rules call us.
    product: String,
    known: Mutex<HashMap<String, Slot>>,
}

/// What is known of one origin; held while it is asked.
type Slot = Arc<tokio::sync::Mutex<Option<Known>>>;

#[derive(Clone, Debug)]
struct Known {
    word: Word,
    until: Duration,
}

#[derive(Clone, Debug)]
enum Word {
    Rules(Arc<Rules>),
    /// The host could not be asked; that counts as a no to everything.
    Unreachable(String),
}

impl Word {
    /// Memory that it takes.
    fn bytes(&self) -> usize {
        match self {
            Self::Rules(rules) => rules.bytes(),
            Self::Unreachable(cause) => cause.len(),
        }
    }
}

impl Robots {
    pub(crate) fn new(agent: &str) -> Self {
        Self { product: product(agent), known: Mutex::default() }
    }

    /// Whether the target may be fetched.
    ///
    /// # Errors
    /// The host does not allow it, or cannot be asked.
    pub(crate) async fn ask(
        &self,
        fetcher: &Fetcher,
        target: &Target,
        clock: &Clock,
    ) -> Result<(), FetchError> {
        let host = target.host().to_string();
        match self.word(fetcher, target, clock).await? {
            Word::Rules(rules) if rules.allow(&target.url()[Position::BeforePath..Position::AfterQuery]) => {
                Ok(())
            }
            Word::Rules(_) => Err(FetchError::Robots { host }),
            Word::Unreachable(cause) => Err(FetchError::RobotsUnreachable { host, cause }),
        }
    }

    async fn word(&self, fetcher: &Fetcher, target: &Target, clock: &Clock) -> Result<Word, FetchError> {
        let origin = &target.url()[..Position::BeforePath];
        let slot = self.slot(origin, clock.mono());
        // Held while asking: twenty pages of one host ask for its rules once.
        let mut slot = slot.lock().await;
        if let Some(known) = &*slot
            && known.until > clock.mono()
        {
            return Ok(known.word.clone());
        }
        let (word, keep) = self.fetch(fetcher, origin).await?;
        *slot = Some(Known { word: word.clone(), until: clock.mono() + keep });
        Ok(word)
    }

    fn slot(&self, origin: &str, now: Duration) -> Slot {
        let mut known = self.known.lock();
        if !known.contains_key(origin) {
            // Whoever is new is about to be asked, which takes longer than this look at all others.
            let mut bytes = 0;
            known.retain(|_, slot| {
                // One that is in use is being asked or read.
                let Ok(slot) = slot.try_lock() else { return true };
                let fresh = slot.as_ref().filter(|known| known.until > now);
                bytes += fresh.map_or(0, |known| known.word.bytes());
                fresh.is_some()
            });
            if known.len() >= ORIGINS_LIMIT || bytes > KEPT_LIMIT_BYTES {
                // Forgetting costs one more question; the ones in use live on in their users' hands.
                known.clear();
            }
        }
        known.entry(origin.to_owned()).or_default().clone()
    }

    async fn fetch(&self, fetcher: &Fetcher, origin: &str) -> Result<(Word, Duration), FetchError> {
        let wanted = Wanted {
            accept: "text/plain".into(),
            cut: true,
            most_bytes: Some(FILE_LIMIT_BYTES),
            ..Wanted::default()
        };
        let none = || Word::Rules(Arc::default());
        match fetcher.get(&format!("{origin}/robots.txt"), &wanted).await {
            Ok(page) if page.status.is_success() => {
                Ok((Word::Rules(Arc::new(Rules::parse(&page.body, &self.product))), KEEP))
            }
            // "Unavailable": there are no rules.
            Ok(page) if page.status.is_client_error() || page.status.is_redirection() => Ok((none(), KEEP)),
            Ok(page) => Ok((
                Word::Unreachable(format!("It answered with status {}.", page.status.as_u16())),
                KEEP_FAILURE,
            )),
            // What we refuse or cannot reach is told as such, not as the fault of the rules.
            Err(error @ (FetchError::Refused(_) | FetchError::Connect(_) | FetchError::Busy { .. })) => {
                Err(error)
            }
            Err(FetchError::TooManyRedirects { .. }) => Ok((none(), KEEP)),
            Err(error) => Ok((Word::Unreachable(error.to_string()), KEEP_FAILURE)),
        }
    }
}

/// The product token by which a robots.txt names an agent such as `Mozilla/5.0 (compatible; name/1.0)` or `name/1.0`.
fn product(agent: &str) -> String {
    let named = agent.split_once("compatible;").map_or(agent, |(_, rest)| rest).trim_start();
    let end = named.find(|c: char| !c.is_ascii_alphabetic() && c != '-' && c != '_').unwrap_or(named.len());
    named[..end].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_token_is_found_in_both_forms() {
        assert_eq!(product("Mozilla/5.0 (compatible; Cxmpute-Scrape/0.1)"), "cxmpute-scrape");
        assert_eq!(product("cxmpute-scrape/0.1"), "cxmpute-scrape");
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let robots = Robots::new("cxmpute-scrape");
        let text = format!("user-agent: *\ndisallow: /{}\n", "a".repeat(900)).repeat(500);
        let rules = Arc::new(Rules::parse(text.as_bytes(), "cxmpute-scrape"));
        let learn = |origin: &str, now: u64| {
            let (now, word) = (Duration::from_secs(now), Word::Rules(rules.clone()));
            *robots.slot(origin, now).try_lock().unwrap() = Some(Known { word, until: now + KEEP });
        };
        learn("http://a", 0);
        learn("http://b", 3000);
        assert_eq!(robots.known.lock().len(), 2);
        learn("http://c", 4000);
        assert!(!robots.known.lock().contains_key("http://a"), "its time is over");
        for n in 0..200 {
            learn(&format!("http://{n}"), 4000);
            let held: usize = robots.known.lock().len() * rules.bytes();
            assert!(held <= KEPT_LIMIT_BYTES + 2 * rules.bytes(), "{held} bytes are held");
        }
        for n in 0..3 * ORIGINS_LIMIT {
            let word = Word::Rules(Arc::default());
            let until = Duration::from_secs(9000);
            *robots.slot(&format!("http://small-{n}"), Duration::from_secs(8000)).try_lock().unwrap() =
                Some(Known { word, until });
        }
        assert!(robots.known.lock().len() <= ORIGINS_LIMIT);
    }
}
