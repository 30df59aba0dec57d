//! How many replicas share the limits of rate. On SQLite there is only this one.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;

const EVERY: Duration = Duration::from_secs(2);

/// Counts the live replicas until the soft stop. While the store is away the last number holds.
pub async fn share_limits(app: Arc<App>) {
    let stop = app.tasks.soft();
    loop {
        match app.db.live_replicas().await {
            Ok(replicas) => app.rates.share_with(replicas),
            Err(error) => tracing::debug!(%error, "live replicas were not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}
