//! A small server that says what a test wants, byte by byte, and notes what it was asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::Tasks;
use cxmpute_runtime::lifecycle::OwnedTask;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// One request as it arrived: its first line and its header lines, in lower case names.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }
}

/// What the server does.
pub enum Play {
    /// Status, headers, body; the length is told.
    Say(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, then the end.
    Raw(Vec<u8>),
    /// A head, then this piece again and again until the other side hangs up.
    Endless(Vec<u8>, Vec<u8>),
    /// Not a word.
    Silence,
    /// A head, then one byte each time.
    Trickle(Vec<u8>, Duration),
}

impl Play {
    pub fn text(body: &str) -> Self {
        Self::Say(200, vec![("content-type", "text/plain".into())], body.as_bytes().to_vec())
    }

    pub fn redirect(status: u16, to: &str) -> Self {
        Self::Say(status, vec![("location", to.to_owned())], b"elsewhere".to_vec())
    }
}

type Handler = Arc<dyn Fn(&Asked) -> Play + Send + Sync>;

pub struct Site {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    _task: OwnedTask,
}

impl Site {
    pub async fn start(tasks: &Tasks, handler: impl Fn(&Asked) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, handler): (Arc<Mutex<Vec<Asked>>>, Handler) = (Arc::default(), Arc::new(handler));
        let (notes, own) = (asked.clone(), tasks.clone());
        let task = tasks.spawn_owned("site", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (notes, handler) = (notes.clone(), handler.clone());
                own.spawn("site-connection", async move {
                    let _ = serve(stream, &notes, &handler).await;
                });
            }
        });
        Self { address, asked, _task: task }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

/// Serves one request of a connection, secured or not.
pub async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    notes: &Mutex<Vec<Asked>>,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Ok(()),
        }
    }
    let asked = parse(&String::from_utf8_lossy(&head));
    notes.lock().push(asked.clone());
    match handler(&asked) {
        Play::Say(status, headers, body) => {
            let mut out = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                out.push_str(&format!("{name}: {value}\r\n"));
            }
            out.push_str("\r\n");
            stream.write_all(out.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Play::Raw(bytes) => stream.write_all(&bytes).await?,
        Play::Endless(head, piece) => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Play::Silence => {
            let _ = stream.read_u8().await;
        }
        Play::Trickle(head, pause) => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(b"x").await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
    stream.shutdown().await
}

fn parse(head: &str) -> Asked {
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let path = first.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Asked { method, path, headers }
}
