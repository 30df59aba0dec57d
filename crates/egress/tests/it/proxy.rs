//! The proxy for browsers: what goes out is judged and counted.

use std::net::SocketAddr;
use std::time::Duration;

use cxmpute_egress::proxy::{Proxy, ProxyLimits};
use cxmpute_runtime::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::site::{Play, Site};
use crate::stage::World;

/// Sends a request and reads until the proxy hangs up.
async fn say(proxy: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    let _ = read.await.expect("the proxy answers and hangs up");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(url: &str) -> String {
    format!(
        "GET {url} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n"
    )
}

fn connect(authority: &str, inside: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n{inside}")
}

async fn open(world: &World, limits: ProxyLimits, tasks: &Tasks) -> Proxy {
    Proxy::on_loopback(world.connector(), limits, tasks).await.unwrap()
}

#[tokio::test]
async fn public_hosts_are_reached_both_ways_and_hop_headers_end_here() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |_| Play::text("reached")).await;
    let world = World::two_hosts(site.address);
    let proxy = open(&world, ProxyLimits::default(), &tasks).await;
    let at = proxy.address().unwrap();

    let answer = say(at, &get("http://a.example.com/x?y")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("reached"), "{answer}");
    let asked = site.asked()[0].clone();
    assert_eq!((asked.host(), asked.path.as_str(), asked.method.as_str()), ("a.example.com", "/x?y", "GET"));
    assert_eq!((asked.header("proxy-authorization"), asked.header("x-hop")), (None, None));

    let inside = "GET /inside HTTP/1.1\r\nHost: b.example.com\r\n\r\n";
    let answer = say(at, &connect("b.example.com:443", inside)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("reached"), "{answer}");
    assert_eq!(site.asked()[1].path, "/inside");
    assert_eq!((proxy.usage().connections, proxy.usage().refused.len()), (2, 0));
    assert!(proxy.usage().bytes > 0);
}

#[tokio::test]
async fn what_is_refused_elsewhere_is_refused_here() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |_| Play::text("reached")).await;
    let world = World::two_hosts(site.address);
    let world =
        World { script: world.script.clone().answer("inside.example.com", &["192.168.0.1"]), ..world };
    let proxy = open(&world, ProxyLimits::default(), &tasks).await;
    let at = proxy.address().unwrap();
    for (request, code) in [
        (get("http://127.0.0.1/"), "address_loopback"),
        (get("http://2130706433/"), "address_loopback"),
        (get("http://inside.example.com/"), "address_private"),
        (get("http://a.example.com:8080/"), "port_refused"),
        (get("http://user@a.example.com/"), "userinfo_refused"),
        (connect("127.0.0.1:443", ""), "address_loopback"),
        (connect("[::1]:443", ""), "address_loopback"),
        (connect("169.254.169.254:80", ""), "address_metadata"),
        (connect("inside.example.com:443", ""), "address_private"),
        (connect("a.example.com:22", ""), "port_refused"),
        (connect("localhost:443", ""), "host_local"),
        (connect(&at.to_string(), ""), "port_refused"),
        (get("https://a.example.com/"), "request_invalid"),
        (get("/relative"), "request_invalid"),
        (get("ftp://a.example.com/"), "request_invalid"),
        ("POST http://a.example.com/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(), "method_refused"),
    ] {
        let request = request.replacen("Host:", "Connection: close\r\nHost:", 1);
        let answer = say(at, &request).await;
        assert!(answer.contains(&format!("x-egress-refusal: {code}\r\n")), "{request:?}: {answer}");
        assert!(!answer.contains("reached"), "{request:?}");
    }
    assert!(world.stage.notes().is_empty() && site.asked().is_empty());
    assert!(proxy.usage().refused.iter().any(|refused| refused.code == "address_loopback"));
}

#[tokio::test]
async fn one_run_has_so_many_connections_and_bytes() {
    let tasks = Tasks::new();
    let site =
        Site::start(&tasks, |_| Play::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 16_384])).await;
    let world = World::two_hosts(site.address);
    let limits =
        ProxyLimits { connections: 3, connection_bytes: 100_000, bytes: 250_000, ..ProxyLimits::default() };
    let proxy = open(&world, limits, &tasks).await;
    let at = proxy.address().unwrap();
    for request in [get("http://a.example.com/"), connect("b.example.com:443", "GET / HTTP/1.1\r\n\r\n")] {
        let length = say(at, &request).await.len();
        assert!((50_000..=120_000).contains(&length), "{length}");
    }
    say(at, &get("http://a.example.com/")).await;
    let answer = say(at, &get("http://a.example.com/")).await;
    assert!(answer.contains("limit_reached"), "{answer}");
    assert!(proxy.usage().bytes <= 350_000, "{:?}", proxy.usage());
}

#[tokio::test]
async fn a_download_goes_on_while_its_client_listens() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |asked| match asked.path.as_str() {
        "/slow" => Play::Trickle(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Duration::from_millis(20)),
        _ => Play::Silence,
    })
    .await;
    let world = World::two_hosts(site.address);
    let limits = ProxyLimits { idle: Duration::from_millis(200), ..ProxyLimits::default() };
    let proxy = open(&world, limits, &tasks).await;
    let at = proxy.address().unwrap();
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = connect("a.example.com:443", "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    // Four times as long as a direction may be idle.
    let mut heard = vec![0; 140];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut heard));
    read.await.unwrap().expect("the tunnel stands while bytes flow");
    // Where none flow, it ends.
    let answer = say(at, &connect("a.example.com:443", "GET /silent HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.len() < 200, "{answer}");
}

#[tokio::test]
async fn nothing_of_a_proxy_stays_when_it_is_dropped() {
    let tasks = Tasks::new();
    let site = Site::start(&tasks, |_| {
        Play::Trickle(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Duration::from_millis(20))
    })
    .await;
    let world = World::two_hosts(site.address);
    let proxy = open(&world, ProxyLimits::default(), &tasks).await;
    let mut stream = TcpStream::connect(proxy.address().unwrap()).await.unwrap();
    stream.write_all(connect("a.example.com:80", "GET / HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 80];
    stream.read_exact(&mut first).await.unwrap();
    drop(proxy);
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the tunnel ends with its proxy");
    drop(site);
    assert!(tasks.stop(Duration::from_secs(20)).await.iter().all(|name| !name.starts_with("egress")));
}
