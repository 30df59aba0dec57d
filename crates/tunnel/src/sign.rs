//! Signatures of node requests: the part of RFC 9421 that we use, with Ed25519, and RFC 9530 content digests.
//!
//! Covered are method, authority, path and query, the content digest when there is a body, the time and a nonce. The
//! verifier checks the window of time; that a nonce is new is checked by the caller, who owns the store.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_wire::{ProvisionId, Timestamp};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};

/// How far a signature's time may be from ours, either way.
pub const WINDOW: Duration = Duration::from_secs(60);

const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// What a signature must cover, in the order in which we write it.
const REQUIRED: [&str; 4] = ["@method", "@authority", "@path", "@query"];

/// Longest `Signature-Input` that is looked at.
const INPUT_LIMIT_BYTES: usize = 1024;

/// A signature that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The caller must refuse a nonce that it saw within the window.
    pub nonce: String,
    /// The signer: always the id of the key that verified.
    pub key_id: ProvisionId,
    /// When the request was signed.
    pub created: Timestamp,
}

/// A request whose signature is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error("the request is not signed")]
    Missing,
    /// The signature headers do not follow the agreed form.
    #[error("the signature is malformed: {0}")]
    Malformed(&'static str),
    /// A part of the request that must be covered is not.
    #[error("the signature does not cover {0}")]
    Uncovered(&'static str),
    /// The body is not the one that was signed.
    #[error("the content digest does not fit the body")]
    Digest,
    /// The key id is not the id of the key, or the key did not make this signature.
    #[error("the signature does not verify")]
    Invalid,
    /// The signature's time is outside the window.
    #[error("the signature's time is more than 60 s from the server's")]
    ClockSkew {
        /// What the signer should take the time to be.
        server_time: Timestamp,
    },
}

/// The id of the provision that holds this key.
pub fn provision_id(key: &VerifyingKey) -> ProvisionId {
    ProvisionId::from_key_digest(&Sha256::digest(key.as_bytes()).into())
}

/// The headers that sign a request. `query` is without its question mark; `body` is `None` or empty when there is
/// none; `created` is in seconds since 1970; `nonce` must never be used twice (16 random bytes in hex do).
#[expect(clippy::too_many_arguments, reason = "these are the covered parts of a request, and nothing else")]
pub fn sign_request(
    key: &SigningKey,
    method: &Method,
    authority: &str,
    path: &str,
    query: Option<&str>,
    body: Option<&[u8]>,
    created: i64,
    nonce: &str,
) -> Vec<(HeaderName, HeaderValue)> {
    let digest = body.filter(|body| !body.is_empty()).map(content_digest);
    let mut components: Vec<&str> = REQUIRED.to_vec();
    if digest.is_some() {
        components.push("content-digest");
    }
    let covered = components.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" ");
    let key_id = provision_id(&key.verifying_key());
    let params =
        format!("({covered});created={created};nonce=\"{nonce}\";keyid=\"{key_id}\";alg=\"ed25519\"");
    let request = Covered { method, authority, path, query, digest: digest.as_deref() };
    let base = request.base(&components, &params);
    let signature = key.sign(base.as_bytes());
    let mut headers = vec![
        (SIGNATURE_INPUT, text_header(&format!("cx={params}"))),
        (SIGNATURE, text_header(&format!("cx=:{}:", STANDARD.encode(signature.to_bytes())))),
    ];
    if let Some(digest) = digest {
        headers.push((CONTENT_DIGEST, text_header(&digest)));
    }
    headers
}

/// A nonce that nobody used before.
pub fn fresh_nonce() -> String {
    data_encoding::HEXLOWER.encode(&cxmpute_runtime::random::bytes::<16>())
}

/// Who claims to have signed: for looking the key up. Nothing is verified yet.
pub fn claimed_key_id(headers: &HeaderMap) -> Result<ProvisionId, SignatureError> {
    Ok(Input::read(headers)?.key_id)
}

/// Checks a request against the key it should be signed with.
pub fn verify_request(
    parts: &Parts,
    body: &[u8],
    key: &VerifyingKey,
    now: Timestamp,
    window: Duration,
) -> Result<Verified, SignatureError> {
    let input = Input::read(&parts.headers)?;
    for required in REQUIRED {
        if !input.components.iter().any(|component| component == required) {
            return Err(SignatureError::Uncovered(required));
        }
    }
    let digest = single(&parts.headers, &CONTENT_DIGEST)?;
    let digest_covered = input.components.iter().any(|component| component == "content-digest");
    match digest {
        Some(digest) if digest_covered && digest == content_digest(body) => {}
        Some(_) if digest_covered => return Err(SignatureError::Digest),
        Some(_) => return Err(SignatureError::Uncovered("content-digest")),
        None if digest_covered || !body.is_empty() => {
            return Err(SignatureError::Uncovered("content-digest"));
        }
        None => {}
    }
    let authority = match parts.uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => single(&parts.headers, &http::header::HOST)?
            .ok_or(SignatureError::Malformed("no host header"))?
            .to_owned(),
    };
    let request = Covered {
        method: &parts.method,
        authority: &authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        digest,
    };
    let names: Vec<&str> = input.components.iter().map(String::as_str).collect();
    let base = request.base(&names, input.params);
    if input.key_id != provision_id(key) {
        return Err(SignatureError::Invalid);
    }
    key.verify_strict(base.as_bytes(), &input.signature).map_err(|_| SignatureError::Invalid)?;
    let window_s = i64::try_from(window.as_secs()).unwrap_or(i64::MAX);
    if now.seconds().saturating_sub(input.created).saturating_abs() > window_s {
        return Err(SignatureError::ClockSkew { server_time: now });
    }
    let created = Timestamp(input.created.saturating_mul(1000));
    Ok(Verified { nonce: input.nonce, key_id: input.key_id, created })
}

/// `Content-Digest` of a body.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// The parts of a request that a signature covers.
struct Covered<'a> {
    method: &'a Method,
    authority: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    digest: Option<&'a str>,
}

impl Covered<'_> {
    /// The signature base of RFC 9421 section 2.5.
    fn base(&self, components: &[&str], params: &str) -> String {
        let mut base = String::with_capacity(512);
        for component in components {
            let _ = match *component {
                "@method" => writeln!(base, "\"@method\": {}", self.method),
                "@authority" => writeln!(base, "\"@authority\": {}", self.authority.to_ascii_lowercase()),
                "@path" => writeln!(base, "\"@path\": {}", self.path),
                "@query" => writeln!(base, "\"@query\": ?{}", self.query.unwrap_or_default()),
                "content-digest" => writeln!(base, "\"content-digest\": {}", self.digest.unwrap_or_default()),
                // `Input::read` lets no other component through; here it could only make the signature fail.
                _ => Ok(()),
            };
        }
        let _ = write!(base, "\"@signature-params\": {params}");
        base
    }
}

/// The signature headers, taken apart.
struct Input<'a> {
    components: Vec<String>,
    /// Exactly as received, because it is part of what was signed.
    params: &'a str,
    created: i64,
    nonce: String,
    key_id: ProvisionId,
    signature: Signature,
}

impl<'a> Input<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, SignatureError> {
        use SignatureError::Malformed;
        let input = single(headers, &SIGNATURE_INPUT)?.ok_or(SignatureError::Missing)?;
        let signature = single(headers, &SIGNATURE)?.ok_or(SignatureError::Missing)?;
        if input.len() > INPUT_LIMIT_BYTES {
            return Err(Malformed("signature-input is too long"));
        }
        let (label, params) = input.split_once('=').ok_or(Malformed("signature-input has no label"))?;
        let inner = params.strip_prefix('(').ok_or(Malformed("no list of components"))?;
        let (list, rest) = inner.split_once(')').ok_or(Malformed("no list of components"))?;
        let mut components: Vec<String> = Vec::new();
        for quoted in list.split(' ').filter(|part| !part.is_empty()) {
            let name = unquote(quoted).ok_or(Malformed("a component is not quoted"))?;
            if !REQUIRED.contains(&name) && name != "content-digest" {
                return Err(Malformed("an unknown component is covered"));
            }
            if components.iter().any(|known| known == name) {
                return Err(Malformed("a component is covered twice"));
            }
            components.push(name.to_owned());
        }
        let (mut created, mut nonce, mut key_id) = (None, None, None);
        for parameter in rest.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or(Malformed("a parameter has no value"))?;
            match name {
                "created" => created = value.parse::<i64>().ok(),
                "nonce" => nonce = unquote(value),
                "keyid" => key_id = unquote(value),
                "alg" if value == "\"ed25519\"" => {}
                "alg" => return Err(Malformed("the algorithm is not ed25519")),
                _ => return Err(Malformed("an unknown parameter")),
            }
        }
        let nonce = nonce.ok_or(Malformed("no nonce"))?;
        let plain = nonce.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !(16..=64).contains(&nonce.len()) || !plain {
            return Err(Malformed("the nonce is not 16 to 64 letters and digits"));
        }
        let key_id = key_id.ok_or(Malformed("no keyid"))?;
        let bytes = signature
            .strip_prefix(label)
            .and_then(|rest| rest.strip_prefix("=:"))
            .and_then(|rest| rest.strip_suffix(':'))
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| <[u8; 64]>::try_from(bytes).ok())
            .ok_or(Malformed("the signature is not 64 bytes in base64 under the same label"))?;
        Ok(Input {
            components,
            params,
            created: created.ok_or(Malformed("no time of creation"))?,
            nonce: nonce.to_owned(),
            key_id: key_id.parse().map_err(|_| Malformed("keyid is not a provision id"))?,
            signature: Signature::from_bytes(&bytes),
        })
    }
}

/// The value of a header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, SignatureError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(SignatureError::Malformed("a header is there twice"));
    }
    first.to_str().map(Some).map_err(|_| SignatureError::Malformed("a header is not text"))
}

fn unquote(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"').filter(|inner| !inner.contains('"'))
}

fn text_header(text: &str) -> HeaderValue {
    // Callers pass ids, numbers, base64 and a nonce; a nonce with control characters cannot be sent at all.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_500);

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn signed(method: &str, uri: &str, body: &[u8], created: i64) -> Parts {
        let uri: http::Uri = uri.parse().unwrap();
        let method: Method = method.parse().unwrap();
        let headers = sign_request(
            &key(),
            &method,
            uri.authority().unwrap().as_str(),
            uri.path(),
            uri.query(),
            Some(body),
            created,
            "0123456789abcdef",
        );
        let mut request = http::Request::builder()
            .method(method)
            .uri(uri.path_and_query().unwrap().as_str())
            .header("host", uri.authority().unwrap().as_str());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn verify(parts: &Parts, body: &[u8]) -> Result<Verified, SignatureError> {
        verify_request(parts, body, &key().verifying_key(), NOW, WINDOW)
    }

    #[test]
    fn what_is_signed_verifies() {
        let parts = signed("PUT", "http://Gate.example:8443/api/v1/x?a=b", b"body", NOW.seconds() - 59);
        let verified = verify(&parts, b"body").unwrap();
        assert_eq!(verified.nonce, "0123456789abcdef");
        assert_eq!(verified.key_id, provision_id(&key().verifying_key()));
        assert_eq!(claimed_key_id(&parts.headers).unwrap(), verified.key_id);
        verify(&signed("GET", "http://h/api/v1/tunnel", b"", NOW.seconds()), b"").unwrap();
    }

    #[test]
    fn every_covered_part_is_covered() {
        let good = || signed("PUT", "http://h/api/v1/x?a=b", b"body", NOW.seconds());
        let mut other = good();
        other.method = Method::POST;
        assert_eq!(verify(&other, b"body"), Err(SignatureError::Invalid));
        let mut other = good();
        other.uri = "/api/v1/y?a=b".parse().unwrap();
        assert_eq!(verify(&other, b"body"), Err(SignatureError::Invalid));
        let mut other = good();
        other.uri = "/api/v1/x?a=c".parse().unwrap();
        assert_eq!(verify(&other, b"body"), Err(SignatureError::Invalid));
        let mut other = good();
        other.headers.insert("host", "evil".parse().unwrap());
        assert_eq!(verify(&other, b"body"), Err(SignatureError::Invalid));
        assert_eq!(verify(&good(), b"other"), Err(SignatureError::Digest));
        let mut other = good();
        other.headers.insert("content-digest", content_digest(b"other").parse().unwrap());
        assert_eq!(verify(&other, b"other"), Err(SignatureError::Invalid));
    }

    #[test]
    fn a_body_without_a_signed_digest_is_refused() {
        let mut parts = signed("PUT", "http://h/x", b"", NOW.seconds());
        assert_eq!(verify(&parts, b"body"), Err(SignatureError::Uncovered("content-digest")));
        parts.headers.insert("content-digest", content_digest(b"body").parse().unwrap());
        assert_eq!(verify(&parts, b"body"), Err(SignatureError::Uncovered("content-digest")));
    }

    #[test]
    fn a_skewed_clock_is_told_the_time() {
        for seconds in [-61, 61] {
            let parts = signed("GET", "http://h/x", b"", NOW.seconds() + seconds);
            assert_eq!(verify(&parts, b""), Err(SignatureError::ClockSkew { server_time: NOW }));
        }
    }

    #[test]
    fn another_key_does_not_pass() {
        let parts = signed("GET", "http://h/x", b"", NOW.seconds());
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert_eq!(verify_request(&parts, b"", &other, NOW, WINDOW), Err(SignatureError::Invalid));
    }

    #[test]
    fn malformed_signatures_are_refused_without_panic() {
        let good = signed("GET", "http://h/x", b"", NOW.seconds());
        let input = good.headers["signature-input"].to_str().unwrap().to_owned();
        let table = [
            input.replace("\"@query\"", ""),
            input.replace("\"@query\"", "\"@path\""),
            input.replace("\"@query\"", "\"@query\" \"date\""),
            input.replace("ed25519", "hmac-sha256"),
            input.replace("nonce=", "nonc="),
            input.replace("0123456789abcdef", "short"),
            input.replace("pv_", "xx_"),
            input.replace("created=", "created=x"),
            "cx".into(),
            "cx=(".into(),
            "cx=()".into(),
            "=".into(),
            ";;;".into(),
            "x".repeat(5000),
        ];
        for text in table {
            let mut parts = good.clone();
            parts.headers.insert("signature-input", text.parse().unwrap());
            assert!(verify(&parts, b"").is_err(), "{text}");
        }
        let mut parts = good.clone();
        parts.headers.remove("signature");
        assert_eq!(verify(&parts, b""), Err(SignatureError::Missing));
        let mut parts = good;
        let twice = parts.headers["signature"].clone();
        parts.headers.append("signature", twice);
        assert!(verify(&parts, b"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_header_text_panics_the_reader(input in "[ -~]{0,200}", signature in "[ -~]{0,200}") {
            let mut parts = signed("GET", "http://h/x", b"", NOW.seconds());
            parts.headers.insert("signature-input", input.parse().unwrap());
            parts.headers.insert("signature", signature.parse().unwrap());
            proptest::prop_assert!(verify(&parts, b"").is_err());
        }
    }
}
