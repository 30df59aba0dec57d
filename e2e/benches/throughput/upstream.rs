//! What nginx proxies to: a plain HTTP server that says the same as the stand-in node, written by hand to be cheap.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cxmpute_e2e::house::CHAT_MODEL;
use cxmpute_runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::emissions::Emissions;
use crate::load::Script;
use crate::node::{DONE, FINISH, content_event, whole_answer};

/// Serves until the process ends.
///
/// # Errors
/// No port is free.
pub async fn start(emissions: Arc<Emissions>, tasks: &Tasks) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tasks.spawn("upstream", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = tcp.set_nodelay(true);
            let emissions = emissions.clone();
            tokio::spawn(async move {
                // The other end hangs up when it likes.
                let _ = serve(tcp, &emissions).await;
            });
        }
    });
    Ok(address)
}

async fn serve(mut tcp: TcpStream, emissions: &Emissions) -> Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        buffer.clear();
        while !is_whole(&buffer) {
            if tcp.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        if buffer.starts_with(b"GET ") {
            answer(&mut tcp, &models()).await?;
            continue;
        }
        let script = Script::read(&buffer);
        if buffer.windows(13).any(|window| window == b"\"stream\":true") {
            stream(&mut tcp, script, emissions).await?;
        } else {
            answer(&mut tcp, &whole_answer(script.events)).await?;
        }
    }
}

async fn answer(tcp: &mut TcpStream, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok(tcp.write_all((head + body).as_bytes()).await?)
}

async fn stream(tcp: &mut TcpStream, script: Script, emissions: &Emissions) -> Result<()> {
    tcp.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    .await?;
    for number in 0..script.events {
        emissions.note(script.stream);
        tcp.write_all(&chunk(content_event(number))).await?;
        if script.pace_ms == 0 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(script.pace_ms.into())).await;
        }
    }
    let mut end = chunk(FINISH.as_bytes());
    end.extend(chunk(DONE.as_bytes()));
    end.extend_from_slice(b"0\r\n\r\n");
    tcp.write_all(&end).await?;
    Ok(())
}

fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// What a node wants to know of an engine before it gives it work.
fn models() -> String {
    format!("{{\"object\":\"list\",\"data\":[{{\"id\":\"{CHAT_MODEL}\",\"object\":\"model\"}}]}}")
}

/// Our bodies are one JSON object, so a request is whole when its last brace has come; a request for the models has none.
fn is_whole(buffer: &[u8]) -> bool {
    (buffer.ends_with(b"}") || buffer.starts_with(b"GET "))
        && buffer.windows(4).any(|window| window == b"\r\n\r\n")
}
