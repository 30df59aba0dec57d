//! How long a gateway takes from its start to its first paid answer.

use anyhow::Result;
use serde_json::json;

use crate::report::{Line, Taken};
use crate::stage::{Plan, Setup, Stage};

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup::default()).await?;
    let books = stage.close().await?;
    let (ready, answered) = stage.restart().await?;
    let millis = |span: std::time::Duration| span.as_secs_f64() * 1e3;
    Ok(Taken {
        lines: vec![
            Line::alone("start to ready", " ms", millis(ready), "≤ 100 ms"),
            Line::alone("start to first paid answer (a node dials in first)", " ms", millis(answered), "–"),
        ],
        figures: json!({"ready_ms": millis(ready), "first_paid_answer_ms": millis(answered)}),
        books: Some(books),
    })
}
