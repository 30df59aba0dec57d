//! The header of a GGUF model file: metadata, vocabulary, merges and chat template.
//!
//! Model files come from strangers, so everything is bounded before it is allocated and nothing panics. The tensors
//! are not touched. Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Most metadata entries of one file; real files have 20 to 60.
const MAX_ENTRIES: u64 = 4096;
/// Longest key; the format allows 65,535, real keys stay below 100.
const MAX_KEY_BYTES: u64 = 1024;
/// Longest text; chat templates reach about 30 KiB.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// Most elements of one array; vocabularies reach 262,144 tokens and about twice as many merges.
const MAX_ELEMENTS: u64 = 2 << 20;
/// Most bytes of a whole header.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Arrays of arrays exist in the format, not in the keys that are kept here.
const MAX_DEPTH: u8 = 4;

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file is absent or unreadable.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file ends within the header.
    #[error("the file ends within its header")]
    Truncated,
    /// Not a GGUF file.
    #[error("not a GGUF file")]
    Magic,
    /// A version that this program does not read.
    #[error("GGUF version {0}; versions 2 and 3 can be read")]
    Version(u32),
    /// Something is larger than any honest file has it.
    #[error("{what} of {given} is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large the file says it is.
        given: u64,
        /// The bound.
        limit: u64,
    },
    /// A type number outside the format.
    #[error("value type {0} does not exist")]
    ValueType(u32),
    /// A key is missing or has another type.
    #[error("key `{key}` is missing or not {expected}")]
    Key {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// One metadata value. Arrays other than texts and numbers are read and dropped.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any whole number.
    Integer(i128),
    /// Any floating-point number.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of whole numbers.
    Integers(Vec<i64>),
    /// An array of floating-point numbers.
    Floats(Vec<f32>),
    /// An array that nothing here needs.
    Dropped,
}

/// The metadata of a model file.
#[derive(Debug, Clone)]
pub struct Header {
    entries: BTreeMap<String, Value>,
    tensor_count: u64,
}

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// When the file cannot be read or breaks the format or its bounds.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(|source| GgufError::File { path: path.to_owned(), source })?;
        Self::from_reader(BufReader::with_capacity(1 << 16, file))
    }

    /// Reads a header from its first byte.
    ///
    /// # Errors
    /// When the bytes break the format or its bounds.
    pub fn from_reader(reader: impl Read) -> Result<Self, GgufError> {
        let mut source = Source { inner: reader, left: MAX_HEADER_BYTES };
        if &source.array::<4>()? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        let version = source.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = source.u64()?;
        let count = bounded("number of metadata entries", source.u64()?, MAX_ENTRIES)?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = source.text("length of a key", MAX_KEY_BYTES)?;
            let kind = source.u32()?;
            let value = source.value(kind, 0)?;
            entries.insert(key, value);
        }
        Ok(Self { entries, tensor_count })
    }

    /// A value by key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// A text by key.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.entries.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative, by key.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.entries.get(key) {
            Some(Value::Integer(number)) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number that need not be whole, by key.
    #[must_use]
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.entries.get(key) {
            Some(Value::Float(number)) => Some(*number),
            _ => None,
        }
    }

    /// A flag by key.
    #[must_use]
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.entries.get(key) {
            Some(Value::Flag(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// Texts by key.
    ///
    /// # Errors
    /// When they are absent.
    pub fn texts(&self, key: &str) -> Result<&[String], GgufError> {
        match self.entries.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            _ => Err(GgufError::Key { key: key.to_owned(), expected: "an array of texts" }),
        }
    }

    /// Whole numbers by key.
    #[must_use]
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.entries.get(key) {
            Some(Value::Integers(numbers)) => Some(numbers),
            _ => None,
        }
    }

    /// Floating-point numbers by key.
    #[must_use]
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.entries.get(key) {
            Some(Value::Floats(numbers)) => Some(numbers),
            _ => None,
        }
    }

    /// `llama`, `qwen2`, … or empty.
    #[must_use]
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A number below the architecture's own prefix, for example `block_count`.
    #[must_use]
    pub fn dimension(&self, name: &str) -> Option<u64> {
        self.number(&format!("{}.{name}", self.architecture()))
    }

    /// Tokens of prompt and output together that the model was made for.
    #[must_use]
    pub fn context_length(&self) -> Option<u64> {
        self.dimension("context_length")
    }

    /// The chat template, as Jinja source.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// How many tensors the file says it has.
    #[must_use]
    pub fn tensor_count(&self) -> u64 {
        self.tensor_count
    }
}

fn bounded(what: &'static str, given: u64, limit: u64) -> Result<u64, GgufError> {
    if given > limit { Err(GgufError::TooLarge { what, given, limit }) } else { Ok(given) }
}

/// Reads little-endian values and keeps account of what a header may still cost.
struct Source<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, target: &mut [u8]) -> Result<(), GgufError> {
        let size = target.len() as u64;
        self.left = self.left.checked_sub(size).ok_or(GgufError::TooLarge {
            what: "size of the header",
            given: MAX_HEADER_BYTES + 1,
            limit: MAX_HEADER_BYTES,
        })?;
        self.inner.read_exact(target).map_err(|_| GgufError::Truncated)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text. A few published vocabularies hold broken UTF-8; it is replaced as other readers replace it.
    fn text(&mut self, what: &'static str, limit: u64) -> Result<String, GgufError> {
        let mut left = usize::try_from(bounded(what, self.u64()?, limit)?).unwrap_or(0);
        let mut bytes = Vec::with_capacity(left.min(4096));
        let mut block = [0; 4096];
        // Memory follows what the file really has, not what it claims.
        while left > 0 {
            let step = left.min(block.len());
            self.fill(&mut block[..step])?;
            bytes.extend_from_slice(&block[..step]);
            left -= step;
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|broken| String::from_utf8_lossy(broken.as_bytes()).into_owned()))
    }

    fn value(&mut self, kind: u32, depth: u8) -> Result<Value, GgufError> {
        Ok(match kind {
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            7 => Value::Flag(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text("length of a text", MAX_TEXT_BYTES)?),
            9 => self.elements(depth)?,
            _ => Value::Integer(self.integer(kind)?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i128, GgufError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            unknown => return Err(GgufError::ValueType(unknown)),
        })
    }

    fn elements(&mut self, depth: u8) -> Result<Value, GgufError> {
        let depth = depth + 1;
        if depth > MAX_DEPTH {
            return Err(GgufError::TooLarge {
                what: "depth of an array",
                given: depth.into(),
                limit: MAX_DEPTH.into(),
            });
        }
        let kind = self.u32()?;
        let count = bounded("number of array elements", self.u64()?, MAX_ELEMENTS)?;
        match kind {
            8 => (0..count)
                .map(|_| self.text("length of a text", MAX_TEXT_BYTES))
                .collect::<Result<_, _>>()
                .map(Value::Texts),
            0..=5 | 10 | 11 => (0..count)
                .map(|_| self.integer(kind).map(|number| i64::try_from(number).unwrap_or(i64::MAX)))
                .collect::<Result<_, _>>()
                .map(Value::Integers),
            6 => (0..count)
                .map(|_| self.array().map(f32::from_le_bytes))
                .collect::<Result<_, _>>()
                .map(Value::Floats),
            _ => {
                for _ in 0..count {
                    self.value(kind, depth)?;
                }
                Ok(Value::Dropped)
            }
        }
    }
}

#[cfg(test)]
mod tests;
