//! `cxmpute catalogue sign`: seals the catalogue, on a machine that the gateway is not.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use cxmpute_market::catalogue::Catalogue;
use cxmpute_runtime::{Clock, random};
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::super::Output;
use crate::seals::SealBook;

/// Flags of `catalogue sign`.
#[derive(Args)]
pub struct SignArgs {
    /// File with the key, base64; `--new-key` makes it.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Make the key file; an existing one is never overwritten.
    #[arg(long)]
    new_key: bool,
    /// Version of the catalogue, higher than every one before; the seconds since 1970 when absent.
    #[arg(long, value_name = "N")]
    catalogue_version: Option<u64>,
    /// Where the seals go, for the gateway's `catalogue.seals`.
    #[arg(long, value_name = "FILE", default_value = "catalogue-seals.json")]
    out: PathBuf,
}

/// Writes the seals.
pub(super) fn sign(catalogue: &Catalogue, arguments: &SignArgs, output: &Output) -> Result<()> {
    let path = &arguments.key_file;
    if arguments.new_key {
        let secret = STANDARD.encode(random::bytes::<32>());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("The key file {} cannot be made", path.display()))?;
        file.write_all(secret.as_bytes())?;
        file.sync_all()?;
    }
    let key = read_key(path)?;
    let now = Clock::system().now().seconds();
    let version = arguments.catalogue_version.unwrap_or_else(|| u64::try_from(now).unwrap_or(0));
    let book = SealBook::sign(catalogue, &key, version);
    let text = serde_json::to_vec_pretty(&book)?;
    std::fs::write(&arguments.out, text)
        .with_context(|| format!("{} cannot be written", arguments.out.display()))?;
    let (count, out) = (book.signatures.len(), arguments.out.display().to_string());
    output.show(
        &json!({"version": version, "key": book.key, "entries": count, "file": out}),
        format!(
            "{count} entries with pinned files are sealed as version {version} in {out}.\nPublic key {}",
            book.key
        ),
    )
}

fn read_key(path: &Path) -> Result<SigningKey> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("The key {} cannot be read; make one with --new-key", path.display()))?;
    let bytes: Option<[u8; 32]> = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    ensure!(bytes.is_some(), "{} holds no key.", path.display());
    Ok(SigningKey::from_bytes(&bytes.unwrap_or_default()))
}
