//! What an event costs the provider program itself, beside the gateway in front of it: the real program, with the plain
//! upstream as the engine that its owner runs.

use anyhow::{Context, Result};
use cxmpute_e2e::house::CHAT_MODEL;
use serde_json::json;

use super::streams::EVENTS_PRESSURE;
use crate::measure::figure;
use crate::node::SLOTS;
use crate::report::{Line, Taken};
use crate::stage::{Plan, Setup, Stage};

/// Takes the row.
pub async fn take(plan: &Plan) -> Result<Taken> {
    let mut stage = Stage::build(plan, Setup { nodes: 0, ..Setup::default() }).await?;
    let configuration = stage.house.folder.join("node.toml");
    std::fs::write(
        &configuration,
        format!(
            "[services]\nallow = [\"llm:{CHAT_MODEL}\"]\n[[external]]\nservice = \"llm:{CHAT_MODEL}\"\n\
             base_url = \"http://{}/v1\"\nslots = {SLOTS}\n",
            stage.direct().address
        ),
    )?;
    let owner = stage.house.create_user("owner@example.com")?;
    let grant = stage.house.enrol_grant(&owner)?;
    let configuration = configuration.display().to_string();
    let node = stage.house.start_node(
        "node",
        Some(&grant),
        stage.house.address,
        &[("CXMPUTE_CONFIG_PATH", &configuration)],
    )?;
    stage.house.routable(CHAT_MODEL, 1).await.with_context(|| node.logged())?;
    let mut gateway = stage.gateway()?;
    gateway.behind = Some(node.pid());
    let figure = figure(plan, &mut stage, &gateway, &EVENTS_PRESSURE).await?;
    let name = "a real node: CPU per relayed stream event";
    Ok(Taken {
        lines: vec![
            Line::alone(format!("{name}, gateway"), " µs", figure.us_per_event(), "–"),
            Line::alone(format!("{name}, node"), " µs", figure.us_per_event_behind(), "≤ gateway's"),
        ],
        figures: json!({"events": figure.to_json(), "node_cpu_us_per_event": figure.us_per_event_behind()}),
        books: Some(stage.close().await?),
    })
}
