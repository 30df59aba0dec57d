//! G9: whatever a request says of its address or its user, limits count the real peer, or behind a configured proxy the
//! hop that the proxy names, and answers belong to the key.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_gateway::auth;
use cxmpute_store::KeyKind;
use cxmpute_wire::MicroCredits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::PATIENCE;
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::World;

/// The assertion that catches a gateway that believes everybody.
pub const CAUGHT_BY: &str = "a forged address does not escape the limit of the real one";

/// Wrong keys of one address before it is held off.
const GUESSES: u64 = 4;

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("G9");
    untrusted(setting, &mut verdict).await?;
    trusted(setting, &mut verdict).await?;
    Ok(verdict)
}

/// Every request comes from the same peer, and each says it comes from somewhere else.
async fn untrusted(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).failed_keys(GUESSES).start().await?;
    let rich = world.account("rich@example.org", MicroCredits(7_000_000)).await?;
    let poor = world.account("poor@example.org", MicroCredits(1)).await?;
    let key = poor.client.key.clone().context("the account has a key")?;
    let own = call(world.address, &key, &[("X-User-Id", rich.user_id.as_str())]).await?;
    verdict.check(
        "X-User-Id changes nothing",
        own.0 == 200 && own.1.contains("\"balance_micro\":1,"),
        format!("{} {}", own.0, own.1),
    );
    for round in 0..setting.counts.pick(20, 200) {
        verdict.count += 1;
        let name = format!("203.0.113.{}", round % 250);
        let says = [
            ("X-Forwarded-For", name.as_str()),
            ("Forwarded", &format!("for={name}")),
            ("X-Real-IP", &name),
            ("X-User-Id", rich.user_id.as_str()),
        ];
        let (status, body) = guess(world.address, &says).await?;
        let wanted = if round < GUESSES { 401 } else { 429 };
        let place = if round < GUESSES { "a wrong key is a 401 at first" } else { CAUGHT_BY };
        verdict.check(place, status == wanted, format!("guess {round} as {name}: {status} {body}"));
    }
    let (status, body) = call(world.address, &key, &[]).await?;
    verdict.check("a key in use is not held off", status == 200, format!("{status} {body}"));
    world.finish(verdict).await
}

/// The peer is a configured proxy: the hop that it added counts, not what stood before.
async fn trusted(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).failed_keys(GUESSES).trust("127.0.0.1").start().await?;
    for round in 0..setting.counts.pick(20, 200) {
        verdict.count += 1;
        let forged = format!("203.0.113.{}", round % 250);
        let says = [
            ("X-Forwarded-For", format!("{forged}, 198.51.100.7")),
            ("Forwarded", format!("for={forged}")),
            ("X-Real-IP", forged.clone()),
        ];
        let says: Vec<(&str, &str)> = says.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, body) = guess(world.address, &says).await?;
        let wanted = if round < GUESSES { 401 } else { 429 };
        let place = if round < GUESSES { "a wrong key is a 401 at first" } else { CAUGHT_BY };
        verdict.check(place, status == wanted, format!("guess {round} behind a proxy: {status} {body}"));
    }
    for innocent in ["203.0.113.1", "2001:db8::1", "[2001:db8:1::1]:443"] {
        let (status, body) = guess(world.address, &[("X-Forwarded-For", innocent)]).await?;
        verdict.check(
            "nobody is held off for what was forged in his name",
            status == 401,
            format!("{innocent}: {status} {body}"),
        );
    }
    for garbage in ["", "unknown", "198.51.100.7 ,", ",,,", "\u{7f}", "999.1.1.1"] {
        let (status, body) = guess(world.address, &[("X-Forwarded-For", garbage)]).await?;
        verdict.check(
            "garbage is no address and no fault",
            matches!(status, 400 | 401 | 429),
            format!("{garbage:?}: {status} {body}"),
        );
    }
    world.finish(verdict).await
}

async fn guess(address: SocketAddr, says: &[(&str, &str)]) -> Result<(u16, String)> {
    call(address, auth::mint(KeyKind::Api).text.expose(), says).await
}

async fn call(address: SocketAddr, key: &str, says: &[(&str, &str)]) -> Result<(u16, String)> {
    let mut request = format!(
        "GET /v1/credits HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    );
    for (name, value) in says {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE + Duration::from_secs(1), stream.read_to_end(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())))
}
