//! Provisions: a provider's devices, what they should run and what they run.

use cxmpute_wire::{Epoch, Generation, ProvisionId, ServiceId, Timestamp, UserId};
use sqlx::FromRow;

use crate::db::{Db, on, read};
use crate::error::DbError;

/// How a provision stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProvisionState {
    /// Known, never connected.
    Enrolled,
    /// Its tunnel is up.
    Online,
    /// Its tunnel is down.
    Offline,
    /// Its owner ended its services (a seed route).
    Ended,
    /// The operator suspended it.
    Suspended,
    /// Gone for good; its id is never reused.
    Retired,
}

impl ProvisionState {
    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Ended => "ended",
            Self::Suspended => "suspended",
            Self::Retired => "retired",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Enrolled, Self::Online, Self::Offline, Self::Ended, Self::Suspended, Self::Retired]
            .into_iter()
            .find(|state| state.as_str() == name)
    }
}

/// A provision. The JSON texts are stored and given back as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionRow {
    /// Id.
    pub id: ProvisionId,
    /// Whose.
    pub owner: UserId,
    /// Ed25519 public key; absent for a provision of the first seed's routes that no node has taken over.
    pub public_key: Option<Vec<u8>>,
    /// The first seed's id (a UUID).
    pub alias: Option<String>,
    /// Name for people.
    pub name: String,
    /// A label the provider gave; never dialled.
    pub provided_url: Option<String>,
    /// JSON.
    pub location: String,
    /// JSON.
    pub diagnostics: String,
    /// JSON.
    pub software: String,
    /// How it stands.
    pub state: ProvisionState,
    /// Version of `desired`.
    pub desired_generation: Generation,
    /// JSON: what it should run.
    pub desired: String,
    /// The generation that `observed` belongs to.
    pub observed_generation: Generation,
    /// JSON: what it runs.
    pub observed: String,
    /// Number of tunnels opened so far.
    pub epoch: Epoch,
    /// Last sign of life.
    pub last_seen: Option<Timestamp>,
    /// When it enrolled.
    pub created_at: Timestamp,
}

/// One observed service of a provision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Which service.
    pub service: ServiceId,
    /// The generation it belongs to.
    pub generation: Generation,
    /// `ready`, `loading`, …
    pub state: String,
    /// One sentence.
    pub detail: Option<String>,
}

#[derive(FromRow)]
struct RawProvision {
    id: String,
    owner: String,
    public_key: Option<Vec<u8>>,
    alias: Option<String>,
    name: String,
    provided_url: Option<String>,
    location: String,
    diagnostics: String,
    software: String,
    state: String,
    desired_generation: i64,
    desired: String,
    observed_generation: i64,
    observed: String,
    epoch: i64,
    last_seen: Option<i64>,
    created_at: i64,
}

/// The columns of [`ProvisionRow`].
macro_rules! provision {
    ($rest:literal) => {
        concat!(
            "SELECT id, owner, public_key, alias, name, provided_url, location, diagnostics, software, state,
                    desired_generation, desired, observed_generation, observed, epoch, last_seen, created_at
             FROM provisions ",
            $rest
        )
    };
}

impl TryFrom<RawProvision> for ProvisionRow {
    type Error = DbError;

    fn try_from(raw: RawProvision) -> Result<Self, DbError> {
        Ok(Self {
            id: raw.id.parse().map_err(|e| DbError::impossible("provisions.id", e))?,
            owner: raw.owner.parse().map_err(|e| DbError::impossible("provisions.owner", e))?,
            public_key: raw.public_key,
            alias: raw.alias,
            name: raw.name,
            provided_url: raw.provided_url,
            location: raw.location,
            diagnostics: raw.diagnostics,
            software: raw.software,
            state: ProvisionState::from_name(&raw.state)
                .ok_or_else(|| DbError::impossible("provisions.state", &raw.state))?,
            desired_generation: Generation(raw.desired_generation),
            desired: raw.desired,
            observed_generation: Generation(raw.observed_generation),
            observed: raw.observed,
            epoch: Epoch(raw.epoch),
            last_seen: raw.last_seen.map(Timestamp),
            created_at: Timestamp(raw.created_at),
        })
    }
}

impl Db {
    /// The provision with this id or alias, in any state.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_provision(&self, id_or_alias: &str) -> Result<Option<ProvisionRow>, DbError> {
        let raw: Option<RawProvision> = read!(self, e =>
            sqlx::query_as(provision!("WHERE id = $1 OR alias = $1"))
                .bind(id_or_alias)
                .fetch_optional(e)
                .await?);
        raw.map(ProvisionRow::try_from).transpose()
    }

    /// The provisions of one owner, or of all, without the retired ones; oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_provisions(&self, owner: Option<&UserId>) -> Result<Vec<ProvisionRow>, DbError> {
        let raw: Vec<RawProvision> = read!(self, e =>
            sqlx::query_as(provision!(
                "WHERE state <> 'retired' AND (CAST($1 AS TEXT) IS NULL OR owner = $1) ORDER BY created_at, id"))
                .bind(owner.map(UserId::as_str))
                .fetch_all(e)
                .await?);
        raw.into_iter().map(ProvisionRow::try_from).collect()
    }

    /// Publishes what a provision should run. The generation grows only when the text differs; `None` when the
    /// provision is unknown.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_desired(
        &self,
        id: &ProvisionId,
        desired: &str,
        now: Timestamp,
    ) -> Result<Option<Generation>, DbError> {
        let mut tx = self.begin().await?;
        let grown: Option<i64> = on!(&mut tx, c =>
            sqlx::query_scalar(
                "UPDATE provisions SET desired = $2, desired_generation = desired_generation + 1, updated_at = $3
                 WHERE id = $1 AND desired <> $2 RETURNING desired_generation")
                .bind(id.as_str())
                .bind(desired)
                .bind(now.0)
                .fetch_optional(c)
                .await?);
        if let Some(generation) = grown {
            tx.commit().await?;
            return Ok(Some(Generation(generation)));
        }
        let current: Option<i64> = on!(&mut tx, c =>
            sqlx::query_scalar("SELECT desired_generation FROM provisions WHERE id = $1")
                .bind(id.as_str())
                .fetch_optional(c)
                .await?);
        Ok(current.map(Generation))
    }

    /// Stores what a provision says it runs, whole. A report about an older generation than the one stored changes
    /// nothing; false then, and when the provision is unknown.
    ///
    /// # Errors
    /// The store failed.
    pub async fn record_observed(
        &self,
        id: &ProvisionId,
        generation: Generation,
        observed: &str,
        services: &[ServiceRow],
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provisions SET observed = $3, observed_generation = $2, last_seen = $4, updated_at = $4
                 WHERE id = $1 AND observed_generation <= $2")
                .bind(id.as_str())
                .bind(generation.0)
                .bind(observed)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        if done != 1 {
            return Ok(false);
        }
        on!(&mut tx, c =>
            sqlx::query("DELETE FROM provision_services WHERE provision_id = $1")
                .bind(id.as_str())
                .execute(c)
                .await?
                .rows_affected());
        for service in services {
            on!(&mut tx, c =>
                sqlx::query(
                    "INSERT INTO provision_services (provision_id, service, generation, state, detail, updated_at)
                     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (provision_id, service) DO NOTHING")
                    .bind(id.as_str())
                    .bind(service.service.as_str())
                    .bind(service.generation.0)
                    .bind(&service.state)
                    .bind(&service.detail)
                    .bind(now.0)
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        tx.commit().await?;
        Ok(true)
    }

    /// What a provision said it runs.
    ///
    /// # Errors
    /// The store failed.
    pub async fn provision_services(&self, id: &ProvisionId) -> Result<Vec<ServiceRow>, DbError> {
        let raw: Vec<(String, i64, String, Option<String>)> = read!(self, e =>
            sqlx::query_as(
                "SELECT service, generation, state, detail FROM provision_services
                 WHERE provision_id = $1 ORDER BY service")
                .bind(id.as_str())
                .fetch_all(e)
                .await?);
        raw.into_iter()
            .map(|(service, generation, state, detail)| {
                let service =
                    service.parse().map_err(|e| DbError::impossible("provision_services.service", e))?;
                Ok(ServiceRow { service, generation: Generation(generation), state, detail })
            })
            .collect()
    }

    /// Stores the label a provider gave its device's address.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_provided_url(&self, id: &ProvisionId, url: &str, now: Timestamp) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query("UPDATE provisions SET provided_url = $2, updated_at = $3 WHERE id = $1")
                .bind(id.as_str())
                .bind(url)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await
    }

    /// Notes that the owner ended services: the named ones, or all of them and with them the provision's work.
    /// Ending twice is the same as once. False when the provision is unknown or retired.
    ///
    /// # Errors
    /// The store failed.
    pub async fn end_provision(
        &self,
        id: &ProvisionId,
        services: Option<&[ServiceId]>,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let state = if services.is_none() { "ended" } else { "" };
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provisions SET state = CASE WHEN $2 = '' THEN state ELSE $2 END, updated_at = $3
                 WHERE id = $1 AND state <> 'retired'")
                .bind(id.as_str())
                .bind(state)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        if done != 1 {
            return Ok(false);
        }
        match services {
            None => {
                on!(&mut tx, c =>
                    sqlx::query("DELETE FROM provision_services WHERE provision_id = $1")
                        .bind(id.as_str())
                        .execute(c)
                        .await?
                        .rows_affected());
            }
            Some(services) => {
                for service in services {
                    on!(&mut tx, c =>
                        sqlx::query("DELETE FROM provision_services WHERE provision_id = $1 AND service = $2")
                            .bind(id.as_str())
                            .bind(service.as_str())
                            .execute(c)
                            .await?
                            .rows_affected());
                }
            }
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Retires a provision for good. The row stays, so that its id and key cannot come back. True when it was not
    /// retired before.
    ///
    /// # Errors
    /// The store failed.
    pub async fn retire_provision(&self, id: &ProvisionId, now: Timestamp) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provisions SET state = 'retired', retired_at = $2, updated_at = $2
                 WHERE id = $1 AND state <> 'retired'")
                .bind(id.as_str())
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        on!(&mut tx, c =>
            sqlx::query("DELETE FROM provision_services WHERE provision_id = $1")
                .bind(id.as_str())
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(done == 1)
    }
}
