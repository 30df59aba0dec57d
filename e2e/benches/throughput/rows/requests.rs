//! Answers in one piece: what one costs, and how many a core can give.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::load::Script;
use crate::measure::{Figure, Pressure, pair};
use crate::report::{Line, Taken};
use crate::stage::{Plan, Setup, Stage};

/// Content events of an answer.
const EVENTS: u32 = 8;

/// The load of these rows.
pub const fn pressure(connections: usize) -> Pressure {
    let script = Script::of(EVENTS);
    Pressure { script, streamed: false, connections, spread: Duration::ZERO }
}

/// Takes the row.
pub async fn take(plan: &Plan, connections: usize) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup::default()).await?;
    let pair = pair(plan, &mut stage, &pressure(connections)).await?;
    let budget = if connections > 64 { "≤ 2.0 ×" } else { "≤ 2.5 ×" };
    let named = |what: &str| format!("{what}, {connections} connections");
    let possible = |figure: &Figure| 1e6 / figure.us_per_answer();
    let resident = pair.ours.resident as f64 / 1024.0 / 1024.0;
    Ok(Taken {
        lines: vec![
            pair.line(named("CPU per non-streamed request"), " µs", budget, Figure::us_per_answer),
            pair.line(named("requests/s one core can do"), "", "≥ 0.45 ×", possible),
            pair.line(named("requests/s as measured"), "", "–", Figure::answers_per_second),
            pair.line("… while its core was busy for", " %", "–", Figure::busy_percent),
            Line::alone("… and its memory was", " MiB", resident, "–"),
        ],
        figures: json!({"whole": pair.to_json(Figure::to_json)}),
        books: Some(stage.close().await?),
    })
}
