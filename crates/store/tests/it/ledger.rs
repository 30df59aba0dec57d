//! Holds, settlements, refunds, recovery, reconciliation.

use std::sync::Arc;

use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_store::{LedgerOp, LedgerReply, MoveHold, Note, Posted, SpendCap};
use cxmpute_wire::{MicroCredits, ProvisionId, RequestId, ServiceId, ServiceKind};

use crate::world::{Market, NOW, chat, databases, price, tamper};

#[tokio::test]
async fn the_table_of_postings_is_reproduced() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000_000).await;
        assert_eq!(market.one(market.hold("a", 3000)).await, LedgerReply::Done);
        assert_eq!(market.balance().await, (9_997_000, 3000));
        market.assert_clean(1, fresh.name).await;
        let settled = market.resolve(market.end("a", 3000, End::Finished, chat(2410, 0))).await;
        assert_eq!((settled.cost.0, settled.refund.0), (2410, 590));
        assert_eq!((settled.provider_reward.0, settled.platform_fee.0), (2169, 241));
        assert_eq!(market.balance().await, (9_997_590, 0));
        assert_eq!(fresh.db.earnings(&market.provider).await.unwrap().pending.0, 2169);
        let row = fresh.db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.cost.0, row.end, row.title.as_deref()), (2410, Some(End::Finished), Some("title")));
        assert!(fresh.db.generation(&RequestId::from_tail("a"), &market.provider).await.unwrap().is_none());
        let totals = fresh.db.usage_totals(&market.payer, Some(&market.key)).await.unwrap();
        assert_eq!((totals.requests, totals.prompt, totals.cost.0), (1, 2410, 2410));
        market.assert_clean(0, fresh.name).await;
    }
}

/// Seconds, pages and images are charged, and the row of the request has them.
#[tokio::test]
async fn what_is_counted_by_the_piece_is_charged_and_kept() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        let pieces = Arc::new(PriceRow {
            id: "pieces".into(),
            second: MicroCredits(100_000_000),
            url: MicroCredits(600_000_000),
            image: MicroCredits(12_000_000_000),
            ..(*price()).clone()
        });
        let mut hold = market.admitted("a", 20_000);
        Arc::make_mut(&mut hold).price = pieces.clone();
        assert_eq!(market.one(LedgerOp::Admit(hold)).await, LedgerReply::Done);
        let counted = Units { seconds: 7, urls: 2, images: 1, ..Units::default() };
        let mut end = market.end("a", 20_000, End::Finished, counted);
        Arc::make_mut(&mut end.hold).price = pieces;
        assert_eq!(market.resolve(end).await.cost.0, 700 + 1_200 + 12_000);
        let row = fresh.db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.units, row.cost.0), (counted, 13_900), "{}", fresh.name);
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn each_end_moves_what_the_abort_table_says() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 100_000).await;
        for (n, end) in End::ALL.into_iter().enumerate() {
            let id = format!("r{n}");
            market.one(market.hold(&id, 100)).await;
            let wanted = market.end(&id, 100, end, chat(10, 5));
            let bill = wanted.bill().unwrap();
            let settled = market.resolve(wanted).await;
            assert_eq!((settled.cost, settled.platform_loss), (bill.posted, bill.platform_loss), "{end}");
        }
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_refused_admission_says_why_and_disturbs_nobody() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 1000).await;
        let replies = db
            .apply(&[
                market.hold("a", 600),
                market.hold("b", 600),
                market.hold("c", 400),
                market.hold("d", 0),
            ])
            .await
            .unwrap();
        let poor = LedgerReply::Insufficient { available: MicroCredits(400) };
        assert_eq!(
            replies,
            [LedgerReply::Done, poor, LedgerReply::Done, LedgerReply::Done],
            "{}",
            fresh.name
        );
        market.assert_clean(3, fresh.name).await;
        market.resolve(market.end("a", 600, End::Refused, chat(0, 0))).await;
        tamper(db, "UPDATE api_keys SET budget = 500 WHERE id = 'keypayer'").await.unwrap();
        let budget = LedgerReply::Budget { remaining: MicroCredits(100), cap: SpendCap::KeyTotal };
        assert_eq!(market.one(market.hold("e", 101)).await, budget);
        db.suspend_user(&market.payer, "test", NOW).await.unwrap();
        assert_eq!(market.one(market.hold("f", 1)).await, LedgerReply::Suspended);
        db.unsuspend_user(&market.payer).await.unwrap();
        db.revoke_key(&market.key, None, NOW).await.unwrap();
        assert_eq!(market.one(market.hold("g", 1)).await, LedgerReply::KeyRevoked);
        market.assert_clean(2, fresh.name).await;
    }
}

#[tokio::test]
async fn a_hold_resolves_once_whoever_asks() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 1000).await;
        market.one(market.hold("a", 500)).await;
        let first = market.resolve(market.end("a", 500, End::Finished, chat(100, 0))).await;
        let again = LedgerOp::Resolve(Arc::new(market.end("a", 500, End::Refused, chat(0, 0))));
        assert_eq!(market.one(again.clone()).await, LedgerReply::AlreadyResolved(first));
        let foreign = {
            let mut end = market.end("b", 500, End::Finished, chat(100, 0));
            market.one(market.hold("b", 500)).await;
            Arc::make_mut(&mut end.hold).epoch += 1;
            LedgerOp::Resolve(Arc::new(end))
        };
        assert_eq!(market.one(foreign).await, LedgerReply::NotHeld, "another epoch does not own the hold");
        let differs = LedgerOp::Resolve(Arc::new(market.end("b", 499, End::Finished, chat(1, 0))));
        assert_eq!(market.one(differs).await, LedgerReply::HeldDiffers { held: MicroCredits(500) });
        // The same admission again is refused whole.
        assert!(fresh.db.apply(&[market.hold("a", 1)]).await.is_err());
        market.assert_clean(1, fresh.name).await;
    }
}

#[tokio::test]
async fn extensions_are_guarded_and_safe_to_repeat() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 1000).await;
        market.one(market.hold("a", 500)).await;
        let extend = |step, amount| LedgerOp::Extend {
            request_id: RequestId::from_tail("a"),
            user_id: market.payer.clone(),
            key_id: market.key.clone(),
            epoch: market.replica.epoch,
            step,
            amount: MicroCredits(amount),
            now: NOW,
        };
        assert_eq!(market.one(extend(1, 300)).await, LedgerReply::Done);
        assert_eq!(market.one(extend(1, 300)).await, LedgerReply::Done, "the same step changes nothing");
        let poor = LedgerReply::Insufficient { available: MicroCredits(200) };
        assert_eq!(market.one(extend(2, 201)).await, poor);
        assert_eq!(market.one(extend(2, 200)).await, LedgerReply::Done);
        market.assert_clean(1, fresh.name).await;
        let settled = market.resolve(market.end("a", 1000, End::Finished, chat(999, 0))).await;
        assert_eq!((settled.cost.0, settled.refund.0), (999, 1));
        assert_eq!(market.one(extend(3, 1)).await, LedgerReply::NotHeld);
        market.assert_clean(0, fresh.name).await;
    }
}

/// Another model, ten times as dear, in its third version.
fn dear() -> Arc<PriceRow> {
    let cheap = price();
    Arc::new(PriceRow {
        id: "dear".into(),
        version: 3,
        prompt: MicroCredits(cheap.prompt.0 * 10),
        completion: MicroCredits(cheap.completion.0 * 10),
        ..(*cheap).clone()
    })
}

fn move_to_dear(market: &Market, request: &str) -> MoveHold {
    MoveHold {
        request_id: RequestId::from_tail(request),
        user_id: market.payer.clone(),
        epoch: market.replica.epoch,
        model: "dear-model".into(),
        service: ServiceId::new(ServiceKind::Llm, "dear-model"),
        price: dear(),
    }
}

#[tokio::test]
async fn a_moved_hold_keeps_its_money_and_is_settled_at_the_new_price() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 10_000).await;
        market.one(market.hold("a", 3000)).await;
        let to = LedgerOp::Move(Box::new(move_to_dear(&market, "a")));
        assert_eq!(market.one(to.clone()).await, LedgerReply::Done, "{}", fresh.name);
        assert_eq!(market.one(to.clone()).await, LedgerReply::Done, "the same move changes nothing");
        assert_eq!(market.balance().await, (7000, 3000), "no money moves");
        market.assert_clean(1, fresh.name).await;
        let row = db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.model.as_str(), row.price), ("dear-model", ("dear".to_owned(), 3)));
        let mut end = market.end("a", 3000, End::Finished, chat(100, 5));
        let moved = Arc::make_mut(&mut end.hold);
        (moved.model, moved.price) = ("dear-model".to_owned(), dear());
        let settled = market.resolve(end).await;
        assert_eq!((settled.cost.0, settled.refund.0), (1500, 1500));
        assert_eq!(db.earnings(&market.provider).await.unwrap().pending.0, 1350);
        assert_eq!(market.one(to).await, LedgerReply::NotHeld, "what is settled stays as it is");
        let row = db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.model.as_str(), row.cost.0), ("dear-model", 1500));
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_hold_is_moved_by_its_owner_alone() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000).await;
        market.one(market.hold("a", 3000)).await;
        let mut foreign = move_to_dear(&market, "a");
        foreign.epoch += 1;
        assert_eq!(market.one(LedgerOp::Move(Box::new(foreign))).await, LedgerReply::NotHeld);
        let unknown = LedgerOp::Move(Box::new(move_to_dear(&market, "b")));
        assert_eq!(market.one(unknown).await, LedgerReply::NotHeld);
        let row = fresh.db.generation(&RequestId::from_tail("a"), &market.payer).await.unwrap().unwrap();
        assert_eq!((row.model.as_str(), row.price), ("m", ("m".to_owned(), 1)), "{}", fresh.name);
        market.resolve(market.end("a", 3000, End::Finished, chat(100, 5))).await;
        market.assert_clean(0, fresh.name).await;
    }
}

/// A crash after a move is recovered at the new price, and what a node of the first model had delivered is void.
#[tokio::test]
async fn a_moved_hold_is_recovered_at_the_new_price() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 10_000).await;
        let note = |id: &str, checkpoint| {
            LedgerOp::Note(Note {
                request_id: RequestId::from_tail(id),
                user_id: market.payer.clone(),
                epoch: market.replica.epoch,
                provision_id: Some(ProvisionId::from_tail("node")),
                provider: Some(market.provider.clone()),
                attempt: 1,
                accepted_at: Some(NOW),
                checkpoint,
            })
        };
        for id in ["before", "after"] {
            market.one(market.hold(id, 3000)).await;
        }
        market.one(note("before", Some(chat(10, 7)))).await;
        for id in ["before", "after"] {
            market.one(LedgerOp::Move(Box::new(move_to_dear(&market, id)))).await;
        }
        market.one(note("after", Some(chat(10, 7)))).await;
        let dead = market.replica.clone();
        let market = restart(market, dead).await;
        let recovery = db.recover(&market.replica, NOW).await.unwrap();
        assert_eq!(recovery.settled, [RequestId::from_tail("after")], "{}", fresh.name);
        assert_eq!(recovery.voided, [RequestId::from_tail("before")]);
        assert_eq!(db.balance(&market.payer).await.unwrap().available.0, 10_000 - 800);
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn recovery_pays_the_last_checkpoint_and_never_more() {
    for fresh in databases().await {
        let db = &fresh.db;
        let mut market = Market::new(db, 10_000).await;
        for id in ["silent", "accepted", "streaming", "mine"] {
            market.one(market.hold(id, 1000)).await;
        }
        let note = |id: &str, checkpoint| {
            LedgerOp::Note(Note {
                request_id: RequestId::from_tail(id),
                user_id: market.payer.clone(),
                epoch: market.replica.epoch,
                provision_id: Some(ProvisionId::from_tail("node")),
                provider: Some(market.provider.clone()),
                attempt: 1,
                accepted_at: Some(NOW),
                checkpoint,
            })
        };
        let notes = [
            note("accepted", None),
            note("streaming", Some(chat(10, 3))),
            note("streaming", Some(chat(10, 7))),
        ];
        for op in notes {
            assert_eq!(market.one(op).await, LedgerReply::Done);
        }
        // A later note without a checkpoint does not take the earlier one away.
        market.one(note("streaming", None)).await;
        let nothing = db.recover(&market.replica, NOW).await.unwrap();
        assert_eq!((nothing.settled.len(), nothing.voided.len()), (0, 0), "own holds are alive");
        let dead = market.replica.clone();
        drop(std::mem::replace(&mut market.replica, dead.clone()));
        let market = restart(market, dead).await;
        let recovery = db.recover(&market.replica, NOW).await.unwrap();
        assert_eq!(recovery.settled, [RequestId::from_tail("streaming")], "{}", fresh.name);
        assert_eq!(recovery.voided.len(), 3);
        assert_eq!(db.balance(&market.payer).await.unwrap().available.0, 10_000 - 80);
        assert_eq!(db.earnings(&market.provider).await.unwrap().pending.0, 72);
        assert_eq!(
            db.recover(&market.replica, NOW).await.unwrap(),
            cxmpute_store::ledger::Recovery::default()
        );
        market.assert_clean(0, fresh.name).await;
    }
}

/// The same place with the next epoch, as after a restart.
async fn restart(market: Market, dead: cxmpute_store::Replica) -> Market {
    let Market { db, payer, key, provider, replica } = market;
    drop((replica, dead));
    let replica = db.claim_replica("gateway").await.unwrap();
    Market { db, payer, key, provider, replica }
}

#[tokio::test]
async fn a_dead_replica_is_swept_when_its_lease_ends_in_database_time() {
    for fresh in databases().await {
        if fresh.db.kind() == cxmpute_store::DbKind::Sqlite {
            continue; // One process; the file lock is the lease.
        }
        let db = &fresh.db;
        let market = Market::new(db, 1000).await;
        market.one(market.hold("a", 100)).await;
        let other = db.claim_replica("other").await.unwrap();
        assert_eq!(db.recover(&other, NOW).await.unwrap().voided.len(), 0, "the lease runs");
        db.release_replica(&market.replica).await.unwrap();
        assert_eq!(db.recover(&other, NOW).await.unwrap().voided.len(), 1);
        let late = LedgerOp::Resolve(Arc::new(market.end("a", 100, End::Finished, chat(50, 0))));
        assert!(
            matches!(market.one(late).await, LedgerReply::AlreadyResolved(settled) if settled.cost.0 == 0)
        );
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn grants_and_refunds_happen_once_per_key() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 1000).await;
        let again =
            db.grant_credits(&market.payer, MicroCredits(1000), "test", "again", "start", NOW).await.unwrap();
        assert_eq!(again, Posted::Duplicate);
        for amount in [0, -5, i64::MAX] {
            let bad = db
                .grant_credits(&market.payer, MicroCredits(amount), "test", "bad", "bad", NOW)
                .await
                .unwrap();
            assert_eq!(bad, Posted::Refused);
        }
        market.one(market.hold("a", 500)).await;
        market.resolve(market.end("a", 500, End::Finished, chat(400, 0))).await;
        let request = RequestId::from_tail("a");
        let refund =
            |amount, key: &'static str| db.refund(&request, MicroCredits(amount), "test", "why", key, NOW);
        assert_eq!(refund(30, "one").await.unwrap(), Posted::Entered);
        assert_eq!(refund(30, "one").await.unwrap(), Posted::Duplicate);
        assert_eq!(refund(371, "two").await.unwrap(), Posted::Refused, "never more than was charged");
        assert_eq!(
            refund(20, "three").await.unwrap(),
            Posted::Refused,
            "the platform's fee holds 40, 30 are gone"
        );
        assert_eq!(db.usage_totals(&market.payer, None).await.unwrap().cost.0, 370);
        assert_eq!(db.find_key(&market.key).await.unwrap().unwrap().spent.0, 370);
        assert_eq!(db.spent_in_all(&market.payer).await.unwrap().0, 370, "as the requests say");
        assert_eq!(db.spent_in_all(&market.provider).await.unwrap().0, 0);
        assert_eq!(db.mature(&market.provider, MicroCredits(360), "m", NOW).await.unwrap(), Posted::Entered);
        assert_eq!(db.payout(&market.provider, MicroCredits(361), "p", NOW).await.unwrap(), Posted::Refused);
        assert_eq!(db.payout(&market.provider, MicroCredits(360), "p", NOW).await.unwrap(), Posted::Entered);
        assert_eq!(db.earnings(&market.provider).await.unwrap().payable.0, 0);
        market.assert_clean(0, fresh.name).await;
    }
}

/// Where an attempt is kept depends on what it adds to its request; what is read does not.
#[tokio::test]
async fn attempts_are_read_as_they_were_written() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 10_000).await;
        let (node, span) = (ProvisionId::from_tail("node"), |ms| Some(cxmpute_wire::Millis(ms)));
        let mut plain = market.end("plain", 100, End::Finished, chat(10, 1));
        plain.attempts[0].first_token = span(7);
        plain.attempts[0].total = span(9);
        let mut failed = market.end("failed", 100, End::Finished, chat(10, 1));
        failed.attempts[0].outcome = End::ProviderFailed;
        failed.attempts[0].code = Some("engine_failed".into());
        let mut second = failed.attempts[0].clone();
        second.attempt = 2;
        second.outcome = End::Finished;
        second.code = None;
        failed.attempts.push(second);
        let mut elsewhere = market.end("elsewhere", 100, End::ProviderFailed, chat(0, 0));
        elsewhere.provision_id = None;
        for (id, end) in [("plain", plain), ("failed", failed), ("elsewhere", elsewhere)] {
            market.one(market.hold(id, 100)).await;
            let attempts = end.attempts.clone();
            market.resolve(end).await;
            let id = RequestId::from_tail(id);
            let rows = db.list_attempts(&id, &market.payer).await.unwrap();
            assert_eq!(rows.len(), attempts.len(), "{}: {id}", fresh.name);
            for (row, record) in rows.iter().zip(&attempts) {
                assert_eq!((row.attempt, &row.provision_id), (i64::from(record.attempt), &node), "{id}");
                assert_eq!((row.outcome, &row.code), (record.outcome, &record.code), "{id}");
                assert_eq!((row.first_token, row.total), (record.first_token, record.total), "{id}");
            }
            assert!(db.list_attempts(&id, &market.provider).await.unwrap().is_empty(), "{id}");
        }
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_claim_far_from_the_count_is_flagged() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000).await;
        market.one(market.hold("a", 5000)).await;
        let mut end = market.end("a", 5000, End::Finished, chat(100, 20));
        end.claimed = Some(chat(100, u64::MAX));
        let settled = market.resolve(end).await;
        assert_eq!((settled.cost.0, settled.provider_reward.0), (300, 270));
        let report = fresh.db.check_ledger().await.unwrap();
        assert_eq!((report.flags, report.is_clean()), (1, true), "{}", fresh.name);
    }
}

#[tokio::test]
async fn postings_cannot_be_changed_and_the_check_names_what_was_tampered_with() {
    for fresh in databases().await {
        let db = &fresh.db;
        let market = Market::new(db, 1000).await;
        market.one(market.hold("a", 500)).await;
        market.resolve(market.end("a", 500, End::Finished, chat(400, 0))).await;
        market.one(market.hold("open", 10)).await;
        for sql in [
            "UPDATE postings SET amount = amount + 1",
            "DELETE FROM postings",
            "UPDATE ledger_transactions SET reason = 'x'",
            "DELETE FROM ledger_transactions",
            "INSERT INTO ledger_transactions (id, kind, actor, reason, created_at, account_1, amount_1)
             VALUES ('grant:x', 'grant', 'x', 'x', 0, 'us_payer:user_available', 1)",
            "UPDATE prices SET price = '{}'",
            "DELETE FROM prices",
        ] {
            assert!(tamper(db, sql).await.is_err(), "{}: {sql}", fresh.name);
        }
        assert!(
            tamper(db, "UPDATE ledger_accounts SET balance = -1 WHERE id = 'us_payer:user_available'")
                .await
                .is_err()
        );
        assert!(tamper(db, "UPDATE requests SET cost = held + 1").await.is_err());
        assert!(tamper(db, "UPDATE requests SET refunded = cost + 1").await.is_err());
        market.assert_clean(1, fresh.name).await;
        let frauds = [
            (
                "ledger_accounts SET balance = balance",
                "+ 7",
                "- 7",
                "WHERE kind = 'user_promo'",
                "us_payer:user_promo",
            ),
            ("requests SET cost = cost", "- 1", "+ 1", "", "req_a"),
            ("requests SET provider_reward = provider_reward", "+ 1", "- 1", "", "req_a"),
            ("requests SET held = held", "+ 1", "- 1", "", "req_a"),
            ("requests SET refunded = refunded", "+ 1", "- 1", "", "keypayer"),
            ("requests SET key_id =", "'nobody'", "'keypayer'", "", "req_a"),
            ("api_keys SET spent = spent", "+ 1", "- 1", "", "keypayer"),
            ("holds SET amount = amount", "+ 1", "- 1", "", "req_open"),
            ("holds SET price_version =", "9", "1", "", "req_open"),
            ("holds SET request_id =", "'req_a'", "'req_open'", "", "req_a"),
        ];
        for (what, fraud, undo, filter, id) in frauds {
            tamper(db, &format!("UPDATE {what} {fraud} {filter}")).await.unwrap();
            let report = db.check_ledger().await.unwrap();
            assert!(
                report.offences.iter().any(|offence| offence.id == id),
                "{}: {what}: {report:?}",
                fresh.name
            );
            assert!(report.explained() < 1.0, "{}: {what}", fresh.name);
            tamper(db, &format!("UPDATE {what} {undo} {filter}")).await.unwrap();
            market.assert_clean(1, fresh.name).await;
        }
    }
}
