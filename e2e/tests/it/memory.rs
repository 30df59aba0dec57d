//! NR37: what ends for lack of memory on a node is planned there with more, or not at all, and counts against nobody.

use std::time::Duration;

use cxmpute_e2e::ground::until;
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::{CHAT_MODEL, World, tiny_file};
use cxmpute_wire::{Bytes, MicroCredits};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const GIB: u64 = 1 << 30;

/// A model that takes most of a stand-in's 1024 GiB.
const LARGE: &str = "giant";

#[tokio::test]
async fn a_killed_engine_teaches_the_plan_until_it_fits_or_is_left_out() {
    let entry = format!(
        "[[model]]\nid = \"{LARGE}\"\nkind = \"llm\"\ncontext_length = 1024\nmax_completion_tokens = 64\nengines = [\"builtin\"]\n\
         memory_mb = {}\nprice = {{ version = 1, prompt = 1, completion = 1 }}\n{}\n",
        600 * 1024,
        tiny_file().unwrap()
    );
    let world = World::plan(Setting::clean()).also(entry).start().await.unwrap();
    let node = world.stand_in("node").await.unwrap();
    let planned = async |expected: Option<u64>| {
        let seen = until("another plan", SOON, async || {
            Ok((node.claim_of(LARGE) == expected.map(|gib| Bytes(gib * GIB))).then_some(()))
        });
        seen.await.unwrap_or_else(|error| panic!("{error}: {:?}", node.claim_of(LARGE)));
    };
    planned(Some(600)).await;
    // It runs with a quarter more.
    node.need_more_than(LARGE, Bytes(700 * GIB));
    planned(Some(750)).await;
    until("all services", SOON, async || Ok((node.routable() >= 4).then_some(()))).await.unwrap();
    // And once more, and then the machine is too small for it; its other services never stopped.
    node.need_more_than(LARGE, Bytes(2_000 * GIB));
    planned(None).await;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await.unwrap();
    let body = json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "say 3"}]});
    assert_eq!(account.client.call("POST", "/v1/chat/completions", Some(&body)).await.unwrap().status, 200);
    let mut verdict = Verdict::new("NR37");
    world.finish(&mut verdict).await.unwrap();
    assert_eq!(verdict.broken().len(), 0, "{:?}", verdict.broken());
}
