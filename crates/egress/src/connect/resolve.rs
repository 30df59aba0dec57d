//! From a name to its addresses.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::ConnectError;

/// Who knows the addresses of names.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// The operating system.
    System,
    /// A script, for tests.
    Scripted(Script),
}

impl Resolver {
    /// All addresses of a name; none if there is no such name.
    ///
    /// # Errors
    /// The resolver failed.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ConnectError> {
        match self {
            Self::Scripted(script) => Ok(script.resolve(name)),
            // The port is not used: the caller joins each judged address with its own.
            Self::System => match tokio::net::lookup_host((name, 0)).await {
                Ok(found) => Ok(found.map(|address| address.ip()).collect()),
                Err(error) => {
                    Err(ConnectError::NotResolved { host: name.to_owned(), cause: error.to_string() })
                }
            },
        }
    }
}

/// Answers prepared in advance, one set after the other; the last one stays. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Script {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<String, VecDeque<Vec<IpAddr>>>,
    aliases: BTreeMap<String, String>,
    otherwise: Vec<IpAddr>,
    lookups: Vec<String>,
}

/// Aliases that are followed, like a resolver's own limit.
const ALIAS_LIMIT: usize = 16;

impl Script {
    /// The next answer for a name.
    #[must_use]
    pub fn answer(self, name: &str, addresses: &[&str]) -> Self {
        let parsed = addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.state.lock().answers.entry(name.to_owned()).or_default().push_back(parsed);
        self
    }

    /// The answer for every name that has none of its own.
    #[must_use]
    pub fn otherwise(self, addresses: &[&str]) -> Self {
        self.state.lock().otherwise = addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self
    }

    /// A name that stands for another one (CNAME).
    #[must_use]
    pub fn alias(self, name: &str, target: &str) -> Self {
        self.state.lock().aliases.insert(name.to_owned(), target.to_owned());
        self
    }

    /// The names that were looked up, in order.
    #[must_use]
    pub fn lookups(&self) -> Vec<String> {
        self.state.lock().lookups.clone()
    }

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        let mut state = self.state.lock();
        state.lookups.push(name.to_owned());
        let mut at = name.to_owned();
        for _ in 0..ALIAS_LIMIT {
            let Some(next) = state.aliases.get(&at) else { break };
            at.clone_from(next);
        }
        let State { answers, otherwise, .. } = &mut *state;
        let Some(answers) = answers.get_mut(&at) else { return otherwise.clone() };
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }.unwrap_or_default()
    }
}
