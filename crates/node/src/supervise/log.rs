//! The log of one engine: this start and the one before, each capped.

use std::path::PathBuf;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};

/// Size of one log.
const LOG_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// Longest line that is kept whole.
const LINE_LIMIT_BYTES: usize = 4096;
/// Most bytes of a line without an end that are held in memory.
const BUFFER_BYTES: usize = 64 * 1024;

/// The name of a service's log without its ending, of no other service: `llm-llama3.2%3A1b`.
pub(super) fn name(service: &str) -> String {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b".-_".contains(c);
    let mut name = String::with_capacity(service.len());
    let mut kind = true;
    for byte in service.bytes() {
        match byte {
            // Kinds have neither, so that the first one is the end of the kind.
            b':' if kind => {
                kind = false;
                name.push('-');
            }
            byte if plain(&byte) => name.push(char::from(byte)),
            byte => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name
}

/// Copies an engine's output into its log until the output ends. The log of the start before moves to `.previous.log`.
pub async fn write(output: impl AsyncRead + Unpin, path: PathBuf) {
    let _ = tokio::fs::rename(&path, path.with_extension("previous.log")).await;
    let mut file = tokio::fs::File::create(&path).await.ok();
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, output);
    let mut written = 0usize;
    let mut column = 0usize;
    // Past the limit, or without a file, the output is still read, so that the engine never blocks on it.
    loop {
        let block = match reader.fill_buf().await {
            Ok([]) | Err(_) => return,
            Ok(block) => block,
        };
        let length = block.len();
        if written < LOG_LIMIT_BYTES
            && let Some(file) = &mut file
        {
            let mut kept = keep(block, &mut column);
            written += kept.len();
            if written >= LOG_LIMIT_BYTES {
                kept.extend_from_slice(b"\n(the log is full)\n");
            }
            let _ = file.write_all(&kept).await;
            let _ = file.flush().await;
        }
        reader.consume(length);
    }
}

/// The bytes of a block without the far ends of very long lines.
fn keep(block: &[u8], column: &mut usize) -> Vec<u8> {
    let mut kept = Vec::with_capacity(block.len());
    for byte in block {
        if *byte == b'\n' {
            *column = 0;
            kept.push(b'\n');
            continue;
        }
        *column += 1;
        if *column <= LINE_LIMIT_BYTES {
            kept.push(*byte);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_log_of_its_own() {
        let services = ["llm:a", "llm:a.b", "llm:a-b", "llm:a:b", "llm:a/b", "llm:a%3Ab", "tts:a", "scrape"];
        let names: std::collections::BTreeSet<String> = services.map(name).into();
        assert_eq!(names.len(), services.len(), "{names:?}");
        assert!(names.contains("llm-a") && names.iter().all(|name| !name.contains('/')), "{names:?}");
    }

    #[tokio::test]
    async fn a_log_is_capped_and_the_one_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("llm-a.log");
        write(&b"first\n"[..], path.clone()).await;
        let long = "x".repeat(LINE_LIMIT_BYTES * 2);
        let lines = format!("{long}\nnext\n").repeat(1200);
        write(lines.as_bytes(), path.clone()).await;
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        assert!((LOG_LIMIT_BYTES..LOG_LIMIT_BYTES + BUFFER_BYTES + 100).contains(&size), "{size}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("(the log is full)\n") && text.contains("\nnext\n"));
        assert!(text.lines().all(|line| line.len() <= LINE_LIMIT_BYTES));
        assert_eq!(std::fs::read_to_string(dir.path().join("llm-a.previous.log")).unwrap(), "first\n");
    }
}
