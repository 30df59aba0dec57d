//! `cxmpute admin`: accounts, credits, ledger, enrolment grants, devices.

use anyhow::bail;
use clap::{Args, Subcommand};
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Clock, random};
use cxmpute_store::{Db, LedgerReport, NewUser, Posted, ProvisionRow, UserCreated, UserRow};
use cxmpute_wire::control::ObservedService;
use cxmpute_wire::{MicroCredits, Millis, Timestamp, UserId};
use serde::Serialize;
use serde_json::json;

use super::limits::{self, LimitArgs};
use super::plan::{self, PlanArgs};
use super::{Output, account};
use crate::app::open_store;
use crate::auth::Pepper;
use crate::config::Config;

/// How long an enrolment grant is good (NR4).
const GRANT_HOURS: u64 = 1;

/// Subcommands of `admin`.
#[derive(Subcommand)]
pub enum AdminCommand {
    /// Accounts.
    #[command(subcommand)]
    User(UserCommand),
    /// Credits of an account.
    #[command(subcommand)]
    Credits(CreditsCommand),
    /// The double-entry ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Enrolment grants, by which a device joins an account.
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Devices.
    #[command(subcommand)]
    Provision(ProvisionCommand),
    /// Show which services the plan wants on which device, and why.
    Plan(PlanArgs),
    /// Print the number of requests that run now.
    Running,
}

/// Subcommands of `admin user`.
#[derive(Subcommand)]
pub enum UserCommand {
    /// Make an account; an existing one is shown instead.
    Create {
        /// E-mail address.
        email: String,
    },
    /// List all accounts.
    List,
    /// Show the limits of an account, all its keys together, and change those that are given.
    Limits {
        /// E-mail address, account id, or a key of it.
        account: String,
        #[command(flatten)]
        limits: Box<LimitArgs>,
    },
    /// Suspend an account: its keys, devices and logins stop working.
    Suspend {
        /// E-mail address or account id.
        account: String,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
    },
    /// End a suspension.
    Unsuspend {
        /// E-mail address or account id.
        account: String,
    },
}

/// Subcommands of `admin credits`.
#[derive(Subcommand)]
pub enum CreditsCommand {
    /// Add credits to an account.
    Grant(GrantArgs),
    /// Show the figures of an account, as user and as provider.
    Show {
        /// E-mail address, account id, or a key of it.
        account: String,
    },
}

/// Flags of `admin credits grant`.
#[derive(Args)]
pub struct GrantArgs {
    /// E-mail address, account id, or a key of it.
    account: String,
    /// Credits, with at most six decimal places.
    #[arg(required_unless_present = "micro", conflicts_with = "micro")]
    amount: Option<String>,
    /// The amount in micro-credits instead.
    #[arg(long, value_name = "N")]
    micro: Option<i64>,
    /// Why, for the record.
    #[arg(long)]
    reason: String,
    /// Business key: granting again under the same key changes nothing.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// Subcommands of `admin ledger`.
#[derive(Subcommand)]
pub enum LedgerCommand {
    /// Check every rule of the ledger; exit code 1 when one is broken.
    Check,
}

/// Subcommands of `admin grant`.
#[derive(Subcommand)]
pub enum GrantCommand {
    /// Print a fresh single-use grant for one device of an account, good for an hour.
    Create {
        /// E-mail address or account id of the owner.
        account: String,
    },
}

/// Subcommands of `admin provision`.
#[derive(Subcommand)]
pub enum ProvisionCommand {
    /// List devices.
    List {
        /// Only those of this account.
        account: Option<String>,
    },
}

/// Carries out a subcommand.
pub async fn run(config: &Config, command: AdminCommand, output: &Output) -> anyhow::Result<()> {
    let (db, pepper) = open_store(config).await?;
    match command {
        AdminCommand::User(command) => user(&db, command, output).await,
        AdminCommand::Credits(CreditsCommand::Grant(args)) => grant_credits(&db, args, output).await,
        AdminCommand::Credits(CreditsCommand::Show { account }) => show_credits(&db, &account, output).await,
        AdminCommand::Ledger(LedgerCommand::Check) => check_ledger(&db, output).await,
        AdminCommand::Grant(GrantCommand::Create { account }) => {
            let owner = account::find(&db, &account).await?;
            let grant = create_grant(&db, &pepper, &owner.id).await?;
            output.show(&json!({"grant": grant, "account": owner.id, "hours": GRANT_HOURS}), &grant)
        }
        AdminCommand::Provision(ProvisionCommand::List { account }) => {
            list_provisions(&db, account.as_deref(), output).await
        }
        AdminCommand::Plan(args) => plan::run(config, &db, args, output).await,
        AdminCommand::Running => {
            let running = db.running_requests().await?;
            output.show(&json!({"running": running}), running)
        }
    }
}

#[derive(Serialize)]
struct ShownUser {
    id: UserId,
    email: String,
    created_at: i64,
    suspended: bool,
}

impl From<UserRow> for ShownUser {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id,
            email: row.email,
            created_at: row.created_at.0,
            suspended: row.suspended_at.is_some(),
        }
    }
}

async fn user(db: &Db, command: UserCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        UserCommand::Create { email } => {
            let user = ShownUser::from(create_user(db, &email).await?);
            output.show(&user, format_args!("{}  {}", user.id, user.email))
        }
        UserCommand::List => {
            const PAGE: u32 = 500;
            let mut after: Option<UserId> = None;
            loop {
                let page: Vec<ShownUser> =
                    db.list_users(after.as_ref(), PAGE).await?.into_iter().map(ShownUser::from).collect();
                output.show_all(&page, |user| {
                    format!("{}  {}{}", user.id, user.email, if user.suspended { "  suspended" } else { "" })
                })?;
                match page.last() {
                    Some(last) if page.len() == PAGE as usize => after = Some(last.id.clone()),
                    _ => return Ok(()),
                }
            }
        }
        UserCommand::Limits { account, limits } => {
            let user = account::find(db, &account).await?;
            let now = limits.apply(db, limits::of_account(&user.id)).await?;
            let shown = json!({"id": user.id, "limits": limits::shown(&now)});
            output.show(&shown, format_args!("{} {}", user.email, limits::shown(&now)))
        }
        UserCommand::Suspend { account, reason } => {
            let user = account::find(db, &account).await?;
            let changed = db.suspend_user(&user.id, &reason, Clock::system().now()).await?;
            let text = if changed { "suspended" } else { "was suspended before" };
            output.show(
                &json!({"id": user.id, "suspended": true, "changed": changed}),
                format!("{} {text}", user.email),
            )
        }
        UserCommand::Unsuspend { account } => {
            let user = account::find(db, &account).await?;
            let changed = db.unsuspend_user(&user.id).await?;
            let text = if changed { "active again" } else { "was not suspended" };
            output.show(
                &json!({"id": user.id, "suspended": false, "changed": changed}),
                format!("{} {text}", user.email),
            )
        }
    }
}

/// Makes an account, or finds the one that has the address.
pub async fn create_user(db: &Db, email: &str) -> anyhow::Result<UserRow> {
    let email = email.trim();
    let shaped = email.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.len() > 1);
    if !shaped || email.len() > 254 || email.chars().any(|c| c.is_whitespace() || c.is_control()) {
        bail!("`{email}` is not an e-mail address.");
    }
    let id = UserId::from_tail(&data_encoding::BASE32_NOPAD.encode(&random::bytes::<15>()).to_lowercase());
    let made =
        db.create_user(&NewUser { id, email: email.to_owned(), created_at: Clock::system().now() }).await?;
    match made {
        UserCreated::Created(row) | UserCreated::Exists(row) => Ok(row),
    }
}

async fn grant_credits(db: &Db, args: GrantArgs, output: &Output) -> anyhow::Result<()> {
    let amount = match (&args.amount, args.micro) {
        (_, Some(micro)) => MicroCredits(micro),
        (Some(text), None) => match MicroCredits::from_credits(text) {
            Some(amount) => amount,
            None => bail!("{text} is not a number of credits with at most six decimal places, such as 2.5."),
        },
        (None, None) => bail!("Give an amount of credits, or --micro N."),
    };
    let user = account::find(db, &args.account).await?;
    let posted = grant(db, &user.id, amount, &args.reason, args.key).await?;
    let balance = db.balance(&user.id).await?.total();
    let changed = posted == Posted::Entered;
    let text = if changed { "granted" } else { "was granted before" };
    output.show(
        &json!({"account": user.id, "amount_micro": amount, "balance_micro": balance, "changed": changed}),
        format!("{} {text} to {}; balance {}", amount.to_credits(), user.email, balance.to_credits()),
    )
}

/// Enters a grant of the operator.
pub async fn grant(
    db: &Db,
    user: &UserId,
    amount: MicroCredits,
    reason: &str,
    key: Option<String>,
) -> anyhow::Result<Posted> {
    if amount.0 <= 0 {
        bail!("The amount must be above zero; a refund or correction is not a grant.");
    }
    let key = key.unwrap_or_else(|| data_encoding::HEXLOWER.encode(&random::bytes::<16>()));
    let posted = db.grant_credits(user, amount, "operator", reason, &key, Clock::system().now()).await?;
    if posted == Posted::Refused {
        bail!("The ledger refused the grant; at most 1,000,000 credits can be granted at once.");
    }
    Ok(posted)
}

async fn show_credits(db: &Db, account: &str, output: &Output) -> anyhow::Result<()> {
    let user = account::find(db, account).await?;
    let (balance, earned) = (db.balance(&user.id).await?, db.earnings(&user.id).await?);
    let shown = json!({
        "account": user.id, "email": user.email,
        "balance_micro": balance.total(), "available_micro": balance.available, "held_micro": balance.held,
        "promo_micro": balance.promo, "provider_pending_micro": earned.pending,
        "provider_payable_micro": earned.payable,
    });
    let text = format!(
        "{}\nbalance    {}\n  available {}\n  held      {}\nearned     {} pending, {} payable",
        user.email,
        balance.total().to_credits(),
        balance.available.to_credits(),
        balance.held.to_credits(),
        earned.pending.to_credits(),
        earned.payable.to_credits()
    );
    output.show(&shown, text)
}

async fn check_ledger(db: &Db, output: &Output) -> anyhow::Result<()> {
    let report: LedgerReport = db.check_ledger().await?;
    let clean = report.is_clean();
    let offences: Vec<_> = report.offences.iter().map(|o| json!({"rule": o.rule, "id": o.id})).collect();
    let explained = report.explained();
    let shown = json!({
        "explained": if clean { json!(1) } else { json!(explained) },
        "open_holds": report.open_holds.len(), "open_hold_ids": report.open_holds,
        "transactions": report.transactions, "sum_micro": report.sum, "resolved": report.resolved,
        "flags": report.flags, "offence_count": report.offence_count, "offences": offences,
    });
    let mut text = format!(
        "explained {}\nopen_holds {}\ntransactions {}\nsum {}\noffences {}",
        if clean { "1".to_owned() } else { format!("{explained:.9}") },
        report.open_holds.len(),
        report.transactions,
        report.sum,
        report.offence_count
    );
    for offence in &report.offences {
        text.push_str(&format!("\n  {}: {}", offence.rule, offence.id));
    }
    output.show(&shown, text)?;
    if clean {
        Ok(())
    } else {
        Err(ExitError::new(
            exit::OTHER,
            "The ledger does not explain every micro-credit; the offences are listed.",
        )
        .into())
    }
}

/// Makes a single-use enrolment grant.
pub async fn create_grant(db: &Db, pepper: &Pepper, owner: &UserId) -> anyhow::Result<String> {
    let secret = data_encoding::BASE32_NOPAD.encode(&random::bytes::<20>()).to_lowercase();
    let grant = format!("cxg_{secret}");
    let now = Clock::system().now();
    let until: Timestamp = now.plus(Millis(GRANT_HOURS * 3_600_000));
    db.create_grant(&pepper.hash(&grant), owner, now, until).await?;
    Ok(grant)
}

#[derive(Serialize)]
struct ShownProvision {
    id: String,
    alias: Option<String>,
    owner: UserId,
    name: String,
    state: &'static str,
    epoch: i64,
    generation: i64,
    observed_generation: i64,
    last_seen: Option<i64>,
    has_key: bool,
    /// What it said of its services last.
    services: Vec<ObservedService>,
}

impl From<ProvisionRow> for ShownProvision {
    fn from(row: ProvisionRow) -> Self {
        Self {
            services: serde_json::from_str(&row.observed).unwrap_or_default(),
            id: row.id.to_string(),
            alias: row.alias,
            owner: row.owner,
            name: row.name,
            state: row.state.as_str(),
            epoch: row.epoch.0,
            generation: row.desired_generation.0,
            observed_generation: row.observed_generation.0,
            last_seen: row.last_seen.map(|seen| seen.0),
            has_key: row.public_key.is_some(),
        }
    }
}

async fn list_provisions(db: &Db, of: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let owner = match of {
        Some(name) => Some(account::find(db, name).await?.id),
        None => None,
    };
    let rows = db.list_provisions(owner.as_ref()).await?;
    let rows: Vec<ShownProvision> = rows.into_iter().map(ShownProvision::from).collect();
    output.show_all(&rows, |row| {
        let note = if row.has_key { "" } else { "  no_tunnel" };
        let coming = row.services.iter().filter_map(|service| {
            let progress = service.progress.as_ref()?;
            Some(format!("\n    {} comes: {progress}", service.service_id))
        });
        format!("{}  {}  {}  {}{note}{}", row.id, row.state, row.owner, row.name, coming.collect::<String>())
    })
}
