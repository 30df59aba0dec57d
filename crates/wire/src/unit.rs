//! Units: money, tokens, sizes and times never travel as bare integers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(pub $inner);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The sum, unless it overflows.
            #[must_use]
            pub const fn checked_add(self, other: Self) -> Option<Self> {
                match self.0.checked_add(other.0) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The difference, unless it overflows.
            #[must_use]
            pub const fn checked_sub(self, other: Self) -> Option<Self> {
                match self.0.checked_sub(other.0) {
                    Some(difference) => Some(Self(difference)),
                    None => None,
                }
            }

            /// The difference, at the type's lower end when it would be below it.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// The sum, at the type's upper end when it would be above it.
            #[must_use]
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(
    /// Money: 1 credit = 1,000,000 micro-credits (MR1). Negative amounts exist only in postings.
    MicroCredits(i64)
);
unit!(
    /// A number of tokens.
    Tokens(u64)
);
unit!(
    /// A number of bytes.
    Bytes(u64)
);
unit!(
    /// A span of time in milliseconds.
    Millis(u64)
);
unit!(
    /// A moment: milliseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64)
);

impl MicroCredits {
    /// Micro-credits in one credit.
    pub const PER_CREDIT: i64 = 1_000_000;

    /// Credits as an exact decimal text with six places, such as `0.002410`.
    #[must_use]
    pub fn to_credits(self) -> String {
        let sign = if self.0 < 0 { "-" } else { "" };
        let size = self.0.unsigned_abs();
        let unit = Self::PER_CREDIT.unsigned_abs();
        format!("{sign}{}.{:06}", size / unit, size % unit)
    }

    /// Parses a decimal number of credits with at most six places; `None` when it is not one or does not fit.
    #[must_use]
    pub fn from_credits(text: &str) -> Option<Self> {
        let (sign, digits) = text.strip_prefix('-').map_or((1_i64, text), |rest| (-1, rest));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let numeric = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && part.is_empty()) || part.len() > 6 || !numeric(whole) || !numeric(part) {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part: i64 = format!("{part:0<6}").parse().ok()?;
        whole.checked_mul(Self::PER_CREDIT)?.checked_add(part)?.checked_mul(sign).map(Self)
    }
}

impl Millis {
    /// The same span as a standard duration.
    #[must_use]
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl From<std::time::Duration> for Millis {
    fn from(span: std::time::Duration) -> Self {
        Self(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Timestamp {
    /// This moment moved by `span` into the future.
    #[must_use]
    pub fn plus(self, span: Millis) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }

    /// Time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Millis {
        Millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_exact_both_ways() {
        for (micro, text) in
            [(0, "0.000000"), (2410, "0.002410"), (-1, "-0.000001"), (10_000_000, "10.000000")]
        {
            assert_eq!(MicroCredits(micro).to_credits(), text);
            assert_eq!(MicroCredits::from_credits(text), Some(MicroCredits(micro)));
        }
        assert_eq!(MicroCredits::from_credits("1.5"), Some(MicroCredits(1_500_000)));
        for bad in ["", ".", "1.0000001", "1e3", "NaN", "99999999999999999999", "+1", "--1"] {
            assert_eq!(MicroCredits::from_credits(bad), None, "{bad}");
        }
        assert_eq!(MicroCredits(i64::MIN).to_credits(), "-9223372036854.775808");
    }
}
