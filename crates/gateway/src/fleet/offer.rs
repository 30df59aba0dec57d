//! What a stored provision has to offer, for the plan.

use cxmpute_market::assign::{Floor, Gpu, GpuClaim, Held, Offer, Running};
use cxmpute_market::catalogue::Engine;
use cxmpute_store::ProvisionRow;
use cxmpute_wire::ServiceId;
use cxmpute_wire::control::{
    DesiredService, Diagnostics, EnginePresent, HeldFile, Location, ObservedService, ServiceState,
};

/// Reads it from the row, with what was learned of the provision. What cannot be read counts as not there: nothing is planned
/// on a guess.
#[must_use]
pub fn offer_of(row: &ProvisionRow, floors: Vec<Floor>) -> Offer {
    let diagnostics: Diagnostics = serde_json::from_str(&row.diagnostics).unwrap_or_default();
    let location: Location = serde_json::from_str(&row.location).unwrap_or_default();
    let observed: Vec<ObservedService> = serde_json::from_str(&row.observed).unwrap_or_default();
    let given: Vec<DesiredService> = serde_json::from_str(&row.desired).unwrap_or_default();
    let running = |service: DesiredService| Running {
        stored: observed.iter().any(|seen| has_files(seen, &service.service_id)),
        // A plan of an earlier program says no time: it is at least as old as this process.
        since: service.since.unwrap_or(row.created_at),
        gpus: service.gpus.iter().map(|part| GpuClaim { index: part.index, memory: part.memory }).collect(),
        service: service.service_id,
    };
    Offer {
        provision: row.id.clone(),
        owner: row.owner.clone(),
        region: region(&location),
        gpus: diagnostics.gpus.iter().map(|gpu| Gpu { index: gpu.index, memory: gpu.memory_total }).collect(),
        memory: diagnostics.memory.total,
        disk_free: diagnostics.disk.free,
        engines: diagnostics.engines.into_iter().filter_map(engine).collect(),
        allow: diagnostics.services.allow,
        deny: diagnostics.services.deny,
        least_prices: diagnostics.services.least_price.into_iter().collect(),
        held: diagnostics.files.into_iter().map(held).collect(),
        floors,
        running: given.into_iter().map(running).collect(),
    }
}

/// Sums are compared as text, and people write them in either case.
fn held(file: HeldFile) -> Held {
    let sha256 = file.sha256.map(|sum| sum.to_ascii_lowercase());
    Held { sha256, name: file.name, size: file.size }
}

/// An engine that no entry can name is nothing to plan with.
fn engine(present: EnginePresent) -> Option<(Engine, Vec<String>)> {
    Some((Engine::from_name(&present.name)?, present.models))
}

/// Two letters in capitals, where the owner said so.
fn region(location: &Location) -> Option<String> {
    Some(location.country.trim().to_ascii_uppercase()).filter(|country| country.len() == 2)
}

/// Whether a service's files are on the disk, so that its free space does not hold them any more.
fn has_files(seen: &ObservedService, service: &ServiceId) -> bool {
    seen.service_id == *service
        && matches!(
            seen.state,
            ServiceState::Ready | ServiceState::Loading | ServiceState::Degraded | ServiceState::Stopping
        )
}

#[cfg(test)]
mod tests {
    use cxmpute_store::ProvisionState;
    use cxmpute_wire::{Bytes, Epoch, Generation, MicroCredits, ProvisionId, Timestamp, UserId};
    use serde_json::json;

    use super::*;

    fn row() -> ProvisionRow {
        ProvisionRow {
            id: ProvisionId::from_tail("a"),
            owner: UserId::from_tail("o"),
            public_key: None,
            alias: None,
            name: String::new(),
            provided_url: None,
            location: json!({"country": " de"}).to_string(),
            diagnostics: "{}".to_owned(),
            software: "{}".to_owned(),
            state: ProvisionState::Online,
            desired_generation: Generation(1),
            desired: "[]".to_owned(),
            observed_generation: Generation(1),
            observed: "[]".to_owned(),
            epoch: Epoch(1),
            last_seen: None,
            created_at: Timestamp(5),
        }
    }

    #[test]
    fn a_row_says_what_is_there_and_what_runs() {
        let mut row = row();
        row.diagnostics = json!({
            "memory": {"total": 100, "available": 1}, "disk": {"free": 7},
            "gpus": [{"index": 1, "memory_total": 30, "memory_free": 2}],
            "engines": [{"name": "ollama", "version": "1", "models": ["llama3.2:1b"]}, {"name": "unheard-of"}],
            "services": {"deny": ["tts"], "least_price": {"llm": 200_000}},
            "files": [{"sha256": "AB", "size": 4}, {"name": "a/b.gguf", "size": 3}],
        })
        .to_string();
        let given = |id: &str, since: Option<i64>| {
            json!({"service_id": id, "kind": "llm", "model": "m", "engines": [], "since": since,
                "gpus": [{"index": 1, "memory": 9}]})
        };
        row.desired = json!([given("llm:a", Some(9)), given("llm:b", None)]).to_string();
        row.observed =
            json!([{"service_id": "llm:a", "state": "ready"}, {"service_id": "llm:b", "state": "downloading"}])
                .to_string();
        let offer = offer_of(&row, Vec::new());
        assert_eq!((offer.memory, offer.disk_free), (Bytes(100), Bytes(7)));
        assert_eq!(offer.gpus, [Gpu { index: 1, memory: Bytes(30) }], "all of it, not what is free now");
        assert_eq!(offer.engines, [(Engine::Ollama, vec!["llama3.2:1b".to_owned()])]);
        assert_eq!((offer.deny, offer.region.as_deref()), (vec!["tts".to_owned()], Some("DE")));
        assert_eq!(offer.least_prices, [("llm".to_owned(), MicroCredits(200_000))]);
        let [by_sum, by_name] = [&offer.held[0], &offer.held[1]];
        assert_eq!((by_sum.sha256.as_deref(), by_sum.size), (Some("ab"), Bytes(4)));
        assert_eq!((by_name.name.as_deref(), by_name.size), (Some("a/b.gguf"), Bytes(3)));
        let running: Vec<_> =
            offer.running.iter().map(|one| (one.service.as_str(), one.since.0, one.stored)).collect();
        assert_eq!(running, [("llm:a", 9, true), ("llm:b", 5, false)]);
        assert_eq!(offer.running[0].gpus, [GpuClaim { index: 1, memory: Bytes(9) }]);
    }

    /// What nodes reported before there were engines and wishes.
    #[test]
    fn an_old_or_unreadable_row_offers_nothing_that_it_does_not_say() {
        let row = ProvisionRow { diagnostics: "?".into(), desired: "?".into(), ..row() };
        let offer = offer_of(&row, Vec::new());
        assert!(offer.engines.is_empty() && offer.running.is_empty() && offer.memory == Bytes(0));
    }
}
