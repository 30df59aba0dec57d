//! Speech, recordings, pictures and pages through a real socket: what a client can get wrong names its field, and the next
//! good request works.

mod cost;
mod drawing;
mod live;
mod page;
mod picture;
mod sound;

use std::time::Duration;

use cxmpute_e2e::client::{Client, Payload, Reply};
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::paths::settled;
use cxmpute_e2e::services::{Service, TEXT};
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::stand_in::StandIn;
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::{Account, LISTENING_MODEL, READING_MODEL, SPEECH_MODEL, World};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A refusal: the case, the route, the body, and status, code and field of the answer.
type Row = (&'static str, &'static str, Payload, u16, &'static str, Option<&'static str>);

const INVALID: &str = "invalid_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";

struct Ground {
    world: World,
    node: StandIn,
    account: Account,
}

impl Ground {
    async fn new() -> Self {
        let world = World::plan(Setting::clean()).services().start().await.unwrap();
        let node = world.stand_in("node").await.unwrap();
        let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await.unwrap();
        Self { world, node, account }
    }

    /// Every row is refused as it says, nothing of it reaches a node, and nothing is paid.
    async fn refuse(&self, rows: Vec<Row>) {
        let before = self.balance().await;
        let served = self.node.notes().len();
        let mut wrong = Vec::new();
        for (name, route, payload, status, code, param) in rows {
            let reply =
                self.account.client.post(route, &payload).await.unwrap_or_else(|e| panic!("{name}: {e:#}"));
            let error = &reply.json()["error"];
            let seen = (reply.status, error["code"].as_str().unwrap_or_default(), error["param"].as_str());
            if seen != (status, code, param) {
                wrong.push(format!(
                    "{name}: {seen:?} instead of {:?}: {}",
                    (status, code, param),
                    error["message"]
                ));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(self.node.notes().len(), served, "a request that was refused reached a node");
        assert_eq!(self.balance().await, before, "a request that was refused was paid");
    }

    async fn balance(&self) -> Value {
        let credits = self.account.client.call("GET", "/v1/credits", None).await.unwrap();
        assert_eq!(credits.status, 200);
        credits.json()
    }

    async fn post(&self, route: &str, payload: &Payload) -> Reply {
        self.account.client.post(route, payload).await.unwrap()
    }

    /// The receipt of a request.
    async fn receipt(&self, reply: &Reply) -> Value {
        let id = reply.header("x-request-id").unwrap();
        settled(&self.account.client, id, Duration::from_secs(10)).await.unwrap()
    }

    /// Good requests of every kind work, and nothing is left behind.
    async fn finish(self) {
        for service in Service::ALL {
            let reply = self.post(service.url(), &service.request()).await;
            assert!(service.is_good(&reply), "{}: {} {}", service.name(), reply.status, reply.json());
        }
        let mut verdict = Verdict::new("services");
        self.world.finish(&mut verdict).await.unwrap();
        assert!(verdict.broken().is_empty(), "{:#?}", verdict.broken());
    }
}

fn speech(change: impl FnOnce(&mut Value)) -> Payload {
    let mut body = json!({"model": SPEECH_MODEL, "input": TEXT, "voice": "alloy", "response_format": "wav"});
    change(&mut body);
    Payload::json(&body)
}

fn form(fields: &[(&str, &str)], file: &[u8]) -> Payload {
    Payload::form(&[&[("model", LISTENING_MODEL)][..], fields].concat(), Some(file))
}

fn picture(body: Value) -> Payload {
    let mut body = body;
    body["model"] = json!(READING_MODEL);
    Payload::json(&body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_above_its_limit_is_refused_as_such() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let image = picture(json!({"imageBase64": "A".repeat(27 * MIB)}));
    let json = |body: Value| Payload::json(&body);
    ground
        .refuse(vec![
            (
                "a form",
                "/v1/audio/transcriptions",
                form(&[], &vec![0; 27 * MIB]),
                413,
                "body_too_large",
                None,
            ),
            ("a picture", "/v1/m/caption", image, 413, "body_too_large", None),
            (
                "a text",
                "/v1/audio/speech",
                speech(|b| b["input"] = json!("x".repeat(5 * MIB))),
                413,
                "body_too_large",
                None,
            ),
            (
                "addresses",
                "/v1/scrape",
                json(json!({"urls": ["x".repeat(5 * MIB)]})),
                413,
                "body_too_large",
                None,
            ),
        ])
        .await;
    ground.finish().await;
}

/// Without a key nothing is read; without money nothing is done, and what can be paid is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_need_a_key_and_money() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let poor = ground.world.account("poor@example.org", MicroCredits(1)).await.unwrap();
    let served = ground.node.notes().len();
    for service in Service::ALL {
        let stranger = Client::anonymous(ground.world.address);
        let reply = stranger.post(service.url(), &service.request()).await.unwrap();
        assert_eq!(reply.status, 401, "{}: {}", service.name(), reply.json());
        let reply = poor.client.post(service.url(), &service.request()).await.unwrap();
        assert_eq!(reply.status, 402, "{}: {}", service.name(), reply.json());
    }
    assert_eq!(ground.node.notes().len(), served);
    ground.finish().await;
}
