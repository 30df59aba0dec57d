//! Streamed answers: what an event costs, and how much later the first one comes.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::load::Script;
use crate::measure::{Figure, Pressure, figure, pair};
use crate::report::Taken;
use crate::stage::{Plan, Setup, Stage};

/// Streams at once.
const STREAMS: usize = 64;
/// Content events of a stream without delay.
const EVENTS: u32 = 200;
/// Content events of a stream at an engine's pace, and that pace (50 tokens per second).
const PACED: u32 = 20;
const PACE_MS: u32 = 20;

/// The load that keeps a relay as busy as it can be.
pub const EVENTS_PRESSURE: Pressure =
    Pressure { script: Script::of(EVENTS), streamed: true, connections: STREAMS, spread: Duration::ZERO };

/// At the pace of an engine the time to the first token is not that of a queue.
const PACED_PRESSURE: Pressure = Pressure {
    script: Script { pace_ms: PACE_MS, ..Script::of(PACED) },
    streamed: true,
    connections: STREAMS,
    spread: Duration::from_millis(PACED as u64 * PACE_MS as u64),
};

/// CPU per relayed event.
pub async fn events(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup::default()).await?;
    let pair = pair(plan, &mut stage, &EVENTS_PRESSURE).await?;
    let name = format!("CPU per relayed stream event, {STREAMS} streams, no delay");
    Ok(Taken {
        lines: vec![pair.line(name, " µs", "≤ 1.25 ×", Figure::us_per_event)],
        figures: json!({"events": pair.to_json(Figure::to_json)}),
        books: Some(stage.close().await?),
    })
}

/// Added time to the first token.
pub async fn first_token(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup::default()).await?;
    let direct = stage.direct();
    let direct = figure(plan, &mut stage, &direct, &PACED_PRESSURE).await?;
    let pair = pair(plan, &mut stage, &PACED_PRESSURE).await?;
    let added = |figure: &Figure| figure.first_ms(0.5) - direct.first_ms(0.5);
    let late = |figure: &Figure| figure.first_ms(0.99);
    Ok(Taken {
        lines: vec![
            pair.line(
                format!("added time to first token, {STREAMS} streams, median"),
                " ms",
                "≤ 1.5 ×",
                added,
            ),
            pair.line(format!("time to first token, {STREAMS} streams, p99"), " ms", "–", late),
        ],
        figures: json!({"first_token": pair.to_json(Figure::to_json), "direct": direct.to_json()}),
        books: Some(stage.close().await?),
    })
}
