//! Figures: a load against one peer, and what the peer spent on it meanwhile.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cost::{self, Recording};
use crate::load::{Load, Script};
use crate::report::Line;
use crate::stage::{Peer, Plan, Stage};

/// Time for connections and caches to settle before a figure is taken.
const WARM_UP: Duration = Duration::from_secs(1);

/// A load to put on a peer.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// What is asked.
    pub script: Script,
    /// Whether as a stream.
    pub streamed: bool,
    /// Keep-alive connections.
    pub connections: usize,
    /// Time over which they begin: answers that take equally long stay spread, so that they do not queue behind each
    /// other in step.
    pub spread: Duration,
}

/// One load against one peer.
#[derive(Clone, Debug)]
pub struct Figure {
    peer: &'static str,
    connections: usize,
    wall: Duration,
    cpu: Duration,
    /// CPU time of the process behind the peer.
    behind: Option<Duration>,
    answers: u64,
    events: u64,
    /// Times to the first byte of the body, microseconds, in order.
    first_us: Vec<u32>,
    /// Memory of the peer under the load, in bytes.
    pub resident: u64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
impl Figure {
    /// CPU time per answer, microseconds.
    pub fn us_per_answer(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.answers as f64
    }

    /// CPU time per event of streamed answers, microseconds.
    pub fn us_per_event(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.events.max(1) as f64
    }

    /// CPU time per event of the process behind the peer, microseconds.
    pub fn us_per_event_behind(&self) -> f64 {
        self.behind.unwrap_or_default().as_secs_f64() * 1e6 / self.events.max(1) as f64
    }

    /// Answers per second as they came.
    pub fn answers_per_second(&self) -> f64 {
        self.answers as f64 / self.wall.as_secs_f64()
    }

    /// Percent of one core that the peer used.
    pub fn busy_percent(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64() * 100.0
    }

    /// The time to the first byte of the body that this share of the answers kept, milliseconds.
    pub fn first_ms(&self, share: f64) -> f64 {
        f64::from(quantile(&self.first_us, share)) / 1000.0
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "peer": self.peer, "connections": self.connections, "seconds": self.wall.as_secs_f64(),
            "cpu_seconds": self.cpu.as_secs_f64(), "answers": self.answers, "events": self.events,
            "cpu_us_per_answer": self.us_per_answer(),
            "cpu_us_per_event": (self.events > 0).then(|| self.us_per_event()),
            "answers_per_second": self.answers_per_second(), "core_busy_percent": self.busy_percent(),
            "first_byte_ms": {"p50": self.first_ms(0.5), "p99": self.first_ms(0.99)},
            "resident_bytes": self.resident,
        })
    }
}

/// The value that this share of sorted values does not exceed; 0 where there are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index below the length"
)]
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    let at = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(at).copied().unwrap_or(0)
}

/// The same figure of nginx, where it runs, and of the gateway.
#[derive(Clone, Debug)]
pub struct Pair<T> {
    /// The yardstick.
    pub nginx: Option<T>,
    /// The gateway.
    pub ours: T,
}

impl<T> Pair<T> {
    /// A line of the table with one value of each.
    pub fn line(
        &self,
        figure: impl Into<String>,
        unit: &'static str,
        budget: &'static str,
        value: impl Fn(&T) -> f64,
    ) -> Line {
        Line::beside(figure, unit, self.nginx.as_ref().map(&value), value(&self.ours), budget)
    }

    /// For programs.
    pub fn to_json(&self, each: impl Fn(&T) -> Value) -> Value {
        json!({"nginx": self.nginx.as_ref().map(&each), "cxmpute": each(&self.ours)})
    }
}

/// Puts the same pressure on nginx and on the gateway, one after the other.
///
/// # Errors
/// A peer gave anything but whole answers.
pub async fn pair(plan: &Plan, stage: &mut Stage, pressure: &Pressure) -> Result<Pair<Figure>> {
    let nginx = match stage.nginx() {
        Some(peer) => Some(figure(plan, stage, &peer, pressure).await?),
        None => None,
    };
    let gateway = stage.gateway()?;
    Ok(Pair { nginx, ours: figure(plan, stage, &gateway, pressure).await? })
}

/// Takes one figure: the load runs on while the window is measured, so that its beginning and end do not count.
///
/// # Errors
/// The peer gave anything but whole answers.
pub async fn figure(plan: &Plan, stage: &mut Stage, peer: &Peer, pressure: &Pressure) -> Result<Figure> {
    let Pressure { script, streamed, connections, spread } = *pressure;
    let load = Load::start(&stage.question(peer, script, streamed), connections, spread);
    tokio::time::sleep(WARM_UP + spread).await;
    let recording = recorded(plan, peer)?;
    let behind = || peer.behind.map(cost::cpu).transpose();
    let (began, cpu, cpu_behind) = (Instant::now(), cost::cpu(peer.pid)?, behind()?);
    let (answers, events) =
        (load.tally.answers.load(Ordering::Relaxed), load.tally.events.load(Ordering::Relaxed));
    load.tally.first_us.lock().clear();
    tokio::time::sleep(plan.window).await;
    let (wall, cpu) = (began.elapsed(), cost::cpu(peer.pid)? - cpu);
    let mut figure = Figure {
        peer: peer.name,
        connections,
        wall,
        cpu,
        behind: behind()?.zip(cpu_behind).map(|(after, before)| after - before),
        answers: load.tally.answers.load(Ordering::Relaxed) - answers,
        events: load.tally.events.load(Ordering::Relaxed) - events,
        first_us: std::mem::take(&mut *load.tally.first_us.lock()),
        resident: cost::memory(peer.pid)?.resident,
    };
    figure.first_us.sort_unstable();
    recording.map(Recording::end).transpose()?;
    let count =
        load.finish().await.with_context(|| format!("{} with {connections} connections", peer.name))?;
    ensure!(figure.answers > 0, "{} gave no answer within the window", peer.name);
    stage.answers += if peer.name == Peer::GATEWAY { count } else { 0 };
    Ok(figure)
}

/// `perf` on the gateway, where the run is to be profiled.
pub fn recorded(plan: &Plan, peer: &Peer) -> Result<Option<Recording>> {
    let folder = plan.profile.as_deref().filter(|_| peer.name == Peer::GATEWAY);
    folder.map(|folder: &Path| Recording::start(peer.pid, folder)).transpose()
}
