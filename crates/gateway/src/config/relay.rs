//! `[relay]`: deadlines per phase and the watch over nodes (GR section 7, NR14, NR19, NR20).

use std::time::Duration;

use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::health::BreakerPolicy;
use serde::{Deserialize, Serialize};

/// The section `[relay]`; all spans in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayConfig {
    /// A request waits this long for a free node before it is refused.
    pub queue_ms: u64,
    /// Requests of one service that may wait for a node at a time.
    pub queue_length: usize,
    /// A node must accept a request in this time, then the next node is asked.
    pub accept_ms: u64,
    /// Time to the first token after acceptance.
    pub first_token_ms: u64,
    /// Time between tokens.
    pub gap_ms: u64,
    /// A chat or completion as a whole.
    pub total_ms: u64,
    /// An embedding request as a whole.
    pub embeddings_total_ms: u64,
    /// Speech as a whole.
    pub speech_total_ms: u64,
    /// A transcript as a whole.
    pub transcription_total_ms: u64,
    /// A look at a picture as a whole.
    pub sight_total_ms: u64,
    /// Pictures that are drawn as a whole.
    pub image_total_ms: u64,
    /// Pages as a whole.
    pub scrape_total_ms: u64,
    /// Response headers are held back for the first token at most this long; also the rhythm of `: waiting`.
    pub headers_held_ms: u64,
    /// Retries before the first content byte, after the first attempt.
    pub retries: u32,
    /// Retries of a model may be at most this share of its requests of the last 10 s, in percent. As many as the breakers
    /// need to notice the faulty half of its nodes are always allowed: 10 for each such node, at least 10, at most 100.
    pub retry_budget_percent: u32,
    /// Rhythm of PING on a tunnel.
    pub ping_ms: u64,
    /// A tunnel without an answer to PING for this long is dead.
    pub dead_ms: u64,
    /// A node without a heartbeat for this long is offline.
    pub offline_ms: u64,
    /// After this long offline a node's services are planned anew.
    pub replan_ms: u64,
    /// Largest event of a node.
    pub event_bytes: usize,
    /// Most slots a node may claim for one service.
    pub slots_cap: u32,
    /// A node that failed too often gets no work for this long the first time, n times as long the n-th time, and never
    /// longer than ten times as long.
    pub breaker_open_ms: u64,
    /// Requests that may run at a time in this process; those who do not pay are refused at half of it.
    pub running_cap: usize,
    /// Requests that may wait for the store at a time before new ones are refused.
    pub admissions_cap: usize,
    /// Lateness of the process's own timers at which new requests are refused.
    pub lag_ms: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            queue_ms: 2_000,
            queue_length: 1_024,
            accept_ms: 2_000,
            first_token_ms: 30_000,
            gap_ms: 30_000,
            total_ms: 600_000,
            embeddings_total_ms: 60_000,
            speech_total_ms: 120_000,
            transcription_total_ms: 300_000,
            sight_total_ms: 60_000,
            image_total_ms: 300_000,
            scrape_total_ms: 60_000,
            headers_held_ms: 10_000,
            retries: 2,
            retry_budget_percent: 20,
            ping_ms: 2_000,
            dead_ms: 6_000,
            offline_ms: 15_000,
            replan_ms: 60_000,
            event_bytes: 256 * 1024,
            slots_cap: 64,
            breaker_open_ms: 30_000,
            running_cap: 32_768,
            admissions_cap: 4_096,
            lag_ms: 1_000,
        }
    }
}

impl RelayConfig {
    /// A span of zero would fail every request.
    pub(super) fn check(&self) -> Result<(), String> {
        let spans = [
            ("queue_ms", self.queue_ms),
            ("accept_ms", self.accept_ms),
            ("first_token_ms", self.first_token_ms),
            ("gap_ms", self.gap_ms),
            ("total_ms", self.total_ms),
            ("embeddings_total_ms", self.embeddings_total_ms),
            ("speech_total_ms", self.speech_total_ms),
            ("transcription_total_ms", self.transcription_total_ms),
            ("sight_total_ms", self.sight_total_ms),
            ("image_total_ms", self.image_total_ms),
            ("scrape_total_ms", self.scrape_total_ms),
            ("headers_held_ms", self.headers_held_ms),
            ("ping_ms", self.ping_ms),
            ("dead_ms", self.dead_ms),
            ("offline_ms", self.offline_ms),
            ("replan_ms", self.replan_ms),
            ("breaker_open_ms", self.breaker_open_ms),
            ("lag_ms", self.lag_ms),
        ];
        match spans.iter().find(|(_, value)| !(1..=86_400_000).contains(value)) {
            Some((key, value)) => {
                Err(format!("relay.{key} is {value}, expected 1 to 86400000 (milliseconds)."))
            }
            None if self.dead_ms <= self.ping_ms => Err(format!(
                "relay.dead_ms is {}, expected more than relay.ping_ms = {}.",
                self.dead_ms, self.ping_ms
            )),
            None => Ok(()),
        }
    }

    /// [`Self::queue_ms`] as a span.
    #[must_use]
    pub const fn queue(&self) -> Duration {
        Duration::from_millis(self.queue_ms)
    }

    /// [`Self::accept_ms`] as a span.
    #[must_use]
    pub const fn accept(&self) -> Duration {
        Duration::from_millis(self.accept_ms)
    }

    /// [`Self::first_token_ms`] as a span.
    #[must_use]
    pub const fn first_token(&self) -> Duration {
        Duration::from_millis(self.first_token_ms)
    }

    /// Time to the first token of a model and a prompt of at most `prompt_tokens`: the configured one, or the
    /// catalogue's where that is longer, and never more than 2 min.
    #[must_use]
    pub fn first_token_of(&self, model: &ModelEntry, prompt_tokens: impl FnOnce() -> u64) -> Duration {
        const CAP_MS: u64 = 120_000;
        let raised = model.first_token.map_or(0, |(base, per_1k)| {
            let prompt = if per_1k.0 == 0 { 0 } else { prompt_tokens() };
            base.0.saturating_add(per_1k.0.saturating_mul(prompt) / 1_000).min(CAP_MS)
        });
        Duration::from_millis(self.first_token_ms.max(raised))
    }

    /// When breakers open, and for how long.
    #[must_use]
    pub fn breaker(&self) -> BreakerPolicy {
        let open = Duration::from_millis(self.breaker_open_ms);
        BreakerPolicy { open, open_cap: open * 10, ..BreakerPolicy::default() }
    }

    /// [`Self::gap_ms`] as a span.
    #[must_use]
    pub const fn gap(&self) -> Duration {
        Duration::from_millis(self.gap_ms)
    }

    /// [`Self::total_ms`] as a span.
    #[must_use]
    pub const fn total(&self) -> Duration {
        Duration::from_millis(self.total_ms)
    }

    /// [`Self::speech_total_ms`] as a span.
    #[must_use]
    pub const fn speech_total(&self) -> Duration {
        Duration::from_millis(self.speech_total_ms)
    }

    /// [`Self::transcription_total_ms`] as a span.
    #[must_use]
    pub const fn transcription_total(&self) -> Duration {
        Duration::from_millis(self.transcription_total_ms)
    }

    /// [`Self::sight_total_ms`] as a span.
    #[must_use]
    pub const fn sight_total(&self) -> Duration {
        Duration::from_millis(self.sight_total_ms)
    }

    /// [`Self::image_total_ms`] as a span.
    #[must_use]
    pub const fn image_total(&self) -> Duration {
        Duration::from_millis(self.image_total_ms)
    }

    /// [`Self::scrape_total_ms`] as a span.
    #[must_use]
    pub const fn scrape_total(&self) -> Duration {
        Duration::from_millis(self.scrape_total_ms)
    }

    /// [`Self::embeddings_total_ms`] as a span.
    #[must_use]
    pub const fn embeddings_total(&self) -> Duration {
        Duration::from_millis(self.embeddings_total_ms)
    }

    /// [`Self::headers_held_ms`] as a span.
    #[must_use]
    pub const fn headers_held(&self) -> Duration {
        Duration::from_millis(self.headers_held_ms)
    }

    /// [`Self::offline_ms`] as a span.
    #[must_use]
    pub const fn offline(&self) -> Duration {
        Duration::from_millis(self.offline_ms)
    }

    /// [`Self::replan_ms`] as a span.
    #[must_use]
    pub const fn replan(&self) -> Duration {
        Duration::from_millis(self.replan_ms)
    }
}
