//! F2: one lookup per connection, every address judged, a connection to a judged address only.

use cxmpute_egress::Wanted;
use cxmpute_egress::connect::{Script, Stage};
use cxmpute_runtime::Tasks;

use crate::findings::Findings;
use crate::site::{Play, Site};
use crate::stage::{Bad, OTHER, PUBLIC, World};

const ONE_LOOKUP: &str = "one lookup for one connection";
const JUDGED: &str = "only judged addresses are connected to";
const MIXED: &str = "a mixed set is refused";
const WORKS: &str = "a public host is reached";
const HUNDRED: usize = 100;

async fn gate(bad: Bad) -> Findings {
    let mut findings = Findings::new("F2");
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |_| Play::text("hello")).await;
    let stage = || Stage::default().server(PUBLIC, site.address).server("127.0.0.1", site.address);

    // First public, then private: what a rebinding name server does.
    let script = Script::default().answer("a.example.com", &[PUBLIC]).answer("a.example.com", &["127.0.0.1"]);
    let world = World { script, stage: stage(), ..World::default() };
    let got = world.fetcher(bad).get("http://a.example.com/", &Wanted::default()).await;
    findings.count += 1;
    findings.check(WORKS, got.as_ref().is_ok_and(|page| &page.body[..] == b"hello"), format!("{got:?}"));
    findings.check(ONE_LOOKUP, world.script.lookups().len() == 1, format!("{:?}", world.script.lookups()));
    let public = [format!("{PUBLIC}:80")];
    let notes = |world: &World| world.stage.notes().iter().map(ToString::to_string).collect::<Vec<_>>();
    findings.check(JUDGED, notes(&world) == public, format!("{:?}", notes(&world)));
    // No time to live is believed: the next fetch asks again and is judged again.
    let again = world.fetcher(bad).get("http://a.example.com/", &Wanted::default()).await;
    findings.count += 1;
    findings.check(
        JUDGED,
        again.as_ref().is_err_and(|error| error.code() == "address_loopback"),
        format!("{again:?}"),
    );
    findings.check(JUDGED, notes(&world) == public, format!("{:?}", notes(&world)));

    let many: Vec<String> = (0..HUNDRED).map(|n| format!("93.184.{}.{}", n / 10, n)).collect();
    let mut poisoned = many.clone();
    poisoned[HUNDRED - 1] = "10.0.0.1".into();
    for (what, set) in [
        ("public before private", vec![PUBLIC.to_owned(), "192.168.1.1".into()]),
        ("private before public", vec!["192.168.1.1".into(), PUBLIC.to_owned()]),
        ("a mapped address", vec![PUBLIC.to_owned(), "::ffff:127.0.0.1".into()]),
        ("one of a hundred", poisoned),
    ] {
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let script = Script::default().answer("a.example.com", &set);
        let world = World { script, stage: stage(), ..World::default() };
        let got = world.fetcher(bad).get("http://a.example.com/", &Wanted::default()).await;
        findings.count += 1;
        findings.check(
            MIXED,
            got.as_ref().is_err_and(|error| error.is_refusal()),
            format!("{what}: {got:?}"),
        );
        findings.check(JUDGED, world.stage.notes().is_empty(), format!("{what}: {:?}", world.stage.notes()));
    }

    let set: Vec<&str> = many.iter().map(String::as_str).collect();
    let script = Script::default().answer("a.example.com", &set);
    let world = World { script, stage: stage(), ..World::default() };
    let got = world.fetcher(bad).get("http://a.example.com/", &Wanted::default()).await;
    findings.count += 1;
    findings.check(
        "few of many addresses are tried",
        (1..=4).contains(&world.stage.notes().len()),
        format!("{got:?}"),
    );
    findings.check(
        JUDGED,
        world.stage.notes().iter().all(|at| set.contains(&at.ip().to_string().as_str())),
        "a hundred",
    );

    aliases_and_six(bad, &stage, &mut findings).await;
    findings
}

async fn aliases_and_six(bad: Bad, stage: &impl Fn() -> Stage, findings: &mut Findings) {
    let script = Script::default()
        .alias("a.example.com", "b.example.com")
        .alias("b.example.com", "c.example.com")
        .answer("c.example.com", &["10.1.2.3"]);
    let world = World { script, stage: stage(), ..World::default() };
    let got = world.fetcher(bad).get("http://a.example.com/", &Wanted::default()).await;
    findings.count += 1;
    findings.check(JUDGED, got.as_ref().is_err_and(|error| error.is_refusal()), format!("aliases: {got:?}"));

    for (address, reached) in [("2001:4860:4860::8888", true), ("fd00::1", false), ("64:ff9b::a00:1", false)]
    {
        let script = Script::default().answer("six.example.com", &[address]);
        let world = World { script, stage: stage(), ..World::default() };
        let _ = world.fetcher(bad).get("http://six.example.com/", &Wanted::default()).await;
        let notes = world.stage.notes();
        let good =
            if reached { notes == [format!("[{address}]:80").parse().unwrap()] } else { notes.is_empty() };
        findings.count += 1;
        findings.check(JUDGED, good, format!("{address}: {notes:?}"));
    }
    let world = World {
        script: Script::default().answer("none.example.com", &[]),
        stage: stage(),
        ..World::default()
    };
    let got = world.fetcher(bad).get(&format!("http://none.example.com/?{OTHER}"), &Wanted::default()).await;
    findings.count += 1;
    findings.check(
        "a name without addresses is said so",
        got.is_err_and(|error| error.code() == "host_not_resolved"),
        "",
    );
}

#[tokio::test]
async fn f2_what_was_judged_is_what_is_connected_to() {
    gate(None).await.must_hold();
}

#[cfg(feature = "sabotage")]
#[tokio::test]
async fn sabotaged_f2_catches_a_second_lookup() {
    let bad = Some(cxmpute_egress::sabotage::Sabotage::SecondLookup);
    let findings = gate(bad).await;
    findings.must_break(ONE_LOOKUP, "second lookup");
    findings.must_break(JUDGED, "second lookup");
}
