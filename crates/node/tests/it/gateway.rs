//! A gateway that knows how to enrol, take a tunnel, publish a plan and hand out work; it believes every key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_node::engines::fake::{Fake, Script};
use cxmpute_node::{Deps, Node, NodeConfig, NodeView};
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::{
    ControlReceiver, ControlSender, Link, LinkConfig, WorkError, WorkHead, WorkPath, WorkStream, accept,
};
use cxmpute_wire::control::{
    Desired, DesiredFile, DesiredService, FromNode, Heartbeat, ObservedService, Policy, ServiceState, ToNode,
};
use cxmpute_wire::{Code, Epoch, Generation, Millis, ServiceId, Timestamp};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming as Body;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub const LONG: Duration = Duration::from_secs(30);

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it happened within 30 s")
}

/// What the gateway's desk does with the next requests.
#[derive(Default)]
pub struct Desk {
    pub refuse_tunnels: Mutex<Option<Code>>,
    pub refuse_enrolments: Mutex<Option<Code>>,
    pub enrolments: Mutex<Vec<Value>>,
    epoch: AtomicI64,
}

pub struct Gateway {
    pub address: SocketAddr,
    pub desk: Arc<Desk>,
    links: mpsc::UnboundedReceiver<Link>,
    pub tasks: Tasks,
}

impl Gateway {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, links) = mpsc::unbounded_channel();
        let (desk, tasks) = (Arc::new(Desk::default()), Tasks::new());
        let (own_desk, own_tasks) = (desk.clone(), tasks.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (desk, tasks, sender) = (own_desk.clone(), own_tasks.clone(), sender.clone());
                let service = service_fn(move |request| {
                    let answer = answer(request, desk.clone(), tasks.clone(), sender.clone());
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(tcp), service).with_upgrades().await;
                });
            }
        });
        Self { address, desk, links, tasks }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next tunnel, with its control stream.
    pub async fn tunnel(&mut self) -> Tunnel {
        let link = soon(self.links.recv()).await.unwrap();
        let (sender, receiver) = soon(link.control()).await.unwrap();
        let epoch = Epoch(self.desk.epoch.load(Ordering::SeqCst));
        Tunnel { link, sender, receiver, epoch, generation: Generation(0) }
    }
}

async fn answer(
    mut request: Request<Body>,
    desk: Arc<Desk>,
    tasks: Tasks,
    links: mpsc::UnboundedSender<Link>,
) -> Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if accept::asks_for_tunnel(&parts.headers) {
        if let Some(code) = *desk.refuse_tunnels.lock() {
            return refusal(code);
        }
        let epoch = Epoch(desk.epoch.fetch_add(1, Ordering::SeqCst) + 1);
        tokio::spawn(async move {
            let link = accept::accept(upgrade, LinkConfig::default(), &tasks).await.unwrap();
            let _ = links.send(link);
        });
        return accept::switching_protocols(epoch, Clock::system().now());
    }
    if parts.method == http::Method::PUT {
        if let Some(code) = *desk.refuse_enrolments.lock() {
            return refusal(code);
        }
        let id = parts.uri.path().rsplit('/').next().unwrap().to_owned();
        let enrolment: Value = serde_json::from_slice(&body).unwrap();
        desk.enrolments.lock().push(enrolment);
        let answer = json!({"provision_id": id, "owner": "us_1", "state": "enrolled",
            "server_time": Timestamp(0), "epoch": 0, "control_plane": "test"});
        return Response::builder().status(201).body(Full::new(answer.to_string().into())).unwrap();
    }
    Response::new(Full::new(Bytes::new()))
}

fn refusal(code: Code) -> Response<Full<Bytes>> {
    let body = json!({"error": {"code": code, "message": "as the test says"}}).to_string();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(code.status()).unwrap();
    response
}

/// One tunnel as the gateway holds it.
pub struct Tunnel {
    pub link: Link,
    pub sender: ControlSender<ToNode>,
    pub receiver: ControlReceiver<FromNode>,
    pub epoch: Epoch,
    pub generation: Generation,
}

impl Tunnel {
    pub async fn publish(&mut self, services: Vec<DesiredService>) {
        self.generation.0 += 1;
        let desired = Desired { generation: self.generation, services, policy: Policy::default() };
        self.sender.send(&ToNode::Desired(desired)).await.unwrap();
    }

    pub async fn heartbeat(&mut self) -> Heartbeat {
        loop {
            if let FromNode::Heartbeat(heartbeat) = soon(self.receiver.next()).await.unwrap().unwrap() {
                return heartbeat;
            }
        }
    }

    /// Reads heartbeats until one of them tells this of the service.
    pub async fn until(&mut self, service: &str, wanted: ServiceState) -> ObservedService {
        soon(async {
            loop {
                let heartbeat = self.heartbeat().await;
                let found = heartbeat.services.into_iter().find(|s| s.service_id.as_str() == service);
                if let Some(found) = found
                    && found.state == wanted
                {
                    return found;
                }
            }
        })
        .await
    }

    pub fn head(&self, service: &str, path: WorkPath) -> WorkHead {
        WorkHead {
            request_id: "req_1".parse().unwrap(),
            attempt: 1,
            epoch: self.epoch,
            service: service.parse().unwrap(),
            generation: self.generation,
            path,
            deadline: Millis(20_000),
            max_tokens: 100,
            max_bytes: 100_000,
        }
    }

    pub fn chat(&self, question: &str) -> WorkStream {
        let body = json!({"model": "a", "stream": true, "messages": [{"role": "user", "content": question}]});
        let head = self.head("llm:a", WorkPath::ChatCompletions);
        self.link.open(&head, Bytes::from(body.to_string())).unwrap()
    }
}

/// Everything that a stream brings, and how it ends.
pub async fn read(stream: &mut WorkStream) -> (String, Option<WorkError>) {
    let mut text = Vec::new();
    loop {
        match soon(stream.chunk()).await {
            Some(Ok(chunk)) => text.extend_from_slice(&chunk),
            Some(Err(error)) => return (String::from_utf8(text).unwrap(), Some(error)),
            None => return (String::from_utf8(text).unwrap(), None),
        }
    }
}

pub fn service(name: &str) -> DesiredService {
    let service_id: ServiceId = name.parse().unwrap();
    DesiredService {
        kind: service_id.kind(),
        model: service_id.model().unwrap().to_owned(),
        service_id,
        engines: vec!["builtin".into()],
        files: Vec::new(),
        context_length: None,
        slots: 0,
        memory_claim: cxmpute_wire::Bytes(0),
        gpus: Vec::new(),
        since: None,
        ollama: None,
        hub: None,
        container: None,
        seal: None,
    }
}

pub fn file(name: &str) -> DesiredFile {
    DesiredFile {
        role: "model".into(),
        name: name.into(),
        sha256: None,
        size: None,
        urls: Vec::new(),
        hub: None,
    }
}

/// A node in this process.
pub struct Running {
    pub view: NodeView,
    pub tasks: Tasks,
    pub config: NodeConfig,
    pub result: tokio::task::JoinHandle<anyhow::Result<()>>,
    dir: Option<tempfile::TempDir>,
}

impl Running {
    pub fn start(gateway: &Gateway, fake: Option<Fake>, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(gateway, dir.path().to_owned());
        change(&mut config);
        Self::again(config, fake).keeping(dir)
    }

    /// One whose directory goes with it.
    pub fn keeping(mut self, dir: tempfile::TempDir) -> Self {
        self.dir = Some(dir);
        self
    }

    /// What a node with real engines needs.
    pub fn deps() -> Deps {
        let mut deps = Deps::new(Clock::system(), Tasks::new());
        deps.program = Some(env!("CARGO_BIN_EXE_cxmpute-provider").into());
        deps
    }

    pub fn again(config: NodeConfig, fake: Option<Fake>) -> Self {
        let mut deps = Self::deps();
        deps.fake = fake;
        Self::with(config, deps)
    }

    pub fn with(config: NodeConfig, deps: Deps) -> Self {
        let tasks = deps.tasks.clone();
        let node = Node::build(config.clone(), deps).unwrap();
        let view = node.view();
        let result = tokio::spawn(node.run());
        Self { view, tasks, config, result, dir: None }
    }

    /// Stops it; nothing may be left over.
    pub async fn stop(self) {
        self.tasks.soft().cancel();
        soon(self.result).await.unwrap().unwrap();
        assert_eq!(self.tasks.stop(LONG).await, Vec::<&str>::new(), "tasks are left over");
        let left: Vec<_> = std::fs::read_dir(cxmpute_node::place::run_dir(&self.config.data_dir))
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "{left:?} are left over");
    }
}

pub fn config(gateway: &Gateway, dir: PathBuf) -> NodeConfig {
    let mut config = NodeConfig { data_dir: dir, ..NodeConfig::default() };
    config.api.url = gateway.url();
    config
}

/// A gateway, a node with scripted engines, and the tunnel between them with `llm:a` ready.
pub struct World {
    pub tunnel: Tunnel,
    pub node: Running,
    pub gateway: Gateway,
    pub fake: Fake,
}

impl World {
    pub async fn start(
        slots: u32,
        director: impl Fn(&str, &Value) -> Script + Send + Sync + 'static,
    ) -> Self {
        let fake = Fake::new(slots, director);
        let mut gateway = Gateway::start().await;
        let node = Running::start(&gateway, Some(fake.clone()), |_| {});
        let mut tunnel = gateway.tunnel().await;
        tunnel.publish(vec![service("llm:a"), service("embeddings:e")]).await;
        tunnel.until("llm:a", ServiceState::Ready).await;
        Self { tunnel, node, gateway, fake }
    }

    pub async fn close(self) {
        self.node.stop().await;
        assert_eq!(self.fake.running(), 0, "engines still work");
        drop(self.tunnel);
        assert_eq!(self.gateway.tasks.stop(LONG).await, Vec::<&str>::new());
    }
}
