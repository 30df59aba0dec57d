//! On which terms a machine may be asked: its owner's least prices, and memory that turned out to be too little there.

use cxmpute_wire::{Bytes, MicroCredits, Millis, ServiceId};

use super::Need;

/// How long a service that ran out of memory is planned with more of it: engines and models change, and an owner adds memory.
pub const FLOOR_HOLDS: Millis = Millis(30 * 24 * 3600 * 1000);
/// After an end for lack of memory a service is planned with a quarter more …
const STEP_PART: u64 = 4;
/// … and at least so much more.
const LEAST_STEP: Bytes = Bytes(64 << 20);

/// A service that was ended for lack of memory on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    /// Which service.
    pub service: ServiceId,
    /// It is planned with no less than this there.
    pub memory: Bytes,
}

/// With how much a service is planned that ran out of memory with `claim`.
#[must_use]
pub fn raised(claim: Bytes) -> Bytes {
    Bytes(claim.0.saturating_add((claim.0 / STEP_PART).max(LEAST_STEP.0)))
}

impl Need {
    /// The same with no less memory of the machine than was found to be needed; `None` where that changes nothing.
    pub(super) fn with_floor(&self, floor: Bytes) -> Option<Self> {
        let raised = Self {
            memory: self.memory.max(floor),
            cpu_memory: self.cpu_memory.map(|memory| memory.max(floor)),
            ..self.clone()
        };
        (raised != *self).then_some(raised)
    }
}

/// The owner's least price for a service: what names the service itself counts more than its model, and that more than its
/// kind.
pub(super) fn least_price(list: &[(String, MicroCredits)], service: &ServiceId) -> Option<MicroCredits> {
    let of = |name: &str| list.iter().find(|(of, _)| of == name).map(|(_, price)| *price);
    of(service.as_str()).or_else(|| of(service.model()?)).or_else(|| of(service.kind().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_least_price_counts() {
        let service: ServiceId = "llm:m:1b".parse().unwrap();
        let list = |names: &[(&str, i64)]| -> Vec<(String, MicroCredits)> {
            names.iter().map(|(name, price)| ((*name).to_owned(), MicroCredits(*price))).collect()
        };
        for (names, expected) in [
            (&[][..], None),
            (&[("tts", 9), ("m", 9)][..], None),
            (&[("llm", 1)][..], Some(1)),
            (&[("llm", 1), ("m:1b", 2)][..], Some(2)),
            (&[("llm:m:1b", 3), ("m:1b", 2), ("llm", 1)][..], Some(3)),
        ] {
            assert_eq!(least_price(&list(names), &service), expected.map(MicroCredits), "{names:?}");
        }
    }

    #[test]
    fn more_is_a_quarter_more_and_never_nothing() {
        assert_eq!(raised(Bytes(4 << 30)), Bytes(5 << 30));
        assert_eq!(raised(Bytes(0)), Bytes(64 << 20));
        assert_eq!(raised(Bytes(u64::MAX)), Bytes(u64::MAX));
    }
}
