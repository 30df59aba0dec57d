//! Limits of keys and accounts: what an operator sets, what holds after the defaults, and the one statement that keeps
//! spending under them.

use cxmpute_wire::{KeyId, MicroCredits, Timestamp, UserId};
use sqlx::{AssertSqlSafe, FromRow};

use crate::db::{Db, DbKind, on, read};
use crate::dialect;
use crate::error::DbError;
use crate::lane::{Lane, values};

/// Limits of a key or of an account. As set: `None` takes the default, 0 is "no limit". As they hold
/// ([`crate::KeyRow`]): `None` and 0 are both "no limit".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests for paid work per minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in and out per minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests for paid work at the same time.
    pub concurrent: Option<u64>,
    /// Most it may spend in a UTC day of database time.
    pub spend_per_day: Option<MicroCredits>,
    /// Most it may spend in a UTC month of database time.
    pub spend_per_month: Option<MicroCredits>,
    /// Catalogue ids or aliases of the models it may use; `None` for all.
    pub models: Option<Vec<String>>,
    /// Routes it may use, such as `/chat/completions`; `None` for all.
    pub routes: Option<Vec<String>>,
}

/// Settings of a key beside its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeySettings {
    /// From this moment on the key opens nothing.
    pub expires_at: Option<Timestamp>,
    /// Fields outside the schema are refused instead of dropped (GR2).
    pub strict: bool,
    /// Streams end with a usage chunk, asked for or not (GR10).
    pub force_usage: bool,
}

/// Whose limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitSubject<'a> {
    /// A key's.
    Key(&'a KeyId),
    /// An account's: all its keys together.
    Account(&'a UserId),
}

impl LimitSubject<'_> {
    const fn table(&self) -> &'static str {
        match self {
            Self::Key(_) => "api_keys",
            Self::Account(_) => "users",
        }
    }

    /// The column that names it in other tables.
    const fn column_beside(&self) -> &'static str {
        match self {
            Self::Key(_) => "key_id",
            Self::Account(_) => "user_id",
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Key(id) => id.as_str(),
            Self::Account(id) => id.as_str(),
        }
    }
}

/// What refused to spend more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpendCap {
    /// The key's budget in all.
    KeyTotal,
    /// The key's limit per day.
    KeyDay,
    /// The key's limit per month.
    KeyMonth,
    /// The account's limit per day.
    AccountDay,
    /// The account's limit per month.
    AccountMonth,
}

impl SpendCap {
    /// The printed form, such as `key_day`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyTotal => "key_total",
            Self::KeyDay => "key_day",
            Self::KeyMonth => "key_month",
            Self::AccountDay => "account_day",
            Self::AccountMonth => "account_month",
        }
    }
}

/// Takes an amount from a key of an account, if both are good and no spend limit is passed; gives the day to which it
/// counts.
///
/// The account's own limits are sums over its keys. They hold under races because whoever calls this has locked the
/// account's balance row by an earlier statement of the same transaction.
pub(crate) async fn reserve(
    lane: &mut impl Lane,
    user: &UserId,
    key: &KeyId,
    amount: MicroCredits,
) -> Result<Option<i64>, DbError> {
    let values = values![key.as_str(), user.as_str(), amount.0];
    let sql = reserve_sql(lane.kind());
    let day = match lane.kind() {
        DbKind::Postgres => lane.row::<1>(sql, &values).await?,
        // RETURNING makes a table of its own there for each run; one writer at a time reads what it wrote.
        DbKind::Sqlite if lane.execute(sql, &values).await? == 0 => None,
        DbKind::Sqlite => lane.row::<1>("SELECT spend_day FROM api_keys WHERE id = $1", &values).await?,
    };
    Ok(day.map(|[day]| day.unwrap_or_default()))
}

/// Takes `$3` from the key `$1` of the account `$2` ([`reserve`]). Days only go forward: a transaction that began before
/// midnight and comes late counts to the newer day.
fn reserve_sql(kind: DbKind) -> &'static str {
    macro_rules! text {
        ($today:literal, $returning:literal) => {
            concat!(
                "UPDATE api_keys SET held = api_keys.held + $3,
                    day_spend = CASE WHEN api_keys.spend_day < t.today THEN 0 ELSE api_keys.day_spend END + $3,
                    month_spend = CASE WHEN api_keys.spend_day / 100 < t.today / 100 THEN 0
                                       ELSE api_keys.month_spend END + $3,
                    spend_day = CASE WHEN api_keys.spend_day < t.today THEN t.today ELSE api_keys.spend_day END
                 FROM (SELECT ",
                $today,
                " AS today, dk.spend_per_day AS key_day, dk.spend_per_month AS key_month,
                         da.spend_per_day AS account_day, da.spend_per_month AS account_month
                       FROM limit_defaults dk JOIN limit_defaults da ON da.subject = 'account'
                       WHERE dk.subject = 'key') t
                 WHERE api_keys.id = $1 AND api_keys.user_id = $2 AND api_keys.revoked_at IS NULL
                   AND (api_keys.budget IS NULL OR api_keys.spent + api_keys.held + $3 <= api_keys.budget)
                   AND (COALESCE(api_keys.spend_per_day, t.key_day, 0) = 0
                        OR CASE WHEN api_keys.spend_day < t.today THEN 0 ELSE api_keys.day_spend END + $3
                           <= COALESCE(api_keys.spend_per_day, t.key_day))
                   AND (COALESCE(api_keys.spend_per_month, t.key_month, 0) = 0
                        OR CASE WHEN api_keys.spend_day / 100 < t.today / 100 THEN 0 ELSE api_keys.month_spend END + $3
                           <= COALESCE(api_keys.spend_per_month, t.key_month))
                   AND EXISTS (SELECT 1 FROM users u WHERE u.id = $2 AND u.suspended_at IS NULL
                        AND (COALESCE(u.spend_per_day, t.account_day, 0) = 0
                             OR (SELECT COALESCE(SUM(o.day_spend), 0) FROM api_keys o
                                 WHERE o.user_id = u.id AND o.spend_day >= t.today) + $3
                                <= COALESCE(u.spend_per_day, t.account_day))
                        AND (COALESCE(u.spend_per_month, t.account_month, 0) = 0
                             OR (SELECT COALESCE(SUM(o.month_spend), 0) FROM api_keys o
                                 WHERE o.user_id = u.id AND o.spend_day / 100 >= t.today / 100) + $3
                                <= COALESCE(u.spend_per_month, t.account_month)))",
                $returning
            )
        };
    }
    match kind {
        DbKind::Sqlite => text!("CAST(strftime('%Y%m%d', 'now') AS INTEGER)", ""),
        DbKind::Postgres => {
            text!("CAST(to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS BIGINT)", " RETURNING spend_day")
        }
    }
}

/// Moves the key `$1` from held to spent: of `$2` held, `$3` were posted by holds that had taken from the day `$4`. What
/// comes back goes to that day (`$5`) and to its month (`$6`), unless they are over.
pub(crate) const RELEASE_SQL: &str = "UPDATE api_keys SET held = held - $2, spent = spent + $3,
        day_spend = day_spend - CASE WHEN $4 > 0 AND spend_day = $4 THEN $5 ELSE 0 END,
        month_spend = month_spend - CASE WHEN $4 > 0 AND spend_day / 100 = $4 / 100 THEN $6 ELSE 0 END
     WHERE id = $1";

/// After an extension by `$3` of request `$1` that counts to day `$2`: when that is a later day than the hold's, what it
/// took before belongs to the days before.
pub(crate) const EXTENDED_SQL: &str = "UPDATE holds SET day_base = amount - $3,
        month_base = CASE WHEN spend_day / 100 < $2 / 100 THEN amount - $3 ELSE month_base END,
        spend_day = $2
     WHERE request_id = $1 AND spend_day < $2";

/// After a refund of `$3` to request `$2`, paid with key `$1`: the day and month in which it was spent get it back, the
/// later one first, unless they are over.
pub(crate) const REFUND_SQL: &str = "UPDATE api_keys SET spent = spent - $3,
        day_spend = day_spend - COALESCE((
            SELECT CASE WHEN r.cost - r.refunded + $3 <= r.day_base THEN 0
                        WHEN r.cost - r.refunded <= r.day_base THEN r.cost - r.refunded + $3 - r.day_base
                        ELSE $3 END
            FROM requests r WHERE r.id = $2 AND r.user_id = api_keys.user_id AND r.spend_day > 0
              AND r.spend_day = api_keys.spend_day), 0),
        month_spend = month_spend - COALESCE((
            SELECT CASE WHEN r.cost - r.refunded + $3 <= r.month_base THEN 0
                        WHEN r.cost - r.refunded <= r.month_base THEN r.cost - r.refunded + $3 - r.month_base
                        ELSE $3 END
            FROM requests r WHERE r.id = $2 AND r.user_id = api_keys.user_id AND r.spend_day > 0
              AND r.spend_day / 100 = api_keys.spend_day / 100), 0)
     WHERE id = $1";

/// Why a key or account may not spend more, and how much it may: every cap that is set, with what is left of it.
pub(crate) struct RawCaps {
    suspended_at: Option<i64>,
    revoked_at: Option<i64>,
    balance: i64,
    key_total: Option<i64>,
    key_day: Option<i64>,
    key_month: Option<i64>,
    account_day: Option<i64>,
    account_month: Option<i64>,
}

/// What stands in the way of spending.
pub(crate) enum Obstacle {
    Suspended,
    Revoked,
    Cap(SpendCap, MicroCredits),
    Balance(MicroCredits),
}

impl From<[Option<i64>; 8]> for RawCaps {
    fn from(row: [Option<i64>; 8]) -> Self {
        let [suspended_at, revoked_at, balance, key_total, key_day, key_month, account_day, account_month] =
            row;
        let balance = balance.unwrap_or_default();
        Self { suspended_at, revoked_at, balance, key_total, key_day, key_month, account_day, account_month }
    }
}

impl RawCaps {
    /// The most basic reason; among caps and balance the smallest.
    pub(crate) fn obstacle(&self) -> Obstacle {
        if self.suspended_at.is_some() {
            return Obstacle::Suspended;
        }
        if self.revoked_at.is_some() {
            return Obstacle::Revoked;
        }
        let caps = [
            (SpendCap::KeyTotal, self.key_total),
            (SpendCap::KeyDay, self.key_day),
            (SpendCap::KeyMonth, self.key_month),
            (SpendCap::AccountDay, self.account_day),
            (SpendCap::AccountMonth, self.account_month),
        ];
        let least =
            caps.into_iter().filter_map(|(cap, left)| left.map(|left| (cap, left))).min_by_key(|c| c.1);
        match least {
            Some((cap, left)) if left < self.balance => Obstacle::Cap(cap, MicroCredits(left.max(0))),
            _ => Obstacle::Balance(MicroCredits(self.balance)),
        }
    }
}

/// The row of [`RawCaps`] for account `$1`, key `$2` and the balance row `$3`.
pub(crate) fn caps_sql(kind: DbKind) -> &'static str {
    macro_rules! text {
        ($today:literal) => {
            concat!(
                "SELECT u.suspended_at, k.revoked_at, a.balance, k.budget - k.spent - k.held AS key_total,
            NULLIF(COALESCE(k.spend_per_day, dk.spend_per_day, 0), 0)
              - CASE WHEN k.spend_day < t.today THEN 0 ELSE k.day_spend END AS key_day,
            NULLIF(COALESCE(k.spend_per_month, dk.spend_per_month, 0), 0)
              - CASE WHEN k.spend_day / 100 < t.today / 100 THEN 0 ELSE k.month_spend END AS key_month,
            NULLIF(COALESCE(u.spend_per_day, da.spend_per_day, 0), 0)
              - CAST((SELECT COALESCE(SUM(o.day_spend), 0) FROM api_keys o
                      WHERE o.user_id = u.id AND o.spend_day >= t.today) AS BIGINT) AS account_day,
            NULLIF(COALESCE(u.spend_per_month, da.spend_per_month, 0), 0)
              - CAST((SELECT COALESCE(SUM(o.month_spend), 0) FROM api_keys o
                      WHERE o.user_id = u.id AND o.spend_day / 100 >= t.today / 100) AS BIGINT) AS account_month
         FROM users u JOIN api_keys k ON k.user_id = u.id JOIN ledger_accounts a ON a.id = $3
           JOIN limit_defaults dk ON dk.subject = 'key' JOIN limit_defaults da ON da.subject = 'account'
           CROSS JOIN (SELECT ",
                $today,
                " AS today) t
         WHERE u.id = $1 AND k.id = $2"
            )
        };
    }
    match kind {
        DbKind::Sqlite => text!("CAST(strftime('%Y%m%d', 'now') AS INTEGER)"),
        DbKind::Postgres => text!("CAST(to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS BIGINT)"),
    }
}

/// Limits as columns.
#[derive(FromRow)]
pub(crate) struct RawLimits {
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrent: Option<i64>,
    spend_per_day: Option<i64>,
    spend_per_month: Option<i64>,
    models: Option<String>,
    routes: Option<String>,
}

impl TryFrom<RawLimits> for Limits {
    type Error = DbError;

    fn try_from(raw: RawLimits) -> Result<Self, DbError> {
        let count = |value: Option<i64>| value.map(|value| u64::try_from(value).unwrap_or(0));
        Ok(Self {
            requests_per_minute: count(raw.requests_per_minute),
            tokens_per_minute: count(raw.tokens_per_minute),
            concurrent: count(raw.concurrent),
            spend_per_day: raw.spend_per_day.map(MicroCredits),
            spend_per_month: raw.spend_per_month.map(MicroCredits),
            models: list(raw.models)?,
            routes: list(raw.routes)?,
        })
    }
}

pub(crate) fn list(text: Option<String>) -> Result<Option<Vec<String>>, DbError> {
    text.map(|text| serde_json::from_str(&text).map_err(|e| DbError::impossible("a list of names", e)))
        .transpose()
}

fn text(list: Option<&Vec<String>>) -> Result<Option<String>, DbError> {
    list.map(|list| serde_json::to_string(list).map_err(|e| DbError::impossible("a list of names", e)))
        .transpose()
}

fn stored(count: Option<u64>) -> Option<i64> {
    count.map(|count| i64::try_from(count).unwrap_or(i64::MAX))
}

impl Db {
    /// The limits of a key or account as they were set, without the defaults; `None` when there is no such subject.
    ///
    /// # Errors
    /// The store failed.
    pub async fn limits_of(&self, subject: LimitSubject<'_>) -> Result<Option<Limits>, DbError> {
        let sql = format!(
            "SELECT requests_per_minute, tokens_per_minute, concurrent, spend_per_day, spend_per_month, models, routes
             FROM {} WHERE id = $1",
            subject.table()
        );
        let raw: Option<RawLimits> = read!(self, e =>
            sqlx::query_as(AssertSqlSafe(sql)).bind(subject.id()).fetch_optional(e).await?);
        raw.map(Limits::try_from).transpose()
    }

    /// Replaces the limits of a key or account. False when there is no such subject.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_limits(&self, subject: LimitSubject<'_>, limits: &Limits) -> Result<bool, DbError> {
        let sql = format!(
            "UPDATE {} SET requests_per_minute = $2, tokens_per_minute = $3, concurrent = $4, spend_per_day = $5,
                    spend_per_month = $6, models = $7, routes = $8
             WHERE id = $1",
            subject.table()
        );
        let (models, routes) = (text(limits.models.as_ref())?, text(limits.routes.as_ref())?);
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(AssertSqlSafe(sql))
                .bind(subject.id())
                .bind(stored(limits.requests_per_minute))
                .bind(stored(limits.tokens_per_minute))
                .bind(stored(limits.concurrent))
                .bind(limits.spend_per_day.map(MicroCredits::get))
                .bind(limits.spend_per_month.map(MicroCredits::get))
                .bind(models)
                .bind(routes)
                .execute(c)
                .await?
                .rows_affected());
        tx.recall(subject.column_beside(), subject.id()).await?;
        tx.commit().await?;
        Ok(done == 1)
    }

    /// Replaces the name, the budget and the settings of a key. False when there is no such key.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_key_settings(
        &self,
        id: &KeyId,
        name: &str,
        budget: Option<MicroCredits>,
        settings: KeySettings,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE api_keys SET name = $2, budget = $3, expires_at = $4, strict = $5, force_usage = $6
                 WHERE id = $1")
                .bind(id.as_str())
                .bind(name)
                .bind(budget.map(MicroCredits::get))
                .bind(settings.expires_at.map(Timestamp::get))
                .bind(i64::from(settings.strict))
                .bind(i64::from(settings.force_usage))
                .execute(c)
                .await?
                .rows_affected());
        tx.recall("key_id", id.as_str()).await?;
        tx.commit().await?;
        Ok(done == 1)
    }

    /// Writes the defaults of the configuration: of every key, and of every account. The newest start wins on all
    /// replicas. Lists of models and routes have no defaults.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_default_limits(&self, key: &Limits, account: &Limits) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        for (subject, limits) in [("key", key), ("account", account)] {
            on!(&mut tx, c =>
                sqlx::query(
                    "UPDATE limit_defaults SET requests_per_minute = $2, tokens_per_minute = $3, concurrent = $4,
                            spend_per_day = $5, spend_per_month = $6
                     WHERE subject = $1")
                    .bind(subject)
                    .bind(stored(limits.requests_per_minute))
                    .bind(stored(limits.tokens_per_minute))
                    .bind(stored(limits.concurrent))
                    .bind(limits.spend_per_day.map(MicroCredits::get))
                    .bind(limits.spend_per_month.map(MicroCredits::get))
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        tx.commit().await
    }

    /// What a key has spent or holds, without what is only taken beforehand, in the current UTC day and month of database time.
    ///
    /// # Errors
    /// The store failed.
    pub async fn period_spend(&self, id: &KeyId) -> Result<(MicroCredits, MicroCredits), DbError> {
        let sql = format!(
            "SELECT CASE WHEN k.spend_day < t.today THEN 0 ELSE k.day_spend - CAST((
                        SELECT COALESCE(SUM(a.amount), 0) FROM allowances a
                        WHERE a.key_id = k.id AND a.spend_day = k.spend_day) AS BIGINT) END,
                    CASE WHEN k.spend_day / 100 < t.today / 100 THEN 0 ELSE k.month_spend - CAST((
                        SELECT COALESCE(SUM(a.amount), 0) FROM allowances a
                        WHERE a.key_id = k.id AND a.spend_day / 100 = k.spend_day / 100) AS BIGINT) END
             FROM api_keys k CROSS JOIN (SELECT {} AS today) t WHERE k.id = $1",
            dialect::today(self.kind())
        );
        let row: Option<(i64, i64)> = read!(self, e =>
            sqlx::query_as(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(e).await?);
        let (day, month) = row.unwrap_or_default();
        Ok((MicroCredits(day), MicroCredits(month)))
    }

    /// Number of gateway processes whose lease runs, this one included: rate limits are divided by it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn live_replicas(&self) -> Result<u64, DbError> {
        let sql =
            format!("SELECT COUNT(*) FROM replicas WHERE lease_until >= {}", dialect::now_ms(self.kind()));
        let count: i64 = read!(self, e => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(e).await?);
        Ok(u64::try_from(count).unwrap_or(1).max(1))
    }
}
