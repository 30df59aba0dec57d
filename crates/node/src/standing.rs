//! Why a node earns nothing right now: exactly one reason, with what to do about it (node.md section 12). Pure.

use cxmpute_wire::Code;
use cxmpute_wire::control::{NodeStatus, ObservedService, ServiceState};
use serde::{Deserialize, Serialize};

use crate::owner::Cause;

/// One reason for not earning.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Reason {
    /// For programs.
    pub code: String,
    /// For people, with the next step where there is one.
    pub message: String,
}

/// What the reason is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// No new work is taken.
    pub draining: bool,
    /// The owner's rest.
    pub resting: Option<Cause>,
    /// The accelerators are left to the owner.
    pub yielding: bool,
    /// A tunnel is up.
    pub connected: bool,
    /// Why there is no tunnel.
    pub trouble: Option<&'a str>,
    /// The server's last word.
    pub server: Option<&'a NodeStatus>,
    /// What runs here.
    pub services: &'a [ObservedService],
}

/// The reason; absent while work can come.
#[must_use]
pub fn why_idle(facts: Facts<'_>) -> Option<Reason> {
    let reason = |code: &str, message: String| Some(Reason { code: code.to_owned(), message });
    if facts.draining {
        return reason("draining", "The node is leaving; start it again to go on.".into());
    }
    match facts.resting {
        Some(Cause::PausedByOwner) => {
            return reason("paused_by_owner", "Paused; go on with: cxmpute-provider resume".into());
        }
        Some(Cause::OutsideHours) => {
            return reason("outside_hours", "It is outside the hours of the key owner.hours.".into());
        }
        Some(Cause::OwnerActive) => {
            return reason(
                "owner_active",
                "Somebody works at this machine; the key is owner.idle_minutes.".into(),
            );
        }
        Some(Cause::PowerOrHeat) => {
            let message = "It runs on its battery or is hotter than the key owner.max_celsius allows.";
            return reason("power_or_heat", message.into());
        }
        Some(Cause::TransferUsedUp) => {
            let message = "The day's transfers are used up; the key is owner.caps.daily_transfer_mib.";
            return reason("transfer_used_up", message.into());
        }
        Some(Cause::NetworkMetered) => {
            let message = "The network of this machine is metered; the key is owner.rest_on_metered.";
            return reason("network_metered", message.into());
        }
        None => {}
    }
    if !facts.connected {
        let trouble = facts.trouble.unwrap_or("the first connection is being made");
        return reason(
            "tunnel_down",
            format!("No connection to the gateway: {trouble}. It is tried again by itself."),
        );
    }
    let Some(server) = facts.server else {
        return reason("starting", "Waiting for the gateway's first word.".into());
    };
    let said = || server.reason.clone().unwrap_or_default();
    if server.state == "suspended" {
        return reason("suspended", format!("{} Ask the operator.", said()));
    }
    if !server.routable.is_empty() {
        return None;
    }
    if facts.yielding {
        let message = "Other programs use the accelerators; services come back when these are quiet.";
        return reason("gpu_busy", message.into());
    }
    let in_state =
        |states: &[ServiceState]| facts.services.iter().find(|service| states.contains(&service.state));
    if in_state(&[ServiceState::Ready]).is_some() {
        return reason("canary_pending", said());
    }
    if let Some(service) = in_state(&[ServiceState::Downloading]) {
        let progress = service.progress.as_ref().map(ToString::to_string).unwrap_or_default();
        let message = match &service.detail {
            Some(why) => format!("The files of {} are at {progress}: {why}.", service.service_id),
            None => format!("The files of {} come: {progress}.", service.service_id),
        };
        return reason("downloading", message);
    }
    if let Some(service) = in_state(&[ServiceState::Queued, ServiceState::Verifying, ServiceState::Loading]) {
        return reason("loading", format!("{} is starting.", service.service_id));
    }
    if let Some(service) = in_state(&[ServiceState::Failed, ServiceState::Degraded]) {
        let code = service.code.unwrap_or(Code::EngineFailed);
        let detail = service.detail.as_deref().unwrap_or("no detail");
        return reason(code.as_str(), format!("{}: {detail}", service.service_id));
    }
    reason("no_fitting_model", said())
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::Timestamp;

    use super::*;

    fn service(state: ServiceState) -> ObservedService {
        ObservedService {
            service_id: "llm:a".parse().unwrap(),
            state,
            slots: 1,
            in_flight: 0,
            engine: "builtin".into(),
            pid: None,
            digest: None,
            code: (state == ServiceState::Failed).then_some(Code::ModelMissing),
            detail: Some("x is missing".into()),
            progress: None,
        }
    }

    fn status(routable: bool) -> NodeStatus {
        NodeStatus {
            seq: 0,
            server_time: Timestamp(0),
            state: "online".into(),
            routable: routable.then(|| "llm:a".parse().unwrap()).into_iter().collect(),
            reason: (!routable).then(|| "as the server says".into()),
        }
    }

    #[test]
    fn every_standing_has_one_reason() {
        let code = |connected, server: Option<&NodeStatus>, services: &[ObservedService]| {
            let facts = Facts {
                draining: false,
                resting: None,
                yielding: false,
                connected,
                trouble: None,
                server,
                services,
            };
            why_idle(facts).map(|reason| reason.code).unwrap_or_default()
        };
        let (on, off) = (status(true), status(false));
        assert_eq!(code(false, Some(&on), &[]), "tunnel_down");
        assert_eq!(code(true, None, &[]), "starting");
        assert_eq!(code(true, Some(&off), &[]), "no_fitting_model");
        for (state, expected) in [
            (ServiceState::Ready, "canary_pending"),
            (ServiceState::Queued, "loading"),
            (ServiceState::Loading, "loading"),
            (ServiceState::Downloading, "downloading"),
            (ServiceState::Failed, "model_missing"),
            (ServiceState::Degraded, "engine_failed"),
        ] {
            assert_eq!(code(true, Some(&off), &[service(state)]), expected);
        }
        assert_eq!(code(true, Some(&on), &[service(ServiceState::Ready)]), "");
        let suspended = NodeStatus { state: "suspended".into(), ..status(false) };
        assert_eq!(code(true, Some(&suspended), &[]), "suspended");
        let leaving = Facts {
            draining: true,
            resting: Some(Cause::PausedByOwner),
            yielding: true,
            connected: false,
            trouble: None,
            server: None,
            services: &[],
        };
        assert_eq!(why_idle(leaving).unwrap().code, "draining");
        let paused = Facts { draining: false, ..leaving };
        assert_eq!(why_idle(paused).unwrap().code, "paused_by_owner");
        for (cause, code) in [
            (Cause::OutsideHours, "outside_hours"),
            (Cause::OwnerActive, "owner_active"),
            (Cause::PowerOrHeat, "power_or_heat"),
            (Cause::TransferUsedUp, "transfer_used_up"),
            (Cause::NetworkMetered, "network_metered"),
        ] {
            assert_eq!(why_idle(Facts { resting: Some(cause), ..paused }).unwrap().code, code);
        }
        let busy = Facts { resting: None, connected: true, server: Some(&off), ..paused };
        assert_eq!(why_idle(busy).unwrap().code, "gpu_busy");
        assert_eq!(why_idle(Facts { server: Some(&on), ..busy }), None, "others work on");
    }
}
