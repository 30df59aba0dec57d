//! Two nodes as real processes, one of which is killed and cut off again and again while 64 clients ask. Before the
//! first content byte nobody notices; after it, every loss is explicit and free.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Client, Event, content};
use crate::ground::until;
use crate::house::{CHAT_MODEL, House, models_dir};
use crate::process;
use crate::proxy::Proxy;
use crate::settings::{self, Counts};
use crate::verdict::Verdict;

/// Requests at a time.
const CLIENTS: u64 = 64;

/// Questions that the tiny model answers in one sentence or in a hundred tokens.
const QUESTIONS: [&str; 6] = [
    "What is the capital of Japan?",
    "What is 3 plus 4?",
    "Tell me a story.",
    "Hello!",
    "Count to 10.",
    "What is the capital of France?",
];

/// One line of the file from which the bills are recomputed.
#[derive(Clone, Debug, Default, Serialize)]
struct Received {
    request_id: String,
    model: String,
    messages: Value,
    streamed: bool,
    status: u16,
    code: String,
    text: String,
    ended: bool,
    failure: String,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// At least so many requests, half of them streamed.
    pub requests: u64,
    /// SIGKILLs of one node.
    pub kills: u32,
    /// Blackholes of its tunnel.
    pub blackholes: u32,
}

impl Size {
    /// The numbers of the acceptance line, or a tenth of them for every change.
    #[must_use]
    pub fn of(counts: Counts) -> Self {
        counts.pick(
            Self { requests: 300, kills: 3, blackholes: 3 },
            Self { requests: 2_000, kills: 20, blackholes: 20 },
        )
    }
}

/// Runs the storm in a folder and judges it; what the clients received is left in `received.jsonl`.
///
/// # Errors
/// A program is missing or does not start.
pub async fn run(folder: &Path, size: Size) -> Result<Verdict> {
    let mut verdict = Verdict::new("storm");
    let mut house = House::plan(folder, None)?;
    // 64 clients share the slots of one node while the other is away: they wait for a turn instead of being refused.
    house.set("CXMPUTE_RELAY_QUEUE_MS", "60000");
    house.start_gateway().await?;
    let user = house.create_user("storm@example.org")?;
    house.grant_credits(&user, 1_000_000_000_000)?;
    let key = house.create_key(&user)?;
    let owner = house.create_user("storm-owner@example.org")?;
    let proxy = Proxy::start(house.address).await?;
    let room = [("CXMPUTE_ENGINE_SLOTS", "16")];
    let steady = house.start_node("steady", Some(&house.enrol_grant(&owner)?), house.address, &room)?;
    let mut shaky = house.start_node("shaky", Some(&house.enrol_grant(&owner)?), proxy.address, &room)?;
    house
        .routable(CHAT_MODEL, 2)
        .await
        .with_context(|| format!("{}\n{}", steady.logged(), shaky.logged()))?;

    let clients = Clients::start(Client::with_key(house.address, &key), size.requests);
    let mut dice = StdRng::seed_from_u64(2);
    let mut plan: Vec<bool> =
        [vec![true; size.kills as usize], vec![false; size.blackholes as usize]].concat();
    rand::seq::SliceRandom::shuffle(plan.as_mut_slice(), &mut dice);
    for kill in plan {
        // A random moment of running traffic: some number of answers after the node is back.
        let wait = clients.answered() + dice.random_range(1..24);
        until("answers to flow", Duration::from_secs(60), async || {
            Ok((clients.answered() >= wait).then_some(()))
        })
        .await?;
        if kill {
            let engines = process::children(shaky.pid());
            shaky.kill_hard()?;
            until("the killed node's engine to end", Duration::from_secs(20), async || {
                Ok(engines.iter().all(|pid| process::arguments(*pid).is_empty()).then_some(()))
            })
            .await?;
            shaky = house.start_node("shaky", None, proxy.address, &room)?;
        } else {
            let before = proxy.connections();
            proxy.blackhole();
            until("the cut node to dial again", Duration::from_secs(60), async || {
                Ok((proxy.connections() > before).then_some(()))
            })
            .await?;
        }
        house.routable(CHAT_MODEL, 2).await.with_context(|| shaky.logged())?;
    }
    let received = clients.finish().await?;
    verdict.count = received.len() as u64;
    write(&folder.join("received.jsonl"), &received)?;
    judge(&received, &mut verdict);
    let report = until("every hold to be resolved", Duration::from_secs(60), async || {
        let report = house.check_ledger()?;
        Ok((report["open_holds"] == 0).then_some(report))
    })
    .await;
    verdict.check(
        "the ledger explains every credit and no hold is open",
        report.as_ref().is_ok_and(|report| report["explained"].as_f64() == Some(1.0)),
        format!("{report:?}"),
    );
    let bills = recompute(folder, &house);
    verdict.check(
        "every bill is recomputed from what the clients received",
        bills.is_ok(),
        bills.unwrap_or_else(|error| error.to_string()),
    );
    Ok(verdict)
}

fn judge(received: &[Received], verdict: &mut Verdict) {
    let early: Vec<&Received> = received.iter().filter(|one| !one.ended && one.text.is_empty()).collect();
    verdict.check(
        "no error before the first content byte",
        early.is_empty(),
        format!("{} of {}: {:?}", early.len(), received.len(), early.first()),
    );
    for one in received.iter().filter(|one| !one.ended && !one.text.is_empty()) {
        verdict.check(
            "every later end is provider_lost without [DONE]",
            one.code == "provider_lost",
            format!("{one:?}"),
        );
    }
    let streamed = received.iter().filter(|one| one.streamed).count();
    verdict.check(
        "half of the requests are streamed",
        streamed.abs_diff(received.len() / 2) <= 1 + received.len() / 20,
        streamed,
    );
}

fn recompute(folder: &Path, house: &House) -> Result<String> {
    let python = settings::variable("CXMPUTE_BILL_PYTHON").unwrap_or_else(|| "python3".to_owned());
    let root = settings::repository();
    let done = Command::new(python)
        .arg(root.join("scripts/recompute-bills"))
        .arg(folder.join("received.jsonl"))
        .arg(models_dir().join("cxm-tiny-q8.gguf"))
        .arg(house.folder.join("gateway/cxmpute.db"))
        .arg(root.join("catalogue/models.toml"))
        .output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{said}");
    Ok(said)
}

fn write(path: &PathBuf, received: &[Received]) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for one in received {
        serde_json::to_writer(&mut file, one)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

/// Clients that ask until enough was asked and the weather is over.
struct Clients {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    received: Arc<Mutex<Vec<Received>>>,
    tasks: JoinSet<()>,
}

impl Clients {
    fn start(client: Client, requests: u64) -> Self {
        let mut clients = Self {
            over: Arc::default(),
            answered: Arc::default(),
            received: Arc::default(),
            tasks: JoinSet::new(),
        };
        let asked = Arc::new(AtomicU64::new(0));
        for _ in 0..CLIENTS {
            let (client, asked) = (client.clone(), Arc::clone(&asked));
            let (over, answered, received) =
                (clients.over.clone(), clients.answered.clone(), clients.received.clone());
            clients.tasks.spawn(async move {
                loop {
                    let number = asked.fetch_add(1, Ordering::SeqCst);
                    if number >= requests && over.load(Ordering::SeqCst) {
                        break;
                    }
                    let one = ask(&client, number).await;
                    answered.fetch_add(1, Ordering::SeqCst);
                    received.lock().push(one);
                }
            });
        }
        clients
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    async fn finish(mut self) -> Result<Vec<Received>> {
        self.over.store(true, Ordering::SeqCst);
        while let Some(done) = self.tasks.join_next().await {
            done.context("a client panicked")?;
        }
        Ok(std::mem::take(&mut self.received.lock()))
    }
}

async fn ask(client: &Client, number: u64) -> Received {
    let question = QUESTIONS[usize::try_from(number).unwrap_or_default() % QUESTIONS.len()];
    let streamed = (number / QUESTIONS.len() as u64).is_multiple_of(2);
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"model": CHAT_MODEL, "stream": streamed, "max_tokens": 128, "temperature": 0, "messages": messages});
    let mut one = Received { model: CHAT_MODEL.to_owned(), messages, streamed, ..Received::default() };
    if let Err(error) = talk(client, &body, &mut one).await {
        one.failure = format!("{error:#}");
    }
    one
}

async fn talk(client: &Client, body: &Value, one: &mut Received) -> Result<()> {
    let mut conversation = client.open("POST", "/v1/chat/completions", Some(body)).await?;
    one.status = conversation.status;
    one.request_id = conversation.header("x-request-id").unwrap_or_default().to_owned();
    if !one.streamed || one.status != 200 {
        let answer: Value = serde_json::from_slice(&conversation.rest().await?)?;
        one.code = answer["error"]["code"].as_str().unwrap_or_default().to_owned();
        if let Some(text) = answer["choices"][0]["message"]["content"].as_str() {
            one.text = text.to_owned();
            one.ended = true;
        }
        return Ok(());
    }
    while let Some(event) = conversation.event().await? {
        match event {
            Event::Done => one.ended = true,
            Event::Data(value) => {
                one.text.push_str(content(&value).unwrap_or_default());
                if let Some(code) = value["error"]["code"].as_str() {
                    one.code = code.to_owned();
                }
            }
        }
    }
    Ok(())
}
