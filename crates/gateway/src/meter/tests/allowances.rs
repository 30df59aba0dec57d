//! Admission out of allowances.

use super::*;

/// A meter to which every key is busy from its second request on.
async fn world() -> World {
    World::with(MeterConfig { busy: 2, ..MeterConfig::default() }).await
}

async fn allowances(world: &World) -> i64 {
    world.db.check_ledger().await.unwrap().allowances
}

/// Requests until one is admitted in memory; all are settled at `units` tokens each. Gives their number.
async fn until_in_memory(world: &World, amount: i64, units: u64) -> i64 {
    for n in 0..1000 {
        let hold = world.hold(&format!("warm{n}"), amount).await;
        let in_memory = hold.progress().is_in_memory();
        hold.settle(settlement(End::Finished, chat(units, 0))).await.unwrap();
        if in_memory {
            return n + 1;
        }
    }
    panic!("nothing was admitted out of an allowance");
}

#[tokio::test]
async fn a_busy_key_is_admitted_without_a_write_and_pays_the_same() {
    let world = world().await;
    let n = until_in_memory(&world, 10, 7).await;
    let before = world.meter.stats().ops;
    let hold = world.hold("a", 10).await;
    assert_eq!(world.meter.stats().ops, before, "no operation for the admission");
    let settled = hold.settle(settlement(End::Finished, chat(9, 0))).await.unwrap();
    assert_eq!((settled.cost.0, settled.refund.0), (9, 1));
    assert_eq!(world.balance().await, (MONEY - 7 * n - 9, 0));
    assert_eq!(allowances(&world).await, 1);
    let db = world.db.clone();
    world.end().await;
    let report = db.check_ledger().await.unwrap();
    assert_eq!((report.allowances, report.is_clean()), (0, true), "{report:?}");
}

#[tokio::test]
async fn a_request_that_lasts_gets_a_hold_with_its_checkpoints() {
    let world = world().await;
    let n = until_in_memory(&world, 10, 1).await;
    let hold = world.hold("long", 50).await;
    assert!(hold.progress().is_in_memory());
    hold.accepted(&ProvisionId::from_tail("node"), &UserId::from_tail("provider"), 1);
    let (id, payer) = (RequestId::from_tail("long"), UserId::from_tail("payer"));
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.db.generation(&id, &payer).await.unwrap().is_none_or(|row| row.provision_id.is_none()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(world.balance().await, (MONEY - n - 50, 50));
    hold.extend(MicroCredits(100)).await.unwrap();
    hold.settle(settlement(End::Finished, chat(120, 0))).await.unwrap();
    assert_eq!(world.balance().await, (MONEY - n - 120, 0));
    world.end().await;
}

#[tokio::test]
async fn an_extension_and_a_move_come_after_a_hold_of_its_own() {
    let world = world().await;
    let n = until_in_memory(&world, 10, 1).await;
    let extended = world.hold("extended", 20).await;
    extended.extend(MicroCredits(100)).await.unwrap();
    let mut moved = world.hold("moved", 20).await;
    let service = ServiceId::new(ServiceKind::Llm, "dear");
    moved.move_to("dear", &service, &price(), MicroCredits(70)).await.unwrap();
    assert_eq!(world.balance().await, (MONEY - n - 190, 190));
    extended.settle(settlement(End::Finished, chat(120, 0))).await.unwrap();
    moved.settle(settlement(End::Finished, chat(70, 0))).await.unwrap();
    assert_eq!(world.balance().await, (MONEY - n - 190, 0));
    world.end().await;
}

/// Money that lies in an allowance refuses nobody: exactly what the account has can be bound.
#[tokio::test]
async fn an_allowance_goes_back_before_anybody_is_refused() {
    let world = world().await;
    let n = until_in_memory(&world, 10, 1).await;
    let left = MONEY - n;
    let all = world.hold("all", left).await;
    assert_eq!(world.balance().await, (0, left));
    let refused = world.meter.admit(world.admission("more", 1)).await.unwrap_err();
    assert_eq!(refused, AdmitError::Insufficient { required: MicroCredits(1), available: MicroCredits(0) });
    all.void(End::Refused, Vec::new()).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_suspended_account_is_admitted_no_more_when_its_allowance_was_recalled() {
    let world = world().await;
    until_in_memory(&world, 10, 1).await;
    let payer = UserId::from_tail("payer");
    assert!(world.db.suspend_user(&payer, "test", world.clock.now()).await.unwrap());
    tokio::time::timeout(Duration::from_secs(5), async {
        while allowances(&world).await != 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    let refused = world.meter.admit(world.admission("a", 1)).await.unwrap_err();
    assert_eq!(refused, AdmitError::Suspended);
    world.end().await;
}

#[tokio::test]
async fn a_dropped_hold_out_of_an_allowance_costs_nothing() {
    let world = world().await;
    let n = until_in_memory(&world, 10, 1).await;
    drop(world.hold("dropped", 50).await);
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY - n, 0));
    world.end().await;
}

/// Many callers at once, with allowances coming and going: every micro-credit is where it belongs, and nobody is
/// admitted past the balance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_requests_spend_exactly_what_there_is() {
    let world = Arc::new(world().await);
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let world = world.clone();
            tokio::spawn(async move {
                let mut paid = 0;
                for n in 0..100 {
                    match world.meter.admit(world.admission(&format!("c{caller}n{n}"), 20)).await {
                        Ok(hold) => {
                            let units = chat(n % 21, 0);
                            let settled = hold.settle(settlement(End::Finished, units)).await.unwrap();
                            paid += settled.cost.0;
                        }
                        Err(AdmitError::Insufficient { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                paid
            })
        })
        .collect();
    let mut paid = 0;
    for caller in callers {
        paid += caller.await.unwrap();
    }
    assert!(paid > MONEY - 20 * 16, "{paid} of {MONEY} could be spent");
    let balance = world.db.balance(&UserId::from_tail("payer")).await.unwrap();
    assert_eq!((balance.available.0, balance.held.0), (MONEY - paid, 0));
    let Ok(world) = Arc::try_unwrap(world) else { panic!("a caller still runs") };
    world.end().await;
}

/// A replica that was away longer than its lease: another one has given its allowance back meanwhile.
#[tokio::test]
async fn after_the_lease_only_what_is_left_is_drawn_from() {
    let world = world().await;
    let mut n = until_in_memory(&world, 10, 1).await;
    let inner = &world.meter.inner;
    let held = world.db.held_allowances(&inner.replica).await.unwrap();
    assert_eq!(held.len(), 1);
    let now = tokio::time::Instant::now();
    inner.allowances.lease_until(now);
    let late = world.hold("late", 10).await;
    assert!(!late.progress().is_in_memory(), "nothing is drawn after the lease");
    late.settle(settlement(End::Finished, chat(1, 0))).await.unwrap();
    let allowance = cxmpute_store::Allowance {
        id: held[0].as_str().into(),
        user_id: UserId::from_tail("payer"),
        key_id: KeyId::from_tail("key"),
        replica: inner.replica.id.as_str().into(),
        epoch: inner.replica.epoch,
    };
    let swept = cxmpute_store::LedgerOp::Return(Arc::new(allowance), world.clock.now());
    world.db.apply(&[swept]).await.unwrap();
    super::super::lease::renewed(&world.db, &inner.replica, &inner.allowances, now).await.unwrap();
    assert!(!inner.allowances.lease_is_over(now));
    let again = world.hold("again", 10).await;
    assert!(!again.progress().is_in_memory(), "what was given back is not drawn from");
    again.settle(settlement(End::Finished, chat(1, 0))).await.unwrap();
    n += 2;
    world.quiet().await;
    let balance = world.balance().await;
    assert_eq!(balance.0 + balance.1, MONEY - n);
    world.end().await;
}

/// One busy key makes no refusal of other accounts dearer, and on SQLite none writes.
#[tokio::test]
async fn only_who_has_an_allowance_is_asked_for_it() {
    let world = world().await;
    until_in_memory(&world, 10, 1).await;
    let inner = &world.meter.inner;
    assert!(!inner.recall(&UserId::from_tail("provider")).await, "it never had one");
    assert_eq!(inner.allowances.number_of(&UserId::from_tail("payer")), 1);
    assert!(inner.recall(&UserId::from_tail("payer")).await);
    assert_eq!(inner.allowances.number_of(&UserId::from_tail("payer")), 0);
    assert_eq!(allowances(&world).await, 0);
    // What came back just now may be the money that was lacking, and asking for it takes no turn to write.
    let blocked = world.db.begin().await.unwrap();
    let asked = tokio::time::Instant::now();
    assert!(inner.recall(&UserId::from_tail("payer")).await);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    drop(blocked);
    world.end().await;
}
