//! `PUT` and `GET /provisions/{provision_id}`: enrolment (NR2-NR4) and what the server knows of a node (NR11).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use cxmpute_store::{EnrolOutcome, Enrolment, ProvisionRow};
use cxmpute_tunnel::provision_id;
use cxmpute_wire::control::{EnrolAnswer, EnrolRequest};
use cxmpute_wire::{Code, Generation, ProvisionId, ServiceId};
use http::{Request, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::auth::SignedNode;
use crate::auth::node::{
    admit_stranger, node_unknown, note_failure, public_key, refuse_suspended, retired, use_once, verify,
};
use crate::body::{Pace, read};
use crate::error::{ApiError, ApiResult};
use crate::json;

/// Largest enrolment.
const ENROL_LIMIT: usize = crate::limits::PROVIDER_BODY;

/// What the server knows of a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProvisionView {
    #[serde(flatten)]
    enrolled: EnrolAnswer,
    generation: Generation,
    services: Vec<ServiceView>,
    /// The one reason for not earning; absent while earning is possible.
    reason: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ServiceView {
    service_id: ServiceId,
    state: String,
    detail: Option<String>,
}

/// `PUT /provisions/{provision_id}`.
pub async fn put_provision(
    State(app): State<Arc<App>>,
    path_id: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> ApiResult<Response> {
    let Path(path_id) = path_id.map_err(not_text)?;
    let (parts, body) = request.into_parts();
    admit_stranger(&app, &parts)?;
    let bytes = read(body, &parts.headers, ENROL_LIMIT, Pace::of(&app)).await?;
    let enrolment: EnrolRequest = json::read(&bytes)?;
    let path_id: ProvisionId = path_id.parse().map_err(|error| {
        ApiError::invalid_parameter(
            "provision_id",
            format!("The address does not name a provision: {error}."),
        )
    })?;
    let key = public_key(&enrolment.public_key)?;
    let signed = verify(&app, &parts, &bytes, &key)?;
    let wanted = Enrolment {
        id: path_id.clone(),
        owner: None,
        public_key: Some(key.as_bytes().to_vec()),
        alias: enrolment.alias.clone(),
        grant_hash: enrolment.grant.as_deref().map(|grant| app.keys.hash(grant.trim()).to_vec()),
        run_id: limited("run_id", &enrolment.run_id, 128)?,
        name: limited("name", &enrolment.name, 128)?,
        location: to_text(&enrolment.location)?,
        diagnostics: to_text(&enrolment.diagnostics)?,
        software: to_text(&enrolment.software)?,
    };
    // Everybody can sign with a key of their own: only whom a row or a grant speaks for may cost a write.
    let refused = if path_id == provision_id(&key) {
        app.db.foresee_refusal(&wanted, app.clock.now()).await?
    } else {
        note_failure(&app, &parts);
        Some(foreign_id(&app, &path_id).await?)
    };
    let outcome = match refused {
        Some(refused) => refused,
        None => {
            use_once(&app, &signed).await?;
            app.db.enrol_provision(&wanted, app.clock.now()).await?
        }
    };
    if matches!(outcome, EnrolOutcome::GrantMissing | EnrolOutcome::GrantInvalid) {
        note_failure(&app, &parts);
    }
    #[cfg(feature = "sabotage")]
    let outcome = overwrite(&app, &wanted, outcome).await?;
    match outcome {
        EnrolOutcome::Created(owner) => {
            refuse_suspended(&app, &owner).await?;
            tracing::info!(provision = %path_id, %owner, "a device enrolled");
            answer(&app, &path_id, StatusCode::CREATED).await
        }
        EnrolOutcome::Unchanged(owner) => {
            refuse_suspended(&app, &owner).await?;
            app.fleet.replan(&path_id);
            answer(&app, &path_id, StatusCode::OK).await
        }
        refused => Err(refusal(&refused, &path_id)),
    }
}

/// `GET /provisions/{provision_id}`: a node reads its own record.
pub async fn get_provision(
    State(app): State<Arc<App>>,
    path_id: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> ApiResult<Json<ProvisionView>> {
    let Path(path_id) = path_id.map_err(not_text)?;
    let (parts, _) = request.into_parts();
    let node = SignedNode::check(&app, &parts, b"").await?;
    if node.provision_id.as_str() != path_id {
        return Err(node_unknown());
    }
    let row = load(&app, &node.provision_id).await?;
    let services = app.db.provision_services(&row.id).await?;
    let reason = match app.fleet.is_current(&row.id, row.epoch) {
        true => None,
        false => Some("no_tunnel"),
    };
    Ok(Json(ProvisionView {
        generation: row.desired_generation,
        services: services
            .into_iter()
            .map(|row| ServiceView { service_id: row.service, state: row.state, detail: row.detail })
            .collect(),
        reason,
        enrolled: enrolled(&app, row),
    }))
}

fn not_text(_: PathRejection) -> ApiError {
    ApiError::invalid_parameter("provision_id", "The address does not name a provision: it is no UTF-8 text.")
}

async fn load(app: &App, id: &ProvisionId) -> ApiResult<ProvisionRow> {
    let row = app.db.find_provision(id.as_str()).await?;
    row.ok_or_else(node_unknown)
}

async fn answer(app: &App, id: &ProvisionId, status: StatusCode) -> ApiResult<Response> {
    let row = load(app, id).await?;
    Ok((status, Json(enrolled(app, row))).into_response())
}

fn enrolled(app: &App, row: ProvisionRow) -> EnrolAnswer {
    EnrolAnswer {
        provision_id: row.id,
        owner: row.owner,
        state: row.state.as_str().to_owned(),
        server_time: app.clock.now(),
        epoch: row.epoch,
        control_plane: app.config.server.name.clone(),
    }
}

/// An id that is not the hash of the key that signs: an attack on a record, or a mistake about a free id.
async fn foreign_id(app: &App, id: &ProvisionId) -> ApiResult<EnrolOutcome> {
    let taken = app.db.find_provision(id.as_str()).await?;
    match taken {
        Some(_) => Ok(EnrolOutcome::Conflict),
        None => Err(ApiError::invalid_parameter(
            "provision_id",
            "The id in the address is not the hash of public_key; a provision id cannot be chosen.",
        )),
    }
}

fn refusal(outcome: &EnrolOutcome, id: &ProvisionId) -> ApiError {
    match outcome {
        EnrolOutcome::Conflict => {
            // An alert (NR3): somebody tried to take a record over, or a key is in two hands.
            tracing::error!(provision = %id, "an enrolment for a provision of another owner or key was refused");
            metrics::counter!("cxmpute_enrolment_conflicts_total").increment(1);
            ApiError::new(
                Code::NodeConflict,
                "This provision belongs to another owner or key; nothing was changed. Enrol with a new key, or let \
                 its owner recover it.",
            )
            .with("action", "new_key")
        }
        EnrolOutcome::Retired => retired(),
        EnrolOutcome::GrantMissing => ApiError::new(
            Code::GrantInvalid,
            "A new device needs an enrolment grant of its owner; make one with `cxmpute admin grant create`.",
        )
        .param("grant"),
        EnrolOutcome::GrantInvalid => ApiError::new(
            Code::GrantInvalid,
            "This enrolment grant is unknown here; make one with `cxmpute admin grant create`.",
        )
        .param("grant"),
        EnrolOutcome::GrantSpent => ApiError::new(
            Code::GrantSpent,
            "This enrolment grant was used before; every device needs its own.",
        )
        .param("grant"),
        EnrolOutcome::GrantExpired => {
            ApiError::new(Code::GrantExpired, "This enrolment grant is too old; ask for a new one.")
                .param("grant")
        }
        EnrolOutcome::Created(_) | EnrolOutcome::Unchanged(_) => {
            ApiError::internal(anyhow::anyhow!("a good enrolment was refused"))
        }
    }
}

fn limited(param: &str, text: &str, most: usize) -> ApiResult<String> {
    if text.chars().count() > most {
        return Err(ApiError::invalid_parameter(param, format!("{param} is longer than {most} characters.")));
    }
    Ok(text.to_owned())
}

fn to_text(part: &impl Serialize) -> ApiResult<String> {
    serde_json::to_string(part).map_err(ApiError::internal)
}

/// The known-bad variant of gate N3.
#[cfg(feature = "sabotage")]
async fn overwrite(app: &App, wanted: &Enrolment, outcome: EnrolOutcome) -> ApiResult<EnrolOutcome> {
    if app.sabotage != Some(crate::sabotage::Sabotage::UnconditionalUpsert)
        || outcome != EnrolOutcome::Conflict
    {
        return Ok(outcome);
    }
    let grant = wanted.grant_hash.as_deref().unwrap_or_default();
    let granted = app.db.grant_owner_of(grant).await?;
    let Some(owner) = granted else { return Ok(outcome) };
    Ok(app.db.enrol_unconditionally(wanted, &owner, app.clock.now()).await?)
}
