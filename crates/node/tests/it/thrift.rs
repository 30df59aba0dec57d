//! The owner's network: files wait while it is metered, and when the day's transfers are used up.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_node::agent::Deps;
use cxmpute_node::models::Wait;
use cxmpute_node::owner::{Cause, Senses, Sensors};
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_wire::control::{DesiredService, OwnerState, ServiceState};
use parking_lot::Mutex;

use crate::delivery::{model, pinned};
use crate::engines::program;
use crate::gateway::{Gateway, Running, Tunnel, config, service, soon};
use crate::mirror::Mirror;

const MIB: u64 = 1 << 20;

/// A node whose sensors are a script, one model that a mirror has, and an engine that starts and says nothing.
struct World {
    gateway: Gateway,
    mirror: Mirror,
    node: Running,
    tunnel: Tunnel,
    senses: Arc<Mutex<Senses>>,
    clock: Clock,
    content: Vec<u8>,
    _place: tempfile::TempDir,
}

impl World {
    async fn start(size: usize, senses: Senses, cap_mib: Option<u64>) -> Self {
        let mut gateway = Gateway::start().await;
        let mirror = Mirror::start().await;
        let content = model(60, size);
        let sum = mirror.put(&content);
        let place = tempfile::tempdir().unwrap();
        let mut config = config(&gateway, place.path().join("data"));
        config.models.mirrors = vec![mirror.url()];
        config.models.hub = String::new();
        config.models.margin_mb = 1;
        config.models.piece_kb = 64;
        config.discover.enabled = false;
        config.discover.every_s = 1;
        config.engine.program = Some(program(place.path(), "exec sleep 1000"));
        config.owner.caps.daily_transfer_mib = cap_mib;
        let clock = Clock::mock();
        let mut deps = Deps::new(clock.clone(), Tasks::new());
        deps.program = Running::deps().program;
        let senses = Arc::new(Mutex::new(senses));
        deps.sensors = Sensors::Scripted(senses.clone());
        let node = Running::with(config, deps);
        let mut tunnel = gateway.tunnel().await;
        let files = vec![pinned("a.gguf", &sum, content.len())];
        tunnel.publish(vec![DesiredService { files, ..service("llm:a") }]).await;
        Self { gateway, mirror, node, tunnel, senses, clock, content, _place: place }
    }

    /// Reads heartbeats until the files wait for that; gives how many bytes are here.
    async fn until_held(&mut self, wait: Wait) -> u64 {
        soon(async {
            loop {
                let seen = self.tunnel.until("llm:a", ServiceState::Downloading).await;
                if seen.detail.as_deref() == Some(wait.sentence()) {
                    return seen.progress.map_or(0, |progress| progress.bytes.0);
                }
            }
        })
        .await
    }

    async fn until_here(&mut self) {
        soon(async { while self.tunnel.until("llm:a", ServiceState::Loading).await.pid.is_none() {} }).await;
        let blobs = std::fs::read_dir(self.node.config.models_dir().join("blobs")).unwrap().flatten();
        let contents: Vec<Vec<u8>> = blobs.map(|entry| std::fs::read(entry.path()).unwrap()).collect();
        assert!(contents == std::slice::from_ref(&self.content), "the file is not what it was");
    }

    async fn close(self) {
        self.node.stop().await;
        drop(self.tunnel);
        assert!(self.gateway.tasks.stop(Duration::from_secs(20)).await.is_empty());
    }
}

#[tokio::test]
async fn files_wait_while_the_network_is_metered_and_work_does_not() {
    let metered = Senses { metered: true, ..Senses::default() };
    let mut world = World::start(300_000, metered, None).await;
    assert_eq!(world.until_held(Wait::Metered).await, 0);
    assert!(world.mirror.asked().is_empty(), "nobody was asked");
    assert_eq!(world.tunnel.heartbeat().await.owner, OwnerState::Available);
    world.senses.lock().metered = false;
    world.until_here().await;
    // The network is told that it is here now, so that no plan counts on another download.
    let told = || {
        let enrolments = world.gateway.desk.enrolments.lock();
        enrolments.last().is_some_and(|last| last["diagnostics"]["files"][0]["size"] == 300_000)
    };
    soon(async {
        while !told() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    world.close().await;
}

#[tokio::test]
async fn a_download_stops_where_the_day_is_used_up_and_goes_on_the_next() {
    let size = 2 * MIB + MIB / 2;
    let mut world = World::start(usize::try_from(size).unwrap(), Senses::default(), Some(1)).await;
    let mut here = world.until_held(Wait::TransferUsedUp).await;
    // What one read of the socket brings may lie beyond the cap.
    assert!((MIB..MIB + MIB / 2).contains(&here), "{here} bytes came on the first day");
    soon(async { while world.tunnel.heartbeat().await.owner != OwnerState::Paused {} }).await;
    let cause = world.node.view.services.resting().map(|rest| rest.cause);
    assert_eq!(cause, Some(Cause::TransferUsedUp), "files are transfers as requests are");
    let mut days = 1;
    loop {
        world.clock.as_mock().unwrap().advance(Duration::from_secs(24 * 3600));
        days += 1;
        let more = soon(async {
            loop {
                let seen = world.tunnel.heartbeat().await.services.into_iter().next().unwrap();
                let bytes = seen.progress.map_or(0, |progress| progress.bytes.0);
                if seen.detail.as_deref() == Some(Wait::TransferUsedUp.sentence()) && bytes > here {
                    return Some(bytes);
                }
                if seen.pid.is_some() {
                    return None;
                }
            }
        });
        let Some(more) = more.await else { break };
        assert!(more - here < MIB + MIB / 2, "{more} after {here}");
        here = more;
    }
    assert!((2..=3).contains(&days), "{days} days");
    world.until_here().await;
    assert_eq!(world.mirror.asked().len(), days, "once a day, from where it was");
    world.close().await;
}
