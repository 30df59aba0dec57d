//! Pictures that are read: what a client can get wrong names its field.

use cxmpute_e2e::ground::alone;
use cxmpute_e2e::services::{BOMB, PNG};
use serde_json::json;

use super::{Ground, INVALID, picture};

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
