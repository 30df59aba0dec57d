//! One gateway in this process on a free port, with a store in a temporary directory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_gateway::auth::{self, Pepper, key};
use cxmpute_gateway::config::Config;
use cxmpute_gateway::listen::bind_loopback;
use cxmpute_gateway::{App, Listeners, Parts, serve};
use cxmpute_store::{KeyKind, NewKey, NewUser, UserCreated};
use cxmpute_wire::{Timestamp, UserId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct World {
    pub app: Arc<App>,
    pub address: SocketAddr,
    _directory: TempDir,
}

/// An answer as it came over the socket.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Code of the error envelope.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(&prefix))
    }
}

/// What must hold within a second is asserted at four times that.
pub const WITHIN_A_SECOND: Duration = Duration::from_secs(4);

/// Looks until a condition gives a value, and fails naming it when it gives none in time. A look is not a sleep: it ends
/// the moment the condition holds.
pub async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let found = tokio::time::timeout(within, async {
        loop {
            looks.tick().await;
            if let Some(value) = look().await {
                return value;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("{what}, but not within {within:?}"))
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.store.data_dir = directory.path().join("data");
        config.metrics.bind = "off".to_owned();
        change(&mut config);
        let app = App::build(config, Parts::default()).await.unwrap();
        let listeners = Listeners { api: bind_loopback().await.unwrap(), metrics: None };
        let address = listeners.address().unwrap();
        app.tasks.spawn("api", serve(app.clone(), listeners));
        Self { app, address, _directory: directory }
    }

    pub async fn user(&self, name: &str) -> UserId {
        let user = NewUser {
            id: UserId::from_tail(name),
            email: format!("{name}@example.org"),
            created_at: Timestamp(1),
        };
        match self.app.db.create_user(&user).await.unwrap() {
            UserCreated::Created(row) | UserCreated::Exists(row) => row.id,
        }
    }

    pub async fn key(&self, user: &UserId, kind: KeyKind) -> String {
        let pepper = Pepper::load_or_create(&self.app.config.store.pepper_file()).unwrap();
        let minted = auth::mint(kind);
        let new = NewKey {
            id: minted.id.clone(),
            user_id: user.clone(),
            kind,
            name: "test".to_owned(),
            hash: pepper.hash(minted.text.expose()).to_vec(),
            env: key::ENVIRONMENT.to_owned(),
            budget: None,
            created_at: Timestamp(1),
        };
        self.app.db.create_key(&new).await.unwrap();
        minted.text.expose().clone()
    }

    /// Sends bytes as they are and reads until the gateway closes.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.unwrap().unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request
                .push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body);
        self.raw(request.as_bytes()).await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        let value = format!("Bearer {key}");
        let headers = [("authorization", value.as_str())];
        self.call("GET", path, if key.is_empty() { &[] } else { &headers }, "").await
    }

    /// Ends the gateway; nothing may be left running.
    pub async fn stop(self) {
        assert!(self.app.stop().await.is_empty(), "every task ends by itself");
    }
}
