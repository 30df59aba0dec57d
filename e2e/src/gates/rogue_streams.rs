//! P1: nodes whose streams are endless, huge, silent, garbled or lies. The relay stops them within its bounds, with the
//! documented code, and nothing of the node's own bytes leaves.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::MicroCredits;
use tokio::task::JoinSet;

use super::rogue_plays::{DRIP, Ends, LIMIT, Play, embeddings_plays, text_plays};
use crate::ground::until;
use crate::paths::{Got, OWN_WORD, Path};
use crate::settings::Setting;
use crate::stand_in::StandIn;
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a relay that passes bytes through.
pub const CAUGHT_BY: &str = "nothing of the node's own bytes reaches the client";

/// The deadlines of this world; the product's defaults are 30 s, 30 s and 60 s.
const FIRST_TOKEN: Duration = Duration::from_millis(500);
const GAP: Duration = Duration::from_millis(500);
const EMBEDDINGS: Duration = Duration::from_millis(1_000);

/// How long a request looks for another node after the only one failed; the product's default is 2 s.
const QUEUE: Duration = Duration::from_millis(100);

/// Every request ends by its deadline, asserted at four times that.
const ENDED_WITHIN: Duration = Duration::from_secs(4);

/// Pieces beyond the bound on tokens that the relay lets pass, because engines hold text back.
const SLACK: u64 = 8;

/// Bytes that the tunnel may hold on their way when the relay stops reading.
const IN_FLIGHT: u64 = 1 << 20;

/// Good answers between two plays, so that the breaker (5 faults in a row, or under 70 % of success) stays closed.
const GOOD: usize = 12;

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("P1");
    let world =
        World::plan(setting).node_deadlines(FIRST_TOKEN, GAP, EMBEDDINGS).queue(QUEUE).start().await?;
    let node = world.stand_in("rogue").await?;
    let account = world.account("victim@example.org", MicroCredits(1_000_000_000)).await?;
    for _ in 0..setting.counts.pick(1, 10) {
        good(&account, &mut verdict).await?;
        for (name, plays) in text_plays() {
            round(&world, &node, &account, name, plays, &mut verdict).await?;
        }
        for (name, play) in embeddings_plays() {
            round(&world, &node, &account, name, vec![(Path::Embeddings, play)], &mut verdict).await?;
        }
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// Plays one part on all its paths at once, judges them, and sees that good requests are still served.
async fn round(
    world: &World,
    node: &StandIn,
    account: &Account,
    name: &'static str,
    plays: Vec<(Path, Play)>,
    verdict: &mut Verdict,
) -> Result<()> {
    let mut asked = JoinSet::new();
    for (path, play) in plays {
        verdict.count += 1;
        let title = format!("{name}-{path:?}");
        node.learn(&title, play.script.clone());
        let (client, body) = (account.client.clone(), path.body(&format!("play {title}"), LIMIT));
        asked.spawn(async move { (path, play, path.ask(&client, &body).await) });
    }
    while let Some(done) = asked.join_next().await {
        let (path, play, got) = done?;
        let what = format!("{name} {path:?}");
        match got {
            Ok(got) => judge(world, node, account, &what, (path, &play), &got, verdict).await?,
            Err(error) => verdict.check(CAUGHT_BY, false, format!("{what}: {error:#}")),
        }
    }
    good(account, verdict).await.with_context(|| format!("after {name}"))
}

async fn judge(
    world: &World,
    node: &StandIn,
    account: &Account,
    what: &str,
    (path, play): (Path, &Play),
    got: &Got,
    verdict: &mut Verdict,
) -> Result<()> {
    let raw = String::from_utf8_lossy(&got.reply.body).into_owned();
    let short: String = raw.chars().take(600).collect();
    verdict.check(CAUGHT_BY, !raw.contains(OWN_WORD), format!("{what}: {short}"));
    verdict.check(
        "every request ends by its deadline (4 x)",
        got.took <= ENDED_WITHIN,
        format!("{what}: {:?}", got.took),
    );
    let seen = (got.reply.status, got.code.as_str(), got.complete);
    let wanted = match &play.ends {
        Ends::Refused(status, code) => (*status, *code, false),
        // Without a first byte at the client, a fault after content is one before it.
        Ends::Cut(_, status, code) if !path.streamed() => (*status, *code, false),
        Ends::Cut(code, ..) => (200, *code, false),
        Ends::Text(_) | Ends::Full => (200, "", true),
    };
    verdict.check(
        "the end has its documented status and code",
        seen == wanted,
        format!("{what}: {seen:?}, wanted {wanted:?}: {short}"),
    );
    if let Ends::Text(text) = &play.ends {
        verdict.check("content arrives as content", got.text == *text, format!("{what}: {:?}", got.text));
        verdict.check(
            "no control or line character leaves a stream unescaped",
            !path.streamed()
                || !raw.chars().any(|c| {
                    matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}') || (c.is_control() && c != '\n')
                }),
            format!("{what}: {short:?}"),
        );
    }
    let row = got.settled(&account.client).await.with_context(|| what.to_owned())?;
    let (cost, billed) = (world.cost_of(&row)?, row["tokens_completion"].as_u64().unwrap_or_default());
    let tokens = world.money.count(&got.text)?;
    if path != Path::Embeddings {
        verdict.check(
            "the answer stops at max_tokens by our count",
            tokens <= LIMIT + SLACK,
            format!("{what}: {tokens} tokens"),
        );
        verdict.check("no more than max_tokens is billed", billed <= LIMIT, format!("{what}: {billed}"));
        if matches!(play.ends, Ends::Full) {
            verdict.check(
                "an answer that is cut ends with `length`",
                got.finish.as_deref() == Some("length"),
                format!("{what}: {:?}", got.finish),
            );
        }
    }
    let free = wanted.0 != 200 || !wanted.1.is_empty();
    verdict.check(
        "a failed answer is free, a delivered one is paid",
        free == (cost == 0),
        format!("{what}: {row}"),
    );
    let attempt = row["attempts"][0]["code"].as_str().unwrap_or_default();
    verdict.check(
        "the attempt is recorded with its fault",
        attempt.is_empty() != free,
        format!("{what}: {row}"),
    );
    // A play may end the whole tunnel, and with it requests that never got there.
    let stopped = until("the node to be stopped", Duration::from_secs(5), async || {
        let note = node.notes().into_iter().find(|note| note.request_id == got.request_id);
        let at_rest = note.as_ref().is_none_or(|note| note.cancelled.is_some() || note.finished.is_some());
        Ok(at_rest.then_some(note.map_or(0, |note| note.sent)))
    })
    .await;
    let sent = stopped.as_ref().map_or(u64::MAX, |sent| *sent);
    verdict.check("the node is stopped", stopped.is_ok(), format!("{what}: {stopped:?}"));
    verdict.check(
        "a node sends at most its bound and what is in flight",
        sent <= play.bytes + IN_FLIGHT,
        format!("{what}: {sent} bytes"),
    );
    Ok(())
}

/// Good requests of all kinds work, before and after.
async fn good(account: &Account, verdict: &mut Verdict) -> Result<()> {
    for number in 0..GOOD {
        let path = Path::TEXT[number % Path::TEXT.len()];
        let got = path.ask(&account.client, &path.body("say 3", LIMIT)).await?;
        let whole = got.complete && got.text == crate::stand_in::text(3);
        verdict.check("the next good request works", whole, format!("{path:?}: {got:?}"));
    }
    for _ in 0..GOOD / 4 {
        let body = Path::Embeddings.body("say 3", LIMIT);
        let got = Path::Embeddings.ask(&account.client, &body).await?;
        verdict.check("the next good request works", got.complete, format!("{got:?}"));
    }
    Ok(())
}

const _: () = assert!(DRIP.as_millis() < GAP.as_millis());
