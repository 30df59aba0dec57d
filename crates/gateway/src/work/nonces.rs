//! Forgets the nonces of signatures that are too old to be accepted anyway.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_tunnel::sign::WINDOW;
use cxmpute_wire::{Millis, Timestamp};

use crate::app::App;

const EVERY: Duration = Duration::from_secs(60);

/// Runs until the soft stop.
pub async fn forget_old(app: Arc<App>) {
    let stop = app.tasks.soft();
    // Signatures are good from a window before to a window after our clock; one more window for clocks of replicas.
    let keep = Millis::from(WINDOW * 3);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        let before = Timestamp(app.clock.now().0.saturating_sub(i64::try_from(keep.0).unwrap_or(i64::MAX)));
        if let Err(error) = app.db.forget_nonces(before).await {
            tracing::warn!(%error, "old nonces were not forgotten");
        }
    }
}
