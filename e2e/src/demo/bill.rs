//! The bill of the demo's answer, recomputed from the public prices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cxmpute_wire::MicroCredits;
use serde_json::Value;

use super::Answer;
use crate::client::Client;
use crate::ground::until;
use crate::house::{CHAT_MODEL, House};
use crate::money::Money;

/// What the answer cost and what the provider got, as posted and as recomputed.
#[derive(Debug)]
pub(super) struct Bill {
    prompt: u64,
    completion: u64,
    prices: Value,
    cost: i64,
    reward: i64,
}

impl Bill {
    pub(super) fn text(&self) -> String {
        let micro = |name: &str| self.prices[name].as_i64().unwrap_or_default();
        format!(
            "usage      {} prompt + {} completion tokens\n\
             cost       {} micro-credits ({} credits) = ({} x {} + {} x {}) / 1000000, as posted\n\
             reward     {} micro-credits to the provider = {} / 10000 of it, as posted",
            self.prompt,
            self.completion,
            self.cost,
            MicroCredits(self.cost).to_credits(),
            self.prompt,
            micro("prompt"),
            self.completion,
            micro("completion"),
            self.reward,
            micro("share_bp"),
        )
    }
}

/// Recomputes the bill from `/models` and compares it with the postings.
pub(super) async fn check(client: &Client, house: &House, answer: &Answer) -> Result<Bill> {
    let prices =
        client.call("GET", &format!("/api/v1/models/{CHAT_MODEL}"), None).await?.json()["pricing_micro"]
            .clone();
    let micro = |name: &str| prices[name].as_i64().with_context(|| format!("no price `{name}` in {prices}"));
    let used =
        |name: &str| answer.usage[name].as_u64().with_context(|| format!("no `{name}` in {}", answer.usage));
    let (prompt, completion) = (used("prompt_tokens")?, used("completion_tokens")?);
    let total = i64::try_from(prompt)? * micro("prompt")? + i64::try_from(completion)? * micro("completion")?;
    let cost = (total + 999_999).div_euclid(1_000_000).max(micro("minimum")?);
    let reward = cost * micro("share_bp")? / 10_000;
    let money = Money::open(&house.database_url()).await?;
    let posted = until("the settlement", Duration::from_secs(5), async || {
        Ok((money.settlements_of(&answer.request_id).await? > 0).then_some(()))
    })
    .await;
    posted.context("the answer was never settled")?;
    let (charged, paid) =
        (money.charge_of(&answer.request_id).await?, money.reward_of(&answer.request_id).await?);
    ensure!(charged == cost && paid == reward, "recomputed {cost} and {reward}, posted {charged} and {paid}");
    let said = answer.usage["cost"].as_str().and_then(MicroCredits::from_credits);
    ensure!(said == Some(MicroCredits(cost)), "the stream's usage says {}, recomputed {cost}", answer.usage);
    ensure!(
        money.count(&answer.text)? == completion,
        "the text has {} tokens, billed were {completion}",
        money.count(&answer.text)?
    );
    Ok(Bill { prompt, completion, prices, cost, reward })
}
