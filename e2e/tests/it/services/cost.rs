//! What a request cost is taken apart in its answer and on its receipt, and the parts add up, whatever is counted.

use cxmpute_e2e::client::{Payload, Reply};
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::paths::Path;
use cxmpute_e2e::services::Service;
use cxmpute_e2e::world::EMBEDDINGS_MODEL;
use serde_json::{Value, json};

use super::Ground;

/// Parts that a service's price is made of, and whether its answer has a `usage`.
const fn expected(service: Service) -> (&'static str, bool) {
    match service {
        Service::Speech => ("characters", false),
        Service::Transcript => ("seconds", true),
        Service::Picture | Service::Drawing => ("images", true),
        Service::Look => ("characters", true),
        Service::Pages => ("urls", true),
    }
}

/// A decimal text in 10^-12 credits.
fn pico(text: &Value) -> i128 {
    let text = text.as_str().unwrap_or_else(|| panic!("{text} is no text"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= 12, "{text}");
    format!("{whole}{fraction:0<12}").parse().unwrap()
}

/// The names of the parts that are not zero; what they sum up to is the cost.
fn parts(cost: &Value, details: &Value) -> Vec<String> {
    let fields = details.as_object().unwrap_or_else(|| panic!("{details} is no object"));
    let (mut sum, mut names) = (0, Vec::new());
    for (name, part) in fields.iter().filter(|(name, _)| *name != "price_version") {
        sum += pico(part);
        if pico(part) != 0 && name != "adjustment" {
            names.push(name.clone());
        }
    }
    assert_eq!(sum, pico(cost), "{details} of {cost}");
    assert!(sum > 0 && fields["price_version"].is_i64(), "{details}");
    names
}

async fn judge(ground: &Ground, name: &str, reply: &Reply, usage: Option<&Value>, wanted: &[&str]) {
    assert_eq!(reply.status, 200, "{name}: {}", reply.json());
    let receipt = ground.receipt(reply).await;
    assert_eq!(parts(&receipt["total_cost"], &receipt["cost_details"]), wanted, "{name}: {receipt}");
    if let Some(usage) = usage {
        assert_eq!(parts(&usage["cost"], &usage["cost_details"]), wanted, "{name}: {usage}");
        assert_eq!(
            (&usage["cost"], &usage["cost_details"]),
            (&receipt["total_cost"], &receipt["cost_details"])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parts_of_a_cost_add_up_for_every_service() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    for service in Service::ALL {
        let (part, says) = expected(service);
        let reply = ground.post(service.url(), &service.request()).await;
        let usage = says.then(|| reply.json()["usage"].clone());
        judge(&ground, service.name(), &reply, usage.as_ref(), &[part]).await;
    }
    for path in Path::ALL {
        let got = path.ask(&ground.account.client, &path.body("say 3", 16)).await.unwrap();
        let usage = got.events.iter().rev().map(|event| &event["usage"]).find(|usage| usage.is_object());
        let wanted: &[&str] = if path == Path::Embeddings { &["prompt"] } else { &["prompt", "completion"] };
        judge(&ground, path.url(), &got.reply, usage, wanted).await;
    }
    let rerank = Payload::json(&json!({"model": EMBEDDINGS_MODEL, "query": "a", "documents": ["b", "c"]}));
    let reply = ground.post("/v1/rerank", &rerank).await;
    judge(&ground, "rerank", &reply, Some(&reply.json()["usage"]), &["prompt"]).await;
    // What cost nothing has parts that cancel out.
    let lost = Payload::json(&json!({"urls": ["https://pages.example/gone"]}));
    let reply = ground.post("/v1/scrape", &lost).await;
    let free = reply.json()["usage"].clone();
    assert_eq!((pico(&free["cost"]), pico(&free["cost_details"]["adjustment"])), (0, 0), "{free}");
    ground.finish().await;
}
