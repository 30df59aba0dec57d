//! vLLM: safetensors models on accelerators, one server for each service, on a unix socket where the version knows them;
//! over several machines through a Ray cluster that the owner configured. Written to its documented command line; the
//! tests put a stand-in with that command line in its place.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cxmpute_runtime::confine::Sockets;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{DesiredService, GpuInfo, GpuShare};
use cxmpute_wire::{Bytes, ServiceKind};
use nix::sys::signal::Signal;

use super::start::{Finish, Start};
use super::{AdapterError, Child, Profile, Ready, Stop};
use crate::config::EnginesSection;
use crate::supervise::Surroundings;

/// Its name in plans.
pub const NAME: &str = "vllm";
/// The first version that listens on unix sockets (`--uds`).
const SOCKETS_SINCE: (u32, u32) = (0, 10);
/// Memory of an accelerator that is never asked for: other programs and the driver move within it, in bytes.
const HEADROOM: u64 = 1 << 30;
/// What a first launch gets beyond the plan's claim, in percent (NR36).
const BEYOND_CLAIM: u64 = 15;
/// Least share of an accelerator that makes sense, in hundredths.
const LEAST_SHARE: u64 = 5;
/// Most that it may ask for, in hundredths.
const MOST_SHARE: u64 = 95;
/// Longest that it may take to say its version; it loads half of its world for that.
const VERSION_TIME: Duration = Duration::from_secs(60);

/// What it is as a server.
pub const PROFILE: Profile = Profile {
    name: NAME,
    ready: Ready { path: "/health", status: 200, body: None },
    work: &[WorkPath::ChatCompletions, WorkPath::Completions, WorkPath::Embeddings],
    // Its workers are processes of their own and take their time.
    stop: Stop { signal: Signal::SIGTERM, grace: Duration::from_secs(20) },
    environment: &["CUDA_HOME", "HSA_OVERRIDE_GFX_VERSION"],
    tells_digest: false,
};

/// Where it is: as configured, beside this program, or on the path.
#[must_use]
pub fn find(section: &EnginesSection) -> Option<PathBuf> {
    super::find_program(section.vllm.as_deref(), NAME)
}

/// Whether it can serve this, where it is installed: weights in safetensors, on accelerators that the plan reserved.
#[must_use]
pub fn knows(desired: &DesiredService) -> bool {
    matches!(desired.kind, ServiceKind::Llm | ServiceKind::Embeddings)
        && !desired.gpus.is_empty()
        && desired.files.iter().any(|file| file.role == "model" && file.name.ends_with(".safetensors"))
}

/// The engine for a planned service; `gpus` is what the machine has, with what of it is free now.
///
/// # Errors
/// A file is missing or lies outside the model directory, or an accelerator of the plan is not there or full.
pub async fn engine(
    around: &Surroundings,
    models: Option<&Path>,
    desired: &DesiredService,
    program: PathBuf,
    gpus: &[GpuInfo],
) -> Result<Child, AdapterError> {
    let section = &around.config.engines;
    let share = share(&desired.gpus, gpus)
        .map_err(|why| AdapterError::NoEngine(format!("{}: {why}", desired.service_id)))?;
    let knows_sockets = knows_sockets(&said_version(&program).await);
    let mut readable = super::environment_of(&program);
    let mut start = Start::new(around, models, desired, program)?;
    let folder = start.folder();
    start.arguments = arguments(desired, &folder, share, start.slots, section);
    readable.push(folder);
    start.show_cards();
    for (name, value) in [("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")] {
        start.tell(name, value);
    }
    match &section.ray_address {
        Some(ray) => {
            start.keep_network();
            start.tell("RAY_ADDRESS", ray);
        }
        // Its workers meet on the loopback.
        None => start.tell("VLLM_HOST_IP", "127.0.0.1"),
    }
    let endpoint = start.listen(knows_sockets.then_some("--uds"), "VLLM_API_KEY");
    Ok(start.child(Finish {
        profile: PROFILE,
        endpoint,
        queue: 0,
        weight_bytes: desired.files.iter().filter_map(|file| file.size).map(Bytes::get).sum(),
        hashes: true,
        readable,
        // They look for each other on all interfaces, and share memory through files.
        sockets: Sockets::Interfaces,
        memory: None,
        files: None,
    }))
}

async fn said_version(program: &Path) -> String {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).kill_on_drop(true);
    let said = tokio::time::timeout(VERSION_TIME, command.output()).await;
    let said = said.ok().and_then(Result::ok).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).into_owned()
}

/// Whether a version (`0.11.0`, `v0.9.2.post1`) listens on unix sockets.
fn knows_sockets(version: &str) -> bool {
    let line = version.lines().last().unwrap_or_default();
    let mut parts =
        line.trim().trim_start_matches(|c: char| !c.is_ascii_digit()).split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= SOCKETS_SINCE,
        _ => false,
    }
}

/// The share of each accelerator, in hundredths: vLLM counts in shares of the **whole** card, so what is free decides, and
/// the plan's claim where that is less.
fn share(claims: &[GpuShare], gpus: &[GpuInfo]) -> Result<u64, String> {
    let mut least = MOST_SHARE;
    for claim in claims {
        let gpu = gpus
            .iter()
            .find(|gpu| gpu.index == claim.index)
            .ok_or_else(|| format!("the accelerator {} of the plan is not there", claim.index))?;
        let free = gpu.memory_free.get().saturating_sub(HEADROOM);
        let wanted = match claim.memory.get() {
            0 => free,
            claimed => claimed.saturating_add(claimed / 100 * BEYOND_CLAIM).min(free),
        };
        let total = gpu.memory_total.get().max(1);
        let share = u64::try_from(u128::from(wanted) * 100 / u128::from(total)).unwrap_or(0);
        if share < LEAST_SHARE || free < claim.memory.get() {
            return Err(format!(
                "of the accelerator {} only {} of {total} bytes are free, and the plan claims {}",
                claim.index,
                gpu.memory_free.get(),
                claim.memory.get()
            ));
        }
        least = least.min(share);
    }
    Ok(least)
}

fn arguments(
    desired: &DesiredService,
    model: &Path,
    share: u64,
    slots: u16,
    section: &EnginesSection,
) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned(), model.display().to_string()];
    let mut push = |flag: &str, value: &str| arguments.extend([flag.to_owned(), value.to_owned()]);
    push("--served-model-name", &desired.model);
    if let Some(context) = desired.context_length {
        push("--max-model-len", &context.to_string());
    }
    push("--max-num-seqs", &slots.to_string());
    push("--gpu-memory-utilization", &format!("{}.{:02}", share / 100, share % 100));
    push("--tensor-parallel-size", &desired.gpus.len().max(1).to_string());
    if section.ray_address.is_some() {
        push("--distributed-executor-backend", "ray");
        push("--pipeline-parallel-size", &section.ray_machines.max(1).to_string());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn gpu(index: u32, total: u64, free: u64) -> GpuInfo {
        serde_json::from_value(serde_json::json!({
            "index": index, "vendor": "nvidia", "name": "x", "uuid": "u", "driver": "1",
            "memory_total": total * GIB, "memory_free": free * GIB,
        }))
        .unwrap()
    }

    fn claim(index: u32, gib: u64) -> GpuShare {
        GpuShare { index, memory: Bytes(gib * GIB) }
    }

    #[test]
    fn the_share_is_of_the_whole_card_and_of_what_is_free() {
        let gpus = [gpu(0, 80, 79), gpu(1, 80, 41), gpu(2, 24, 3)];
        assert_eq!(share(&[claim(0, 0)], &gpus), Ok(95), "never all of it");
        assert_eq!(share(&[claim(0, 20)], &gpus), Ok(28), "the claim and 15 %");
        assert_eq!(share(&[claim(0, 38), claim(1, 38)], &gpus), Ok(50), "the fullest card decides");
        for (claims, says) in
            [(vec![claim(1, 60)], "only"), (vec![claim(2, 3)], "only"), (vec![claim(7, 1)], "not there")]
        {
            let why = share(&claims, &gpus).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn sockets_are_used_where_the_version_has_them() {
        for (version, has) in
            [("0.11.0", true), ("vLLM v0.10.2", true), ("1.0", true), ("0.9.2.post1", false), ("", false)]
        {
            assert_eq!(knows_sockets(version), has, "{version}");
        }
        assert!(knows_sockets("INFO loading 7.1 things\n0.11.2\n"));
    }

    #[test]
    fn more_machines_than_one_are_ray_s() {
        let desired: DesiredService = serde_json::from_value(serde_json::json!({
            "service_id": "llm:big", "kind": "llm", "model": "big", "engines": [NAME], "context_length": 8192,
            "files": [{"role": "model", "name": "big/model.safetensors"}],
            "gpus": [{"index": 0, "memory": 1}, {"index": 1, "memory": 1}],
        }))
        .unwrap();
        assert!(knows(&desired));
        let mut section = EnginesSection::default();
        let said = arguments(&desired, Path::new("/m/big"), 90, 4, &section).join(" ");
        assert_eq!(
            said,
            "serve /m/big --served-model-name big --max-model-len 8192 --max-num-seqs 4 --gpu-memory-utilization 0.90 \
             --tensor-parallel-size 2"
        );
        section.ray_address = Some("10.0.0.1:6379".into());
        section.ray_machines = 3;
        let said = arguments(&desired, Path::new("/m/big"), 90, 4, &section).join(" ");
        assert!(said.ends_with("--distributed-executor-backend ray --pipeline-parallel-size 3"), "{said}");
    }
}
