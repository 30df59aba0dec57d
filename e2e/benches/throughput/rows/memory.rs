//! Memory of a gateway that has done nothing yet, and what each stream adds that is held open in silence.

use anyhow::Result;
use serde_json::json;

use crate::load::{Question, Script, hold};
use crate::report::{Line, Taken};
use crate::stage::{Plan, Setup, Stage};
use crate::{cost, node};

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup::default()).await?;
    let gateway = stage.gateway()?;
    let idle = cost::memory(gateway.pid)?.resident;
    stage.staff(plan.open_streams.div_ceil(node::SLOTS as usize) + 1).await?;
    let before = cost::memory(gateway.pid)?.resident;
    let script = Script { hold: true, ..Script::of(1) };
    let question = Question::chat(&gateway, &stage.key_of_another()?, script, true);
    let held = hold(&question, plan.open_streams).await?;
    let open = cost::memory(gateway.pid)?.resident;
    stage.hung_up = held.len();
    drop(held);
    let per_stream = open.saturating_sub(before) as f64 / 1024.0 / stage.hung_up as f64;
    Ok(Taken {
        lines: vec![
            Line::alone("memory, idle", " MiB", idle as f64 / 1024.0 / 1024.0, "≤ 25 MiB"),
            Line::alone(
                format!("memory per silent open stream ({} open)", stage.hung_up),
                " KiB",
                per_stream,
                "≤ 64 KiB",
            ),
        ],
        figures: json!({
            "idle_bytes": idle, "staffed_bytes": before, "with_streams_bytes": open, "streams": stage.hung_up,
            "kib_per_stream": per_stream,
        }),
        books: Some(stage.close().await?),
    })
}
