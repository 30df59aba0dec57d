//! L6: the first attempt fails before the first token or after five; one attempt is billed, nothing is spliced.

use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;

use crate::client::{Event, content};
use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::{Mood, StandIn};
use crate::verdict::Verdict;
use crate::world::{Account, CHAT_MODEL, World};

/// The assertion that catches two posts for one request.
pub const CAUGHT_BY: &str = "one attempt is billed";

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("L6");
    for mood in [Mood::Refusing, Mood::Failing, Mood::Losing { after: 0 }, Mood::Losing { after: 5 }] {
        for _ in 0..setting.counts.pick(2, 20) {
            one(setting, mood, &mut verdict).await?;
        }
    }
    Ok(verdict)
}

async fn one(setting: Setting, mood: Mood, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let bad = world.stand_in("bad").await?;
    let good = world.stand_in("good").await?;
    let account = world.account("retrier@example.org", MicroCredits(1_000_000_000)).await?;
    bad.set_mood(mood);
    // Two choices at random meet the bad node soon; the breaker needs five faults, so it stays in the game.
    for _ in 0..40 {
        let seen = bad.notes().len();
        verdict.count += 1;
        request(&world, &account, &bad, seen, mood, verdict).await?;
        if bad.notes().len() > seen {
            break;
        }
    }
    verdict.check("the failing node was tried", !bad.notes().is_empty(), format!("{mood:?}"));
    verdict.check(
        "the other node answered",
        mood == Mood::Losing { after: 5 } || !good.notes().is_empty(),
        format!("{mood:?}"),
    );
    world.finish(verdict).await
}

async fn request(
    world: &World,
    account: &Account,
    bad: &StandIn,
    seen: usize,
    mood: Mood,
    verdict: &mut Verdict,
) -> Result<()> {
    let body = json!({"model": CHAT_MODEL, "stream": true, "max_tokens": 32, "messages": [{"role": "user", "content": "say 9"}]});
    let mut conversation = account.client.open("POST", "/v1/chat/completions", Some(&body)).await?;
    let request_id = conversation.header("x-request-id").unwrap_or_default().to_owned();
    verdict.check(
        "no error before the first byte",
        conversation.status == 200,
        format!("{mood:?}: {}", conversation.status),
    );
    let (mut text, mut done, mut error) = (String::new(), false, None);
    let mut events = 0;
    while let Some(event) = conversation.event().await? {
        events += 1;
        if events == 5 && bad.notes().len() > seen {
            bad.lose_now();
        }
        match event {
            Event::Done => done = true,
            Event::Data(value) if value.get("error").is_some() => {
                error = value["error"]["code"].as_str().map(str::to_owned)
            }
            Event::Data(value) => text.push_str(content(&value).unwrap_or_default()),
        }
    }
    let generation = until("the settlement", Duration::from_secs(8), async || {
        let reply = account.client.call("GET", &format!("/v1/generation?id={request_id}"), None).await?;
        let data = reply.json()["data"].clone();
        Ok((reply.status == 200 && data["outcome"] != "running").then_some(data))
    })
    .await?;
    let cost = world.cost_of(&generation)?;
    let posts = world.money.settlements_of(&request_id).await?;
    if let Some(code) = error {
        verdict.check(
            "a loss after the first byte is an explicit error event",
            code == "provider_lost" && !done,
            format!("{mood:?}: {code}, done {done}"),
        );
        verdict.check("a failed answer is free", cost == 0, format!("{mood:?}: {generation}"));
        verdict.check(CAUGHT_BY, posts == 0, format!("{mood:?}: {posts} settlements of a failed request"));
    } else {
        let wanted = world.price(world.money.prompt_tokens(&body)?, world.money.count(&text)?)?;
        verdict.check("an answer ends with [DONE]", done, format!("{mood:?}"));
        verdict.check("nothing is spliced", text == crate::stand_in::text(9), format!("{mood:?}: {text:?}"));
        verdict.check(
            CAUGHT_BY,
            posts == 1 && cost == wanted,
            format!("{mood:?}: {posts} settlements, cost {cost}, wanted {wanted}"),
        );
    }
    Ok(())
}
