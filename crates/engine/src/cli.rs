//! The command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Parser;

/// Models up to this size answer faster on one thread than on several: the work per token is smaller than the cost
/// of handing it around, and slots would wait for each other.
const ONE_THREAD_BYTES: u64 = 256 << 20;

/// The built-in engine of Cxmpute: chat models from GGUF files (llama, qwen2, qwen3, phi3,
/// gemma, gemma2, gemma3) and embeddings of the BERT
/// family, behind the OpenAI API on a unix socket or a loopback port.
#[derive(Debug, Clone, Parser)]
#[command(name = "cxmpute-engine", version)]
pub struct Cli {
    /// Where to listen: unix:PATH, or 127.0.0.1:PORT with --secret-file.
    #[arg(long, value_name = "unix:PATH|127.0.0.1:PORT")]
    pub listen: Listen,
    /// A chat model.
    #[arg(long, value_name = "NAME=FILE.gguf", required_unless_present = "embeddings")]
    pub model: Option<NamedPath>,
    /// An embedding model: a directory with model.safetensors, config.json and tokenizer.json.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    pub embeddings: Option<NamedPath>,
    /// Answers that are generated at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: u16,
    /// Requests that may wait for a slot; more are refused with 429.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub queue: u16,
    /// Most tokens of prompt and answer together [default: what the model was made for, less if the keys and values
    /// of one answer would take more than a GiB].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(8..))]
    pub context: Option<u32>,
    /// Memory for the beginnings of earlier prompts and answers, which a prompt that begins the same is not read
    /// again for; 0 keeps none.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    pub prefix_cache: u32,
    /// Most tokens per second of each slot [default: as fast as it goes].
    #[arg(long, value_name = "TOKENS_PER_S", value_parser = pace)]
    pub pace: Option<f64>,
    /// Threads of one computation [default: 1 for models under 256 MiB, else one per core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// File with the secret that every request must carry in the header x-cxmpute-engine-secret.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// End when standard input is closed, so that the engine never outlives the program that holds the other end.
    #[arg(long)]
    pub while_stdin_open: bool,
}

impl Cli {
    /// The thread count of one computation, from the flag or the size of the model.
    pub fn thread_count(&self, cores: usize) -> usize {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let given = self.threads.map(usize::from);
        given.unwrap_or_else(|| match &self.model {
            Some(model) if size(&model.path) >= ONE_THREAD_BYTES => cores,
            _ => 1,
        })
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket, readable by its owner only.
    Unix(PathBuf),
    /// A loopback port.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => Err("an engine listens on loopback only: 127.0.0.1:PORT or unix:PATH".into()),
            Err(_) => Err("expected unix:PATH or 127.0.0.1:PORT".into()),
        }
    }
}

/// `NAME=PATH`; the name may contain colons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPath {
    /// The name that requests ask for.
    pub name: String,
    /// File or directory.
    pub path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.into(), path: path.into() })
            }
            _ => Err("expected NAME=PATH".into()),
        }
    }
}

fn pace(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(pace) if pace.is_finite() && pace >= 0.01 => Ok(pace),
        _ => Err("expected tokens per second, at least 0.01".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_loopback_are_listened_on() {
        assert_eq!("unix:/a:b".parse(), Ok(Listen::Unix("/a:b".into())));
        assert!(matches!("127.0.0.1:0".parse(), Ok(Listen::Tcp(_))));
        assert!(matches!("[::1]:80".parse(), Ok(Listen::Tcp(_))));
        for bad in ["unix:", "0.0.0.0:80", "192.168.1.1:80", "80", "localhost"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_may_hold_colons_and_paths_equal_signs() {
        let named: NamedPath = "llama3.2:1b=/m/a=b.gguf".parse().unwrap();
        assert_eq!((named.name.as_str(), named.path.to_str()), ("llama3.2:1b", Some("/m/a=b.gguf")));
        assert!("=x".parse::<NamedPath>().is_err() && "x=".parse::<NamedPath>().is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["e", "--listen", "unix:/s"]).is_err());
        assert!(Cli::try_parse_from(["e", "--listen", "unix:/s", "--model", "m=f", "--pace", "0"]).is_err());
    }
}
