//! Whose catalogue this node follows: the first key that sealed a plan of its control plane, or the one that the owner
//! names, and the highest version seen. A plan without that seal, or of an older version, starts nothing (NR31).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_wire::control::{DesiredService, Seal, SealedFile, sealed_text};
use ed25519_dalek::{Signature, VerifyingKey};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::shelf::write_durably;

/// What is remembered between runs, in the node's data directory.
#[derive(Debug)]
pub struct Seals {
    file: PathBuf,
    /// The control plane whose plans are judged.
    api: String,
    known: Mutex<BTreeMap<String, Known>>,
}

/// What is known of one control plane's catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Known {
    key: String,
    version: u64,
}

/// Why a plan is not followed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It has no seal, and others had one.
    #[error("the plan is not sealed, although the catalogue of this network is")]
    Missing,
    /// Another key sealed it.
    #[error("the plan is sealed with the key {found}, this node follows {known}")]
    OtherKey {
        /// The plan's.
        found: String,
        /// Ours.
        known: String,
    },
    /// The signature is wrong.
    #[error("the seal of the plan does not fit its files")]
    Wrong,
    /// Something older than before.
    #[error("the plan is of version {found} of the catalogue, this node has seen {seen}")]
    Old {
        /// The plan's.
        found: u64,
        /// The highest.
        seen: u64,
    },
    /// What was seen cannot be remembered.
    #[error("what was seen of the catalogue cannot be written down: {0}")]
    Unwritten(#[from] io::Error),
}

impl Seals {
    /// What is remembered of the control plane `api`; `pinned` is the key that the owner names, if any.
    ///
    /// # Errors
    /// What is remembered cannot be read: it is not guessed, because an older catalogue could pass then.
    pub fn open(data_dir: &Path, api: &str, pinned: Option<&str>) -> io::Result<Self> {
        let file = data_dir.join("catalogue.json");
        let mut known: BTreeMap<String, Known> = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        if let Some(key) = pinned.map(str::trim).filter(|key| !key.is_empty()) {
            let same = known.get(api).filter(|known| known.key == key).map_or(0, |known| known.version);
            known.insert(api.to_owned(), Known { key: key.to_owned(), version: same });
        }
        Ok(Self { file, api: api.to_owned(), known: Mutex::new(known) })
    }

    /// Whether the files of a planned service are those of the catalogue that this node follows.
    ///
    /// # Errors
    /// They are not, or they are of an older version.
    pub fn check(&self, desired: &DesiredService) -> Result<(), SealError> {
        let mut all = self.known.lock();
        let known = all.get(&self.api);
        let seal = match (&desired.seal, known) {
            (Some(seal), _) => seal,
            // Nobody ever promised more.
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(SealError::Missing),
        };
        if let Some(known) = known.filter(|known| known.key != seal.key) {
            return Err(SealError::OtherKey { found: seal.key.clone(), known: known.key.clone() });
        }
        verify(seal, desired)?;
        let seen = known.map(|known| known.version);
        if let Some(seen) = seen.filter(|seen| seal.version < *seen) {
            return Err(SealError::Old { found: seal.version, seen });
        }
        if seen.is_none_or(|seen| seal.version > seen) {
            let mut next = all.clone();
            next.insert(self.api.clone(), Known { key: seal.key.clone(), version: seal.version });
            write_durably(&self.file, &serde_json::to_vec_pretty(&next).map_err(io::Error::other)?)?;
            if seen.is_none() {
                tracing::info!(
                    key = seal.key,
                    version = seal.version,
                    "this node follows the catalogue of this key from now on"
                );
            }
            *all = next;
        }
        Ok(())
    }
}

fn verify(seal: &Seal, desired: &DesiredService) -> Result<(), SealError> {
    let files: Option<Vec<SealedFile<'_>>> = desired.files.iter().map(SealedFile::of).collect();
    let text = sealed_text(seal.version, &desired.service_id, &files.ok_or(SealError::Wrong)?);
    let bytes = |text: &str| STANDARD.decode(text).ok();
    let key = bytes(&seal.key).and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok()).filter(|key| !key.is_weak());
    let signature = bytes(&seal.signature).and_then(|signature| <[u8; 64]>::try_from(signature).ok());
    let (key, signature) = key.zip(signature).ok_or(SealError::Wrong)?;
    key.verify_strict(text.as_bytes(), &Signature::from_bytes(&signature)).map_err(|_| SealError::Wrong)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::json;

    use super::*;

    fn planned(sum: &str) -> DesiredService {
        let file = json!({"role": "model", "name": "a.gguf", "sha256": sum.repeat(64), "size": 5});
        let text =
            json!({"service_id": "llm:a", "kind": "llm", "model": "a", "engines": [], "files": [file]});
        serde_json::from_value(text).unwrap()
    }

    fn sealed(key: &SigningKey, version: u64, mut desired: DesiredService) -> DesiredService {
        let files: Vec<SealedFile<'_>> = desired.files.iter().flat_map(SealedFile::of).collect();
        let text = sealed_text(version, &desired.service_id, &files);
        let signature = STANDARD.encode(key.sign(text.as_bytes()).to_bytes());
        let key = STANDARD.encode(key.verifying_key().as_bytes());
        desired.seal = Some(Box::new(Seal { version, key, signature }));
        desired
    }

    #[test]
    fn a_node_follows_one_key_forward_and_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = |api: &str| Seals::open(dir.path(), api, None).unwrap();
        let (own, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let seals = open("http://a");
        assert!(seals.check(&planned("1")).is_ok(), "nobody sealed anything yet");
        assert!(seals.check(&sealed(&own, 7, planned("1"))).is_ok());
        assert!(seals.check(&sealed(&own, 8, planned("2"))).is_ok());
        let seals = open("http://a");
        assert!(matches!(seals.check(&planned("1")), Err(SealError::Missing)));
        assert!(matches!(seals.check(&sealed(&other, 9, planned("1"))), Err(SealError::OtherKey { .. })));
        assert!(matches!(
            seals.check(&sealed(&own, 7, planned("1"))),
            Err(SealError::Old { found: 7, seen: 8 })
        ));
        let mut changed = sealed(&own, 9, planned("1"));
        changed.files[0].sha256 = Some("2".repeat(64));
        assert!(matches!(seals.check(&changed), Err(SealError::Wrong)));
        let mut raised = sealed(&own, 8, planned("1"));
        raised.seal.as_mut().unwrap().version = 9;
        assert!(matches!(seals.check(&raised), Err(SealError::Wrong)));
        assert!(seals.check(&sealed(&own, 8, planned("2"))).is_ok(), "the same again is nothing new");
        // Another control plane has a catalogue of its own.
        assert!(open("http://b").check(&sealed(&other, 1, planned("1"))).is_ok());
        // The owner may say who is right from the beginning.
        let key = STANDARD.encode(other.verifying_key().as_bytes());
        let seals = Seals::open(dir.path(), "http://c", Some(&key)).unwrap();
        assert!(matches!(seals.check(&planned("1")), Err(SealError::Missing)));
        assert!(seals.check(&sealed(&other, 1, planned("1"))).is_ok());
        std::fs::write(dir.path().join("catalogue.json"), "{").unwrap();
        assert!(Seals::open(dir.path(), "http://a", None).is_err());
    }
}
