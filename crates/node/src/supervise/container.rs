//! One engine container: made, started, watched, ended and removed by a task of its own, so that nothing stays behind
//! however its service ends. What a killed node left is removed at its next start, and before a service starts again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::container::AttachContainerResults;
use bollard::models::ContainerState;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, WaitContainerOptionsBuilder,
};
use cxmpute_runtime::{Clock, Tasks, random};
use cxmpute_wire::{Bytes, Code};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};
use tokio_util::io::StreamReader;

use super::log;
use super::running::Ending;
use crate::engines::docker::body;
use crate::engines::docker::daemon::{self, explain};
use crate::engines::docker::{DockerEngine, DockerError, Labels};

/// Time for the last lines of a container that has ended.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Exit status of a process that the kernel or we killed.
const KILLED: i64 = 137;

/// A running container. Dropping it kills and removes it.
#[derive(Debug)]
pub struct Container {
    pid: u32,
    orders: mpsc::UnboundedSender<Signal>,
    ended: watch::Receiver<Option<Ending>>,
}

/// What the task of a container needs.
struct Keeper {
    docker: Docker,
    id: String,
    image: String,
    door: PathBuf,
    memory: Bytes,
    log: PathBuf,
    clock: Clock,
    since: Duration,
    tasks: Tasks,
}

impl Container {
    /// Makes and starts the container of an engine from the image with this id, after what an earlier one left.
    ///
    /// # Errors
    /// Docker refuses; nothing is left then.
    pub async fn start(
        engine: &DockerEngine,
        image_id: &str,
        log: PathBuf,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, DockerError> {
        let docker = daemon::connect(&engine.daemon).await?;
        let labels = &engine.labels;
        remove_all(&docker, Labels::filters(labels.provision.as_str(), Some(&labels.service))).await?;
        open_door(&engine.door)
            .map_err(|error| DockerError::Refused(format!("{}: {error}", engine.door.display())))?;
        let made = make(&docker, engine, image_id).await;
        let (id, output, pid) = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&engine.door);
                return Err(error);
            }
        };
        let (orders, given) = mpsc::unbounded_channel();
        let (ending, ended) = watch::channel(None);
        let keeper = Keeper {
            docker,
            id,
            image: engine.image.image.clone(),
            door: engine.door.clone(),
            memory: engine.memory,
            log,
            clock: clock.clone(),
            since: clock.mono(),
            tasks: tasks.clone(),
        };
        tasks.spawn("container", async move {
            let end = keeper.keep(output, given).await;
            ending.send_replace(Some(end));
        });
        Ok(Self { pid, orders, ended })
    }

    /// The process id of its first process, on this machine.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended and is removed. May be dropped while it waits and asked again.
    pub async fn ended(&mut self) -> Ending {
        match self.ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_default(),
            Err(_) => Ending::default(),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // A task that has ended needs none.
        let _ = self.orders.send(signal);
    }
}

/// Makes, attaches to and starts a container; gives its id, its output and the id of its first process.
async fn make(
    docker: &Docker,
    engine: &DockerEngine,
    image_id: &str,
) -> Result<(String, AttachContainerResults, u32), DockerError> {
    let told = |error: &bollard::errors::Error| explain(&engine.image.image, error);
    let name = format!("cxmpute-{}", data_encoding::HEXLOWER.encode(&random::bytes::<6>()));
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = body::body(engine, image_id, body::Machine::here());
    let made = docker.create_container(Some(options), body).await.map_err(|error| told(&error))?;
    let begin = async {
        // Before the start, so that nothing it says is lost.
        let attach = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let output = docker.attach_container(&made.id, Some(attach)).await?;
        docker.start_container(&made.id, None::<StartContainerOptions>).await?;
        let seen = docker.inspect_container(&made.id, None::<InspectContainerOptions>).await?;
        let pid = seen.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
        Ok((output, pid.unwrap_or(0)))
    };
    match begin.await {
        Ok((output, pid)) => Ok((made.id, output, pid)),
        Err(error) => {
            remove(docker, &made.id).await;
            Err(told(&error))
        }
    }
}

impl Keeper {
    /// Sees it to its end and takes it away.
    async fn keep(
        self,
        output: AttachContainerResults,
        mut orders: mpsc::UnboundedReceiver<Signal>,
    ) -> Ending {
        let lines = output.output.map_ok(bollard::container::LogOutput::into_bytes);
        let reader = StreamReader::new(lines.map_err(std::io::Error::other));
        let mut logging = std::pin::pin!(log::write(reader, self.log.clone()));
        let mut logged = false;
        let until = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut wait = std::pin::pin!(self.docker.wait_container(&self.id, Some(until)));
        let hard = self.tasks.hard();
        let mut held = true;
        loop {
            tokio::select! {
                // Docker's word on the end is read afterwards, when all of it is known.
                _ = wait.next() => break,
                () = &mut logging, if !logged => logged = true,
                order = orders.recv(), if held => match order {
                    Some(signal) => self.send(signal).await,
                    None => {
                        held = false;
                        self.send(Signal::SIGKILL).await;
                    }
                },
                () = hard.cancelled() => break,
            }
        }
        let state = self.docker.inspect_container(&self.id, None::<InspectContainerOptions>).await;
        if !logged && !hard.is_cancelled() {
            let _ = tokio::time::timeout(LAST_LINES, logging).await;
        }
        remove(&self.docker, &self.id).await;
        let _ = std::fs::remove_dir_all(&self.door);
        let state = state.ok().and_then(|seen| seen.state);
        let end = ending(state.as_ref(), self.memory, self.clock.mono().saturating_sub(self.since));
        tracing::info!(image = %self.image, end = end.text, "container ended");
        end
    }

    async fn send(&self, signal: Signal) {
        let options = KillContainerOptionsBuilder::default().signal(signal.as_str()).build();
        if let Err(error) = self.docker.kill_container(&self.id, Some(options)).await {
            tracing::debug!(%error, %signal, "the container took no signal");
        }
    }
}

/// How a container ended, with the numbers of a memory that was too small.
fn ending(state: Option<&ContainerState>, memory: Bytes, lived: Duration) -> Ending {
    let Some(state) = state else {
        return Ending { code: Code::EngineFailed, text: "Docker does not know any more how".to_owned() };
    };
    let status = state.exit_code.unwrap_or_default();
    if state.oom_killed == Some(true) {
        let text = format!(
            "out of memory: it was killed at its limit of {} MiB ({} bytes) after {} s, exit status {status}",
            memory.0 >> 20,
            memory.0,
            lived.as_secs()
        );
        return Ending { code: Code::OutOfMemory, text };
    }
    let killed = if status == KILLED { ", killed" } else { "" };
    Ending { code: Code::EngineFailed, text: format!("exit status: {status}{killed}") }
}

/// Makes the directory that the container's socket will lie in, and gives it to the container's user alone.
fn open_door(door: &Path) -> std::io::Result<()> {
    crate::place::make_private(door)?;
    let (user, group) = body::user();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(door, Some(user), Some(group))?;
    }
    Ok(())
}

/// Removes what earlier runs of this node left behind. A daemon that is away has nothing that could be removed.
pub async fn tidy(socket: &Path, provision: &str) {
    let removed = async {
        let docker = daemon::connect(socket).await?;
        remove_all(&docker, Labels::filters(provision, None)).await
    };
    match removed.await {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, "containers of an earlier run were removed"),
        Err(error) => tracing::warn!(%error, "containers of an earlier run were not looked for"),
    }
}

/// Removes the containers that bear these labels; says how many there were.
async fn remove_all(
    docker: &Docker,
    filters: std::collections::HashMap<String, Vec<String>>,
) -> Result<usize, DockerError> {
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let found = docker.list_containers(Some(options)).await.map_err(|error| explain("", &error))?;
    let ids: Vec<String> = found.into_iter().filter_map(|container| container.id).collect();
    for id in &ids {
        remove(docker, id).await;
    }
    Ok(ids.len())
}

/// Removes a container, running or not, with the volumes that are only its own.
async fn remove(docker: &Docker, id: &str) {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    if let Err(error) = docker.remove_container(id, Some(options)).await {
        tracing::warn!(%error, container = id, "the container was not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_for_lack_of_memory_is_told_with_its_numbers() {
        let state = |oom_killed: bool, exit_code: i64| ContainerState {
            oom_killed: Some(oom_killed),
            exit_code: Some(exit_code),
            ..ContainerState::default()
        };
        let end = |state: Option<&ContainerState>| ending(state, Bytes(64 << 20), Duration::from_secs(12));
        let oom = end(Some(&state(true, 137)));
        assert_eq!(oom.code, Code::OutOfMemory);
        assert!(
            oom.text.contains("64 MiB") && oom.text.contains("67108864") && oom.text.contains("12 s"),
            "{}",
            oom.text
        );
        let killed = end(Some(&state(false, 137)));
        assert_eq!((killed.code, killed.text.as_str()), (Code::EngineFailed, "exit status: 137, killed"));
        assert_eq!(end(Some(&state(false, 3))).text, "exit status: 3");
        assert_eq!(end(None).code, Code::EngineFailed);
    }
}
