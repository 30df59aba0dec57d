//! What tells the architectures apart, read from a header and checked before anything is allocated.

use anyhow::{Context as _, bail, ensure};
use cxmpute_tokens::gguf::Header;

use super::cache::Layout;

/// Largest value of any dimension; real models stay far below.
const MOST: u64 = 1 << 20;
/// Most layers; the largest dense models have about 130.
const MOST_LAYERS: u64 = 1024;

/// The supported architectures, as `general.architecture` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, Mistral, `SmolLM` and others of their form.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Phi 3, 3.5 and 4.
    Phi3,
    /// Gemma 1.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::Gemma, Self::Gemma2, Self::Gemma3];

    /// The name in `general.architecture`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }

    /// The architecture of a header.
    ///
    /// # Errors
    /// When it is none of the supported ones; the sentence lists those.
    pub fn of(header: &Header) -> anyhow::Result<Self> {
        let given = header.architecture();
        Self::ALL.into_iter().find(|known| known.name() == given).with_context(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("architecture `{given}` is not supported; supported: {names}")
        })
    }

    const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }
}

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// The first with the second, the third with the fourth, …
    Neighbours,
    /// The first of the one half with the first of the other, …
    Halves,
}

/// What the gate of the feed-forward part goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x · σ(x).
    Silu,
    /// GELU by a hyperbolic tangent.
    Gelu,
}

/// Which layers see only the tokens next to theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None.
    None,
    /// All see this many tokens.
    All(usize),
    /// All but every `period`-th see `size` tokens.
    AllBut {
        /// Tokens that are seen.
        size: usize,
        /// Of this many layers the last sees everything.
        period: usize,
    },
}

/// Rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Numbers of a head that are turned.
    pub rotated: usize,
    /// Which are turned together.
    pub pairs: Pairs,
    /// Base of the speeds.
    pub base: f32,
    /// The same in layers with a window.
    pub narrow_base: f32,
    /// How much slower everything turns in layers that see everything.
    pub stretch: f32,
    /// What the turned numbers are multiplied with.
    pub factor: f32,
}

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Architecture.
    pub architecture: Architecture,
    /// Numbers that stand for a token between layers.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head: usize,
    /// Inner width of the feed-forward part.
    pub feed_forward: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Tokens of prompt and answer that the model was made for.
    pub context: usize,
    /// What norms add before they divide.
    pub epsilon: f32,
    /// Rotary positions.
    pub rotary: Rotary,
    /// Which layers have a window.
    pub windows: Windows,
    /// What the products of queries and keys are multiplied with.
    pub score_scale: f32,
    /// Bound of those products.
    pub score_cap: Option<f32>,
    /// Bound of the scores of tokens.
    pub output_cap: Option<f32>,
    /// Activation of the gate.
    pub gate: Gate,
    /// What the embeddings are multiplied with.
    pub embedding_scale: f32,
}

impl Shape {
    /// Reads and checks the shape of a model.
    ///
    /// # Errors
    /// With one sentence, when the architecture is not supported or the numbers cannot be.
    pub fn read(header: &Header) -> anyhow::Result<Self> {
        let architecture = Architecture::of(header)?;
        let key = |name: &str| format!("{}.{name}", architecture.name());
        let optional = |name: &str, most: u64| -> anyhow::Result<Option<usize>> {
            let Some(value) = header.number(&key(name)) else { return Ok(None) };
            ensure!((1..=most).contains(&value), "`{}` is {value}; 1 to {most} is possible", key(name));
            Ok(usize::try_from(value).ok())
        };
        let required = |name: &str, most: u64| {
            optional(name, most)?.with_context(|| format!("`{}` is missing or not a whole number", key(name)))
        };
        let number = |name: &str| -> anyhow::Result<Option<f32>> {
            let Some(value) = header.float(&key(name)) else { return Ok(None) };
            ensure!(value.is_finite() && value > 0.0, "`{}` is {value}, not a number above 0", key(name));
            Ok(Some(value as f32))
        };

        ensure!(
            header.number(&key("expert_count")).unwrap_or(0) == 0,
            "models with experts are not supported"
        );
        let width = required("embedding_length", MOST)?;
        let layers = required("block_count", MOST_LAYERS)?;
        let heads = required("attention.head_count", MOST)?;
        let kv_heads = optional("attention.head_count_kv", MOST)?.unwrap_or(heads);
        let head = match optional("attention.key_length", MOST)? {
            Some(head) => head,
            None if width % heads == 0 => width / heads,
            None => bail!("{heads} heads do not divide a width of {width}"),
        };
        let values = optional("attention.value_length", MOST)?.unwrap_or(head);
        let rotated = optional("rope.dimension_count", MOST)?.unwrap_or(head);
        ensure!(
            heads % kv_heads == 0 && values == head && rotated <= head && rotated % 2 == 0,
            "{heads} heads, {kv_heads} key heads, {head} numbers per key, {values} per value and {rotated} turned \
             ones do not fit together"
        );
        ensure!(head.saturating_mul(heads) <= 1 << 20, "{heads} heads of {head} numbers are too many");
        let tokens = header.texts("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
        ensure!(tokens > 0, "the file has no vocabulary");

        let stretch = match header.text(&key("rope.scaling.type")).unwrap_or("none") {
            "none" | "longrope" | "su" => 1.0,
            "linear" => number("rope.scaling.factor")?.unwrap_or(1.0),
            other => bail!("stretching positions by `{other}` is not supported; supported: linear, longrope"),
        };
        let default_base = if architecture == Architecture::Gemma3 { 1_000_000.0 } else { 10_000.0 };
        let base = number("rope.freq_base")?.unwrap_or(default_base);
        let narrow_base = match architecture {
            Architecture::Gemma3 => number("rope.freq_base_swa")?.unwrap_or(10_000.0),
            _ => base,
        };
        let window = optional("attention.sliding_window", u64::from(u32::MAX))?;
        let windows = match (architecture, window) {
            (Architecture::Gemma2, size) => Windows::AllBut { size: size.unwrap_or(4096), period: 2 },
            (Architecture::Gemma3, Some(size)) => {
                let period = optional("attention.sliding_window_pattern", MOST)?.unwrap_or(6);
                Windows::AllBut { size, period }
            }
            (Architecture::Llama | Architecture::Phi3, Some(size)) => Windows::All(size),
            _ => Windows::None,
        };
        // The two largest models of these families divide by the width of a head that they do not have.
        let divisor = match (architecture, layers) {
            (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => width / heads,
            _ => head,
        };
        let gemma2 = architecture == Architecture::Gemma2;
        let cap = |name: &str, default: f32| -> anyhow::Result<Option<f32>> {
            Ok(if gemma2 { Some(number(name)?.unwrap_or(default)) } else { None })
        };
        Ok(Self {
            architecture,
            width,
            layers,
            heads,
            kv_heads,
            head,
            feed_forward: required("feed_forward_length", 1 << 22)?,
            vocabulary: tokens,
            context: required("context_length", 1 << 24)?,
            epsilon: number("attention.layer_norm_rms_epsilon")?
                .with_context(|| format!("`{}` is missing", key("attention.layer_norm_rms_epsilon")))?,
            rotary: Rotary {
                rotated,
                pairs: if architecture == Architecture::Llama { Pairs::Neighbours } else { Pairs::Halves },
                base,
                narrow_base,
                stretch,
                factor: number("rope.scaling.attn_factor")?.unwrap_or(1.0),
            },
            windows,
            score_scale: 1.0 / (divisor as f32).sqrt(),
            score_cap: cap("attn_logit_softcapping", 50.0)?,
            output_cap: cap("final_logit_softcapping", 30.0)?,
            gate: if architecture.is_gemma() { Gate::Gelu } else { Gate::Silu },
            embedding_scale: if architecture.is_gemma() { (width as f32).sqrt() } else { 1.0 },
        })
    }

    /// How a cache of keys and values lies in memory.
    pub fn layout(&self) -> Layout {
        Layout { layers: self.layers, width: self.kv_heads * self.head }
    }

    /// How many tokens a layer sees; absent: all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        match self.windows {
            Windows::None => None,
            Windows::All(size) => Some(size),
            Windows::AllBut { size, period } => (!(layer + 1).is_multiple_of(period)).then_some(size),
        }
    }
}
