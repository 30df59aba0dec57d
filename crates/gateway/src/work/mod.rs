//! Periodic work, one file per job. Jobs repair and forget; no request waits for them.

mod nonces;
mod replicas;
mod revocation;

use std::sync::Arc;

use cxmpute_store::DbKind;

use crate::app::App;
use crate::telemetry::Telemetry;

/// Starts all jobs; they end with the soft stop.
pub fn start(app: &Arc<App>) {
    app.tasks.spawn("work-telemetry", Telemetry::keep_up(app.clone()));
    app.tasks.spawn("work-nonces", nonces::forget_old(app.clone()));
    if app.db.kind() == DbKind::Postgres {
        app.tasks.spawn("work-replicas", replicas::share_limits(app.clone()));
    }
    app.tasks.spawn("work-revocation", revocation::expel_revoked(app.clone()));
}
