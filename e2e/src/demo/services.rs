//! One request to each service of the demo besides the chat, in a line each: what was asked, what came, and what it cost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::show::Show;
use crate::client::{Client, Payload, Reply};
use crate::house::SCRAPE_MODEL;
use crate::paths::settled;
use crate::site::Site;

/// Digits: what the recogniser of the demo knows.
const DIGITS: &str = "4 7 1 1";
/// A picture with text in it.
const PICTURE: &[u8] = include_bytes!("../../../crates/node/src/engines/tool/invoice.png");
/// Longest text that is shown.
const SHOWN: usize = 48;

/// Asks each of them once; those that no program of this machine serves are left out.
pub(super) async fn ask(client: &Client, services: &[&str], site: &Site, show: &Show) -> Result<()> {
    let has = |model: &str| services.contains(&model);
    let desk = Desk { client, show };
    if has("espeak-ng") {
        let text = json!({"model": "espeak-ng", "input": DIGITS, "voice": "af_sky", "speed": 0.9, "response_format": "wav"});
        let said = desk.post("audio/speech", &Payload::json(&text)).await?;
        desk.line("speech", "espeak-ng", &format!("{DIGITS:?} -> {} bytes of wav", said.body.len()), &said)
            .await?;
        if has("pocketsphinx-digits") {
            let form = Payload::form(&[("model", "pocketsphinx-digits")], Some(&said.body));
            let heard = desk.post("audio/transcriptions", &form).await?;
            desk.line("hearing", "pocketsphinx-digits", &shown(&heard.json()["text"]), &heard).await?;
        }
    }
    if has("tesseract") {
        let picture = json!({"model": "tesseract", "imageBase64": STANDARD.encode(PICTURE)});
        let read = desk.post("m/caption", &Payload::json(&picture)).await?;
        desk.line("pictures", "tesseract", &shown(&read.json()["caption"]), &read).await?;
    }
    if has(SCRAPE_MODEL) {
        let page = json!({"urls": [format!("http://{}/plain", site.address)], "format": "text"});
        let fetched = desk.post("scrape", &Payload::json(&page)).await?;
        desk.line("pages", SCRAPE_MODEL, &shown(&fetched.json()["results"][0]["data"]), &fetched).await?;
    }
    Ok(())
}

struct Desk<'a> {
    client: &'a Client,
    show: &'a Show,
}

impl Desk<'_> {
    async fn post(&self, route: &str, payload: &Payload) -> Result<Reply> {
        let reply = self.client.post(&format!("/api/v1/{route}"), payload).await?;
        ensure!(reply.status == 200, "/{route} answered {} {}", reply.status, reply.json());
        Ok(reply)
    }

    async fn line(&self, name: &str, model: &str, what: &str, reply: &Reply) -> Result<()> {
        let id = reply.header("x-request-id").context("no request id")?;
        let receipt = settled(self.client, id, Duration::from_secs(10)).await?;
        let cost = receipt["total_cost"].as_str().context("a receipt without a cost")?;
        self.show.line(&format!("{name:<10} {model}: {what}, {cost} credits"));
        Ok(())
    }
}

/// The beginning of a text, in one line.
fn shown(text: &Value) -> String {
    let text: Vec<&str> = text.as_str().unwrap_or_default().split_whitespace().collect();
    let text = text.join(" ");
    let cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() { format!("{cut:?} …") } else { format!("{cut:?}") }
}
