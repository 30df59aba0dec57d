//! Which trace a request belongs to: ids, the client's `traceparent` (W3C Trace Context, level 1), and whether it is
//! traced at all. A client's word is believed for correlation only; it says nothing about who the client is.

use std::fmt;

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// One trace: all spans of a request, here and in the programs before us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// One span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The span of the client that our root span belongs below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether the client records its own.
    pub sampled: bool,
}

impl Parent {
    /// The parent that a request names, if it names exactly one and names it well.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() { None } else { Self::parse(value) }
    }

    /// `00-<trace id>-<span id>-<flags>`, all lower-case hexadecimal. A later version may append fields, which are not
    /// read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.split_at_checked(55)?;
        let mut parts = known.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let trace = TraceId(hex(parts.next()?)?);
        let span = SpanId(hex(parts.next()?)?);
        let flags: [u8; 1] = hex(parts.next()?)?;
        let is_whole = match version[0] {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let is_named = trace.0 != [0; 16] && span.0 != [0; 8];
        (is_whole && is_named && parts.next().is_none()).then_some(Self {
            trace,
            span,
            sampled: flags[0] & 1 == 1,
        })
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Which requests are traced.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    /// Trace ids whose last 56 bits are below it are not traced.
    threshold: u64,
    follow_clients: bool,
}

impl Sampler {
    /// Traces `ratio` (0 to 1) of the requests; with `follow_clients`, those with a parent as the parent says.
    #[must_use]
    pub fn new(ratio: f64, follow_clients: bool) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^56")]
        let threshold = ((1.0 - ratio.clamp(0.0, 1.0)) * (1u64 << 56) as f64) as u64;
        Self { threshold, follow_clients }
    }

    /// Decides by the trace's id, as other programs that sample by OpenTelemetry's consistent rule do, so that a trace is
    /// recorded as a whole or not at all.
    #[must_use]
    pub fn takes(&self, trace: TraceId, parent: Option<&Parent>) -> bool {
        match parent {
            Some(parent) if self.follow_clients => parent.sampled,
            _ => {
                let last = trace.0[9..].iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
                last >= self.threshold
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_well_formed_parent_is_read() {
        let parent = Parent::parse(GOOD).unwrap();
        assert_eq!(parent.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span.to_string(), "b7ad6b7169203331");
        assert!(parent.sampled);
        assert!(!Parent::parse(&GOOD.replace("-01", "-00")).unwrap().sampled);
        // Unknown flags and later versions are no reason to lose the trace.
        assert!(Parent::parse(&GOOD.replace("-01", "-ff")).unwrap().sampled);
        assert!(Parent::parse(&format!("cc{}-what-comes-later", &GOOD[2..])).is_some());
    }

    #[test]
    fn anything_else_is_no_parent() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\u{e4}-01",
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, GOOD.parse().unwrap());
        assert!(Parent::of(&twice).is_some());
        twice.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(Parent::of(&twice), None);
    }

    #[test]
    fn the_ratio_is_kept_and_the_parent_may_overrule_it() {
        let id = |last: u64| {
            let mut bytes = [7; 16];
            bytes[8..].copy_from_slice(&last.to_be_bytes());
            TraceId(bytes)
        };
        // 56 bits in even steps: exactly the ratio of them is taken.
        let taken = |ratio: f64| {
            let sampler = Sampler::new(ratio, true);
            (0..1000u64).filter(|step| sampler.takes(id(step * ((1 << 56) / 1000)), None)).count()
        };
        assert_eq!([taken(0.0), taken(1.0)], [0, 1000]);
        assert!((249..=251).contains(&taken(0.25)), "{}", taken(0.25));
        let sampled = Parent { trace: id(0), span: SpanId([1; 8]), sampled: true };
        let silent = Parent { sampled: false, ..sampled };
        assert!(Sampler::new(0.0, true).takes(id(0), Some(&sampled)));
        assert!(!Sampler::new(1.0, true).takes(id(0), Some(&silent)));
        assert!(!Sampler::new(0.0, false).takes(id(0), Some(&sampled)));
        assert!(Sampler::new(1.0, false).takes(id(0), Some(&silent)));
    }
}
