//! Which account a command means.

use anyhow::{Context, bail};
use cxmpute_store::{Db, UserRow};
use cxmpute_wire::{KeyId, UserId};

use crate::auth;

/// The account named by an e-mail address, an account id, the public part of a key, or a key.
pub async fn find(db: &Db, name: &str) -> anyhow::Result<UserRow> {
    let user = if name.contains('@') {
        db.find_user_by_email(name).await?
    } else if let Ok(id) = name.parse::<UserId>() {
        db.find_user(&id).await?
    } else {
        let id = match auth::parse(name) {
            Some((_, id)) => id,
            None => name.parse::<KeyId>().with_context(|| unknown(name))?,
        };
        match db.find_key(&id).await? {
            Some(key) => db.find_user(&key.user_id).await?,
            None => None,
        }
    };
    match user {
        Some(user) => Ok(user),
        None => bail!(unknown(name)),
    }
}

/// A key given by mistake must not be repeated on a terminal.
fn unknown(name: &str) -> String {
    let shown = if name.contains('@') || name.starts_with("us_") { name } else { "this key" };
    format!("There is no account of {shown}; `cxmpute admin user list` shows all.")
}
