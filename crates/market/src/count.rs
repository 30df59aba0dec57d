//! What a provider's claim is worth beside the gateway's own count (MR21).

use serde::{Deserialize, Serialize};

use crate::price::Units;

/// A claim must be off by more than this many units …
const SLACK_UNITS: u64 = 8;
/// … and by more than this part of the count (1/50 = 2 %) to be written down.
const SLACK_DIVISOR: u64 = 50;

/// What the provider is paid for: the smaller of count and claim; without a claim, the count.
#[must_use]
pub fn payable(counted: &Units, claimed: Option<&Units>) -> Units {
    claimed.map_or(*counted, |claimed| counted.min(claimed))
}

/// A claim that is too far from the count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// `prompt`, `completion`, `embedding` or `characters`.
    pub unit: &'static str,
    /// The gateway's count.
    pub counted: u64,
    /// The node's claim.
    pub claimed: u64,
}

/// Each unit in which the claim differs by more than 2 % and more than 8.
#[must_use]
pub fn mismatches(counted: &Units, claimed: &Units) -> Vec<Mismatch> {
    [
        ("prompt", counted.prompt.0, claimed.prompt.0),
        ("completion", counted.completion.0, claimed.completion.0),
        ("embedding", counted.embedding.0, claimed.embedding.0),
        ("characters", counted.characters, claimed.characters),
    ]
    .into_iter()
    .filter(|(_, counted, claimed)| {
        let gap = counted.abs_diff(*claimed);
        gap > SLACK_UNITS && gap > counted / SLACK_DIVISOR
    })
    .map(|(unit, counted, claimed)| Mismatch { unit, counted, claimed })
    .collect()
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::Tokens;

    use super::*;

    #[test]
    fn a_claim_can_lower_the_pay_and_never_raise_it() {
        let counted = Units::chat(Tokens(10), Tokens(20));
        assert_eq!(payable(&counted, None), counted);
        assert_eq!(
            payable(&counted, Some(&Units::chat(Tokens(100), Tokens(5)))),
            Units::chat(Tokens(10), Tokens(5))
        );
    }

    #[test]
    fn only_a_difference_beyond_both_bounds_is_flagged() {
        let counted = Units::chat(Tokens(1000), Tokens(100));
        assert!(mismatches(&counted, &Units::chat(Tokens(1020), Tokens(108))).is_empty());
        let flagged = mismatches(&counted, &Units::chat(Tokens(1021), Tokens(109)));
        assert_eq!(flagged.iter().map(|flag| flag.unit).collect::<Vec<_>>(), ["prompt", "completion"]);
        assert_eq!(mismatches(&counted, &Units::chat(Tokens(1000), Tokens(u64::MAX))).len(), 1);
    }
}
