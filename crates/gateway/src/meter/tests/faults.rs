//! Stores that fail at the worst moment, by what the writer hears of its batches.

use cxmpute_store::{BatchError, DbError, LedgerOp, LedgerReply};
use futures_util::future::join_all;

use super::*;

type Applied = Result<Vec<LedgerReply>, BatchError>;

/// What becomes of a batch that the store kept.
pub(in crate::meter) type Fault = Box<dyn FnMut(&[LedgerOp], Applied) -> Applied + Send>;

impl Gauges {
    pub(in crate::meter) fn broken(&self, ops: &[LedgerOp], applied: Applied) -> Applied {
        match self.fault.lock().as_mut() {
            Some(fault) => fault(ops, applied),
            None => applied,
        }
    }
}

impl World {
    pub(super) fn fault(&self, fault: impl FnMut(&[LedgerOp], Applied) -> Applied + Send + 'static) {
        *self.meter.inner.gauges.fault.lock() = Some(Box::new(fault));
    }
}

/// Gate C3 on one meter: the n-th commit ends in a damaged store, later ones would succeed. Nothing is acknowledged after
/// it, what was acknowledged is there at the next start, and nobody is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_after_the_store_is_damaged() {
    for (n, together) in (1..=8).map(|n| (n, false)).chain([(1, true)]) {
        let world = World::with(MeterConfig { busy: 0, ..MeterConfig::default() }).await;
        let mut holds = Vec::new();
        for hold in 0..8 {
            holds.push(world.hold(&format!("r{hold}"), 100).await);
        }
        let mut commits = 0;
        world.fault(move |_, applied| {
            commits += 1;
            if commits == n {
                let error = DbError::Damaged { detail: "disk I/O error".to_owned() };
                return Err(if together { BatchError::Unknown(error) } else { BatchError::Undone(error) });
            }
            applied
        });
        let settle = |hold: Hold| hold.settle(settlement(End::Finished, chat(10, 0)));
        let settled: Vec<bool> = if together {
            join_all(holds.into_iter().map(settle)).await.iter().map(Result::is_ok).collect()
        } else {
            let mut settled = Vec::new();
            for hold in holds {
                settled.push(settle(hold).await.is_ok());
            }
            settled
        };
        let good = settled.iter().filter(|settled| **settled).count();
        assert!(together || good + 1 == n, "{n}: {settled:?}");
        assert!(settled.iter().any(|settled| !settled), "{n}: the fault came");
        assert!(world.tasks.hard().is_cancelled() && world.tasks.soft().is_cancelled(), "{n}");
        let done = world.meter.stats();
        assert_eq!(done.settlements, good as u64, "{n}");
        assert!(world.tasks.stop(Duration::from_secs(10)).await.is_empty());
        // What is written now would be: the hook lets it through. Nothing was.
        assert_eq!(world.meter.stats().commits, done.commits, "{n}");
        let kept = world.db.earnings(&UserId::from_tail("provider")).await.unwrap().pending.0;
        assert!(kept >= 9 * i64::try_from(good).unwrap(), "{n}: what was acknowledged is kept");
    }
}

/// A hold of its own that the store kept, though it did not say so: its allowance is given back.
#[tokio::test]
async fn an_allowance_is_returned_when_a_lost_graduation_was_kept() {
    let world = World::with(MeterConfig { busy: 2, ..MeterConfig::default() }).await;
    for n in 0.. {
        let hold = world.hold(&format!("warm{n}"), 10).await;
        let in_memory = hold.progress().is_in_memory();
        hold.settle(settlement(End::Finished, chat(1, 0))).await.unwrap();
        if in_memory {
            break;
        }
        assert!(n < 1000, "nothing was admitted out of an allowance");
    }
    let (told, lost) = std::sync::mpsc::channel();
    let mut told = Some(told);
    world.fault(move |ops, applied| {
        if ops.iter().any(|op| matches!(op, LedgerOp::Graduate(_)))
            && let Some(told) = told.take()
        {
            let _ = told.send(());
            return Err(BatchError::Unknown(DbError::InUse { path: "lost".into() }));
        }
        applied
    });
    let hold = world.hold("long", 50).await;
    assert!(hold.progress().is_in_memory());
    tokio::time::timeout(Duration::from_secs(20), async {
        while lost.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    hold.settle(settlement(End::Finished, chat(20, 0))).await.unwrap();
    world.meter.inner.allowances.close_user(&UserId::from_tail("payer"));
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.db.check_ledger().await.unwrap().allowances != 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the allowance is given back");
    world.end().await;
}
