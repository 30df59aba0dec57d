//! A server with files and faults, byte by byte. It counts what it sends and notes what it is asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Play {
    /// As a good server does: ranges, lengths.
    Serve,
    /// All of it, whatever range was asked for.
    IgnoreRanges,
    /// So many bytes of the body, then the connection ends.
    Cut(usize),
    /// The body in pieces of so many bytes, with this pause between.
    Slow(usize, Duration),
    /// One byte every 20 ms.
    Trickle,
    /// Nothing at all.
    Silence,
    /// This status, and an empty body.
    Status(u16),
    /// A length that is not the file's, told in the head.
    LyingLength,
    /// Another range than was asked for.
    OtherRange,
    /// Bytes without end, and no length.
    Endless,
    /// The right length, one wrong byte in the middle.
    WrongByte,
    /// To this place.
    Redirect(String, Vec<(&'static str, String)>),
}

type Asked = (String, HashMap<String, String>);

#[derive(Default)]
struct Stage {
    files: Mutex<HashMap<String, Vec<u8>>>,
    script: Mutex<Vec<Play>>,
    then: Mutex<Option<Play>>,
    asked: Mutex<Vec<Asked>>,
    sent: AtomicU64,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

pub struct Mirror {
    pub address: SocketAddr,
    stage: Arc<Stage>,
}

impl Mirror {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stage = Arc::new(Stage::default());
        let own = stage.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let stage = own.clone();
                tokio::spawn(async move {
                    let open = stage.open.fetch_add(1, Ordering::SeqCst) + 1;
                    stage.most_open.fetch_max(open, Ordering::SeqCst);
                    let _ = serve(tcp, &stage).await;
                    stage.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, stage }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a file where a mirror has it; gives its sum.
    pub fn put(&self, content: &[u8]) -> String {
        use sha2::Digest;
        let sum = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(content));
        self.put_at(&format!("/blobs/sha256-{sum}"), content);
        sum
    }

    pub fn put_at(&self, path: &str, content: &[u8]) {
        self.stage.files.lock().insert(path.to_owned(), content.to_vec());
    }

    /// What it does with the next requests, and with all after them.
    pub fn play(&self, script: Vec<Play>, then: Play) {
        *self.stage.script.lock() = script;
        *self.stage.then.lock() = Some(then);
    }

    /// Bytes of bodies that were sent.
    pub fn sent(&self) -> u64 {
        self.stage.sent.load(Ordering::SeqCst)
    }

    /// Most connections at a time.
    pub fn most_open(&self) -> usize {
        self.stage.most_open.load(Ordering::SeqCst)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.stage.asked.lock().clone()
    }
}

async fn serve(tcp: TcpStream, stage: &Stage) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = BufReader::new(tcp);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let from: Option<usize> =
        headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    stage.asked.lock().push((path.clone(), headers));
    let play = {
        let mut script = stage.script.lock();
        match script.is_empty() {
            true => stage.then.lock().clone().unwrap_or(Play::Serve),
            false => script.remove(0),
        }
    };
    let tcp = stream.get_mut();
    let Some(mut content) = stage.files.lock().get(&path).cloned() else {
        if let Play::Redirect(to, extra) = play {
            return head(tcp, 302, &[("location", to)], &extra, Some(0)).await;
        }
        return head(tcp, 404, &[], &[], Some(0)).await;
    };
    let size = content.len();
    let from = from.filter(|_| !matches!(play, Play::IgnoreRanges));
    if from.is_some_and(|from| from >= size) {
        let range = ("content-range", format!("bytes */{size}"));
        return head(tcp, 416, &[range], &[], Some(0)).await;
    }
    let start = from.unwrap_or(0);
    if matches!(play, Play::WrongByte) {
        content[size / 2] ^= 1;
    }
    let body = content.split_off(start);
    let shown = if matches!(play, Play::OtherRange) { start + 1 } else { start };
    let range = from.map(|_| ("content-range", format!("bytes {shown}-{}/{size}", size - 1)));
    let range: Vec<_> = range.into_iter().collect();
    let status = if range.is_empty() { 200 } else { 206 };
    match play {
        Play::Serve | Play::IgnoreRanges | Play::WrongByte | Play::OtherRange => {
            head(tcp, status, &range, &[], Some(body.len())).await?;
            send(tcp, stage, &body, body.len().max(1), Duration::ZERO).await
        }
        Play::Cut(count) => {
            head(tcp, status, &range, &[], Some(body.len())).await?;
            send(tcp, stage, &body[..count.min(body.len())], 1 << 16, Duration::ZERO).await
        }
        Play::Slow(piece, pause) => {
            head(tcp, status, &range, &[], Some(body.len())).await?;
            send(tcp, stage, &body, piece, pause).await
        }
        Play::Trickle => {
            head(tcp, status, &range, &[], Some(body.len())).await?;
            send(tcp, stage, &body, 1, Duration::from_millis(20)).await
        }
        Play::Silence => {
            let mut line = String::new();
            stream.read_line(&mut line).await.map(drop)
        }
        Play::Status(status) => head(tcp, status, &[], &[], Some(0)).await,
        Play::LyingLength => {
            head(tcp, status, &range, &[], Some(body.len() + 1000)).await?;
            send(tcp, stage, &body, 1 << 16, Duration::ZERO).await
        }
        Play::Endless => {
            head(tcp, status, &range, &[], None).await?;
            loop {
                send(tcp, stage, &body, 1 << 16, Duration::ZERO).await?;
            }
        }
        Play::Redirect(to, extra) => head(tcp, 302, &[("location", to)], &extra, Some(0)).await,
    }
}

async fn head(
    tcp: &mut TcpStream,
    status: u16,
    own: &[(&str, String)],
    extra: &[(&'static str, String)],
    length: Option<usize>,
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} As-It-Is\r\nconnection: close\r\n");
    for (name, value) in own.iter().chain(extra) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        text.push_str(&format!("content-length: {length}\r\n"));
    }
    text.push_str("\r\n");
    tcp.write_all(text.as_bytes()).await
}

async fn send(
    tcp: &mut TcpStream,
    stage: &Stage,
    body: &[u8],
    piece: usize,
    pause: Duration,
) -> std::io::Result<()> {
    let last = body.len().div_ceil(piece);
    for (n, bytes) in (1..).zip(body.chunks(piece)) {
        tcp.write_all(bytes).await?;
        stage.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        // Whoever has all of it may be at the next file while a pause behind it goes on.
        if !pause.is_zero() && n < last {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(())
}
