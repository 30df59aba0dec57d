//! `[limits]`: what a key and an account may do where nothing else is set for them. 0 means no limit.

use cxmpute_store::Limits;
use cxmpute_wire::MicroCredits;
use serde::{Deserialize, Serialize};

/// The section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Requests of a key per minute. The default only stops a runaway client: it is more than one core can serve.
    pub requests_per_minute: u64,
    /// Tokens in and out of a key per minute.
    pub tokens_per_minute: u64,
    /// Requests of a key for paid work at the same time.
    pub concurrent: u64,
    /// Most that a key may spend in a UTC day, in micro-credits.
    pub spend_per_day_micro: i64,
    /// Most that a key may spend in a UTC month, in micro-credits.
    pub spend_per_month_micro: i64,
    /// Requests of an account per minute, over all its keys.
    pub account_requests_per_minute: u64,
    /// Tokens of an account per minute.
    pub account_tokens_per_minute: u64,
    /// Requests of an account at the same time.
    pub account_concurrent: u64,
    /// Most that an account may spend in a UTC day, in micro-credits.
    pub account_spend_per_day_micro: i64,
    /// Most that an account may spend in a UTC month, in micro-credits.
    pub account_spend_per_month_micro: i64,
    /// Wrong API keys of one address (of one /64 of IPv6) per minute; after that, unknown keys get 429 unread.
    pub failed_keys_per_minute: u64,
    /// Signed requests of a node per minute, and requests with a provider key. A node signs one when it starts, one when it
    /// connects and some for each file that it fetches; each costs a write of the store.
    pub node_requests_per_minute: u64,
    /// Keys, accounts, nodes and addresses (each) whose use of the last minutes is remembered.
    pub entries: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_minute: 6_000_000,
            tokens_per_minute: 6_000_000_000,
            concurrent: 0,
            spend_per_day_micro: 0,
            spend_per_month_micro: 0,
            account_requests_per_minute: 0,
            account_tokens_per_minute: 0,
            account_concurrent: 0,
            account_spend_per_day_micro: 0,
            account_spend_per_month_micro: 0,
            failed_keys_per_minute: 600,
            node_requests_per_minute: 600,
            entries: 100_000,
        }
    }
}

impl LimitsConfig {
    /// Negative money limits nothing and is surely a mistake.
    pub(super) fn check(&self) -> Result<(), String> {
        let money = [
            ("spend_per_day_micro", self.spend_per_day_micro),
            ("spend_per_month_micro", self.spend_per_month_micro),
            ("account_spend_per_day_micro", self.account_spend_per_day_micro),
            ("account_spend_per_month_micro", self.account_spend_per_month_micro),
        ];
        match money.iter().find(|(_, value)| *value < 0) {
            Some((key, value)) => {
                Err(format!("limits.{key} is {value}, expected micro-credits, or 0 for no limit."))
            }
            None if self.entries == 0 => Err("limits.entries is 0, expected at least 1.".to_owned()),
            None => Ok(()),
        }
    }

    /// Defaults of every key.
    #[must_use]
    pub fn key(&self) -> Limits {
        Limits {
            requests_per_minute: Some(self.requests_per_minute),
            tokens_per_minute: Some(self.tokens_per_minute),
            concurrent: Some(self.concurrent),
            spend_per_day: Some(MicroCredits(self.spend_per_day_micro)),
            spend_per_month: Some(MicroCredits(self.spend_per_month_micro)),
            models: None,
            routes: None,
        }
    }

    /// Defaults of every account.
    #[must_use]
    pub fn account(&self) -> Limits {
        Limits {
            requests_per_minute: Some(self.account_requests_per_minute),
            tokens_per_minute: Some(self.account_tokens_per_minute),
            concurrent: Some(self.account_concurrent),
            spend_per_day: Some(MicroCredits(self.account_spend_per_day_micro)),
            spend_per_month: Some(MicroCredits(self.account_spend_per_month_micro)),
            models: None,
            routes: None,
        }
    }
}
