//! From counted units to money: one price row, one division, rounded up for the payer and down for the provider
//! (MR2, MR3, MR4).

use cxmpute_wire::{MicroCredits, Millis, Tokens};
use serde::{Deserialize, Serialize};

/// Prices are per this many units (MR2).
pub const PER_UNITS: i128 = 1_000_000;
/// A whole in basis points.
pub const FULL_SHARE_BP: i64 = 10_000;
/// The provider's share that ships (MR42).
pub const DEFAULT_SHARE_BP: i64 = 9_000;

/// One versioned price of one model. Pinned in the hold, so a change never touches a running request (MR5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceRow {
    /// The model or route it belongs to.
    pub id: String,
    /// Grows with every change.
    pub version: i64,
    /// Per 10^6 prompt tokens.
    #[serde(default)]
    pub prompt: MicroCredits,
    /// Per 10^6 completion tokens.
    #[serde(default)]
    pub completion: MicroCredits,
    /// Per 10^6 embedded tokens.
    #[serde(default)]
    pub embedding: MicroCredits,
    /// Per 10^6 characters.
    #[serde(default)]
    pub character: MicroCredits,
    /// Per 10^6 seconds of audio.
    #[serde(default)]
    pub second: MicroCredits,
    /// Per 10^6 pages with content.
    #[serde(default)]
    pub url: MicroCredits,
    /// Per 10^6 images.
    #[serde(default)]
    pub image: MicroCredits,
    /// Least charge of a request that is charged at all.
    #[serde(default)]
    pub minimum: MicroCredits,
    /// The provider's share in basis points.
    pub share_bp: i64,
    /// Costs nothing, on purpose; a zero price without it is a mistake.
    #[serde(default)]
    pub free: bool,
}

/// What was counted for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Units {
    /// Tokens of the templated prompt.
    #[serde(default)]
    pub prompt: Tokens,
    /// Tokens of the visible output.
    #[serde(default)]
    pub completion: Tokens,
    /// Tokens that were embedded.
    #[serde(default)]
    pub embedding: Tokens,
    /// Characters.
    #[serde(default)]
    pub characters: u64,
    /// Seconds of audio, each begun one whole.
    #[serde(default)]
    pub seconds: u64,
    /// Pages that were fetched and had content.
    #[serde(default)]
    pub urls: u64,
    /// Images that were looked at or made.
    #[serde(default)]
    pub images: u64,
}

impl Units {
    /// Units of a chat or completion.
    #[must_use]
    pub fn chat(prompt: Tokens, completion: Tokens) -> Self {
        Self { prompt, completion, ..Self::default() }
    }

    /// Units of an embedding.
    #[must_use]
    pub fn embedding(tokens: Tokens) -> Self {
        Self { embedding: tokens, ..Self::default() }
    }

    /// Units of audio of this length: a second that was begun counts whole.
    #[must_use]
    pub fn audio(length: Millis) -> Self {
        Self { seconds: length.0.div_ceil(1_000), ..Self::default() }
    }

    /// Whether output was delivered, as opposed to a prompt only.
    #[must_use]
    pub fn delivered(&self) -> bool {
        self.completion.0 > 0 || self.embedding.0 > 0 || self.characters > 0 || self.items() > 0
    }

    /// Seconds, pages and images together: what is counted by the piece.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.seconds.saturating_add(self.urls).saturating_add(self.images)
    }

    /// The smaller of both, unit by unit.
    #[must_use]
    pub fn min(&self, other: &Self) -> Self {
        Self {
            prompt: self.prompt.min(other.prompt),
            completion: self.completion.min(other.completion),
            embedding: self.embedding.min(other.embedding),
            characters: self.characters.min(other.characters),
            seconds: self.seconds.min(other.seconds),
            urls: self.urls.min(other.urls),
            images: self.images.min(other.images),
        }
    }
}

/// Why a price cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// A price below zero.
    #[error("price `{id}` version {version}: {field} is negative")]
    Negative {
        /// Price.
        id: String,
        /// Version.
        version: i64,
        /// Field.
        field: &'static str,
    },
    /// Every unit price is zero and the row is not marked free.
    #[error("price `{id}` version {version} charges nothing and is not marked `free = true`")]
    ZeroByAccident {
        /// Price.
        id: String,
        /// Version.
        version: i64,
    },
    /// Free and priced at once.
    #[error("price `{id}` version {version} is marked `free = true` but has a price")]
    FreeWithPrice {
        /// Price.
        id: String,
        /// Version.
        version: i64,
    },
    /// The provider's share is outside 0..=10000.
    #[error("price `{id}` version {version}: share_bp {share_bp} is outside 0..=10000")]
    Share {
        /// Price.
        id: String,
        /// Version.
        version: i64,
        /// Share.
        share_bp: i64,
    },
    /// The units cost more than an amount can hold.
    #[error("price `{id}` version {version}: the cost does not fit an amount")]
    Overflow {
        /// Price.
        id: String,
        /// Version.
        version: i64,
    },
}

impl PriceRow {
    /// The unit price by which owners compare models: that of what is made, else that of what is read.
    #[must_use]
    pub fn main(&self) -> MicroCredits {
        let prices =
            [self.completion, self.embedding, self.character, self.second, self.image, self.url, self.prompt];
        prices.into_iter().find(|price| price.0 > 0).unwrap_or_default()
    }

    /// Refuses negative, accidental-zero and contradictory rows; called when a table is loaded and again at each
    /// use (MR4).
    ///
    /// # Errors
    /// The first rule that the row breaks.
    pub fn validate(&self) -> Result<(), PriceError> {
        let (id, version) = (|| self.id.clone(), self.version);
        let prices = [
            ("prompt", self.prompt),
            ("completion", self.completion),
            ("embedding", self.embedding),
            ("character", self.character),
            ("second", self.second),
            ("url", self.url),
            ("image", self.image),
            ("minimum", self.minimum),
        ];
        for (field, price) in prices {
            if price.0 < 0 {
                return Err(PriceError::Negative { id: id(), version, field });
            }
        }
        if !(0..=FULL_SHARE_BP).contains(&self.share_bp) {
            return Err(PriceError::Share { id: id(), version, share_bp: self.share_bp });
        }
        let priced = prices.iter().any(|(_, price)| price.0 > 0);
        match (self.free, priced) {
            (true, true) => Err(PriceError::FreeWithPrice { id: id(), version }),
            (false, false) => Err(PriceError::ZeroByAccident { id: id(), version }),
            _ => Ok(()),
        }
    }
}

/// What `units` cost at `price`: the exact sum, divided once by 10^6 and rounded up, never below the minimum
/// charge (MR3). Where nothing was delivered there is nothing to pay (MR31).
///
/// # Errors
/// The price is not usable, or the cost does not fit.
pub fn cost(price: &PriceRow, units: &Units) -> Result<MicroCredits, PriceError> {
    price.validate()?;
    if price.free || *units == Units::default() {
        return Ok(MicroCredits::ZERO);
    }
    let parts = [
        (units.prompt.0, price.prompt),
        (units.completion.0, price.completion),
        (units.embedding.0, price.embedding),
        (units.characters, price.character),
        (units.seconds, price.second),
        (units.urls, price.url),
        (units.images, price.image),
    ];
    // 7 products of a u64 and a positive i64 stay below 2^127 unless the counts are absurd; check anyway.
    let overflow = || PriceError::Overflow { id: price.id.clone(), version: price.version };
    let mut sum: i128 = 0;
    for (count, unit_price) in parts {
        let product = i128::from(count).checked_mul(i128::from(unit_price.0)).ok_or_else(overflow)?;
        sum = sum.checked_add(product).ok_or_else(overflow)?;
    }
    let rounded = sum / PER_UNITS + i128::from(sum % PER_UNITS != 0);
    let amount = i64::try_from(rounded).map_err(|_| overflow())?;
    Ok(MicroCredits(amount).max(price.minimum))
}

/// What the units of one request cost before rounding and the least charge, in 10^-12 credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// The prompt, or what was embedded.
    pub prompt: i128,
    /// The output.
    pub completion: i128,
    /// Characters of both.
    pub characters: i128,
    /// Seconds of audio.
    pub seconds: i128,
    /// Pages.
    pub urls: i128,
    /// Images.
    pub images: i128,
    /// What is charged beyond these parts; below zero where a hold did not cover them.
    pub adjustment: i128,
}

/// Takes a charge apart; the parts add up to it exactly. A price per 10^6 units in micro-credits is a price per unit in
/// 10^-12 credits.
#[must_use]
pub fn parts(price: &PriceRow, units: &Units, charged: MicroCredits) -> Parts {
    if price.free {
        return Parts { adjustment: i128::from(charged.0) * PER_UNITS, ..Parts::default() };
    }
    let of =
        |count: u64, unit_price: MicroCredits| i128::from(count).saturating_mul(i128::from(unit_price.0));
    let prompt = of(units.prompt.0, price.prompt).saturating_add(of(units.embedding.0, price.embedding));
    let completion = of(units.completion.0, price.completion);
    let characters = of(units.characters, price.character);
    let seconds = of(units.seconds, price.second);
    let urls = of(units.urls, price.url);
    let images = of(units.images, price.image);
    let sum =
        [prompt, completion, characters, seconds, urls, images].into_iter().fold(0, i128::saturating_add);
    let adjustment = (i128::from(charged.0) * PER_UNITS).saturating_sub(sum);
    Parts { prompt, completion, characters, seconds, urls, images, adjustment }
}

/// So many 10^-12 credits as an exact decimal text, such as `0.0000015`.
#[must_use]
pub fn print_exactly(amount: i128) -> String {
    const CREDIT: u128 = 1_000_000_000_000;
    let (sign, size) = (if amount < 0 { "-" } else { "" }, amount.unsigned_abs());
    let text = format!("{sign}{}.{:012}", size / CREDIT, size % CREDIT);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A charge divided between provider and platform; the parts add up to the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// `floor(charge x share / 10000)`.
    pub provider: MicroCredits,
    /// The rest, so that nothing is lost to rounding.
    pub platform: MicroCredits,
}

/// Divides a charge by the provider's share in basis points, clamped to 0..=10000.
#[must_use]
pub fn split(charge: MicroCredits, share_bp: i64) -> Split {
    let share = i128::from(share_bp.clamp(0, FULL_SHARE_BP));
    let provider = i128::from(charge.0.max(0)) * share / i128::from(FULL_SHARE_BP);
    // A part of an i64 is an i64.
    let provider = MicroCredits(i64::try_from(provider).unwrap_or(0));
    Split { provider, platform: charge.saturating_sub(provider) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(prompt: i64, completion: i64) -> PriceRow {
        PriceRow {
            id: "m".into(),
            version: 1,
            prompt: MicroCredits(prompt),
            completion: MicroCredits(completion),
            embedding: MicroCredits(0),
            character: MicroCredits(0),
            second: MicroCredits(0),
            url: MicroCredits(0),
            image: MicroCredits(0),
            minimum: MicroCredits(0),
            share_bp: DEFAULT_SHARE_BP,
            free: false,
        }
    }

    #[test]
    fn the_sum_is_rounded_up_once() {
        // 1 x 0.3 + 1 x 0.3 = 0.6 -> 1, not 2.
        let units = Units::chat(Tokens(1), Tokens(1));
        assert_eq!(cost(&row(300_000, 300_000), &units), Ok(MicroCredits(1)));
        assert_eq!(cost(&row(300_000, 300_000), &Units::default()), Ok(MicroCredits(0)));
        assert_eq!(
            cost(&row(1_000_000, 2_000_000), &Units::chat(Tokens(10), Tokens(5))),
            Ok(MicroCredits(20))
        );
    }

    #[test]
    fn a_charge_is_the_sum_of_its_parts() {
        let price = PriceRow { minimum: MicroCredits(5), ..row(300_000, 700_000) };
        for (units, charged) in [
            (Units::chat(Tokens(1), Tokens(1)), MicroCredits(5)),
            (
                Units::chat(Tokens(1_001), Tokens(17)),
                cost(&price, &Units::chat(Tokens(1_001), Tokens(17))).unwrap(),
            ),
            // The hold covered less.
            (Units::chat(Tokens(1_000), Tokens(0)), MicroCredits(7)),
        ] {
            let of = parts(&price, &units, charged);
            assert_eq!(of.prompt, i128::from(units.prompt.0) * 300_000);
            assert_eq!(of.completion, i128::from(units.completion.0) * 700_000);
            assert_eq!(
                of.prompt + of.completion + of.characters + of.adjustment,
                i128::from(charged.0) * PER_UNITS
            );
        }
        let free = PriceRow { free: true, ..row(0, 0) };
        assert_eq!(parts(&free, &Units::chat(Tokens(9), Tokens(9)), MicroCredits(0)), Parts::default());
    }

    #[test]
    fn seconds_pages_and_images_cost_by_the_piece() {
        let price = PriceRow {
            second: MicroCredits(100_000_000),
            url: MicroCredits(600_000_000),
            image: MicroCredits(12_000_000_000),
            ..row(0, 0)
        };
        let audio = Units::audio(Millis(1_001));
        assert_eq!((audio.seconds, Units::audio(Millis(0)).seconds), (2, 0));
        let pages = Units { urls: 3, ..Units::default() };
        let images = Units { images: 2, ..Units::default() };
        for (units, costs) in [(audio, 200), (pages, 1_800), (images, 24_000)] {
            assert_eq!(cost(&price, &units), Ok(MicroCredits(costs)), "{units:?}");
            assert!(units.delivered() && units.items() > 0);
            let of = parts(&price, &units, MicroCredits(costs));
            assert_eq!(of.seconds + of.urls + of.images, i128::from(costs) * PER_UNITS);
            assert_eq!(of.adjustment, 0);
            assert_eq!(units.min(&Units::default()), Units::default());
        }
        for (field, bad) in [
            ("second", PriceRow { second: MicroCredits(-1), ..row(1, 1) }),
            ("url", PriceRow { url: MicroCredits(-1), ..row(1, 1) }),
            ("image", PriceRow { image: MicroCredits(-1), ..row(1, 1) }),
        ] {
            assert!(matches!(bad.validate(), Err(PriceError::Negative { field: at, .. }) if at == field));
        }
    }

    /// Rows and counts that were stored before a unit existed.
    #[test]
    fn what_was_stored_before_a_unit_existed_still_reads() {
        let old = r#"{"id":"m","version":1,"prompt":3,"completion":4,"embedding":0,"character":0,"minimum":1,"share_bp":9000,"free":false}"#;
        let price: PriceRow = serde_json::from_str(old).unwrap();
        assert_eq!(price, PriceRow { minimum: MicroCredits(1), ..row(3, 4) });
        let units: Units = serde_json::from_str(r#"{"prompt":10,"completion":7}"#).unwrap();
        assert_eq!(units, Units::chat(Tokens(10), Tokens(7)));
    }

    #[test]
    fn parts_are_printed_exactly() {
        for (amount, text) in [
            (0, "0"),
            (1, "0.000000000001"),
            (-5_000_000, "-0.000005"),
            (20_000_000, "0.00002"),
            (1_500_000_000_000, "1.5"),
        ] {
            assert_eq!(print_exactly(amount), text);
        }
    }

    #[test]
    fn the_worked_example_of_the_ledger_table_holds() {
        assert_eq!(
            split(MicroCredits(2410), 9000),
            Split { provider: MicroCredits(2169), platform: MicroCredits(241) }
        );
    }

    #[test]
    fn a_minimum_charge_counts_and_a_free_row_costs_nothing() {
        let mut price = row(1, 1);
        price.minimum = MicroCredits(7);
        assert_eq!(cost(&price, &Units::chat(Tokens(1), Tokens(1))), Ok(MicroCredits(7)));
        assert_eq!(cost(&price, &Units::default()), Ok(MicroCredits(0)), "nothing was delivered");
        let mut free = row(0, 0);
        free.free = true;
        assert_eq!(cost(&free, &Units::chat(Tokens(u64::MAX), Tokens(9))), Ok(MicroCredits(0)));
    }

    #[test]
    fn bad_rows_are_refused_at_use() {
        assert!(matches!(
            cost(&row(-1, 5), &Units::default()),
            Err(PriceError::Negative { field: "prompt", .. })
        ));
        assert!(matches!(cost(&row(0, 0), &Units::default()), Err(PriceError::ZeroByAccident { .. })));
        let mut price = row(1, 1);
        price.free = true;
        assert!(matches!(price.validate(), Err(PriceError::FreeWithPrice { .. })));
        price.free = false;
        price.share_bp = 10_001;
        assert!(matches!(price.validate(), Err(PriceError::Share { .. })));
        let all = Units { prompt: Tokens(u64::MAX), ..Units::default() };
        assert!(matches!(cost(&row(i64::MAX, 1), &all), Err(PriceError::Overflow { .. })));
    }

    proptest! {
        #[test]
        fn cost_is_the_exact_ceiling(p in 0_i64..1 << 40, c in 1_i64..1 << 40, n in 0_u64..1 << 20, m in 0_u64..1 << 20) {
            let exact = i128::from(p) * i128::from(n) + i128::from(c) * i128::from(m);
            let got = cost(&row(p, c), &Units::chat(Tokens(n), Tokens(m)));
            match got {
                Ok(amount) => {
                    let got = i128::from(amount.0) * PER_UNITS;
                    prop_assert!(got >= exact && got - exact < PER_UNITS);
                }
                Err(PriceError::Overflow { .. }) => prop_assert!(exact / PER_UNITS >= i128::from(i64::MAX)),
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }

        #[test]
        fn a_split_loses_nothing(charge in 0_i64..=i64::MAX, share in 0_i64..=FULL_SHARE_BP) {
            let parts = split(MicroCredits(charge), share);
            prop_assert!(parts.provider.0 >= 0 && parts.platform.0 >= 0);
            prop_assert_eq!(parts.provider.0 + parts.platform.0, charge);
        }
    }
}
