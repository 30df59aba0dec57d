//! The exit codes of our programs, documented for scripts, and the error that carries one to `main`.

use std::error::Error;
use std::fmt;

/// Everything went well.
pub const OK: u8 = 0;
/// A failure without a code of its own.
pub const OTHER: u8 = 1;
/// Unknown command or flag.
pub const USAGE: u8 = 2;
/// The configuration is wrong.
pub const CONFIG: u8 = 3;
/// The address to listen on is taken.
pub const PORT_TAKEN: u8 = 4;
/// The data directory cannot be written.
pub const DIR_UNWRITABLE: u8 = 5;
/// The database is newer than the program, or unusable.
pub const DATABASE: u8 = 6;
/// A model file is missing.
pub const MODEL_MISSING: u8 = 7;
/// A new grant or a login is needed.
pub const GRANT: u8 = 10;
/// The node was revoked.
pub const REVOKED: u8 = 14;
/// Another copy of this node is active.
pub const CLONED: u8 = 15;
/// The gateway wants a newer program.
pub const VERSION_TOO_OLD: u8 = 17;

/// A failure with an exit code and one sentence that says what is wrong and what to do.
#[derive(Debug)]
pub struct ExitError {
    code: u8,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ExitError {
    /// A failure that ends the process with `code`.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None }
    }

    /// The same, with what caused it.
    pub fn caused(
        code: u8,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { code, message: message.into(), source: Some(source.into()) }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ExitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}

/// The exit code of an error: that of the first [`ExitError`] in its chain, [`CONFIG`] for a
/// [`crate::ConfigError`], else [`OTHER`]. Takes `anyhow::Error` as `code_of(error.as_ref())`.
pub fn code_of(error: &(dyn Error + 'static)) -> u8 {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(exit) = error.downcast_ref::<ExitError>() {
            return exit.code;
        }
        if error.is::<crate::ConfigError>() {
            return CONFIG;
        }
        next = error.source();
    }
    OTHER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_below_other_errors() {
        #[derive(Debug)]
        struct Outer(ExitError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        assert_eq!(code_of(&Outer(ExitError::new(PORT_TAKEN, "port taken"))), PORT_TAKEN);
        assert_eq!(code_of(&fmt::Error), OTHER);
    }
}
