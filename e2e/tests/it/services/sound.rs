//! Speech and recordings: what a client can get wrong names its field, and what it can ask for it gets.

use cxmpute_e2e::client::Payload;
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::services::{TEXT, recording, silence};
use cxmpute_e2e::world::{LISTENING_MODEL, SPEECH_MODEL};
use serde_json::{Value, json};

use super::{Ground, INVALID, MIB, UNSUPPORTED, form, speech};
use crate::official;

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
            at(
                "a stream of nothing known",
                |body| body["stream_format"] = json!("x"),
                INVALID,
                "stream_format",
            ),
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

/// The official client for Python, as it is published, speaks and listens; a stand-in serves, so nothing is skipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_speaks_and_listens() {
    let _alone = alone().unwrap();
    let ground = Ground::new().await;
    official::pytest("test_openai_audio.py", ground.world.address, &ground.account, &[]).await;
    ground.finish().await;
}
