//! What the gates of clients that leave share: how a client leaves, how soon node and hold have to hear of it, and what the books
//! say afterwards.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::Conversation;
use crate::ground::until;
use crate::money::Money;
use crate::paths::{Path, settled};
use crate::stand_in::StandIn;
use crate::verdict::Verdict;
use crate::world::Account;

/// Deadlines are asserted at four times their value.
const CANCELLED_WITHIN: Duration = Duration::from_millis(4 * 250);
pub(super) const RELEASED_WITHIN: Duration = Duration::from_secs(4);

/// `max_tokens` of requests, far above what is sent.
pub(super) const LIMIT: u64 = 64;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Reset,
    Close,
    HalfClose,
    /// It stays, and reads nothing.
    Stall,
}

impl Leave {
    /// Leaves; gives back what stays open.
    pub(super) async fn carry_out(self, mut conversation: Conversation) -> Result<Option<Conversation>> {
        match self {
            Self::Reset => conversation.reset()?,
            Self::Close => drop(conversation),
            Self::HalfClose => {
                conversation.half_close().await?;
                return Ok(Some(conversation));
            }
            Self::Stall => return Ok(Some(conversation)),
        }
        Ok(None)
    }
}

/// What is measured, for the report.
#[derive(Default)]
pub(super) struct Spans {
    cancelled: Vec<Duration>,
    released: Vec<Duration>,
}

impl Spans {
    pub(super) fn report(self, verdict: &mut Verdict) {
        verdict.measured("cancel at the node", Duration::from_millis(250), self.cancelled);
        verdict.measured("hold released", Duration::from_secs(1), self.released);
    }

    /// Waits until the node of the note at this place hears that its client left; a stalled one is cut after a `grace`.
    pub(super) async fn cancelled(
        &mut self,
        verdict: &mut Verdict,
        (node, place): (&StandIn, usize),
        (left, grace): (Instant, Duration),
        what: &str,
    ) -> Result<Instant> {
        let deadline = CANCELLED_WITHIN + grace + Duration::from_secs(10);
        let over = until("the node to be cancelled", deadline, async || {
            Ok(node.notes().get(place).and_then(|note| note.cancelled))
        })
        .await?;
        let after = over.saturating_duration_since(left);
        verdict.check(
            "the node is cancelled within 250 ms (4 x)",
            after <= CANCELLED_WITHIN + grace,
            format!("{what}: {after:?}"),
        );
        if grace.is_zero() {
            self.cancelled.push(after);
        }
        Ok(over)
    }

    /// Waits until the hold is released; gives the record, if it is there in time.
    pub(super) async fn released(
        &mut self,
        verdict: &mut Verdict,
        (account, request_id): (&Account, &str),
        over: Instant,
        what: &str,
    ) -> Option<Value> {
        let row = settled(&account.client, request_id, RELEASED_WITHIN * 3).await;
        verdict.check(
            "the hold is released within 1 s (4 x)",
            row.is_ok() && over.elapsed() <= RELEASED_WITHIN,
            format!("{what}: {:?}, {row:?}", over.elapsed()),
        );
        self.released.push(over.elapsed());
        row.ok()
    }
}

/// Holds the books against what a request cost.
pub(super) async fn judge_books(
    verdict: &mut Verdict,
    money: &Money,
    request_id: &str,
    (cost, share): (i64, i64),
    what: &str,
) -> Result<()> {
    verdict.check(
        "the provider gets its share of what was paid",
        money.reward_of(request_id).await? == share,
        format!("{what}: cost {cost}"),
    );
    verdict.check(
        "a request is charged at most once",
        money.settlements_of(request_id).await? == usize::from(cost > 0)
            && money.charge_of(request_id).await? == cost,
        format!("{what}: {cost}"),
    );
    Ok(())
}

/// Waits until the gateway has heard all that the node has said so far: a tunnel keeps the order, so what it said before the
/// answer to a later request is there when that is.
pub(super) async fn heard(account: &Account) -> Result<()> {
    let body = Path::ChatWhole.body("say 1", LIMIT);
    let got = Path::ChatWhole.ask(&account.client, &body).await?;
    anyhow::ensure!(got.complete, "{got:?}");
    Ok(())
}
