//! What the commands show to people, and the events of a running node.

use std::time::Duration;

use cxmpute_wire::ServiceId;
use cxmpute_wire::control::{ObservedService, ServiceState};
use serde_json::json;

use crate::agent::NodeView;
use crate::local::StatusAnswer;
use crate::output::{Output, ProgressLine};

/// The status for people.
pub fn describe(answer: &StatusAnswer) -> String {
    let server = answer.server.as_ref().map_or("no word from the server yet", |status| status.state.as_str());
    let mut text = format!(
        "Node       {} (pid {})\nServer     {server}\nTunnel     {} (epoch {}, plan {})\n",
        answer.provision_id,
        answer.pid,
        if answer.connected { "up" } else { "down" },
        answer.epoch,
        answer.generation,
    );
    match &answer.reason {
        Some(reason) => text.push_str(&format!("Earning    no ({}): {}\n", reason.code, reason.message)),
        None => text.push_str("Earning    yes, as work comes\n"),
    }
    for (at, service) in answer.services.iter().enumerate() {
        text.push_str(if at == 0 { "Services   " } else { "           " });
        text.push_str(&service_line(service));
        text.push('\n');
    }
    if answer.services.is_empty() {
        text.push_str("Services   -\n");
    }
    text.trim_end().to_owned()
}

/// One service for people.
pub fn service_line(service: &ObservedService) -> String {
    let state = serde_json::to_value(service.state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    let engine = match (service.engine.as_str(), service.pid) {
        ("", _) => "-".to_owned(),
        (engine, Some(pid)) => format!("{engine}, pid {pid}"),
        (engine, None) => engine.to_owned(),
    };
    let load = format!("{}/{} busy", service.in_flight, service.slots);
    let line = format!("{:<28} {state:<9} {load:<11} {engine}", service.service_id.as_str());
    let progress = service.progress.as_ref().map(ToString::to_string);
    [Some(line), progress, service.detail.clone()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n           ")
}

/// A terminal sees the progress of downloads this often.
const LOOK: Duration = Duration::from_millis(500);

/// All downloads on one line; empty when there is none.
fn progress_line(services: &[ObservedService]) -> String {
    let coming = services.iter().filter_map(|service| {
        let progress = service.progress.as_ref()?;
        Some(format!("{}: {progress}", service.service_id))
    });
    coming.collect::<Vec<_>>().join("; ")
}

/// Prints what changes in a running node, one line per change, until it is dropped.
pub async fn follow(view: NodeView, output: Output) {
    let mut changes = view.services.changes();
    let mut seen = view.seen.subscribe();
    let mut connected = false;
    let mut routable: Vec<ServiceId> = Vec::new();
    let mut services: Vec<(ServiceId, ServiceState, Option<u32>)> = Vec::new();
    let mut line = ProgressLine::of(output);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = seen.changed() => if changed.is_err() { return },
            _ = looks.tick(), if line.is_shown() => {
                line.show(&progress_line(&view.services.observed().1));
                continue;
            }
        }
        line.clear();
        let now = seen.borrow_and_update().clone();
        if now.connected != connected {
            connected = now.connected;
            let event =
                json!({"event": "tunnel", "up": connected, "epoch": now.epoch, "reason": now.trouble});
            let text = match connected {
                true => format!("Tunnel up (epoch {}).", now.epoch),
                false => format!("Tunnel down: {}.", now.trouble.as_deref().unwrap_or("the node stops")),
            };
            output.result(&event, &text);
        }
        for service in view.services.observed().1 {
            let key = (service.service_id.clone(), service.state, service.pid);
            if !services.contains(&key) {
                services.retain(|(id, ..)| *id != service.service_id);
                services.push(key);
                let mut event = json!(service);
                event["event"] = "service".into();
                output.result(&event, &service_line(&service));
            }
        }
        let paid = now.status.map(|status| status.routable).unwrap_or_default();
        if paid != routable {
            routable = paid;
            let names: Vec<&str> = routable.iter().map(ServiceId::as_str).collect();
            let text = match names.is_empty() {
                true => "No service gets work now.".to_owned(),
                false => format!("Getting work: {}.", names.join(", ")),
            };
            output.result(&json!({"event": "routable", "services": names}), &text);
        }
    }
}
