//! Configuration in layers: defaults < file < environment < flags.
//!
//! The layers are merged key by key while the target type is being read, so that every error can say where the
//! value came from, which key it belongs to, what was given and what is allowed. An unknown key of the file is an
//! error with the closest known key. An unknown environment variable is one only if it looks like a misspelt key:
//! scripts and other programs of the house use the same prefix.

mod error;
mod fault;
mod layer;
mod read;

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::{ConfigError, Origin};
use layer::{Context, Node};

/// Where the layers above the defaults come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file. A file that is named and absent is an error.
    pub file: Option<PathBuf>,
    /// Prefix of the environment variables without the last underscore, for example `CXMPUTE`: the key
    /// `section.key` is read from `CXMPUTE_SECTION_KEY`. Empty: the environment is not read.
    pub env_prefix: String,
    /// Values from the command line, nested like the file. A string is read as whatever the key wants.
    pub flags: toml::Table,
}

/// Reads a configuration. `T` should not skip fields while serialising its defaults, except those that are `None`.
pub fn load<T>(sources: Sources) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let environment = prefixed_env(&sources.env_prefix);
    load_with(sources, environment)
}

/// [`load`] with a given environment.
pub fn load_with<T>(sources: Sources, environment: Vec<(String, String)>) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let defaults = toml::Value::try_from(T::default())
        .map_err(|error| ConfigError::Defaults { message: error.to_string() })?;
    let file = match &sources.file {
        None => None,
        Some(path) => Some(read_file(path)?),
    };
    let flags = toml::Value::Table(sources.flags);
    let context = Context::new(sources.file.as_deref(), &sources.env_prefix, environment);
    let root = Node::root(&context, &defaults, file.as_ref(), &flags);
    let loaded = T::deserialize(root).map_err(fault::Fault::into_error)?;
    match context.misspelt_variable() {
        Some((name, closest)) => Err(ConfigError::UnknownVariable { name, closest }),
        None => Ok(loaded),
    }
}

fn read_file(path: &std::path::Path) -> Result<toml::Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { file: path.to_owned(), source })?;
    match text.parse::<toml::Table>() {
        Ok(table) => Ok(toml::Value::Table(table)),
        Err(error) => {
            let line = error
                .span()
                .map_or(1, |span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
            Err(ConfigError::Syntax { file: path.to_owned(), line, message: error.message().to_owned() })
        }
    }
}

/// An environment variable, if it is set and is text. The only door to the environment of the process.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn prefixed_env(prefix: &str) -> Vec<(String, String)> {
    if prefix.is_empty() {
        return Vec::new();
    }
    let prefix = format!("{prefix}_");
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(&prefix))
        .collect()
}

#[cfg(test)]
mod tests;
