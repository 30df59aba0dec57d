//! GR31, `models[]`: when the first model has no node, or its nodes refuse, the next model answers under its own name and at
//! its own price. Where money was bound for the first, the hold is moved before a node of the next hears of the request.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::MicroCredits;
use serde_json::json;

use crate::ground::until;
use crate::paths::Path;
use crate::settings::Setting;
use crate::stand_in::{StandIn, text};
use crate::verdict::Verdict;
use crate::world::{Account, CHAT_MODEL, FIXED_COST, FIXED_MODEL, World};

/// The assertion that catches a hold that keeps its first price.
pub const CAUGHT_BY: &str = "the model that answered is paid at its own price";

/// Tokens of every answer.
const TOKENS: u64 = 8;

/// Why the first model does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// No node has it: known before any money is bound.
    NoNode,
    /// Its node refuses: known when money is bound at its price.
    Refusing,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("GR31");
    for _ in 0..setting.counts.pick(1, 10) {
        for why in [Why::NoNode, Why::Refusing] {
            for (first, second) in [(CHAT_MODEL, FIXED_MODEL), (FIXED_MODEL, CHAT_MODEL)] {
                let what = format!("{why:?}: {first}, then {second}");
                case(setting, why, (first, second), &what, &mut verdict).await.context(what.clone())?;
            }
        }
    }
    Ok(verdict)
}

async fn case(
    setting: Setting,
    why: Why,
    (first, second): (&str, &str),
    what: &str,
    verdict: &mut Verdict,
) -> Result<()> {
    let world = World::plan(setting).queue(Duration::from_millis(100)).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
    let all = node.routable();
    match why {
        Why::NoNode => {
            node.lack_model(first);
            until("the model to be gone", Duration::from_secs(20), async || {
                Ok((node.routable() < all).then_some(()))
            })
            .await?;
        }
        Why::Refusing => node.refuse_model(first),
    }
    for path in [Path::ChatStream, Path::ChatWhole, Path::CompletionWhole] {
        verdict.count += 1;
        answered(&world, &node, &account, (why, path, first, second), what, verdict).await?;
    }
    // Without a fallback there is nobody.
    let mut body = Path::ChatWhole.body(&format!("say {TOKENS}"), 16);
    body["model"] = json!(first);
    let got = Path::ChatWhole.ask(&account.client, &body).await?;
    let charge = world.money.charge_of(&got.request_id).await?;
    verdict.check(
        "without the list the first model is nobody's",
        !got.complete && [502, 503].contains(&got.reply.status) && charge == 0,
        format!("{what}: {charge} for {got:?}"),
    );
    world.finish(verdict).await
}

async fn answered(
    world: &World,
    node: &StandIn,
    account: &Account,
    (why, path, first, second): (Why, Path, &str, &str),
    what: &str,
    verdict: &mut Verdict,
) -> Result<()> {
    let what = format!("{what}, {path:?}");
    let prompt_text = format!("say {TOKENS}");
    let mut body = path.body(&prompt_text, 16);
    body["model"] = json!(first);
    body["models"] = json!([second]);
    let place = node.notes().len();
    let got = path.ask(&account.client, &body).await?;
    let named = got.events.iter().all(|event| event["model"] == second);
    verdict.check(
        "the next model answers, under its own name",
        got.complete && got.text == text(TOKENS) && named,
        format!("{what}: {got:?}"),
    );
    let notes = node.notes().split_off(place);
    let (mine, others): (Vec<_>, Vec<_>) = notes.iter().partition(|note| note.asked["model"] == second);
    verdict.check(
        "each model's node is asked as often as its part has it",
        mine.len() == 1 && (why == Why::Refusing) != others.is_empty(),
        format!("{what}: {notes:?}"),
    );
    let row = got.settled(&account.client).await?;
    let prompt = if path.is_chat() {
        world.money.prompt_tokens(&body)?
    } else {
        world.money.completion_prompt_tokens(&prompt_text)?
    };
    let wanted = world.money.price(second, prompt, world.money.count(&got.text)?)?;
    let cost = world.cost_of(&row)?;
    verdict.check(
        CAUGHT_BY,
        cost == wanted && (cost == FIXED_COST) == (second == FIXED_MODEL),
        format!("{what}: {row}, wanted {wanted}"),
    );
    verdict.check(
        "the record names the model that answered",
        row["model"] == second,
        format!("{what}: {row}"),
    );
    let postings = (
        world.money.settlements_of(&got.request_id).await?,
        world.money.charge_of(&got.request_id).await?,
        world.money.reward_of(&got.request_id).await?,
    );
    verdict.equal(
        "one settlement, its charge and its share",
        &postings,
        &(1, wanted, world.money.share(second, cost)?),
    );
    Ok(())
}
