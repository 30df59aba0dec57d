//! The extractor that is the permission: a handler that takes a [`Caller`] runs only for a valid API key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_store::{KeyKind, KeyRow};
use cxmpute_wire::{KeyId, UserId};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::ring::KeyFault;
use crate::app::App;
use crate::edge::{Edge, Matched, client_of};
use crate::error::{ApiError, ApiResult};
use crate::rates::Permit;
use crate::router::Cost;
use crate::router::operation::Refusals;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_STRICT: HeaderName = HeaderName::from_static("x-cxmpute-strict");
/// The route that every valid key may use.
pub const OWN_KEY: &str = "/key";

/// A user, known by an API key, and let in by the limits of key and account.
#[derive(Clone)]
pub struct Caller {
    /// The account.
    pub user_id: UserId,
    /// Public part of the key.
    pub key_id: KeyId,
    /// The whole row, at most one second old.
    pub key: Arc<KeyRow>,
    /// The place among the requests that may run at once; only for paid work.
    pub permit: Option<Arc<Permit>>,
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> ApiResult<Self> {
        refuse_key_in_query(parts.uri.query())?;
        let text = credential(parts).ok_or_else(ApiError::invalid_api_key)?;
        let client = || client_of(parts, &app.config.server);
        let key = check_key(app, text, KeyKind::Api, client).await.map_err(refusal)?;
        let permit = enter(parts, app, &key)?;
        if key.settings.strict {
            // The key speaks for a client that asked for it: one place decides what strict means.
            parts.headers.insert(X_STRICT, HeaderValue::from_static("1"));
        }
        Ok(Self { user_id: key.user_id.clone(), key_id: key.id.clone(), key, permit })
    }
}

impl Caller {
    /// Whether key and account may use a model.
    ///
    /// # Errors
    /// 403: it is not on a list that one of them has.
    pub fn permit_model(&self, model: &ModelEntry) -> ApiResult<()> {
        let named = |name: &String| *name == model.id || model.aliases.contains(name);
        let allows = |list: &Option<Vec<String>>| list.as_ref().is_none_or(|list| list.iter().any(named));
        if allows(&self.key.limits.models) && allows(&self.key.account.models) {
            return Ok(());
        }
        Err(ApiError::model_not_permitted(&model.id))
    }

    /// Reserves the tokens that paid work will probably need.
    ///
    /// # Errors
    /// 429: the key or the account has used its tokens of this minute.
    pub fn reserve_tokens(&self, estimate: u64) -> ApiResult<()> {
        self.permit.as_ref().map_or(Ok(()), |permit| permit.reserve_tokens(estimate))
    }
}

/// The row of a key, unless the address that sends it has sent too many wrong ones.
///
/// # Errors
/// The key opens nothing, or nobody looked.
pub async fn check_key(
    app: &App,
    text: &str,
    kind: KeyKind,
    client: impl Fn() -> Option<IpAddr>,
) -> Result<Arc<KeyRow>, KeyFault> {
    let stranger = || client().map_or(Ok(()), |address| app.rates.admit_stranger(address));
    let checked = app.keys.check(text, kind, stranger).await;
    if matches!(checked, Err(KeyFault::Invalid))
        && let Some(address) = client()
    {
        app.rates.note_failure(address);
    }
    checked
}

/// Routes and rates: what can be refused before the body is read, without a look into the store.
fn enter(parts: &Parts, app: &App, key: &KeyRow) -> ApiResult<Option<Arc<Permit>>> {
    let Some(route) = parts.extensions.get::<Matched>().map(|matched| matched.route()) else {
        return Ok(None);
    };
    let listed =
        |list: &Option<Vec<String>>| list.as_ref().is_none_or(|list| list.iter().any(|p| p == route.path));
    // What a key may do, it may always ask.
    if route.path != OWN_KEY && !(listed(&key.limits.routes) && listed(&key.account.routes)) {
        return Err(ApiError::route_not_permitted(route.path));
    }
    let standing = app.rates.standing(key);
    if let Some(edge) = parts.extensions.get::<Edge>().filter(|_| route.cost == Cost::Work) {
        edge.stands(standing.clone());
    }
    Ok(app.rates.admit(&standing, route.rate)?.map(Arc::new))
}

/// What a client is told about a key that opens nothing.
pub fn refusal(fault: KeyFault) -> ApiError {
    match fault {
        KeyFault::Invalid => ApiError::invalid_api_key(),
        KeyFault::Expired => ApiError::expired_api_key(),
        KeyFault::Suspended => ApiError::account_suspended(),
        KeyFault::Limited(refused) => refused,
        KeyFault::Store(cause) => cause.into(),
    }
}

/// The key of a request: the bearer token, or `x-api-key` on the routes of Anthropic's shapes, whose clients send it.
/// Two that differ are none.
fn credential(parts: &Parts) -> Option<&str> {
    let route = parts.extensions.get::<Matched>().map(|matched| matched.route());
    let named = match route {
        Some(route) if route.operation.refusals == Refusals::Anthropic => single(&parts.headers, &X_API_KEY),
        _ => None,
    };
    match (parts.headers.contains_key(header::AUTHORIZATION), named) {
        (false, named) => named,
        (true, None) => bearer(&parts.headers),
        (true, Some(named)) => bearer(&parts.headers).filter(|token| *token == named),
    }
}

/// The value of a header, if there is exactly one.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then(|| value.trim())
}

/// The token of `Authorization: Bearer …`, if there is exactly one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = single(headers, &header::AUTHORIZATION)?.split_once(' ')?;
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
