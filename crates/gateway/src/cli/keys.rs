//! `cxmpute keys`: making, listing and revoking keys.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use cxmpute_runtime::Clock;
use cxmpute_store::{Db, KeyKind, KeyRow, NewKey};
use cxmpute_wire::{KeyId, MicroCredits, UserId};
use serde::Serialize;

use super::{Output, account};
use crate::app::open_store;
use crate::auth::{self, Pepper, key};
use crate::config::Config;

/// Subcommands of `keys`.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is printed once and never again.
    Create(CreateArgs),
    /// List the keys of an account, without their secrets.
    List {
        /// E-mail address, account id, or a key of it.
        account: String,
        /// Provider keys instead of API keys.
        #[arg(long)]
        provider: bool,
    },
    /// Revoke a key; it stops working within a second.
    Revoke {
        /// Public part of the key (12 letters or digits), or the key.
        key: String,
        /// The key is a provider key.
        #[arg(long)]
        provider: bool,
    },
}

/// Flags of `keys create`.
#[derive(Args)]
pub struct CreateArgs {
    /// E-mail address or id of the account.
    account: String,
    /// Name of the key, for people.
    #[arg(long, default_value = "default")]
    name: String,
    /// A provider key (cxp_…) for the routes of the first seed.
    #[arg(long)]
    provider: bool,
    /// Most that the key may spend in all, in credits.
    #[arg(long, value_name = "CREDITS")]
    budget: Option<String>,
}

/// A fresh key as it is shown, once.
#[derive(Serialize)]
pub struct ShownKey {
    /// Public part.
    pub id: KeyId,
    /// The whole key.
    pub key: String,
    /// Whose it is.
    pub account: UserId,
    /// `api` or `provider`.
    pub kind: &'static str,
}

#[derive(Serialize)]
struct ListedKey {
    id: KeyId,
    kind: &'static str,
    name: String,
    created_at: i64,
    revoked: bool,
    spent_micro: i64,
    budget_micro: Option<i64>,
}

impl From<&KeyRow> for ListedKey {
    fn from(row: &KeyRow) -> Self {
        Self {
            id: row.id.clone(),
            kind: row.kind.as_str(),
            name: row.name.clone(),
            created_at: row.created_at.0,
            revoked: row.revoked_at.is_some(),
            spent_micro: row.spent.0,
            budget_micro: row.budget.map(|budget| budget.0),
        }
    }
}

/// Carries out a subcommand.
pub async fn run(config: &Config, command: KeysCommand, output: &Output) -> anyhow::Result<()> {
    let (db, pepper) = open_store(config).await?;
    match command {
        KeysCommand::Create(args) => {
            let user = account::find(&db, &args.account).await?;
            let budget = args.budget.as_deref().map(parse_budget).transpose()?;
            let shown = create(&db, &pepper, &user.id, kind_of(args.provider), &args.name, budget).await?;
            output.show(&shown, &shown.key)
        }
        KeysCommand::List { account, provider } => {
            let user = account::find(&db, &account).await?;
            let rows = db.list_keys(&user.id).await?;
            let kind = kind_of(provider);
            let rows: Vec<ListedKey> =
                rows.iter().filter(|row| row.kind == kind).map(ListedKey::from).collect();
            output.show_all(&rows, |row| {
                let state = if row.revoked { "revoked" } else { "valid" };
                let spent = MicroCredits(row.spent_micro).to_credits();
                format!("{}  {}  {state}  spent {spent}  {}", row.id, row.kind, row.name)
            })
        }
        KeysCommand::Revoke { key, provider } => {
            let id = match auth::parse(&key) {
                Some((_, id)) => id,
                None => key.parse().context("Give the public part of the key, 12 letters or digits.")?,
            };
            let row = db.find_key(&id).await?.filter(|row| row.kind == kind_of(provider));
            if row.is_none() {
                bail!("There is no such {} key; `cxmpute keys list` shows all.", kind_of(provider).as_str());
            }
            let revoked = db.revoke_key(&id, None, Clock::system().now()).await?;
            let text = if revoked { "revoked" } else { "was revoked before" };
            output.show(
                &serde_json::json!({"id": id, "revoked": true, "changed": revoked}),
                format!("{id} {text}"),
            )
        }
    }
}

/// Makes and stores a key.
pub async fn create(
    db: &Db,
    pepper: &Pepper,
    user: &UserId,
    kind: KeyKind,
    name: &str,
    budget: Option<MicroCredits>,
) -> anyhow::Result<ShownKey> {
    let minted = auth::mint(kind);
    let text = minted.text.expose();
    db.create_key(&NewKey {
        id: minted.id.clone(),
        user_id: user.clone(),
        kind,
        name: name.to_owned(),
        hash: pepper.hash(text).to_vec(),
        env: key::ENVIRONMENT.to_owned(),
        budget,
        created_at: Clock::system().now(),
    })
    .await?;
    Ok(ShownKey { id: minted.id, key: text.clone(), account: user.clone(), kind: kind.as_str() })
}

fn kind_of(provider: bool) -> KeyKind {
    if provider { KeyKind::Provider } else { KeyKind::Api }
}

fn parse_budget(text: &str) -> anyhow::Result<MicroCredits> {
    match MicroCredits::from_credits(text) {
        Some(amount) if amount.0 > 0 => Ok(amount),
        _ => bail!("--budget is {text}, expected credits with at most six decimal places, such as 2.5."),
    }
}
