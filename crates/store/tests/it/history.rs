//! Gate L2 on the stores: random histories, compared with the ledger as a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use cxmpute_market::book::{Applied, Book, Event};
use cxmpute_market::ledger::End;
use cxmpute_store::{LedgerOp, LedgerReply, Posted};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, UserId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::world::{Market, NOW, account, chat, databases, user_id};

/// Steps per history; `CXMPUTE_TEST_STEPS` asks for more.
const STEPS: usize = 1500;

/// Pools grow with the history, so that duplicates stay common and new things stay possible.
fn event(steps: usize) -> impl Strategy<Value = Event> {
    let (requests, keys) = (steps / 7 + 1, steps / 5 + 1);
    let amount = prop_oneof![10 => 0_i64..5_000, 1 => -5_i64..0, 1 => Just(i64::MAX)].prop_map(MicroCredits);
    let payer = (0_u8..3).prop_map(|n| user_id(&format!("payer{n}")));
    let provider = (0_u8..2).prop_map(|n| user_id(&format!("provider{n}")));
    let request = (0..requests).prop_map(|n| RequestId::from_tail(&format!("r{n}")).to_string());
    let key = (0..keys).prop_map(|n| format!("k{n}"));
    (0_u8..9, key, request, payer, provider, amount).prop_map(
        |(kind, key, request, payer, provider, amount)| match kind {
            0 => Event::Deposit { key, user: payer, amount },
            1 | 2 => Event::Reserve { request, user: payer, amount },
            3 => Event::Extend { request, step: 0, amount },
            4 => Event::Post { request, charge: amount, provider, share_bp: 9000 },
            5 => Event::Void { request },
            6 => Event::Refund { key, request, amount },
            7 => Event::Mature { key, provider, amount },
            _ => Event::Payout { key, provider, amount },
        },
    )
}

/// Plays events on a store.
struct Player {
    market: Market,
    /// Who holds how much, and how many extensions it has, as the store answered.
    holds: BTreeMap<String, (UserId, i64, i64)>,
}

impl Player {
    fn key_of(user: &UserId) -> KeyId {
        KeyId::from_tail(&format!("key{}", user.as_str().trim_start_matches("us_")))
    }

    /// What the event did; `None` when it cannot be asked of the store.
    async fn play(&mut self, event: &Event) -> Option<Applied> {
        let db = self.market.db.clone();
        let posted = |posted: Posted| match posted {
            Posted::Entered => Applied::Entered,
            Posted::Duplicate => Applied::Duplicate,
            Posted::Refused => Applied::Refused,
        };
        Some(match event {
            Event::Deposit { key, user, amount } => {
                posted(db.grant_credits(user, *amount, "test", "deposit", key, NOW).await.unwrap())
            }
            Event::Mature { key, provider, amount } => {
                posted(db.mature(provider, *amount, key, NOW).await.unwrap())
            }
            Event::Payout { key, provider, amount } => {
                posted(db.payout(provider, *amount, key, NOW).await.unwrap())
            }
            Event::Refund { key, request, amount } => {
                let request = request.parse().unwrap();
                posted(db.refund(&request, *amount, "test", "refund", key, NOW).await.unwrap())
            }
            Event::Reserve { request, user, amount } => {
                let LedgerOp::Admit(mut admission) =
                    self.market.hold(request.trim_start_matches("req_"), amount.0)
                else {
                    return None;
                };
                let hold = Arc::make_mut(&mut admission);
                hold.user_id = user.clone();
                hold.key_id = Self::key_of(user);
                match db.apply(&[LedgerOp::Admit(admission)]).await {
                    Ok(replies) if replies == [LedgerReply::Done] => {
                        self.holds.insert(request.clone(), (user.clone(), amount.0, 0));
                        Applied::Entered
                    }
                    Ok(_) => Applied::Refused,
                    // A second row of the same request, or a negative amount.
                    Err(_) if self.holds.contains_key(request) => Applied::Duplicate,
                    Err(_) => Applied::Refused,
                }
            }
            Event::Extend { request, step, amount } => {
                let (user, held, steps) = self.holds.get(request)?.clone();
                let op = LedgerOp::Extend {
                    request_id: request.parse().unwrap(),
                    key_id: Self::key_of(&user),
                    user_id: user.clone(),
                    epoch: self.market.replica.epoch,
                    step: *step,
                    amount: *amount,
                    now: NOW,
                };
                match self.market.one(op).await {
                    LedgerReply::Done if *step == steps + 1 => {
                        self.holds.insert(request.clone(), (user, held + amount.0, steps + 1));
                        Applied::Entered
                    }
                    LedgerReply::Done => Applied::Duplicate,
                    _ => Applied::Refused,
                }
            }
            Event::Post { request, charge, provider, .. } => {
                let units = chat(u64::try_from(charge.0).ok()?, 0);
                self.end(request, End::Finished, units, Some(provider)).await?
            }
            Event::Void { request } | Event::Expire { request } => {
                self.end(request, End::Refused, chat(0, 0), None).await?
            }
        })
    }

    async fn end(
        &mut self,
        request: &str,
        end: End,
        units: cxmpute_market::price::Units,
        provider: Option<&UserId>,
    ) -> Option<Applied> {
        let (user, held, _) = self.holds.get(request)?.clone();
        let mut op = self.market.end(request.trim_start_matches("req_"), held, end, units);
        let hold = Arc::make_mut(&mut op.hold);
        hold.key_id = Self::key_of(&user);
        hold.user_id = user;
        op.provider = provider.cloned();
        Some(match self.market.one(LedgerOp::Resolve(Arc::new(op))).await {
            LedgerReply::Resolved(_) => Applied::Entered,
            LedgerReply::AlreadyResolved(_) => Applied::Duplicate,
            _ => Applied::Refused,
        })
    }
}

#[tokio::test]
async fn random_histories_agree_with_the_ledger_as_a_value() {
    let steps = std::env::var("CXMPUTE_TEST_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    for fresh in databases().await {
        let market = Market::new(&fresh.db, 0).await;
        for name in ["payer0", "payer1", "payer2", "provider0", "provider1"] {
            account(&fresh.db, name).await;
        }
        let mut player = Player { market, holds: BTreeMap::new() };
        let mut book = Book::default();
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let strategy = event(steps);
        let mut entered = 0;
        for n in 0..steps {
            let mut event = strategy.new_tree(&mut runner).unwrap().current();
            // Extensions are numbered; every third repeats the last number.
            if let Event::Extend { request, step, .. } = &mut event {
                let steps = player.holds.get(request).map_or(0, |hold| hold.2);
                *step = if n % 3 == 0 && steps > 0 { steps } else { steps + 1 };
            }
            // The store bounds a charge by the hold; the book knows no overruns.
            if let Event::Post { request, charge, .. } = &event {
                let held = player.holds.get(request).map_or(0, |hold| hold.1);
                if charge.0 > held || charge.0 < 0 {
                    continue;
                }
            }
            if matches!(&event, Event::Deposit { amount, .. } if amount.0 > 5_000) {
                continue; // The store's bound for one entry; tested on its own.
            }
            let Some(stored) = player.play(&event).await else { continue };
            let wanted = book.apply(&event, Book::seen);
            assert_eq!(
                stored == Applied::Entered,
                wanted == Applied::Entered,
                "{} {n}: {event:?}",
                fresh.name
            );
            entered += usize::from(wanted == Applied::Entered);
            if n % 250 == 0 {
                assert_eq!(fresh.db.balances().await.unwrap(), book.balances(), "{} {n}", fresh.name);
            }
        }
        assert_eq!(fresh.db.balances().await.unwrap(), book.balances(), "{}", fresh.name);
        assert_eq!(book.audit(), Ok(()));
        let open =
            book.holds().values().filter(|hold| hold.state == cxmpute_market::book::HoldState::Held).count();
        player.market.assert_clean(open, fresh.name).await;
        assert!(entered > steps / 10, "only {entered} of {steps} events were entered");
    }
}
