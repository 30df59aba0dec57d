//! Tensors of a file, checked against the shape before they are read.

use std::io::{Read, Seek};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use candle_core::quantized::{QMatMul, QTensor, gguf_file};
use candle_core::{Device, Module as _, Tensor};
use cxmpute_tokens::gguf::Header;

use super::math::add;
use super::shape::{Architecture, Shape};

/// A matrix as it lies in the file, with what is added to its products. Clones share it.
#[derive(Clone)]
pub struct Matrix {
    tensor: Arc<QTensor>,
    product: QMatMul,
    columns: usize,
    bias: Option<Arc<[f32]>>,
}

impl Matrix {
    /// The rows with these numbers.
    pub fn rows(&self, numbers: &[u32]) -> candle_core::Result<Vec<f32>> {
        self.tensor.embedding(&Tensor::new(numbers, &Device::Cpu)?)?.flatten_all()?.to_vec1()
    }

    /// The product with each row of the input.
    pub fn apply(&self, input: &[f32]) -> candle_core::Result<Vec<f32>> {
        let rows = input.len() / self.columns;
        let input = Tensor::from_slice(input, (rows, self.columns), &Device::Cpu)?;
        let mut out = self.product.forward(&input)?.flatten_all()?.to_vec1()?;
        if let Some(bias) = &self.bias {
            out.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
        }
        Ok(out)
    }
}

/// From the state to queries, keys and values.
pub enum Projections {
    /// A matrix each.
    Apart {
        /// Queries.
        query: Matrix,
        /// Keys.
        key: Matrix,
        /// Values.
        value: Matrix,
    },
    /// One matrix for all three, one below the other.
    Together(Matrix),
}

impl Projections {
    /// Queries, keys and values of each row.
    pub fn apply(&self, input: &[f32], shape: &Shape) -> candle_core::Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        match self {
            Self::Apart { query, key, value } => {
                Ok((query.apply(input)?, key.apply(input)?, value.apply(input)?))
            }
            Self::Together(matrix) => {
                let (queries, keys) = (shape.heads * shape.head, shape.kv_heads * shape.head);
                let all = matrix.apply(input)?;
                let part = |from: usize, to: usize| -> Vec<f32> {
                    all.chunks_exact(queries + 2 * keys).flat_map(|row| &row[from..to]).copied().collect()
                };
                Ok((
                    part(0, queries),
                    part(queries, queries + keys),
                    part(queries + keys, queries + 2 * keys),
                ))
            }
        }
    }
}

/// From the state to the gate and what it lets through.
pub enum Widening {
    /// A matrix each.
    Apart {
        /// The gate.
        gate: Matrix,
        /// What it lets through.
        up: Matrix,
    },
    /// One matrix for both, the gate first.
    Together(Matrix),
}

impl Widening {
    /// Gate and what it lets through, of each row.
    pub fn apply(&self, input: &[f32], width: usize) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        match self {
            Self::Apart { gate, up } => Ok((gate.apply(input)?, up.apply(input)?)),
            Self::Together(matrix) => {
                let all = matrix.apply(input)?;
                let part = |from: usize| -> Vec<f32> {
                    all.chunks_exact(2 * width).flat_map(|row| &row[from..from + width]).copied().collect()
                };
                Ok((part(0), part(width)))
            }
        }
    }
}

/// The weights of one layer.
pub struct Layer {
    /// Before attention.
    pub attention_norm: Vec<f32>,
    /// Queries, keys, values.
    pub projections: Projections,
    /// Of each head of the queries.
    pub query_norm: Option<Vec<f32>>,
    /// Of each head of the keys.
    pub key_norm: Option<Vec<f32>>,
    /// From the heads back to the state.
    pub attention_output: Matrix,
    /// After attention.
    pub attention_post_norm: Option<Vec<f32>>,
    /// Before the feed-forward part.
    pub feed_norm: Vec<f32>,
    /// Into the feed-forward part.
    pub feed_up: Widening,
    /// Out of it.
    pub feed_down: Matrix,
    /// After it.
    pub feed_post_norm: Option<Vec<f32>>,
}

/// A file whose tensors are read one by one.
pub struct Source<'a, R> {
    content: gguf_file::Content,
    reader: &'a mut R,
}

impl<'a, R: Read + Seek> Source<'a, R> {
    /// Reads where the tensors lie.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn open(reader: &'a mut R) -> anyhow::Result<Self> {
        Ok(Self { content: gguf_file::Content::read(reader)?, reader })
    }

    /// The matrix of the tokens.
    ///
    /// # Errors
    /// When it is absent or of another size.
    pub fn embedding(&mut self, shape: &Shape) -> anyhow::Result<Matrix> {
        self.matrix("token_embd", shape.vocabulary, shape.width)
    }

    /// The matrix of the scores; absent when the one of the tokens serves for both.
    ///
    /// # Errors
    /// When it is of another size.
    pub fn output(&mut self, shape: &Shape) -> anyhow::Result<Option<Matrix>> {
        let present = self.has("output.weight");
        present.then(|| self.matrix("output", shape.vocabulary, shape.width)).transpose()
    }

    /// The weights of a layer.
    ///
    /// # Errors
    /// When one is absent or of another size.
    pub fn layer(&mut self, shape: &Shape, number: usize) -> anyhow::Result<Layer> {
        let name = |part: &str| format!("blk.{number}.{part}");
        let (width, inner) = (shape.width, shape.feed_forward);
        let (queries, keys) = (shape.heads * shape.head, shape.kv_heads * shape.head);
        let (projections, feed_up) = if shape.architecture == Architecture::Phi3 {
            let all = self.matrix(&name("attn_qkv"), queries + 2 * keys, width)?;
            (Projections::Together(all), Widening::Together(self.matrix(&name("ffn_up"), 2 * inner, width)?))
        } else {
            let query = self.matrix(&name("attn_q"), queries, width)?;
            let key = self.matrix(&name("attn_k"), keys, width)?;
            let value = self.matrix(&name("attn_v"), keys, width)?;
            let gate = self.matrix(&name("ffn_gate"), inner, width)?;
            let up = self.matrix(&name("ffn_up"), inner, width)?;
            (Projections::Apart { query, key, value }, Widening::Apart { gate, up })
        };
        let per_head = matches!(shape.architecture, Architecture::Qwen3 | Architecture::Gemma3);
        let after = matches!(shape.architecture, Architecture::Gemma2 | Architecture::Gemma3);
        let mut norm = |part: &str, size: usize, wanted: bool| {
            wanted.then(|| self.vector(&name(part), size)).transpose()
        };
        let query_norm = norm("attn_q_norm.weight", shape.head, per_head)?;
        let key_norm = norm("attn_k_norm.weight", shape.head, per_head)?;
        let attention_post_norm = norm("post_attention_norm.weight", width, after)?;
        let feed_post_norm = norm("post_ffw_norm.weight", width, after)?;
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"), width)?,
            projections,
            query_norm,
            key_norm,
            attention_output: self.matrix(&name("attn_output"), width, queries)?,
            attention_post_norm,
            feed_norm: self.vector(&name("ffn_norm.weight"), width)?,
            feed_up,
            feed_down: self.matrix(&name("ffn_down"), width, inner)?,
            feed_post_norm,
        })
    }

    /// What slows the turning of each pair down; there are two lists when a model was stretched after its training,
    /// one for contexts of the first length and one for longer ones.
    ///
    /// # Errors
    /// When they are of another size.
    pub fn rotation_factors(
        &mut self,
        shape: &Shape,
        header: &Header,
        context: usize,
    ) -> anyhow::Result<Option<Vec<f32>>> {
        let trained = header.dimension("rope.scaling.original_context_length");
        let longer = trained.is_some_and(|trained| context as u64 > trained);
        let stretched = if longer { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        let name = [stretched, "rope_freqs.weight"].into_iter().find(|name| self.has(name));
        let Some(name) = name else { return Ok(None) };
        let factors = self.vector(name, shape.rotary.rotated / 2)?;
        ensure!(
            factors.iter().all(|factor| *factor > 0.0),
            "the tensor {name} has factors that are not above 0"
        );
        Ok(Some(factors))
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// When it is absent or of another size.
    pub fn vector(&mut self, name: &str, size: usize) -> anyhow::Result<Vec<f32>> {
        Ok(self.tensor(name, &[size])?.dequantize(&Device::Cpu)?.to_vec1()?)
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> anyhow::Result<Matrix> {
        let tensor = Arc::new(self.tensor(&format!("{name}.weight"), &[rows, columns])?);
        let block = tensor.dtype().block_size();
        ensure!(
            columns.is_multiple_of(block),
            "the tensor {name} has rows of {columns} numbers in blocks of {block}"
        );
        let bias = format!("{name}.bias");
        let bias = self.has(&bias).then(|| self.vector(&bias, rows)).transpose()?;
        // Also plain numbers go through the kernels that take row by row: see the module `model`.
        let product = QMatMul::QTensor(tensor.clone());
        Ok(Matrix { tensor, product, columns, bias: bias.map(Into::into) })
    }

    fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Reads a tensor once its size is known to be the expected one, so that a file cannot ask for more memory than
    /// its header accounts for; candle checks that the file holds as many bytes.
    fn tensor(&mut self, name: &str, size: &[usize]) -> anyhow::Result<QTensor> {
        let found =
            self.content.tensor_infos.get(name).with_context(|| format!("the tensor {name} is missing"))?;
        let dimensions = found.shape.dims();
        ensure!(dimensions == size, "the tensor {name} is of size {dimensions:?}; {size:?} is expected");
        let tensor = self.content.tensor(&mut *self.reader, name, &Device::Cpu);
        tensor.with_context(|| format!("reading the tensor {name}"))
    }
}
