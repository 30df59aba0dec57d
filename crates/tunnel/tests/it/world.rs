//! A gateway with one route, a proxy that can be cut or frozen, and a node.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::ping::PingConfig;
use cxmpute_tunnel::sign::{self, WINDOW};
use cxmpute_tunnel::{
    DialConfig, DialError, Incoming, Link, LinkConfig, NodeEnd, Roots, Signer, WorkHead, WorkPath,
    WorkRequest, accept, dial, verify_request,
};
use cxmpute_wire::{Code, Epoch, Generation, Millis, Timestamp};
use ed25519_dalek::{SigningKey, VerifyingKey};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming as Body;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// Behavioural deadlines are asserted at four times their value (DESIGN section 9).
pub const SLACK: u32 = 4;

pub const LONG: Duration = Duration::from_secs(20);

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it happened within 20 s")
}

/// Looks until a condition holds, at most 20 s. A look is not a sleep: it ends the moment the condition holds.
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(1));
    soon(async {
        while !holds().await {
            looks.tick().await;
        }
    })
    .await;
}

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// A gateway that knows one key.
pub struct Gateway {
    pub address: SocketAddr,
    pub links: mpsc::UnboundedReceiver<Link>,
    pub tasks: Tasks,
}

#[derive(Clone)]
struct Desk {
    known: VerifyingKey,
    clock: Clock,
    config: LinkConfig,
    tasks: Tasks,
    links: mpsc::UnboundedSender<Link>,
}

impl Gateway {
    pub async fn start(clock: Clock, config: LinkConfig, tls: Option<TlsAcceptor>) -> Self {
        Self::start_on("127.0.0.1:0", clock, config, tls).await
    }

    pub async fn start_on(bind: &str, clock: Clock, config: LinkConfig, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, links) = mpsc::unbounded_channel();
        let tasks = Tasks::new();
        let desk = Desk { known: key(1).verifying_key(), clock, config, tasks: tasks.clone(), links: sender };
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).unwrap();
                let (desk, tls) = (desk.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                desk.serve(stream).await;
                            }
                        }
                        None => desk.serve(tcp).await,
                    }
                });
            }
        });
        Self { address, links, tasks }
    }

    pub async fn link(&mut self) -> Link {
        soon(self.links.recv()).await.unwrap()
    }
}

impl Desk {
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| {
            let desk = self.clone();
            async move { Ok::<_, std::convert::Infallible>(desk.answer(request).await) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
    }

    async fn answer(self, mut request: Request<Body>) -> Response<Full<Bytes>> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let now = self.clock.now();
        match verify_request(&parts, &body, &self.known, now, WINDOW) {
            Err(sign::SignatureError::ClockSkew { server_time }) => {
                refusal(Code::ClockSkew, serde_json::json!({ "server_time": server_time }))
            }
            Err(error) => refusal(Code::InvalidSignature, serde_json::json!({ "why": error.to_string() })),
            Ok(_) if accept::asks_for_tunnel(&parts.headers) => {
                tokio::spawn(async move {
                    if let Ok(link) = accept::accept(upgrade, self.config, &self.tasks).await {
                        let _ = self.links.send(link);
                    }
                });
                accept::switching_protocols(Epoch(1), now)
            }
            Ok(verified) => {
                let text = format!("{} {} {}", verified.key_id, parts.uri, body.len());
                Response::new(Full::new(text.into()))
            }
        }
    }
}

fn refusal(code: Code, mut extra: serde_json::Value) -> Response<Full<Bytes>> {
    extra["code"] = code.as_str().into();
    extra["message"] = "no".into();
    let body = serde_json::json!({ "error": extra }).to_string();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(code.status()).unwrap();
    response
}

/// What the proxy between node and gateway does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Open,
    /// Bytes stop flowing, connections stay open.
    Frozen,
    /// Connections are dropped.
    Cut,
}

/// Sits between node and gateway.
pub struct Proxy {
    pub address: SocketAddr,
    state: watch::Sender<Wire>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, watched) = watch::channel(Wire::Open);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut watched = watched.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                        _ = watched.wait_for(|wire| *wire != Wire::Open) => {}
                    }
                    let _ = watched.wait_for(|wire| *wire == Wire::Cut).await;
                });
            }
        });
        Self { address, state }
    }

    pub fn set(&self, wire: Wire) {
        self.state.send(wire).unwrap();
    }
}

/// Frames of HTTP/2 that passed from the gateway to the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    pub heads: usize,
    pub resets: usize,
}

/// A wire without TLS for one tunnel that counts what it has handed to the node's socket.
pub async fn counting(gateway: SocketAddr) -> (SocketAddr, watch::Receiver<Frames>) {
    /// What an HTTP/2 client says first.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const FRAME_HEAD: usize = 9;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (counts, passed) = watch::channel(Frames::default());
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(gateway).await.unwrap();
        let ((mut from_node, mut to_node), (mut from_gateway, mut to_gateway)) =
            (near.into_split(), far.into_split());
        let back = async move { tokio::io::copy(&mut from_node, &mut to_gateway).await };
        let there = async move {
            let (mut seen, mut begun, mut buffer) = (Vec::new(), false, vec![0; 64 * 1024]);
            while let Ok(length @ 1..) = from_gateway.read(&mut buffer).await {
                if to_node.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
                seen.extend_from_slice(&buffer[..length]);
                if !begun && let Some(at) = seen.windows(PREFACE.len()).position(|part| part == PREFACE) {
                    seen.drain(..at + PREFACE.len());
                    begun = true;
                }
                while begun && seen.len() >= FRAME_HEAD {
                    let length = FRAME_HEAD + u32::from_be_bytes([0, seen[0], seen[1], seen[2]]) as usize;
                    if seen.len() < length {
                        break;
                    }
                    counts.send_modify(|frames| match seen[3] {
                        1 => frames.heads += 1,
                        3 => frames.resets += 1,
                        _ => {}
                    });
                    seen.drain(..length);
                }
            }
        };
        let _ = tokio::join!(there, back);
    });
    (address, passed)
}

/// Gateway, proxy and node, connected.
pub struct World {
    pub link: Link,
    pub node: NodeEnd,
    pub proxy: Proxy,
    pub gateway: Gateway,
    pub tasks: Tasks,
}

/// Quick, but not so quick that a busy machine makes a live wire look silent.
pub fn quick_ping() -> PingConfig {
    PingConfig { interval: Duration::from_millis(50), timeout: Duration::from_millis(1_500) }
}

impl World {
    pub async fn start() -> Self {
        Self::with(LinkConfig::default(), 64, PingConfig::default()).await
    }

    pub async fn with(link: LinkConfig, capacity: u32, ping: PingConfig) -> Self {
        let mut gateway = Gateway::start(Clock::system(), link, None).await;
        let proxy = Proxy::start(gateway.address).await;
        let tasks = Tasks::new();
        let mut config = config(&format!("http://{}", proxy.address), key(1), Clock::system(), None);
        config.capacity = capacity;
        config.ping = ping;
        let node = soon(dial(&config, &tasks)).await.unwrap();
        let link = gateway.link().await;
        Self { link, node, proxy, gateway, tasks }
    }

    /// Everything that was started has ended.
    pub async fn close(self) {
        drop((self.link, self.node));
        for tasks in [&self.tasks, &self.gateway.tasks] {
            assert_eq!(tasks.stop(LONG).await, Vec::<&str>::new(), "tasks are left over");
        }
    }
}

pub fn config(url: &str, key: SigningKey, clock: Clock, ca: Option<&Path>) -> DialConfig {
    DialConfig::new(url, Signer::new(key, clock), Roots::new(ca).unwrap())
}

pub async fn dial_error(config: &DialConfig) -> DialError {
    soon(dial(config, &Tasks::new())).await.unwrap_err()
}

pub fn head(number: u64) -> WorkHead {
    WorkHead {
        request_id: format!("req_{number:032x}").parse().unwrap(),
        attempt: 1,
        epoch: Epoch(1),
        service: "llm:cxm-tiny".parse().unwrap(),
        generation: Generation(1),
        path: WorkPath::ChatCompletions,
        deadline: Millis(60_000),
        max_tokens: 100,
        max_bytes: 100_000,
    }
}

pub async fn work(node: &mut NodeEnd) -> WorkRequest {
    match soon(node.next()).await {
        Some(Incoming::Work(work)) => work,
        other => panic!("expected work, got {other:?}"),
    }
}

/// A certificate authority and a server that it vouches for, named `localhost`.
pub fn certified() -> (tempfile::NamedTempFile, TlsAcceptor) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::from_params(&authority, &authority_key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&server_key, &issuer).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority_certificate.pem()).unwrap();
    let chain = vec![CertificateDer::from(server.der().to_vec())];
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

pub fn skewed(seconds: i64) -> Clock {
    let mock = cxmpute_runtime::MockClock::new();
    mock.set_wall(Timestamp(Clock::system().now().0 + seconds * 1000));
    mock.into()
}
