//! Pictures through a real node to a server of its owner that really looks at them and draws: what comes back proves what arrived.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_e2e::atelier::{Atelier, halves, name_of};
use cxmpute_e2e::client::{Client, Payload, Reply};
use cxmpute_e2e::ground::{alone, until};
use cxmpute_e2e::paths::settled;
use cxmpute_e2e::process::{self, Program};
use cxmpute_e2e::services::BOMB;
use cxmpute_e2e::settings::{Setting, repository};
use cxmpute_e2e::world::{Account, World};
use cxmpute_wire::MicroCredits;
use image::ImageFormat;
use serde_json::{Value, json};

use crate::official;

/// Sees, talks and finds; its tokens are counted.
const SEER: &str = "seer";
/// Sees and talks; its characters are counted.
const GLIMPSE: &str = "glimpse";
/// Sees, and says places in the pixels of its own, resized picture; an entry that ships.
const FINDER: &str = "qwen2.5vl:3b";
/// Draws.
const ARTIST: &str = "artist";

const READY_WITHIN: Duration = Duration::from_secs(120);

/// What one prompt token, one output token and one character cost, per 10^6.
const PRICES: (i64, i64, i64) = (2_000_000, 3_000_000, 1_000_000);

fn catalogue() -> String {
    let (prompt, completion, character) = PRICES;
    let tiny = cxmpute_e2e::world::tiny_file().unwrap();
    let seeing = |id: &str, capabilities: &str, file: &str| {
        format!(
            "[[model]]\nid = \"{id}\"\nkind = \"llm\"\ncontext_length = 8192\nmax_completion_tokens = 2048\nengines = [\"external\"]\n\
             capabilities = [{capabilities}]\n\
             price = {{ version = 1, prompt = {prompt}, completion = {completion}, character = {character} }}\n{file}\n"
        )
    };
    let artist = format!(
        "[[model]]\nid = \"{ARTIST}\"\nkind = \"image\"\nengines = [\"external\"]\ncanvas = {{ usual = \"128x64\", most_side = 512 }}\n\
         price = {{ version = 1, image = 50_000_000_000 }}\n\n"
    );
    seeing(SEER, "\"vision\", \"caption\", \"query\", \"detect\", \"point\", \"json_schema\"", &tiny)
        + &seeing(GLIMPSE, "\"vision\", \"caption\"", "")
        + &shipped(FINDER)
        + &artist
}

/// An entry of the shipped catalogue, as it stands there.
fn shipped(id: &str) -> String {
    let all = std::fs::read_to_string(repository().join("catalogue/vision.toml")).unwrap();
    let named = format!("\nid = \"{id}\"\n");
    let entry = all.split("[[model]]").find(|entry| entry.starts_with(&named)).unwrap();
    format!("[[model]]{entry}")
}

struct Ground {
    world: World,
    atelier: Atelier,
    account: Account,
    _node: Program,
    _folder: tempfile::TempDir,
}

impl Ground {
    async fn new() -> Self {
        let atelier = Atelier::open().await.unwrap();
        let plan =
            World::plan(Setting::clean()).also(catalogue()).pictures_from(&atelier.address.to_string());
        let world = plan.start().await.unwrap();
        let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await.unwrap();
        let owner = world.account("owner@example.org", MicroCredits(0)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let node = start_node(&world, &owner, &atelier, folder.path()).await;
        let anybody = Client::anonymous(world.address);
        for model in [SEER, GLIMPSE, FINDER, ARTIST] {
            until(&format!("{model} to be ready: {}", node.log.display()), READY_WITHIN, async || {
                let reply = anybody.call("GET", &format!("/v1/models/{model}"), None).await?.json();
                Ok((reply["availability"]["status"] == "ready").then_some(()))
            })
            .await
            .unwrap_or_else(|error| panic!("{error:#}\n{}", node.logged()));
        }
        Self { world, atelier, account, _node: node, _folder: folder }
    }

    async fn post(&self, route: &str, body: Value) -> Reply {
        self.account.client.post(route, &Payload::json(&body)).await.unwrap()
    }

    async fn receipt(&self, reply: &Reply) -> Value {
        let id = reply.header("x-request-id").unwrap();
        settled(&self.account.client, id, Duration::from_secs(10)).await.unwrap()
    }

    /// A request is refused as said, nothing of it reaches the server, and nothing is paid.
    async fn refused(
        &self,
        name: &str,
        route: &str,
        body: Value,
        status: u16,
        code: &str,
        param: Option<&str>,
    ) {
        let before = self.atelier.asked().len();
        let reply = self.post(route, body).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, error["code"].as_str().unwrap_or_default(), error["param"].as_str()),
            (status, code, param),
            "{name}: {error}"
        );
        let chats = |asked: &Value| asked["messages"].is_array() && asked["max_tokens"] != 1;
        let reached = self.atelier.asked()[before..].iter().filter(|asked| chats(asked)).count();
        assert_eq!(reached, 0, "{name}: reached the server");
    }
}

async fn start_node(world: &World, owner: &Account, atelier: &Atelier, folder: &std::path::Path) -> Program {
    let grant = folder.join("grant");
    std::fs::write(&grant, world.grant(&owner.user_id).await.unwrap()).unwrap();
    let services: Vec<String> = vec![
        format!("llm:{SEER}"),
        format!("llm:{GLIMPSE}"),
        format!("llm:{FINDER}"),
        format!("image:{ARTIST}"),
    ];
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let configuration = folder.join("node.toml");
    std::fs::write(&configuration, atelier.node_configuration(&services)).unwrap();
    let (url, data) = (format!("http://{}", world.address), folder.join("data").display().to_string());
    let (configuration, grant) = (configuration.display().to_string(), grant.display().to_string());
    let environment = [
        ("CXMPUTE_API_URL", url.as_str()),
        ("CXMPUTE_DATA_DIR", data.as_str()),
        ("CXMPUTE_NAME", "atelier"),
        ("CXMPUTE_CONFIG_PATH", configuration.as_str()),
    ];
    let enrol = ["enrol", "--grant-file", grant.as_str(), "--json"].map(str::to_owned);
    let enrolled = {
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = enrol.iter().map(String::as_str).collect();
            let environment: Vec<(&str, &str)> =
                environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            process::run("cxmpute-provider", &arguments, &environment)
        })
    };
    enrolled.await.unwrap().unwrap();
    Program::start("cxmpute-provider", &["start", "--json"], &environment, folder, "node").unwrap()
}

fn data_url(file: &[u8], kind: &str) -> String {
    format!("data:image/{kind};base64,{}", STANDARD.encode(file))
}

fn chat(model: &str, urls: &[&str], detail: Option<&str>) -> Value {
    let mut parts = vec![json!({"type": "text", "text": "What is there?"})];
    for url in urls {
        let mut image = json!({"url": url});
        if let Some(detail) = detail {
            image["detail"] = json!(detail);
        }
        parts.push(json!({"type": "image_url", "image_url": image}));
    }
    json!({"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 64})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_with_pictures_is_answered_from_their_pixels_and_counted_by_their_size() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/chat/completions";
    let small = data_url(&halves("green", "black", (64, 32), ImageFormat::Png), "png");
    let large = data_url(&halves("white", "red", (1_600, 1_200), ImageFormat::Jpeg), "jpeg");
    let plain = ground.post(route, chat(SEER, &[], None)).await.json();
    let words = plain["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(plain["usage"]["prompt_tokens_details"]["image_tokens"], Value::Null);
    let fetched = ground.atelier.picture_url();
    for (urls, detail, seen, tokens) in [
        (vec![small.as_str()], None, "I see green beside black in 64x32.", 255),
        (vec![large.as_str()], None, "I see white beside red in 1024x768.", 765),
        (vec![large.as_str()], Some("low"), "I see white beside red in 512x384.", 85),
        (
            vec![small.as_str(), fetched.as_str()],
            Some("auto"),
            "I see green beside black in 64x32; red beside blue in 600x300.",
            255 + 425,
        ),
    ] {
        let reply = ground.post(route, chat(SEER, &urls, detail)).await;
        let body = reply.json();
        assert_eq!(
            (reply.status, body["choices"][0]["message"]["content"].as_str()),
            (200, Some(seen)),
            "{body}"
        );
        let usage = &body["usage"];
        assert_eq!(usage["prompt_tokens_details"]["image_tokens"], json!(tokens), "{usage}");
        assert_eq!(usage["prompt_tokens"].as_u64(), Some(words + tokens), "{usage}");
        let receipt = ground.receipt(&reply).await;
        assert_eq!(
            (&receipt["tokens_prompt"], &receipt["images"]),
            (&json!(words + tokens), &json!(urls.len()))
        );
        let paid = ground.world.cost_of(&receipt).unwrap();
        let output = usage["completion_tokens"].as_i64().unwrap();
        let wanted = i64::try_from(words + tokens).unwrap() * PRICES.0 + output * PRICES.1;
        assert_eq!(paid, (wanted + 999_999) / 1_000_000, "{receipt}");
        // The node claims 577 tokens of every prompt with a picture; its word changes nothing.
        let id = reply.header("x-request-id").unwrap();
        assert!(ground.world.money.reward_of(id).await.unwrap() > paid / 2, "{receipt}");
    }
    // Where characters are counted, a token of a picture is four of them.
    let reply = ground.post(route, chat(GLIMPSE, &[&small], None)).await;
    let receipt = ground.receipt(&reply).await;
    let said = reply.json()["choices"][0]["message"]["content"].as_str().unwrap().len();
    assert_eq!(receipt["characters"], json!("What is there?".len() + said + 255 * 4), "{receipt}");
    let id = reply.header("x-request-id").unwrap();
    let paid = ground.world.cost_of(&receipt).unwrap();
    assert_eq!(ground.world.money.reward_of(id).await.unwrap(), paid * 9 / 10, "{receipt}");
    // What the server got is what the gateway drew, and no more.
    let asked = ground.atelier.asked();
    let pictures =
        asked.iter().filter_map(|asked| asked["messages"][0]["content"][1]["image_url"].as_object());
    let all: Vec<_> = pictures.collect();
    assert!(
        all.len() >= 5 && all.iter().all(|image| image.len() == 1 && image["url"].as_str().unwrap() != large)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_that_cannot_be_used_names_its_field() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/chat/completions";
    let good = data_url(&halves("green", "black", (64, 32), ImageFormat::Png), "png");
    let (invalid, unsupported) = ("invalid_parameter", "unsupported_parameter");
    let url = Some("messages[0].content[1].image_url.url");
    let bomb = format!("data:image/png;base64,{BOMB}");
    let half = data_url(&halves("green", "black", (64, 32), ImageFormat::Png)[..60], "png");
    let own = format!("http://{}/v1/models", ground.world.address);
    let missing = format!("http://{}/missing", ground.atelier.address);
    for (name, picture) in [
        ("a bomb", bomb.as_str()),
        ("half a picture", half.as_str()),
        ("words", "data:image/png;base64,VGhlc2UgYXJlIHdvcmRzLg=="),
        ("no base64", "data:image/png;base64,?"),
        ("a private network", "http://10.0.0.1/a.png"),
        ("a mapped address", "https://[::ffff:10.0.0.1]/a.png"),
        ("the metadata of a cloud", "http://169.254.169.254/latest/meta-data/"),
        ("the gateway itself", own.as_str()),
        ("a file", "file:///etc/passwd"),
        ("a site without it", missing.as_str()),
    ] {
        ground.refused(name, route, chat(SEER, &[picture], None), 400, invalid, url).await;
    }
    let many = vec![good.as_str(); 17];
    ground.refused("17 pictures", route, chat(SEER, &many, None), 400, invalid, Some("messages")).await;
    ground
        .refused(
            "a model without eyes",
            route,
            chat("stage", &[&good], None),
            400,
            unsupported,
            Some("messages"),
        )
        .await;
    let large = format!("data:image/png;base64,{}", "A".repeat(14 << 20));
    ground.refused("14 MiB of base64", route, chat(SEER, &[&large], None), 400, invalid, url).await;
    let flood = format!("data:image/png;base64,{}", "A".repeat(21 << 20));
    ground.refused("21 MiB of base64", route, chat(SEER, &[&flood], None), 413, "body_too_large", None).await;
    let mut text = chat(SEER, &[&good], None);
    text["messages"][0]["content"][0]["text"] = json!("x".repeat(5 << 20));
    ground.refused("5 MiB of text", route, text, 413, "body_too_large", None).await;
    let poor = ground.world.account("poor@example.org", MicroCredits(100)).await.unwrap();
    let body = Payload::json(&chat(SEER, &[&good], None));
    let reply = poor.client.post(route, &body).await.unwrap();
    assert_eq!((reply.status, reply.error_code().as_str()), (402, "insufficient_credits"));
    // Anthropic's words for the same, and a count.
    let block = |data: &str| {
        json!({"model": SEER, "max_tokens": 64, "messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
            {"type": "text", "text": "What is there?"}]}]})
    };
    let reply = ground.post("/v1/messages", block(BOMB)).await;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (400, Some("invalid_request_error")));
    let (_, data) = good.split_once(',').unwrap();
    let reply = ground.post("/v1/messages", block(data)).await.json();
    let mut count = block(data);
    count.as_object_mut().unwrap().remove("max_tokens");
    let counted = ground.post("/v1/messages/count_tokens", count).await.json();
    assert_eq!(counted["input_tokens"], reply["usage"]["input_tokens"], "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_sees_captions_answers_finds_and_points() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let picture = STANDARD.encode(halves("green", "black", (64, 32), ImageFormat::Png));
    let ask = |more: Value| {
        let mut body = json!({"imageBase64": picture});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let seen = "I see green beside black in 64x32.";
    // Without a name the one that nodes serve is asked; nobody here reads.
    let reply = ground.post("/v1/m/caption", ask(json!({"length": "short"}))).await;
    assert_eq!((reply.status, reply.json()["caption"].as_str()), (200, Some(seen)), "{}", reply.json());
    let usage = reply.json()["usage"].clone();
    assert!(usage["images"] == 1 && usage["prompt_tokens"].as_u64().unwrap() > 255, "{usage}");
    let receipt = ground.receipt(&reply).await;
    assert_eq!(
        (&receipt["tokens_prompt"], &receipt["tokens_completion"]),
        (&usage["prompt_tokens"], &usage["completion_tokens"])
    );
    let sent = ground.atelier.asked().last().unwrap().clone();
    assert_eq!((&sent["max_tokens"], &sent["temperature"]), (&json!(64), &json!(0.0)), "{sent}");
    let url = json!({"imageUrl": ground.atelier.picture_url(), "question": "Which colours?", "model": SEER});
    let reply = ground.post("/v1/m/query", url).await;
    assert_eq!(reply.json()["answer"], "I see red beside blue in 600x300.", "{}", reply.json());
    let reply = ground.post("/v1/m/detect", ask(json!({"target": "black"}))).await.json();
    assert_eq!(
        reply["objects"],
        json!([{"label": "black", "box": [0.5, 0.0, 1.0, 1.0], "confidence": 0.75}]),
        "{reply}"
    );
    let reply = ground.post("/v1/m/detect", ask(json!({"target": "blue"}))).await.json();
    assert_eq!(reply["objects"], json!([]), "{reply}");
    let reply = ground.post("/v1/m/point", ask(json!({"target": "green"}))).await.json();
    assert_eq!(reply["points"], json!([{"x": 0.25, "y": 0.5}]), "{reply}");
    // An answer that is no list of boxes is the node's fault, and free.
    let reply = ground.post("/v1/m/detect", ask(json!({"target": "unicorn"}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "provider_error"), "{}", reply.json());
    assert_eq!(ground.world.cost_of(&ground.receipt(&reply).await).unwrap(), 0);
    let more = json!({"target": "black", "model": GLIMPSE});
    ground
        .refused("no eye for places", "/v1/m/detect", ask(more), 400, "unsupported_parameter", Some("model"))
        .await;
    let model = json!({"model": ARTIST});
    ground
        .refused("a model that draws", "/v1/m/caption", ask(model), 404, "model_not_found", Some("model"))
        .await;
}

/// A picture of 600 x 300 pixels is one of 588 x 308 to such a model; what the client gets are parts of the picture.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shipped_entry_finds_and_points_in_pixels_of_its_own() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let picture = STANDARD.encode(halves("green", "black", (600, 300), ImageFormat::Png));
    let ask = |target: &str| json!({"imageBase64": picture, "target": target, "model": FINDER});
    let reply = ground.post("/v1/m/detect", ask("black")).await;
    let body = reply.json();
    assert_eq!(reply.status, 200, "{body}");
    assert_eq!(
        body["objects"],
        json!([{"label": "black", "box": [0.5, 0.0, 1.0, 1.0], "confidence": null}]),
        "{body}"
    );
    let sent = ground.atelier.asked().last().unwrap().clone();
    let schema = &sent["response_format"]["json_schema"]["schema"]["properties"]["objects"]["items"];
    assert_eq!(schema["required"], json!(["bbox_2d", "label"]), "{sent}");
    let receipt = ground.receipt(&reply).await;
    assert!(ground.world.cost_of(&receipt).unwrap() > 0 && receipt["images"] == 1, "{receipt}");
    let reply = ground.post("/v1/m/point", ask("green")).await.json();
    assert_eq!(reply["points"], json!([{"x": 0.25, "y": 0.5}]), "{reply}");
    let reply = ground.post("/v1/m/detect", ask("blue")).await.json();
    assert_eq!(reply["objects"], json!([]), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_draws_is_asked_in_its_words_and_its_pictures_are_drawn_anew() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let route = "/v1/images/generations";
    for prompt in ["a red door", "a photo of a red door"] {
        let body = json!({"model": ARTIST, "prompt": prompt, "n": 2, "size": "256x64", "quality": "standard", "style": "vivid"});
        let reply = ground.post(route, body).await;
        let body = reply.json();
        assert_eq!(
            (reply.status, &body["size"], reply.header("x-cxmpute-ignored")),
            (200, &json!("256x64"), Some("style")),
            "{body}"
        );
        for picture in body["data"].as_array().unwrap() {
            assert_eq!(picture.as_object().unwrap().len(), 1, "nothing but the picture");
            let file = STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap();
            assert_eq!(image::guess_format(&file).unwrap(), ImageFormat::Png);
            let shown = image::load_from_memory(&file).unwrap().to_rgb8();
            assert_eq!((shown.dimensions(), name_of(*shown.get_pixel(9, 9))), ((256, 64), "red"));
        }
        let receipt = ground.receipt(&reply).await;
        assert_eq!(
            (&receipt["images"], &receipt["total_cost"]),
            (&json!(4), &json!("0.200000")),
            "{receipt}"
        );
    }
    let asked = ground.atelier.asked().last().unwrap().clone();
    assert_eq!(asked["model"], "own name", "{asked}");
    let seed = json!({"prompt": "a blue door", "width": 128, "height": 64, "numInferenceSteps": 5});
    let reply = ground.post("/v1/image", seed).await;
    let shown = image::load_from_memory(&reply.body).unwrap().to_rgb8();
    assert_eq!((reply.header("content-type"), name_of(*shown.get_pixel(9, 9))), (Some("image/png"), "blue"));
    let reply = ground.post(route, json!({"model": ARTIST, "prompt": "nothing"})).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "provider_error"), "{}", reply.json());
    assert_eq!(ground.world.cost_of(&ground.receipt(&reply).await).unwrap(), 0);
    let models =
        Client::anonymous(ground.world.address).call("GET", "/v1/models", None).await.unwrap().json();
    let shape = |id: &str| {
        let list = models["data"].as_array().unwrap();
        list.iter().find(|model| model["id"] == id).map(|model| model["architecture"]["modality"].clone())
    };
    assert_eq!((shape(SEER), shape(ARTIST)), (Some(json!("text+image->text")), Some(json!("text->image"))));
}

/// The official clients, as they are published, show pictures and have them drawn; nothing is skipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_clients_show_pictures_and_have_them_drawn() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    let picture = ground.atelier.picture_url();
    let more =
        [("CXMPUTE_VISION_MODEL", SEER), ("CXMPUTE_IMAGE_MODEL", ARTIST), ("CXMPUTE_PICTURE_URL", &picture)];
    official::pytest("test_pictures.py", ground.world.address, &ground.account, &more).await;
}
