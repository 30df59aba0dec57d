//! What is answered.

use std::path::Path;

use cxmpute_tokens::TokenCounter;
use cxmpute_wire::openai::ChatRequest;
use serde_json::{Value, json};

use crate::client::joined;
use crate::program::{Program, TINY, counts, tiny_model};

pub const CHAT: &str = "/v1/chat/completions";

pub fn greedy(question: &str) -> Value {
    json!({"model": TINY, "temperature": 0, "messages": [{"role": "user", "content": question}]})
}

pub fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn greedy_answers_are_words_and_usage_is_what_the_counter_counts() {
    let engine = Program::start(&[]).await;
    let counter = TokenCounter::from_gguf(&tiny_model()).unwrap();
    for (question, answer) in [
        ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
        ("What is 3 plus 4?", "3 plus 4 is 7."),
        ("What does a cat do?", "The cat purrs."),
    ] {
        let answered = engine.connect().await.post(CHAT, &greedy(question)).await;
        assert_eq!(answered.content(), answer);
        let shown = answered.json();
        assert_eq!(shown["choices"][0]["finish_reason"], "stop");
        assert_eq!(shown["usage"]["completion_tokens"], counter.count_text(answer).0);
    }
}

#[tokio::test]
async fn the_engine_reads_the_prompt_that_the_counter_counts() {
    let engine = Program::start(&[]).await;
    let counter = TokenCounter::from_gguf(&tiny_model()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tokens/tests/golden/requests.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in cases {
        let request = with(case["request"].clone(), &json!({"model": TINY, "max_tokens": 1}));
        let counted = counter.count_prompt(&serde_json::from_value::<ChatRequest>(request.clone()).unwrap());
        let answer = engine.connect().await.post(CHAT, &request).await.json();
        assert_eq!(answer["usage"]["prompt_tokens"], counted.unwrap().0, "{}: {answer}", case["name"]);
    }
    let bare = json!({"model": TINY, "prompt": "Hello, ", "max_tokens": 1});
    let answer = engine.connect().await.post("/v1/completions", &bare).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], counter.count_completion_prompt("Hello, ").unwrap().0);
}

#[tokio::test]
async fn a_stream_is_role_content_finish_usage_done() {
    let engine = Program::start(&[]).await;
    let story = greedy("Tell me a story.");
    let whole = engine.connect().await.post(CHAT, &story).await;
    let events = engine.connect().await.stream(CHAT, &story).await.rest().await;
    let contents = events.iter().filter(|event| event["choices"][0]["delta"]["content"].is_string()).count();
    assert!(contents >= 20, "{contents} content events");
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant"}));
    assert_eq!(joined(&events), whole.content());
    let [.., finish, usage, done] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(
        (&finish["choices"][0]["finish_reason"], &finish["choices"][0]["delta"]),
        (&json!("stop"), &json!({}))
    );
    assert_eq!((&usage["choices"], counts(usage)), (&json!([]), counts(&whole.json())));
    assert_eq!(done, "[DONE]");
    let id = &events[0]["id"];
    assert!(events[..events.len() - 1].iter().all(|event| event["id"] == *id && event["model"] == TINY));
}

#[tokio::test]
async fn an_answer_ends_at_a_stop_text_or_at_its_bound() {
    let engine = Program::start(&[]).await;
    let story = greedy("Tell me a story.");
    let whole = engine.connect().await.post(CHAT, &story).await.content();
    let place = whole.find("room").unwrap();
    let stop = with(story.clone(), &json!({"stop": ["never", "room"]}));
    let stopped = engine.connect().await.post(CHAT, &stop).await;
    assert_eq!(
        (stopped.content().as_str(), &stopped.json()["choices"][0]["finish_reason"]),
        (&whole[..place], &json!("stop"))
    );
    let streamed = engine.connect().await.stream(CHAT, &stop).await.rest().await;
    assert_eq!(joined(&streamed), whole[..place]);

    let bounded = with(story, &json!({"max_completion_tokens": 5}));
    let bounded = engine.connect().await.post(CHAT, &bounded).await.json();
    assert_eq!(bounded["choices"][0]["finish_reason"], "length");
    assert_eq!(bounded["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn a_seed_repeats_an_answer() {
    let engine = Program::start(&[]).await;
    let mut answers = Vec::new();
    for seed in [7, 7, 8] {
        let wild = json!({"temperature": 2, "top_p": 0.99, "top_k": 200, "seed": seed, "max_tokens": 60});
        let request = with(greedy("Tell me a story."), &wild);
        answers.push(engine.connect().await.post(CHAT, &request).await.content());
    }
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0], answers[2]);
}

#[tokio::test]
async fn completions_answer_every_prompt_in_order() {
    let engine = Program::start(&[]).await;
    let prompt = |question: &str| format!("<|user|>{question}<|end|><|assistant|>");
    let prompts = [prompt("What is 3 plus 4?"), prompt("What does a cat do?")];
    let request = json!({"model": TINY, "prompt": prompts, "temperature": 0, "max_tokens": 30});
    let whole = engine.connect().await.post("/v1/completions", &request).await.json();
    assert_eq!(whole["object"], "text_completion");
    let texts: Vec<_> =
        whole["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(texts, ["3 plus 4 is 7.", "The cat purrs."]);
    let events = engine.connect().await.stream("/v1/completions", &request).await.rest().await;
    for (index, text) in (0u64..).zip(texts) {
        let own = events.iter().filter(|event| event["choices"][0]["index"] == index);
        let joined: String = own.filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!(joined, text);
    }
    assert_eq!(counts(&events[events.len() - 2]), counts(&whole));
    assert_eq!(events[events.len() - 1], "[DONE]");
}

/// Long prompts are read in several steps; the last turn must not notice.
#[tokio::test]
async fn a_long_conversation_is_read_whole() {
    let engine = Program::start(&[]).await;
    let mut messages = Vec::new();
    for (country, city) in
        [("France", "Paris"), ("Japan", "Tokyo"), ("Peru", "Lima"), ("Kenya", "Nairobi")].repeat(5)
    {
        messages.push(json!({"role": "user", "content": format!("What is the capital of {country}?")}));
        messages
            .push(json!({"role": "assistant", "content": format!("The capital of {country} is {city}.")}));
    }
    messages.push(json!({"role": "user", "content": "What is 2 plus 2?"}));
    let answer = engine.connect().await.post(CHAT, &with(greedy(""), &json!({"messages": messages}))).await;
    assert!(answer.json()["usage"]["prompt_tokens"].as_u64().unwrap() > 300);
    assert_eq!(answer.content(), "2 plus 2 is 4.");
}

#[tokio::test]
async fn a_declared_tool_is_called() {
    let engine = Program::start(&[]).await;
    let tool = json!({"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
    let request = with(greedy("What is the weather in Rome?"), &json!({"tools": [tool]}));
    let whole = engine.connect().await.post(CHAT, &request).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{whole}"
    );
    let called = &choice["message"]["tool_calls"][0];
    assert_eq!((&called["type"], &called["function"]["name"]), (&json!("function"), &json!("get_weather")));
    let arguments: Value = serde_json::from_str(called["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"city": "Rome"}));

    let events = engine.connect().await.stream(CHAT, &request).await.rest().await;
    assert_eq!(joined(&events), "");
    let deltas: Vec<&Value> =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert_eq!((&deltas[0]["index"], &deltas[0]["function"]["name"]), (&json!(0), &json!("get_weather")));
    let told: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), arguments);
    assert!(events.iter().any(|event| event["choices"][0]["finish_reason"] == "tool_calls"));

    let forbidden = with(request, &json!({"tool_choice": "none"}));
    assert!(!engine.connect().await.post(CHAT, &forbidden).await.content().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused() {
    let engine = Program::start(&["--context", "64"]).await;
    let exceeded = (400, "context_length_exceeded".to_owned());
    let long = greedy(&"word ".repeat(200));
    assert_eq!(engine.connect().await.post(CHAT, &long).await.error(), exceeded);
    let wanting = with(greedy("Hello"), &json!({"max_tokens": 64}));
    assert_eq!(engine.connect().await.post(CHAT, &wanting).await.error(), exceeded);
    // Without a bound the answer ends where the context does.
    let story = engine.connect().await.post(CHAT, &greedy("Tell me a story.")).await.json();
    assert_eq!(
        (&story["choices"][0]["finish_reason"], &story["usage"]["total_tokens"]),
        (&json!("length"), &json!(64))
    );
}

#[tokio::test]
async fn bad_requests_get_the_envelope() {
    let engine = Program::start(&[]).await;
    let refused =
        async |fields: Value| engine.connect().await.post(CHAT, &with(greedy("Hi"), &fields)).await.error();
    for (fields, code) in [
        (json!({"temperature": 2.1}), "invalid_parameter"),
        (json!({"top_p": -0.1}), "invalid_parameter"),
        (json!({"max_tokens": 0}), "invalid_parameter"),
        (json!({"stop": [""]}), "invalid_parameter"),
        (json!({"messages": []}), "invalid_parameter"),
        (json!({"messages": "no"}), "invalid_parameter"),
    ] {
        assert_eq!(refused(fields.clone()).await, (400, code.into()), "{fields}");
    }
    assert_eq!(refused(json!({"model": "other"})).await, (404, "model_not_found".into()));
    let send = async |method: &str, path: &str, body: String| {
        engine.connect().await.send(method, path, body.into()).await.error()
    };
    assert_eq!(send("POST", CHAT, "{".into()).await, (400, "invalid_json".into()));
    assert_eq!(send("POST", CHAT, "x".repeat(9 << 20)).await, (413, "body_too_large".into()));
    assert_eq!(send("GET", CHAT, String::new()).await, (405, "method_not_allowed".into()));
    assert_eq!(send("GET", "/nothing", String::new()).await, (404, "not_found".into()));
    let embedding = json!({"model": TINY, "input": "x"});
    assert_eq!(send("POST", "/v1/embeddings", embedding.to_string()).await, (404, "model_not_found".into()));
}
