//! Closes the tunnels of provisions that were suspended or retired, or whose owner was suspended, by another process
//! such as the command line (NR28: within five seconds).

use std::sync::Arc;
use std::time::Duration;

use cxmpute_store::{DbError, ProvisionState};
use cxmpute_wire::{Code, ProvisionId};

use crate::app::App;

const EVERY: Duration = Duration::from_secs(2);

/// Runs until the soft stop.
pub async fn expel_revoked(app: Arc<App>) {
    let stop = app.tasks.soft();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        for node in app.fleet.nodes() {
            match verdict(&app, &node.session.provision_id).await {
                Ok(None) => {}
                Ok(Some(code)) => {
                    tracing::warn!(provision = %node.session.provision_id, %code, "a tunnel is closed");
                    app.fleet.expel(&node.session.provision_id, code);
                }
                // Nobody is expelled because the store is away.
                Err(error) => {
                    tracing::debug!(%error, "revocations were not looked up");
                    break;
                }
            }
        }
    }
}

async fn verdict(app: &App, id: &ProvisionId) -> Result<Option<Code>, DbError> {
    let Some(row) = app.db.find_provision(id.as_str()).await? else { return Ok(Some(Code::NodeUnknown)) };
    if matches!(row.state, ProvisionState::Suspended | ProvisionState::Retired) {
        return Ok(Some(Code::NodeRevoked));
    }
    let owner = app.db.find_user(&row.owner).await?;
    Ok(owner.is_none_or(|owner| owner.suspended_at.is_some()).then_some(Code::AccountSuspended))
}
