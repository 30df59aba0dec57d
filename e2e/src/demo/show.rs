//! What a person sees, and the one JSON object a program reads.

use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Where lines go: standard output for people, standard error beside `--json`.
#[derive(Debug)]
pub(super) struct Show {
    json: bool,
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people. A terminal that is gone is no reason to stop.
    pub(super) fn line(&self, text: &str) {
        let _ = if self.json {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    /// The one object.
    pub(super) fn result(&self, object: &Value) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{object}")?;
        Ok(out.flush()?)
    }
}

/// SHA-256 of a file in hexadecimal.
pub(super) fn hash(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(data_encoding::HEXLOWER.encode(&digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}
