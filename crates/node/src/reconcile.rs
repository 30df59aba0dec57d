//! What has to be done so that what runs becomes what should run. Pure; planning twice changes nothing.

use std::collections::BTreeMap;

use cxmpute_wire::ServiceId;
use cxmpute_wire::control::DesiredService;

/// One step towards the desired state.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start this service.
    Start(DesiredService),
    /// Stop this service.
    Stop(ServiceId),
}

/// The steps from `running` to `desired`: stops first, so that their memory is free. A service whose description
/// changed is stopped and started anew. Services the owner refuses are never started.
pub fn plan(
    desired: &[DesiredService],
    running: &BTreeMap<ServiceId, DesiredService>,
    allowed: impl Fn(&ServiceId) -> bool,
) -> Vec<Action> {
    let wanted: BTreeMap<&ServiceId, &DesiredService> =
        desired.iter().filter(|service| allowed(&service.service_id)).map(|s| (&s.service_id, s)).collect();
    let same = |id: &ServiceId, have: &DesiredService| wanted.get(id).is_some_and(|want| **want == *have);
    let stops = running.iter().filter(|(id, have)| !same(id, have)).map(|(id, _)| Action::Stop(id.clone()));
    let starts = wanted
        .iter()
        .filter(|(id, want)| running.get(**id) != Some(**want))
        .map(|(_, want)| Action::Start((*want).clone()));
    stops.chain(starts).collect()
}

/// Whether two descriptions differ in nothing but where the same files can be had, and who signed that: what runs has its files and goes on.
#[must_use]
pub fn same_but_sources(one: &DesiredService, other: &DesiredService) -> bool {
    let bare = |service: &DesiredService| {
        let mut bare = service.clone();
        bare.seal = None;
        for file in &mut bare.files {
            file.urls.clear();
            file.hub = None;
        }
        bare
    };
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(name: u8, slots: u32) -> DesiredService {
        let service_id: ServiceId = format!("llm:{name}").parse().unwrap();
        DesiredService {
            kind: service_id.kind(),
            model: name.to_string(),
            service_id,
            engines: vec!["builtin".into()],
            files: Vec::new(),
            context_length: None,
            slots,
            memory_claim: cxmpute_wire::Bytes(0),
            gpus: Vec::new(),
            since: None,
            ollama: None,
            hub: None,
            container: None,
            seal: None,
        }
    }

    fn apply(running: &mut BTreeMap<ServiceId, DesiredService>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(id) => assert!(running.remove(&id).is_some(), "stops only what runs"),
                Action::Start(want) => {
                    assert!(
                        running.insert(want.service_id.clone(), want).is_none(),
                        "starts only what is absent"
                    );
                }
            }
        }
    }

    #[test]
    fn another_mirror_is_no_other_service() {
        let file = |url: &str, sum: &str| cxmpute_wire::control::DesiredFile {
            role: "model".into(),
            name: "a.gguf".into(),
            sha256: Some(sum.into()),
            size: None,
            urls: vec![url.into()],
            hub: None,
        };
        let with = |file| DesiredService { files: vec![file], ..service(1, 1) };
        assert!(same_but_sources(&with(file("https://a", "1")), &with(file("https://b", "1"))));
        assert!(!same_but_sources(&with(file("https://a", "1")), &with(file("https://a", "2"))));
    }

    proptest! {
        #[test]
        fn the_plan_reaches_the_desired_state_and_then_rests(
            have in proptest::collection::btree_map(0u8..6, 0u32..3, 0..6),
            want in proptest::collection::btree_map(0u8..6, 0u32..3, 0..6),
            refused in 0u8..8,
        ) {
            let mut running: BTreeMap<_, _> =
                have.iter().map(|(n, s)| service(*n, *s)).map(|s| (s.service_id.clone(), s)).collect();
            let desired: Vec<_> = want.iter().map(|(n, s)| service(*n, *s)).collect();
            let allowed = |id: &ServiceId| id.model() != Some(refused.to_string().as_str());
            let actions = plan(&desired, &running, allowed);
            apply(&mut running, actions);
            let expected: BTreeMap<_, _> = desired
                .iter()
                .filter(|s| allowed(&s.service_id))
                .map(|s| (s.service_id.clone(), s.clone()))
                .collect();
            prop_assert_eq!(&running, &expected);
            prop_assert!(plan(&desired, &running, allowed).is_empty());
        }
    }
}
