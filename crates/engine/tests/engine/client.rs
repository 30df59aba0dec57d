//! A small HTTP client: one request per connection.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

/// Where an engine listens.
#[derive(Clone)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// One connection. Dropping it closes the connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
    headers: Vec<(&'static str, String)>,
}

/// A whole answer.
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// Status and machine code of an error.
    pub fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        (self.status, error["code"].as_str().unwrap().to_owned())
    }

    /// The content of a chat answer.
    pub fn content(&self) -> String {
        let json = self.json();
        json["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
    }
}

/// A streamed answer.
pub struct Events {
    _client: Client,
    body: Incoming,
    read: String,
}

impl Events {
    /// The data of the next event, `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let data = event.strip_prefix("data: ").unwrap().to_owned();
                self.read = rest.to_owned();
                return Some(data);
            }
            let frame = self.body.frame().await?.unwrap();
            self.read.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    /// All events that are left, as JSON; `[DONE]` as a text.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.push(serde_json::from_str(&data).unwrap_or(Value::String(data)));
        }
        all
    }
}

/// The contents of all chunks, joined.
pub fn joined(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

impl Client {
    pub async fn connect(address: &Address) -> std::io::Result<Self> {
        let mut connection = JoinSet::new();
        let sender = match address {
            Address::Unix(path) => {
                let stream = TokioIo::new(UnixStream::connect(path).await?);
                let (sender, driver) = handshake(stream).await.map_err(std::io::Error::other)?;
                connection.spawn(async move { drop(driver.await) });
                sender
            }
            Address::Tcp(address) => {
                let stream = TokioIo::new(TcpStream::connect(address).await?);
                let (sender, driver) = handshake(stream).await.map_err(std::io::Error::other)?;
                connection.spawn(async move { drop(driver.await) });
                sender
            }
        };
        Ok(Self { sender, _connection: connection, headers: Vec::new() })
    }

    /// Adds a header to the request.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub async fn get(self, path: &str) -> Answer {
        self.send("GET", path, Bytes::new()).await
    }

    pub async fn post(self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string().into()).await
    }

    pub async fn send(mut self, method: &str, path: &str, body: Bytes) -> Answer {
        let response = self.begin(method, path, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, body }
    }

    /// Posts and reads events as they come.
    pub async fn stream(mut self, path: &str, body: &Value) -> Events {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.begin("POST", path, body.to_string().into()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { _client: self, body: response.into_body(), read: String::new() }
    }

    async fn begin(&mut self, method: &str, path: &str, body: Bytes) -> http::Response<Incoming> {
        let mut request = http::Request::builder().method(method).uri(path).header("host", "engine");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        self.sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap()
    }
}
