//! The seal of a catalogue entry: the operator's signature over the files of one service and the version of the catalogue
//! (NR31). Both sides print the same text; here is that text, and nothing that signs.

use serde::{Deserialize, Serialize};

use super::DesiredFile;
use crate::ServiceId;

/// A signature over [`sealed_text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Version of the catalogue; a node refuses a lower one than it has seen.
    pub version: u64,
    /// The operator's Ed25519 public key in base64.
    pub key: String,
    /// The signature in base64.
    pub signature: String,
}

/// What is signed: a purpose, the version, the service, and its files in the order of their names. No line can be taken for
/// another: none of the parts has a line break, and what may have spaces stands last.
#[must_use]
pub fn sealed_text(version: u64, service: &ServiceId, files: &[SealedFile<'_>]) -> String {
    let mut lines: Vec<String> = files
        .iter()
        .map(|file| {
            format!("file {} {} {} {:?}", file.sha256, file.size, file.role.len(), [file.role, file.name])
        })
        .collect();
    lines.sort_unstable();
    format!("cxmpute catalogue 1\nversion {version}\nservice {:?}\n{}\n", service.as_str(), lines.join("\n"))
}

/// What of a file is signed.
#[derive(Debug, Clone, Copy)]
pub struct SealedFile<'a> {
    /// `model`, `tokenizer`, …
    pub role: &'a str,
    /// Path below the model directory.
    pub name: &'a str,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: &'a str,
    /// Bytes.
    pub size: u64,
}

impl<'a> SealedFile<'a> {
    /// Of a planned file; `None` where nothing is pinned.
    #[must_use]
    pub fn of(file: &'a DesiredFile) -> Option<Self> {
        Some(Self { role: &file.role, name: &file.name, sha256: file.sha256.as_deref()?, size: file.size?.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_signed_and_the_order_is_not() {
        let file = |name, sha256, size| SealedFile { role: "model", name, sha256, size };
        let (a, b) = (file("a", "1", 1), file("b", "2", 2));
        let service: ServiceId = "llm:m".parse().unwrap();
        let text = sealed_text(3, &service, &[a, b]);
        assert_eq!(
            text,
            "cxmpute catalogue 1\nversion 3\nservice \"llm:m\"\nfile 1 1 5 [\"model\", \"a\"]\nfile 2 2 5 [\"model\", \"b\"]\n"
        );
        assert_eq!(text, sealed_text(3, &service, &[b, a]));
        let others = [
            sealed_text(4, &service, &[a, b]),
            sealed_text(3, &"llm:n".parse().unwrap(), &[a, b]),
            sealed_text(3, &service, &[a]),
            sealed_text(3, &service, &[a, file("b", "2", 3)]),
            sealed_text(3, &service, &[a, file("b", "3", 2)]),
            sealed_text(3, &service, &[a, file("b\nfile", "2", 2)]),
            sealed_text(3, &service, &[a, SealedFile { role: "config", ..b }]),
        ];
        assert!(others.iter().all(|other| *other != text));
    }
}
