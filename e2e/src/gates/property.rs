//! U3: thousands of requests made from the document itself, good, on a boundary, spoilt and broken, as everybody who
//! can call: no fault of ours, no undocumented status, no answer outside its schema, no hang.

mod case;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::contract::Contract;
use crate::ground::until;
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::World;
use case::{Answer, Cast, play};

/// The assertion that catches an undocumented status.
pub const CAUGHT_BY: &str = "every status is documented";

/// Clients at a time.
const CLIENTS: u64 = 8;

/// Longer than any of these requests may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of one case.
#[derive(Debug)]
struct Outcome {
    number: u64,
    what: String,
    status: u16,
    fault: Option<(&'static str, String)>,
    took: Duration,
    /// `X-Request-Id` of an answer that was paid for.
    receipt: Option<String>,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("U3");
    let world = World::plan(setting).services().start().await?;
    let _node = world.stand_in("node").await?;
    let contract = Arc::new(Contract::of(world.address).await?);
    let cast = Arc::new(Cast::gather(&world, &contract).await?);
    let cases = if setting.bad.is_some() { 400 } else { setting.counts.pick(5_000, 20_000) };
    verdict.count = cases;

    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (next, cast, contract) = (Arc::clone(&next), Arc::clone(&cast), Arc::clone(&contract));
        clients.spawn(async move {
            let mut outcomes = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= cases {
                    return outcomes;
                }
                outcomes.push(judge(number, &cast, &contract).await);
            }
        });
    }
    let mut outcomes = Vec::new();
    while let Some(done) = clients.join_next().await {
        outcomes.extend(done.context("a client")?);
    }
    sum_up(&mut verdict, &outcomes);
    links(&mut verdict, &cast, &outcomes).await?;
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

async fn judge(number: u64, cast: &Cast, contract: &Contract) -> Outcome {
    let since = Instant::now();
    let played = timeout(PATIENCE, play(number, cast, contract)).await;
    let took = since.elapsed();
    let outcome =
        |what: String, status, fault, receipt| Outcome { number, what, status, fault, took, receipt };
    match played {
        Err(_) => outcome(format!("case {number}"), 0, Some(("nothing hangs", "no answer".to_owned())), None),
        Ok(Err(error)) => outcome(
            format!("case {number}"),
            0,
            Some(("every request is answered", format!("{error:#}"))),
            None,
        ),
        Ok(Ok(Answer { what, status, judged, excused, receipt })) => {
            let fault = match judged {
                Err(error) if format!("{error:#}").contains("undocumented status") => {
                    Some((CAUGHT_BY, format!("{error:#}")))
                }
                Err(error) => Some(("every answer fits its schema", format!("{error:#}"))),
                Ok(()) if status >= 500 && !excused => {
                    Some(("nothing that a client sends is a fault of ours", format!("{status}")))
                }
                Ok(()) => None,
            };
            outcome(what, status, fault, receipt)
        }
    }
}

fn sum_up(verdict: &mut Verdict, outcomes: &[Outcome]) {
    for name in [
        "nothing hangs",
        "every request is answered",
        CAUGHT_BY,
        "every answer fits its schema",
        "nothing that a client sends is a fault of ours",
    ] {
        let broken: Vec<String> = outcomes
            .iter()
            .filter_map(|outcome| {
                let (_, seen) = outcome.fault.as_ref().filter(|(broken, _)| *broken == name)?;
                Some(format!("case {} ({}): {seen}", outcome.number, outcome.what))
            })
            .collect();
        let shown = broken.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        verdict.check(name, broken.is_empty(), format!("{} cases\n{shown}", broken.len()));
    }
    let good = outcomes.iter().filter(|outcome| (200..300).contains(&outcome.status)).count();
    verdict.check(
        "good requests succeed",
        good * 10 > outcomes.len(),
        format!("{good} of {}", outcomes.len()),
    );
    let paid = outcomes.iter().filter(|outcome| outcome.receipt.is_some()).count();
    verdict.check("work was done", paid * 50 > outcomes.len(), format!("{paid} of {}", outcomes.len()));
    verdict.measured("one request", PATIENCE, outcomes.iter().map(|outcome| outcome.took).collect());
}

/// What an answer names can be asked for by its owner, and by nobody else.
async fn links(verdict: &mut Verdict, cast: &Cast, outcomes: &[Outcome]) -> Result<()> {
    for receipt in outcomes.iter().filter_map(|outcome| outcome.receipt.as_ref()).take(40) {
        let path = format!("/v1/generation?id={receipt}");
        let found = until("the receipt of an answer", Duration::from_secs(10), async || {
            let reply = cast.user.call("GET", &path, None).await?;
            let finished = reply.status == 200 && !reply.json()["data"]["finished_at"].is_null();
            Ok(finished.then_some(()))
        })
        .await;
        verdict.check("an answer leads to its receipt", found.is_ok(), format!("{path}: {found:?}"));
        let foreign = cast.stranger.call("GET", &path, None).await?;
        verdict.check(
            "a foreign receipt looks like a missing one",
            foreign.status == 404,
            format!("{path}: {}", foreign.status),
        );
    }
    let models = cast.user.call("GET", "/v1/models", None).await?.json();
    for model in models["data"].as_array().into_iter().flatten() {
        let id = model["id"].as_str().unwrap_or_default();
        let reply = cast.user.call("GET", &format!("/v1/models/{id}"), None).await?;
        verdict.check("a listed model is described", reply.status == 200, format!("{id}: {}", reply.status));
    }
    device(verdict, &cast.user, &cast.provider_id, &cast.provider_key).await
}

/// The life of a device of the first seed, in order.
async fn device(verdict: &mut Verdict, client: &Client, owner: &str, key: &str) -> Result<()> {
    let id = "3d2c1a5e-1111-4222-8333-0123456789ab";
    let steps: [(&str, &str, Value, u16); 6] = [
        (
            "POST",
            "new",
            json!({"providerId": owner, "providerAk": key, "provisionId": id, "deviceDiagnostics": {}, "location": {"country": "DE"}}),
            200,
        ),
        ("POST", "start", json!({"provisionId": id, "providerAk": key, "availableResources": {}}), 200),
        (
            "POST",
            "start/callback",
            json!({"provisionId": id, "providerAk": key, "startedServices": [format!("llm:{}", crate::world::CHAT_MODEL)], "providedUrl": "http://device"}),
            200,
        ),
        ("POST", "end", json!({"provisionId": id, "providerAk": key}), 200),
        ("DELETE", "delete", json!({"provisionId": id, "providerAk": key}), 200),
        ("POST", "start", json!({"provisionId": id, "providerAk": key, "availableResources": {}}), 404),
    ];
    for (method, route, body, wanted) in steps {
        let reply = client.call(method, &format!("/api/v1/providers/{route}"), Some(&body)).await?;
        verdict.check(
            "a device lives from enrolment to its end",
            reply.status == wanted,
            format!("{route}: {} {}", reply.status, reply.json()),
        );
    }
    Ok(())
}

/// Paths and methods of the operations that are wanted.
fn named(contract: &Contract, wanted: impl Fn(&Value) -> bool) -> Vec<(String, String)> {
    let wanted = contract.operations().filter(|(_, _, operation)| wanted(operation));
    wanted.map(|(path, method, _)| (path.to_owned(), method.to_owned())).collect()
}

impl Cast {
    /// Everybody who calls.
    async fn gather(world: &World, contract: &Contract) -> Result<Self> {
        let user = world.account("user@example.org", MicroCredits(1_000_000_000_000)).await?;
        let stranger = world.account("stranger@example.org", MicroCredits(1_000_000_000)).await?;
        let poor = world.account("poor@example.org", MicroCredits(3)).await?;
        let provider = world.provider_key(&user.user_id).await?;
        let node = crate::stand_in::Identity::fresh();
        let grant = world.grant(&user.user_id).await?;
        let enrolled = world.enrol(&node, &node.provision_id(), Some(&grant)).await?;
        anyhow::ensure!(enrolled.status == 201, "the provider's node: {}", enrolled.json());
        let models = user.client.call("GET", "/v1/models", None).await?.json();
        let models = models["data"].as_array().into_iter().flatten();
        let models = models.map(|model| {
            let text = |name: &str| model[name].as_str().unwrap_or_default().to_owned();
            (text("id"), text("kind"))
        });
        Ok(Self {
            operations: named(contract, |_| true),
            paid: named(contract, |operation| operation.get("x-meter").is_some()),
            models: models.collect(),
            user: user.client,
            stranger: stranger.client,
            poor: poor.client,
            provider_id: user.user_id.to_string(),
            provider_key: provider,
            node,
        })
    }
}
