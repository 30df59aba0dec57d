//! How a world's gateway is wired: the product's own configuration and `App`, a catalogue for tests, a fresh store.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cxmpute_gateway::auth;
use cxmpute_gateway::config::Config;
use cxmpute_gateway::{App, Listeners, Parts, serve as serve_app};
use cxmpute_runtime::random;
use cxmpute_store::{KeyKind, NewKey, NewUser, UserCreated};
use cxmpute_wire::{MicroCredits, Millis, UserId};
use sha2::{Digest as _, Sha256};

use super::{
    CHAT_MODEL, DRAWING_MODEL, EMBEDDINGS_MODEL, FIXED_COST, FIXED_MODEL, LISTENING_MODEL, PAGES_MODEL,
    READING_MODEL, SEEING_MODEL, SPEECH_MODEL,
};
use crate::house::models_dir;
use crate::money::TINY_FILE;
use crate::settings::postgres_url;
use crate::stand_in::DIMENSIONS;

/// Points the configuration at the world's folder and writes the catalogue there.
pub(super) fn lay_out(
    config: &mut Config,
    folder: &Path,
    url: String,
    services: bool,
    more: &str,
) -> Result<()> {
    let models = models_dir();
    let file = std::fs::read(models.join(TINY_FILE))
        .with_context(|| format!("{TINY_FILE} in {}: run scripts/fetch-models", models.display()))?;
    let path = folder.join("models.toml");
    let mut text = catalogue(&data_encoding::HEXLOWER.encode(&Sha256::digest(&file)), file.len());
    if services {
        text.push_str(&catalogue_of_services());
    }
    text.push_str(more);
    std::fs::write(&path, text)?;
    config.store.data_dir = folder.to_owned();
    config.store.url = Some(url);
    config.catalogue.path = Some(path);
    config.catalogue.models_dir = Some(models);
    config.server.bind = "127.0.0.1:0".parse()?;
    Ok(())
}

/// The lines of an entry that pin the tiny model's file.
pub(super) fn tiny_file() -> Result<String> {
    let file = std::fs::read(models_dir().join(TINY_FILE))?;
    let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(&file));
    Ok(format!(
        "[[model.file]]\nrole = \"model\"\nname = \"{TINY_FILE}\"\nsha256 = \"{sha256}\"\nsize = {}\n",
        file.len()
    ))
}

fn catalogue(sha256: &str, size: usize) -> String {
    let model = |id: &str, price: &str| {
        format!(
            "[[model]]\nid = \"{id}\"\nkind = \"llm\"\ncontext_length = 400000\nmax_completion_tokens = 200000\nengines = [\"builtin\"]\n\
             price = {{ version = 1, {price} }}\n[[model.file]]\nrole = \"model\"\nname = \"{TINY_FILE}\"\nsha256 = \"{sha256}\"\nsize = {size}\n\n"
        )
    };
    let fixed = format!("prompt = 1, completion = 1, minimum = {FIXED_COST}");
    let embeddings = format!(
        "[[model]]\nid = \"{EMBEDDINGS_MODEL}\"\nkind = \"embeddings\"\ncontext_length = 256\ndimensions = {DIMENSIONS}\nengines = [\"builtin\"]\n\
         price = {{ version = 1, embedding = 2000000, minimum = 1 }}\n[[model.file]]\nrole = \"model\"\nname = \"{TINY_FILE}\"\nsha256 = \"{sha256}\"\nsize = {size}\n\n"
    );
    model(CHAT_MODEL, "prompt = 150000, completion = 300000") + &model(FIXED_MODEL, &fixed) + &embeddings
}

/// Models without files, each priced by another unit.
fn catalogue_of_services() -> String {
    let model = |id: &str, kind: &str, price: &str, more: &str| {
        format!(
            "[[model]]\nid = \"{id}\"\nkind = \"{kind}\"\nengines = [\"builtin\"]\nprice = {{ version = 1, {price}, minimum = 1 }}\n{more}\n\n"
        )
    };
    let voices = "[model.voices]\nalloy = \"en\"\naf_bella = \"en-f2\"";
    [
        model(SPEECH_MODEL, "tts", "character = 2_000_000", voices),
        model(LISTENING_MODEL, "stt", "second = 100_000_000", ""),
        model(READING_MODEL, "vision", "image = 12_000_000_000", "capabilities = [\"ocr\"]"),
        model(
            SEEING_MODEL,
            "llm",
            "prompt = 1, completion = 1, character = 2_000_000",
            "context_length = 8192\nmax_completion_tokens = 2048\ncapabilities = [\"vision\", \"query\"]",
        ),
        model(
            DRAWING_MODEL,
            "image",
            "image = 50_000_000_000",
            "canvas = { usual = \"64x64\", most_side = 256 }",
        ),
        model(PAGES_MODEL, "scrape", "url = 600_000_000", ""),
    ]
    .concat()
}

/// A database of its own on the PostgreSQL of the suite; gives its address.
///
/// # Errors
/// There is no server, or it refuses.
pub fn fresh_postgres() -> Result<String> {
    let server = postgres_url().context("CXMPUTE_TEST_POSTGRES_URL is not set: run scripts/test")?;
    let name = format!("world_{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>()));
    let done = Command::new("psql")
        .args(["--quiet", "--command", &format!("CREATE DATABASE {name}"), &server])
        .output()
        .context("psql")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let (base, _) = server.rsplit_once('/').context("the URL names no database")?;
    Ok(format!("{base}/{name}"))
}

/// Builds the app, opens its listener on port 0 and serves.
pub(super) async fn serve(config: Config, bad: Option<&str>) -> Result<(Arc<App>, SocketAddr)> {
    let listeners = Listeners::bind(&config).await?;
    let address = listeners.address()?;
    let app = App::build(config, parts(bad)?).await?;
    app.tasks.spawn("accept", serve_app(app.clone(), listeners));
    Ok((app, address))
}

#[cfg(feature = "sabotage")]
fn parts(bad: Option<&str>) -> Result<Parts> {
    let find = |name| {
        cxmpute_gateway::sabotage::Sabotage::from_name(name).with_context(|| format!("no variant {name}"))
    };
    Ok(Parts { sabotage: bad.map(find).transpose()?, ..Parts::default() })
}

#[cfg(not(feature = "sabotage"))]
fn parts(bad: Option<&str>) -> Result<Parts> {
    ensure!(bad.is_none(), "the variant {bad:?} needs the cargo feature `sabotage`");
    Ok(Parts::default())
}

/// An account with money and a key, as the commands of `cxmpute` make them.
pub(super) async fn account(app: &App, email: &str, money: MicroCredits) -> Result<(UserId, String)> {
    let id = UserId::from_tail(&data_encoding::HEXLOWER.encode(&random::bytes::<12>()));
    let now = app.clock.now();
    let user = NewUser { id, email: email.to_owned(), created_at: now };
    let (UserCreated::Created(row) | UserCreated::Exists(row)) = app.db.create_user(&user).await?;
    if money.0 > 0 {
        app.db
            .grant_credits(&row.id, money, "e2e", "a test's money", &format!("world-{}", row.id), now)
            .await?;
    }
    let text = key(app, &row.id, KeyKind::Api).await?;
    Ok((row.id, text))
}

/// A key of an account, stored as its hash.
pub(super) async fn key(app: &App, owner: &UserId, kind: KeyKind) -> Result<String> {
    let now = app.clock.now();
    let minted = auth::mint(kind);
    let text = minted.text.expose().clone();
    app.db
        .create_key(&NewKey {
            id: minted.id,
            user_id: owner.clone(),
            kind,
            name: "e2e".to_owned(),
            hash: app.keys.hash(&text).to_vec(),
            env: auth::key::ENVIRONMENT.to_owned(),
            budget: None,
            created_at: now,
        })
        .await?;
    Ok(text)
}

/// A grant as `cxmpute admin` makes it: the gateway stores its hash only.
pub(super) async fn grant(app: &App, owner: &UserId) -> Result<String> {
    let text = data_encoding::HEXLOWER.encode(&random::bytes::<16>());
    let now = app.clock.now();
    let expires = now.plus(Millis::from(Duration::from_secs(3_600)));
    app.db.create_grant(&app.keys.hash(&text), owner, now, expires).await?;
    Ok(text)
}
