//! Speech that is sent while it is made: the first part is there before the last one is, nobody pays for what breaks off, and who
//! leaves pays what the abort table says.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_e2e::client::Conversation;
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::services::{Service, TEXT};
use cxmpute_e2e::stand_in::{Script, Step, speech as said};
use cxmpute_wire::wave::Wave;
use serde_json::{Value, json};

use super::{Ground, speech};

const ROUTE: &str = "/v1/audio/speech";
/// Four times the 250 ms in which a node is to hear that its client left.
const CANCELLED_WITHIN: Duration = Duration::from_secs(1);

/// The waveform of the node up to a place, and from there.
fn halves() -> (Step, Step) {
    let file = said(TEXT);
    let (first, rest) = file.split_at(file.len() / 2);
    (Step::Raw(first.to_vec().into()), Step::Raw(rest.to_vec().into()))
}

/// What the client gets of it when it asks for it early: a header without a length, and all samples.
fn open() -> Vec<u8> {
    let file = said(TEXT);
    let wave = Wave::read(&file).unwrap();
    [&Wave::open_header(wave.rate, wave.channels)[..], wave.samples].concat()
}

impl Ground {
    /// Asks for speech that is played from these steps; the head of the answer is there.
    async fn hear(&self, steps: Vec<Step>, format: &str, stream: Value) -> (Conversation, usize) {
        self.node.learn(Service::Speech.script(), Script::of(steps));
        let place = self.node.notes().len();
        let payload = speech(|body| {
            body["response_format"] = json!(format);
            body["stream_format"] = stream;
        });
        let mut conversation = self.account.client.send_payload("POST", ROUTE, Some(&payload)).await.unwrap();
        conversation.read_head().await.unwrap();
        assert_eq!(conversation.status, 200);
        (conversation, place)
    }

    async fn settled(&self, conversation: &Conversation) -> Value {
        let id = conversation.header("x-request-id").unwrap();
        cxmpute_e2e::paths::settled(&self.account.client, id, Duration::from_secs(10)).await.unwrap()
    }

    fn paid(&self, receipt: &Value) -> i64 {
        self.world.cost_of(receipt).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_part_of_speech_is_there_before_the_last() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let price = Service::Speech.price(&ground.world.money).unwrap();
    for (format, stream) in [("wav", json!("audio")), ("pcm", Value::Null)] {
        let (first, rest) = halves();
        let (mut conversation, place) = ground.hear(vec![first, Step::Await, rest], format, stream).await;
        // The node still waits: what the client has is the first half.
        assert!(ground.node.notes()[place].finished.is_none());
        ground.node.go_on();
        let body = conversation.rest().await.unwrap();
        assert_eq!(conversation.header("content-type"), Some(format!("audio/{format}").as_str()));
        match format {
            "wav" => assert_eq!(body, open()),
            _ => {
                let millis = Wave { rate: 24_000, channels: 1, samples: &body }.millis();
                assert!(Wave::read(&said(TEXT)).unwrap().millis().abs_diff(millis) <= 1, "{millis}");
            }
        }
        let receipt = ground.settled(&conversation).await;
        assert_eq!((&receipt["outcome"], ground.paid(&receipt)), (&json!("finished"), price), "{receipt}");
        assert!(receipt["streamed"] == true && receipt["first_token_ms"].is_u64(), "{receipt}");
    }
    // A wav that nobody asked for early says how long it is.
    ground.node.forget(Service::Speech.script());
    let whole = ground.post(ROUTE, &speech(|_| ())).await;
    assert_eq!(whole.body, said(TEXT));
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speech_as_events_ends_with_its_bill() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let (first, rest) = halves();
    let (mut conversation, _) = ground.hear(vec![first, Step::Await, rest], "wav", json!("sse")).await;
    ground.node.go_on();
    let body = String::from_utf8(conversation.rest().await.unwrap()).unwrap();
    let events: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let (done, deltas) = events.split_last().unwrap();
    let sound: Vec<u8> = deltas
        .iter()
        .flat_map(|event| {
            assert_eq!(event["type"], "speech.audio.delta");
            STANDARD.decode(event["audio"].as_str().unwrap()).unwrap()
        })
        .collect();
    assert!(deltas.len() >= 2 && sound == open(), "{} events", deltas.len());
    let receipt = ground.settled(&conversation).await;
    assert_eq!(done["type"], "speech.audio.done");
    assert_eq!(
        (&done["usage"]["cost"], &done["usage"]["cost_details"], &done["usage"]["characters"]),
        (&receipt["total_cost"], &receipt["cost_details"], &receipt["characters"])
    );
    // What breaks off says so, and is free.
    let (first, _) = halves();
    // A reset may overtake what was sent before it, so the node waits until the client has the beginning.
    let steps = vec![first, Step::Await, Step::Break];
    let (mut conversation, _) = ground.hear(steps, "wav", json!("sse")).await;
    ground.node.go_on();
    let body = String::from_utf8(conversation.rest().await.unwrap()).unwrap();
    let last = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(
        (&error["type"], &error["error"]["code"]),
        (&json!("error"), &json!("provider_lost")),
        "{error}"
    );
    let receipt = ground.settled(&conversation).await;
    assert_eq!((&receipt["outcome"], ground.paid(&receipt)), (&json!("provider_lost"), 0), "{receipt}");
    ground.node.forget(Service::Speech.script());
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speech_that_breaks_off_is_cut_and_free_and_who_leaves_pays_the_characters() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let price = Service::Speech.price_of_input(&ground.world.money).unwrap();
    // Far more than such a text can take.
    let endless = vec![7; 8 << 20];
    for wrong in [Step::Break, Step::Raw(endless.into())] {
        let (first, _) = halves();
        let (mut conversation, _) = ground.hear(vec![first, Step::Await, wrong], "pcm", Value::Null).await;
        ground.node.go_on();
        assert!(conversation.rest().await.is_err(), "half a speech looks whole");
        let receipt = ground.settled(&conversation).await;
        assert_eq!((&receipt["outcome"], ground.paid(&receipt)), (&json!("provider_lost"), 0), "{receipt}");
    }
    let (first, _) = halves();
    let (conversation, place) = ground.hear(vec![first, Step::Hold], "pcm", Value::Null).await;
    let id = conversation.header("x-request-id").unwrap().to_owned();
    drop(conversation);
    let left = tokio::time::Instant::now();
    let cancelled = until("the node to be cancelled", CANCELLED_WITHIN * 5, async || {
        Ok(ground.node.notes().get(place).and_then(|note| note.cancelled))
    });
    let cancelled = cancelled.await.unwrap();
    assert!(cancelled.saturating_duration_since(left) <= CANCELLED_WITHIN);
    let deadline = Duration::from_secs(10);
    let receipt = cxmpute_e2e::paths::settled(&ground.account.client, &id, deadline).await.unwrap();
    assert_eq!((&receipt["outcome"], ground.paid(&receipt)), (&json!("client_gone"), price), "{receipt}");
    let paid = ground.world.money.reward_of(&id).await.unwrap();
    assert_eq!(paid, ground.world.money.share(Service::Speech.model(), price).unwrap());
    ground.node.forget(Service::Speech.script());
    ground.finish().await;
}
