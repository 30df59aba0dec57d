//! What a container is made of: nothing of the machine but what the plan gave it, and one door. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::{DockerEngine, Labels};

/// Where a container finds the directory of its socket.
const DOOR: &str = "/run/cxmpute";
/// The name of the socket in it.
pub const SOCKET: &str = "e.sock";
/// Where a container finds the model directory.
const MODELS: &str = "/models";
/// Nobody, on every Linux.
pub const NOBODY: u32 = 65_534;
/// Most open files.
const OPEN_FILES: i64 = 65_536;
/// The kernel ends a container before anything else of the machine.
const OOM_SCORE: i64 = 500;
/// Labels of our containers.
const PROVISION_LABEL: &str = "org.cxmpute.provision";
/// The other one.
const SERVICE_LABEL: &str = "org.cxmpute.service";

/// Who a container's processes are: nobody, or the user that we are where we may not give files away.
#[must_use]
pub fn user() -> (u32, u32) {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if user.is_root() { (NOBODY, NOBODY) } else { (user.as_raw(), group.as_raw()) }
}

impl Labels {
    fn map(&self) -> HashMap<String, String> {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        HashMap::from([label(PROVISION_LABEL, self.provision.as_str()), label(SERVICE_LABEL, &self.service)])
    }

    /// The words by which Docker finds the containers of a node, or of one of its services.
    #[must_use]
    pub fn filters(provision: &str, service: Option<&str>) -> HashMap<String, Vec<String>> {
        let mut words = vec![format!("{PROVISION_LABEL}={provision}")];
        words.extend(service.map(|service| format!("{SERVICE_LABEL}={service}")));
        HashMap::from([("label".to_owned(), words)])
    }
}

/// What the machine itself sets limits by.
#[derive(Debug, Clone)]
pub struct Machine {
    /// User and group of a container's processes.
    pub user: (u32, u32),
    /// Processors there are.
    pub processors: usize,
    /// The ones that this program keeps to, where it leaves some to the owner; a container is no child of ours, which
    /// would keep to them by itself.
    pub only: Option<String>,
    /// Open files that a process may have at most here; a container cannot have more.
    pub open_files: u64,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let open_files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        Self {
            user: user(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            only: kept_to(),
            open_files: open_files.map_or(1024, |(_, hard)| hard),
        }
    }
}

/// Our processors, if they are not those of the whole machine.
fn kept_to() -> Option<String> {
    let of = |pid: i32| {
        let set = sched_getaffinity(Pid::from_raw(pid)).ok()?;
        Some((0..CpuSet::count()).filter(|at| set.is_set(*at).unwrap_or(false)).collect::<Vec<_>>())
    };
    let (ours, first) = (of(0)?, of(1)?);
    let list: Vec<String> = ours.iter().map(usize::to_string).collect();
    (ours != first).then(|| list.join(","))
}

/// The container of an engine from the image with this id.
#[must_use]
pub fn body(engine: &DockerEngine, image_id: &str, machine: Machine) -> ContainerCreateBody {
    let Machine { user, processors, only, open_files } = machine;
    let image = &engine.image;
    let mut command = image.command.iter().map(|argument| fill(argument, engine));
    let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let memory = size(engine.memory.0);
    let most = i64::try_from(processors).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    let nano_cpus = image.millicpus.map(|count| (i64::from(count) * 1_000_000).min(most));
    let mut environment = vec!["HOME=/tmp".to_owned(), "TMPDIR=/tmp".to_owned()];
    if engine.gpus.is_empty() {
        // Where the machine's default runtime is the maker's, an image could ask for all accelerators by itself.
        environment.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());
    }
    environment.extend(image.environment.iter().map(|(name, value)| format!("{name}={value}")));
    let mut mounts = vec![bind(engine.door.to_string_lossy().into_owned(), DOOR, false)];
    mounts.extend(
        engine.models.as_ref().map(|models| bind(models.to_string_lossy().into_owned(), MODELS, true)),
    );
    let tmpfs = format!("rw,exec,nosuid,nodev,mode=1777,size={}", image.tmp.0);
    ContainerCreateBody {
        image: Some(image_id.to_owned()),
        user: Some(format!("{}:{}", user.0, user.1)),
        entrypoint: Some(command.by_ref().take(1).collect()),
        cmd: Some(command.collect()),
        env: Some(environment),
        working_dir: Some("/".to_owned()),
        hostname: Some("engine".to_owned()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        network_disabled: Some(true),
        // The node asks on the socket; a program of the image's own choice does not run beside it.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        labels: Some(engine.labels.map()),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            privileged: Some(false),
            publish_all_ports: Some(false),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            ipc_mode: Some("private".to_owned()),
            // Passes signals on and takes in the dead, which an engine as process 1 would not.
            init: Some(true),
            memory: Some(memory),
            // Memory and swap together: no swap.
            memory_swap: Some(memory),
            oom_score_adj: Some(OOM_SCORE),
            pids_limit: Some(i64::from(image.pids)),
            nano_cpus,
            cpuset_cpus: only,
            ulimits: Some(vec![limit("nofile", size(open_files).min(OPEN_FILES)), limit("core", 0)]),
            shm_size: Some(size(image.shared_memory.0)),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmpfs)])),
            mounts: Some(mounts),
            device_requests: (!engine.gpus.is_empty()).then(|| vec![devices(&engine.gpus)]),
            // What it writes goes to the node, which caps it; the daemon keeps nothing.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            auto_remove: Some(false),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// An argument with its placeholders replaced, each once: a value is never read for placeholders again.
fn fill(argument: &str, engine: &DockerEngine) -> String {
    let value = |word: &str| match word {
        "{model}" => Some(engine.server.model.clone()),
        "{model_dir}" => Some(MODELS.to_owned()),
        "{model_file}" => engine.model_file.as_ref().map(|file| format!("{MODELS}/{file}")),
        "{socket}" => Some(format!("{DOOR}/{SOCKET}")),
        "{slots}" => Some(engine.server.slots.to_string()),
        "{context}" => Some(engine.context.unwrap_or(0).to_string()),
        "{gpu_count}" => Some(engine.gpus.len().to_string()),
        _ => None,
    };
    let mut filled = String::new();
    let mut rest = argument;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
        if let Some(value) = value(&rest[..end]) {
            filled.push_str(&value);
            rest = &rest[end..];
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled + rest
}

fn bind(source: String, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        // What is mounted inside it stays outside: it would not be read-only.
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            non_recursive: Some(true),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

fn limit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

fn devices(gpus: &[u32]) -> DeviceRequest {
    DeviceRequest {
        device_ids: Some(gpus.iter().map(u32::to_string).collect()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::{Bytes, ProvisionId};
    use serde_json::{Value, json};

    use super::*;
    use crate::config::NodeConfig;

    fn made(change: impl FnOnce(&mut Value)) -> (DockerEngine, Value) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NodeConfig { data_dir: dir.path().join("data"), ..NodeConfig::default() };
        config.docker.enabled = true;
        config.models.dir = Some(dir.path().to_owned().join("models"));
        std::fs::create_dir_all(dir.path().join("models/a")).unwrap();
        std::fs::write(dir.path().join("models/a/w.bin"), "12345").unwrap();
        let mut service = json!({
            "service_id": "llm:m", "kind": "llm", "model": "{socket}", "engines": ["docker"],
            "memory_claim": 64 << 20, "context_length": 4096, "slots": 3, "gpus": [{"index": 2, "memory": 5}, {"index": 0, "memory": 5}],
            "files": [{"role": "model", "name": "a/w.bin"}],
            "container": {"image": format!("a.b/c@sha256:{}", "0".repeat(64)), "pids": 9, "tmp": 1024, "shared_memory": 2048,
                "command": ["/e", "--uds={socket}", "{model}", "{model_file}", "{\"n\": {slots}, \"c\": {context}}", "{gpu_count}"],
                "millicpus": 99_000, "environment": {"HF_HUB_OFFLINE": "1"}},
        });
        change(&mut service);
        let service = serde_json::from_value(service).unwrap();
        let engine = super::super::engine(&config, None, &ProvisionId::from_tail("x"), &service).unwrap();
        let machine =
            Machine { user: (NOBODY, NOBODY), processors: 2, only: Some("1".into()), open_files: 1 << 30 };
        let body = body(&engine, "sha256:id", machine);
        (engine, serde_json::to_value(body).unwrap())
    }

    #[test]
    fn a_container_gets_nothing_of_the_machine_but_what_the_plan_gave_it() {
        let (engine, body) = made(|_| {});
        assert_eq!(engine.server.weight_bytes, 5);
        assert_eq!(body["Image"], "sha256:id");
        assert_eq!(body["User"], "65534:65534");
        let host = &body["HostConfig"];
        for (key, value) in [
            ("NetworkMode", json!("none")),
            ("Privileged", json!(false)),
            ("ReadonlyRootfs", json!(true)),
            ("CapDrop", json!(["ALL"])),
            ("SecurityOpt", json!(["no-new-privileges:true"])),
            ("Memory", json!(64 << 20)),
            ("MemorySwap", json!(64 << 20)),
            ("PidsLimit", json!(9)),
            ("NanoCpus", json!(2_000_000_000i64)),
            ("CpusetCpus", json!("1")),
            ("ShmSize", json!(2048)),
            ("RestartPolicy", json!({"Name": "no"})),
            ("LogConfig", json!({"Type": "none"})),
        ] {
            assert_eq!(host[key], value, "{key}");
        }
        for absent in [
            "CapAdd",
            "Devices",
            "Binds",
            "PidMode",
            "UTSMode",
            "UsernsMode",
            "VolumesFrom",
            "DeviceRequests",
        ] {
            assert!(host[absent].is_null(), "{absent}");
        }
        let mounts: Vec<(&str, &Value)> = host["Mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| (mount["Target"].as_str().unwrap(), &mount["ReadOnly"]))
            .collect();
        assert_eq!(mounts, [("/run/cxmpute", &json!(false)), ("/models", &json!(true))]);
        assert!(body["Env"].as_array().unwrap().contains(&json!("NVIDIA_VISIBLE_DEVICES=void")), "{body}");
        assert_eq!(body["Healthcheck"]["Test"], json!(["NONE"]));
        assert_eq!(body["Labels"]["org.cxmpute.service"], "llm:m");
    }

    #[test]
    fn the_command_is_filled_once_and_the_images_own_entry_point_is_not_used() {
        let (_, body) = made(|_| {});
        assert_eq!(body["Entrypoint"], json!(["/e"]));
        let filled =
            ["--uds=/run/cxmpute/e.sock", "{socket}", "/models/a/w.bin", "{\"n\": 3, \"c\": 4096}", "0"];
        assert_eq!(body["Cmd"], json!(filled));
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "a thread of its own: the other tests keep their processors"
    )]
    fn what_the_owner_keeps_is_kept_from_containers_too() {
        let changed = std::thread::spawn(|| {
            assert_eq!(Machine::here().only, None);
            let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
            let last = (0..CpuSet::count()).rfind(|at| all.is_set(*at).unwrap()).unwrap();
            let mut one = CpuSet::new();
            one.set(last).unwrap();
            nix::sched::sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            // A machine with one processor has none to leave.
            assert_eq!(Machine::here().only, (last > 0).then(|| last.to_string()));
        });
        changed.join().unwrap();
    }

    #[test]
    fn accelerators_are_named_one_by_one() {
        let (engine, body) = made(|plan| plan["container"]["gpu"] = json!(true));
        let requests = &body["HostConfig"]["DeviceRequests"];
        assert_eq!(requests[0]["DeviceIDs"], json!(["2", "0"]));
        assert_eq!(requests[0]["Capabilities"], json!([["gpu"]]));
        assert!(requests[0]["Count"].is_null() && requests[1].is_null(), "never all of them");
        assert!(!body["Env"].to_string().contains("NVIDIA"), "{body}");
        assert_eq!(fill("{gpu_count}", &engine), "2");
        assert_eq!(engine.memory, Bytes(64 << 20));
    }
}
