//! The five routes of the first seed: thin, idempotent adapters over enrolment, desired and observed state (DESIGN
//! D7). A device that only speaks these routes is real but gets no work: `no_tunnel`, until a node binds a key to it
//! by enrolling with its id as `alias`. `providedUrl` is a label and is never dialled.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use bytes::Bytes;
use cxmpute_store::{EnrolOutcome, Enrolment, KeyKind, ProvisionRow, ProvisionState, ServiceRow};
use cxmpute_wire::control::{
    CpuInfo, Diagnostics, DiskInfo, GpuInfo, Location, MemoryInfo, ObservedService, OsInfo, SeedCallback,
    SeedDelete, SeedDone, SeedEnd, SeedNew, SeedNewAnswer, SeedServices, SeedStart, ServiceState, Software,
};
use cxmpute_wire::{Code, ProvisionId, ServiceId, UserId};
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::auth::caller;
use crate::auth::node::{node_unknown, refuse_suspended};
use crate::auth::ring::KeyFault;
use crate::body::RawBody;
use crate::edge::{Matched, client_of};
use crate::error::{ApiError, ApiResult, Shape};
use crate::json;
use crate::router::RateClass;

/// Most services in one report.
const SERVICES_LIMIT: usize = 64;

/// `POST /providers/new`: enrols a device under an id that its program made.
pub async fn enrol_device(
    State(app): State<Arc<App>>,
    sender: Sender,
    RawBody(body): RawBody,
) -> ApiResult<Json<SeedNewAnswer>> {
    seed_shaped(async {
        let new: SeedNew = parse(&body)?;
        let owner = owner_of_key(&app, &sender, &new.provider_ak).await?;
        if new.provider_id != owner.as_str() {
            return Err(invalid_key());
        }
        let alias = device_id(&new.provision_id)?;
        let enrolment = Enrolment {
            id: id_of_alias(&alias),
            owner: Some(owner),
            public_key: None,
            alias: Some(alias.clone()),
            grant_hash: new.registration_secret.as_deref().map(|grant| app.keys.hash(grant.trim()).to_vec()),
            run_id: String::new(),
            name: new.device_name.or(new.username).unwrap_or_default().chars().take(128).collect(),
            location: to_text(&location(&new.location)?)?,
            diagnostics: to_text(&diagnostics(&new.device_diagnostics))?,
            software: to_text(&Software::default())?,
        };
        match app.db.enrol_provision(&enrolment, app.clock.now()).await? {
            EnrolOutcome::Created(_) | EnrolOutcome::Unchanged(_) => {
                Ok(Json(SeedNewAnswer { success: true, device_id: alias }))
            }
            refused => Err(refusal(&app, &refused, &alias, &enrolment).await),
        }
    })
    .await
}

/// `POST /providers/start`: measures are taken in, the assignment goes out.
pub async fn start_device(
    State(app): State<Arc<App>>,
    sender: Sender,
    RawBody(body): RawBody,
) -> ApiResult<Json<SeedServices>> {
    seed_shaped(async {
        let start: SeedStart = parse(&body)?;
        let row = own_provision(&app, &sender, &start.provider_ak, &start.provision_id).await?;
        if row.public_key.is_none() {
            // A node with a key reports its own measures over its tunnel; those are better.
            let fresh = Enrolment {
                id: row.id.clone(),
                owner: Some(row.owner),
                public_key: None,
                alias: row.alias,
                grant_hash: None,
                run_id: String::new(),
                name: row.name,
                location: row.location,
                diagnostics: to_text(&diagnostics(&start.available_resources))?,
                software: row.software,
            };
            app.db.enrol_provision(&fresh, app.clock.now()).await?;
        }
        let desired = app.fleet.assign(&row.id).await?;
        let desired = desired.ok_or_else(node_unknown)?;
        let services = desired.services.iter().map(|service| service.service_id.to_string()).collect();
        Ok(Json(SeedServices { services }))
    })
    .await
}

/// `POST /providers/start/callback`: what the device says it runs.
pub async fn report_started(
    State(app): State<Arc<App>>,
    sender: Sender,
    RawBody(body): RawBody,
) -> ApiResult<Json<SeedDone>> {
    seed_shaped(async {
        let report: SeedCallback = parse(&body)?;
        let row = own_provision(&app, &sender, &report.provider_ak, &report.provision_id).await?;
        if report.started_services.is_empty() {
            return Err(ApiError::invalid_parameter(
                "startedServices",
                "startedServices must name at least one service.",
            ));
        }
        let services = services(&app, "startedServices", &report.started_services)?;
        let url = report.provided_url.trim();
        if url.is_empty() || url.len() > 2048 || url.chars().any(char::is_control) {
            return Err(ApiError::invalid_parameter(
                "providedUrl",
                "providedUrl must be a text of 1 to 2048 bytes.",
            ));
        }
        let now = app.clock.now();
        if row.public_key.is_none() {
            let observed: Vec<ObservedService> = services.iter().map(observed).collect();
            let rows: Vec<ServiceRow> =
                services.into_iter().map(|service| service_row(service, &row)).collect();
            app.db.record_observed(&row.id, row.desired_generation, &to_text(&observed)?, &rows, now).await?;
        }
        app.db.set_provided_url(&row.id, url, now).await?;
        Ok(done(if app.fleet.is_current(&row.id, row.epoch) {
            "Services recorded."
        } else {
            "Services recorded; they get no work until a node with a key connects (no_tunnel)."
        }))
    })
    .await
}

/// `POST /providers/end`: the named services end, or all of them.
pub async fn end_services(
    State(app): State<Arc<App>>,
    sender: Sender,
    RawBody(body): RawBody,
) -> ApiResult<Json<SeedDone>> {
    seed_shaped(async {
        let end: SeedEnd = parse(&body)?;
        let row = own_provision(&app, &sender, &end.provider_ak, &end.provision_id).await?;
        let named = end.services.as_deref().map(|names| services(&app, "services", names)).transpose()?;
        let ended = app.db.end_provision(&row.id, named.as_deref(), app.clock.now()).await;
        if !ended? {
            return Err(node_unknown());
        }
        if named.is_none() {
            app.fleet.expel(&row.id, Code::Draining);
        }
        Ok(done("Services ended."))
    })
    .await
}

/// `POST` or `DELETE /providers/delete`: the device is retired for good.
pub async fn retire_device(
    State(app): State<Arc<App>>,
    sender: Sender,
    RawBody(body): RawBody,
) -> ApiResult<Json<SeedDone>> {
    seed_shaped(async {
        let delete: SeedDelete = parse(&body)?;
        let owner = owner_of_key(&app, &sender, &delete.provider_ak).await?;
        let row = find(&app, &owner, &delete.provision_id).await?;
        app.db.retire_provision(&row.id, app.clock.now()).await?;
        app.fleet.expel(&row.id, Code::NodeRevoked);
        Ok(done("Device deleted."))
    })
    .await
}

/// Errors of these routes have the seed's shape.
async fn seed_shaped<T>(work: impl Future<Output = ApiResult<T>>) -> ApiResult<T> {
    work.await.map_err(|error| error.shape(Shape::Seed))
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> ApiResult<T> {
    json::read(body)
}

fn done(message: &str) -> Json<SeedDone> {
    Json(SeedDone { success: true, message: message.to_owned() })
}

fn invalid_key() -> ApiError {
    ApiError::new(Code::InvalidApiKey, "providerId and providerAk are not a valid pair.")
}

/// Who sends a request, as far as limits go: the key is in the body, so they are looked at when that was read.
pub struct Sender {
    address: Option<IpAddr>,
    rate: RateClass,
}

impl FromRequestParts<Arc<App>> for Sender {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Infallible> {
        let rate = parts.extensions.get::<Matched>().map_or(RateClass::Requests, |found| found.route().rate);
        Ok(Self { address: client_of(parts, &app.config.server), rate })
    }
}

async fn owner_of_key(app: &App, sender: &Sender, key: &str) -> ApiResult<UserId> {
    match caller::check_key(app, key, KeyKind::Provider, || sender.address).await {
        Ok(row) => {
            app.rates.admit(&app.rates.standing(&row), sender.rate)?;
            Ok(row.user_id.clone())
        }
        Err(KeyFault::Invalid) => Err(invalid_key()),
        Err(fault) => Err(caller::refusal(fault)),
    }
}

/// The caller's provision, unless it is retired. A foreign one looks like a missing one.
async fn own_provision(app: &Arc<App>, sender: &Sender, key: &str, id: &str) -> ApiResult<ProvisionRow> {
    let owner = owner_of_key(app, sender, key).await?;
    let row = find(app, &owner, id).await?;
    if row.state == ProvisionState::Retired {
        return Err(node_unknown());
    }
    refuse_suspended(app, &owner).await?;
    Ok(row)
}

async fn find(app: &App, owner: &UserId, id: &str) -> ApiResult<ProvisionRow> {
    let row = app.db.find_provision(id).await?;
    row.filter(|row| row.owner == *owner).ok_or_else(node_unknown)
}

async fn refusal(app: &App, outcome: &EnrolOutcome, alias: &str, enrolment: &Enrolment) -> ApiError {
    match outcome {
        EnrolOutcome::Conflict => {
            // The owner's own device, taken over by a node since: that is what the caller wanted.
            let taken = app.db.find_provision(alias).await.ok().flatten();
            if taken
                .as_ref()
                .is_some_and(|row| Some(&row.owner) == enrolment.owner.as_ref() && row.public_key.is_some())
            {
                return ApiError::new(
                    Code::NodeConflict,
                    "This device has a key now; its node enrols by itself.",
                );
            }
            tracing::error!(alias, "an enrolment for a device of another owner was refused");
            metrics::counter!("cxmpute_enrolment_conflicts_total").increment(1);
            ApiError::new(
                Code::NodeConflict,
                "This provisionId belongs to another provider; nothing was changed.",
            )
        }
        EnrolOutcome::Retired => ApiError::new(
            Code::NodeRevoked,
            "This device was deleted; enrol it again with a new provisionId.",
        )
        .with("action", "enrol"),
        EnrolOutcome::GrantSpent => ApiError::new(Code::GrantSpent, "registrationSecret was used before."),
        EnrolOutcome::GrantExpired => ApiError::new(Code::GrantExpired, "registrationSecret is too old."),
        _ => ApiError::new(Code::GrantInvalid, "registrationSecret is unknown; it may also be left out."),
    }
}

/// The id of a device without a key: derived from the id its program made, so that `new` twice is one device.
fn id_of_alias(alias: &str) -> ProvisionId {
    let mut hasher = Sha256::new();
    hasher.update(b"cxmpute device alias\0");
    hasher.update(alias.as_bytes());
    ProvisionId::from_key_digest(&hasher.finalize().into())
}

/// Ids made by programs of the seed are UUIDs; anything short and plain is good enough as a name.
fn device_id(text: &str) -> ApiResult<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    // A provision id is the hash of a key and cannot be chosen.
    if (8..=64).contains(&text.len()) && plain && !text.starts_with(ProvisionId::PREFIX) {
        return Ok(text.to_owned());
    }
    Err(ApiError::invalid_parameter("provisionId", "provisionId must be a UUID made by the device."))
}

/// Services by their ids; the seed also says bare model names.
fn services(app: &App, param: &str, names: &[String]) -> ApiResult<Vec<ServiceId>> {
    if names.len() > SERVICES_LIMIT {
        return Err(ApiError::invalid_parameter(
            param,
            format!("{param} names more than {SERVICES_LIMIT} services."),
        ));
    }
    let known = |name: &String| {
        let entry = match name.parse::<ServiceId>() {
            Ok(id) => app.catalogue.by_service(&id),
            Err(_) => app.catalogue.resolve(name),
        };
        entry.map(|entry| entry.service.clone()).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            ApiError::invalid_parameter(
                param,
                format!("{param} names `{shown}`, which is no service of this network."),
            )
        })
    };
    names.iter().map(known).collect()
}

fn observed(service: &ServiceId) -> ObservedService {
    ObservedService {
        service_id: service.clone(),
        state: ServiceState::Ready,
        slots: 0,
        in_flight: 0,
        engine: String::new(),
        pid: None,
        digest: None,
        code: None,
        detail: None,
        progress: None,
    }
}

fn service_row(service: ServiceId, row: &ProvisionRow) -> ServiceRow {
    ServiceRow {
        service,
        generation: row.desired_generation,
        state: "ready".to_owned(),
        detail: Some("no_tunnel".to_owned()),
    }
}

fn to_text(part: &impl Serialize) -> ApiResult<String> {
    serde_json::to_string(part).map_err(ApiError::internal)
}

fn location(value: &Value) -> ApiResult<Location> {
    serde_json::from_value(value.clone())
        .map_err(|_| ApiError::invalid_parameter("location", "location must be {country, state, city}."))
}

/// The seed's `{type, compute: {gpu, cpu, memory, storage, os}}`, sizes in MB, in our own words. What is missing stays
/// unknown; it is never invented.
fn diagnostics(value: &Value) -> Diagnostics {
    let compute = value.get("compute").unwrap_or(value);
    let text = |path: &str| compute.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number =
        |path: &str| compute.pointer(path).and_then(Value::as_f64).filter(|n| *n >= 0.0).unwrap_or(0.0);
    let megabytes = |path: &str| cxmpute_wire::Bytes((number(path) * 1_048_576.0) as u64);
    let gpu = compute.get("gpu").filter(|gpu| gpu.is_object()).map(|_| GpuInfo {
        name: text("/gpu/name"),
        memory_total: megabytes("/gpu/memory"),
        ..GpuInfo::default()
    });
    Diagnostics {
        os: OsInfo {
            name: text("/os/name"),
            version: text("/os/version"),
            kernel: String::new(),
            architecture: text("/os/architecture"),
        },
        cpu: CpuInfo {
            name: text("/cpu/name"),
            cores: number("/cpu/cores") as u32,
            threads: number("/cpu/threads") as u32,
        },
        memory: MemoryInfo { total: megabytes("/memory/total"), available: megabytes("/memory/free") },
        disk: DiskInfo {
            mount: String::new(),
            total: megabytes("/storage/total"),
            free: megabytes("/storage/free"),
        },
        gpus: gpu.into_iter().collect(),
        ..Diagnostics::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_s_diagnostics_are_translated() {
        let value = serde_json::json!({"type": "gpu", "compute": {
            "gpu": {"name": "X", "memory": 8192}, "cpu": {"name": "C", "cores": 4, "threads": 8},
            "memory": {"total": 16384, "used": 1, "free": 8000}, "storage": {"total": 100, "free": 50.5}}});
        let translated = diagnostics(&value);
        assert_eq!(translated.memory.total.0, 16384 * 1_048_576);
        assert_eq!(translated.gpus[0].memory_total.0, 8192 * 1_048_576);
        assert_eq!((translated.cpu.cores, translated.cpu.threads), (4, 8));
        assert_eq!(translated.disk.free.0, 52_953_088);
        assert_eq!(diagnostics(&serde_json::json!({"memory": {"total": -5}})), Diagnostics::default());
    }

    #[test]
    fn a_device_has_one_id_and_cannot_choose_a_provision_s() {
        let id = device_id("3d2c1a5e-1111-4222-8333-0123456789ab").unwrap();
        assert_eq!(id_of_alias(&id), id_of_alias(&id));
        for wrong in ["", "short", "pv_aaaaaaaaaaaaaaaa", "a b c d e f g h", &"a".repeat(65)] {
            assert!(device_id(wrong).is_err(), "{wrong}");
        }
    }
}
