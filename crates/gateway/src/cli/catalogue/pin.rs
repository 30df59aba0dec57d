//! `cxmpute catalogue pin`: the lines that pin the files of a model, read from the files themselves.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::Output;

/// Flags of `catalogue pin`.
#[derive(Args)]
pub struct PinArgs {
    /// Id of the entry.
    model: String,
    /// Its files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder that names are relative to; else only the last part of each path counts.
    #[arg(long, value_name = "DIR")]
    below: Option<PathBuf>,
}

struct Pinned {
    role: &'static str,
    name: String,
    sha256: String,
    size: u64,
}

/// Prints them.
pub(super) fn pin(arguments: &PinArgs, output: &Output) -> Result<()> {
    let folder: String = arguments
        .model
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
        .collect();
    let mut pinned = Vec::new();
    for path in &arguments.files {
        pinned.push(read(path, &folder, arguments.below.as_deref())?);
    }
    if !pinned.iter().any(|file| file.role == "model") {
        bail!("None of these files is a model: one that ends in .gguf, .safetensors or .onnx is.");
    }
    let total: u64 = pinned.iter().map(|file| file.size).sum();
    let files: Vec<_> = pinned
        .iter()
        .map(|file| json!({"role": file.role, "name": file.name, "sha256": file.sha256, "size": file.size}))
        .collect();
    output.show(
        &json!({"model": arguments.model, "disk_mb": total.div_ceil(1 << 20), "file": files}),
        lines(&pinned, total),
    )
}

/// What is pasted.
fn lines(pinned: &[Pinned], total: u64) -> String {
    let mut text = format!(
        "# Into the entry; the lines of its files stand behind all its other keys.\ndisk_mb = {}\n",
        total.div_ceil(1 << 20)
    );
    for file in pinned {
        let string = |text: &str| toml::Value::String(text.to_owned());
        let _ = write!(
            text,
            "\n[[model.file]]\nrole = {}\nname = {}\nsha256 = {}\nsize = {}\n",
            string(file.role),
            string(&file.name),
            string(&file.sha256),
            file.size
        );
    }
    text.trim_end().to_owned()
}

fn read(path: &Path, folder: &str, below: Option<&Path>) -> Result<Pinned> {
    let inside = match below {
        Some(below) => path.strip_prefix(below).with_context(|| {
            format!(
                "{} does not lie below {}; name the folder as the files are named.",
                path.display(),
                below.display()
            )
        })?,
        None => Path::new(path.file_name().unwrap_or_default()),
    };
    let inside = inside.to_str().context("A name of a file is no UTF-8.")?;
    let role = role(inside).with_context(|| {
        format!("Nodes load no file like {inside}: only safetensors, GGUF, ONNX, JSON and texts of tokenizers (NR34).")
    })?;
    let unreadable = || format!("{} cannot be read", path.display());
    let mut file = std::fs::File::open(path).with_context(unreadable)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let got = file.read(&mut buffer).with_context(unreadable)?;
        if got == 0 {
            break;
        }
        hash.update(&buffer[..got]);
        size += got as u64;
    }
    let sha256 = data_encoding::HEXLOWER.encode(&hash.finalize());
    Ok(Pinned { role, name: format!("{folder}/{inside}"), sha256, size })
}

/// What a file is for, by its name.
fn role(name: &str) -> Option<&'static str> {
    let last = name.rsplit('/').next()?.to_ascii_lowercase();
    match last.rsplit_once('.')?.1 {
        "gguf" if last.starts_with("mmproj") => Some("projector"),
        "gguf" | "safetensors" | "onnx" => Some("model"),
        "model" => Some("tokenizer"),
        "json" if name.contains("1_Pooling/") => Some("pooling"),
        "json" if last == "config.json" => Some("config"),
        "json" | "txt" | "jinja"
            if last.starts_with("tokenizer") || last.starts_with("vocab") || last.starts_with("merges") =>
        {
            Some("tokenizer")
        }
        "json" | "txt" | "jinja" => Some("other"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_market::catalogue::Catalogue;

    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let names = ["model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json"];
        let pinned: Vec<Pinned> = names
            .into_iter()
            .map(|name| {
                let path = dir.path().join(name);
                std::fs::write(&path, "abc").unwrap();
                read(&path, "org-m", Some(dir.path())).unwrap()
            })
            .collect();
        let lines = lines(&pinned, 12);
        let entry = "[[model]]\nid = \"org/m\"\nkind = \"embeddings\"\ncontext_length = 8\ndimensions = 3\n\
                     engines = [\"builtin\"]\nhub = { repository = \"org/m\" }\nprice = { version = 1, embedding = 1 }\n";
        let catalogue = Catalogue::parse(&format!("{entry}{lines}\n"), "pasted").unwrap();
        let entry = catalogue.resolve("org/m").unwrap();
        let roles: Vec<&str> = entry.files.iter().map(|file| &*file.role).collect();
        assert_eq!(roles, ["model", "tokenizer", "config", "pooling"]);
        assert_eq!(entry.files[3].name, "org-m/1_Pooling/config.json");
        assert_eq!(entry.files[3].hub.as_deref(), Some("1_Pooling/config.json"));
        assert_eq!(entry.files[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(entry.disk.0, 1 << 20);
        let pickle = dir.path().join("pytorch_model.bin");
        std::fs::write(&pickle, "x").unwrap();
        assert!(read(&pickle, "m", None).map(drop).unwrap_err().to_string().contains("safetensors"));
    }
}
