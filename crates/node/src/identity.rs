//! The node's key and what it knows of itself. The key is made before any network call and saved durably: temporary
//! file, fsync, rename, fsync of the directory, mode 0600 (NR1). The provision's id is the hash of the public key.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::random;
use cxmpute_wire::{ProvisionId, UserId};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::owner::Pause;

const KEY_FILE: &str = "node.key";
const STATE_FILE: &str = "node.json";

/// The key pair of this provision.
#[derive(Clone)]
pub struct Identity {
    /// The private key.
    pub key: SigningKey,
    /// The id that follows from it.
    pub provision_id: ProvisionId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.provision_id)
    }
}

/// What the node remembers between runs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct State {
    /// The provision's id, for people who look.
    pub provision_id: Option<ProvisionId>,
    /// The control plane it is enrolled with.
    pub api_url: Option<String>,
    /// Its name of itself.
    pub control_plane: Option<String>,
    /// The owner.
    pub owner: Option<UserId>,
    /// Starts of the program so far; grows for ever (NR10).
    #[serde(default)]
    pub boot: u64,
    /// The owner's pause; it stays until `resume`.
    #[serde(default)]
    pub pause: Option<Pause>,
}

/// Makes the data directory, 0700.
///
/// # Errors
/// It cannot be written; the error carries its exit code.
pub fn prepare(dir: &Path) -> Result<()> {
    let refused = |error: std::io::Error| {
        let message = format!(
            "The data directory {} cannot be written; choose another with --data-dir.",
            dir.display()
        );
        ExitError::caused(exit::DIR_UNWRITABLE, message, error)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(refused)?;
    let probe = dir.join(".writable");
    File::create(&probe).map_err(refused)?;
    std::fs::remove_file(&probe).map_err(refused)?;
    Ok(())
}

/// The identity of this data directory, made when there is none.
///
/// # Errors
/// The key file is damaged or the directory cannot be written.
pub fn load_or_create(dir: &Path) -> Result<Identity> {
    prepare(dir)?;
    match load(dir)? {
        Some(identity) => Ok(identity),
        None => {
            let key = SigningKey::from_bytes(&random::bytes::<32>());
            save(&dir.join(KEY_FILE), STANDARD.encode(key.to_bytes()).as_bytes())?;
            Ok(identity_of(key))
        }
    }
}

/// The identity of this data directory, if it has one.
///
/// # Errors
/// The key file is damaged or cannot be read.
pub fn load(dir: &Path) -> Result<Option<Identity>> {
    let path = dir.join(KEY_FILE);
    let mut text = String::new();
    match File::open(&path) {
        Ok(mut file) => {
            let mode = file.metadata()?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), "the node's key can be read by others; making it private");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            }
            file.read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    }
    let bytes: Option<[u8; 32]> = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.with_context(|| {
        format!(
            "{} holds no key; restore it from a backup, or move it away to begin as a new node",
            path.display()
        )
    })?;
    Ok(Some(identity_of(SigningKey::from_bytes(&bytes))))
}

fn identity_of(key: SigningKey) -> Identity {
    let provision_id = cxmpute_tunnel::provision_id(&key.verifying_key());
    Identity { key, provision_id }
}

/// What is remembered; the default when nothing is.
///
/// # Errors
/// The file is damaged.
pub fn read_state(dir: &Path) -> Result<State> {
    let path = dir.join(STATE_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; remove it", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Remembers.
///
/// # Errors
/// The directory cannot be written.
pub fn write_state(dir: &Path, state: &State) -> Result<()> {
    save(&dir.join(STATE_FILE), &serde_json::to_vec_pretty(state)?)
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(&dir)?.sync_all()
    };
    write().with_context(|| format!("saving {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_identity_and_its_privacy() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        let again = load_or_create(dir.path()).unwrap();
        assert_eq!(first.provision_id, again.provision_id);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(first.provision_id, load_or_create(other.path()).unwrap().provision_id);
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), "garbage").unwrap();
        assert!(load_or_create(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join(KEY_FILE)).unwrap(), "garbage");
    }

    #[test]
    fn state_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_state(dir.path()).unwrap().boot, 0);
        write_state(dir.path(), &State { boot: 7, ..State::default() }).unwrap();
        assert_eq!(read_state(dir.path()).unwrap().boot, 7);
    }
}
