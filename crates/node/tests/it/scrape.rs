//! The scrape engine as the process that a node starts, against a real site on this machine. The loopback is allowed
//! by a permission of the owner, on the site's port and no other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cxmpute_runtime::confine::{Confiner, Terms};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};

const ARTICLE: &str = include_str!("article.html");
const PATIENCE: Duration = Duration::from_secs(60);

/// A small site that notes the paths it was asked for.
pub struct Site {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub async fn start(answer: impl Fn(&str) -> (u16, &'static str, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer): (Arc<Mutex<Vec<String>>>, _) = (Arc::default(), Arc::new(answer));
        let notes = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (notes, answer) = (notes.clone(), answer.clone());
                tokio::spawn(async move {
                    let Some(path) = read_path(stream, &notes).await else { return };
                    let (mut stream, path) = path;
                    let (status, kind, body) = answer(&path);
                    let head = match status {
                        301 | 302 => format!("location: {body}\r\n"),
                        _ => format!("content-type: {kind}\r\n"),
                    };
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 {status} x\r\n{head}content-length: {length}\r\nconnection: close\r\n\r\n"
                    );
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(body.as_bytes()).await;
                });
            }
        });
        Self { address, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn read_path(stream: TcpStream, notes: &Mutex<Vec<String>>) -> Option<(TcpStream, String)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).await.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    notes.lock().push(path.clone());
    let mut line = String::new();
    while reader.read_line(&mut line).await.ok()? > 2 {
        line.clear();
    }
    Some((reader.into_inner(), path))
}

/// The engine as a process.
struct Engine {
    child: Child,
    socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Engine {
    async fn start(settings: &Value) -> Self {
        Self::start_in(settings, &std::env::temp_dir()).await
    }

    /// With another directory for its browsers.
    async fn start_in(settings: &Value, browsers: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("e.sock");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_cxmpute-provider"));
        let confiner = Confiner::probe(program.clone(), &["engine", "confined"]).unwrap();
        let section = serde_json::from_value(settings.clone()).unwrap();
        let terms = cxmpute_node::engines::scrape::terms(&section, &program, &dir.path().join("count.json"));
        let terms = Terms { writable: vec![dir.path().to_owned(), browsers.to_owned()], ..terms };
        let mut command = confiner.sandbox(&terms).command(&program).into_std();
        let child = command
            .args(["engine", "scrape", "--while-stdin-open", "--settings", &settings.to_string()])
            .args([Path::new("--socket"), &socket, Path::new("--count"), &dir.path().join("count.json")])
            .env("TMPDIR", browsers)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let engine = Self { child, socket, dir };
        let begun = Instant::now();
        while engine.try_call("GET", "/health", "").await.is_none() {
            assert!(begun.elapsed() < PATIENCE, "the engine does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        engine
    }

    async fn try_call(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.socket).await.ok()?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.ok()?.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.try_call(method, path, &body.to_string()).await.expect("the engine answers")
    }

    /// The results of a request that must be carried out.
    async fn scrape(&self, request: Value) -> Vec<Value> {
        let (status, answer) = self.call("POST", "/v1/scrape", &request).await;
        assert_eq!(status, 200, "{answer}");
        answer["results"].as_array().unwrap().clone()
    }

    /// Closes its standard input and waits for its end.
    fn end(mut self) {
        drop(self.child.stdin.take());
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the engine does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!self.socket.exists() && self.dir.path().exists());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(site: &Site) -> Value {
    json!({"enabled": true, "host_gap_ms": 1, "allow_addresses": [site.address.to_string()], "render": false})
}

async fn plain_site() -> Site {
    Site::start(|path| match path {
        "/robots.txt" => (200, "text/plain", "User-agent: cxmpute-scrape\nDisallow: /private\n".into()),
        "/article" => (200, "text/html; charset=utf-8", ARTICLE.into()),
        "/private" => (200, "text/html", "<p>for people</p>".into()),
        "/moved" => (301, "", "/article".into()),
        "/loop" => (302, "", "/loop".into()),
        "/inside" => (302, "", "http://10.0.0.1/".into()),
        "/port" => (302, "", "http://127.0.0.1:1/".into()),
        "/plain" => (200, "text/plain", "just text <b>".into()),
        "/picture" => (200, "image/png", "no picture".into()),
        "/deep" => (200, "text/html", "<div>".repeat(100_000)),
        "/attributes" => {
            let many: String = (0..500_000).map(|n| format!("a{n} ")).collect();
            (200, "text/html", format!("<title>t</title><p {many}>"))
        }
        "/links" => (200, "text/html", "<a href=/x>y</a>".repeat(300_000)),
        _ => (404, "text/html", "<h1>not here</h1>".into()),
    })
    .await
}

#[tokio::test]
async fn pages_come_in_the_format_that_was_asked_for() {
    let site = plain_site().await;
    let engine = Engine::start(&settings(&site)).await;
    let ask = |format: &str, main: bool| json!({"urls": [site.url("/moved")], "format": format, "main_content": main});
    let html = &engine.scrape(ask("html", false)).await[0];
    assert_eq!(
        (&html["data"], &html["success"], &html["status"]),
        (&json!(ARTICLE), &json!(true), &json!(200))
    );
    assert_eq!(
        (&html["url"], &html["final_url"]),
        (&json!(site.url("/moved")), &json!(site.url("/article")))
    );
    assert_eq!(html["content_type"], "text/html; charset=utf-8");
    let metadata = json!({"title": "Tides and clocks", "description": "Why the sea keeps time.", "author": "Ada Example",
        "publish_date": "2025-03-04T05:06:07Z", "language": "en"});
    assert_eq!((&html["metadata"], &html["error"]), (&metadata, &Value::Null));
    let markdown = engine.scrape(ask("markdown", true)).await[0]["data"].as_str().unwrap().to_owned();
    assert!(
        markdown.contains("## The moon") && markdown.contains(&format!("]({})", site.url("/harbour"))),
        "{markdown}"
    );
    assert!(!markdown.contains("Imprint"), "{markdown}");
    let text = engine.scrape(ask("text", false)).await[0]["data"].as_str().unwrap().to_owned();
    assert!(text.contains("twice a day") && text.contains("Imprint") && !text.contains("tracking"), "{text}");
    engine.end();
}

#[tokio::test]
async fn every_url_gets_its_own_answer_in_order() {
    let site = plain_site().await;
    let engine = Engine::start(&settings(&site)).await;
    let cases = [
        (site.url("/article"), None),
        (site.url("/private"), Some("robots_denied")),
        (site.url("/nowhere"), Some("http_status")),
        (site.url("/picture"), Some("type_refused")),
        (site.url("/loop"), Some("too_many_redirects")),
        (site.url("/inside"), Some("address_private")),
        (site.url("/port"), Some("port_refused")),
        (site.url("/deep"), Some("page_too_complex")),
        (site.url("/links"), Some("page_too_complex")),
        (site.url("/attributes"), Some("page_too_complex")),
        ("http://127.0.0.2/".into(), Some("address_loopback")),
        ("http://169.254.169.254/latest/".into(), Some("address_metadata")),
        ("file:///etc/passwd".into(), Some("scheme_refused")),
        ("not a url".into(), Some("url_character")),
        (site.url("/plain"), None),
    ];
    let urls: Vec<&String> = cases.iter().map(|(url, _)| url).collect();
    let results = engine.scrape(json!({"urls": urls, "format": "text"})).await;
    assert_eq!(results.len(), cases.len());
    for ((url, code), result) in cases.iter().zip(&results) {
        assert_eq!(result["url"], json!(url));
        assert_eq!(result["error"]["code"], json!(code), "{url}: {result}");
        assert_eq!(
            (result["success"].clone(), result["data"].is_string()),
            (json!(code.is_none()), code.is_none())
        );
        assert!(code.is_none() || result["error"]["message"].as_str().unwrap().ends_with('.'), "{result}");
    }
    assert_eq!((&results[2]["status"], &results[14]["data"]), (&json!(404), &json!("just text <b>")));
    let whole = engine.scrape(json!({"urls": [site.url("/links")]})).await;
    assert_eq!((&whole[0]["success"], whole[0]["data"].as_str().unwrap().len()), (&json!(true), 4_800_000));
    let rude = engine.scrape(json!({"urls": [site.url("/private")], "respect_robots": false})).await;
    assert_eq!(rude[0]["success"], json!(true));
    assert_eq!(site.asked.lock().iter().filter(|path| *path == "/robots.txt").count(), 1);
    let rendered = engine.scrape(json!({"urls": [site.url("/article")], "render": true})).await;
    assert_eq!(rendered[0]["error"]["code"], "render_unavailable");
    engine.end();
}

#[tokio::test]
async fn the_owners_day_and_domains_have_limits_and_bad_requests_are_refused() {
    let site = plain_site().await;
    let mut limited = settings(&site);
    limited["daily_urls"] = json!(2);
    limited["deny_domains"] = json!(["example.com"]);
    let engine = Engine::start(&limited).await;
    let urls =
        [site.url("/article"), "http://www.example.com/".into(), site.url("/plain"), site.url("/article")];
    let results = engine.scrape(json!({"urls": urls})).await;
    let codes: Vec<&Value> = results.iter().map(|result| &result["error"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("domain_refused"), &Value::Null, &json!("daily_limit")]);
    let (_, health) = engine.call("GET", "/health", &Value::Null).await;
    assert_eq!(health, json!({"status": "ok", "render": false, "today": {"urls": 2, "limit": 2}}));
    assert_eq!(engine.call("GET", "/v1/models", &Value::Null).await.1["data"][0]["id"], "scrape");
    for (body, code) in [
        (json!({"urls": []}), "invalid_parameter"),
        (json!({"urls": vec!["http://a.example.org/"; 21]}), "invalid_parameter"),
        (json!({"urls": ["http://a.example.org/"], "format": "pdf"}), "invalid_parameter"),
        (json!([]), "invalid_parameter"),
    ] {
        let (status, answer) = engine.call("POST", "/v1/scrape", &body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{body}");
    }
    assert_eq!(engine.call("GET", "/v1/scrape", &Value::Null).await.0, 405);
    assert_eq!(engine.call("GET", "/else", &Value::Null).await.0, 404);
    engine.end();
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_fetch() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let settings = json!({"enabled": true, "render": false, "allow_addresses": [address.to_string()]});
    let engine = Engine::start(&settings).await;
    let body = json!({"urls": [format!("http://{address}/")], "respect_robots": false}).to_string();
    let mut caller = UnixStream::connect(&engine.socket).await.unwrap();
    let head = format!("POST /v1/scrape HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    caller.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let (mut fetch, _) = tokio::time::timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
    let begun = Instant::now();
    drop(caller);
    // The fetch itself would wait ten seconds for an answer.
    let ended = tokio::time::timeout(PATIENCE, fetch.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    engine.end();
}

#[test]
fn nobody_fetches_without_the_owners_word() {
    let done = Command::new(env!("CARGO_BIN_EXE_cxmpute-provider"))
        .args(["engine", "scrape", "--settings", "{}", "--socket", "/nowhere/s", "--count", "/nowhere/c"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!done.status.success() && String::from_utf8_lossy(&done.stderr).contains("scrape.enabled"));
}

/// `scripts/test` says so where there is no browser, and shows the rendering as skipped.
fn told_to_go_without_browser() -> bool {
    std::env::var("CXMPUTE_TEST_WITHOUT_BROWSER").is_ok_and(|value| !value.is_empty())
}

#[tokio::test]
async fn rendered_pages_run_their_scripts_and_reach_nothing_but_the_guard() {
    if told_to_go_without_browser() {
        return;
    }
    let canary = Site::start(|_| (200, "text/plain", "a secret of this machine".into())).await;
    let secret = canary.url("/secret");
    let page = format!(
        "<!DOCTYPE html><title>Before</title><p id=out>before the scripts</p><img src='{secret}?img'>
         <iframe src='{secret}?frame'></iframe>
         <script>
           document.title = 'After';
           fetch('/data').then(r => r.text()).then(t => {{ document.getElementById('out').textContent = t + ' ' + (40 + 2); }});
           fetch('{secret}?fetch', {{mode: 'no-cors'}}).then(r => r.text()).then(t => document.body.append('leak ' + t));
           try {{ new WebSocket('ws://{}/?socket'); }} catch (e) {{}}
         </script>",
        canary.address
    );
    let site = Site::start(move |path| match path {
        "/page" => (200, "text/html", page.clone()),
        "/data" => (200, "text/plain", "the answer is".into()),
        _ => (404, "text/plain", String::new()),
    })
    .await;
    let mut with_browser = settings(&site);
    with_browser["render"] = json!(true);
    let place = place_for_browsers("rendered");
    let engine = Engine::start_in(&with_browser, &place).await;
    let (_, health) = engine.call("GET", "/health", &Value::Null).await;
    assert_eq!(health["render"], json!(true), "install chromium, or set CXMPUTE_TEST_WITHOUT_BROWSER=1");
    let result =
        &engine.scrape(json!({"urls": [site.url("/page")], "format": "text", "render": true})).await[0];
    assert_eq!(result["error"], Value::Null, "{result}");
    let text = result["data"].as_str().unwrap();
    assert!(text.contains("the answer is 42") && !text.contains("a secret of this machine"), "{text}");
    assert_eq!(result["metadata"]["title"], "After");
    assert_eq!(*canary.asked.lock(), Vec::<String>::new(), "the page reached another port of this machine");
    // The same page without its scripts, so that the test tells the two apart.
    let still = &engine.scrape(json!({"urls": [site.url("/page")], "format": "text"})).await[0];
    assert!(still["data"].as_str().unwrap().contains("before the scripts"), "{still}");
    engine.end();
    // Only an empty directory can be removed like this.
    std::fs::remove_dir(&place).expect("a browser left its directory");
}

#[tokio::test]
async fn a_cage_has_one_door_and_the_loopback_of_the_machine_is_not_behind_it() {
    if told_to_go_without_browser() {
        return;
    }
    let outside = Site::start(|_| (200, "text/plain", String::new())).await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("door.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let come = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        word
    });
    let script = format!(
        "d={{door}}; exec 3<>/dev/tcp/${{d%:*}}/${{d#*:}} || exit 4; printf knock >&3; \
         (exec 4<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 5; \
         [ \"$(tail -n +3 /proc/self/net/dev | cut -d: -f1 | tr -d ' ')\" = lo ] || exit 7; [ $(id -u) != 0 ] || exit 8",
        port = outside.address.port()
    );
    let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_cxmpute-provider"))
        .args([Path::new("engine"), Path::new("cage"), Path::new("--socket"), &socket, Path::new("--")])
        .args(["bash", "-c", &script])
        .status()
        .await
        .unwrap();
    assert_eq!(ended.code(), Some(0), "the script in the cage says what is wrong by its number");
    let word = tokio::time::timeout(PATIENCE, come).await.expect("the door leads to the socket").unwrap();
    assert_eq!(&word, b"knock");
    assert!(outside.asked.lock().is_empty());
}

#[tokio::test]
async fn a_killed_engine_leaves_no_browser_behind() {
    if told_to_go_without_browser() {
        return;
    }
    let page = "<script>for (;;) {}</script>".to_owned();
    let site = Site::start(move |_| (200, "text/html", page.clone())).await;
    let place = place_for_browsers("killed");
    let mut settings = settings(&site);
    settings["render"] = json!(true);
    let mut engine = Engine::start_in(&settings, &place).await;
    let body = json!({"urls": [site.url("/")], "render": true, "respect_robots": false}).to_string();
    let mut caller = UnixStream::connect(&engine.socket).await.unwrap();
    let head = format!("POST /v1/scrape HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    caller.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    wait_until("a browser runs", || !running_below(&place).is_empty()).await;
    engine.child.kill().unwrap();
    engine.child.wait().unwrap();
    wait_until("no browser runs", || running_below(&place).is_empty()).await;
    std::fs::remove_dir_all(&place).unwrap();
}

async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Programs whose arguments name a directory.
fn running_below(place: &Path) -> Vec<String> {
    let name = place.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&name))
        .collect()
}

/// A directory that the browser's user can enter, unlike the private ones of other tests.
fn place_for_browsers(name: &str) -> PathBuf {
    let place = std::env::temp_dir().join(format!("cxm-test-{name}-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    place
}
