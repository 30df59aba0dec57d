use std::sync::LazyLock;
use std::time::Duration;

use cxmpute_wire::MicroCredits;
use proptest::prelude::*;

use super::*;
use crate::health::PeakEwma;
use crate::wish::Evidence;

fn traits(owner: &str) -> &'static Traits {
    Box::leak(Box::new(Traits {
        owner: UserId::from_tail(owner),
        slug: format!("pv_{owner}"),
        region: Some("DE".to_owned()),
        quantization: Some("q8_0".to_owned()),
        evidence: Evidence::CanaryPassed,
        keeps_nothing: false,
    }))
}

fn node(owner: &str) -> Candidate<'static> {
    Candidate {
        traits: traits(owner),
        tried: false,
        ready: true,
        gate: Gate::Closed,
        latency_ms: Some(100.0),
        rate: None,
        slow: false,
        in_flight: 0,
        queued: 0,
        slots: 4,
        reliability: 1.0,
        ramp: 1.0,
    }
}

fn payer() -> UserId {
    UserId::from_tail("payer")
}

fn price() -> PriceRow {
    PriceRow {
        id: "m".to_owned(),
        version: 1,
        prompt: MicroCredits(100),
        completion: MicroCredits(200),
        embedding: MicroCredits::ZERO,
        character: MicroCredits::ZERO,
        second: MicroCredits::ZERO,
        url: MicroCredits::ZERO,
        image: MicroCredits::ZERO,
        minimum: MicroCredits::ZERO,
        share_bp: 9_000,
        free: false,
    }
}

/// The choice of a request with this `provider` object.
fn pick(nodes: &[Candidate<'_>], provider: &str, chance: [u64; 2]) -> Result<Choice, Nobody> {
    let wishes = Wishes::read(&serde_json::from_str(provider).unwrap()).unwrap();
    choose(nodes, &Seeker { payer: &payer(), wishes: &wishes, price: &price() }, chance)
}

const OPEN: Gate = Gate::Open { until: Duration::from_secs(99) };

#[test]
fn each_filter_that_empties_the_set_is_named() {
    let away = Candidate { ready: false, ..node("a") };
    let tried = Candidate { tried: true, ..node("a") };
    let full = Candidate { in_flight: 4, ..node("a") };
    let table = [
        (vec![], "{}", Nobody::Ready),
        (vec![away], "{}", Nobody::Ready),
        (vec![node("payer")], "{}", Nobody::OwnNodes),
        (vec![node("a")], r#"{"own_nodes":"only"}"#, Nobody::OwnNodes),
        (vec![tried], "{}", Nobody::Tried),
        (vec![full.clone(), full], "{}", Nobody::Capacity),
    ];
    for (nodes, own, nobody) in table {
        assert_eq!(pick(&nodes, own, [0, 0]), Err(nobody));
    }
}

#[test]
fn own_nodes_serve_only_when_asked() {
    let nodes = [node("payer"), node("a")];
    for chance in 0..20u64 {
        let chance = [chance << 60, chance << 59];
        assert_eq!(pick(&nodes, "{}", chance).map(|c| c.index), Ok(1));
        assert_eq!(pick(&nodes, r#"{"own_nodes":"only"}"#, chance).map(|c| c.index), Ok(0));
    }
    assert!(pick(&nodes[..1], r#"{"own_nodes":"allow"}"#, [0, 0]).is_ok());
}

#[test]
fn the_last_node_stays_and_is_marked() {
    let alone = [Candidate { gate: OPEN, ..node("a") }];
    assert_eq!(pick(&alone, "{}", [0, 0]), Ok(Choice { index: 0, trial: false, degraded: true }));
    let two = [Candidate { gate: OPEN, ..node("a") }, node("b")];
    for chance in [0, u64::MAX / 2, u64::MAX] {
        assert_eq!(pick(&two, "{}", [chance, chance]).map(|c| c.index), Ok(1));
    }
}

#[test]
fn when_all_are_open_half_come_back_the_earliest_first() {
    let open = |s| Gate::Open { until: Duration::from_secs(s) };
    let nodes: Vec<_> = [40, 10, 30, 20].map(|s| Candidate { gate: open(s), ..node("a") }).to_vec();
    for a in 0..8u64 {
        let choice = pick(&nodes, "{}", [a << 61, a << 60]).unwrap();
        assert!(choice.degraded && [1, 3].contains(&choice.index), "{choice:?}");
    }
}

#[test]
fn a_breaker_that_may_try_gets_the_request() {
    let nodes = [node("a"), Candidate { gate: Gate::Trial, latency_ms: Some(9000.0), ..node("b") }];
    let choice = pick(&nodes, "{}", [0, 0]).unwrap();
    assert_eq!((choice.index, choice.trial), (1, true));
}

#[test]
fn an_unknown_node_counts_as_the_median() {
    let known = node("a");
    let unknown = Candidate { latency_ms: None, ..node("b") };
    let median = median_ms(&[known.clone(), unknown.clone()]);
    assert!((cost(&known, median) - cost(&unknown, median)).abs() < 1e-9);
}

#[test]
fn of_two_nodes_the_one_that_had_a_bad_moment_gets_work_again() {
    let at = Duration::from_secs;
    let (mut good, mut stumbled) = (PeakEwma::unknown(at(0)), PeakEwma::unknown(at(0)));
    good.observe(Duration::from_millis(20), at(0));
    stumbled.observe(Duration::from_secs(5), at(0));
    let choice = |now: Duration, good: &PeakEwma| {
        let median = lower_median([good, &stumbled].into_iter().filter_map(PeakEwma::measured_ms)).unwrap();
        let nodes = [good, &stumbled]
            .map(|ewma| Candidate { latency_ms: Some(ewma.value_ms(now, median)), ..node("a") });
        [[0, 0], [u64::MAX, 0]].map(|chance| pick(&nodes, "{}", chance).unwrap().index)
    };
    for second in 0..50 {
        good.observe(Duration::from_millis(20), at(second));
        assert_eq!(choice(at(second), &good), [0, 0], "after {second} s");
    }
    for second in 50..70 {
        good.observe(Duration::from_millis(20), at(second));
    }
    // The other one got all the work meanwhile and did it as well as ever.
    assert_eq!(choice(at(69), &good), [1, 1]);
}

#[test]
fn the_lower_median_of_two_is_the_lower() {
    let of = |numbers: &[f64]| lower_median(numbers.iter().copied());
    assert_eq!(
        [of(&[]), of(&[7.0]), of(&[9.0, 2.0]), of(&[9.0, 2.0, 5.0])],
        [None, Some(7.0), Some(2.0), Some(5.0)]
    );
}

#[test]
fn a_claim_of_a_thousand_slots_counts_as_sixty_four() {
    let boast = Candidate { slots: 1000, in_flight: 64, ..node("a") };
    assert_eq!(pick(&[boast], "{}", [0, 0]), Err(Nobody::Capacity));
}

static OWN: LazyLock<Traits> = LazyLock::new(|| traits("payer").clone());
static OTHER: LazyLock<Traits> = LazyLock::new(|| traits("other").clone());

fn any_node() -> impl Strategy<Value = Candidate<'static>> {
    let gate = prop_oneof![Just(Gate::Closed), Just(Gate::Trial), Just(Gate::Trying), Just(OPEN)];
    let load = (0u32..80, 0u32..10, 0u32..100);
    let speed = (proptest::option::of(0.1f64..60_000.0), 0.01f64..1.0, 0.1f64..1.0);
    (any::<bool>(), any::<bool>(), gate, load, speed, 0u32..4).prop_map(
        |(tried, ready, gate, load, speed, who)| Candidate {
            traits: if who == 0 { &OWN } else { &OTHER },
            tried,
            ready,
            gate,
            latency_ms: speed.0,
            rate: speed.0.map(|ms| 1e4 / ms),
            slow: who == 2,
            in_flight: load.0,
            queued: load.1,
            slots: load.2,
            reliability: speed.1,
            ramp: speed.2,
        },
    )
}

proptest! {
    #[test]
    fn the_choice_passes_every_filter(
        nodes in proptest::collection::vec(any_node(), 0..12),
        chance in any::<[u64; 2]>(),
    ) {
        let fits = |c: &Candidate<'_>| c.ready && !c.tried && has_room(c) && c.traits.owner != payer();
        match pick(&nodes, "{}", chance) {
            Ok(choice) => prop_assert!(fits(&nodes[choice.index])),
            // With nobody away there is a choice whenever anybody fits.
            Err(_) => prop_assert!(!nodes.iter().any(|c| fits(c) && c.gate == Gate::Closed)),
        }
    }

    #[test]
    fn of_two_nodes_the_cheaper_is_taken(a in 1.0f64..5000.0, b in 1.0f64..5000.0, chance in any::<[u64; 2]>()) {
        prop_assume!((a - b).abs() > 1e-6);
        let nodes = [Candidate { latency_ms: Some(a), ..node("x") }, Candidate { latency_ms: Some(b), ..node("y") }];
        let choice = pick(&nodes, "{}", chance).unwrap();
        prop_assert_eq!(choice.index, usize::from(b < a));
    }

    #[test]
    fn two_of_gives_two_different_places(count in 2usize..50, chance in any::<[u64; 2]>()) {
        let [a, b] = two_of(count, chance);
        prop_assert!(a != b && a < count && b < count);
    }
}

#[test]
fn each_wish_that_leaves_nobody_is_named() {
    let nodes = [node("a"), Candidate { traits: OTHER_PLACE.with(|t| *t), ..node("b") }];
    for (provider, nobody) in [
        (r#"{"only":["pv_x"]}"#, Nobody::Only),
        (r#"{"ignore":["pv_a","pv_b"]}"#, Nobody::Ignore),
        (r#"{"order":["pv_x"],"allow_fallbacks":false}"#, Nobody::Order),
        (r#"{"quantizations":["int4","fp16"]}"#, Nobody::Quantizations),
        (r#"{"region":["US"]}"#, Nobody::Region),
        (r#"{"evidence":"attested"}"#, Nobody::Evidence),
        (r#"{"data_collection":"deny"}"#, Nobody::DataCollection),
        (r#"{"zdr":true}"#, Nobody::Zdr),
        (r#"{"max_price":{"prompt":0.000099}}"#, Nobody::MaxPrice),
    ] {
        assert_eq!(pick(&nodes, provider, [0, 0]), Err(nobody), "{provider}");
        assert!(nobody.is_wish());
    }
}

thread_local! {
    static OTHER_PLACE: &'static Traits = Box::leak(Box::new(Traits {
        region: None,
        quantization: None,
        ..traits("b").clone()
    }));
}

#[test]
fn wishes_narrow_the_choice_to_who_fits_them() {
    let nodes = [node("a"), Candidate { traits: OTHER_PLACE.with(|t| *t), ..node("b") }, node("c")];
    for (provider, fitting) in [
        (r#"{"only":["pv_b","pv_x"]}"#, &[1][..]),
        (r#"{"ignore":["pv_a"]}"#, &[1, 2]),
        (r#"{"quantizations":["unknown"]}"#, &[1]),
        (r#"{"quantizations":["int8"]}"#, &[0, 2]),
        (r#"{"region":["de"]}"#, &[0, 2]),
        (r#"{"evidence":"canary-passed"}"#, &[0, 1, 2]),
        (r#"{"max_price":{"prompt":0.0001,"completion":"0.0002"}}"#, &[0, 1, 2]),
        (r#"{"order":["pv_c","pv_b"]}"#, &[2]),
    ] {
        let mut seen: Vec<usize> =
            (0..64u64).map(|n| pick(&nodes, provider, [n << 58, n << 60]).unwrap().index).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, fitting, "{provider}");
    }
}

#[test]
fn the_order_goes_on_to_the_next_name_and_then_to_the_others() {
    let mut nodes = [node("a"), node("b"), node("c")];
    let order = r#"{"order":["pv_b","pv_a"]}"#;
    let strict = r#"{"order":["pv_b","pv_a"],"allow_fallbacks":false}"#;
    assert_eq!(pick(&nodes, order, [0, 0]).unwrap().index, 1);
    nodes[1].tried = true;
    assert_eq!(pick(&nodes, order, [9, 9]).unwrap().index, 0);
    nodes[0].in_flight = 4;
    assert_eq!(pick(&nodes, order, [9, 9]).unwrap().index, 2);
    assert_eq!(pick(&nodes, strict, [9, 9]), Err(Nobody::Capacity));
}

#[test]
fn sorting_puts_the_measured_best_first_and_the_unmeasured_last() {
    let fast = Candidate { rate: Some(90.0), latency_ms: Some(400.0), ..node("a") };
    let quick = Candidate { rate: Some(10.0), latency_ms: Some(50.0), ..node("b") };
    let unknown = Candidate { rate: None, latency_ms: None, ..node("c") };
    let nodes = [unknown, quick, fast];
    for chance in [0, u64::MAX / 2, u64::MAX] {
        let by =
            |word: &str| pick(&nodes, &format!(r#"{{"sort":"{word}"}}"#), [chance, chance]).unwrap().index;
        assert_eq!((by("throughput"), by("latency")), (2, 1));
        assert_eq!(by("price"), 1, "equal prices: the least wait");
    }
}

#[test]
fn a_node_that_misses_a_preferred_bound_serves_only_alone() {
    let nodes = [Candidate { slow: true, ..node("a") }, node("b")];
    for chance in [0, u64::MAX] {
        assert_eq!(pick(&nodes, "{}", [chance, chance]).unwrap().index, 1);
    }
    assert_eq!(pick(&nodes[..1], "{}", [0, 0]).unwrap().index, 0);
}
