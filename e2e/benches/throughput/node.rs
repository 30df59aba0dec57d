//! The stand-in node: the tunnel crate's node end, enrolled and signed, that answers at once with prepared events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use cxmpute_e2e::house::models_dir;
use cxmpute_e2e::money::TINY_FILE;
use cxmpute_e2e::stand_in::Identity;
use cxmpute_runtime::Tasks;
use cxmpute_tokens::TokenCounter;
use cxmpute_tunnel::{ControlPair, DialConfig, Incoming, NodeEnd, Roots, WorkRequest, dial};
use cxmpute_wire::control::{
    Desired, FromNode, Heartbeat, ObservedService, OwnerState, ServiceState, ToNode,
};
use cxmpute_wire::{Bytes as Size, Epoch, Generation, ServiceKind};
use parking_lot::Mutex;

use crate::emissions::Emissions;
use crate::load::Script;
use crate::stage::Entrance;

/// Rhythm of the heartbeat; like the product's nodes.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Pieces of work at once; more than these the gateway believes no node.
pub const SLOTS: u32 = 64;

/// First content event.
const FIRST: &str = "data: {\"id\":\"chatcmpl-stand-in\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"cxm-tiny\",\
                     \"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"The\"},\"finish_reason\":null}]}\n\n";
/// Every other content event.
const NEXT: &str = "data: {\"id\":\"chatcmpl-stand-in\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"cxm-tiny\",\
                    \"choices\":[{\"index\":0,\"delta\":{\"content\":\" the\"},\"finish_reason\":null}]}\n\n";
/// The event that ends the text.
pub const FINISH: &str = "data: {\"id\":\"chatcmpl-stand-in\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"cxm-tiny\",\
                          \"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
/// The end of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// Content event number `number`.
pub fn content_event(number: u32) -> &'static [u8] {
    if number == 0 { FIRST.as_bytes() } else { NEXT.as_bytes() }
}

/// The body of an answer that is not streamed, as a plain upstream gives it.
pub fn whole_answer(events: u32) -> String {
    let text = "The".to_owned() + &" the".repeat(events.saturating_sub(1) as usize);
    format!(
        "{{\"id\":\"chatcmpl-stand-in\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"cxm-tiny\",\"choices\":[{{\
         \"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":\"length\"}}],\
         \"usage\":{{\"prompt_tokens\":20,\"completion_tokens\":{events},\"total_tokens\":{}}}}}",
        20 + events
    )
}

/// An honest node claims what the prompt really holds; counted once per script, since the load repeats itself.
struct Claims {
    counter: TokenCounter,
    known: Mutex<HashMap<(u32, u32, bool), u64>>,
}

impl Claims {
    fn load() -> Result<Self> {
        let counter = TokenCounter::from_gguf(&models_dir().join(TINY_FILE))?;
        Ok(Self { counter, known: Mutex::default() })
    }

    /// Tokens of the prompt; 0 when it cannot be counted. The gateway's own checks all differ and are counted anew;
    /// numbered streams differ by the digits of their number, which no bound on claims is narrow enough to notice.
    fn prompt(&self, script: Script, body: &[u8]) -> u64 {
        let count = || {
            let request = serde_json::from_slice(body).ok()?;
            Some(self.counter.count_prompt(&request).ok()?.0)
        };
        if script.events == 3 {
            return count().unwrap_or(0);
        }
        let key = (script.events, script.pace_ms, script.stream.is_some());
        *self.known.lock().entry(key).or_insert_with(|| count().unwrap_or(0))
    }
}

/// Enrols a provision and serves with it until the process ends; dials again when its tunnel ends.
///
/// # Errors
/// The gateway refused the enrolment.
pub async fn start(
    gateway: &Entrance,
    name: &str,
    grant: &str,
    emissions: Arc<Emissions>,
    tasks: &Tasks,
) -> Result<()> {
    let identity = Identity::fresh();
    let answer = identity.enrol(gateway.plain, &identity.provision_id(), name, Some(grant)).await?;
    ensure!(answer.status.is_success(), "enrolment: {} {}", answer.status, answer.message());
    let certificate = gateway.certificate.as_ref().map(|certificate| certificate.file.as_path());
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", gateway.address);
    let mut config = DialConfig::new(url, identity.signer(), Roots::new(certificate)?);
    config.capacity = SLOTS;
    let running = tasks.clone();
    let part = Part { claims: Arc::new(Claims::load()?), emissions };
    tasks.spawn("stand-in", async move {
        while !running.soft().is_cancelled() {
            match dial(&config, &running).await {
                Ok(end) => serve(end, &part, &running).await,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    Ok(())
}

/// What its tasks share.
#[derive(Clone)]
struct Part {
    claims: Arc<Claims>,
    emissions: Arc<Emissions>,
}

async fn serve(mut end: NodeEnd, part: &Part, tasks: &Tasks) {
    let stop = tasks.soft();
    loop {
        let incoming = tokio::select! { incoming = end.next() => incoming, () = stop.cancelled() => return };
        match incoming {
            Some(Incoming::Control(pair)) => {
                tasks.spawn("stand-in-control", control(pair, end.epoch));
            }
            Some(Incoming::Work(request)) => {
                tasks.spawn("stand-in-work", answer(request, part.clone()));
            }
            None => return,
        }
    }
}

async fn answer(mut request: WorkRequest, part: Part) {
    let Ok(body) = request.body(1 << 20).await else { return };
    let script = Script::read(&body);
    let streamed = body.windows(13).any(|window| window == b"\"stream\":true");
    let Ok(mut responder) = request.accept() else { return };
    if script.hold {
        let _ = responder.send(Bytes::from_static(FIRST.as_bytes())).await;
        responder.cancelled().await;
        return;
    }
    let prompt = part.claims.prompt(script, &body);
    let usage = format!(
        "data: {{\"id\":\"chatcmpl-stand-in\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"cxm-tiny\",\"choices\":[],\
         \"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{0},\"total_tokens\":{1}}}}}\n\n",
        script.events,
        prompt + u64::from(script.events)
    );
    if !streamed || script.events <= 8 {
        // A short answer leaves in one piece.
        let mut whole = Vec::with_capacity(4096);
        (0..script.events).for_each(|number| whole.extend_from_slice(content_event(number)));
        [FINISH, &usage, DONE].iter().for_each(|part| whole.extend_from_slice(part.as_bytes()));
        if responder.send(whole.into()).await.is_ok() {
            responder.finish();
        }
        return;
    }
    for number in 0..script.events {
        part.emissions.note(script.stream);
        if responder.send(Bytes::from_static(content_event(number))).await.is_err() {
            return;
        }
        if script.pace_ms == 0 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(script.pace_ms.into())).await;
        }
    }
    if responder.send(Bytes::from([FINISH, &usage, DONE].concat())).await.is_ok() {
        responder.finish();
    }
}

async fn control(mut pair: ControlPair, epoch: Epoch) {
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut desired: Option<Desired> = None;
    let mut seq = 0;
    loop {
        tokio::select! {
            message = pair.receiver.next() => match message {
                Some(Ok(ToNode::Desired(new))) => {
                    desired = Some(new);
                    beat.reset_immediately();
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            _ = beat.tick() => {
                seq += 1;
                let heartbeat = heartbeat(seq, epoch, desired.as_ref());
                if pair.sender.send(&FromNode::Heartbeat(heartbeat)).await.is_err() { return }
            }
        }
    }
}

fn heartbeat(seq: u64, epoch: Epoch, desired: Option<&Desired>) -> Heartbeat {
    let services = desired.iter().flat_map(|desired| &desired.services).map(|service| ObservedService {
        service_id: service.service_id.clone(),
        state: if service.kind == ServiceKind::Llm { ServiceState::Ready } else { ServiceState::Absent },
        slots: SLOTS,
        in_flight: 0,
        engine: "stand-in".to_owned(),
        pid: None,
        digest: None,
        code: None,
        detail: None,
        progress: None,
    });
    Heartbeat {
        seq,
        boot: 1,
        epoch,
        observed_generation: desired.map_or(Generation(0), |desired| desired.generation),
        services: services.collect(),
        in_flight: 0,
        queued: 0,
        gpus: Vec::new(),
        disk_free: Size(1 << 42),
        owner: OwnerState::Available,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
