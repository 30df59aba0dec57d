//! Identifiers. Every id is a newtype over its printed form; ids are opaque and never secrets.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Why a text is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {expected}")]
pub struct IdError {
    /// The text as given, cut at 64 characters.
    pub given: String,
    /// What a valid id looks like.
    pub expected: &'static str,
}

impl IdError {
    fn new(given: &str, expected: &'static str) -> Self {
        Self { given: given.chars().take(64).collect(), expected }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The prefix of the printed form.
            pub const PREFIX: &'static str = $prefix;

            /// Builds the id from the part after the prefix.
            ///
            /// # Panics
            /// Never; the caller vouches for the characters (made by us, not parsed).
            #[must_use]
            pub fn from_tail(tail: &str) -> Self {
                Self(format!("{}{tail}", $prefix).into())
            }

            /// The printed form.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let tail = text.strip_prefix($prefix).ok_or_else(|| IdError::new(text, $expected))?;
                let plain = tail.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if tail.is_empty() || tail.len() > 80 || !plain {
                    return Err(IdError::new(text, $expected));
                }
                Ok(Self(text.into()))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": concat!("^", $prefix, "[A-Za-z0-9_-]{1,80}$")})
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// An account: one e-mail address, one user with a user side and a provider side.
    UserId, "us_", "an account id (`us_` and letters or digits)"
);
text_id!(
    /// The public part of an API key or provider key (12 base-62 characters, no prefix).
    KeyId, "", "a key id (12 letters or digits)"
);
text_id!(
    /// A provider's device: `pv_` and the lower-case base32 of the first 20 bytes of SHA-256 of its public key.
    ProvisionId, "pv_", "a provision id (`pv_` and 32 letters or digits)"
);
text_id!(
    /// One request of a user, made at the gateway's edge: `req_` and a UUIDv7 without dashes.
    RequestId, "req_", "a request id (`req_` and 32 hexadecimal digits)"
);

impl ProvisionId {
    /// The id that belongs to a public key whose SHA-256 is `digest`.
    #[must_use]
    pub fn from_key_digest(digest: &[u8; 32]) -> Self {
        let tail = data_encoding::BASE32_NOPAD.encode(&digest[..20]).to_ascii_lowercase();
        Self::from_tail(&tail)
    }
}

/// What kind of work a service does; the part of a service id before its first colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// Text generation (chat and completions).
    Llm,
    /// Text embeddings.
    Embeddings,
    /// Text to speech.
    Tts,
    /// Speech to text.
    Stt,
    /// Image understanding.
    Vision,
    /// Text to images.
    Image,
    /// Fetching pages.
    Scrape,
}

impl ServiceKind {
    /// The name as it stands in a service id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Embeddings => "embeddings",
            Self::Tts => "tts",
            Self::Stt => "stt",
            Self::Vision => "vision",
            Self::Image => "image",
            Self::Scrape => "scrape",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Llm, Self::Embeddings, Self::Tts, Self::Stt, Self::Vision, Self::Image, Self::Scrape]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something a provision serves: `kind:model`, or a bare kind such as `scrape`. The model part is opaque and may
/// hold further colons (`llm:llama3.2:1b`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ServiceId(std::sync::Arc<str>);

impl ServiceId {
    /// The service of `kind` for `model`.
    #[must_use]
    pub fn new(kind: ServiceKind, model: &str) -> Self {
        Self(format!("{kind}:{model}").into())
    }

    /// The printed form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind of work.
    #[must_use]
    pub fn kind(&self) -> ServiceKind {
        let name = self.0.split_once(':').map_or(&*self.0, |(kind, _)| kind);
        ServiceKind::from_name(name).unwrap_or(ServiceKind::Llm)
    }

    /// The model, where the service has one.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.0.split_once(':').map(|(_, model)| model)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        const EXPECTED: &str = "a service id (`llm:MODEL`, `embeddings:MODEL`, `tts:…`, `stt:…`, `vision:…`, `image:…` or `scrape`)";
        let (kind, model) = text.split_once(':').map_or((text, None), |(kind, model)| (kind, Some(model)));
        let visible = text.len() <= 200 && text.bytes().all(|b| b.is_ascii_graphic());
        let shaped = match ServiceKind::from_name(kind) {
            Some(ServiceKind::Scrape) => model.is_none_or(|model| !model.is_empty()),
            Some(_) => model.is_some_and(|model| !model.is_empty()),
            None => false,
        };
        if visible && shaped { Ok(Self(text.into())) } else { Err(IdError::new(text, EXPECTED)) }
    }
}

impl JsonSchema for ServiceId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServiceId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^((llm|embeddings|tts|stt|vision):[!-~]+|scrape(:[!-~]+)?)$"})
    }
}

impl<'de> Deserialize<'de> for ServiceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The count of tunnels a provision has opened so far; the newest one is the only valid one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version of a provision's desired state; it only grows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Generation(pub i64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_id_splits_only_at_its_first_colon() {
        let service: ServiceId = "llm:llama3.2:1b".parse().unwrap();
        assert_eq!(service.kind(), ServiceKind::Llm);
        assert_eq!(service.model(), Some("llama3.2:1b"));
        assert_eq!("scrape".parse::<ServiceId>().unwrap().model(), None);
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in ["", "llm", "llm:", "dog:x", "llm:a b", "pv_", "xx_1"] {
            assert!(text.parse::<ServiceId>().is_err(), "{text}");
            assert!(text.parse::<ProvisionId>().is_err(), "{text}");
        }
        assert!("pv_a/b".parse::<ProvisionId>().is_err());
    }

    #[test]
    fn a_provision_id_is_the_hash_of_its_key() {
        let id = ProvisionId::from_key_digest(&[0; 32]);
        assert_eq!(id.as_str(), "pv_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    }
}
