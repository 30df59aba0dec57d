//! Looks for the servers that the owner already runs: on the loopback, and where the owner says. It asks what they have
//! and changes nothing there: no model is pulled, loaded, unloaded or deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Tasks;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::found::{self, Found, Kind};
use super::{Endpoint, EngineError, Reply};
use crate::config::DiscoverSection;

/// Longest that one server may take to say what it has, and again to describe what is new.
const TIME: Duration = Duration::from_secs(3);
/// Most bytes of one answer.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Models that are asked about at the same time.
const ASKED_AT_ONCE: usize = 8;
/// Hashes of weights that are remembered.
const WEIGHTS_KEPT: usize = 4096;
/// A server that does not answer this often in a row is gone.
const MISSES: u32 = 3;

/// What was found last. Clones see the same.
#[derive(Clone, Debug)]
pub struct Finds {
    inner: Arc<RwLock<Vec<(Found, u32)>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Finds {
    fn default() -> Self {
        Self { inner: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }
}

impl Finds {
    /// Everything.
    #[must_use]
    pub fn list(&self) -> Vec<Found> {
        self.inner.read().iter().map(|(found, _)| found.clone()).collect()
    }

    /// Takes a look in; says whether anything is different now. A server that was there and is not is kept for two more
    /// looks: it may only be starting anew.
    pub fn take(&self, seen: Vec<Found>) -> bool {
        let mut kept = self.inner.write();
        let before: Vec<Found> = kept.iter().map(|(found, _)| found.clone()).collect();
        let missed = kept
            .drain(..)
            .filter(|(old, _)| !seen.iter().any(|new| new.address == old.address && new.kind == old.kind))
            .map(|(old, misses)| (old, misses + 1))
            .filter(|(_, misses)| *misses < MISSES)
            .collect::<Vec<_>>();
        kept.extend(seen.into_iter().map(|found| (found, 0)));
        kept.extend(missed);
        kept.sort_by(|(one, _), (other, _)| {
            (one.kind.name(), &one.address).cmp(&(other.kind.name(), &other.address))
        });
        // What a model takes of memory changes with every request.
        let plain = |found: &Found| {
            let weights = found.models.iter().map(|model| (model.digest.clone(), model.file.clone()));
            (found.kind, found.present(), weights.collect::<Vec<_>>())
        };
        let different = !before.iter().map(plain).eq(kept.iter().map(|(found, _)| plain(found)));
        drop(kept);
        if different {
            self.changes.send_modify(|count| *count += 1);
        }
        different
    }

    /// Moves with every look in which something was different.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Looks everywhere once.
pub async fn look(section: &DiscoverSection, tasks: &Tasks) -> Vec<Found> {
    if !section.enabled {
        return Vec::new();
    }
    let places = Kind::ALL.into_iter().flat_map(|kind| {
        let addresses = match kind {
            Kind::Ollama => &section.ollama,
            Kind::Vllm => &section.vllm,
            Kind::LlamaServer => &section.llama_server,
        };
        addresses.iter().map(move |address| (kind, address.clone()))
    });
    let asked = places.map(|(kind, address)| async move {
        let asked = tokio::time::timeout(TIME, ask(kind, address, tasks)).await;
        let mut found = asked.ok().and_then(Result::ok).flatten()?;
        if found.kind == Kind::Ollama {
            weigh(&mut found, tasks).await;
        }
        Some(found)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What the server there has, if it is one of this kind.
async fn ask(kind: Kind, address: String, tasks: &Tasks) -> Result<Option<Found>, EngineError> {
    let at = Endpoint::http(&format!("http://{address}"), None);
    let (version, models) = match kind {
        Kind::Ollama => {
            let version = get(&at, "/api/version", tasks).await?;
            let tags = get(&at, "/api/tags", tasks).await?;
            let loaded = get(&at, "/api/ps", tasks).await.unwrap_or_default();
            let models = found::of_ollama(&tags, &loaded);
            (version["version"].clone(), models)
        }
        Kind::Vllm => {
            let models = get(&at, "/v1/models", tasks).await?;
            let version = get(&at, "/version", tasks).await.unwrap_or_default();
            (version["version"].clone(), found::of_vllm(&models))
        }
        Kind::LlamaServer => {
            let models = get(&at, "/v1/models", tasks).await?;
            let props = get(&at, "/props", tasks).await.unwrap_or_default();
            let models = found::of_llama_server(&models, &props);
            (props["build_info"].clone(), models)
        }
    };
    let version: String = version.as_str().unwrap_or_default().chars().take(80).collect();
    let none = models.is_empty() && (kind != Kind::Ollama || version.is_empty());
    Ok((!none).then_some(Found { kind, address, version, models }))
}

/// Weights of Ollama's models by the hash of what describes them: the same description has the same weights for ever.
static WEIGHTS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Finds out the hashes of the weights. What does not come in time is asked for the next time; until then the model is as one
/// that cannot be compared.
async fn weigh(found: &mut Found, tasks: &Tasks) {
    let at = &Endpoint::http(&format!("http://{}", found.address), None);
    let known = |tag: &str| WEIGHTS.lock().get(tag).cloned();
    let unknown: Vec<(String, String)> = found
        .models
        .iter()
        .filter_map(|model| Some((model.name.clone(), model.tag.clone()?)))
        .filter(|(_, tag)| known(tag).is_none())
        .collect();
    let asking =
        futures_util::stream::iter(unknown).for_each_concurrent(ASKED_AT_ONCE, |(model, tag)| async move {
            if let Some(hash) = weights(at, &model, tasks).await {
                let mut all = WEIGHTS.lock();
                if all.len() >= WEIGHTS_KEPT {
                    all.clear();
                }
                all.insert(tag, hash);
            }
        });
    if tokio::time::timeout(TIME, asking).await.is_err() {
        tracing::debug!(address = found.address, "not every model was described in time");
    }
    for model in &mut found.models {
        model.digest = model.tag.as_deref().and_then(known);
    }
}

/// The hash of a model's weights in Ollama. Asking for it loads nothing.
async fn weights(at: &Endpoint, model: &str, tasks: &Tasks) -> Option<String> {
    let body = Bytes::from(json!({"model": model}).to_string());
    let reply = at.connect(tasks).await.ok()?.post("/api/show", "application/json", body).await.ok()?;
    found::weights_of_ollama(&read(Reply::Http(reply)).await.ok()?)
}

async fn get(at: &Endpoint, path: &str, tasks: &Tasks) -> Result<Value, EngineError> {
    read(Reply::Http(at.connect(tasks).await?.get(path).await?)).await
}

async fn read(reply: Reply) -> Result<Value, EngineError> {
    let status = reply.status();
    if !status.is_success() {
        return Err(EngineError::NotReady(status.as_u16()));
    }
    let body = reply.whole(ANSWER_BYTES).await?;
    serde_json::from_slice(&body).map_err(|error| EngineError::Broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::found::FoundModel;

    #[test]
    fn a_server_that_is_away_for_a_moment_stays() {
        let model = FoundModel { name: "a".into(), ..FoundModel::default() };
        let here =
            Found { kind: Kind::Vllm, address: "x:1".into(), version: String::new(), models: vec![model] };
        let finds = Finds::default();
        assert!(finds.take(vec![here.clone()]) && !finds.take(vec![here.clone()]));
        let mut busy = here.clone();
        busy.models[0].gpu_memory = Some(1);
        assert!(!finds.take(vec![busy]), "how much it takes is no news");
        assert!(!finds.take(vec![]) && !finds.take(vec![]));
        assert_eq!(finds.list().len(), 1);
        assert!(finds.take(vec![]) && finds.list().is_empty());
        let mut pulled = here.clone();
        pulled.models[0].digest = Some("b".into());
        assert!(finds.take(vec![here.clone()]));
        let changes = finds.changes();
        assert!(finds.take(vec![pulled]), "other weights under the same name");
        assert!(changes.has_changed().unwrap());
        assert!(finds.take(vec![here.clone()]));
        let mut more = here.clone();
        more.models.push(FoundModel { name: "b".into(), ..FoundModel::default() });
        assert!(!finds.take(vec![here]) && finds.take(vec![more]));
    }
}
