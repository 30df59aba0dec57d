//! All routes of the API, in one table (GR1): it drives the router, the permissions, the limits, the meters, the OpenAPI
//! document, the reference page and their tests. Every path answers under `/v1` and under `/api/v1`, except those for
//! probes and for this documentation. A row without one of its columns does not compile.

mod account;
mod inference;
mod media;
pub mod operation;
mod provider;
mod table;
mod translated;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use cxmpute_wire::Code;
use http::Method;

use crate::app::App;
use crate::error::ApiError;
pub use operation::Operation;
pub use table::ROUTES;

/// Who may use a route. The handler's extractor enforces it; a test holds both together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// A user's API key.
    Key,
    /// A node's signature.
    Node,
    /// Provider key in the body, as the first seed has it.
    ProviderKey,
}

/// What a route costs us, for limits and for draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Answered from memory.
    Cheap,
    /// Reads or writes the store.
    Store,
    /// Paid work of a node.
    Work,
}

/// Which limits of rate a route counts against, beside those of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateClass {
    /// None: it costs no more than the connection.
    Free,
    /// Requests of a key and its account.
    Requests,
    /// Requests, tokens and simultaneous requests of a key and its account.
    Work,
    /// Signed requests of a node, of which each writes a nonce.
    Signed,
}

/// What paid work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// Tokens of prompt and output.
    Text,
    /// Tokens that were embedded.
    Embedding,
    /// Characters that were said.
    Characters,
    /// Seconds that were heard.
    Seconds,
    /// Pictures that were looked at.
    Images,
    /// Pictures that were drawn.
    Drawn,
    /// Pages with content.
    Pages,
}

/// One row of the table.
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path below the prefixes, or the whole path where there are none.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What it costs.
    pub cost: Cost,
    /// Which limits of rate it counts against.
    pub rate: RateClass,
    /// How its work is counted; none where there is no paid work.
    pub meter: Option<Meter>,
    /// Largest body, in bytes.
    pub body_limit: usize,
    /// Below `/v1` and `/api/v1`, or as it stands.
    pub prefixed: bool,
    /// What it says about itself: parameters, shapes, codes, words.
    pub operation: &'static Operation,
    handler: Handler,
}

/// Prefixes under which the API answers.
pub const PREFIXES: [&str; 2] = ["/v1", "/api/v1"];

type Handler = fn() -> MethodRouter<Arc<App>>;

/// Builds the router of the API listener.
pub fn build_router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        if route.prefixed {
            for prefix in PREFIXES {
                router = router.route(&format!("{prefix}{}", route.path), (route.handler)());
            }
        } else {
            router = router.route(route.path, (route.handler)());
        }
    }
    #[cfg(feature = "sabotage")]
    if app.sabotage == Some(crate::sabotage::Sabotage::ForgottenRoute) {
        router = router.route("/debug/vars", axum::routing::get(|| async { "left in" }));
    }
    router.fallback(no_route).method_not_allowed_fallback(no_method).with_state(app)
}

async fn no_route() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such route; the API lives below /v1 and /api/v1.")
}

async fn no_method() -> ApiError {
    ApiError::new(Code::MethodNotAllowed, "This route exists, but not with this method.")
}

/// Finds the row of a request, for limits and meters, without asking the router.
pub struct RouteIndex {
    exact: HashMap<(&'static str, Method), usize>,
    prefixes: Vec<(&'static str, Method, usize)>,
}

impl Default for RouteIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl RouteIndex {
    /// The index of [`ROUTES`].
    #[must_use]
    pub fn new() -> Self {
        let mut index = Self { exact: HashMap::new(), prefixes: Vec::new() };
        for (at, route) in ROUTES.iter().enumerate() {
            match route.path.split_once('{') {
                Some((prefix, _)) => index.prefixes.push((prefix, route.method.clone(), at)),
                None => {
                    index.exact.insert((route.path, route.method.clone()), at);
                }
            }
        }
        index
    }

    /// Position of the request's row in [`ROUTES`].
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Option<usize> {
        let below =
            PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')));
        let wanted = below.unwrap_or(path);
        // HEAD is served by the GET routes.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let exact = self.exact.get(&(wanted, method.clone())).copied();
        let found = exact.or_else(|| {
            let mut rows = self.prefixes.iter();
            rows.find(|(prefix, row, _)| row == method && wanted.starts_with(prefix)).map(|(_, _, at)| *at)
        });
        found.filter(|at| ROUTES[*at].prefixed == below.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_finds_every_row_under_both_prefixes() {
        let index = RouteIndex::new();
        for (at, route) in ROUTES.iter().enumerate() {
            let path = route.path.replace("{*id}", "a/b:c").replace("{provision_id}", "pv_a");
            if route.prefixed {
                for prefix in PREFIXES {
                    assert_eq!(index.find(&route.method, &format!("{prefix}{path}")), Some(at), "{path}");
                }
                assert_eq!(index.find(&route.method, &path), None, "{path}");
            } else {
                assert_eq!(index.find(&route.method, &path), Some(at), "{path}");
                assert_eq!(index.find(&route.method, &format!("/v1{path}")), None, "{path}");
            }
        }
        assert_eq!(index.find(&Method::GET, "/v1/chat/completions"), None);
        assert_eq!(index.find(&Method::GET, "/v1models"), None);
        assert_eq!(index.find(&Method::HEAD, "/v1/models"), index.find(&Method::GET, "/v1/models"));
    }

    #[test]
    fn work_is_never_public() {
        for route in ROUTES {
            assert!(route.cost != Cost::Work || route.access == Access::Key, "{}", route.path);
        }
    }

    #[test]
    fn work_has_a_meter_and_limits_and_nothing_else_has() {
        for route in ROUTES {
            let work = route.cost == Cost::Work;
            assert_eq!(route.meter.is_some(), work, "{}", route.path);
            assert_eq!(route.rate == RateClass::Work, work, "{}", route.path);
            assert_eq!(route.operation.codes().contains(&Code::InsufficientCredits), work, "{}", route.path);
            assert_eq!(route.access == Access::Public, route.rate == RateClass::Free, "{}", route.path);
        }
    }

    #[test]
    fn a_route_takes_a_body_if_and_only_if_it_describes_one() {
        for route in ROUTES {
            assert_eq!(route.body_limit > 0, route.operation.request.is_some(), "{}", route.path);
            let codes = route.operation.codes();
            assert_eq!(codes.contains(&Code::BodyTooLarge), route.body_limit > 0, "{}", route.path);
        }
    }

    #[test]
    fn every_path_parameter_is_described() {
        for route in ROUTES {
            let described = route.operation.parameters.iter();
            let described = described.filter(|parameter| parameter.place == operation::Place::Path).count();
            assert_eq!(route.path.matches('{').count(), described, "{}", route.path);
        }
    }
}
