//! The pepper of the key hashes: 32 random bytes in a file of its own, so that the database alone cannot be used to
//! check guessed keys.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Secret, random};
use sha2::{Digest, Sha256};

/// The pepper.
#[derive(Clone)]
pub struct Pepper(Arc<Secret<[u8; 32]>>);

impl Pepper {
    /// Reads the pepper, or makes it at the first start (mode 0600, created exclusively, durable before use).
    pub fn load_or_create(file: &Path) -> Result<Self, ExitError> {
        let unusable = |error: std::io::Error| {
            ExitError::caused(
                exit::DIR_UNWRITABLE,
                format!(
                    "The pepper file {} cannot be read or made; check that this user may write there.",
                    file.display()
                ),
                error,
            )
        };
        let fresh = random::bytes::<32>();
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
        match made {
            Ok(mut handle) => {
                let text = data_encoding::HEXLOWER.encode(&fresh);
                handle.write_all(text.as_bytes()).and_then(|()| handle.sync_all()).map_err(unusable)?;
                if let Some(directory) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    std::fs::File::open(directory).and_then(|parent| parent.sync_all()).map_err(unusable)?;
                }
                Ok(Self(Arc::new(Secret::new(fresh))))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::read(file),
            Err(error) => Err(unusable(error)),
        }
    }

    fn read(file: &Path) -> Result<Self, ExitError> {
        let mut text = String::new();
        let read = std::fs::File::open(file).and_then(|handle| handle.take(256).read_to_string(&mut text));
        if let Err(error) = read {
            return Err(ExitError::caused(
                exit::DIR_UNWRITABLE,
                format!("The pepper file {} cannot be read; check its owner and mode.", file.display()),
                error,
            ));
        }
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
        match bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            Some(bytes) => Ok(Self(Arc::new(Secret::new(bytes)))),
            None => Err(ExitError::new(
                exit::CONFIG,
                format!(
                    "The pepper file {} does not hold 64 hexadecimal digits; restore it from the backup, every key depends on it.",
                    file.display()
                ),
            )),
        }
    }

    /// A pepper for tests.
    #[must_use]
    pub fn fixed(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Secret::new(bytes)))
    }

    /// SHA-256 over pepper and text. Fast on purpose: the secrets hashed here have 256 bits.
    #[must_use]
    pub fn hash(&self, text: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.0.expose());
        hasher.update(text.as_bytes());
        hasher.finalize().into()
    }
}

/// Equality of hashes in constant time.
#[must_use]
pub fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_pepper_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pepper");
        let first = Pepper::load_or_create(&file).unwrap();
        let again = Pepper::load_or_create(&file).unwrap();
        assert_eq!(first.hash("a"), again.hash("a"));
        assert_ne!(first.hash("a"), Pepper::fixed([0; 32]).hash("a"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_pepper_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pepper");
        std::fs::write(&file, "zz").unwrap();
        let error = Pepper::load_or_create(&file).err().unwrap();
        assert!(error.to_string().contains("pepper") && error.code() == exit::CONFIG, "{error}");
    }

    #[test]
    fn comparison_sees_every_byte() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"a"));
    }
}
