//! The CPU figures with TLS on: between load and peer on both sides, and for the gateway also to its nodes.

use anyhow::Result;
use serde_json::json;

use super::requests;
use super::streams::EVENTS_PRESSURE;
use crate::measure::{Figure, pair};
use crate::report::Taken;
use crate::stage::{Plan, Setup, Stage};

/// Connections of the answers in one piece.
const CONNECTIONS: usize = 64;

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup { tls: true, ..Setup::default() }).await?;
    let whole = pair(plan, &mut stage, &requests::pressure(CONNECTIONS)).await?;
    let events = pair(plan, &mut stage, &EVENTS_PRESSURE).await?;
    let name = format!("TLS on: CPU per non-streamed request, {CONNECTIONS} connections");
    Ok(Taken {
        lines: vec![
            whole.line(name, " µs", "–", Figure::us_per_answer),
            events.line("TLS on: CPU per relayed stream event", " µs", "–", Figure::us_per_event),
        ],
        figures: json!({"whole": whole.to_json(Figure::to_json), "events": events.to_json(Figure::to_json)}),
        books: Some(stage.close().await?),
    })
}
