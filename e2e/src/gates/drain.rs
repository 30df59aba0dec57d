//! G7, one replica: SIGTERM with 200 streams, and again with a second SIGTERM right after it. Every stream ends or says
//! why it does not, nothing is unbilled or billed twice, and the nodes are back at the restarted gateway.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, Event, content};
use crate::ground::until;
use crate::house::{CHAT_MODEL, House};
use crate::money::Money;
use crate::settings::Setting;
use crate::stand_in::{Identity, StandIn};
use crate::verdict::Verdict;

/// The assertion that catches an exit that does not look at what runs.
pub const CAUGHT_BY: &str = "every stream ends or says why it does not";

/// Streams at a time.
const STREAMS: usize = 200;
/// What the gateway gives running streams here; 30 s in the product.
const DRAIN: Duration = Duration::from_secs(4);
/// Nodes are back within this time, asserted at four times.
const BACK: Duration = Duration::from_secs(5);

/// How a stream ended.
#[derive(Debug, Default)]
struct Seen {
    request_id: String,
    prompt: &'static str,
    text: String,
    done: bool,
    error: Option<String>,
}

/// The gate.
///
/// # Errors
/// A program is missing or does not start.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("G7");
    let folder = tempfile::tempdir()?;
    let mut house = House::plan(folder.path(), setting.bad)?;
    house.set("CXMPUTE_SERVER_DRAIN_MS", &DRAIN.as_millis().to_string());
    house.set("CXMPUTE_SERVER_CONNECTIONS_PER_ADDRESS", "0");
    house.start_gateway().await?;
    let user = house.create_user("drain@example.org")?;
    house.grant_credits(&user, 1_000_000_000_000)?;
    let client = Client::with_key(house.address, &house.create_key(&user)?);
    let mut nodes = Vec::new();
    for number in 0..4 {
        let owner = house.create_user(&format!("drain-owner-{number}@example.org"))?;
        let grant = house.enrol_grant(&owner)?;
        nodes.push(StandIn::enrol_and_start(house.address, &Identity::fresh(), "node", &grant).await?);
    }
    house.routable(CHAT_MODEL, 4).await?;
    for round in 0..setting.counts.pick(2, 6) {
        let twice = round % 2 == 1;
        one_round(&mut house, &client, &nodes, twice, &mut verdict).await?;
    }
    let money = Money::open(&house.database_url()).await?;
    verdict.equal("no hold is left", &money.open_holds().await?, &0);
    let report = house.check_ledger();
    verdict.check(
        "the ledger explains every credit",
        report.as_ref().is_ok_and(|report| report["explained"].as_f64() == Some(1.0)),
        format!("{report:?}"),
    );
    for node in &nodes {
        node.stop().await;
    }
    Ok(verdict)
}

async fn one_round(
    house: &mut House,
    client: &Client,
    nodes: &[StandIn],
    twice: bool,
    verdict: &mut Verdict,
) -> Result<()> {
    let epochs: Vec<_> = nodes.iter().map(StandIn::epoch).collect();
    let (begun, mut beginnings) = watch::channel(0usize);
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let (client, begun) = (client.clone(), begun.clone());
        // Half of them end by themselves within the time to drain, half never do.
        let prompt = if number % 2 == 0 { "pace 20 50" } else { "hold 5" };
        streams.spawn(async move { stream(&client, prompt, &begun).await });
    }
    tokio::time::timeout(Duration::from_secs(60), beginnings.wait_for(|count| *count == STREAMS))
        .await
        .context("the streams did not all begin")??;
    let pid = Pid::from_raw(i32::try_from(house.gateway()?.pid())?);
    let term = Instant::now();
    kill(pid, Signal::SIGTERM)?;
    let refused = until("new work to be refused", Duration::from_secs(5), async || {
        let reply = client.call("GET", "/readyz", None).await;
        Ok((!reply.is_ok_and(|reply| reply.status == 200)).then_some(()))
    })
    .await;
    verdict.check("nothing new is accepted", refused.is_ok(), format!("{refused:?}"));
    if twice {
        let _ = kill(pid, Signal::SIGTERM);
    }
    let seen = streams.join_all().await;
    let allowed = if twice { Duration::from_secs(8) } else { DRAIN + Duration::from_secs(8) };
    let took = term.elapsed();
    verdict.check("streams end in time", took <= allowed, format!("{took:?}, twice {twice}"));
    let exited = until("the gateway to end", Duration::from_secs(30), async || {
        Ok((!house.gateway()?.alive()).then_some(()))
    })
    .await;
    verdict.check("the gateway ends", exited.is_ok(), format!("{exited:?}"));
    let restarted = Instant::now();
    house.start_gateway().await?;
    let back = until("the nodes to be back", BACK * 4, async || {
        let all = nodes.iter().zip(&epochs).all(|(node, old)| node.epoch() > *old);
        Ok(all.then_some(()))
    })
    .await;
    verdict.check("the nodes are back in 5 s (4 x)", back.is_ok(), format!("{back:?}"));
    verdict.measured("nodes back after a restart", BACK, vec![restarted.elapsed()]);
    judge(&seen, house, twice, verdict).await?;
    verdict.count += seen.len() as u64;
    house.routable(CHAT_MODEL, 4).await
}

async fn judge(seen: &[Seen], house: &House, twice: bool, verdict: &mut Verdict) -> Result<()> {
    let money = Money::open(&house.database_url()).await?;
    let (mut done, mut told) = (0, 0);
    for stream in seen {
        let said = stream.error.as_deref() == Some("gateway_draining");
        done += usize::from(stream.done);
        told += usize::from(said);
        verdict.check(CAUGHT_BY, stream.done != said, format!("twice {twice}: {stream:?}"));
        let body = json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": stream.prompt}]});
        let delivered = money.price(CHAT_MODEL, money.prompt_tokens(&body)?, money.count(&stream.text)?)?;
        let (posts, cost) =
            (money.settlements_of(&stream.request_id).await?, money.charge_of(&stream.request_id).await?);
        let right = if stream.done { posts == 1 && cost == delivered } else { posts == 0 && cost == 0 };
        verdict.check(
            "what ended is billed once, what did not is free",
            right,
            format!("twice {twice}: {stream:?}: {posts} settlements, {cost} of {delivered}"),
        );
    }
    verdict.check(
        "streams that end within the time to drain do end",
        twice || done == STREAMS / 2,
        format!("{done} ended, {told} told"),
    );
    Ok(())
}

async fn stream(client: &Client, prompt: &'static str, begun: &watch::Sender<usize>) -> Seen {
    let mut seen = Seen { prompt, ..Seen::default() };
    let body = json!({"model": CHAT_MODEL, "stream": true, "max_tokens": 64, "messages": [{"role": "user", "content": prompt}]});
    let Ok(mut conversation) = client.open("POST", "/v1/chat/completions", Some(&body)).await else {
        begun.send_modify(|count| *count += 1);
        return seen;
    };
    seen.request_id = conversation.header("x-request-id").unwrap_or_default().to_owned();
    begun.send_modify(|count| *count += 1);
    while let Ok(Some(event)) = conversation.event().await {
        match event {
            Event::Done => seen.done = true,
            Event::Data(value) if value.get("error").is_some() => {
                seen.error = value["error"]["code"].as_str().map(str::to_owned);
            }
            Event::Data(value) => seen.text.push_str(content(&value).unwrap_or_default()),
        }
    }
    seen
}
