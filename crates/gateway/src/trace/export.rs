//! From the outbox to the collector: in batches, in a task of its own, never in the way of a request. What does not fit
//! or cannot be delivered is dropped and counted.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::backoff::Backoff;
use cxmpute_runtime::{CancellationToken, random};
use cxmpute_tunnel::HttpClient;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::otlp::{PATH, Source, rejected};
use super::span::Span;

/// Requests in one batch: about a thousand spans, half a megabyte.
const BATCH: usize = 256;
/// How often the queue is looked into.
const LOOK: Duration = Duration::from_millis(200);
/// Tries of one batch. A collector that is away for longer loses it; what comes meanwhile waits in the queue.
const TRIES: u32 = 3;
/// Bounds of the wait between them.
const WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// After the last request of a process that stops, what is left may take this long.
const FLUSH: Duration = Duration::from_secs(3);
/// The same once the process is to stop without waiting.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Where finished requests go. Clones share it.
#[derive(Clone)]
pub struct Outbox(mpsc::Sender<Vec<Span>>);

impl Outbox {
    pub(super) fn new(requests: usize) -> (Self, mpsc::Receiver<Vec<Span>>) {
        let (sender, receiver) = mpsc::channel(requests);
        (Self(sender), receiver)
    }

    /// Leaves the spans of one request, or drops them when there is no room. Never waits.
    pub(super) fn put(&self, spans: Vec<Span>) {
        match self.0.try_send(spans) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(spans)) => count_dropped("queue_full", spans.len()),
            Err(mpsc::error::TrySendError::Closed(spans)) => count_dropped("stopping", spans.len()),
        }
    }
}

/// What the metrics are called, for the page.
pub(super) fn describe_metrics() {
    metrics::describe_counter!("cxmpute_trace_spans_sent_total", "Spans that the collector took.");
    metrics::describe_counter!("cxmpute_trace_spans_dropped_total", "Spans that were dropped, by reason.");
    metrics::counter!("cxmpute_trace_spans_sent_total").increment(0);
    for reason in ["queue_full", "collector", "rejected", "stopping"] {
        count_dropped(reason, 0);
    }
}

fn count_dropped(reason: &'static str, spans: usize) {
    metrics::counter!("cxmpute_trace_spans_dropped_total", "reason" => reason).increment(spans as u64);
}

/// Carries batches to one collector.
pub(super) struct Carrier {
    pub client: HttpClient,
    /// The collector's base address.
    pub collector: String,
    pub source: Source,
    pub every: Duration,
    pub timeout: Duration,
    pub received: mpsc::Receiver<Vec<Span>>,
    /// Taken out of the queue and not delivered yet.
    pub batch: Vec<Vec<Span>>,
    /// Whether the last batch failed; a collector that is away is told of once.
    pub is_away: bool,
}

/// Why a batch was not taken.
enum Failure {
    /// It may be taken later.
    Later(String),
    /// It never will.
    Never(String),
}

impl Carrier {
    /// Works until the soft stop of the tasks that outlive the connections, and then as long as the last batches may
    /// take; `hard` is the hard stop of the process.
    pub(super) async fn run(mut self, soft: CancellationToken, hard: CancellationToken) {
        let over = async {
            soft.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(FLUSH) => {}
                () = async { hard.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => {}
            }
        };
        let is_done = tokio::select! {
            () = self.carry(&soft) => true,
            () = over => false,
        };
        if !is_done {
            self.received.close();
            while let Ok(spans) = self.received.try_recv() {
                self.batch.push(spans);
            }
            self.drop_batch("stopping");
        }
    }

    async fn carry(&mut self, soft: &CancellationToken) {
        while !soft.is_cancelled() {
            self.fill(soft).await;
            self.deliver(soft).await;
        }
        // Every request has ended by now; what comes later finds the queue closed.
        self.received.close();
        while self.take() {
            self.deliver(soft).await;
        }
    }

    /// Gathers a batch: until it is full, until the first of it has waited for long enough, or until the stop. It looks
    /// from time to time instead of being woken, so that a request pays for nothing but its place in the queue.
    async fn fill(&mut self, soft: &CancellationToken) {
        let mut due = None;
        loop {
            if self.take() {
                let now = Instant::now();
                if self.batch.len() >= BATCH || *due.get_or_insert(now + self.every) <= now {
                    return;
                }
            }
            tokio::select! {
                () = soft.cancelled() => return,
                () = tokio::time::sleep(LOOK.min(self.every)) => {}
            }
        }
    }

    /// Takes what the queue holds and the batch has room for; whether the batch holds anything.
    fn take(&mut self) -> bool {
        while self.batch.len() < BATCH {
            let Ok(spans) = self.received.try_recv() else { break };
            self.batch.push(spans);
        }
        !self.batch.is_empty()
    }

    /// Sends the batch, again after a while when that may help, and drops it in the end. Nobody waits for a collector
    /// that is away once the process stops.
    async fn deliver(&mut self, soft: &CancellationToken) {
        if self.batch.is_empty() {
            return;
        }
        let Ok(body) = self.source.print(self.batch.iter().flatten()) else {
            return self.drop_batch("collector");
        };
        let body = Bytes::from(body);
        let (first, longest) = WAIT;
        let mut backoff = Backoff::new(first, longest);
        for attempt in 1..=TRIES {
            match self.send(body.clone()).await {
                Ok(refused) => {
                    let spans = self.spans();
                    let refused = usize::try_from(refused).unwrap_or(usize::MAX).min(spans);
                    metrics::counter!("cxmpute_trace_spans_sent_total").increment((spans - refused) as u64);
                    count_dropped("rejected", refused);
                    self.batch.clear();
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(collector = self.collector, "the collector takes traces again");
                    }
                    return;
                }
                Err(failure) => {
                    let is_final = matches!(failure, Failure::Never(_)) || attempt == TRIES;
                    self.complain(failure);
                    if is_final || soft.is_cancelled() {
                        break;
                    }
                }
            }
            let wait = backoff.next(&mut random::rng());
            tokio::select! {
                () = soft.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.drop_batch("collector");
    }

    /// One request of the protocol; gives the number of spans that were not taken all the same.
    async fn send(&self, body: Bytes) -> Result<u64, Failure> {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let call = self.client.call(&self.collector, Method::POST, PATH, vec![json], body);
        let answer = match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failure::Later(error.to_string())),
            Err(_) => return Err(Failure::Later("no answer in time".to_owned())),
        };
        match answer.status {
            status if status.is_success() => Ok(rejected(&answer.body)),
            // The statuses after which the protocol wants another try.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(Failure::Later(format!("status {}", answer.status))),
            status => Err(Failure::Never(format!("status {status}"))),
        }
    }

    fn complain(&mut self, failure: Failure) {
        if !std::mem::replace(&mut self.is_away, true) {
            let (Failure::Later(why) | Failure::Never(why)) = failure;
            tracing::warn!(
                collector = self.collector,
                why,
                "the collector does not take traces; they are dropped and counted until it does"
            );
        }
    }

    fn spans(&self) -> usize {
        self.batch.iter().map(Vec::len).sum()
    }

    fn drop_batch(&mut self, reason: &'static str) {
        count_dropped(reason, self.spans());
        self.batch.clear();
    }
}
