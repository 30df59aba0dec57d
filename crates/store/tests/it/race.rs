//! Many at once, as from several replicas that do not know of each other.

use std::sync::Arc;

use cxmpute_market::ledger::End;
use cxmpute_store::{LedgerOp, LedgerReply};

use crate::world::{Market, chat, databases};

/// An account that can pay for 100 requests, asked by 16 tasks for 600.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_admissions_never_pass_the_balance() {
    for fresh in databases().await {
        let market = Arc::new(Market::new(&fresh.db, 1000).await);
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let market = market.clone();
                tokio::spawn(async move {
                    let mut admitted = 0;
                    for batch in 0..5 {
                        let ops: Vec<_> =
                            (0..8).map(|n| market.hold(&format!("t{task}b{batch}n{n}"), 10)).collect();
                        for reply in apply(&market, &ops).await {
                            match reply {
                                LedgerReply::Done => admitted += 1,
                                LedgerReply::Insufficient { available } => assert!(available.0 >= 0),
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                    admitted
                })
            })
            .collect();
        let mut admitted = 0;
        for task in tasks {
            admitted += task.await.unwrap();
        }
        assert_eq!(admitted, 100, "{}", fresh.name);
        market.assert_clean(100, fresh.name).await;
    }
}

/// Batches of many payers in opposite orders do not wait for each other for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_batches_from_several_writers_all_settle() {
    for fresh in databases().await {
        let market = Arc::new(Market::new(&fresh.db, 1_000_000).await);
        let tasks: Vec<_> = (0..6)
            .map(|task| {
                let market = market.clone();
                tokio::spawn(async move {
                    let name = |n: usize| format!("t{task}n{n}");
                    for round in 0..5 {
                        let ids: Vec<_> = (0..10).map(|n| name(round * 10 + n)).collect();
                        let holds: Vec<_> = ids.iter().map(|id| market.hold(id, 100)).collect();
                        apply(&market, &holds).await;
                        let ends: Vec<_> = ids
                            .iter()
                            .map(|id| {
                                LedgerOp::Resolve(Arc::new(market.end(id, 100, End::Finished, chat(10, 1))))
                            })
                            .collect();
                        for reply in apply(&market, &ends).await {
                            assert!(matches!(reply, LedgerReply::Resolved(settled) if settled.cost.0 == 20));
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let balance = fresh.db.balance(&market.payer).await.unwrap();
        assert_eq!(balance.available.0, 1_000_000 - 300 * 20, "{}", fresh.name);
        market.assert_clean(0, fresh.name).await;
    }
}

/// As the writer does it: a collision is tried again.
async fn apply(market: &Market, ops: &[LedgerOp]) -> Vec<LedgerReply> {
    loop {
        match market.db.apply(ops).await {
            Ok(replies) => return replies,
            Err(error) if error.cause().is_collision() => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
