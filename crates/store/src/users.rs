//! Accounts: one e-mail address, one user with a user side and a provider side.

use cxmpute_market::ledger::{Account, AccountKind};
use cxmpute_wire::{Timestamp, UserId};
use sqlx::FromRow;

use crate::db::{Db, on, read};
use crate::error::DbError;

/// A new account.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Made by the caller.
    pub id: UserId,
    /// As typed; stored in its canonical form.
    pub email: String,
    /// Now.
    pub created_at: Timestamp,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// Id.
    pub id: UserId,
    /// Canonical e-mail address.
    pub email: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was suspended, if it is.
    pub suspended_at: Option<Timestamp>,
}

/// What became of a new account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserCreated {
    /// It was made.
    Created(UserRow),
    /// The address has an account already.
    Exists(UserRow),
}

/// One spelling per address: without surrounding space, in lower case.
#[must_use]
pub fn canonical_email(email: &str) -> String {
    email.trim().to_lowercase()
}

#[derive(FromRow)]
struct RawUser {
    id: String,
    email: String,
    created_at: i64,
    suspended_at: Option<i64>,
}

impl TryFrom<RawUser> for UserRow {
    type Error = DbError;

    fn try_from(raw: RawUser) -> Result<Self, DbError> {
        Ok(Self {
            id: raw.id.parse().map_err(|e| DbError::impossible("users.id", e))?,
            email: raw.email,
            created_at: Timestamp(raw.created_at),
            suspended_at: raw.suspended_at.map(Timestamp),
        })
    }
}

impl Db {
    /// Makes an account with its ledger accounts, or answers the one that has the address.
    ///
    /// # Errors
    /// The store failed.
    pub async fn create_user(&self, user: &NewUser) -> Result<UserCreated, DbError> {
        let email = canonical_email(&user.email);
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query("INSERT INTO users (id, email, created_at) VALUES ($1, $2, $3) ON CONFLICT (email) DO NOTHING")
                .bind(user.id.as_str())
                .bind(&email)
                .bind(user.created_at.0)
                .execute(c)
                .await?
                .rows_affected());
        if done == 0 {
            drop(tx);
            let existing = self.find_user_by_email(&email).await?;
            return existing
                .map(UserCreated::Exists)
                .ok_or_else(|| DbError::impossible("users.email", "taken and absent at once"));
        }
        for kind in AccountKind::OF_USERS {
            let account = Account::of(&user.id, kind);
            on!(&mut tx, c =>
                sqlx::query("INSERT INTO ledger_accounts (id, owner, kind, balance) VALUES ($1, $2, $3, 0)")
                    .bind(account.id())
                    .bind(user.id.as_str())
                    .bind(kind.as_str())
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        tx.commit().await?;
        let row = UserRow { id: user.id.clone(), email, created_at: user.created_at, suspended_at: None };
        Ok(UserCreated::Created(row))
    }

    /// The account with this id.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_user(&self, id: &UserId) -> Result<Option<UserRow>, DbError> {
        let raw: Option<RawUser> = read!(self, e =>
            sqlx::query_as("SELECT id, email, created_at, suspended_at FROM users WHERE id = $1")
                .bind(id.as_str())
                .fetch_optional(e)
                .await?);
        raw.map(UserRow::try_from).transpose()
    }

    /// The account with this address, in any spelling.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_user_by_email(&self, email: &str) -> Result<Option<UserRow>, DbError> {
        let raw: Option<RawUser> = read!(self, e =>
            sqlx::query_as("SELECT id, email, created_at, suspended_at FROM users WHERE email = $1")
                .bind(canonical_email(email))
                .fetch_optional(e)
                .await?);
        raw.map(UserRow::try_from).transpose()
    }

    /// All accounts, oldest first, from the one after `after`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_users(&self, after: Option<&UserId>, limit: u32) -> Result<Vec<UserRow>, DbError> {
        let raw: Vec<RawUser> = read!(self, e =>
            sqlx::query_as(
                "SELECT id, email, created_at, suspended_at FROM users WHERE id > $1 ORDER BY id LIMIT $2")
                .bind(after.map_or("", UserId::as_str))
                .bind(i64::from(limit))
                .fetch_all(e)
                .await?);
        raw.into_iter().map(UserRow::try_from).collect()
    }

    /// Suspends an account: no admission, no key works. True when it was active.
    ///
    /// # Errors
    /// The store failed.
    pub async fn suspend_user(&self, id: &UserId, reason: &str, now: Timestamp) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE users SET suspended_at = $2, suspended_reason = $3 WHERE id = $1 AND suspended_at IS NULL")
                .bind(id.as_str())
                .bind(now.0)
                .bind(reason)
                .execute(c)
                .await?
                .rows_affected());
        tx.recall("user_id", id.as_str()).await?;
        tx.commit().await?;
        Ok(done == 1)
    }

    /// Ends a suspension. True when there was one.
    ///
    /// # Errors
    /// The store failed.
    pub async fn unsuspend_user(&self, id: &UserId) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE users SET suspended_at = NULL, suspended_reason = NULL
                 WHERE id = $1 AND suspended_at IS NOT NULL")
                .bind(id.as_str())
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(done == 1)
    }
}
