//! What a request wants of the nodes that may serve it: the `provider` object, read once and checked field by field
//! (GR section 6). The choice itself is in [`crate::route`].

use cxmpute_wire::MicroCredits;
use cxmpute_wire::openai::{
    DataCollection, LatencyBound, MaxPrice, OwnNodes, Percentiles, ProviderPreferences, Sort, SortBy,
};

use crate::price::PriceRow;
use crate::speed::Samples;

/// Most names in one list.
const NAMES: usize = 64;
/// Longest name.
const NAME_BYTES: usize = 64;
/// Largest bound of a throughput (tokens per second) or a latency (seconds).
const BOUND: f64 = 1e9;

/// How sure the network is that a node serves what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Evidence {
    /// Nobody looked.
    #[default]
    Unverified,
    /// It answered a check of the gateway through its tunnel.
    CanaryPassed,
    /// Its hardware vouches for it.
    Attested,
}

impl Evidence {
    /// The printed form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::CanaryPassed => "canary-passed",
            Self::Attested => "attested",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Unverified, Self::CanaryPassed, Self::Attested].into_iter().find(|e| e.as_str() == name)
    }
}

/// What is known of a node beside its load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits {
    /// Whose it is.
    pub owner: cxmpute_wire::UserId,
    /// Its public name.
    pub slug: String,
    /// Country, two letters in capitals, where its owner said so.
    pub region: Option<String>,
    /// Quantisation of what it serves, in lower case, where it is known.
    pub quantization: Option<String>,
    /// How sure we are of it.
    pub evidence: Evidence,
    /// Whether it is known to keep nothing of a request. Unknown is `false` (GR19).
    pub keeps_nothing: bool,
}

/// Upper bounds of prices in micro-credits: per 10^6 units, and per request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PriceCap {
    /// Per 10^6 prompt tokens.
    pub prompt: Option<MicroCredits>,
    /// Per 10^6 output tokens.
    pub completion: Option<MicroCredits>,
    /// Per request: bounds the least charge.
    pub request: Option<MicroCredits>,
    /// Per 10^6 images that are looked at or drawn; users say it for one.
    pub image: Option<MicroCredits>,
}

impl PriceCap {
    /// Whether a price is within all bounds. A free model always is.
    #[must_use]
    pub fn admits(&self, price: &PriceRow) -> bool {
        let within = |cap: Option<MicroCredits>, price: MicroCredits| cap.is_none_or(|cap| price <= cap);
        price.free
            || (within(self.prompt, price.prompt)
                && within(self.completion, price.completion)
                && within(self.request, price.minimum)
                && within(self.image, price.image))
    }
}

/// The `provider` object as the choice uses it. The default wishes for nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wishes {
    /// Public names to try first, in this order.
    pub order: Vec<String>,
    /// Nobody else, unless empty.
    pub only: Vec<String>,
    /// None of these.
    pub ignore: Vec<String>,
    /// Nobody beyond `order`; without an order, no second node.
    pub no_fallbacks: bool,
    /// Only nodes that are known to keep nothing: `data_collection: deny`.
    pub deny_collection: bool,
    /// The same by its other name.
    pub zdr: bool,
    /// Only these quantisations, unless empty.
    pub quantizations: Vec<String>,
    /// What comes first.
    pub sort: Option<SortBy>,
    /// Tokens per second that a node should reach.
    pub least_rate: Percentiles,
    /// Milliseconds to the first token that a node should keep.
    pub most_latency: Percentiles,
    /// Bounds of prices.
    pub max_price: PriceCap,
    /// Least evidence.
    pub evidence: Evidence,
    /// Only in these countries, unless empty.
    pub region: Vec<String>,
    /// Whether nodes of the payer may serve; `None` is never.
    pub own_nodes: Option<OwnNodes>,
}

/// A value of the `provider` object that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("provider.{field} {reason}")]
pub struct BadWish {
    /// The field within `provider`.
    pub field: &'static str,
    /// What would be right; continues a sentence that begins with the field.
    pub reason: &'static str,
}

impl Wishes {
    /// Reads the object.
    ///
    /// `require_parameters` needs nothing here: a parameter that a model does not support is refused for all its
    /// nodes, so whoever serves the model supports every parameter of an accepted request.
    ///
    /// # Errors
    /// The first field with a value that cannot be meant.
    pub fn read(preferences: &ProviderPreferences) -> Result<Self, BadWish> {
        let p = preferences;
        Ok(Self {
            order: names("order", p.order.as_ref())?,
            only: names("only", p.only.as_ref())?,
            ignore: names("ignore", p.ignore.as_ref())?,
            no_fallbacks: p.allow_fallbacks == Some(false),
            deny_collection: p.data_collection == Some(DataCollection::Deny),
            zdr: p.zdr == Some(true),
            quantizations: names("quantizations", p.quantizations.as_ref())?
                .into_iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            sort: p.sort.as_ref().map(sort).transpose()?,
            least_rate: bound("preferred_min_throughput", p.preferred_min_throughput, 1.0)?,
            most_latency: bound("preferred_max_latency", p.preferred_max_latency, 1000.0)?,
            max_price: p.max_price.as_ref().map(price_cap).transpose()?.unwrap_or_default(),
            evidence: evidence(p.evidence.as_deref())?,
            region: regions(p.region.as_ref())?,
            own_nodes: p.own_nodes,
        })
    }

    /// Whether every node of others is as welcome as the next.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a node is known to miss a preferred bound. A node that nobody measured is not known to.
    #[must_use]
    pub fn is_missed_by(&self, latency_ms: &Samples, rate: &Samples) -> bool {
        let each = |bounds: &Percentiles| {
            [(50.0, bounds.p50), (75.0, bounds.p75), (90.0, bounds.p90), (99.0, bounds.p99)]
        };
        // A throughput that 90 % of the requests reach is the one that the slowest 10 % set.
        let slow = each(&self.least_rate).into_iter().any(|(percent, least)| {
            least.is_some_and(|least| rate.percentile(100.0 - percent).is_some_and(|rate| rate < least))
        });
        slow || each(&self.most_latency).into_iter().any(|(percent, most)| {
            most.is_some_and(|most| latency_ms.percentile(percent).is_some_and(|latency| latency > most))
        })
    }

    /// Whether [`Self::is_missed_by`] can ever say so.
    #[must_use]
    pub fn has_bounds(&self) -> bool {
        self.least_rate != Percentiles::default() || self.most_latency != Percentiles::default()
    }
}

fn names(field: &'static str, list: Option<&Vec<String>>) -> Result<Vec<String>, BadWish> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let printable = |name: &String| {
        !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if list.len() > NAMES || !list.iter().all(printable) {
        return Err(BadWish {
            field,
            reason: "must be a list of at most 64 names of 1 to 64 visible characters.",
        });
    }
    Ok(list.clone())
}

fn sort(sort: &Sort) -> Result<SortBy, BadWish> {
    let partition = match sort {
        Sort::By(_) => None,
        Sort::Order(order) => order.partition.as_deref(),
    };
    match partition {
        None | Some("model") => Ok(sort.by()),
        Some(_) => Err(BadWish {
            field: "sort",
            reason: "can only have the partition \"model\": the nodes of one model are sorted, then those of the next.",
        }),
    }
}

fn bound(field: &'static str, bound: Option<LatencyBound>, scale: f64) -> Result<Percentiles, BadWish> {
    let percentiles = match bound {
        None => return Ok(Percentiles::default()),
        Some(LatencyBound::Median(p50)) => Percentiles { p50: Some(p50), ..Percentiles::default() },
        Some(LatencyBound::Percentiles(percentiles)) => percentiles,
    };
    let Percentiles { p50, p75, p90, p99 } = percentiles;
    let fits = |value: Option<f64>| value.is_none_or(|value| value > 0.0 && value <= BOUND);
    if ![p50, p75, p90, p99].into_iter().all(fits) {
        return Err(BadWish {
            field,
            reason: "must be a number over 0, or an object of p50, p75, p90 and p99.",
        });
    }
    let scaled = |value: Option<f64>| value.map(|value| value * scale);
    Ok(Percentiles { p50: scaled(p50), p75: scaled(p75), p90: scaled(p90), p99: scaled(p99) })
}

fn price_cap(cap: &MaxPrice) -> Result<PriceCap, BadWish> {
    let wrong = BadWish {
        field: "max_price",
        reason: "must be an object of prices in credits (prompt and completion per million tokens, request per \
                 request, image per image), as numbers or decimal texts from 0.",
    };
    let read = |text: Option<String>, scale| text.map(|text| scaled(&text, scale).ok_or(wrong)).transpose();
    let text = |value: Option<&str>, printed: Option<String>| value.map(str::to_owned).or(printed);
    let prices = [
        (&cap.prompt, MICRO),
        (&cap.completion, MICRO),
        (&cap.request, MICRO),
        // Said for one, held for a million.
        (&cap.image, MICRO + MICRO),
    ];
    let [prompt, completion, request, image] = prices.map(|(value, scale)| {
        let said = value.as_ref();
        read(text(said.and_then(|value| value.as_str()), said.map(ToString::to_string)), scale)
    });
    Ok(PriceCap { prompt: prompt?, completion: completion?, request: request?, image: image? })
}

/// Whole micro-credits of a decimal number of credits, rounded down: a whole price is at most the decimal exactly when
/// it is at most this. `None` when the text is no decimal number from 0 on.
#[must_use]
pub fn micro_credits(text: &str) -> Option<MicroCredits> {
    scaled(text, MICRO)
}

/// 1 credit = 10^6 micro-credits, and a million has as many zeros.
const MICRO: i64 = 6;

/// A decimal number with its point so many digits further right, rounded down.
fn scaled(text: &str, scale: i64) -> Option<MicroCredits> {
    /// Longest text that can be meant.
    const LONGEST: usize = 64;
    if text.len() > LONGEST {
        return None;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        None => (text, 0),
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i16>().ok()?),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if whole.is_empty() || !digits().all(|byte| byte.is_ascii_digit()) || mantissa.ends_with('.') {
        return None;
    }
    // So many of the digits stand before the point once it is moved.
    let kept = i64::try_from(whole.len()).ok()? + i64::from(exponent) + scale;
    let mut digits = digits();
    let mut value: i64 = 0;
    for _ in 0..kept.clamp(0, 400) {
        let digit = digits.next().map_or(0, |byte| i64::from(byte - b'0'));
        value = value.saturating_mul(10).saturating_add(digit);
    }
    Some(MicroCredits(value))
}

fn evidence(name: Option<&str>) -> Result<Evidence, BadWish> {
    name.map_or(Ok(Evidence::Unverified), |name| {
        Evidence::from_name(name).ok_or(BadWish {
            field: "evidence",
            reason: "must be \"unverified\", \"canary-passed\" or \"attested\".",
        })
    })
}

fn regions(list: Option<&Vec<String>>) -> Result<Vec<String>, BadWish> {
    let list = names("region", list)?;
    if !list.iter().all(|name| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        return Err(BadWish { field: "region", reason: "must be a list of country codes of two letters." });
    }
    Ok(list.into_iter().map(|name| name.to_ascii_uppercase()).collect())
}

/// Whether a quantisation is the one that was asked for: by its own name, by the width that it has (`int8` is `q8_0`
/// too), or `unknown` for one that is not known.
#[must_use]
pub fn is_quantization(asked: &str, have: Option<&str>) -> bool {
    let Some(have) = have else { return asked == "unknown" };
    let width = match have {
        "f32" | "fp32" => "fp32",
        "f16" | "fp16" => "fp16",
        "bf16" => "bf16",
        _ if have.starts_with("q8") => "int8",
        _ if have.starts_with("q4") || have.starts_with("iq4") => "int4",
        other => other,
    };
    asked == have || asked == width
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Wishes, BadWish> {
        Wishes::read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn each_field_with_a_bad_value_is_named() {
        let long = format!(r#"{{"only":["{}"]}}"#, "x".repeat(65));
        let many = format!(r#"{{"order":[{}]}}"#, vec![r#""a""#; 65].join(","));
        let table = [
            (r#"{"order":[""]}"#, "order"),
            (many.as_str(), "order"),
            (long.as_str(), "only"),
            (r#"{"ignore":["a b"]}"#, "ignore"),
            (r#"{"quantizations":["é"]}"#, "quantizations"),
            (r#"{"sort":{"by":"price","partition":"none"}}"#, "sort"),
            (r#"{"preferred_min_throughput":0}"#, "preferred_min_throughput"),
            (r#"{"preferred_max_latency":{"p90":-1}}"#, "preferred_max_latency"),
            (r#"{"max_price":{"prompt":-1}}"#, "max_price"),
            (r#"{"max_price":{"completion":"cheap"}}"#, "max_price"),
            (r#"{"max_price":{"image":[]}}"#, "max_price"),
            (r#"{"evidence":"sworn"}"#, "evidence"),
            (r#"{"region":["Germany"]}"#, "region"),
        ];
        for (json, field) in table {
            assert_eq!(read(json).map_err(|bad| bad.field), Err(field), "{json}");
        }
    }

    #[test]
    fn an_empty_object_wishes_for_nothing() {
        assert!(read("{}").unwrap().is_plain());
        assert!(
            read(r#"{"require_parameters":true,"only":[],"allow_fallbacks":true,"data_collection":"allow"}"#)
                .unwrap()
                .is_plain()
        );
        for json in
            [r#"{"zdr":true}"#, r#"{"sort":"price"}"#, r#"{"region":["de"]}"#, r#"{"own_nodes":"allow"}"#]
        {
            assert!(!read(json).unwrap().is_plain(), "{json}");
        }
    }

    #[test]
    fn decimal_prices_are_read_exactly() {
        for (text, micro) in [
            ("0", Some(0)),
            ("1", Some(1_000_000)),
            ("0.15", Some(150_000)),
            ("0.0000009", Some(0)),
            ("0.0000010", Some(1)),
            ("1e-6", Some(1)),
            ("1.5E3", Some(1_500_000_000)),
            ("00012.345678999", Some(12_345_678)),
            ("1e300", Some(i64::MAX)),
            ("1e-300", Some(0)),
            ("-1", None),
            ("+1", None),
            ("", None),
            (".5", None),
            ("5.", None),
            ("1e", None),
            ("1e99999", None),
            ("0x10", None),
            ("NaN", None),
        ] {
            assert_eq!(micro_credits(text).map(|m| m.0), micro, "{text}");
        }
    }

    #[test]
    fn a_cap_admits_what_is_at_most_as_dear() {
        let mut price = PriceRow {
            id: "m".to_owned(),
            version: 1,
            prompt: MicroCredits(150_000),
            completion: MicroCredits(300_000),
            embedding: MicroCredits::ZERO,
            character: MicroCredits::ZERO,
            second: MicroCredits::ZERO,
            url: MicroCredits::ZERO,
            image: MicroCredits::ZERO,
            minimum: MicroCredits(7),
            share_bp: 9_000,
            free: false,
        };
        for (json, fits) in [
            (r#"{"max_price":{"prompt":0.15,"completion":"0.3","request":"0.000007"}}"#, true),
            (r#"{"max_price":{"prompt":0.149999}}"#, false),
            (r#"{"max_price":{"completion":"0.2999999999"}}"#, false),
            (r#"{"max_price":{"request":0.000006}}"#, false),
            (r#"{"max_price":{"image":0}}"#, true),
        ] {
            assert_eq!(read(json).unwrap().max_price.admits(&price), fits, "{json}");
        }
        price.image = MicroCredits(2_000_000_000);
        for (json, fits) in
            [(r#"{"max_price":{"image":0.002}}"#, true), (r#"{"max_price":{"image":"0.001999"}}"#, false)]
        {
            assert_eq!(read(json).unwrap().max_price.admits(&price), fits, "{json}");
        }
        price.free = true;
        assert!(read(r#"{"max_price":{"prompt":0,"image":0}}"#).unwrap().max_price.admits(&price));
    }

    #[test]
    fn a_quantisation_is_known_by_name_or_width() {
        assert!(is_quantization("int8", Some("q8_0")) && is_quantization("q8_0", Some("q8_0")));
        assert!(is_quantization("fp16", Some("f16")) && is_quantization("unknown", None));
        assert!(!is_quantization("int4", Some("q8_0")) && !is_quantization("int8", None));
        assert!(!is_quantization("unknown", Some("q8_0")));
    }

    #[test]
    fn bounds_are_missed_only_by_nodes_that_are_known_to_miss_them() {
        let wishes = read(r#"{"preferred_max_latency":0.5,"preferred_min_throughput":{"p90":20}}"#).unwrap();
        let (mut latency, mut rate) = (Samples::default(), Samples::default());
        assert!(wishes.has_bounds() && !wishes.is_missed_by(&latency, &rate));
        for _ in 0..10 {
            latency.add(400.0);
            rate.add(30.0);
        }
        assert!(!wishes.is_missed_by(&latency, &rate));
        for _ in 0..3 {
            rate.add(10.0);
        }
        assert!(wishes.is_missed_by(&latency, &rate), "more than a tenth is slower");
    }

    proptest! {
        #[test]
        fn whole_micro_credits_survive_printing(micro in 0_i64..i64::MAX) {
            prop_assert_eq!(micro_credits(&MicroCredits(micro).to_credits()), Some(MicroCredits(micro)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,70}") {
            let _ = micro_credits(&text);
        }
    }
}
