//! The record of one request while it runs. Whoever holds a [`Watch`] can add to it; when the last one is dropped, the
//! request is over and its spans go to the outbox, however it ended.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::{Clock, random};
use cxmpute_wire::Code;
use parking_lot::Mutex;

use super::context::{SpanId, TraceId};
use super::export::Outbox;
use super::span::{Fields, Key, Kind, Phase, Span, Value};

/// Spans of one request; twelve attempts have about forty.
const SPANS: usize = 64;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// A request that is traced, or one that is not: then every method is one comparison.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Record>>);

/// A span that has not ended; dropping it ends it.
#[derive(Default)]
pub struct Open(Option<Box<Opened>>);

struct Opened {
    record: Arc<Record>,
    id: SpanId,
    parent: SpanId,
    phase: Phase,
    began: Duration,
    fields: Fields,
    failed: bool,
}

/// What belongs to the request as a whole.
pub(super) struct Beginning {
    pub name: Cow<'static, str>,
    pub trace: TraceId,
    pub parent: Option<SpanId>,
    /// On the clock's monotonic time.
    pub began: Duration,
}

struct Record {
    beginning: Beginning,
    root: SpanId,
    clock: Clock,
    /// The wall time at which the monotonic clock stood at zero, in nanoseconds since 1970.
    epoch: u64,
    outbox: Outbox,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fields: Fields,
    failed: bool,
    ended: Vec<Span>,
    left_out: u64,
}

impl Watch {
    pub(super) fn begin(beginning: Beginning, clock: &Clock, outbox: &Outbox) -> Self {
        let now = u64::try_from(clock.now().0).unwrap_or(0).saturating_mul(NANOS_PER_MILLI);
        Self(Some(Arc::new(Record {
            beginning,
            root: SpanId(random::quick()),
            epoch: now.saturating_sub(nanos(clock.mono())),
            clock: clock.clone(),
            outbox: outbox.clone(),
            state: Mutex::default(),
        })))
    }

    /// Adds to what the request's own span says. The closure runs only for a traced request.
    pub fn describe(&self, add: impl FnOnce(&mut Fields)) {
        if let Some(record) = &self.0 {
            add(&mut record.state.lock().fields);
        }
    }

    /// The request did not succeed, for this reason.
    pub fn fail(&self, code: Code) {
        if let Some(record) = &self.0 {
            let mut state = record.state.lock();
            state.fields.set(Key::ErrorType, code.as_str());
            state.failed |= is_ours(code);
        }
    }

    /// Begins a phase of the request.
    #[must_use]
    pub fn open(&self, phase: Phase) -> Open {
        let Some(record) = &self.0 else { return Open(None) };
        Open(Some(Box::new(Opened {
            id: SpanId(random::quick()),
            parent: record.root,
            phase,
            began: record.clock.mono(),
            fields: Fields::default(),
            failed: false,
            record: record.clone(),
        })))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(record) => write!(f, "Watch({})", record.beginning.trace),
            None => f.write_str("Watch(off)"),
        }
    }
}

impl Open {
    /// Adds to what the span says. The closure runs only for a traced request.
    pub fn describe(&mut self, add: impl FnOnce(&mut Fields)) {
        if let Some(opened) = &mut self.0 {
            add(&mut opened.fields);
        }
    }

    /// It did not succeed, for this reason.
    pub fn fail(&mut self, code: Code) {
        if let Some(opened) = &mut self.0 {
            opened.fields.set(Key::ErrorType, code.as_str());
            opened.failed |= is_ours(code);
        }
    }

    /// Notes a phase below this one that began with it and ends now.
    pub fn mark(&self, phase: Phase) {
        if let Some(opened) = &self.0 {
            let id = SpanId(random::quick());
            let record = &opened.record;
            let span = record.span(id, opened.id, phase, opened.began, Fields::default(), false);
            record.keep(span);
        }
    }

    /// Ends it.
    pub fn end(&mut self) {
        if let Some(opened) = self.0.take() {
            let Opened { record, id, parent, phase, began, fields, failed } = *opened;
            let span = record.span(id, parent, phase, began, fields, failed);
            record.keep(span);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

impl Record {
    fn span(
        &self,
        id: SpanId,
        parent: SpanId,
        phase: Phase,
        began: Duration,
        fields: Fields,
        failed: bool,
    ) -> Span {
        Span {
            trace: self.beginning.trace,
            id,
            parent: Some(parent),
            name: Cow::Borrowed(phase.name()),
            kind: if phase == Phase::Attempt { Kind::Client } else { Kind::Internal },
            began: self.wall(began),
            ended: self.wall(self.clock.mono()),
            fields,
            failed,
        }
    }

    fn wall(&self, mono: Duration) -> u64 {
        self.epoch.saturating_add(nanos(mono))
    }

    fn keep(&self, span: Span) {
        let mut state = self.state.lock();
        if state.ended.len() < SPANS {
            state.ended.push(span);
        } else {
            state.left_out += 1;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (began, ended) = (self.wall(self.beginning.began), self.wall(self.clock.mono()));
        let State { mut fields, failed, ended: mut spans, left_out } = std::mem::take(self.state.get_mut());
        if left_out > 0 {
            fields.set(Key::SpansLeftOut, left_out);
        }
        spans.push(Span {
            trace: self.beginning.trace,
            id: self.root,
            parent: self.beginning.parent,
            name: std::mem::take(&mut self.beginning.name),
            kind: Kind::Server,
            began,
            ended,
            fields,
            failed,
        });
        self.outbox.put(spans);
    }
}

/// What a client got wrong is no failure of the span of its server, as the conventions for HTTP have it.
fn is_ours(code: Code) -> bool {
    code.status() >= 500
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Reasons of several outputs, in their order.
pub fn reasons<'a>(all: impl Iterator<Item = &'a str>) -> Value {
    Value::Texts(all.map(|reason| Cow::Owned(reason.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(clock: &Clock) -> (Watch, tokio::sync::mpsc::Receiver<Vec<Span>>) {
        let (outbox, received) = Outbox::new(1);
        let beginning = Beginning {
            name: "GET /models".into(),
            trace: TraceId([3; 16]),
            parent: Some(SpanId([4; 8])),
            began: clock.mono(),
        };
        (Watch::begin(beginning, clock, &outbox), received)
    }

    #[test]
    fn a_record_leaves_when_its_last_holder_is_gone() {
        let clock = Clock::mock();
        let second = Duration::from_secs(1);
        let (watch, mut received) = watch(&clock);
        let other = watch.clone();
        let mut attempt = watch.open(Phase::Attempt);
        clock.as_mock().unwrap().advance(second);
        attempt.mark(Phase::FirstToken);
        clock.as_mock().unwrap().advance(second);
        attempt.fail(Code::ProviderLost);
        drop(watch);
        drop(attempt);
        assert!(received.try_recv().is_err(), "somebody still holds it");
        other.fail(Code::InvalidParameter);
        drop(other);
        let spans = received.try_recv().unwrap();
        let seen: Vec<_> =
            spans.iter().map(|span| (&*span.name, span.ended - span.began, span.failed)).collect();
        let nanos = 1_000_000_000;
        assert_eq!(
            seen,
            [("first_token", nanos, false), ("attempt", 2 * nanos, true), ("GET /models", 2 * nanos, false)]
        );
        let [first, attempt, root] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(first.parent, Some(attempt.id));
        assert_eq!(attempt.parent, Some(root.id));
        assert_eq!(root.parent, Some(SpanId([4; 8])));
        // 2026-01-01T00:00:00Z, where the mock clock begins.
        assert_eq!(root.began, 1_767_225_600_000_000_000);
    }

    #[test]
    fn a_record_is_bounded_and_says_so() {
        let clock = Clock::mock();
        let (watch, mut received) = watch(&clock);
        for _ in 0..SPANS + 3 {
            drop(watch.open(Phase::Queue));
        }
        drop(watch);
        let spans = received.try_recv().unwrap();
        assert_eq!(spans.len(), SPANS + 1);
        let left_out = (Key::SpansLeftOut, Value::Number(3));
        assert!(spans[SPANS].fields.iter().any(|field| *field == left_out));
    }

    #[test]
    fn nothing_is_made_for_a_request_that_is_not_traced() {
        let watch = Watch::default();
        watch.describe(|_| panic!("described"));
        watch.fail(Code::InternalError);
        let mut open = watch.open(Phase::Settle);
        open.describe(|_| panic!("described"));
        open.fail(Code::InternalError);
        open.mark(Phase::FirstToken);
        assert!(open.0.is_none());
    }
}
