//! How long the plan of a large fleet takes. No gateway and no request are in it, so it has no books.

use std::time::{Duration, Instant};

use anyhow::Result;
use cxmpute_market::assign::sample::Sample;
use cxmpute_market::assign::{Board, plan};
use cxmpute_wire::Timestamp;
use serde_json::json;

use crate::report::{Line, Taken};

/// The fleet of NR22.
const PROVISIONS: u32 = 10_000;
const MODELS: u32 = 500;
/// An hour later, when what runs has had its time.
const LATER: Timestamp = Timestamp(3_600_000);
/// Provisions that are planned one by one.
const SINGLE: usize = 1_000;
/// The median of so many.
const ROUNDS: usize = 5;

/// Takes the row.
pub fn take() -> Result<Taken> {
    let mut sample = Sample::new(PROVISIONS, MODELS);
    let first = |sample: &Sample| plan(&sample.needs, &sample.offers, &sample.demand, true, Timestamp(0));
    let fresh = median(|| drop(first(&sample)));
    let plans = first(&sample);
    let services: usize = plans.iter().map(|plan| plan.services.len()).sum();
    sample.run(&plans);
    let again = median(|| drop(plan(&sample.needs, &sample.offers, &sample.demand, true, LATER)));
    let mut board = Board::new(&sample.needs, true);
    board.ask(&sample.demand);
    for offer in &sample.offers {
        board.put(offer);
    }
    let single = median(|| {
        for offer in sample.offers.iter().take(SINGLE) {
            drop(board.place(offer, LATER, true));
        }
    });
    let millis = |span: Duration| span.as_secs_f64() * 1e3;
    let one = single.as_secs_f64() * 1e6 / SINGLE as f64;
    let of = |what: &str| format!("plan of {PROVISIONS} provisions × {MODELS} models, {what}");
    Ok(Taken {
        lines: vec![
            Line::alone(of("from nothing"), " ms", millis(fresh), "≤ 1000 ms"),
            Line::alone(of("while all of it runs"), " ms", millis(again), "≤ 1000 ms"),
            Line::alone("… one provision alone", " µs", one, "–"),
        ],
        figures: json!({
            "provisions": PROVISIONS, "models": MODELS, "services": services,
            "fresh_ms": millis(fresh), "again_ms": millis(again), "one_us": one,
        }),
        books: None,
    })
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut spans = [Duration::ZERO; ROUNDS];
    for span in &mut spans {
        let began = Instant::now();
        work();
        *span = began.elapsed();
    }
    spans.sort_unstable();
    spans[ROUNDS / 2]
}
