//! Enrolment, epochs, desired and observed state.

use cxmpute_store::{Db, EnrolOutcome, Enrolment, ProvisionState, ServiceRow};
use cxmpute_wire::{Epoch, Generation, ProvisionId, Timestamp, UserId};

use crate::world::{NOW, account, databases};

fn enrolment(id: &str, key: Option<u8>, grant: Option<&[u8]>) -> Enrolment {
    Enrolment {
        id: ProvisionId::from_tail(id),
        owner: None,
        public_key: key.map(|byte| vec![byte; 32]),
        alias: None,
        grant_hash: grant.map(<[u8]>::to_vec),
        run_id: "run".into(),
        name: "box".into(),
        location: "{}".into(),
        diagnostics: "{}".into(),
        software: "{}".into(),
    }
}

async fn grant(db: &Db, hash: &[u8], owner: &UserId) {
    db.create_grant(hash, owner, NOW, Timestamp(NOW.0 + 1000)).await.unwrap();
}

#[tokio::test]
async fn enrolment_is_idempotent_and_nobody_takes_a_row_over() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        let (bob, _) = account(db, "bob").await;
        grant(db, b"one", &ada).await;
        grant(db, b"bobs", &bob).await;
        let first = enrolment("a", Some(1), Some(b"one"));
        assert_eq!(db.enrol_provision(&first, NOW).await.unwrap(), EnrolOutcome::Created(ada.clone()));
        assert_eq!(db.enrol_provision(&first, NOW).await.unwrap(), EnrolOutcome::Unchanged(ada.clone()));
        let bare = enrolment("a", Some(1), None);
        assert_eq!(db.enrol_provision(&bare, NOW).await.unwrap(), EnrolOutcome::Unchanged(ada.clone()));
        let before = db.find_provision("pv_a").await.unwrap().unwrap();
        // The id of another owner, the same id with another key, the same key with another owner.
        let mut foreign = enrolment("a", Some(1), None);
        foreign.owner = Some(bob.clone());
        foreign.name = "stolen".into();
        let other_key = Enrolment { name: "stolen".into(), ..enrolment("a", Some(2), Some(b"bobs")) };
        let other_owner = Enrolment { name: "stolen".into(), ..enrolment("a", Some(1), Some(b"bobs")) };
        let other_id = Enrolment { name: "stolen".into(), ..enrolment("z", Some(1), Some(b"bobs")) };
        for attack in [foreign, other_key, other_owner, other_id] {
            assert_eq!(
                db.enrol_provision(&attack, NOW).await.unwrap(),
                EnrolOutcome::Conflict,
                "{}",
                fresh.name
            );
        }
        assert_eq!(db.find_provision("pv_a").await.unwrap().unwrap(), before, "the original is untouched");
        // The refused attempts gave the grant back.
        let bobs = enrolment("b", Some(9), Some(b"bobs"));
        assert_eq!(db.enrol_provision(&bobs, NOW).await.unwrap(), EnrolOutcome::Created(bob));
        assert!(db.retire_provision(&before.id, NOW).await.unwrap());
        assert!(!db.retire_provision(&before.id, NOW).await.unwrap());
        assert_eq!(db.enrol_provision(&first, NOW).await.unwrap(), EnrolOutcome::Retired);
        assert!(db.provision_key(&before.id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_grant_works_once_and_only_in_its_time() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        grant(db, b"one", &ada).await;
        assert_eq!(
            db.enrol_provision(&enrolment("a", Some(1), None), NOW).await.unwrap(),
            EnrolOutcome::GrantMissing
        );
        let unknown = enrolment("a", Some(1), Some(b"nope"));
        assert_eq!(db.enrol_provision(&unknown, NOW).await.unwrap(), EnrolOutcome::GrantInvalid);
        let late = Timestamp(NOW.0 + 1000);
        let expired = enrolment("a", Some(1), Some(b"one"));
        assert_eq!(db.enrol_provision(&expired, late).await.unwrap(), EnrolOutcome::GrantExpired);
        let tries: Vec<_> = (0..40_u8)
            .map(|n| {
                let db = db.clone();
                tokio::spawn(async move {
                    db.enrol_provision(&enrolment(&format!("n{n}"), Some(n), Some(b"one")), NOW)
                        .await
                        .unwrap()
                })
            })
            .collect();
        let mut created = 0;
        for outcome in tries {
            match outcome.await.unwrap() {
                EnrolOutcome::Created(_) => created += 1,
                other => assert_eq!(other, EnrolOutcome::GrantSpent),
            }
        }
        assert_eq!(created, 1, "{}", fresh.name);
        assert_eq!(db.list_provisions(Some(&ada)).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_an_enrolment_is_refused_for_is_known_without_a_write() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        grant(db, b"one", &ada).await;
        grant(db, b"two", &ada).await;
        let first = enrolment("a", Some(1), Some(b"one"));
        assert_eq!(db.foresee_refusal(&first, NOW).await.unwrap(), None, "{}", fresh.name);
        let late = Timestamp(NOW.0 + 1000);
        assert_eq!(db.foresee_refusal(&first, late).await.unwrap(), Some(EnrolOutcome::GrantExpired));
        assert!(matches!(db.enrol_provision(&first, NOW).await.unwrap(), EnrolOutcome::Created(_)));
        for (asked, refused) in [
            (enrolment("a", Some(1), None), None),
            (enrolment("a", Some(2), Some(b"two")), Some(EnrolOutcome::Conflict)),
            (enrolment("b", Some(2), None), Some(EnrolOutcome::GrantMissing)),
            (enrolment("b", Some(2), Some(b"nope")), Some(EnrolOutcome::GrantInvalid)),
            (enrolment("b", Some(2), Some(b"one")), Some(EnrolOutcome::GrantSpent)),
            (enrolment("b", Some(2), Some(b"two")), None),
        ] {
            assert_eq!(db.foresee_refusal(&asked, NOW).await.unwrap(), refused, "{asked:?}");
        }
        assert!(db.retire_provision(&first.id, NOW).await.unwrap());
        let again = enrolment("a", Some(1), None);
        assert_eq!(db.foresee_refusal(&again, NOW).await.unwrap(), Some(EnrolOutcome::Retired));
    }
}

#[tokio::test]
async fn a_key_takes_over_a_provision_of_the_first_seed_by_its_alias() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        let (bob, _) = account(db, "bob").await;
        let seed = Enrolment {
            owner: Some(ada.clone()),
            alias: Some("uuid-1".into()),
            ..enrolment("seed", None, None)
        };
        assert_eq!(db.enrol_provision(&seed, NOW).await.unwrap(), EnrolOutcome::Created(ada.clone()));
        assert_eq!(db.enrol_provision(&seed, NOW).await.unwrap(), EnrolOutcome::Unchanged(ada.clone()));
        grant(db, b"bobs", &bob).await;
        grant(db, b"adas", &ada).await;
        let keyed = |grant: &[u8], id: &str, key| Enrolment {
            alias: Some("uuid-1".into()),
            ..enrolment(id, Some(key), Some(grant))
        };
        assert_eq!(db.enrol_provision(&keyed(b"bobs", "b", 2), NOW).await.unwrap(), EnrolOutcome::Conflict);
        assert_eq!(
            db.enrol_provision(&keyed(b"adas", "a", 1), NOW).await.unwrap(),
            EnrolOutcome::Created(ada)
        );
        assert_eq!(db.find_provision("uuid-1").await.unwrap().unwrap().id.as_str(), "pv_a");
        let old = db.find_provision("pv_seed").await.unwrap().unwrap();
        assert_eq!(old.state, ProvisionState::Retired);
    }
}

#[tokio::test]
async fn the_newest_epoch_wins_and_only_its_end_takes_the_provision_offline() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        grant(db, b"one", &ada).await;
        db.enrol_provision(&enrolment("a", Some(1), Some(b"one")), NOW).await.unwrap();
        let id = ProvisionId::from_tail("a");
        assert_eq!(db.next_epoch(&ProvisionId::from_tail("none"), NOW).await.unwrap(), None);
        let epochs: Vec<_> = (0..20)
            .map(|_| {
                let (db, id) = (db.clone(), id.clone());
                tokio::spawn(async move { db.next_epoch(&id, NOW).await.unwrap().unwrap().0 })
            })
            .collect();
        let mut seen = Vec::new();
        for epoch in epochs {
            seen.push(epoch.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=20).collect::<Vec<_>>(), "{}", fresh.name);
        db.close_epoch(&id, Epoch(19), "lost", NOW).await.unwrap();
        assert_eq!(db.find_provision("pv_a").await.unwrap().unwrap().state, ProvisionState::Online);
        db.close_epoch(&id, Epoch(20), "lost", NOW).await.unwrap();
        assert_eq!(db.find_provision("pv_a").await.unwrap().unwrap().state, ProvisionState::Offline);
        db.retire_provision(&id, NOW).await.unwrap();
        assert_eq!(db.next_epoch(&id, NOW).await.unwrap(), None);
    }
}

#[tokio::test]
async fn generations_grow_only_with_changes_and_old_reports_are_ignored() {
    for fresh in databases().await {
        let db = &fresh.db;
        let (ada, _) = account(db, "ada").await;
        grant(db, b"one", &ada).await;
        db.enrol_provision(&enrolment("a", Some(1), Some(b"one")), NOW).await.unwrap();
        let id = ProvisionId::from_tail("a");
        assert_eq!(db.set_desired(&id, "[1]", NOW).await.unwrap(), Some(Generation(1)));
        assert_eq!(db.set_desired(&id, "[1]", NOW).await.unwrap(), Some(Generation(1)));
        assert_eq!(db.set_desired(&id, "[2]", NOW).await.unwrap(), Some(Generation(2)));
        assert_eq!(db.set_desired(&ProvisionId::from_tail("none"), "[]", NOW).await.unwrap(), None);
        let row = |name: &str| ServiceRow {
            service: name.parse().unwrap(),
            generation: Generation(2),
            state: "ready".into(),
            detail: None,
        };
        let services = [row("llm:a:b"), row("scrape")];
        assert!(db.record_observed(&id, Generation(2), "[x]", &services, NOW).await.unwrap());
        assert!(!db.record_observed(&id, Generation(1), "[old]", &[], NOW).await.unwrap());
        assert_eq!(db.provision_services(&id).await.unwrap(), services);
        assert_eq!(db.find_provision("pv_a").await.unwrap().unwrap().observed, "[x]");
        db.set_provided_url(&id, "http://label", NOW).await.unwrap();
        assert!(db.end_provision(&id, Some(&["scrape".parse().unwrap()]), NOW).await.unwrap());
        assert_eq!(db.provision_services(&id).await.unwrap().len(), 1);
        assert!(db.end_provision(&id, None, NOW).await.unwrap());
        let row = db.find_provision("pv_a").await.unwrap().unwrap();
        assert_eq!((row.state, row.provided_url.as_deref()), (ProvisionState::Ended, Some("http://label")));
        assert_eq!(row.last_seen, Some(NOW));
    }
}

#[tokio::test]
async fn a_nonce_is_new_once() {
    for fresh in databases().await {
        let db = &fresh.db;
        assert!(db.nonce_once("pv_a", "n", NOW).await.unwrap());
        assert!(!db.nonce_once("pv_a", "n", NOW).await.unwrap());
        assert!(db.nonce_once("pv_b", "n", NOW).await.unwrap());
        assert_eq!(db.forget_nonces(Timestamp(NOW.0 + 1)).await.unwrap(), 2);
        assert!(db.nonce_once("pv_a", "n", NOW).await.unwrap());
    }
}

#[tokio::test]
async fn demand_is_replaced_by_each_replica_and_summed_over_all() {
    use std::collections::HashMap;

    use cxmpute_market::assign::Demand;

    for fresh in databases().await {
        let db = &fresh.db;
        let service = |name: &str| name.parse::<cxmpute_wire::ServiceId>().unwrap();
        let of = |requests, refused| Demand { requests, refused, queued: 1, units: 7 };
        let first = HashMap::from([(service("llm:a"), of(5, 0)), (service("scrape"), Demand::default())]);
        db.set_demand("one", &first, NOW).await.unwrap();
        db.set_demand("two", &HashMap::from([(service("llm:a"), of(2, 3))]), NOW).await.unwrap();
        let sum =
            HashMap::from([(service("llm:a"), Demand { requests: 7, refused: 3, queued: 2, units: 14 })]);
        assert_eq!(db.demand(NOW).await.unwrap(), sum, "{}", fresh.name);
        let later = Timestamp(NOW.0 + 60_000);
        db.set_demand("two", &HashMap::from([(service("llm:b"), of(u64::MAX, 0))]), later).await.unwrap();
        let now = db.demand(later).await.unwrap();
        assert_eq!(now.len(), 1, "what was counted before is old: {}", fresh.name);
        assert_eq!(now[&service("llm:b")].requests, i64::MAX.unsigned_abs());
        assert_eq!(db.demand(NOW).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn memory_that_was_too_little_is_remembered_until_more_is_learned_or_it_is_old() {
    use cxmpute_market::assign::Floor;
    use cxmpute_wire::Bytes;

    for fresh in databases().await {
        let db = &fresh.db;
        let (one, other) = (ProvisionId::from_tail("one"), ProvisionId::from_tail("other"));
        let service = |name: &str| name.parse::<cxmpute_wire::ServiceId>().unwrap();
        let (a, b) = (service("llm:a"), service("llm:b"));
        let at = |minute: i64| Timestamp(NOW.0 + minute * 60_000);
        assert!(db.floors(NOW).await.unwrap().is_empty());
        assert!(db.raise_floor(&one, &a, Bytes(5), NOW, at(1)).await.unwrap());
        assert!(!db.raise_floor(&one, &a, Bytes(5), NOW, at(2)).await.unwrap(), "told twice: {}", fresh.name);
        assert!(!db.raise_floor(&one, &a, Bytes(4), NOW, at(2)).await.unwrap());
        assert!(db.raise_floor(&one, &b, Bytes(7), NOW, at(2)).await.unwrap());
        assert!(db.raise_floor(&other, &a, Bytes(u64::MAX), NOW, at(2)).await.unwrap());
        let floor = |service: &cxmpute_wire::ServiceId, memory| Floor { service: service.clone(), memory };
        let all = db.floors(NOW).await.unwrap();
        assert_eq!(all[&one], [floor(&a, Bytes(5)), floor(&b, Bytes(7))]);
        assert_eq!(all[&other], [floor(&a, Bytes(i64::MAX.unsigned_abs()))]);
        assert_eq!(db.floors(at(2)).await.unwrap()[&one], [floor(&b, Bytes(7))], "the other one is old");
        assert!(
            db.raise_floor(&one, &a, Bytes(3), at(2), at(9)).await.unwrap(),
            "what is old counts for nothing"
        );
        assert_eq!(db.floors(at(2)).await.unwrap()[&one][0], floor(&a, Bytes(3)));
    }
}
