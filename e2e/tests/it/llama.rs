//! A real llama-server behind the real node and gateway: what it says passes every check on the way, and is paid.

use std::time::Duration;

use cxmpute_e2e::client::{Client, Event, content};
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::house::{CHAT_MODEL, House};
use cxmpute_e2e::process;
use cxmpute_e2e::settings::variable;
use serde_json::{Value, json};

const CREDITS: i64 = 10_000_000;

fn asking(more: &Value) -> Value {
    let mut body = json!({"model": CHAT_MODEL, "temperature": 0, "max_tokens": 40,
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[expect(clippy::print_stderr, reason = "a skip is visible")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_llama_server_built_from_source_serves_and_is_paid() {
    let Some(program) = variable("CXMPUTE_LLAMA_SERVER").filter(|path| std::path::Path::new(path).is_file())
    else {
        eprintln!("skipped: CXMPUTE_LLAMA_SERVER names no llama-server; scripts/llama-server builds one");
        return;
    };
    let _alone = alone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::plan(folder.path(), None).unwrap();
    house.start_gateway().await.unwrap();
    let user = house.create_user("user@example.org").unwrap();
    house.grant_credits(&user, CREDITS).unwrap();
    let client = Client::with_key(house.address, &house.create_key(&user).unwrap());
    let owner = house.create_user("owner@example.org").unwrap();
    let grant = house.enrol_grant(&owner).unwrap();
    let config = folder.path().join("node.toml");
    let text = format!("[engines]\nprefer = [\"llama-server\"]\nllama_server = \"{program}\"\n");
    std::fs::write(&config, text).unwrap();
    let extra = [("CXMPUTE_CONFIG_PATH", config.to_str().unwrap())];
    let mut node = house.start_node("node", Some(&grant), house.address, &extra).unwrap();
    house.routable(CHAT_MODEL, 1).await.unwrap();

    let dir = folder.path().join("node").display().to_string();
    let printed = process::run("cxmpute-provider", &["services", "--json", "--data-dir", &dir], &[]).unwrap();
    let service = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|service| service["service_id"] == format!("llm:{CHAT_MODEL}"))
        .unwrap();
    assert_eq!(service["engine"], "llama-server", "{service}");
    let pid = u32::try_from(service["pid"].as_u64().unwrap()).unwrap();
    let arguments = process::arguments(pid);
    assert!(arguments.contains("llama-server") && arguments.contains(".sock"), "{arguments}");

    let call = async |more: Value| {
        let reply = client.call("POST", "/v1/chat/completions", Some(&asking(&more))).await.unwrap();
        assert_eq!(reply.status, 200, "{more}: {}", reply.json());
        reply.json()
    };
    let mut paid = 0;
    // The catalogue's prices of a token: 5 micro-credits of a prompt, 20 of an answer.
    let mut pay = |answer: &Value| {
        let count = |name: &str| answer["usage"][name].as_i64().unwrap();
        paid += 5 * count("prompt_tokens") + 20 * count("completion_tokens");
    };
    let plain = call(json!({})).await;
    let choice = &plain["choices"][0];
    assert_eq!(choice["message"]["content"], "The capital of Japan is Tokyo.");
    assert_eq!(choice["finish_reason"], "stop");
    assert!(
        plain["usage"]["prompt_tokens"].as_u64().unwrap() > 5 && plain.get("timings").is_none(),
        "{plain}"
    );
    pay(&plain);

    let cut = call(json!({"max_tokens": 2})).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 2);
    pay(&cut);

    let shown = call(json!({"logprobs": true, "top_logprobs": 2})).await;
    let tokens = shown["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert!(tokens.len() > 5 && tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0));
    assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
    pay(&shown);

    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "strict": true, "schema": schema}});
    let formed = call(json!({"response_format": format, "max_tokens": 60})).await;
    let text = formed["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    if formed["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(&text).unwrap()["city"].is_string(), "{text}");
    } else {
        assert!(text.trim_start().starts_with('{'), "{text}");
    }
    pay(&formed);

    let seeded = json!({"temperature": 1.5, "seed": 42});
    let (one, other) = (call(seeded.clone()).await, call(seeded).await);
    assert_eq!(one["choices"][0]["message"], other["choices"][0]["message"]);
    pay(&one);
    pay(&other);

    let weather = json!({"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
    let question = json!([{"role": "user", "content": "What is the weather in Paris?"}]);
    let called =
        call(json!({"tools": [weather], "tool_choice": "required", "messages": question, "max_tokens": 60}))
            .await;
    let tool = &called["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(tool["name"], "get_weather", "{called}");
    pay(&called);

    let streamed = asking(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut stream = client.open("POST", "/v1/chat/completions", Some(&streamed)).await.unwrap();
    let (mut said, mut usage) = (String::new(), Value::Null);
    while let Some(event) = stream.event().await.unwrap() {
        let Event::Data(event) = event else { continue };
        said.push_str(content(&event).unwrap_or_default());
        if event["usage"].is_object() {
            usage = event.clone();
        }
    }
    assert_eq!(said, "The capital of Japan is Tokyo.");
    pay(&usage);

    until("the money to be settled", Duration::from_secs(30), async || {
        let money = client.call("GET", "/v1/credits", None).await?.json()["data"].clone();
        Ok((money["held_micro"] == 0 && money["balance_micro"].as_i64() < Some(CREDITS)).then_some(()))
    })
    .await
    .unwrap();
    let money = client.call("GET", "/v1/credits", None).await.unwrap().json()["data"].clone();
    assert_eq!(money["balance_micro"].as_i64().unwrap(), CREDITS - paid, "{money}");
    house.check_ledger().unwrap();
    node.stop(Duration::from_secs(60)).await.unwrap();
    assert!(!process::arguments(pid).contains("llama-server"), "it outlived its node");
}
