//! What the exact count of tokens costs: the same load on a gateway with the model's tokenizer, and on one that has none
//! and prices per character.

use anyhow::Result;
use serde_json::json;

use super::requests;
use super::streams::EVENTS_PRESSURE;
use crate::books::Books;
use crate::measure::{Figure, figure};
use crate::report::{Line, Taken};
use crate::stage::{Plan, Setup, Stage};

/// Connections of the answers in one piece.
const CONNECTIONS: usize = 64;

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let (on_whole, on_events, on_books) = with(plan, true).await?;
    let (off_whole, off_events, off_books) = with(plan, false).await?;
    let whole = |what: &str| format!("{what}: CPU per non-streamed request, {CONNECTIONS} connections");
    let event = |what: &str| format!("{what}: CPU per relayed stream event");
    let (on, off) = ("tokens counted", "priced per character");
    Ok(Taken {
        lines: vec![
            Line::alone(whole(on), " µs", on_whole.us_per_answer(), "–"),
            Line::alone(whole(off), " µs", off_whole.us_per_answer(), "–"),
            Line::alone(event(on), " µs", on_events.us_per_event(), "–"),
            Line::alone(event(off), " µs", off_events.us_per_event(), "–"),
        ],
        figures: json!({
            "counted": {"whole": on_whole.to_json(), "events": on_events.to_json()},
            "not_counted": {"whole": off_whole.to_json(), "events": off_events.to_json()},
        }),
        books: Some(on_books.and(off_books)),
    })
}

async fn with(plan: &Plan, counting: bool) -> Result<(Figure, Figure, Books)> {
    let mut stage = Stage::build(plan, Setup { counting, ..Setup::default() }).await?;
    let gateway = stage.gateway()?;
    let whole = figure(plan, &mut stage, &gateway, &requests::pressure(CONNECTIONS)).await?;
    let events = figure(plan, &mut stage, &gateway, &EVENTS_PRESSURE).await?;
    Ok((whole, events, stage.close().await?))
}
