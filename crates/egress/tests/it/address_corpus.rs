//! F1: more than 400 refused and 200 public URLs; a recording dialler sees no connection to a refused address.

use cxmpute_egress::connect::Script;
use cxmpute_egress::{Target, Wanted};

use crate::findings::Findings;
use crate::stage::{Bad, PUBLIC, World};

const REFUSED: &str = "no connection to a refused address";
const PUBLIC_PASS: &str = "no public URL is refused";
const CODES: &str = "the refusal says why";

/// The rows: the expected code and the URL.
fn corpus() -> Vec<(&'static str, String)> {
    include_str!("urls.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(code, url)| (code, unescape(url)))
        .collect()
}

fn unescape(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(hex) = rest.strip_prefix("u{") {
            let (digits, after) = hex.split_once('}').unwrap();
            out.push(char::from_u32(u32::from_str_radix(digits, 16).unwrap()).unwrap());
            rest = after;
        } else {
            out.push('\\');
            rest = rest.strip_prefix('\\').unwrap();
        }
    }
    out + rest
}

async fn gate(bad: Bad) -> Findings {
    let mut findings = Findings::new("F1");
    let world = World { script: Script::default().otherwise(&[PUBLIC]), ..World::default() };
    let fetcher = world.fetcher(bad);
    let mut counts = (0, 0);
    for (expected, url) in corpus() {
        findings.count += 1;
        let before = world.stage.notes().len();
        let code = fetcher.get(&url, &Wanted::default()).await.unwrap_err().code();
        let connects = world.stage.notes().split_off(before);
        let seen = format!("{url:?}: {code}, expected {expected}, connects {connects:?}");
        if expected == "ok" {
            counts.1 += 1;
            findings.check(PUBLIC_PASS, code == "connect_failed" && connects.len() == 1, seen);
        } else {
            counts.0 += 1;
            findings.check(REFUSED, connects.is_empty(), &seen);
            findings.check(CODES, code == expected, &seen);
        }
    }
    findings.check(
        "the corpus is as large as the gate asks",
        counts.0 >= 400 && counts.1 >= 200,
        format!("{counts:?}"),
    );
    names_of_refused_addresses(bad, &mut findings).await;
    findings
}

/// The same addresses behind names: what a resolver says is judged like what a URL says.
async fn names_of_refused_addresses(bad: Bad, findings: &mut Findings) {
    let judge = World::default();
    let literal = |(code, url): (&'static str, String)| {
        let host = code
            .starts_with("address_")
            .then(|| url::Url::parse(&url).ok()?.host().map(|host| host.to_string()));
        Some((code, host??.trim_matches(['[', ']']).to_owned()))
    };
    for (expected, address) in corpus().into_iter().filter_map(literal) {
        findings.count += 1;
        let world =
            World { script: Script::default().answer("a.example.com", &[&address]), ..World::default() };
        let error = world.fetcher(bad).get("https://a.example.com/", &Wanted::default()).await.unwrap_err();
        let seen = format!("a name for {address}: {}", error.code());
        findings.check(REFUSED, world.stage.notes().is_empty(), &seen);
        findings.check(CODES, error.code() == expected && error.is_refusal(), &seen);
    }
    let public: Result<Target, _> = judge.policy.target("http://8.8.8.8/");
    findings.check(PUBLIC_PASS, public.is_ok(), "http://8.8.8.8/");
}

#[tokio::test]
async fn f1_nothing_refused_is_connected_to_and_nothing_public_is_refused() {
    gate(None).await.must_hold();
}

#[cfg(feature = "sabotage")]
#[tokio::test]
async fn sabotaged_f1_catches_a_guard_that_only_watches_the_resolver() {
    let bad = Some(cxmpute_egress::sabotage::Sabotage::ResolverOnlyGuard);
    gate(bad).await.must_break(REFUSED, "resolver-only guard");
}
