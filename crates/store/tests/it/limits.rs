//! Limits of keys and accounts, and the spend that they keep under them.

use std::sync::Arc;

use cxmpute_market::ledger::End;
use cxmpute_store::{
    Db, KeyKind, KeySettings, LedgerOp, LedgerReply, LimitSubject, Limits, NewKey, Posted, SpendCap,
};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, Timestamp};

use crate::world::{Market, NOW, chat, databases, tamper, user_id};

fn per_day(amount: i64) -> Limits {
    Limits { spend_per_day: Some(MicroCredits(amount)), ..Limits::default() }
}

async fn set(db: &Db, subject: LimitSubject<'_>, limits: &Limits) {
    assert!(db.set_limits(subject, limits).await.unwrap());
}

/// A second key of the payer's account.
async fn second_key(market: &Market) -> KeyId {
    let id = KeyId::from_tail("second");
    let key = NewKey {
        id: id.clone(),
        user_id: market.payer.clone(),
        kind: KeyKind::Api,
        name: "second".into(),
        hash: b"second".to_vec(),
        env: "live".into(),
        budget: None,
        created_at: NOW,
    };
    market.db.create_key(&key).await.unwrap();
    id
}

fn with_key(op: LedgerOp, key: &KeyId) -> LedgerOp {
    match op {
        LedgerOp::Admit(mut hold) => {
            std::sync::Arc::make_mut(&mut hold).key_id = key.clone();
            LedgerOp::Admit(hold)
        }
        other => other,
    }
}

async fn extend(market: &Market, request: &str, step: i64, amount: i64) -> LedgerReply {
    let op = LedgerOp::Extend {
        request_id: RequestId::from_tail(request),
        user_id: market.payer.clone(),
        key_id: market.key.clone(),
        epoch: market.replica.epoch,
        step,
        amount: MicroCredits(amount),
        now: NOW,
    };
    market.one(op).await
}

async fn spent(market: &Market) -> (i64, i64) {
    let (day, month) = market.db.period_spend(&market.key).await.unwrap();
    (day.0, month.0)
}

#[tokio::test]
async fn limits_are_kept_as_set_and_shown_as_they_hold() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 1000).await;
        let db = &fresh.db;
        let limits = Limits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(0),
            concurrent: None,
            spend_per_day: Some(MicroCredits(5)),
            spend_per_month: None,
            models: Some(vec!["cxm-tiny".into()]),
            routes: Some(vec!["/embeddings".into()]),
        };
        let subject = LimitSubject::Key(&market.key);
        assert_eq!(db.limits_of(subject).await.unwrap(), Some(Limits::default()));
        set(db, subject, &limits).await;
        assert_eq!(db.limits_of(subject).await.unwrap().as_ref(), Some(&limits));
        let defaults = Limits { tokens_per_minute: Some(7), concurrent: Some(8), ..Limits::default() };
        let of_account = Limits { requests_per_minute: Some(9), ..Limits::default() };
        db.set_default_limits(&defaults, &of_account).await.unwrap();
        let settings = KeySettings { expires_at: Some(Timestamp(77)), strict: true, force_usage: true };
        assert!(db.set_key_settings(&market.key, "renamed", Some(MicroCredits(3)), settings).await.unwrap());
        let row = db.find_key(&market.key).await.unwrap().unwrap();
        let held = Limits { tokens_per_minute: None, concurrent: Some(8), ..limits.clone() };
        assert_eq!(row.limits, held, "{}: 0 is no limit, unset takes the default", fresh.name);
        assert_eq!(row.account.requests_per_minute, Some(9));
        assert_eq!(
            (row.settings, row.name.as_str(), row.budget),
            (settings, "renamed", Some(MicroCredits(3)))
        );
        let nobody = user_id("nobody");
        assert!(!db.set_limits(LimitSubject::Account(&nobody), &limits).await.unwrap());
        assert_eq!(db.limits_of(LimitSubject::Account(&nobody)).await.unwrap(), None);
        assert_eq!(db.live_replicas().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_limit_per_day_binds_holds_and_what_comes_back_can_be_spent_again() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000).await;
        set(&fresh.db, LimitSubject::Key(&market.key), &per_day(1000)).await;
        assert_eq!(market.one(market.hold("a", 700)).await, LedgerReply::Done);
        let day = |left| LedgerReply::Budget { remaining: MicroCredits(left), cap: SpendCap::KeyDay };
        assert_eq!(market.one(market.hold("b", 301)).await, day(300), "{}", fresh.name);
        assert_eq!(extend(&market, "a", 1, 301).await, day(300));
        assert_eq!(extend(&market, "a", 1, 300).await, LedgerReply::Done);
        assert_eq!(spent(&market).await, (1000, 1000));
        let settled = market.resolve(market.end("a", 1000, End::Finished, chat(100, 0))).await;
        assert_eq!(settled.cost.0, 100);
        assert_eq!(spent(&market).await, (100, 100));
        let refunded = fresh
            .db
            .refund(&RequestId::from_tail("a"), MicroCredits(10), "test", "x", "k", NOW)
            .await
            .unwrap();
        assert_eq!(refunded, Posted::Entered);
        assert_eq!(spent(&market).await, (90, 90));
        assert_eq!(market.one(market.hold("c", 910)).await, LedgerReply::Done);
        market.resolve(market.end("c", 910, End::Refused, chat(0, 0))).await;
        assert_eq!(spent(&market).await, (90, 90));
        market.assert_clean(0, fresh.name).await;
    }
}

#[tokio::test]
async fn a_new_day_begins_at_zero_and_a_hold_gives_back_to_the_day_it_took_from() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000).await;
        let limits = Limits { spend_per_month: Some(MicroCredits(1500)), ..per_day(1000) };
        set(&fresh.db, LimitSubject::Key(&market.key), &limits).await;
        assert_eq!(market.one(market.hold("a", 800)).await, LedgerReply::Done);
        // As if that had been yesterday, in the same month: days are only compared, so day 00 of a month will do.
        for table in ["api_keys", "holds", "requests"] {
            let yesterday =
                format!("UPDATE {table} SET spend_day = spend_day / 100 * 100 WHERE spend_day > 0");
            tamper(&fresh.db, &yesterday).await.unwrap();
        }
        market.assert_clean(1, fresh.name).await;
        assert_eq!(spent(&market).await, (0, 800), "{}", fresh.name);
        assert_eq!(extend(&market, "a", 1, 300).await, LedgerReply::Done);
        assert_eq!(spent(&market).await, (300, 1100));
        market.assert_clean(1, fresh.name).await;
        let month = LedgerReply::Budget { remaining: MicroCredits(400), cap: SpendCap::KeyMonth };
        assert_eq!(market.one(market.hold("b", 401)).await, month);
        // 850 of 1,100 are paid: 800 were of yesterday, so 50 stay with today.
        market.resolve(market.end("a", 1100, End::Finished, chat(850, 0))).await;
        assert_eq!(spent(&market).await, (50, 850));
        market.assert_clean(0, fresh.name).await;
        let a = RequestId::from_tail("a");
        let refunded = fresh.db.refund(&a, MicroCredits(80), "test", "x", "k", NOW).await.unwrap();
        assert_eq!(refunded, Posted::Entered);
        assert_eq!(spent(&market).await, (0, 770), "the later day gets its part back first");
        market.assert_clean(0, fresh.name).await;
        // A hold of last month that ends now changes nothing of this month.
        assert_eq!(market.one(market.hold("old", 200)).await, LedgerReply::Done);
        for table in ["api_keys", "holds", "requests"] {
            let before = format!("UPDATE {table} SET spend_day = spend_day - 100 WHERE spend_day > 0");
            tamper(&fresh.db, &before).await.unwrap();
        }
        assert_eq!(market.one(market.hold("new", 1000)).await, LedgerReply::Done);
        market.resolve(market.end("old", 200, End::Refused, chat(0, 0))).await;
        assert_eq!(spent(&market).await, (1000, 1000));
        market.assert_clean(1, fresh.name).await;
    }
}

#[tokio::test]
async fn an_account_limit_counts_all_its_keys_also_those_used_before_it_was_set() {
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 10_000).await;
        let second = second_key(&market).await;
        assert_eq!(market.one(market.hold("a", 400)).await, LedgerReply::Done);
        set(&fresh.db, LimitSubject::Account(&market.payer), &per_day(1000)).await;
        assert_eq!(market.one(with_key(market.hold("b", 500), &second)).await, LedgerReply::Done);
        let refused = LedgerReply::Budget { remaining: MicroCredits(100), cap: SpendCap::AccountDay };
        assert_eq!(market.one(market.hold("c", 101)).await, refused, "{}", fresh.name);
        assert_eq!(market.one(with_key(market.hold("c", 101), &second)).await, refused);
        set(&fresh.db, LimitSubject::Account(&market.payer), &Limits::default()).await;
        let defaults = Limits { spend_per_month: Some(MicroCredits(1000)), ..Limits::default() };
        fresh.db.set_default_limits(&Limits::default(), &defaults).await.unwrap();
        let refused = LedgerReply::Budget { remaining: MicroCredits(100), cap: SpendCap::AccountMonth };
        assert_eq!(market.one(market.hold("c", 101)).await, refused);
        let none = Limits { spend_per_month: Some(MicroCredits(0)), ..Limits::default() };
        set(&fresh.db, LimitSubject::Account(&market.payer), &none).await;
        assert_eq!(market.one(market.hold("c", 101)).await, LedgerReply::Done, "0 lifts the default");
        market.assert_clean(3, fresh.name).await;
    }
}

/// 64 at once against a limit that pays for exactly 25; `keys` take turns.
async fn race(market: &Arc<Market>, keys: &[KeyId]) -> usize {
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let market = market.clone();
            let op = with_key(market.hold(&format!("t{task}"), 10), &keys[task % keys.len()]);
            tokio::spawn(async move {
                loop {
                    match market.db.apply(std::slice::from_ref(&op)).await {
                        Ok(replies) => return replies[0],
                        Err(error) if error.cause().is_collision() => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        match task.await.unwrap() {
            LedgerReply::Done => admitted += 1,
            LedgerReply::Budget { remaining, .. } => assert!((0..10).contains(&remaining.0), "{remaining}"),
            other => panic!("{other:?}"),
        }
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_requests_never_pass_the_limit_of_their_key() {
    for fresh in databases().await {
        let market = Arc::new(Market::new(&fresh.db, 1_000_000).await);
        set(&fresh.db, LimitSubject::Key(&market.key), &per_day(259)).await;
        assert_eq!(race(&market, std::slice::from_ref(&market.key)).await, 25, "{}", fresh.name);
        market.assert_clean(25, fresh.name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_keys_never_pass_the_limit_of_their_account() {
    for fresh in databases().await {
        let market = Arc::new(Market::new(&fresh.db, 1_000_000).await);
        let keys = [market.key.clone(), second_key(&market).await];
        set(&fresh.db, LimitSubject::Account(&market.payer), &per_day(259)).await;
        assert_eq!(race(&market, &keys).await, 25, "{}", fresh.name);
        market.assert_clean(25, fresh.name).await;
    }
}
