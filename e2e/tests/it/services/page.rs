//! Pages that are fetched: what a client can get wrong names its field, and what failed is free.

use cxmpute_e2e::client::Payload;
use cxmpute_e2e::ground::alone;
use serde_json::{Value, json};

use super::{Ground, INVALID, UNSUPPORTED};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_list_of_pages_names_its_field_and_a_page_that_failed_is_free() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/scrape";
    let urls = |name, urls: Value, param| {
        (name, route, Payload::json(&json!({"urls": urls})), 400, INVALID, Some(param))
    };
    ground
        .refuse(vec![
            urls("an empty list", json!([]), "urls"),
            urls("21 addresses", json!(vec!["https://pages.example/"; 21]), "urls"),
            urls("one address, no list", json!("https://pages.example/"), "urls"),
            urls("an empty address", json!(["https://pages.example/", ""]), "urls[1]"),
            urls(
                "a long address",
                json!([format!("https://pages.example/{}", "x".repeat(8_192))]),
                "urls[0]",
            ),
            urls("a number", json!([7]), "urls[0]"),
            ("no list", route, Payload::json(&json!({})), 400, INVALID, Some("urls")),
            (
                "an unknown format",
                route,
                Payload::json(&json!({"urls": ["https://pages.example/"], "format": "pdf"})),
                400,
                INVALID,
                Some("format"),
            ),
            (
                "a model that runs no scripts",
                route,
                Payload::json(
                    &json!({"urls": ["https://pages.example/"], "model": "scrape", "render": true}),
                ),
                400,
                UNSUPPORTED,
                Some("render"),
            ),
        ])
        .await;
    let half = Payload::json(&json!({"urls": ["https://pages.example/one", "https://pages.example/gone"]}));
    let reply = ground.post(route, &half).await;
    assert_eq!((reply.status, &reply.json()["usage"]["urls"]), (200, &json!(1)), "{}", reply.json());
    ground.finish().await;
}
