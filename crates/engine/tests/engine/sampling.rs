//! Choices, seeds, penalties, biases and probabilities.

use cxmpute_tokens::TokenCounter;
use serde_json::{Value, json};

use crate::chat::{CHAT, greedy, with};
use crate::program::{Program, TINY, counts, tiny_model};

const COMPLETIONS: &str = "/v1/completions";

/// The contents of all choices of a whole answer.
fn contents(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}"));
    choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
}

/// The bytes of a list of tokens, joined.
fn bytes(tokens: &Value) -> Vec<u8> {
    let tokens = tokens.as_array().unwrap_or_else(|| panic!("{tokens}"));
    tokens
        .iter()
        .flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap())
        .collect()
}

fn wild(fields: &Value) -> Value {
    let wild = json!({"temperature": 2, "top_k": 300, "max_tokens": 40});
    with(with(greedy("Tell me a story."), &wild), fields)
}

#[tokio::test]
async fn several_choices_differ_and_a_seed_repeats_them_all() {
    let engine = Program::start(&[]).await;
    let request = wild(&json!({"n": 4, "seed": 7}));
    let first = engine.connect().await.post(CHAT, &request).await.json();
    let choices = contents(&first);
    assert_eq!(choices.len(), 4);
    let different: std::collections::BTreeSet<&String> = choices.iter().collect();
    assert_eq!(different.len(), 4, "{choices:?}");
    let second = engine.connect().await.post(CHAT, &request).await.json();
    assert_eq!(contents(&second), choices);
    // The first choice is the one that a request for one choice gets, and the prompt is counted once.
    let alone = engine.connect().await.post(CHAT, &wild(&json!({"seed": 7}))).await.json();
    assert_eq!(contents(&alone)[0], choices[0]);
    assert_eq!(first["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
    let counter = TokenCounter::from_gguf(&tiny_model()).unwrap();
    let least: u64 = choices.iter().map(|choice| counter.count_text(choice).0).sum();
    assert!(first["usage"]["completion_tokens"].as_u64().unwrap() >= least, "{}", first["usage"]);

    let events = engine.connect().await.stream(CHAT, &request).await.rest().await;
    for (index, content) in choices.iter().enumerate() {
        let own: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant"}));
        let told: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(&told, content);
        assert!(own.last().unwrap()["finish_reason"].is_string());
    }
    assert_eq!(counts(&events[events.len() - 2]), counts(&first));
}

#[tokio::test]
async fn a_seed_repeats_an_answer_in_another_process() {
    let request = wild(&json!({"n": 2, "seed": -3, "frequency_penalty": 0.3, "min_p": 0.01}));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let engine = Program::start(&["--slots", "2"]).await;
        answers.push(contents(&engine.connect().await.post(CHAT, &request).await.json()));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn probabilities_belong_to_the_text_that_carries_them() {
    let engine = Program::start(&[]).await;
    let request =
        with(greedy("What is the capital of Japan?"), &json!({"logprobs": true, "top_logprobs": 3}));
    let whole = engine.connect().await.post(CHAT, &request).await.json();
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let tokens = &whole["choices"][0]["logprobs"]["content"];
    assert_eq!(bytes(tokens), content.as_bytes());
    assert_eq!(
        tokens.as_array().unwrap().len() as u64,
        whole["usage"]["completion_tokens"].as_u64().unwrap()
    );
    for token in tokens.as_array().unwrap() {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // A greedy answer takes the likeliest token.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        let values: Vec<f64> = top.iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]) && values[0] <= 0.0, "{values:?}");
        assert!(values.iter().map(|value| value.exp()).sum::<f64>() <= 1.0 + 1e-9, "{values:?}");
    }
    // Held back for a stop text, cut by one, in whole characters: each chunk holds the tokens of its text.
    for fields in [
        json!({}),
        json!({"stop": ["is T", "okyo"]}),
        json!({"stop": ["Tokyo!", "capital of Japan is Kyoto"]}),
    ] {
        let request = with(wild(&json!({"logprobs": true, "seed": 5})), &fields);
        for request in [with(request.clone(), &json!({"temperature": 0})), request] {
            let events = engine.connect().await.stream(CHAT, &request).await.rest().await;
            for choice in events.iter().map(|event| &event["choices"][0]) {
                if let Some(text) = choice["delta"]["content"].as_str() {
                    let bytes = bytes(&choice["logprobs"]["content"]);
                    assert_eq!(String::from_utf8_lossy(&bytes), text, "{choice}");
                }
            }
        }
    }
    // Probabilities are those of the model, whatever the request does to its scores.
    let bent = with(request, &json!({"temperature": 0.3, "top_k": 1, "frequency_penalty": 0.01}));
    let bent = engine.connect().await.post(CHAT, &bent).await.json();
    assert_eq!(bent["choices"][0]["logprobs"], whole["choices"][0]["logprobs"]);
    assert_eq!(
        engine.connect().await.post(CHAT, &greedy("Hello")).await.json()["choices"][0]["logprobs"],
        Value::Null
    );
}

#[tokio::test]
async fn completions_list_their_tokens_and_repeat_the_prompt() {
    let engine = Program::start(&[]).await;
    let prompt = "<|user|>What does a cat do?<|end|><|assistant|>";
    let request = json!({"model": TINY, "prompt": prompt, "temperature": 0, "max_tokens": 30, "logprobs": 2});
    let whole = engine.connect().await.post(COMPLETIONS, &request).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["text"], "The cat purrs.");
    let listed = &choice["logprobs"];
    let tokens: Vec<String> = serde_json::from_value(listed["tokens"].clone()).unwrap();
    assert_eq!(tokens.concat(), "The cat purrs.");
    let mut offset = 0;
    for (place, token) in tokens.iter().enumerate() {
        assert_eq!(listed["text_offset"][place], offset);
        offset += token.chars().count();
        assert!(listed["token_logprobs"][place].as_f64().unwrap() <= 0.0);
        assert_eq!(listed["top_logprobs"][place].as_object().unwrap().len(), 2);
    }

    let echo = with(request.clone(), &json!({"echo": true}));
    let echoed = engine.connect().await.post(COMPLETIONS, &echo).await.json();
    let choice = &echoed["choices"][0];
    assert_eq!(choice["text"], format!("{prompt}The cat purrs."));
    let all: Vec<String> = serde_json::from_value(choice["logprobs"]["tokens"].clone()).unwrap();
    assert_eq!(all.concat(), format!("{prompt}The cat purrs."));
    let own = all.len() - tokens.len();
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    for (alone, echoed) in listed["token_logprobs"].as_array().unwrap().iter().zip(&logprobs[own..]) {
        // The prompt was read token by token here: sums of floats differ in their last digits.
        assert!((alone.as_f64().unwrap() - echoed.as_f64().unwrap()).abs() < 0.01, "{alone} {echoed}");
    }
    assert_eq!(counts(&echoed), counts(&whole));
    let plain = with(request, &json!({"echo": true, "logprobs": null, "n": 2}));
    let plain = engine.connect().await.post(COMPLETIONS, &plain).await.json();
    for index in 0..2 {
        assert_eq!(plain["choices"][index]["text"], format!("{prompt}The cat purrs."));
        assert_eq!(plain["choices"][index]["index"], index);
        assert_eq!(plain["choices"][index]["logprobs"], Value::Null);
    }
}

#[tokio::test]
async fn a_bias_bans_and_forces_tokens() {
    let engine = Program::start(&[]).await;
    let counter = TokenCounter::from_gguf(&tiny_model()).unwrap();
    let first = counter.tokenizer().encode("The").unwrap()[0].to_string();
    let ask = async |bias: Value| {
        let request = with(greedy("What does a cat do?"), &json!({"logit_bias": bias, "max_tokens": 6}));
        engine.connect().await.post(CHAT, &request).await.content()
    };
    assert!(ask(json!({})).await.starts_with("The"));
    assert!(!ask(json!({&first: -100})).await.starts_with("The"));
    assert_eq!(ask(json!({&first: 100})).await, "The".repeat(6));
}

#[tokio::test]
async fn penalties_break_repetition() {
    let engine = Program::start(&[]).await;
    let counter = TokenCounter::from_gguf(&tiny_model()).unwrap();
    let repeated = async |fields: Value| {
        let request = with(greedy("Repeat: tea tea tea tea tea tea"), &fields);
        let text =
            engine.connect().await.post(CHAT, &with(request, &json!({"max_tokens": 24}))).await.content();
        let tokens = counter.tokenizer().encode(&text).unwrap();
        let mut counts = std::collections::BTreeMap::<u32, usize>::new();
        tokens.iter().for_each(|token| *counts.entry(*token).or_default() += 1);
        counts.values().copied().max().unwrap_or(0)
    };
    let plain = repeated(json!({})).await;
    assert!(plain >= 4, "{plain}");
    for fields in [json!({"frequency_penalty": 2, "presence_penalty": 2}), json!({"repetition_penalty": 2.0})]
    {
        let penalised = repeated(fields.clone()).await;
        assert!(penalised < plain, "{fields}: {penalised} of {plain}");
    }
}

#[tokio::test]
async fn a_wrong_parameter_is_refused_with_its_name() {
    let engine = Program::start(&[]).await;
    for (fields, param) in [
        (json!({"n": 0}), "n"),
        (json!({"n": 9}), "n"),
        (json!({"temperature": -0.5}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"frequency_penalty": 2.5}), "frequency_penalty"),
        (json!({"presence_penalty": -3}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logit_bias": {"768": 1}}), "logit_bias"),
        (json!({"logit_bias": {"word": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"stop": [""]}), "stop"),
        (json!({"max_tokens": 5000}), "messages"),
    ] {
        let answer = engine.connect().await.post(CHAT, &with(greedy("Hi"), &fields)).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(answer.json()["error"]["param"], param, "{fields}: {}", answer.json());
    }
    let long = json!({"model": TINY, "prompt": "word ".repeat(3000), "logprobs": 6});
    let refused =
        async |body: Value| engine.connect().await.post(COMPLETIONS, &body).await.json()["error"].clone();
    assert_eq!(refused(long.clone()).await["param"], "logprobs");
    let refused = refused(with(long, &json!({"logprobs": 5}))).await;
    assert_eq!((&refused["param"], &refused["code"]), (&json!("prompt"), &json!("context_length_exceeded")));
    assert!(refused["message"].as_str().unwrap().contains("1024"), "{refused}");
    let fine = engine.connect().await.post(CHAT, &greedy("Hello")).await;
    assert_eq!(fine.content(), "Hello! How can I help you?");
}
