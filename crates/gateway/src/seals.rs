//! The seals of the catalogue (NR31, SR18): the operator's signatures, made with a key that is not on this machine, which the
//! plan hands on to nodes. A gateway whose catalogue does not fit its seals does not start.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_market::catalogue::{Catalogue, ModelEntry};
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_wire::ServiceId;
use cxmpute_wire::control::{Seal, SealedFile, sealed_text};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::config::CatalogueConfig;

/// All seals of one version of a catalogue, as they stand in the file `catalogue.seals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealBook {
    /// Version of the catalogue; higher with every change of pinned files.
    pub version: u64,
    /// Ed25519 public key in base64.
    pub key: String,
    /// A signature per service with pinned files, in base64.
    pub signatures: BTreeMap<ServiceId, String>,
}

impl SealBook {
    /// Seals every entry with pinned files.
    #[must_use]
    pub fn sign(catalogue: &Catalogue, key: &SigningKey, version: u64) -> Self {
        let sealed = catalogue.entries().iter().filter(|entry| !entry.files.is_empty());
        let signature =
            |entry: &ModelEntry| STANDARD.encode(key.sign(text(entry, version).as_bytes()).to_bytes());
        Self {
            version,
            key: STANDARD.encode(key.verifying_key().as_bytes()),
            signatures: sealed.map(|entry| (entry.service.clone(), signature(entry))).collect(),
        }
    }

    /// Reads the file that the configuration names, and compares it with the catalogue.
    ///
    /// # Errors
    /// It cannot be read, or an entry with pinned files is not sealed as it stands.
    pub fn load(config: &CatalogueConfig, catalogue: &Catalogue) -> Result<Option<Self>, ExitError> {
        let Some(path) = &config.seals else { return Ok(None) };
        let refused = |why: String| {
            let message = format!(
                "The seals {} (catalogue.seals) do not fit the catalogue: {why}. Seal it again where the key is, with: \
                 cxmpute catalogue sign --key-file KEY",
                path.display()
            );
            ExitError::new(exit::CONFIG, message)
        };
        let text = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        let book: Self = serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
        book.check(catalogue).map_err(refused)?;
        Ok(Some(book))
    }

    fn check(&self, catalogue: &Catalogue) -> Result<(), String> {
        let bytes = |text: &str| STANDARD.decode(text).ok();
        let key = bytes(&self.key).and_then(|key| <[u8; 32]>::try_from(key).ok());
        let key =
            key.and_then(|key| VerifyingKey::from_bytes(&key).ok()).ok_or("its key is no Ed25519 key")?;
        for entry in catalogue.entries().iter().filter(|entry| !entry.files.is_empty()) {
            let signature = self.signatures.get(&entry.service).and_then(|text| bytes(text));
            let signature = signature.and_then(|bytes| <[u8; 64]>::try_from(bytes).ok());
            let signature = signature.ok_or_else(|| format!("`{}` is not sealed", entry.id))?;
            key.verify_strict(text(entry, self.version).as_bytes(), &Signature::from_bytes(&signature))
                .map_err(|_| format!("the files of `{}` are not those that were sealed", entry.id))?;
        }
        Ok(())
    }

    /// The seal of one service.
    #[must_use]
    pub fn of(&self, service: &ServiceId) -> Option<Seal> {
        let signature = self.signatures.get(service)?.clone();
        Some(Seal { version: self.version, key: self.key.clone(), signature })
    }
}

fn text(entry: &ModelEntry, version: u64) -> String {
    let files: Vec<SealedFile<'_>> = entry
        .files
        .iter()
        .map(|file| SealedFile {
            role: &file.role,
            name: &file.name,
            sha256: &file.sha256,
            size: file.size.0,
        })
        .collect();
    sealed_text(version, &entry.service, &files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_fit_the_catalogue_that_they_were_made_for() {
        let catalogue = Catalogue::shipped().unwrap();
        let key = SigningKey::from_bytes(&[7; 32]);
        let book = SealBook::sign(&catalogue, &key, 3);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seals.json");
        std::fs::write(&path, serde_json::to_vec(&book).unwrap()).unwrap();
        let config = CatalogueConfig { seals: Some(path.clone()), ..CatalogueConfig::default() };
        assert_eq!(SealBook::load(&config, &catalogue).unwrap(), Some(book.clone()));
        let tiny = &catalogue.resolve("cxm-tiny").unwrap().service;
        assert_eq!(book.of(tiny).unwrap().version, 3);
        assert_eq!(book.of(&"llm:other".parse().unwrap()), None);
        let raised = SealBook { version: 4, ..book.clone() };
        assert!(raised.check(&catalogue).unwrap_err().contains("not those that were sealed"));
        let mut fewer = book.clone();
        fewer.signatures.remove(tiny);
        assert!(fewer.check(&catalogue).unwrap_err().contains("`cxm-tiny` is not sealed"));
        std::fs::write(&path, "{").unwrap();
        assert!(SealBook::load(&config, &catalogue).unwrap_err().to_string().contains("catalogue.seals"));
        assert_eq!(SealBook::load(&CatalogueConfig::default(), &catalogue).unwrap(), None);
    }
}
