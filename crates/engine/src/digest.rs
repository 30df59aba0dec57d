//! SHA-256 of model files: which weights answer is part of what a provider sells.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(data_encoding::HEXLOWER.encode(&hash.finalize())),
            size => hash.update(&block[..size]),
        }
    }
}

/// The SHA-256 of bytes, in lower-case hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}
