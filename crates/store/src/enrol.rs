//! Enrolment: one idempotent, conditional upsert. Whoever holds the key may repeat it; nobody else can touch the row.

use cxmpute_wire::{ProvisionId, Timestamp, UserId};

use crate::db::{Db, Tx, on, read};
use crate::error::DbError;

/// What a device says of itself, after its signature or provider key was checked.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The hash of `public_key`, or an id derived from the alias for the first seed's routes.
    pub id: ProvisionId,
    /// Known from a provider key; otherwise the grant or the existing row names the owner.
    pub owner: Option<UserId>,
    /// Ed25519 public key; absent for the first seed's routes.
    pub public_key: Option<Vec<u8>>,
    /// The first seed's id. A keyed enrolment takes a keyless provision of the same owner over by it.
    pub alias: Option<String>,
    /// Hash of a single-use grant.
    pub grant_hash: Option<Vec<u8>>,
    /// Name of the run, for logs.
    pub run_id: String,
    /// Name for people.
    pub name: String,
    /// JSON.
    pub location: String,
    /// JSON.
    pub diagnostics: String,
    /// JSON.
    pub software: String,
}

/// What became of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// A new provision of this owner.
    Created(UserId),
    /// The provision was known; its description is up to date now.
    Unchanged(UserId),
    /// The id, key or alias belongs to somebody else; nothing changed.
    Conflict,
    /// The provision was retired.
    Retired,
    /// The provision is new and nothing names its owner.
    GrantMissing,
    /// The grant is unknown.
    GrantInvalid,
    /// The grant was used before.
    GrantSpent,
    /// The grant is too old.
    GrantExpired,
}

/// A row that has the id or the alias already.
struct Known {
    id: String,
    owner: String,
    public_key: Option<Vec<u8>>,
    alias: Option<String>,
    state: String,
}

impl Db {
    /// Stores a grant by which one device may enrol for `owner` until `expires_at`.
    ///
    /// # Errors
    /// [`DbError::Exists`] when the same grant is stored; the store failed.
    pub async fn create_grant(
        &self,
        hash: &[u8],
        owner: &UserId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query("INSERT INTO enrolment_grants (hash, owner, created_at, expires_at) VALUES ($1, $2, $3, $4)")
                .bind(hash)
                .bind(owner.as_str())
                .bind(now.0)
                .bind(expires_at.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await
    }

    /// Enrols a device. Consuming the grant, taking over an alias and writing the row are one transaction.
    ///
    /// # Errors
    /// The store failed.
    pub async fn enrol_provision(
        &self,
        enrolment: &Enrolment,
        now: Timestamp,
    ) -> Result<EnrolOutcome, DbError> {
        // On PostgreSQL a concurrent insert of the same id can win between look and insert: look again, once.
        for _ in 0..2 {
            let mut tx = self.begin().await?;
            match tx.enrol(enrolment, now).await? {
                Some(outcome @ (EnrolOutcome::Created(_) | EnrolOutcome::Unchanged(_))) => {
                    tx.commit().await?;
                    return Ok(outcome);
                }
                // Dropping the transaction gives the grant back.
                Some(refused) => return Ok(refused),
                None => {}
            }
        }
        Ok(EnrolOutcome::Conflict)
    }

    /// Why an enrolment by a key would surely be refused; none where [`Self::enrol_provision`] has to say. Only reads, so that
    /// a stranger costs no write.
    ///
    /// # Errors
    /// The store failed.
    pub async fn foresee_refusal(
        &self,
        enrolment: &Enrolment,
        now: Timestamp,
    ) -> Result<Option<EnrolOutcome>, DbError> {
        let known: Option<(Option<Vec<u8>>, String)> = read!(self, e =>
            sqlx::query_as("SELECT public_key, state FROM provisions WHERE id = $1")
                .bind(enrolment.id.as_str())
                .fetch_optional(e)
                .await?);
        match known {
            Some((key, _)) if key != enrolment.public_key => return Ok(Some(EnrolOutcome::Conflict)),
            Some((_, state)) if state == "retired" => return Ok(Some(EnrolOutcome::Retired)),
            Some(_) => return Ok(None),
            None if enrolment.owner.is_some() => return Ok(None),
            None => {}
        }
        let Some(hash) = &enrolment.grant_hash else { return Ok(Some(EnrolOutcome::GrantMissing)) };
        let grant: Option<(Option<i64>, i64)> = read!(self, e =>
            sqlx::query_as("SELECT used_at, expires_at FROM enrolment_grants WHERE hash = $1")
                .bind(hash)
                .fetch_optional(e)
                .await?);
        Ok(match grant {
            None => Some(EnrolOutcome::GrantInvalid),
            Some((Some(_), _)) => Some(EnrolOutcome::GrantSpent),
            Some((None, expires_at)) if expires_at <= now.0 => Some(EnrolOutcome::GrantExpired),
            Some((None, _)) => None,
        })
    }

    /// True the first time a key uses a nonce, also when asked at the same time by several replicas.
    ///
    /// # Errors
    /// The store failed.
    pub async fn nonce_once(&self, key_id: &str, nonce: &str, now: Timestamp) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query("INSERT INTO nonces (key_id, nonce, seen_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(key_id)
                .bind(nonce)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(done == 1)
    }

    /// Forgets nonces seen before `before`: older signatures are refused by their time already.
    ///
    /// # Errors
    /// The store failed.
    pub async fn forget_nonces(&self, before: Timestamp) -> Result<u64, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query("DELETE FROM nonces WHERE seen_at < $1").bind(before.0).execute(c).await?.rows_affected());
        tx.commit().await?;
        Ok(done)
    }

    /// The public key of a provision that is not retired, with its owner; for checking signatures.
    ///
    /// # Errors
    /// The store failed.
    pub async fn provision_key(&self, id: &ProvisionId) -> Result<Option<(UserId, Vec<u8>)>, DbError> {
        let raw: Option<(String, Vec<u8>)> = read!(self, e =>
            sqlx::query_as(
                "SELECT owner, public_key FROM provisions
                 WHERE id = $1 AND public_key IS NOT NULL AND state <> 'retired'")
                .bind(id.as_str())
                .fetch_optional(e)
                .await?);
        raw.map(|(owner, key)| {
            let owner = owner.parse().map_err(|e| DbError::impossible("provisions.owner", e))?;
            Ok((owner, key))
        })
        .transpose()
    }

    /// Whose grant it is, used or not; for the known-bad variant of gate N3.
    ///
    /// # Errors
    /// The store failed.
    #[cfg(feature = "sabotage")]
    pub async fn grant_owner_of(&self, hash: &[u8]) -> Result<Option<UserId>, DbError> {
        let mut tx = self.begin().await?;
        let owner = tx.grant_owner(hash).await?;
        owner
            .map(|owner| owner.parse().map_err(|e| DbError::impossible("enrolment_grants.owner", e)))
            .transpose()
    }

    /// The known-bad variant of gate N3: whoever comes last owns the row.
    ///
    /// # Errors
    /// The store failed.
    #[cfg(feature = "sabotage")]
    pub async fn enrol_unconditionally(
        &self,
        enrolment: &Enrolment,
        owner: &UserId,
        now: Timestamp,
    ) -> Result<EnrolOutcome, DbError> {
        let mut tx = self.begin().await?;
        if !tx.insert_provision(enrolment, owner, now).await? {
            on!(&mut tx, c =>
                sqlx::query("UPDATE provisions SET owner = $2, public_key = $3, name = $4 WHERE id = $1")
                    .bind(enrolment.id.as_str())
                    .bind(owner.as_str())
                    .bind(&enrolment.public_key)
                    .bind(&enrolment.name)
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        tx.commit().await?;
        Ok(EnrolOutcome::Unchanged(owner.clone()))
    }
}

impl Tx {
    /// `None` asks for another try in a new transaction.
    async fn enrol(
        &mut self,
        enrolment: &Enrolment,
        now: Timestamp,
    ) -> Result<Option<EnrolOutcome>, DbError> {
        if let Some(known) = self.known(enrolment.id.as_str()).await? {
            return self.enrol_again(enrolment, &known, now).await.map(Some);
        }
        let granted = match &enrolment.grant_hash {
            Some(hash) => match self.consume_grant(hash, &enrolment.id, now).await? {
                Ok(owner) => Some(owner),
                Err(refused) => return Ok(Some(refused)),
            },
            None => None,
        };
        let owner = match (&enrolment.owner, granted) {
            (Some(owner), Some(granted)) if *owner != granted => return Ok(Some(EnrolOutcome::Conflict)),
            (Some(owner), _) => owner.clone(),
            (None, Some(granted)) => granted,
            (None, None) => return Ok(Some(EnrolOutcome::GrantMissing)),
        };
        if !self.release_alias(enrolment, &owner, now).await? {
            return Ok(Some(EnrolOutcome::Conflict));
        }
        let written = self.insert_provision(enrolment, &owner, now).await?;
        Ok(written.then_some(EnrolOutcome::Created(owner)))
    }

    async fn enrol_again(
        &mut self,
        enrolment: &Enrolment,
        known: &Known,
        now: Timestamp,
    ) -> Result<EnrolOutcome, DbError> {
        let owner: UserId = known.owner.parse().map_err(|e| DbError::impossible("provisions.owner", e))?;
        let foreign = enrolment.owner.as_ref().is_some_and(|claimed| *claimed != owner);
        if foreign || known.public_key != enrolment.public_key {
            return Ok(EnrolOutcome::Conflict);
        }
        if known.state == "retired" {
            return Ok(EnrolOutcome::Retired);
        }
        // A grant of another owner means: same key, other owner. One of the same owner is left unused.
        if let Some(hash) = &enrolment.grant_hash {
            let grantor = self.grant_owner(hash).await?;
            if grantor.is_some_and(|grantor| grantor != known.owner) {
                return Ok(EnrolOutcome::Conflict);
            }
        }
        let mut alias = known.alias.clone();
        if alias.is_none() && enrolment.alias.is_some() {
            if !self.release_alias(enrolment, &owner, now).await? {
                return Ok(EnrolOutcome::Conflict);
            }
            alias.clone_from(&enrolment.alias);
        }
        on!(self, c =>
            sqlx::query(
                "UPDATE provisions SET alias = $3, run_id = $4, name = $5, location = $6, diagnostics = $7,
                        software = $8, updated_at = $9
                 WHERE id = $1 AND owner = $2")
                .bind(enrolment.id.as_str())
                .bind(owner.as_str())
                .bind(alias)
                .bind(&enrolment.run_id)
                .bind(&enrolment.name)
                .bind(&enrolment.location)
                .bind(&enrolment.diagnostics)
                .bind(&enrolment.software)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        Ok(EnrolOutcome::Unchanged(owner))
    }

    /// Frees the wanted alias: nobody has it, or a keyless provision of the same owner gives it up. False when it
    /// belongs to somebody else.
    async fn release_alias(
        &mut self,
        enrolment: &Enrolment,
        owner: &UserId,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let Some(alias) = &enrolment.alias else { return Ok(true) };
        let Some(holder) = self.known(alias).await? else { return Ok(true) };
        if holder.owner != owner.as_str() || holder.public_key.is_some() || enrolment.public_key.is_none() {
            return Ok(false);
        }
        on!(self, c =>
            sqlx::query(
                "UPDATE provisions SET alias = NULL, state = 'retired', retired_at = $2, updated_at = $2
                 WHERE id = $1")
                .bind(&holder.id)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        Ok(true)
    }

    async fn known(&mut self, id_or_alias: &str) -> Result<Option<Known>, DbError> {
        type Raw = (String, String, Option<Vec<u8>>, Option<String>, String);
        let raw: Option<Raw> = on!(self, c =>
            sqlx::query_as("SELECT id, owner, public_key, alias, state FROM provisions WHERE id = $1 OR alias = $1")
                .bind(id_or_alias)
                .fetch_optional(c)
                .await?);
        Ok(raw.map(|(id, owner, public_key, alias, state)| Known { id, owner, public_key, alias, state }))
    }

    /// One conditional statement, so that a grant works once however many ask at the same time.
    async fn consume_grant(
        &mut self,
        hash: &[u8],
        by: &ProvisionId,
        now: Timestamp,
    ) -> Result<Result<UserId, EnrolOutcome>, DbError> {
        let owner: Option<String> = on!(&mut *self, c =>
            sqlx::query_scalar(
                "UPDATE enrolment_grants SET used_at = $3, used_by = $2
                 WHERE hash = $1 AND used_at IS NULL AND expires_at > $3 RETURNING owner")
                .bind(hash)
                .bind(by.as_str())
                .bind(now.0)
                .fetch_optional(c)
                .await?);
        if let Some(owner) = owner {
            return Ok(Ok(owner.parse().map_err(|e| DbError::impossible("enrolment_grants.owner", e))?));
        }
        let used: Option<Option<i64>> = on!(self, c =>
            sqlx::query_scalar("SELECT used_at FROM enrolment_grants WHERE hash = $1")
                .bind(hash)
                .fetch_optional(c)
                .await?);
        Ok(Err(match used {
            None => EnrolOutcome::GrantInvalid,
            Some(Some(_)) => EnrolOutcome::GrantSpent,
            Some(None) => EnrolOutcome::GrantExpired,
        }))
    }

    async fn grant_owner(&mut self, hash: &[u8]) -> Result<Option<String>, DbError> {
        Ok(on!(self, c =>
            sqlx::query_scalar("SELECT owner FROM enrolment_grants WHERE hash = $1")
                .bind(hash)
                .fetch_optional(c)
                .await?))
    }

    /// True when the row was written; false when its id, key or alias is taken.
    async fn insert_provision(
        &mut self,
        enrolment: &Enrolment,
        owner: &UserId,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let done = on!(self, c =>
            sqlx::query(
                "INSERT INTO provisions (id, owner, public_key, alias, run_id, name, location, diagnostics, software,
                                         state, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'enrolled', $10, $10) ON CONFLICT DO NOTHING")
                .bind(enrolment.id.as_str())
                .bind(owner.as_str())
                .bind(&enrolment.public_key)
                .bind(&enrolment.alias)
                .bind(&enrolment.run_id)
                .bind(&enrolment.name)
                .bind(&enrolment.location)
                .bind(&enrolment.diagnostics)
                .bind(&enrolment.software)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        Ok(done == 1)
    }
}
