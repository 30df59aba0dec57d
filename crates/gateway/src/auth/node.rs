//! Signed requests of nodes (SR16): the signature is checked first, then whether somebody here knows the signer, then the
//! nonce is used up, so that a stranger costs no write.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use cxmpute_store::ProvisionState;
use cxmpute_tunnel::sign::{WINDOW, claimed_key_id};
use cxmpute_tunnel::{SignatureError, Verified, verify_request};
use cxmpute_wire::{Code, ProvisionId, UserId};
use ed25519_dalek::VerifyingKey;
use http::request::Parts;

use crate::app::App;
use crate::edge::client_of;
use crate::error::{ApiError, ApiResult};

/// A node whose signature verified with the key the store knows.
#[derive(Debug, Clone)]
pub struct SignedNode {
    /// The provision.
    pub provision_id: ProvisionId,
    /// Its owner.
    pub owner: UserId,
}

impl SignedNode {
    /// Checks a request of an enrolled node.
    pub async fn check(app: &Arc<App>, parts: &Parts, body: &[u8]) -> ApiResult<Self> {
        let claimed = claimed_key_id(&parts.headers).map_err(refusal)?;
        let known = app.db.provision_key(&claimed).await?;
        let Some((owner, key)) = known else {
            admit_stranger(app, parts)?;
            note_failure(app, parts);
            return Err(unknown(app, &claimed).await);
        };
        let key =
            <[u8; 32]>::try_from(key.as_slice()).ok().and_then(|key| VerifyingKey::from_bytes(&key).ok());
        let key =
            key.ok_or_else(|| ApiError::internal(anyhow::anyhow!("provision {claimed} has no usable key")))?;
        let signed = verify(app, parts, body, &key)?;
        use_once(app, &signed).await?;
        refuse_suspended(app, &owner).await?;
        Ok(Self { provision_id: claimed, owner })
    }
}

/// Checks a signature. Anybody can make a key that fits, so nothing is written yet: [`use_once`] follows when the signer is
/// known here.
pub fn verify(app: &App, parts: &Parts, body: &[u8], key: &VerifyingKey) -> ApiResult<Verified> {
    verify_request(parts, body, key, app.clock.now(), WINDOW).map_err(|error| {
        if !matches!(error, SignatureError::ClockSkew { .. }) {
            note_failure(app, parts);
        }
        refusal(error)
    })
}

/// Uses the nonce of a signature up.
pub async fn use_once(app: &App, signed: &Verified) -> ApiResult<()> {
    app.rates.admit_node(&signed.key_id)?;
    if app.db.nonce_once(signed.key_id.as_str(), &signed.nonce, app.clock.now()).await? {
        Ok(())
    } else {
        tracing::warn!(provision = %signed.key_id, "a signed request was replayed");
        Err(ApiError::new(Code::InvalidSignature, "This signature was used before; sign each request anew."))
    }
}

/// 429 for an address whose keys and signatures were wrong too often.
pub fn admit_stranger(app: &App, parts: &Parts) -> ApiResult<()> {
    client_of(parts, &app.config.server).map_or(Ok(()), |address| app.rates.admit_stranger(address))
}

/// Counts a signature that is worth nothing here.
pub fn note_failure(app: &App, parts: &Parts) {
    if let Some(address) = client_of(parts, &app.config.server) {
        app.rates.note_failure(address);
    }
}

/// The public key of an enrolment.
pub fn public_key(text: &str) -> ApiResult<VerifyingKey> {
    let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok();
    let key = bytes
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(|bytes| VerifyingKey::from_bytes(&bytes));
    match key {
        // A key of small order would verify signatures that nobody made.
        Some(Ok(key)) if !key.is_weak() => Ok(key),
        _ => Err(ApiError::invalid_parameter(
            "public_key",
            "public_key is not an Ed25519 public key in base64.",
        )),
    }
}

/// 403 while the owner's account is suspended.
pub async fn refuse_suspended(app: &Arc<App>, owner: &UserId) -> ApiResult<()> {
    let user = app.db.find_user(owner).await?;
    match user {
        Some(user) if user.suspended_at.is_none() => Ok(()),
        _ => Err(ApiError::account_suspended()),
    }
}

async fn unknown(app: &Arc<App>, id: &ProvisionId) -> ApiError {
    match app.db.find_provision(id.as_str()).await {
        Ok(Some(row)) if row.state == ProvisionState::Retired => retired(),
        Ok(_) => node_unknown(),
        Err(error) => error.into(),
    }
}

/// 404 with the way out: the node enrols by itself.
pub fn node_unknown() -> ApiError {
    ApiError::new(Code::NodeUnknown, "Provision not found.").with("action", "enrol")
}

/// 403: the device was deleted and does not come back under this id.
pub fn retired() -> ApiError {
    ApiError::new(Code::NodeRevoked, "This device was retired; set it up anew to give it a new id.")
        .with("action", "setup")
}

/// What a node is told about a signature that is not acceptable.
fn refusal(error: SignatureError) -> ApiError {
    match error {
        SignatureError::ClockSkew { server_time } => {
            ApiError::new(Code::ClockSkew, "The clock of this machine is more than 60 s from the server's.")
                .with("server_time", server_time.0)
        }
        other => ApiError::new(
            Code::InvalidSignature,
            format!("The request is not signed as it should be: {other}."),
        ),
    }
}
