//! Embedding models of the BERT family: loading from a `sentence-transformers` directory, and the computation.

use std::path::Path;

use anyhow::Context as _;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use cxmpute_runtime::CancellationToken;
use cxmpute_tokens::TokenCounter;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::cli::{Cli, NamedPath};
use crate::digest;
use crate::llm::computing_threads;
use crate::slots::Pool;

/// Files that a model directory must hold.
pub const FILES: [&str; 3] = ["model.safetensors", "config.json", "tokenizer.json"];

/// A loaded embedding model.
pub struct Embedder {
    /// The name that requests ask for.
    pub name: String,
    /// SHA-256 of the weights.
    pub digest: String,
    /// Numbers per embedding.
    pub dimensions: usize,
    /// Most tokens of one input, marks included; longer inputs are cut.
    pub limit: usize,
    /// The tokenizer.
    pub counter: TokenCounter,
    /// Where embeddings are computed.
    pub pool: Pool<Inputs>,
}

/// One request.
pub struct Inputs {
    /// The inputs in tokens, marks included.
    pub tokens: Vec<Vec<u32>>,
    /// Where the embeddings go, one per input.
    pub out: oneshot::Sender<Result<Vec<Vec<f32>>, String>>,
}

/// How the vectors of the tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
}

#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

#[derive(Deserialize)]
struct SentenceFile {
    max_seq_length: Option<usize>,
}

impl Embedder {
    /// Loads a model and starts its threads.
    ///
    /// # Errors
    /// When a file of the directory is absent or of an unknown kind.
    pub fn load(
        model: &NamedPath,
        cli: &Cli,
        threads: usize,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let directory = &model.path;
        let config: Config = json(&directory.join("config.json"))?
            .context("config.json is missing from the model directory")?;
        let pooling = match json::<PoolingFile>(&directory.join("1_Pooling").join("config.json"))? {
            Some(file) if file.pooling_mode_cls_token => Pooling::First,
            Some(file) if !file.pooling_mode_mean_tokens => {
                anyhow::bail!("{}: only mean and cls pooling are supported", directory.display())
            }
            _ => Pooling::Mean,
        };
        let sentence: Option<SentenceFile> = json(&directory.join("sentence_bert_config.json"))?;
        let limit = sentence.and_then(|file| file.max_seq_length).unwrap_or(usize::MAX);
        let wanted = cli.context.and_then(|tokens| usize::try_from(tokens).ok()).unwrap_or(usize::MAX);
        let limit = limit.min(config.max_position_embeddings).min(wanted);
        anyhow::ensure!(limit >= 2, "{}: no room for any text", directory.display());
        let counter = TokenCounter::from_tokenizer_json(&directory.join("tokenizer.json"))?;

        let weights = directory.join("model.safetensors");
        let bytes = std::fs::read(&weights).with_context(|| format!("reading {}", weights.display()))?;
        let digest = digest::of_bytes(&bytes);
        let builder = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .with_context(|| format!("loading {}", weights.display()))?;
        let bert = std::sync::Arc::new(
            BertModel::load(builder, &config).with_context(|| format!("loading {}", weights.display()))?,
        );
        let stop = stop.clone();
        let abandoned = |inputs: &Inputs| inputs.out.is_closed();
        let pool = Pool::start("embed", cli.slots.into(), cli.queue.into(), abandoned, move || {
            let (bert, stop, threads) = (bert.clone(), stop.clone(), computing_threads(threads));
            move |inputs: Inputs| {
                let _keep = &threads;
                embed_all(&bert, pooling, inputs, &stop);
            }
        })?;
        Ok(Self { name: model.name.clone(), digest, dimensions: config.hidden_size, limit, counter, pool })
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {}", path.display()))
}

/// One input after the other: without padding, an input has the same embedding in any company.
fn embed_all(bert: &BertModel, pooling: Pooling, inputs: Inputs, stop: &CancellationToken) {
    let Inputs { tokens, out } = inputs;
    let mut vectors = Vec::with_capacity(tokens.len());
    for input in &tokens {
        if out.is_closed() {
            return;
        }
        if stop.is_cancelled() {
            let _ = out.send(Err("the engine is stopping".into()));
            return;
        }
        match embed(bert, pooling, input) {
            Ok(vector) => vectors.push(vector),
            Err(error) => {
                tracing::error!(%error, "an embedding failed");
                let _ = out.send(Err("the computation failed".into()));
                return;
            }
        }
    }
    let _ = out.send(Ok(vectors));
}

fn embed(bert: &BertModel, pooling: Pooling, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let states = bert.forward(&input, &input.zeros_like()?, None)?.squeeze(0)?;
    let pooled = match pooling {
        Pooling::Mean => states.mean(0)?,
        Pooling::First => states.get(0)?,
    };
    let mut vector: Vec<f32> = pooled.to_vec1()?;
    let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt().max(1e-12);
    for part in &mut vector {
        *part /= length;
    }
    Ok(vector)
}
