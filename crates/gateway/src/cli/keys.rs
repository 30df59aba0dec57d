//! `cxmpute keys`: making, listing and revoking keys.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use cxmpute_runtime::Clock;
use cxmpute_store::{Db, KeyKind, KeyRow, KeySettings, Limits, NewKey};
use cxmpute_wire::{KeyId, MicroCredits, UserId};
use serde::Serialize;
use serde_json::{Value, json};

use super::limits::{self, LimitArgs, SettingArgs};
use super::{Output, account};
use crate::app::open_store;
use crate::auth::{self, Pepper, key};
use crate::config::Config;

/// Subcommands of `keys`.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is printed once and never again.
    Create(Box<CreateArgs>),
    /// Change the limits and settings of a key; they hold within a second.
    Update(Box<UpdateArgs>),
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
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Flags of `keys update`.
#[derive(Args)]
pub struct UpdateArgs {
    /// Public part of the key (12 letters or digits), or the key.
    key: String,
    /// Another name.
    #[arg(long)]
    name: Option<String>,
    /// Most that the key may spend in all, in credits, or `none`.
    #[arg(long, value_name = "CREDITS|none")]
    budget: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    settings: SettingArgs,
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
    expires_at: Option<i64>,
    strict: bool,
    force_usage: bool,
    /// Defaults included; null is no limit.
    limits: Value,
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
            expires_at: row.settings.expires_at.map(|at| at.0),
            strict: row.settings.strict,
            force_usage: row.settings.force_usage,
            limits: limits::shown(&row.limits),
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
            // Wrong flags are found before there is a key.
            args.limits.change(Limits::default())?;
            let settings = args.settings.change(KeySettings::default(), Clock::system().now())?;
            let shown = create(&db, &pepper, &user.id, kind_of(args.provider), &args.name, budget).await?;
            if settings != KeySettings::default() {
                db.set_key_settings(&shown.id, &args.name, budget, settings).await?;
            }
            args.limits.apply(&db, limits::of_key(&shown.id)).await?;
            output.show(&shown, &shown.key)
        }
        KeysCommand::Update(args) => {
            let id = key_id(&args.key)?;
            let Some(row) = db.find_key(&id).await? else {
                bail!("There is no such key; `cxmpute keys list` shows all.");
            };
            let budget = match args.budget.as_deref() {
                None => row.budget,
                Some("none") => None,
                Some(text) => Some(parse_budget(text)?),
            };
            let settings = args.settings.change(row.settings, Clock::system().now())?;
            let name = args.name.as_deref().unwrap_or(&row.name);
            let limits = args.limits.apply(&db, limits::of_key(&id)).await?;
            db.set_key_settings(&id, name, budget, settings).await?;
            let shown = json!({"id": id, "name": name, "budget_micro": budget, "strict": settings.strict,
                "force_usage": settings.force_usage, "expires_at": settings.expires_at,
                "limits": limits::shown(&limits)});
            output.show(&shown, format_args!("{id} changed"))
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
            let id = key_id(&key)?;
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

/// The public part of a key, from itself or from the whole key.
fn key_id(text: &str) -> anyhow::Result<KeyId> {
    match auth::parse(text) {
        Some((_, id)) => Ok(id),
        None => text.parse().context("Give the public part of the key, 12 letters or digits."),
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
