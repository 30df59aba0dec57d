use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::{Db, KeyKind, NewKey, NewUser};
use cxmpute_wire::{KeyId, MicroCredits, ProvisionId, RequestId, ServiceId, ServiceKind, Tokens, UserId};

use super::*;

mod allowances;
mod faults;

pub(super) use faults::Fault;

struct World {
    db: Db,
    meter: Meter,
    tasks: Tasks,
    clock: Clock,
    _directory: tempfile::TempDir,
}

const MONEY: i64 = 10_000;

fn price() -> Arc<PriceRow> {
    Arc::new(PriceRow {
        id: "m".into(),
        version: 1,
        prompt: MicroCredits(1_000_000),
        completion: MicroCredits(10_000_000),
        embedding: MicroCredits(0),
        character: MicroCredits(0),
        second: MicroCredits(0),
        url: MicroCredits(0),
        image: MicroCredits(0),
        minimum: MicroCredits(0),
        share_bp: 9000,
        free: false,
    })
}

fn chat(prompt: u64, completion: u64) -> Units {
    Units::chat(Tokens(prompt), Tokens(completion))
}

fn settlement(end: End, counted: Units) -> Settlement {
    Settlement {
        counted,
        provision_id: Some(ProvisionId::from_tail("node")),
        provider: Some(UserId::from_tail("provider")),
        ..Settlement::none(end)
    }
}

impl World {
    async fn new() -> Self {
        Self::with(MeterConfig::default()).await
    }

    async fn with(config: MeterConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db =
            Db::open(&format!("sqlite:{}", directory.path().join("cxmpute.db").display())).await.unwrap();
        let clock = Clock::system();
        for name in ["payer", "provider"] {
            let user = NewUser {
                id: UserId::from_tail(name),
                email: format!("{name}@example.org"),
                created_at: clock.now(),
            };
            db.create_user(&user).await.unwrap();
        }
        db.create_key(&NewKey {
            id: KeyId::from_tail("key"),
            user_id: UserId::from_tail("payer"),
            kind: KeyKind::Api,
            name: "test".into(),
            hash: b"hash".to_vec(),
            env: "live".into(),
            budget: None,
            created_at: clock.now(),
        })
        .await
        .unwrap();
        let payer = UserId::from_tail("payer");
        db.grant_credits(&payer, MicroCredits(MONEY), "test", "start", "start", clock.now()).await.unwrap();
        let tasks = Tasks::new();
        let meter = Meter::start(db.clone(), clock.clone(), &tasks, config).await.unwrap();
        Self { db, meter, tasks, clock, _directory: directory }
    }

    fn admission(&self, id: &str, amount: i64) -> Admission {
        Admission {
            request_id: RequestId::from_tail(id),
            user_id: UserId::from_tail("payer"),
            key_id: KeyId::from_tail("key"),
            route: "chat/completions".into(),
            model: "m".into(),
            service: ServiceId::new(ServiceKind::Llm, "m"),
            price: price(),
            amount: MicroCredits(amount),
            streamed: true,
            title: None,
            referer: None,
            created_at: self.clock.now(),
        }
    }

    async fn hold(&self, id: &str, amount: i64) -> Hold {
        self.meter.admit(self.admission(id, amount)).await.unwrap()
    }

    /// Available and held.
    async fn balance(&self) -> (i64, i64) {
        let balance = self.db.balance(&UserId::from_tail("payer")).await.unwrap();
        (balance.available.0, balance.held.0)
    }

    /// Waits until no hold is open, as seen by the meter.
    async fn quiet(&self) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while self.meter.stats().open_holds != 0 || self.db.running_requests().await.unwrap() != 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap();
    }

    /// Stops the meter and looks at the books.
    async fn end(self) {
        assert_eq!(self.tasks.stop(Duration::from_secs(10)).await, Vec::<&str>::new());
        let report = self.db.check_ledger().await.unwrap();
        assert!(report.is_clean() && report.open_holds.is_empty(), "{report:?}");
    }
}

#[tokio::test]
async fn a_settled_hold_is_billed_before_the_answer() {
    let world = World::new().await;
    let hold = world.hold("a", 1000).await;
    assert_eq!(world.balance().await, (MONEY - 1000, 1000));
    hold.accepted(&ProvisionId::from_tail("node"), &UserId::from_tail("provider"), 1);
    let settled = hold.settle(settlement(End::Finished, chat(10, 7))).await.unwrap();
    assert_eq!((settled.cost.0, settled.provider_reward.0), (80, 72));
    assert_eq!(world.balance().await, (MONEY - 80, 0));
    assert_eq!(world.db.earnings(&UserId::from_tail("provider")).await.unwrap().pending.0, 72);
    world.end().await;
}

#[tokio::test]
async fn a_refusal_says_what_is_needed_and_what_is_there() {
    let world = World::new().await;
    let refused = world.meter.admit(world.admission("a", MONEY + 1)).await.unwrap_err();
    let (required, available) = (MicroCredits(MONEY + 1), MicroCredits(MONEY));
    assert_eq!(refused, AdmitError::Insufficient { required, available });
    let absurd = world.meter.admit(world.admission("b", -1)).await.unwrap_err();
    assert_eq!(absurd, AdmitError::StoreUnavailable(MeterError::Refused));
    world.end().await;
}

#[tokio::test]
async fn a_dropped_hold_is_given_back_or_paid_up_to_its_checkpoint() {
    let world = World::new().await;
    drop(world.hold("silent", 1000).await);
    let streaming = world.hold("streaming", 1000).await;
    streaming.accepted(&ProvisionId::from_tail("node"), &UserId::from_tail("provider"), 1);
    streaming.checkpoint(chat(10, 7));
    drop(streaming);
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY - 80, 0));
    world.end().await;
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_waits_leaves_no_hold() {
    let world = World::new().await;
    for n in 0..20 {
        let admission = world.meter.admit(world.admission(&format!("r{n}"), 100));
        let _ = tokio::time::timeout(Duration::from_micros(n * 50), admission).await;
    }
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY, 0));
    assert!(world.meter.is_open());
    world.end().await;
}

#[tokio::test]
async fn a_settlement_goes_on_when_its_caller_leaves() {
    let world = World::new().await;
    let hold = world.hold("a", 1000).await;
    let settling = hold.settle(settlement(End::Finished, chat(10, 0)));
    let _ = tokio::time::timeout(Duration::ZERO, settling).await;
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY - 10, 0));
    world.end().await;
}

#[tokio::test]
async fn an_extension_is_held_and_a_refused_one_changes_nothing() {
    let world = World::new().await;
    let hold = world.hold("a", 1000).await;
    hold.extend(MicroCredits(500)).await.unwrap();
    assert_eq!(hold.amount().0, 1500);
    let refused = hold.extend(MicroCredits(MONEY)).await.unwrap_err();
    assert!(matches!(refused, AdmitError::Insufficient { available, .. } if available.0 == MONEY - 1500));
    assert_eq!(world.balance().await, (MONEY - 1500, 1500));
    hold.settle(settlement(End::Finished, chat(1400, 0))).await.unwrap();
    assert_eq!(world.balance().await, (MONEY - 1400, 0));
    world.end().await;
}

#[tokio::test]
async fn checkpoints_are_written_by_count_and_only_the_newest() {
    let world = World::new().await;
    let hold = world.hold("a", 10_000).await;
    for tokens in 0..=600 {
        hold.checkpoint(chat(1, tokens));
    }
    // The writer has not run between: one note carries them all.
    let before = world.meter.stats().ops;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.meter.stats().ops, before + 1);
    hold.void(End::ProviderLost, Vec::new()).await.unwrap();
    assert_eq!(world.balance().await, (MONEY, 0));
    world.end().await;
}

#[tokio::test]
async fn who_accepted_a_request_is_written_only_when_it_lasts() {
    let world = World::new().await;
    let (node, owner) = (ProvisionId::from_tail("node"), UserId::from_tail("provider"));
    let short = world.hold("short", 100).await;
    short.accepted(&node, &owner, 1);
    short.settle(settlement(End::Finished, chat(10, 0))).await.unwrap();
    let long = world.hold("long", 100).await;
    long.accepted(&node, &owner, 1);
    let (id, payer) = (RequestId::from_tail("long"), UserId::from_tail("payer"));
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.db.generation(&id, &payer).await.unwrap().unwrap().provision_id.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    // Two admissions, one settlement and the note of the one that lasts.
    assert_eq!(world.meter.stats().ops, 4);
    long.void(End::ProviderLost, Vec::new()).await.unwrap();
    world.end().await;
}

/// Gate L1 on one meter: exactly what the account can pay is admitted, everything else gets a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_requests_share_commits_and_never_pass_the_balance() {
    // Each with a row of its own.
    let world = Arc::new(World::with(MeterConfig { busy: 0, ..MeterConfig::default() }).await);
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let world = world.clone();
            tokio::spawn(async move {
                let mut holds = Vec::new();
                for n in 0..10 {
                    match world.meter.admit(world.admission(&format!("c{caller}n{n}"), 100)).await {
                        Ok(hold) => holds.push(hold),
                        Err(AdmitError::Insufficient { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                holds
            })
        })
        .collect();
    let mut holds = Vec::new();
    for caller in callers {
        holds.extend(caller.await.unwrap());
    }
    assert_eq!(holds.len(), 100);
    assert_eq!(world.balance().await, (0, MONEY));
    let stats = world.meter.stats();
    assert_eq!(stats.ops, 640);
    assert!(stats.commits < stats.ops / 2, "{stats:?}");
    for hold in holds {
        hold.void(End::Refused, Vec::new()).await.unwrap();
    }
    let Ok(world) = Arc::try_unwrap(world) else { panic!("a caller still runs") };
    world.end().await;
}

#[tokio::test]
async fn a_store_that_is_away_delays_settlements_and_loses_none() {
    let world =
        World::with(MeterConfig { settle_wait: Duration::from_millis(100), ..MeterConfig::default() }).await;
    let hold = world.hold("a", 1000).await;
    let blocked = world.db.begin().await.unwrap();
    let late = hold.settle(settlement(End::Finished, chat(10, 0))).await;
    assert_eq!(late, Err(MeterError::StoreUnavailable));
    // The writer gives up waiting for the store after some seconds; then nothing new is admitted.
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.meter.is_open() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let refused = world.meter.admit(world.admission("b", 1)).await.unwrap_err();
    assert_eq!(refused, AdmitError::StoreUnavailable(MeterError::StoreUnavailable));
    drop(blocked);
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY - 10, 0));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(world.meter.is_open());
    world.end().await;
}

/// A whole answer that was not delivered is free, whether the store was away before or while it had the settlement.
#[tokio::test]
async fn a_whole_answer_that_the_store_delays_too_long_is_withdrawn() {
    let world =
        World::with(MeterConfig { settle_wait: Duration::from_millis(100), ..MeterConfig::default() }).await;
    let whole = |id| Admission { streamed: false, ..world.admission(id, 1000) };
    let (first, second) =
        (world.meter.admit(whole("a")).await.unwrap(), world.meter.admit(whole("b")).await.unwrap());
    let blocked = world.db.begin().await.unwrap();
    // The store has the first until it gives up, and the second waits for that.
    let (first, second) = tokio::join!(first.settle(settlement(End::Finished, chat(10, 0))), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        second.settle(settlement(End::Finished, chat(20, 0))).await
    });
    assert_eq!((first, second), (Err(MeterError::StoreUnavailable), Err(MeterError::StoreUnavailable)));
    drop(blocked);
    world.quiet().await;
    assert_eq!(world.balance().await, (MONEY, 0), "nobody pays for what was not delivered");
    world.end().await;
}

#[tokio::test]
async fn what_is_with_the_store_when_it_is_late_is_waited_for() {
    let world =
        World::with(MeterConfig { settle_wait: Duration::from_millis(500), ..MeterConfig::default() }).await;
    let hold = world.meter.admit(Admission { streamed: false, ..world.admission("a", 1000) }).await.unwrap();
    let blocked = world.db.begin().await.unwrap();
    let (settled, ()) = tokio::join!(hold.settle(settlement(End::Finished, chat(10, 0))), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(blocked);
    });
    assert_eq!(settled.unwrap().cost.0, 10);
    assert_eq!(world.balance().await, (MONEY - 10, 0));
    world.end().await;
}

#[tokio::test]
async fn what_a_process_left_open_is_resolved_at_the_next_start() {
    let world = World::new().await;
    let forgotten = world.hold("a", 1000).await;
    let streaming = world.hold("b", 1000).await;
    streaming.accepted(&ProvisionId::from_tail("node"), &UserId::from_tail("provider"), 1);
    streaming.checkpoint(chat(10, 300));
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.meter.stats().ops < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    // The process dies: nothing of it runs any more, not even its destructors.
    let World { db, meter, tasks, clock, _directory } = world;
    tasks.hard().cancel();
    assert!(tasks.stop(Duration::ZERO).await.is_empty());
    db.release_replica(&meter.inner.replica).await.unwrap();
    let other = MeterConfig { replica: "heir".into(), ..MeterConfig::default() };
    let refused = Meter::start(db.clone(), clock.clone(), &Tasks::new(), other.clone()).await;
    assert!(matches!(refused, Err(DbError::InUse { .. })), "the file lock is the lease on SQLite");
    std::mem::forget(forgotten);
    std::mem::forget(streaming);
    let copy = _directory.path().join("copy.db");
    std::fs::copy(_directory.path().join("cxmpute.db"), &copy).unwrap();
    std::fs::copy(_directory.path().join("cxmpute.db-wal"), copy.with_extension("db-wal")).unwrap();
    let db = Db::open(&format!("sqlite:{}", copy.display())).await.unwrap();
    let tasks = Tasks::new();
    let meter = Meter::start(db.clone(), clock.clone(), &tasks, MeterConfig::default()).await.unwrap();
    assert_eq!(meter.recovery().settled, [RequestId::from_tail("b")]);
    assert_eq!(meter.recovery().voided, [RequestId::from_tail("a")]);
    let world = World { db, meter, tasks, clock, _directory };
    assert_eq!(world.balance().await, (MONEY - 1000, 0), "capped by the hold: 10 + 3000 were delivered");
    world.end().await;
}

/// What the gates rely on: each known-bad variant breaks the promise it names.
#[cfg(feature = "sabotage")]
mod sabotaged {
    use cxmpute_store::AttemptRecord;
    use cxmpute_wire::Epoch;

    use super::*;
    use crate::sabotage::Sabotage;

    async fn world(variant: Sabotage) -> World {
        World::with(MeterConfig { sabotage: Some(variant), ..MeterConfig::default() }).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn check_then_debit_admits_more_than_the_account_can_pay() {
        let world = Arc::new(world(Sabotage::CheckThenDebit).await);
        let callers: Vec<_> = (0..64)
            .map(|caller| {
                let world = world.clone();
                tokio::spawn(async move {
                    let mut admitted = 0;
                    for n in 0..10 {
                        let admission = world.admission(&format!("c{caller}n{n}"), 100);
                        if let Ok(hold) = world.meter.admit(admission).await {
                            std::mem::forget(hold);
                            admitted += 1;
                        }
                    }
                    admitted
                })
            })
            .collect();
        let mut admitted = 0;
        for caller in callers {
            admitted += caller.await.unwrap();
        }
        assert!(admitted > 100, "{admitted} of 100 affordable requests were admitted");
        assert!(!world.db.check_ledger().await.unwrap().is_clean());
    }

    #[tokio::test]
    async fn done_before_commit_answers_while_nothing_is_durable() {
        let world = world(Sabotage::DoneBeforeCommit).await;
        let hold = world.hold("a", 1000).await;
        hold.settle(settlement(End::Finished, chat(10, 0))).await.unwrap();
        assert_eq!(world.balance().await, (MONEY - 1000, 1000));
        world.quiet().await;
        assert_eq!(world.balance().await, (MONEY - 10, 0));
    }

    #[tokio::test]
    async fn billing_every_attempt_charges_twice() {
        let world = world(Sabotage::BillEveryAttempt).await;
        let attempt = |attempt| AttemptRecord {
            attempt,
            provision_id: ProvisionId::from_tail("node"),
            epoch: Epoch(1),
            outcome: End::RetryLoser,
            code: None,
            accept: None,
            first_token: None,
            total: None,
        };
        let attempts = vec![attempt(1), attempt(2)];
        let hold = world.hold("a", 1000).await;
        hold.settle(Settlement { attempts, ..settlement(End::Finished, chat(10, 0)) }).await.unwrap();
        assert_eq!(world.balance().await, (MONEY - 20, 0));
        let report = world.db.check_ledger().await.unwrap();
        assert!(report.offences.iter().any(|offence| offence.rule.contains("payer lost")), "{report:?}");
    }
}
