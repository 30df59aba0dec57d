//! F3: every hop is judged anew, at most three are followed, and nothing secret travels to another origin.

use cxmpute_egress::Wanted;
use cxmpute_runtime::Tasks;
use http::{HeaderMap, HeaderValue, header};

use crate::findings::Findings;
use crate::site::{Asked, Play, Site};
use crate::stage::{Bad, World};

const JUDGED: &str = "every hop is judged";
const THREE: &str = "three hops at most";
const AT_HOME: &str = "credentials stay with their origin";
const NOT_FOLLOWED: &str = "only redirects are followed";

fn play(asked: &Asked) -> Play {
    let path = asked.path.as_str();
    if let Some(left) = path.strip_prefix("/chain/").and_then(|left| left.parse::<u32>().ok()) {
        return match left {
            0 => Play::text("the end of the chain"),
            left => Play::redirect(302, &format!("/chain/{}", left - 1)),
        };
    }
    match path {
        "/loop" => Play::redirect(301, "/loop"),
        "/relative" => Play::redirect(303, "deeper/../end"),
        "/scheme-relative" => Play::redirect(307, "//b.example.com/end"),
        "/cross" => Play::redirect(308, "http://b.example.com/end"),
        "/cross-and-back" => Play::redirect(302, "http://b.example.com/back"),
        "/back" => Play::redirect(302, "http://a.example.com/end"),
        "/no-location" => Play::Say(302, vec![], b"stay".to_vec()),
        "/meta" => Play::Say(
            200,
            vec![("content-type", "text/html".into())],
            b"<meta http-equiv=refresh content='0;url=http://127.0.0.1/'>stay".to_vec(),
        ),
        "/refresh" => Play::Say(200, vec![("refresh", "0;url=http://127.0.0.1/".into())], b"stay".to_vec()),
        "/end" => Play::text("the end"),
        path => match path.strip_prefix("/to?") {
            Some(to) => Play::redirect(302, to),
            None => Play::Say(404, vec![], Vec::new()),
        },
    }
}

async fn gate(bad: Bad) -> Findings {
    let mut findings = Findings::new("F3");
    let tasks = Tasks::new();
    let site = Site::start(&tasks, play).await;
    for (to, code) in [
        ("http://127.0.0.1/", "address_loopback"),
        ("http://2130706433/", "address_loopback"),
        ("//[::1]/", "address_loopback"),
        ("http://10.0.0.1/", "address_private"),
        ("http://169.254.169.254/latest/meta-data/", "address_metadata"),
        ("http://private.example.com/", "address_private"),
        ("http://a.example.com:22/", "port_refused"),
        ("http://a@b.example.com/", "userinfo_refused"),
        ("file:///etc/passwd", "scheme_refused"),
        ("ftp://b.example.com/", "scheme_refused"),
        ("gopher://b.example.com/", "scheme_refused"),
        ("javascript:alert(1)", "scheme_refused"),
        ("data:text/html,x", "scheme_refused"),
        ("http://localhost/", "host_local"),
    ] {
        let world = World::two_hosts(site.address);
        let world =
            World { script: world.script.clone().answer("private.example.com", &["10.0.0.1"]), ..world };
        let got = world.fetcher(bad).get(&format!("http://a.example.com/to?{to}"), &Wanted::default()).await;
        let seen = format!(
            "{to}: {:?}, connects {:?}",
            got.as_ref().map_err(|error| error.code()),
            world.stage.notes()
        );
        findings.count += 1;
        findings.check(JUDGED, got.is_err_and(|error| error.code() == code), &seen);
        findings.check(JUDGED, world.stage.notes().len() == 1, &seen);
    }
    chains(bad, &site, &mut findings).await;
    credentials(bad, &site, &mut findings).await;
    for path in ["/no-location", "/meta", "/refresh"] {
        let world = World::two_hosts(site.address);
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &Wanted::default()).await;
        findings.count += 1;
        let stayed = got.as_ref().is_ok_and(|page| page.body.ends_with(b"stay") && page.redirects == 0);
        findings.check(NOT_FOLLOWED, stayed && world.stage.notes().len() == 1, format!("{path}: {got:?}"));
    }
    findings
}

async fn chains(bad: Bad, site: &Site, findings: &mut Findings) {
    for (path, hops) in [
        ("/chain/0", Some(0)),
        ("/chain/3", Some(3)),
        ("/chain/4", None),
        ("/chain/20", None),
        ("/loop", None),
    ] {
        let world = World::two_hosts(site.address);
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &Wanted::default()).await;
        let seen = format!("{path}: {got:?} after {} connects", world.stage.notes().len());
        findings.count += 1;
        let right = match (hops, got) {
            (Some(hops), Ok(page)) => page.redirects == hops,
            (None, Err(error)) => error.code() == "too_many_redirects",
            _ => false,
        };
        findings.check(THREE, right && world.stage.notes().len() <= 4, seen);
    }
    for (path, end) in
        [("/relative", "http://a.example.com/end"), ("/scheme-relative", "http://b.example.com/end")]
    {
        let world = World::two_hosts(site.address);
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &Wanted::default()).await;
        findings.count += 1;
        findings.check(
            "the page says where it came from",
            got.as_ref().is_ok_and(|page| page.url.as_str() == end),
            format!("{got:?}"),
        );
    }
}

async fn credentials(bad: Bad, site: &Site, findings: &mut Findings) {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
    headers.insert(header::COOKIE, HeaderValue::from_static("session=secret"));
    headers.insert("x-api-key", HeaderValue::from_static("secret"));
    let wanted = Wanted { headers, ..Wanted::default() };
    for path in ["/relative", "/cross", "/cross-and-back"] {
        let world = World::two_hosts(site.address);
        let before = site.asked().len();
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &wanted).await;
        findings.count += 1;
        findings.check("the chain is followed", got.is_ok(), format!("{path}: {got:?}"));
        for asked in site.asked().split_off(before) {
            let carried = ["authorization", "cookie", "x-api-key"].map(|name| asked.header(name).is_some());
            let home = asked.host() == "a.example.com";
            findings.check(AT_HOME, carried == [home; 3], format!("{path} at {}: {carried:?}", asked.host()));
        }
    }
}

#[tokio::test]
async fn f3_every_hop_is_judged_and_secrets_stay_at_home() {
    gate(None).await.must_hold();
}

#[cfg(feature = "sabotage")]
#[tokio::test]
async fn sabotaged_f3_catches_a_client_that_follows_by_itself() {
    let bad = Some(cxmpute_egress::sabotage::Sabotage::OwnRedirects);
    let findings = gate(bad).await;
    findings.must_break(JUDGED, "client's own redirect follower");
    findings.must_break(THREE, "client's own redirect follower");
    findings.must_break(AT_HOME, "client's own redirect follower");
}
