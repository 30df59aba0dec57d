//! Speech, recordings, pictures and pages through a real socket: what a client can get wrong names its field, and the next
//! good request works.

use std::time::Duration;

use cxmpute_e2e::client::{Client, Payload, Reply};
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::services::{BOMB, PNG, Service, TEXT, recording, silence};
use cxmpute_e2e::settings::{Setting, repository, variable};
use cxmpute_e2e::stand_in::StandIn;
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::{Account, DRAWING_MODEL, LISTENING_MODEL, READING_MODEL, SPEECH_MODEL, World};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A refusal: the case, the route, the body, and status, code and field of the answer.
type Row = (&'static str, &'static str, Payload, u16, &'static str, Option<&'static str>);

const INVALID: &str = "invalid_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";

struct Ground {
    world: World,
    node: StandIn,
    account: Account,
}

impl Ground {
    async fn new() -> Self {
        let world = World::plan(Setting::clean()).services().start().await.unwrap();
        let node = world.stand_in("node").await.unwrap();
        let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await.unwrap();
        Self { world, node, account }
    }

    /// Every row is refused as it says, nothing of it reaches a node, and nothing is paid.
    async fn refuse(&self, rows: Vec<Row>) {
        let before = self.balance().await;
        let served = self.node.notes().len();
        let mut wrong = Vec::new();
        for (name, route, payload, status, code, param) in rows {
            let reply =
                self.account.client.post(route, &payload).await.unwrap_or_else(|e| panic!("{name}: {e:#}"));
            let error = &reply.json()["error"];
            let seen = (reply.status, error["code"].as_str().unwrap_or_default(), error["param"].as_str());
            if seen != (status, code, param) {
                wrong.push(format!(
                    "{name}: {seen:?} instead of {:?}: {}",
                    (status, code, param),
                    error["message"]
                ));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(self.node.notes().len(), served, "a request that was refused reached a node");
        assert_eq!(self.balance().await, before, "a request that was refused was paid");
    }

    async fn balance(&self) -> Value {
        let credits = self.account.client.call("GET", "/v1/credits", None).await.unwrap();
        assert_eq!(credits.status, 200);
        credits.json()
    }

    async fn post(&self, route: &str, payload: &Payload) -> Reply {
        self.account.client.post(route, payload).await.unwrap()
    }

    /// Good requests of every kind work, and nothing is left behind.
    async fn finish(self) {
        for service in Service::ALL {
            let reply = self.post(service.url(), &service.request()).await;
            assert!(service.is_good(&reply), "{}: {} {}", service.name(), reply.status, reply.json());
        }
        let mut verdict = Verdict::new("services");
        self.world.finish(&mut verdict).await.unwrap();
        assert!(verdict.broken().is_empty(), "{:#?}", verdict.broken());
    }
}

fn speech(change: impl FnOnce(&mut Value)) -> Payload {
    let mut body = json!({"model": SPEECH_MODEL, "input": TEXT, "voice": "alloy", "response_format": "wav"});
    change(&mut body);
    Payload::json(&body)
}

fn form(fields: &[(&str, &str)], file: &[u8]) -> Payload {
    Payload::form(&[&[("model", LISTENING_MODEL)][..], fields].concat(), Some(file))
}

fn picture(body: Value) -> Payload {
    let mut body = body;
    body["model"] = json!(READING_MODEL);
    Payload::json(&body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_request_for_speech_names_its_field() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/audio/speech";
    let at =
        |name, change: fn(&mut Value), code, param| (name, route, speech(change), 400, code, Some(param));
    ground
        .refuse(vec![
            at("an unknown voice", |body| body["voice"] = json!("nobody"), INVALID, "voice"),
            at("an empty text", |body| body["input"] = json!(""), INVALID, "input"),
            at("a text of spaces", |body| body["input"] = json!(" \n\t"), INVALID, "input"),
            at("a text that is too long", |body| body["input"] = json!("x".repeat(10_001)), INVALID, "input"),
            at("a text with the character 0", |body| body["input"] = json!("a\0b"), INVALID, "input"),
            at("a number as the text", |body| body["input"] = json!(7), INVALID, "input"),
            at("speed 9", |body| body["speed"] = json!(9), INVALID, "speed"),
            at("speed 0", |body| body["speed"] = json!(0), INVALID, "speed"),
            at("speed below 0", |body| body["speed"] = json!(-1.0), INVALID, "speed"),
            at(
                "an unknown format",
                |body| body["response_format"] = json!("midi"),
                INVALID,
                "response_format",
            ),
            at("events", |body| body["stream_format"] = json!("sse"), UNSUPPORTED, "stream_format"),
            at("instructions", |body| body["instructions"] = json!("shout"), UNSUPPORTED, "instructions"),
            (
                "an unknown model",
                route,
                speech(|body| body["model"] = json!("nobody")),
                404,
                "model_not_found",
                Some("model"),
            ),
            (
                "a model that listens",
                route,
                speech(|body| body["model"] = json!(LISTENING_MODEL)),
                404,
                "model_not_found",
                Some("model"),
            ),
            (
                "an unknown voice of the first seed",
                "/v1/tts",
                Payload::json(&json!({"text": TEXT, "voice": "nobody", "model": SPEECH_MODEL})),
                400,
                INVALID,
                Some("voice"),
            ),
            (
                "an empty text of the first seed",
                "/v1/tts",
                Payload::json(&json!({"text": ""})),
                400,
                INVALID,
                Some("text"),
            ),
        ])
        .await;
    let seed = ground.post("/v1/tts", &Payload::json(&json!({"text": TEXT}))).await;
    assert_eq!((seed.status, seed.header("content-type")), (200, Some("audio/wav")));
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_recording_names_its_field() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/audio/transcriptions";
    let good = recording(1_000);
    let file = |name, bytes: &[u8]| (name, route, form(&[], bytes), 400, INVALID, Some("file"));
    let field =
        |name, field: (&str, &str), code, param| (name, route, form(&[field], &good), 400, code, Some(param));
    let typed = |kind: &str| Payload { content_type: kind.to_owned(), ..form(&[], &good) };
    let mut cut = good.clone();
    cut.truncate(40);
    let mut other = good.clone();
    other[20] = 0x55;
    let large = vec![0; 25 * MIB + 1];
    ground
        .refuse(vec![
            (
                "no file",
                route,
                Payload::form(&[("model", LISTENING_MODEL)], None),
                400,
                INVALID,
                Some("file"),
            ),
            file("an empty file", b""),
            file("a file of text", b"These are words, not sound.\n"),
            file("a header that is cut off", &cut),
            file("a header without sound", &good[..44]),
            file("a codec that nobody knows", &other),
            file("a recording of 11 minutes", &recording(11 * 60_000)),
            file("a file above its limit", &large),
            ("no model", route, Payload::form(&[], Some(&good)), 400, INVALID, Some("model")),
            field("an unknown format", ("response_format", "xml"), INVALID, "response_format"),
            field("a temperature of 2", ("temperature", "2"), INVALID, "temperature"),
            field("a language that is a path", ("language", "../etc"), INVALID, "language"),
            field(
                "times that nobody asked for",
                ("timestamp_granularities[]", "word"),
                INVALID,
                "timestamp_granularities",
            ),
            field("a stream", ("stream", "true"), UNSUPPORTED, "stream"),
            (
                "JSON",
                route,
                Payload::json(&json!({"model": LISTENING_MODEL})),
                415,
                "unsupported_media_type",
                None,
            ),
            ("no boundary", route, typed("multipart/form-data"), 415, "unsupported_media_type", None),
            ("another boundary", route, typed("multipart/form-data; boundary=x"), 400, INVALID, Some("body")),
            (
                "an unknown model",
                route,
                Payload::form(&[("model", "nobody")], Some(&good)),
                404,
                "model_not_found",
                Some("model"),
            ),
        ])
        .await;
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_above_its_limit_is_refused_as_such() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let image = picture(json!({"imageBase64": "A".repeat(27 * MIB)}));
    let json = |body: Value| Payload::json(&body);
    ground
        .refuse(vec![
            (
                "a form",
                "/v1/audio/transcriptions",
                form(&[], &vec![0; 27 * MIB]),
                413,
                "body_too_large",
                None,
            ),
            ("a picture", "/v1/m/caption", image, 413, "body_too_large", None),
            (
                "a text",
                "/v1/audio/speech",
                speech(|b| b["input"] = json!("x".repeat(5 * MIB))),
                413,
                "body_too_large",
                None,
            ),
            (
                "addresses",
                "/v1/scrape",
                json(json!({"urls": ["x".repeat(5 * MIB)]})),
                413,
                "body_too_large",
                None,
            ),
        ])
        .await;
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_written_down_in_every_form_and_silence_has_no_words() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/audio/transcriptions";
    let quiet = ground.post(route, &form(&[], &silence(1_500))).await;
    assert_eq!(
        (quiet.status, &quiet.json()["text"], &quiet.json()["usage"]["seconds"]),
        (200, &json!(""), &json!(2))
    );
    for (format, content_type, start) in [
        ("text", "text/plain; charset=utf-8", "four seven one one\n"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:01,000\nfour"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.000\nfour"),
    ] {
        let reply = ground.post(route, &form(&[("response_format", format)], &recording(1_000))).await;
        let text = String::from_utf8(reply.body.clone()).unwrap();
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(content_type)), "{format}");
        assert!(text.starts_with(start), "{format}: {text:?}");
    }
    let notes = ground.node.notes();
    assert!(notes.iter().all(|note| note.asked["response_format"] == "verbose_json"), "{notes:?}");
    ground.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_picture_names_its_field() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/m/caption";
    let base64 = |name, image: &str| {
        (name, route, picture(json!({"imageBase64": image})), 400, INVALID, Some("imageBase64"))
    };
    let url =
        |name, url: &str| (name, route, picture(json!({"imageUrl": url})), 400, INVALID, Some("imageUrl"));
    let own = format!("http://{}/v1/models", ground.world.address);
    let port = ground.world.address.port();
    ground
        .refuse(vec![
            base64("no base64", "not base64!"),
            base64("an empty picture", ""),
            base64("words", "VGhlc2UgYXJlIHdvcmRzLg=="),
            base64("half a picture", &PNG[..100]),
            base64("a bomb", BOMB),
            ("no picture", route, picture(json!({})), 400, INVALID, Some("imageUrl")),
            (
                "two pictures",
                route,
                picture(json!({"imageUrl": "https://pages.example/a.png", "imageBase64": PNG})),
                400,
                INVALID,
                Some("imageBase64"),
            ),
            url("a private network", "http://10.0.0.1/a.png"),
            url("a private network in other digits", "http://0x0a000001/a.png"),
            url("a mapped address", "http://[::ffff:10.0.0.1]/a.png"),
            url("the metadata of a cloud", "http://169.254.169.254/latest/meta-data/"),
            url("the gateway itself", &own),
            url("the gateway by a name", &format!("http://localhost:{port}/a.png")),
            url("a file", "file:///etc/passwd"),
            url("no address", "pages"),
            url("an empty address", ""),
            (
                "no question",
                "/v1/m/query",
                picture(json!({"imageBase64": PNG})),
                400,
                INVALID,
                Some("question"),
            ),
            (
                "an empty target",
                "/v1/m/detect",
                picture(json!({"imageBase64": PNG, "target": " "})),
                400,
                INVALID,
                Some("target"),
            ),
            ("no target", "/v1/m/point", picture(json!({"imageBase64": PNG})), 400, INVALID, Some("target")),
            (
                "an unknown length",
                route,
                picture(json!({"imageBase64": PNG, "length": "endless"})),
                400,
                INVALID,
                Some("length"),
            ),
            (
                "a number above 255",
                route,
                picture(json!({"imageUint8": [137, 80, 78, 71, 256]})),
                400,
                INVALID,
                Some("imageUint8[4]"),
            ),
        ])
        .await;
    let found =
        ground.post("/v1/m/detect", &picture(json!({"imageBase64": PNG, "target": "total: 128.50"}))).await;
    let objects = found.json()["objects"].clone();
    assert_eq!((found.status, &objects[0]["label"]), (200, &json!("Total: 128.50")), "{objects}");
    let point = ground.post("/v1/m/point", &picture(json!({"imageBase64": PNG, "target": "EUR"}))).await;
    assert!(point.json()["points"][0]["x"].as_f64().is_some_and(|x| x > 0.6), "{}", point.json());
    ground.finish().await;
}

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
    assert_eq!(body["usage"], json!({"images": 2, "cost": "0.100000"}));
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

/// The official client for Python, as it is published, speaks and listens; a stand-in serves, so nothing is skipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_speaks_and_listens() {
    let _alone = alone().unwrap();
    let python = variable("CXMPUTE_CLIENT_PYTHON");
    let python =
        python.expect("CXMPUTE_CLIENT_PYTHON is not set: run scripts/test, which makes the environment");
    let ground = Ground::new().await;
    let mut pytest = tokio::process::Command::new(python);
    pytest
        .args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"])
        .arg(repository().join("e2e/clients/python/test_openai_audio.py"))
        .env("CXMPUTE_BASE_URL", format!("http://{}/v1", ground.world.address))
        .env("CXMPUTE_API_KEY", ground.account.client.key.clone().unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    let done = tokio::time::timeout(Duration::from_secs(300), pytest.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success() && !said.contains("skipped"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    ground.finish().await;
}

/// Without a key nothing is read; without money nothing is done, and what can be paid is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_need_a_key_and_money() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let poor = ground.world.account("poor@example.org", MicroCredits(1)).await.unwrap();
    let served = ground.node.notes().len();
    for service in Service::ALL {
        let stranger = Client::anonymous(ground.world.address);
        let reply = stranger.post(service.url(), &service.request()).await.unwrap();
        assert_eq!(reply.status, 401, "{}: {}", service.name(), reply.json());
        let reply = poor.client.post(service.url(), &service.request()).await.unwrap();
        assert_eq!(reply.status, 402, "{}: {}", service.name(), reply.json());
    }
    assert_eq!(ground.node.notes().len(), served);
    ground.finish().await;
}
