//! Allowances: taken by guarded statements, charged at most once per request, given back to the last micro-credit.

use std::collections::BTreeMap;
use std::sync::Arc;

use cxmpute_market::ledger::End;
use cxmpute_store::{
    Allowance, Charge, Graduation, LedgerOp, LedgerReply, LimitSubject, Limits, Note, Posted, ResolveHold,
    SpendCap, Wish,
};
use cxmpute_wire::{MicroCredits, ProvisionId, RequestId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::world::{Market, NOW, chat, databases, tamper};

/// Steps of the random history on each database.
const STEPS: usize = 600;

fn allowance(market: &Market, id: &str) -> Allowance {
    Allowance {
        id: id.into(),
        user_id: market.payer.clone(),
        key_id: market.key.clone(),
        replica: market.replica.id.as_str().into(),
        epoch: market.replica.epoch,
    }
}

fn take(market: &Market, id: &str, wanted: i64, least: i64) -> LedgerOp {
    LedgerOp::Take(Arc::new(Wish {
        allowance: allowance(market, id),
        wanted: MicroCredits(wanted),
        least: MicroCredits(least),
        now: NOW,
    }))
}

fn charge(market: &Market, id: &str, end: ResolveHold, repeated: bool) -> LedgerOp {
    LedgerOp::Charge(Charge { allowance: Arc::new(allowance(market, id)), end: Arc::new(end), repeated })
}

fn graduate(market: &Market, id: &str, request: &str, amount: i64) -> LedgerOp {
    LedgerOp::Graduate(Graduation {
        allowance: Arc::new(allowance(market, id)),
        hold: market.admitted(request, amount),
    })
}

fn give_back(market: &Market, id: &str) -> LedgerOp {
    LedgerOp::Return(Arc::new(allowance(market, id)), NOW)
}

const fn taken(amount: i64) -> LedgerReply {
    LedgerReply::Taken { amount: MicroCredits(amount) }
}

#[tokio::test]
async fn requests_are_charged_to_an_allowance_and_the_rest_goes_back() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        assert_eq!(market.one(take(&market, "al_1", 3000, 100)).await, taken(3000), "{}", fresh.name);
        assert_eq!(market.balance().await, (100_000, 0), "what is taken beforehand is shown as available");
        market.assert_clean(0, fresh.name).await;
        let ends = [("a", End::Finished, 70), ("b", End::Finished, 30), ("c", End::Refused, 50)];
        let ops: Vec<_> = ends
            .iter()
            .map(|(id, end, units)| {
                charge(&market, "al_1", market.end(id, 1000, *end, chat(*units, 0)), false)
            })
            .collect();
        let replies = fresh.db.apply(&ops).await.unwrap();
        let costs = replies.iter().map(|reply| match reply {
            LedgerReply::Resolved(settled) => (settled.cost.0, settled.refund.0),
            other => panic!("{other:?}"),
        });
        assert_eq!(costs.collect::<Vec<_>>(), [(70, 930), (30, 970), (0, 1000)]);
        assert_eq!(market.balance().await, (99_900, 0));
        assert_eq!(fresh.db.earnings(&market.provider).await.unwrap().pending.0, 90);
        let row = fresh.db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.cost.0, row.end), (70, Some(End::Finished)));
        market.assert_clean(0, fresh.name).await;
        assert_eq!(market.one(give_back(&market, "al_1")).await, LedgerReply::Done);
        assert_eq!(market.one(give_back(&market, "al_1")).await, LedgerReply::NotHeld, "once");
        assert_eq!(market.balance().await, (99_900, 0));
        let late = charge(&market, "al_1", market.end("d", 1000, End::Finished, chat(1, 0)), false);
        assert_eq!(market.one(late).await, LedgerReply::NotHeld, "nothing is charged to what was given back");
        assert_eq!(fresh.db.check_ledger().await.unwrap().allowances, 0);
        // A refund finds its payer, never more than was charged.
        let refund = async |amount, key| {
            let (id, amount) = (RequestId::from_tail("a"), MicroCredits(amount));
            fresh.db.refund(&id, amount, "test", "refund", key, NOW).await.unwrap()
        };
        assert_eq!(refund(5, "one").await, Posted::Entered);
        assert_eq!(refund(66, "two").await, Posted::Refused);
        assert_eq!(refund(5, "three").await, Posted::Entered);
        assert_eq!(market.balance().await, (99_910, 0));
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn an_allowance_takes_a_twentieth_at_most_and_never_past_a_limit() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 100_000).await;
        assert_eq!(market.one(take(&market, "al_1", 90_000, 100)).await, taken(5000), "{}", fresh.name);
        tamper(db, "UPDATE api_keys SET budget = 7000 WHERE id = 'keypayer'").await.unwrap();
        assert_eq!(
            market.one(take(&market, "al_2", 90_000, 100)).await,
            taken(100),
            "2000 are left of the budget"
        );
        let few = LedgerReply::Insufficient { available: MicroCredits(1900) };
        assert_eq!(market.one(take(&market, "al_3", 90_000, 96)).await, few);
        // What was taken counts against the budget of everybody else.
        let budget = LedgerReply::Budget { remaining: MicroCredits(1900), cap: SpendCap::KeyTotal };
        assert_eq!(market.one(market.hold("a", 1901)).await, budget);
        assert_eq!(market.one(market.hold("a", 1900)).await, LedgerReply::Done);
        market.assert_clean(1, fresh.name).await;
        assert_eq!(market.one(give_back(&market, "al_1")).await, LedgerReply::Done);
        assert_eq!(market.one(market.hold("b", 5000)).await, LedgerReply::Done);
        assert_eq!(
            market.one(market.hold("c", 1)).await,
            LedgerReply::Budget { remaining: MicroCredits(0), cap: SpendCap::KeyTotal }
        );
        db.suspend_user(&market.payer, "test", NOW).await.unwrap();
        assert_eq!(market.one(take(&market, "al_4", 1, 1)).await, LedgerReply::Suspended);
        db.unsuspend_user(&market.payer).await.unwrap();
        db.revoke_key(&market.key, None, NOW).await.unwrap();
        assert_eq!(market.one(take(&market, "al_4", 1, 1)).await, LedgerReply::KeyRevoked);
        market.assert_clean(2, fresh.name).await;
    }
}

#[tokio::test]
async fn spending_of_a_day_counts_what_was_charged_and_no_more() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        let limits = Limits { spend_per_day: Some(MicroCredits(4000)), ..Limits::default() };
        assert!(fresh.db.set_limits(LimitSubject::Key(&market.key), &limits).await.unwrap());
        assert_eq!(market.one(take(&market, "al_1", 90_000, 1)).await, taken(200));
        let spent = async || fresh.db.period_spend(&market.key).await.unwrap().0.0;
        assert_eq!(spent().await, 0, "what is only taken beforehand is not spent");
        market.one(charge(&market, "al_1", market.end("a", 150, End::Finished, chat(40, 0)), false)).await;
        assert_eq!(spent().await, 40);
        market.assert_clean(0, fresh.name).await;
        market.one(give_back(&market, "al_1")).await;
        assert_eq!(spent().await, 40);
        let day = LedgerReply::Budget { remaining: MicroCredits(3960), cap: SpendCap::KeyDay };
        assert_eq!(market.one(market.hold("b", 3961)).await, day, "{}", fresh.name);
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_request_that_lasts_gets_a_hold_like_any_other() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        market.one(take(&market, "al_1", 3000, 1)).await;
        let note = LedgerOp::Note(Note {
            request_id: RequestId::from_tail("a"),
            user_id: market.payer.clone(),
            epoch: market.replica.epoch,
            provision_id: Some(ProvisionId::from_tail("node")),
            provider: Some(market.provider.clone()),
            attempt: 1,
            accepted_at: Some(NOW),
            checkpoint: Some(chat(10, 7)),
        });
        let extend = LedgerOp::Extend {
            request_id: RequestId::from_tail("a"),
            user_id: market.payer.clone(),
            key_id: market.key.clone(),
            epoch: market.replica.epoch,
            step: 1,
            amount: MicroCredits(500),
            now: NOW,
        };
        // All in one commit, whatever their order.
        let ops = [note, extend, graduate(&market, "al_1", "a", 1000)];
        let replies = fresh.db.apply(&ops).await.unwrap();
        assert_eq!(replies, [LedgerReply::Done; 3], "{}", fresh.name);
        assert_eq!(market.balance().await, (98_500, 1500));
        market.assert_clean(1, fresh.name).await;
        assert_eq!(
            market.one(graduate(&market, "al_1", "b", 2001)).await,
            LedgerReply::NotHeld,
            "2000 are left"
        );
        let settled = market.resolve(market.end("a", 1500, End::Finished, chat(100, 0))).await;
        assert_eq!((settled.cost.0, settled.refund.0), (100, 1400));
        market.one(give_back(&market, "al_1")).await;
        assert_eq!(market.balance().await, (99_900, 0));
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_charge_is_entered_once_whatever_is_repeated() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        market.one(take(&market, "al_1", 3000, 1)).await;
        let end = || market.end("a", 1000, End::Finished, chat(100, 0));
        let LedgerReply::Resolved(first) = market.one(charge(&market, "al_1", end(), true)).await else {
            panic!("not charged")
        };
        assert_eq!(
            market.one(charge(&market, "al_1", end(), true)).await,
            LedgerReply::AlreadyResolved(first)
        );
        assert!(fresh.db.apply(&[charge(&market, "al_1", end(), false)]).await.is_err(), "refused whole");
        assert_eq!(market.balance().await, (99_900, 0), "{}", fresh.name);
        market.assert_clean(0, fresh.name).await;
    }
}

/// Who was thought dead charges nothing any more, and its heir gives back what was left.
#[tokio::test]
async fn what_a_dead_replica_had_goes_back_and_is_fenced() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 100_000).await;
        market.one(take(&market, "al_1", 3000, 1)).await;
        market.one(charge(&market, "al_1", market.end("a", 1000, End::Finished, chat(100, 0)), false)).await;
        market.one(graduate(&market, "al_1", "b", 1000)).await;
        assert!(db.recover(&market.replica, NOW).await.unwrap().voided.is_empty(), "one's own is alive");
        assert_eq!(db.check_ledger().await.unwrap().allowances, 1);
        let Market { db, payer, key, provider, replica } = market;
        let old = replica.epoch;
        drop(replica);
        let replica = db.claim_replica("gateway").await.unwrap();
        let market = Market { db: db.clone(), payer, key, provider, replica };
        let recovery = db.recover(&market.replica, NOW).await.unwrap();
        assert_eq!(recovery.voided, [RequestId::from_tail("b")], "{}", fresh.name);
        assert_eq!(market.balance().await, (99_900, 0));
        let mut late = allowance(&market, "al_1");
        late.epoch = old;
        let end = Arc::new(market.end("c", 1000, End::Finished, chat(100, 0)));
        let op = LedgerOp::Charge(Charge { allowance: Arc::new(late), end, repeated: false });
        assert_eq!(market.one(op).await, LedgerReply::NotHeld);
        assert_eq!(db.check_ledger().await.unwrap().allowances, 0);
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn whoever_changes_what_may_be_spent_wants_allowances_back() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 1_000_000).await;
        for (n, id) in ["al_1", "al_2", "al_3", "al_4"].into_iter().enumerate() {
            market.one(take(&market, id, 1000, 1)).await;
            assert!(db.recalled_allowances(&market.replica).await.unwrap().is_empty(), "{} {n}", fresh.name);
            match n {
                0 => assert_eq!(db.recall_allowances(&market.payer).await.unwrap(), 1),
                1 => {
                    assert!(db.set_limits(LimitSubject::Key(&market.key), &Limits::default()).await.unwrap())
                }
                2 => assert!(db.suspend_user(&market.payer, "test", NOW).await.unwrap()),
                _ => assert!(db.revoke_key(&market.key, None, NOW).await.unwrap()),
            }
            assert_eq!(db.recalled_allowances(&market.replica).await.unwrap(), [id], "{} {n}", fresh.name);
            assert_eq!(db.held_allowances(&market.replica).await.unwrap(), [id], "{} {n}", fresh.name);
            assert_eq!(db.count_allowances(&market.payer).await.unwrap(), 1, "{} {n}", fresh.name);
            market.one(give_back(&market, id)).await;
            if n == 2 {
                db.unsuspend_user(&market.payer).await.unwrap();
            }
        }
        market.assert_clean(0, fresh.name).await;
    }
}

/// What a step of the random history does; places are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Take { wanted: i64 },
    Begin { place: usize, amount: i64 },
    End { place: usize, units: u64, end: usize },
    Last { place: usize },
    Return { place: usize },
    Hold { amount: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0_usize..64;
    prop_oneof![
        2 => (1_i64..3000).prop_map(|wanted| Step::Take { wanted }),
        6 => (place.clone(), 0_i64..400).prop_map(|(place, amount)| Step::Begin { place, amount }),
        6 => (place.clone(), 0_u64..500, 0_usize..64)
            .prop_map(|(place, units, end)| Step::End { place, units, end }),
        2 => place.clone().prop_map(|place| Step::Last { place }),
        1 => place.prop_map(|place| Step::Return { place }),
        2 => (0_i64..4000).prop_map(|amount| Step::Hold { amount }),
    ]
}

/// A request of the history: its allowance (until it has a hold of its own) and what it may cost.
struct Running {
    id: String,
    from: Option<String>,
    amount: i64,
}

/// Batches of random steps keep every rule of the ledger, and what a model of the allowances says comes true.
#[tokio::test]
async fn random_allowances_keep_every_rule_of_the_ledger() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 50_000).await;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let steps = step();
        // What is free of each allowance, as a replica keeps it in memory.
        let mut free: BTreeMap<String, i64> = BTreeMap::new();
        let mut running: Vec<Running> = Vec::new();
        let mut batch: Vec<LedgerOp> = Vec::new();
        let (mut paid, mut charges) = (0, 0);
        for n in 0..STEPS {
            let mut taking = None;
            match steps.new_tree(&mut runner).unwrap().current() {
                Step::Take { wanted } => {
                    taking = Some((format!("al_{n}"), take(&market, &format!("al_{n}"), wanted, 1)));
                }
                Step::Begin { place, amount } => {
                    let place = place % free.len().max(1);
                    let Some((id, left)) = free.iter_mut().nth(place) else { continue };
                    if *left >= amount {
                        *left -= amount;
                        running.push(Running { id: format!("r{n}"), from: Some(id.clone()), amount });
                    }
                }
                Step::End { place, units, end } if !running.is_empty() => {
                    let request = running.swap_remove(place % running.len());
                    let end = End::ALL[end % End::ALL.len()];
                    let end = market.end(&request.id, request.amount, end, chat(units, 0));
                    let bill = end.bill().unwrap();
                    paid += bill.posted.0;
                    charges += 1;
                    match request.from {
                        None => batch.push(LedgerOp::Resolve(Arc::new(end))),
                        Some(id) => {
                            *free.entry(id.clone()).or_default() += request.amount - bill.posted.0;
                            batch.push(charge(&market, &id, end, n % 2 == 0));
                        }
                    }
                }
                Step::Last { place } if !running.is_empty() => {
                    let place = place % running.len();
                    let request = &mut running[place];
                    if let Some(id) = request.from.take() {
                        batch.push(graduate(&market, &id, &request.id, request.amount));
                    }
                }
                Step::Return { place } => {
                    let Some(id) = free.keys().nth(place % free.len().max(1)).cloned() else { continue };
                    // A replica gives back only what no request has money of.
                    if running.iter().all(|request| request.from.as_deref() != Some(&id)) {
                        free.remove(&id);
                        batch.push(give_back(&market, &id));
                    }
                }
                Step::Hold { amount } => batch.push(market.hold(&format!("h{n}"), amount)),
                Step::End { .. } | Step::Last { .. } => continue,
            }
            if batch.len() < 8 && taking.is_none() {
                continue;
            }
            let replies = fresh.db.apply(&batch).await.unwrap();
            for (op, reply) in batch.drain(..).zip(replies) {
                match (&op, reply) {
                    (LedgerOp::Admit(hold), LedgerReply::Done) => {
                        let id = hold.request_id.as_str().trim_start_matches("req_").to_owned();
                        running.push(Running { id, from: None, amount: hold.amount.0 });
                    }
                    (LedgerOp::Admit(_), LedgerReply::Insufficient { .. })
                    | (_, LedgerReply::Done | LedgerReply::Resolved(_)) => {}
                    (op, reply) => panic!("{} {n}: {op:?} {reply:?}", fresh.name),
                }
            }
            if let Some((id, op)) = taking
                && let LedgerReply::Taken { amount } = market.one(op).await
            {
                free.insert(id, amount.0);
            }
            if n % 50 == 0 {
                let report = fresh.db.check_ledger().await.unwrap();
                assert!(report.is_clean(), "{} {n}: {report:?}", fresh.name);
                let total = fresh.db.balance(&market.payer).await.unwrap().total().0;
                assert_eq!(total, 50_000 - paid, "{} {n}", fresh.name);
            }
        }
        fresh.db.apply(&batch).await.unwrap();
        assert!(charges > STEPS / 10, "only {charges} ends");
        assert!(fresh.db.check_ledger().await.unwrap().is_clean());
    }
}
