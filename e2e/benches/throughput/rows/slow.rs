//! A thousand streams that trickle: what each takes of memory, and whether anything is held back on the way.
//!
//! Readers read at once. Each event's way is timed from just before the sender hands it over until the reader has it,
//! and the events that come in one read are counted: with nothing in between that collects, each comes alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cxmpute_e2e::ground::until;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cost::{self, Memory};
use crate::emissions::Emissions;
use crate::load::{Connection, Question, Script, WORD_END};
use crate::measure::{Pair, quantile, recorded};
use crate::node;
use crate::report::Taken;
use crate::stage::{Peer, Plan, Setup, Stage};

/// The streams are opened one after the other over this time, so that their events do not come in step either.
const RAMP: Duration = Duration::from_secs(5);
/// Until all of them have begun.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);
/// Between the last beginning and the first figure.
const SETTLE: Duration = Duration::from_secs(1);
/// Shortest time that is measured, and how often memory is looked at meanwhile.
const WINDOW: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most tokens that the model gives.
const MOST_EVENTS: u32 = 768;
/// An event that is on its way for longer than this is counted as late: a fraction of any pace at which a person reads.
const LATE_AFTER: Duration = Duration::from_millis(50);
/// Nodes beside those that the streams need, so that the last ones have a choice.
const SPARE_NODES: usize = 2;

/// What one peer showed.
struct Trickle {
    streams: usize,
    /// Memory before the streams, and the most with all of them.
    before: Memory,
    open: Memory,
    cpu: Duration,
    wall: Duration,
    heard: Heard,
}

/// What the readers saw in the window.
#[derive(Debug, Default)]
struct Heard {
    /// Each event's time on the way, microseconds.
    delays_us: Vec<u32>,
    /// Most events in one read.
    most_in_a_read: u64,
    /// Of each stream: events that came in time, and all.
    in_time: Vec<(u32, u32)>,
}

/// What the readers share.
struct Ear {
    emissions: Arc<Emissions>,
    /// Number of the first stream among the emissions.
    first: usize,
    begun: AtomicUsize,
    ended: AtomicUsize,
    listening: AtomicBool,
    heard: Mutex<Heard>,
}

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let streams = plan.slow_streams;
    let nodes = streams.div_ceil(node::SLOTS as usize) + SPARE_NODES;
    let mut stage = Stage::build(plan, Setup { nodes, ..Setup::default() }).await?;
    let key = stage.key_of_another()?;
    let nginx = match stage.nginx() {
        Some(peer) => Some(trickle(plan, &stage, &peer, &key).await?),
        None => None,
    };
    let gateway = stage.gateway()?;
    let pair = Pair { nginx, ours: trickle(plan, &stage, &gateway, &key).await? };
    stage.hung_up = streams;
    let per_second = 1000.0 / f64::from(plan.slow_pace_ms);
    let kib = |part: fn(&Memory) -> u64| move |peer: &Trickle| peer.kib_per_stream(part);
    let row = |what: &str| format!("… {what}");
    Ok(Taken {
        lines: vec![
            pair.line(
                format!("memory per slow stream, {streams} at {per_second} events/s, resident"),
                " KiB",
                "≤ 64 KiB",
                kib(|memory| memory.resident),
            ),
            pair.line(row("proportional (PSS)"), " KiB", "–", kib(|memory| memory.proportional)),
            pair.line(row("anonymous"), " KiB", "–", kib(|memory| memory.anonymous)),
            pair.line(row("CPU per event"), " µs", "–", Trickle::us_per_event),
            pair.line("event on its way from node to reader, p50", " ms", "–", |peer| peer.delay_ms(0.5)),
            pair.line(row("p99"), " ms", "–", |peer| peer.delay_ms(0.99)),
            pair.line(row("longest"), " ms", "–", |peer| peer.delay_ms(1.0)),
            pair.line(
                format!("events there within {} ms, worst of {streams} streams", LATE_AFTER.as_millis()),
                " %",
                "–",
                Trickle::worst_in_time_percent,
            ),
            pair.line("most events in one read", "", "1", |peer| peer.heard.most_in_a_read as f64),
        ],
        figures: json!({"slow_streams": pair.to_json(Trickle::to_json), "pace_ms": plan.slow_pace_ms}),
        books: Some(stage.close().await?),
    })
}

async fn trickle(plan: &Plan, stage: &Stage, peer: &Peer, key: &str) -> Result<Trickle> {
    let streams = plan.slow_streams;
    let before = cost::memory(peer.pid)?;
    let ear = Arc::new(Ear {
        first: stage.emissions.begin(streams),
        emissions: stage.emissions.clone(),
        begun: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        listening: AtomicBool::new(false),
        heard: Mutex::new(Heard { in_time: vec![(0, 0); streams], ..Heard::default() }),
    });
    let mut readers = JoinSet::new();
    for number in 0..streams {
        let script = Script {
            pace_ms: plan.slow_pace_ms,
            stream: Some(ear.first + number),
            ..Script::of(MOST_EVENTS)
        };
        let question = Question::chat(peer, key, script, true);
        let ear = ear.clone();
        let wait = RAMP.mul_f64(number as f64 / streams as f64);
        readers.spawn(async move {
            tokio::time::sleep(wait).await;
            ear.read(&question, number).await.with_context(|| format!("stream {number}"))
        });
    }
    until("every slow stream to begin", RAMP + BEGUN_WITHIN, async || {
        if let Some(ended) = readers.try_join_next() {
            ended??;
        }
        Ok((ear.begun.load(Ordering::Relaxed) == streams).then_some(()))
    })
    .await?;
    tokio::time::sleep(SETTLE).await;

    let recording = recorded(plan, peer)?;
    let (began, cpu) = (Instant::now(), cost::cpu(peer.pid)?);
    ear.listening.store(true, Ordering::Relaxed);
    let mut open = cost::memory(peer.pid)?;
    while began.elapsed() < plan.window.max(WINDOW) {
        tokio::time::sleep(LOOK_EVERY).await;
        open = open.or_more(cost::memory(peer.pid)?);
    }
    ear.listening.store(false, Ordering::Relaxed);
    let (wall, cpu) = (began.elapsed(), cost::cpu(peer.pid)? - cpu);
    recording.map(cost::Recording::end).transpose()?;
    ensure!(
        ear.ended.load(Ordering::Relaxed) == 0,
        "{}: streams ended before the window did; choose a longer --slow-pace-ms",
        peer.name
    );
    // Hangs up on all of them.
    readers.shutdown().await;
    let mut heard = std::mem::take(&mut *ear.heard.lock());
    heard.delays_us.sort_unstable();
    ensure!(!heard.delays_us.is_empty(), "{} relayed no event within the window", peer.name);
    Ok(Trickle { streams, before, open, cpu, wall, heard })
}

impl Ear {
    async fn read(&self, question: &Question, number: usize) -> Result<()> {
        let mut connection = Connection::open(question).await?;
        let (mut seen, mut lost) = (0, None);
        let ended = connection
            .ask(question, WORD_END, |new| {
                let now = Instant::now();
                if seen == 0 && new > 0 {
                    self.begun.fetch_add(1, Ordering::Relaxed);
                }
                for event in seen..seen + new as usize {
                    match self.emissions.age(self.first + number, event, now) {
                        Some(age) => self.note(number, age, new),
                        None => lost = Some(event),
                    }
                }
                seen += new as usize;
            })
            .await;
        self.ended.fetch_add(1, Ordering::Relaxed);
        ensure!(lost.is_none(), "event {lost:?} arrived and was never sent");
        ended.map(drop)
    }

    fn note(&self, number: usize, age: Duration, in_this_read: u64) {
        if !self.listening.load(Ordering::Relaxed) {
            return;
        }
        let mut heard = self.heard.lock();
        heard.delays_us.push(u32::try_from(age.as_micros()).unwrap_or(u32::MAX));
        heard.most_in_a_read = heard.most_in_a_read.max(in_this_read);
        let (in_time, all) = &mut heard.in_time[number];
        *in_time += u32::from(age <= LATE_AFTER);
        *all += 1;
    }
}

impl Trickle {
    fn kib_per_stream(&self, part: impl Fn(&Memory) -> u64) -> f64 {
        part(&self.open).saturating_sub(part(&self.before)) as f64 / 1024.0 / self.streams as f64
    }

    fn us_per_event(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.heard.delays_us.len() as f64
    }

    fn delay_ms(&self, share: f64) -> f64 {
        f64::from(quantile(&self.heard.delays_us, share)) / 1000.0
    }

    /// A stream that heard nothing at all has nothing in time.
    fn worst_in_time_percent(&self) -> f64 {
        let share = |&(in_time, all): &(u32, u32)| f64::from(in_time) / f64::from(all.max(1)) * 100.0;
        self.heard.in_time.iter().map(share).fold(100.0, f64::min)
    }

    fn to_json(&self) -> Value {
        json!({
            "streams": self.streams, "before": self.before.to_json(), "open": self.open.to_json(),
            "kib_per_stream": self.kib_per_stream(|memory| memory.resident),
            "cpu_us_per_event": self.us_per_event(), "seconds": self.wall.as_secs_f64(),
            "events": self.heard.delays_us.len(),
            "delay_ms": {"p50": self.delay_ms(0.5), "p99": self.delay_ms(0.99), "max": self.delay_ms(1.0)},
            "worst_in_time_percent": self.worst_in_time_percent(), "most_in_a_read": self.heard.most_in_a_read,
        })
    }
}
