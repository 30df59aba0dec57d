//! All routes of the API, in one table (GR1): it drives the router, the limits, the meters, the permissions and their
//! tests. Every path answers under `/v1` and under `/api/v1`, except the two for probes.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, delete, get, post, put};
use cxmpute_wire::Code;
use http::Method;

use crate::api::{account, health, openai, provider};
use crate::app::App;
use crate::body::JSON_LIMIT;
use crate::error::ApiError;

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

/// One row of the table.
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path below the prefixes, or the whole path for probes.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What it costs.
    pub cost: Cost,
    /// Largest body.
    pub body_limit: usize,
    /// Below `/v1` and `/api/v1`, or as it stands.
    pub prefixed: bool,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// Prefixes under which the API answers.
pub const PREFIXES: [&str; 2] = ["/v1", "/api/v1"];

/// A diagnostics report is a few kilobytes; this leaves room for machines with many accelerators.
const PROVIDER_LIMIT: usize = 256 * 1024;

type Handler = fn() -> MethodRouter<Arc<App>>;

const fn route(method: Method, path: &'static str, access: Access, cost: Cost, handler: Handler) -> Route {
    let body_limit = match cost {
        Cost::Work => JSON_LIMIT,
        Cost::Cheap | Cost::Store => PROVIDER_LIMIT,
    };
    Route { method, path, access, cost, body_limit, prefixed: true, handler }
}

const fn probe(path: &'static str, handler: Handler) -> Route {
    Route {
        method: Method::GET,
        path,
        access: Access::Public,
        cost: Cost::Cheap,
        body_limit: 0,
        prefixed: false,
        handler,
    }
}

/// The table.
pub static ROUTES: &[Route] = &[
    // For users: OpenAI's shapes.
    route(Method::POST, "/chat/completions", Access::Key, Cost::Work, || {
        post(openai::chat::create_chat_completion)
    }),
    route(Method::POST, "/completions", Access::Key, Cost::Work, || {
        post(openai::completion::create_completion)
    }),
    route(Method::POST, "/embeddings", Access::Key, Cost::Work, || post(openai::embedding::create_embedding)),
    route(Method::GET, "/models", Access::Public, Cost::Cheap, || get(openai::model::list_models)),
    route(Method::GET, "/models/{*id}", Access::Public, Cost::Cheap, || get(openai::model::get_model)),
    // For users: what it cost.
    route(Method::GET, "/generation", Access::Key, Cost::Store, || get(account::generation::get_generation)),
    route(Method::GET, "/credits", Access::Key, Cost::Store, || get(account::credits::get_credits)),
    route(Method::GET, "/key", Access::Key, Cost::Store, || get(account::key::get_key)),
    // For nodes.
    route(Method::GET, "/tunnel", Access::Node, Cost::Store, || get(provider::tunnel::open_tunnel)),
    route(Method::PUT, "/provisions/{provision_id}", Access::Node, Cost::Store, || {
        put(provider::provision::put_provision)
    }),
    route(Method::GET, "/provisions/{provision_id}", Access::Node, Cost::Store, || {
        get(provider::provision::get_provision)
    }),
    // For programs written for the first seed (DESIGN D7).
    route(Method::POST, "/providers/new", Access::ProviderKey, Cost::Store, || {
        post(provider::seed::enrol_device)
    }),
    route(Method::POST, "/providers/start", Access::ProviderKey, Cost::Store, || {
        post(provider::seed::start_device)
    }),
    route(Method::POST, "/providers/start/callback", Access::ProviderKey, Cost::Store, || {
        post(provider::seed::report_started)
    }),
    route(Method::POST, "/providers/end", Access::ProviderKey, Cost::Store, || {
        post(provider::seed::end_services)
    }),
    route(Method::POST, "/providers/delete", Access::ProviderKey, Cost::Store, || {
        post(provider::seed::retire_device)
    }),
    route(Method::DELETE, "/providers/delete", Access::ProviderKey, Cost::Store, || {
        delete(provider::seed::retire_device)
    }),
    // For load balancers.
    probe("/healthz", || get(health::get_health)),
    probe("/readyz", || get(health::get_readiness)),
];

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
}
