//! What keeps one key from slowing another: requests, tokens and simultaneous requests of each key and each account, signed
//! requests of each node, and failed keys and signatures of each address (GR35, SR32). Decisions are `market::limit`'s; here is what they remember, bounded and
//! forgotten by age.
//!
//! Of several replicas each keeps its own share, the limit divided by the number of live ones: never more in sum than the
//! limit, except for some seconds after a replica has joined. Money is exact over all replicas: its limits are the
//! store's (`store::limits`).

mod headers;
mod permit;
mod shelf;
mod tally;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cxmpute_market::limit::{Rate, retry_after};
use cxmpute_runtime::{Clock, random};
use cxmpute_store::{KeyKind, KeyRow};
use cxmpute_wire::{Code, KeyId, ProvisionId, UserId};

pub use headers::HEADERS;
pub use permit::{Permit, Standing};
use shelf::Shelf;
use tally::{Bounds, Subject};

use crate::config::LimitsConfig;
use crate::error::{ApiError, ApiResult};
use crate::router::RateClass;

/// The limits of this process.
pub struct RateTable {
    clock: Clock,
    keys: Shelf<KeyId>,
    accounts: Shelf<UserId>,
    nodes: Shelf<ProvisionId>,
    failures: Shelf<IpAddr>,
    failed_keys: Option<Rate>,
    node_requests: Option<Rate>,
    replicas: AtomicU64,
}

impl RateTable {
    /// An empty table.
    #[must_use]
    pub fn new(config: &LimitsConfig, clock: Clock) -> Self {
        let rate = |most: u64| (most > 0).then(|| Rate::per_minute(most));
        Self {
            clock,
            keys: Shelf::new(config.entries),
            accounts: Shelf::new(config.entries),
            nodes: Shelf::new(config.entries),
            failures: Shelf::new(config.entries),
            failed_keys: rate(config.failed_keys_per_minute),
            node_requests: rate(config.node_requests_per_minute),
            replicas: AtomicU64::new(1),
        }
    }

    /// Says how many replicas share the limits.
    pub fn share_with(&self, replicas: u64) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
    }

    /// Where a key and its account stand with their limits.
    #[must_use]
    pub fn standing(&self, key: &KeyRow) -> Arc<Standing> {
        let replicas = self.replicas.load(Ordering::Relaxed);
        let now = self.clock.mono();
        let mut of_key = Bounds::of(&key.limits, replicas);
        if key.kind == KeyKind::Provider {
            let most = self.node_requests.map(|rate| rate.shared_by(replicas));
            of_key.requests = of_key.requests.into_iter().chain(most).min_by_key(|rate| rate.get());
        }
        let of_account = Bounds::of(&key.account, replicas);
        Arc::new(Standing {
            clock: self.clock.clone(),
            key: of_key.any().then(|| Subject::new(self.keys.get(&key.id, now), of_key, "API key")),
            account: of_account
                .any()
                .then(|| Subject::new(self.accounts.get(&key.user_id, now), of_account, "account")),
        })
    }

    /// Lets a request in, or refuses it: for paid work a slot and a request, for other routes of a key a request.
    ///
    /// # Errors
    /// 429 with `Retry-After`; nothing is taken then.
    pub fn admit(&self, standing: &Arc<Standing>, class: RateClass) -> ApiResult<Option<Permit>> {
        match class {
            RateClass::Free | RateClass::Signed => Ok(None),
            RateClass::Requests => standing.take_request().map(|()| None),
            RateClass::Work => Permit::take(standing.clone()).map(Some),
        }
    }

    /// Lets a signed request of a node in.
    ///
    /// # Errors
    /// 429: the node has used its requests of this minute.
    pub fn admit_node(&self, node: &ProvisionId) -> ApiResult<()> {
        let Some(rate) = self.node_requests else { return Ok(()) };
        let now = self.clock.mono();
        let taken = self.nodes.get(node, now).lock().requests.take(rate, 1, now);
        taken.map_err(|wait| {
            let message = format!(
                "This node has used its {} requests per minute; wait as long as `Retry-After` says.",
                rate.get()
            );
            ApiError::new(Code::RateLimited, message).retry_after(seconds(wait))
        })
    }

    /// Whether an address may try another key, or another device, that nobody here has seen yet.
    ///
    /// # Errors
    /// 429: too many of its keys and signatures were wrong in the last minute.
    pub fn admit_stranger(&self, address: IpAddr) -> ApiResult<()> {
        let Some(rate) = self.failed_keys else { return Ok(()) };
        let now = self.clock.mono();
        let Some(tally) = self.failures.find(&network(address)) else { return Ok(()) };
        let mut probe = tally.lock().requests;
        probe.take(rate, 1, now).map_err(too_many_failures)
    }

    /// Counts a wrong key or signature of an address.
    pub fn note_failure(&self, address: IpAddr) {
        let Some(rate) = self.failed_keys else { return };
        let now = self.clock.mono();
        // An empty bucket stays empty; the refusal comes before the next attempt.
        let _ = self.failures.get(&network(address), now).lock().requests.take(rate, 1, now);
    }
}

/// Addresses of IPv6 are handed out by /64, so that is what counts as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
    }
}

fn too_many_failures(wait: Duration) -> ApiError {
    ApiError::new(
        Code::RateLimited,
        "Too many wrong keys or signatures came from this address; wait, and send one that is valid.",
    )
    .retry_after(seconds(wait))
}

/// Seconds for `Retry-After`, with chance.
fn seconds(wait: Duration) -> u64 {
    retry_after(wait, u64::from_le_bytes(random::bytes::<8>()))
}

#[cfg(test)]
mod tests;
