//! L1: 64 clients race more requests than the account can pay; exactly the payable number is admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;
use tokio::task::JoinSet;

use crate::settings::{Setting, Store};
use crate::verdict::Verdict;
use crate::world::{FIXED_COST, FIXED_MODEL, World};

/// The assertion that catches an admission which checks and then debits.
pub const CAUGHT_BY: &str = "exactly the payable number is admitted";

/// Clients at a time.
const CLIENTS: u64 = 64;

/// The gate.
///
/// # Errors
/// The world could not be built, or a connection broke.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let name = if setting.store == Store::Sqlite { "L1" } else { "L1-pg" };
    let mut verdict = Verdict::new(name);
    let requests = setting.counts.pick(1_600, 10_000);
    let payable = requests / 10;
    verdict.count = requests;
    let world = World::plan(setting).start().await?;
    let _node = world.stand_in("node").await?;
    let cost = i64::try_from(payable)? * FIXED_COST;
    let account = world.account("payer@example.org", MicroCredits(cost)).await?;

    let left = Arc::new(AtomicU64::new(requests));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, left) = (account.client.clone(), Arc::clone(&left));
        clients.spawn(async move {
            let body = json!({"model": FIXED_MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "say 2"}]});
            let mut counts = Outcomes::default();
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                let reply = client.call("POST", "/v1/chat/completions", Some(&body)).await?;
                match reply.status {
                    200 => counts.admitted += 1,
                    402 => counts.refused += 1,
                    status => counts.other.push(format!("{status} {}", reply.error_code())),
                }
                let money = client.call("GET", "/v1/credits", None).await?.json();
                let available = money["data"]["available_micro"].as_i64();
                if available.is_none_or(|amount| amount < 0) {
                    counts.negative.push(money.to_string());
                }
            }
            anyhow::Ok(counts)
        });
    }
    let mut all = Outcomes::default();
    while let Some(done) = clients.join_next().await {
        all.add(done??);
    }
    verdict.equal(CAUGHT_BY, &all.admitted, &payable);
    verdict.equal("the rest is refused with 402", &all.refused, &(requests - payable));
    verdict.check("nothing else happens", all.other.is_empty(), format!("{:?}", all.other.first()));
    verdict.check(
        "available is never negative",
        all.negative.is_empty(),
        format!("{:?}", all.negative.first()),
    );
    let money = account.client.call("GET", "/v1/credits", None).await?.json();
    verdict.check("all of it is spent", money["data"]["available_micro"] == 0, &money);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

#[derive(Default)]
struct Outcomes {
    admitted: u64,
    refused: u64,
    other: Vec<String>,
    negative: Vec<String>,
}

impl Outcomes {
    fn add(&mut self, other: Self) {
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.other.extend(other.other);
        self.negative.extend(other.negative);
    }
}
