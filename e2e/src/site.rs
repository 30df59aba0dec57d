//! A small site on loopback for nodes to fetch: a plain page, and one whose text its script writes.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

const PLAIN: &str = "<!doctype html><html lang=\"en\"><head><title>Plain</title>\
    <meta name=\"description\" content=\"A page without scripts.\"></head>\
    <body><h1>Plain</h1><p>This page is written by hand.</p></body></html>";
const SCRIPT: &str = "<!doctype html><html lang=\"en\"><head><title>Script</title></head>\
    <body><p id=\"text\">nothing yet</p>\
    <script>document.getElementById('text').textContent = ['This page is', 'written by a script.'].join(' ');</script>\
    </body></html>";

/// The running site; dropping it stops it.
#[derive(Debug)]
pub struct Site {
    /// Where it listens.
    pub address: SocketAddr,
    _accept: AbortOnDropHandle<()>,
}

impl Site {
    /// Opens it on port 0.
    ///
    /// # Errors
    /// No port is free.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
        Ok(Self { address, _accept: AbortOnDropHandle::new(accept) })
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match request.uri().path() {
        "/plain" => Some(PLAIN),
        "/script" => Some(SCRIPT),
        _ => None,
    };
    let mut response = Response::new(Full::new(Bytes::from_static(page.unwrap_or("not here").as_bytes())));
    let media = if page.is_some() { "text/html; charset=utf-8" } else { "text/plain" };
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
    if page.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}
