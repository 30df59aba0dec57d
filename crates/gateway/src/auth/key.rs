//! The printed form of a key (SR15): `cxk_live_<12 base62 id>_<43 base62 secret><6 base62 CRC32>`; provider keys begin
//! with `cxp_`. The checksum refuses typing errors without a look into the store, and lets scanners tell a leaked key
//! from a text that only looks like one.

use cxmpute_runtime::{Secret, random};
use cxmpute_store::KeyKind;
use cxmpute_wire::KeyId;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The environment of every key we make.
pub const ENVIRONMENT: &str = "live";

const ID_LENGTH: usize = 12;
/// 62^43 > 2^256.
const SECRET_LENGTH: usize = 43;
/// 62^6 > 2^32.
const CHECKSUM_LENGTH: usize = 6;

/// The first characters of keys of a kind.
const fn prefix(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Api => "cxk_",
        KeyKind::Provider => "cxp_",
    }
}

/// A fresh key. Its text is shown once and never stored.
pub struct MintedKey {
    /// The public part.
    pub id: KeyId,
    /// The whole key.
    pub text: Secret<String>,
}

/// Makes a key of the environment `live`.
#[must_use]
pub fn mint(kind: KeyKind) -> MintedKey {
    let id = random_text(ID_LENGTH);
    let mut text = format!("{}live_{id}_{}", prefix(kind), random_text(SECRET_LENGTH));
    text.push_str(&checksum(&text));
    MintedKey { id: KeyId::from_tail(&id), text: Secret::new(text) }
}

/// The kind and public id of a well-formed key whose checksum fits; `None` for every other text.
#[must_use]
pub fn parse(text: &str) -> Option<(KeyKind, KeyId)> {
    let kind = [KeyKind::Api, KeyKind::Provider].into_iter().find(|kind| text.starts_with(prefix(*kind)))?;
    let rest = &text[prefix(kind).len()..];
    let rest = rest.strip_prefix("live_").or_else(|| rest.strip_prefix("test_"))?;
    let (id, secret) = rest.split_once('_')?;
    let plain =
        |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain(id, ID_LENGTH) || !plain(secret, SECRET_LENGTH + CHECKSUM_LENGTH) {
        return None;
    }
    let (body, sum) = text.split_at(text.len() - CHECKSUM_LENGTH);
    (checksum(body) == sum).then(|| (kind, KeyId::from_tail(id)))
}

/// CRC-32 in six base-62 digits.
fn checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// Uniform base-62 characters from the operating system's randomness.
fn random_text(length: usize) -> String {
    /// The largest multiple of 62 in a byte: values above would prefer the first digits.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let fair = random::bytes::<64>().into_iter().filter(|byte| *byte < FAIR);
        text.extend(fair.take(length - text.len()).map(|byte| char::from(ALPHABET[usize::from(byte % 62)])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_key_parses_to_its_id_and_kind() {
        for kind in [KeyKind::Api, KeyKind::Provider] {
            let key = mint(kind);
            assert_eq!(key.text.expose().len(), "cxk_live_".len() + 12 + 1 + 49);
            assert_eq!(parse(key.text.expose()), Some((kind, key.id)));
        }
        assert_ne!(mint(KeyKind::Api).text.expose(), mint(KeyKind::Api).text.expose());
    }

    #[test]
    fn every_single_character_error_is_caught() {
        let key = mint(KeyKind::Api);
        let text = key.text.expose();
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(parse(&String::from_utf8(wrong).unwrap()), None, "character {at}");
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in [
            "",
            "cxk_",
            "cxk_live_",
            "sk-abc",
            "cxk_live_aaaaaaaaaaaa_",
            "cxk_live_äaaaaaaaaaa_ä",
            "Bearer x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
