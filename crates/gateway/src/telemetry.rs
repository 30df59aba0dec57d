//! What the gateway measures of itself, and the page on which operators read it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use http::{StatusCode, header};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::RwLock;

use crate::app::App;
use crate::router::ROUTES;

/// Seconds; from a cached answer to the longest chat.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0];

/// How often collected samples are folded together; without it they would pile up between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// The recorder of this process. The facade `metrics` has exactly one, so worlds of one test process share it.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// The meters that are touched on every request, looked up once.
pub struct Telemetry {
    page: PrometheusHandle,
    /// Answers by route and class of status.
    pub requests: RequestMeters,
    /// Paid work.
    pub work: WorkMeters,
    /// Open connections.
    pub connections: Gauge,
    /// Connections refused because the peer is no trusted proxy.
    pub refused_peer: Counter,
    /// Connections refused because their address has too many.
    pub refused_crowd: Counter,
}

impl Telemetry {
    /// Sets the recorder up, once per process.
    #[must_use]
    pub fn install() -> Self {
        let page = RECORDER.get_or_init(record).clone();
        describe_counter!("cxmpute_http_requests_total", "Answers by route and class of status.");
        describe_histogram!("cxmpute_http_request_seconds", "Time to the head of an answer.");
        describe_gauge!("cxmpute_connections", "Open connections of clients and nodes.");
        describe_counter!("cxmpute_refused_connections_total", "Connections closed at once, by reason.");
        describe_counter!(
            "cxmpute_enrolment_conflicts_total",
            "Enrolments refused because of another owner or key."
        );
        describe_counter!("cxmpute_leaked_keys_total", "Keys that were sent in an address.");
        describe_counter!("cxmpute_meter_commits_total", "Durable commits of the group-commit writer.");
        describe_counter!("cxmpute_meter_operations_total", "Holds, settlements and notes in those commits.");
        describe_counter!("cxmpute_meter_settlements_total", "Requests resolved durably.");
        describe_counter!("cxmpute_meter_failures_total", "Commits that failed.");
        describe_gauge!("cxmpute_meter_queue", "Admissions that wait for the writer.");
        describe_gauge!("cxmpute_meter_open_holds", "Holds that are not resolved.");
        Self {
            page,
            requests: RequestMeters::new(),
            work: WorkMeters::new(),
            connections: gauge!("cxmpute_connections"),
            refused_peer: counter!("cxmpute_refused_connections_total", "reason" => "untrusted_peer"),
            refused_crowd: counter!("cxmpute_refused_connections_total", "reason" => "too_many"),
        }
    }

    /// Folds samples together until the soft stop.
    pub async fn keep_up(app: Arc<App>) {
        let stop = app.tasks.soft();
        loop {
            tokio::select! {
                () = tokio::time::sleep(UPKEEP) => app.telemetry.page.run_upkeep(),
                () = stop.cancelled() => return,
            }
        }
    }
}

/// The writer counts for itself, without a look-up per operation; its figures are copied when somebody asks.
fn publish_meter(app: &App) {
    let stats = app.meter.stats();
    counter!("cxmpute_meter_commits_total").absolute(stats.commits);
    counter!("cxmpute_meter_operations_total").absolute(stats.ops);
    counter!("cxmpute_meter_settlements_total").absolute(stats.settlements);
    counter!("cxmpute_meter_failures_total").absolute(stats.failures);
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    {
        gauge!("cxmpute_meter_queue").set(stats.queue as f64);
        gauge!("cxmpute_meter_open_holds").set(stats.open_holds as f64);
    }
}

fn record() -> PrometheusHandle {
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).expect("the buckets are not empty");
    let recorder = builder.build_recorder();
    let page = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder is installed; the metrics page stays empty");
    }
    page
}

/// One counter per route and class of status, one histogram per route.
pub struct RequestMeters {
    rows: Vec<RowMeters>,
}

struct RowMeters {
    classes: [Counter; 6],
    seconds: Histogram,
}

impl RequestMeters {
    fn new() -> Self {
        let named = ROUTES.iter().map(|route| (route.method.as_str(), route.path));
        // The last row is for requests that belong to no route.
        let rows = named.chain([("any", "none")]).map(|(method, path)| RowMeters {
            classes: ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| {
                counter!("cxmpute_http_requests_total", "method" => method, "route" => path, "status" => class)
            }),
            seconds: histogram!("cxmpute_http_request_seconds", "method" => method, "route" => path),
        });
        Self { rows: rows.collect() }
    }

    /// Counts one answer.
    pub fn record(&self, route: Option<usize>, status: StatusCode, took: Duration) {
        let Some(row) = self.rows.get(route.unwrap_or(self.rows.len() - 1)) else { return };
        row.classes[usize::from(status.as_u16() / 100).min(5)].increment(1);
        row.seconds.record(took.as_secs_f64());
    }
}

/// What is measured of each paid request. A meter is looked up when it is first needed: the look-up costs more than the
/// count.
pub struct WorkMeters {
    ends: [EndMeters; End::ALL.len()],
    input: Counter,
    output: Counter,
    /// By catalogue id.
    first_token: RwLock<HashMap<String, Histogram>>,
}

#[derive(Default)]
struct EndMeters {
    attempts: OnceLock<Counter>,
    seconds: OnceLock<Histogram>,
}

impl WorkMeters {
    fn new() -> Self {
        Self {
            ends: Default::default(),
            input: counter!("gen_ai_client_token_usage", "type" => "input"),
            output: counter!("gen_ai_client_token_usage", "type" => "output"),
            first_token: RwLock::default(),
        }
    }

    /// Counts an attempt by how it ended.
    pub fn attempt(&self, end: End) {
        let meter = || counter!("cxmpute_attempts_total", "outcome" => end.as_str());
        self.ends[end as usize].attempts.get_or_init(meter).increment(1);
    }

    /// Counts a request by how it ended.
    pub fn ended(&self, end: End, took: Duration, units: &Units) {
        let meter = || histogram!("gen_ai_server_request_duration", "end" => end.as_str());
        self.ends[end as usize].seconds.get_or_init(meter).record(took.as_secs_f64());
        self.input.increment(units.prompt.0);
        self.output.increment(units.completion.0);
    }

    /// Notes the time to the first token of a model.
    pub fn first_token(&self, model: &str, after: Duration) {
        if let Some(meter) = self.first_token.read().get(model) {
            return meter.record(after.as_secs_f64());
        }
        let meter = histogram!("gen_ai_server_time_to_first_token", "model" => model.to_owned());
        meter.record(after.as_secs_f64());
        self.first_token.write().insert(model.to_owned(), meter);
    }
}

/// The operators' listener: metrics and probes, nothing else.
pub fn build_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(get_metrics))
        .route("/healthz", get(crate::api::health::get_health))
        .route("/readyz", get(crate::api::health::get_readiness))
        .with_state(app)
}

async fn get_metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    publish_meter(&app);
    (kind, app.telemetry.page.render()).into_response()
}
