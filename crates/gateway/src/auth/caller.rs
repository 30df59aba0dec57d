//! The extractor that is the permission: a handler that takes a [`Caller`] runs only for a valid API key.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use cxmpute_store::{KeyKind, KeyRow};
use cxmpute_wire::{KeyId, MicroCredits, UserId};
use http::request::Parts;
use http::{HeaderMap, header};

use super::ring::KeyFault;
use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// A user, known by an API key.
#[derive(Clone)]
pub struct Caller {
    /// The account.
    pub user_id: UserId,
    /// Public part of the key.
    pub key_id: KeyId,
    /// Most the key may spend in all; the meter enforces it.
    pub key_budget: Option<MicroCredits>,
    /// The whole row, at most one second old.
    pub key: Arc<KeyRow>,
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> ApiResult<Self> {
        refuse_key_in_query(parts.uri.query())?;
        let text = bearer(&parts.headers).ok_or_else(ApiError::invalid_api_key)?;
        let key = app.keys.check(text, KeyKind::Api).await.map_err(refusal)?;
        Ok(Self { user_id: key.user_id.clone(), key_id: key.id.clone(), key_budget: key.budget, key })
    }
}

/// What a client is told about a key that opens nothing.
pub fn refusal(fault: KeyFault) -> ApiError {
    match fault {
        KeyFault::Invalid => ApiError::invalid_api_key(),
        KeyFault::Suspended => ApiError::account_suspended(),
        KeyFault::Store(cause) => cause.into(),
    }
}

/// The token of `Authorization: Bearer …`, if there is exactly one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A key in an address ends up in logs and histories, so it is refused even where the header is right (SR13).
fn refuse_key_in_query(query: Option<&str>) -> ApiResult<()> {
    if query.is_some_and(|query| query.contains("cxk_") || query.contains("cxp_")) {
        tracing::warn!("an API key was sent in an address; it must be considered leaked");
        metrics::counter!("cxmpute_leaked_keys_total").increment(1);
        return Err(ApiError::new(
            cxmpute_wire::Code::InvalidApiKey,
            "A key in the address counts as leaked: revoke it, make a new one and send it as `Authorization: Bearer`.",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_bearer_token_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("abc", None),
        ] {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), token, "{value}");
        }
        headers.append(header::AUTHORIZATION, "Bearer other".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }

    #[test]
    fn a_key_in_the_query_is_refused() {
        assert!(refuse_key_in_query(Some("id=1")).is_ok());
        assert!(refuse_key_in_query(None).is_ok());
        assert!(refuse_key_in_query(Some("api_key=cxk_live_a")).is_err());
    }
}
