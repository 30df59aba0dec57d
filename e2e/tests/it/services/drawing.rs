//! Pictures that are drawn: what a client can get wrong names its field, and a node is asked for nothing else.

use cxmpute_e2e::client::Payload;
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::world::{DRAWING_MODEL, READING_MODEL};
use serde_json::{Value, json};

use super::{Ground, INVALID, UNSUPPORTED};

fn drawing(change: impl FnOnce(&mut Value)) -> Payload {
    let prompt = format!("{DRAWING_MODEL}: a slope of colours");
    let mut body = json!({"model": DRAWING_MODEL, "prompt": prompt});
    change(&mut body);
    Payload::json(&body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_drawing_names_its_field() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/images/generations";
    let at =
        |name, change: fn(&mut Value), code, param| (name, route, drawing(change), 400, code, Some(param));
    let seed = |name, change: fn(&mut Value), param| {
        let mut body = json!({"prompt": "a slope", "model": DRAWING_MODEL, "width": 64, "height": 64});
        change(&mut body);
        (name, "/v1/image", Payload::json(&body), 400, INVALID, Some(param))
    };
    ground
        .refuse(vec![
            at("an empty prompt", |body| body["prompt"] = json!(" "), INVALID, "prompt"),
            at(
                "a prompt that is too long",
                |body| body["prompt"] = json!("x".repeat(4_001)),
                INVALID,
                "prompt",
            ),
            at("a prompt with the character 0", |body| body["prompt"] = json!("a\0b"), INVALID, "prompt"),
            at(
                "a command in the prompt",
                |body| body["prompt"] = json!("a cat <lora:x:1>"),
                INVALID,
                "prompt",
            ),
            at("no pictures", |body| body["n"] = json!(0), INVALID, "n"),
            at("five pictures", |body| body["n"] = json!(5), INVALID, "n"),
            at("half a picture", |body| body["n"] = json!(0.5), INVALID, "n"),
            at("a size in words", |body| body["size"] = json!("large"), INVALID, "size"),
            at("a size that is no multiple of 8", |body| body["size"] = json!("100x64"), INVALID, "size"),
            at("a size above the model's", |body| body["size"] = json!("264x64"), INVALID, "size"),
            at("a size below all", |body| body["size"] = json!("64x56"), INVALID, "size"),
            at("an address", |body| body["response_format"] = json!("url"), UNSUPPORTED, "response_format"),
            at("an unknown form", |body| body["response_format"] = json!("x"), INVALID, "response_format"),
            at("an unknown format", |body| body["output_format"] = json!("tiff"), INVALID, "output_format"),
            at("events", |body| body["stream"] = json!(true), UNSUPPORTED, "stream"),
            at("a high quality", |body| body["quality"] = json!("hd"), UNSUPPORTED, "quality"),
            at("an unknown quality", |body| body["quality"] = json!("best"), INVALID, "quality"),
            at("transparency", |body| body["background"] = json!("transparent"), UNSUPPORTED, "background"),
            at("51 steps", |body| body["num_inference_steps"] = json!(51), INVALID, "num_inference_steps"),
            at("a seed below 0", |body| body["seed"] = json!(-1), INVALID, "seed"),
            at(
                "a command in what is avoided",
                |body| body["negative_prompt"] = json!("<LoRA:x>"),
                INVALID,
                "negative_prompt",
            ),
            (
                "a model that reads",
                route,
                drawing(|body| body["model"] = json!(READING_MODEL)),
                404,
                "model_not_found",
                Some("model"),
            ),
            seed("a width of 60", |body| body["width"] = json!(60), "width"),
            seed("the first seed's own height", |body| body["height"] = Value::Null, "height"),
            seed("a thousand steps", |body| body["numInferenceSteps"] = json!(1_000), "numInferenceSteps"),
            seed("a command", |body| body["negativePrompt"] = json!("<sd_cpp_extra_args>"), "negativePrompt"),
        ])
        .await;
    let place = ground.node.notes().len();
    let strange = drawing(|body| {
        body["size"] = json!("128x64");
        body["output_format"] = json!("jpeg");
        body["lora"] = json!("x");
        body["user"] = json!("somebody");
        body["negative_prompt"] = json!("people");
    });
    let reply = ground.post(route, &strange).await;
    assert_eq!((reply.status, reply.header("x-cxmpute-ignored")), (200, Some("lora")), "{}", reply.json());
    let body = reply.json();
    assert_eq!((&body["size"], &body["output_format"]), (&json!("128x64"), &json!("jpeg")));
    assert_eq!(
        (&body["usage"]["images"], &body["usage"]["cost"], &body["usage"]["cost_details"]["images"]),
        (&json!(2), &json!("0.100000"), &json!("0.1"))
    );
    assert!(body["data"][0]["b64_json"].as_str().unwrap().starts_with("/9j/"), "a JPEG");
    let asked = ground.node.notes()[place].asked.clone();
    assert_eq!(
        *asked,
        json!({"model": DRAWING_MODEL, "prompt": format!("{DRAWING_MODEL}: a slope of colours"), "n": 1,
            "size": "128x64", "response_format": "b64_json", "negative_prompt": "people"})
    );
    let seed = Payload::json(
        &json!({"prompt": format!("{DRAWING_MODEL}: a slope"), "model": DRAWING_MODEL, "width": 128, "height": 64}),
    );
    let reply = ground.post("/v1/image", &seed).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("image/png")));
    let picture = image::load_from_memory(&reply.body).unwrap();
    assert_eq!((picture.width(), picture.height()), (128, 64));
    assert_eq!(ground.node.notes()[place + 1].asked["num_inference_steps"], 30);
    ground.finish().await;
}
