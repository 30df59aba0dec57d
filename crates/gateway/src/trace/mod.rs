//! Traces: one span per request with its phases below it, sent to an OpenTelemetry collector when one is configured.
//!
//! ```text
//! edge ── Watch ──▶ relay (phases) ── last holder drops it ──▶ Outbox ──▶ Carrier ── OTLP/HTTP ──▶ collector
//! ```
//!
//! A request is recorded as a value of its own instead of through the log's spans: what can be said is a closed set of
//! names ([`span::Key`]), a request that is not traced costs one comparison per phase, and no log level changes either.

pub mod context;
mod export;
pub mod otlp;
mod record;
pub mod span;

use cxmpute_runtime::{Clock, Tasks, random};
use cxmpute_tunnel::{HttpClient, Roots, TransportError};
use http::{HeaderMap, Method};

pub use record::{Open, Watch, reasons};
pub use span::{Key, Phase};

use crate::config::Config;
use crate::edge::Edge;
use crate::router::{Access, ROUTES};
use context::{Parent, Sampler, TraceId};
use export::{Carrier, Outbox};
use otlp::Source;
use record::Beginning;

/// The methods that the conventions for HTTP know.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The traces of one process.
pub struct Traces {
    sampler: Sampler,
    outbox: Outbox,
    clock: Clock,
}

impl Traces {
    /// Starts the task that carries them to the collector, where one is configured. `tasks` ends with the process, `late`
    /// after the last request.
    ///
    /// # Errors
    /// The file of the certificate authority is not usable.
    pub fn start(
        config: &Config,
        clock: &Clock,
        tasks: &Tasks,
        late: &Tasks,
    ) -> Result<Option<Self>, TransportError> {
        let traces = &config.traces;
        let Some(collector) = traces.collector() else { return Ok(None) };
        export::describe_metrics();
        let (outbox, received) = Outbox::new(traces.queue);
        let carrier = Carrier {
            client: HttpClient::new(Roots::new(traces.ca_file.as_deref())?),
            collector: collector.to_owned(),
            source: Source::new(&config.store.replica),
            every: traces.every(),
            timeout: traces.timeout(),
            received,
            batch: Vec::new(),
            is_away: false,
        };
        late.spawn("traces", carrier.run(late.soft(), tasks.hard()));
        let sampler = Sampler::new(traces.ratio, traces.follow_clients);
        Ok(Some(Self { sampler, outbox, clock: clock.clone() }))
    }

    /// Begins the trace of a request that has just arrived, if it is to be traced. Probes are not.
    pub fn begin(&self, edge: &Edge, method: &Method, route: Option<usize>, headers: &HeaderMap) -> Watch {
        let row = route.map(|at| &ROUTES[at]);
        if row.is_some_and(|row| !row.prefixed && row.access == Access::Public) {
            return Watch::default();
        }
        let parent = Parent::of(headers);
        let trace = parent.map_or_else(|| TraceId(random::quick()), |parent| parent.trace);
        if !self.sampler.takes(trace, parent.as_ref()) {
            return Watch::default();
        }
        // A method can be any word, and so hold anything.
        let method = METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER");
        let path = row.map(|row| row.path);
        let beginning = Beginning {
            name: path.map_or(method.into(), |path| format!("{method} {path}").into()),
            trace,
            parent: parent.map(|parent| parent.span),
            began: edge.arrived,
        };
        let watch = Watch::begin(beginning, &self.clock, &self.outbox);
        watch.describe(|fields| {
            fields.set(Key::HttpMethod, method);
            if let Some(path) = path {
                fields.set(Key::HttpRoute, path);
            }
            fields.set(Key::RequestId, edge.request_id.as_str().to_owned());
        });
        watch
    }
}
