//! An error while a configuration is read, before it knows its key.

use std::fmt;

use serde::de;

use super::error::{ConfigError, Origin};

/// An error on its way up; it learns its key and value at the first node it passes.
#[derive(Debug)]
pub(super) enum Fault {
    Bare { expected: String },
    Missing { field: &'static str },
    Located(Box<ConfigError>),
}

impl Fault {
    pub(super) fn into_error(self) -> ConfigError {
        match self {
            Fault::Located(error) => *error,
            Fault::Bare { expected } => ConfigError::Value {
                origin: Origin::Default,
                key: String::new(),
                given: "unusable".into(),
                expected,
            },
            Fault::Missing { field } => ConfigError::Missing { key: field.into(), variable: None },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Bare { expected } => f.write_str(expected),
            Fault::Missing { field } => write!(f, "missing {field}"),
            Fault::Located(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::Bare { expected: format!("something else ({message})") }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::Bare { expected: expected.to_string() }
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::Bare { expected: expected.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Fault::Missing { field }
    }
}
