//! Whether a file that came over the network is one that nodes load (NR34): safetensors, GGUF, ONNX, JSON and texts, with
//! their heads checked within bounds. Nothing that could carry code: no pickles, no archives.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Longest head of a safetensors file; the format's own limit.
const SAFETENSORS_HEAD_LIMIT_BYTES: u64 = 100_000_000;
/// Most tensors or fields of a GGUF file; the largest models have some thousands.
const GGUF_ENTRIES_LIMIT: u64 = 1 << 20;
/// Largest JSON file or text: tokenizers of large vocabularies have some 30 MB.
const TEXT_LIMIT_BYTES: u64 = 256 << 20;
/// Fields of a message of ONNX that are looked at.
const ONNX_FIELDS_LIMIT: usize = 64;

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Its name ends in nothing that is known.
    #[error("`{0}` is neither safetensors, GGUF, ONNX, JSON nor a text of a tokenizer")]
    Unknown(String),
    /// Its content is not what its name says.
    #[error("it is not the {0} file that its name says: {1}")]
    Content(&'static str, String),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(String),
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Gguf,
    Onnx,
    Json,
    Text,
    Sentencepiece,
}

/// Whether a file of this name may be fetched at all.
///
/// # Errors
/// Its name ends in nothing that nodes load.
pub fn check_name(name: &str) -> Result<(), FormatError> {
    format(name).map(drop)
}

fn format(name: &str) -> Result<Format, FormatError> {
    let last = name.rsplit('/').next().unwrap_or_default();
    let ending = last.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        Some("safetensors") => Ok(Format::Safetensors),
        Some("gguf") => Ok(Format::Gguf),
        Some("onnx") => Ok(Format::Onnx),
        Some("json") => Ok(Format::Json),
        Some("txt" | "jinja" | "md" | "yaml") => Ok(Format::Text),
        Some("model") => Ok(Format::Sentencepiece),
        _ => Err(FormatError::Unknown(last.to_owned())),
    }
}

/// Checks the content of a file by the ending of its name.
///
/// # Errors
/// It is not what it should be.
pub fn check(name: &str, file: &mut File) -> Result<(), FormatError> {
    let read = |error: io::Error| FormatError::Read(error.to_string());
    let size = file.metadata().map_err(read)?.len();
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let mut start = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut start).map_err(read)?;
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let (called, found) = match format(name)? {
        Format::Safetensors => ("safetensors", safetensors(file, size)),
        Format::Gguf => ("GGUF", gguf(&start, size)),
        Format::Onnx => ("ONNX", onnx(&start, size)),
        Format::Json => ("JSON", json(file, size)),
        Format::Text => ("text", text(file, size)),
        Format::Sentencepiece => ("tokenizer", sentencepiece(&start)),
    };
    found.map_err(|why| FormatError::Content(called, why))
}

fn safetensors(file: &mut File, size: u64) -> Result<(), String> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "it is shorter than its head".to_owned())?;
    let length = u64::from_le_bytes(length);
    if length > SAFETENSORS_HEAD_LIMIT_BYTES || length > size.saturating_sub(8) {
        return Err(format!("its head says {length} bytes"));
    }
    let data = size - 8 - length;
    let head: serde_json::Map<String, serde_json::Value> =
        serde_json::from_reader(io::BufReader::new(file.take(length)))
            .map_err(|error| format!("its head is no JSON: {error}"))?;
    for (name, tensor) in head.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = tensor["data_offsets"]
            .as_array()
            .and_then(|at| Some((at.first()?.as_u64()?, at.get(1)?.as_u64()?)));
        match offsets {
            Some((begin, end)) if begin <= end && end <= data => {}
            _ => return Err(format!("the tensor {name:?} lies outside")),
        }
    }
    Ok(())
}

fn gguf(start: &[u8], size: u64) -> Result<(), String> {
    if !start.starts_with(b"GGUF") || start.len() < 24 {
        return Err("its first bytes are not those of GGUF".into());
    }
    let number = |at: usize| u64::from_le_bytes(start[at..at + 8].try_into().unwrap_or_default());
    let version = u32::from_le_bytes(start[4..8].try_into().unwrap_or_default());
    let (tensors, fields) = (number(8), number(16));
    let most = GGUF_ENTRIES_LIMIT.min(size / 8);
    if !(2..=3).contains(&version) || tensors > most || fields > most {
        return Err(format!("version {version}, {tensors} tensors, {fields} fields"));
    }
    Ok(())
}

/// The first fields of the outermost message: known numbers, lengths within the file.
fn onnx(start: &[u8], size: u64) -> Result<(), String> {
    let mut at = 0_usize;
    let mut graph = false;
    for _ in 0..ONNX_FIELDS_LIMIT {
        let Some((key, next)) = varint(start, at) else { break };
        let (field, kind) = (key >> 3, key & 7);
        // ModelProto has the fields 1 to 25.
        if field == 0 || field > 25 {
            return Err(format!("it begins with the field {field}"));
        }
        at = match kind {
            0 => match varint(start, next) {
                Some((_, next)) => next,
                None => break,
            },
            2 => {
                let Some((length, next)) = varint(start, next) else { break };
                if (next as u64).saturating_add(length) > size {
                    return Err("a part of it ends behind its end".into());
                }
                graph |= field == 7;
                match usize::try_from(length).ok().and_then(|length| next.checked_add(length)) {
                    Some(end) => end,
                    None => break,
                }
            }
            _ => return Err(format!("it begins with a field of kind {kind}")),
        };
        if graph || at >= start.len() {
            break;
        }
    }
    if at == 0 { Err("it is empty".into()) } else { Ok(()) }
}

fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

fn json(file: &mut File, size: u64) -> Result<(), String> {
    if size > TEXT_LIMIT_BYTES {
        return Err(format!("it has {size} bytes"));
    }
    let reader = io::BufReader::new(file);
    serde_json::from_reader::<_, serde::de::IgnoredAny>(reader).map(drop).map_err(|error| error.to_string())
}

fn text(file: &mut File, size: u64) -> Result<(), String> {
    if size > TEXT_LIMIT_BYTES {
        return Err(format!("it has {size} bytes"));
    }
    let mut all = String::new();
    file.read_to_string(&mut all).map_err(|error| error.to_string())?;
    if all.contains('\0') { Err("it has zero bytes".into()) } else { Ok(()) }
}

/// A model of sentencepiece is a protocol buffer whose first field, 1, is a list of pieces.
fn sentencepiece(start: &[u8]) -> Result<(), String> {
    if start.first() == Some(&0x0a) {
        Ok(())
    } else {
        Err("its first bytes are not those of a vocabulary".into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn judge(name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(name, &mut file)
    }

    fn tensors(head: &str, data: usize) -> Vec<u8> {
        let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
        bytes.extend(head.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    }

    #[test]
    fn what_engines_load_passes() {
        let head = r#"{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        assert_eq!(judge("a/model.safetensors", &tensors(head, 4)), Ok(()));
        let mut gguf = b"GGUF".to_vec();
        gguf.extend(3_u32.to_le_bytes());
        gguf.extend(2_u64.to_le_bytes());
        gguf.extend(5_u64.to_le_bytes());
        gguf.extend([0; 100]);
        assert_eq!(judge("m.GGUF", &gguf), Ok(()));
        // ir_version 8, producer "x", graph of three bytes.
        assert_eq!(judge("m.onnx", &[0x08, 8, 0x12, 1, b'x', 0x3a, 3, 1, 2, 3]), Ok(()));
        assert_eq!(judge("tokenizer.json", b"{\"a\": [1, 2]}"), Ok(()));
        assert_eq!(judge("merges.txt", "a b\nü".as_bytes()), Ok(()));
        assert_eq!(judge("tokenizer.model", &[0x0a, 1, 0]), Ok(()));
    }

    #[test]
    fn what_could_carry_code_or_lies_is_refused() {
        for name in
            ["pytorch_model.bin", "model.pt", "model.pkl", "m.ckpt", "model.py", "model", "m.zip", "m.so"]
        {
            assert!(matches!(judge(name, b"x"), Err(FormatError::Unknown(_))), "{name}");
            assert!(check_name(name).is_err());
        }
        let pickle = [0x80, 0x02, b'}', b'q', 0, b'.', 0, 0, 0, 0];
        let outside = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}"#;
        let mut huge = b"GGUF".to_vec();
        huge.extend(3_u32.to_le_bytes());
        huge.extend(u64::MAX.to_le_bytes());
        huge.extend(0_u64.to_le_bytes());
        for (name, bytes) in [
            ("m.safetensors", pickle.to_vec()),
            ("m.safetensors", tensors(outside, 4)),
            ("m.safetensors", (u64::MAX).to_le_bytes().to_vec()),
            ("m.safetensors", tensors("[1]", 0)),
            ("m.gguf", b"PK\x03\x04 an archive, not a model at all".to_vec()),
            ("m.gguf", huge),
            ("m.onnx", pickle.to_vec()),
            ("m.onnx", b"PK\x03\x04".to_vec()),
            ("m.onnx", Vec::new()),
            ("m.onnx", vec![0x3a, 100, 1]),
            ("m.json", b"{".to_vec()),
            ("m.txt", vec![0xff, 0xfe]),
            ("m.model", pickle.to_vec()),
        ] {
            assert!(matches!(judge(name, &bytes), Err(FormatError::Content(..))), "{name} {bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_check_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            for name in ["a.safetensors", "a.gguf", "a.onnx", "a.json", "a.txt", "a.model"] {
                let _ = judge(name, &bytes);
            }
        }
    }
}
