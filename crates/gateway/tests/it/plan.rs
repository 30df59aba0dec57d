//! What the plan gives to provisions: through the store, with what was asked for, and explained by the program.

use std::process::Command;
use std::time::Duration;

use cxmpute_store::{Enrolment, KeyKind};
use cxmpute_wire::{MicroCredits, ProvisionId, UserId};
use serde_json::{Value, json};

use super::world::{World, until};

/// A machine that is online with these diagnostics.
async fn machine(world: &World, name: &str, owner: &UserId, diagnostics: &Value) -> ProvisionId {
    let id = ProvisionId::from_tail(name);
    let now = world.app.clock.now();
    let enrolment = Enrolment {
        id: id.clone(),
        owner: Some(owner.clone()),
        public_key: None,
        alias: None,
        grant_hash: None,
        run_id: "run".to_owned(),
        name: name.to_owned(),
        location: json!({"country": "DE"}).to_string(),
        diagnostics: diagnostics.to_string(),
        software: "{}".to_owned(),
    };
    world.app.db.enrol_provision(&enrolment, now).await.unwrap();
    if world.app.db.find_provision(id.as_str()).await.unwrap().unwrap().epoch.0 == 0 {
        world.app.db.next_epoch(&id, now).await.unwrap().unwrap();
    }
    id
}

fn diagnostics(memory_gib: u64, engines: &[&str]) -> Value {
    let engines: Vec<Value> = engines.iter().map(|name| json!({"name": name, "version": "1"})).collect();
    json!({"memory": {"total": memory_gib << 30}, "disk": {"free": 50_u64 << 30}, "engines": engines})
}

async fn services(world: &World, id: &ProvisionId) -> (i64, Vec<String>) {
    let desired = world.app.fleet.assign(id).await.unwrap().unwrap();
    let names = desired.services.iter().map(|service| service.service_id.to_string()).collect();
    (desired.generation.0, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provision_gets_what_its_engines_can_run_and_its_owner_allows() {
    let world = World::start().await;
    let owner = world.user("owner").await;
    let basic = ["llm:cxm-tiny", "embeddings:all-minilm"];
    let plain = machine(&world, "plain", &owner, &diagnostics(8, &[])).await;
    assert_eq!(services(&world, &plain).await, (1, basic.map(str::to_owned).to_vec()));
    assert_eq!(services(&world, &plain).await.0, 1, "planning twice changes nothing");
    assert!(services(&world, &machine(&world, "unknown", &owner, &json!({})).await).await.1.is_empty());

    let mut more = diagnostics(8, &["espeak-ng", "tesseract", "scrape"]);
    let id = machine(&world, "rich", &owner, &more).await;
    let (generation, names) = services(&world, &id).await;
    assert_eq!(names, [&basic[..], &["tts:espeak-ng", "vision:tesseract", "scrape"]].concat());
    more["services"] = json!({"deny": ["scrape"]});
    more["engines"] = json!([{"name": "espeak-ng"}, {"name": "ollama", "models": ["llama3.2:1b"]}]);
    machine(&world, "rich", &owner, &more).await;
    let (next, names) = services(&world, &id).await;
    assert_eq!(names, [&basic[..], &["tts:espeak-ng", "llm:llama3.2:1b"]].concat());
    assert_eq!(next, generation + 1);
    let desired = world.app.fleet.assign(&id).await.unwrap().unwrap();
    let llama = desired.services.last().unwrap();
    assert_eq!((llama.ollama.as_deref(), llama.files.len()), (Some("llama3.2:1b"), 0));
    assert!(llama.since.is_some() && llama.gpus.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_may_be_fetched_only_where_the_operator_lets_engines() {
    let world = World::with(|config| config.catalogue.hub_downloads = true).await;
    let owner = world.user("owner").await;
    let mut with_gpu = diagnostics(32, &["ollama"]);
    with_gpu["gpus"] = json!([{"index": 0, "memory_total": 24_u64 << 30}]);
    let id = machine(&world, "gpu", &owner, &with_gpu).await;
    let desired = world.app.fleet.assign(&id).await.unwrap().unwrap();
    let shares: Vec<u64> =
        desired.services.iter().flat_map(|service| &service.gpus).map(|share| share.memory.0).collect();
    let used: u64 = shares.iter().sum();
    assert!(shares.iter().any(|share| *share > 15 << 30), "something large: {shares:?}");
    assert!(used <= 24 << 30 && used > 20 << 30, "{used}");
    assert!(desired.services.len() <= 32);
    world.stop().await;
}

/// A request that nobody serves is demand: it is counted, written down for all replicas, and read by the next plan and by
/// the program that explains it.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_asked_for_in_the_next_plan() {
    let world = World::with(|config| {
        config.catalogue.models_dir =
            Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/tiny-model").into());
        config.relay.queue_ms = 50;
    })
    .await;
    let owner = world.user("owner").await;
    let key = world.key(&owner, KeyKind::Api).await;
    let now = world.app.clock.now();
    let money = MicroCredits(1_000_000);
    world.app.db.grant_credits(&owner, money, "test", "test", "start", now).await.unwrap();
    let body =
        json!({"model": "cxm-tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2});
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let refused = world.call("POST", "/v1/chat/completions", &headers, &body.to_string()).await;
    assert_eq!(refused.status, 503, "{}", refused.body);

    world.app.fleet.plan_soon();
    let service = "llm:cxm-tiny".parse().unwrap();
    let demand = until("demand is written down", Duration::from_secs(20), async || {
        world.app.db.demand(now).await.unwrap().get(&service).copied()
    })
    .await;
    assert_eq!(demand.refused, 1, "{demand:?}");

    let id = machine(&world, "plain", &owner, &diagnostics(8, &[])).await;
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cxmpute"))
            .env_remove("CXMPUTE_CONFIG")
            .arg("--data-dir")
            .arg(&world.app.config.store.data_dir)
            .args(["admin", "plan"])
            .args(args)
            .output()
            .unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run(&["--explain", id.as_str()]);
    assert_eq!(code, 0, "{said}");
    for words in
        ["+ llm:cxm-tiny ", "1 refused", "- tts:espeak-ng ", "one of espeak-ng would", "engines builtin"]
    {
        assert!(said.contains(words), "{words}\n{said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let (_, said) = run(&["--explain", id.as_str(), "--json"]);
    let reasons: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reasons.len(), world.app.catalogue.entries().len());
    let (_, said) = run(&[]);
    assert!(said.starts_with("pv_plain\n    +llm:cxm-tiny +embeddings:all-minilm"), "{said}");
    services(&world, &id).await;
    let (_, said) = run(&[]);
    assert!(said.starts_with("pv_plain\n    llm:cxm-tiny embeddings:all-minilm"), "{said}");
    let (_, said) = run(&["--explain", id.as_str()]);
    assert!(said.contains("has just begun to run here and stays"), "{said}");
    assert_eq!(run(&["--explain", "pv_nobody"]).0, 1);
    world.stop().await;
}
