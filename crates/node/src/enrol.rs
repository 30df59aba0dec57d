//! Enrolment: one signed, idempotent request. A node whose key is enrolled already needs no grant.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Clock, Secret, Tasks};
use cxmpute_tunnel::{HttpClient, Roots, Signer};
use cxmpute_wire::control::{EnrolAnswer, EnrolRequest, Location, Software};
use cxmpute_wire::{Code, RequestId};
use http::Method;

use crate::config::NodeConfig;
use crate::diagnose;
use crate::engines::{self, discover};
use crate::identity::{self, Identity};
use crate::models;

/// How an enrolment went.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// What the server answered.
    pub answer: EnrolAnswer,
    /// Whether the provision is new there.
    pub created: bool,
}

/// Enrols this node and remembers where.
///
/// # Errors
/// The gateway cannot be reached or says no; the error says what to do and carries the exit code.
pub async fn enrol(
    config: &NodeConfig,
    identity: &Identity,
    grant: Option<&Secret<String>>,
    alias: Option<String>,
    clock: &Clock,
) -> Result<Enrolled> {
    let roots = Roots::new(config.api.ca_file.as_deref())?;
    let client = HttpClient::new(roots);
    let (caps, models) = (config.owner.caps, config.models_dir());
    let measure = move || {
        let mut found = diagnose::measure(&models);
        caps.lower(&mut found, diagnose::size_of(&models));
        found
    };
    // Disks and drivers may take their time, and this node's other work shares the thread.
    let mut diagnostics = tokio::task::spawn_blocking(measure).await?;
    diagnostics.net = diagnose::net::reach(&client, &config.api.url, clock).await;
    let found = discover::look(&config.discover, &Tasks::new()).await;
    diagnostics.engines = engines::present(config, &found, !diagnostics.gpus.is_empty()).await;
    diagnostics.engines.extend(engines::docker::present(config).await);
    diagnostics.services = config.services.wishes();
    diagnostics.files = models::holdings(config);
    let signer = Signer::new(identity.key.clone(), clock.clone());
    let run = data_encoding::HEXLOWER.encode(&cxmpute_runtime::random::bytes::<8>());
    let request = EnrolRequest {
        public_key: STANDARD.encode(identity.key.verifying_key().as_bytes()),
        grant: grant.map(|grant| grant.expose().trim().to_owned()),
        run_id: RequestId::from_tail(&run).to_string(),
        name: config.device_name(),
        location: Location {
            country: config.location.country.clone(),
            state: config.location.state.clone(),
            city: config.location.city.clone(),
        },
        diagnostics,
        software: software(),
        alias,
    };
    let path = format!("/api/v1/provisions/{}", identity.provision_id);
    let body = Bytes::from(serde_json::to_vec(&request)?);
    let answer = client
        .signed(&signer, &config.api.url, Method::PUT, &path, body)
        .await
        .with_context(|| format!("The control plane at {} cannot be reached", config.api.url))?;
    if !answer.status.is_success() {
        return Err(refusal(answer.code(), &answer.message(), answer.status.as_u16()).into());
    }
    let created = answer.status.as_u16() == 201;
    let answer: EnrolAnswer = serde_json::from_slice(&answer.body)
        .with_context(|| format!("{} is no Cxmpute control plane", config.api.url))?;
    let mut state = identity::read_state(&config.data_dir)?;
    state.provision_id = Some(identity.provision_id.clone());
    state.api_url = Some(config.api.url.clone());
    state.control_plane = Some(answer.control_plane.clone());
    state.owner = Some(answer.owner.clone());
    identity::write_state(&config.data_dir, &state)?;
    Ok(Enrolled { answer, created })
}

/// What the server knows of this node.
///
/// # Errors
/// It cannot be reached, or does not know this node.
pub async fn ask_server(
    config: &NodeConfig,
    identity: &Identity,
    clock: &Clock,
) -> Result<serde_json::Value> {
    let client = HttpClient::new(Roots::new(config.api.ca_file.as_deref())?);
    let signer = Signer::new(identity.key.clone(), clock.clone());
    let path = format!("/api/v1/provisions/{}", identity.provision_id);
    let answer = client.signed(&signer, &config.api.url, Method::GET, &path, Bytes::new()).await?;
    anyhow::ensure!(answer.status.is_success(), "{}", answer.message());
    Ok(answer.json())
}

fn software() -> Software {
    Software {
        version: env!("CARGO_PKG_VERSION").into(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
    }
}

fn refusal(code: Option<Code>, message: &str, status: u16) -> ExitError {
    let (exit_code, hint) = match code {
        Some(Code::GrantInvalid | Code::GrantSpent | Code::GrantExpired) => {
            (exit::GRANT, "Ask the operator for a new grant (`cxmpute admin grant create USER`).")
        }
        Some(Code::NodeConflict) => (
            exit::GRANT,
            "This id belongs to another owner or key: move the data directory away to begin as a new node.",
        ),
        Some(Code::NodeRevoked | Code::AccountSuspended) => (exit::REVOKED, "Ask the operator why."),
        Some(Code::VersionTooOld) => (exit::VERSION_TOO_OLD, "Update this program."),
        _ => (exit::OTHER, "Try again; if it stays, ask the operator."),
    };
    let code = code.map_or_else(|| format!("status {status}"), |code| code.to_string());
    ExitError::new(exit_code, format!("Enrolment was refused ({code}): {message} {hint}"))
}
