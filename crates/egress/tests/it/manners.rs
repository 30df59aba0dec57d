//! robots.txt and the pace, over real sockets.

use std::time::{Duration, Instant};

use cxmpute_egress::Wanted;
use cxmpute_egress::pace::Pacer;
use cxmpute_runtime::Tasks;

use crate::site::{Play, Site};
use crate::stage::World;

fn polite() -> Wanted {
    Wanted { robots: true, ..Wanted::default() }
}

#[tokio::test]
async fn a_host_that_says_no_is_not_asked_and_its_rules_are_read_once() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |asked| match asked.path.as_str() {
        "/robots.txt" => {
            Play::text("User-agent: cxmpute-scrape\nDisallow: /private\n\nUser-agent: *\nDisallow: /\n")
        }
        "/hop" => Play::redirect(302, "/private/2"),
        _ => Play::text("open"),
    })
    .await;
    let world = World::two_hosts(site.address);
    let fetcher = world.fetcher(None);
    assert!(fetcher.get("http://a.example.com/public", &polite()).await.is_ok());
    for path in ["/private", "/private/1", "/hop"] {
        let error = fetcher.get(&format!("http://a.example.com{path}"), &polite()).await.unwrap_err();
        assert_eq!(error.code(), "robots_denied", "{path}");
    }
    assert!(fetcher.get("http://a.example.com/private", &Wanted::default()).await.is_ok());
    let paths: Vec<String> = site.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/robots.txt", "/public", "/hop", "/private"]);
}

#[tokio::test]
async fn no_rules_mean_yes_and_broken_rules_mean_no() {
    let tasks = Tasks::new();
    for (status, code) in
        [(404, None), (403, None), (500, Some("robots_unreachable")), (503, Some("robots_unreachable"))]
    {
        let site = Site::start(&tasks, move |asked| match asked.path.as_str() {
            "/robots.txt" => Play::Say(status, vec![], b"User-agent: *\nDisallow: /".to_vec()),
            _ => Play::text("open"),
        })
        .await;
        let world = World::two_hosts(site.address);
        let got = world.fetcher(None).get("http://a.example.com/x", &polite()).await;
        assert_eq!(got.err().map(|error| error.code()), code, "{status}");
    }
}

#[tokio::test]
async fn a_file_of_rules_is_read_as_far_as_the_standard_asks() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |asked| match asked.path.as_str() {
        "/robots.txt" => {
            let noise = format!("# {}\n", "x".repeat(1021)).repeat(511);
            let text = format!("user-agent: *\ndisallow: /a\n{noise}disallow: /b\n{noise}disallow: /c\n");
            Play::text(&text)
        }
        _ => Play::text("open"),
    })
    .await;
    let fetcher = World::two_hosts(site.address).fetcher(None);
    for (path, code) in [("/a", Some("robots_denied")), ("/b", Some("robots_denied")), ("/c", None)] {
        let got = fetcher.get(&format!("http://a.example.com{path}"), &polite()).await;
        assert_eq!(got.err().map(|error| error.code()), code, "{path}");
    }
}

#[tokio::test]
async fn one_host_is_asked_at_its_pace_and_no_queue_is_endless() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |_| Play::text("open")).await;
    let world = World::two_hosts(site.address);
    let gap = Duration::from_millis(150);
    let fetcher = world.fetcher(None).paced(Pacer::new(gap, gap * 2));
    let begun = Instant::now();
    for _ in 0..3 {
        fetcher.get("http://a.example.com/", &Wanted::default()).await.unwrap();
    }
    assert!(begun.elapsed() >= gap * 2, "{:?}", begun.elapsed());
    let at_once: Vec<_> = (0..5)
        .map(|_| {
            let fetcher = fetcher.clone();
            async move { fetcher.get("http://b.example.com/", &Wanted::default()).await }
        })
        .collect();
    let mut codes = Vec::new();
    let mut set = tokio::task::JoinSet::new();
    at_once.into_iter().for_each(|asking| drop(set.spawn(asking)));
    while let Some(done) = set.join_next().await {
        codes.push(done.unwrap().map_or_else(|error| error.code(), |_| "ok"));
    }
    codes.sort_unstable();
    assert_eq!(codes, ["host_busy", "host_busy", "ok", "ok", "ok"]);
}
