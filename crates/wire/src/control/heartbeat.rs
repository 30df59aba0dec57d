//! Heartbeats: observed state and load.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Code, Epoch, Generation, ServiceId};

/// One heartbeat; complete by itself, so a lost one is repaired by the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts up within a tunnel.
    pub seq: u64,
    /// Counts up with every start of the program (NR10).
    pub boot: u64,
    /// Epoch of the tunnel.
    pub epoch: Epoch,
    /// The generation whose services `services` describes.
    pub observed_generation: Generation,
    /// State of each service.
    pub services: Vec<ObservedService>,
    /// Requests being worked on.
    pub in_flight: u32,
    /// Requests waiting for a slot.
    pub queued: u32,
    /// Load of the accelerators.
    #[serde(default)]
    pub gpus: Vec<GpuLoad>,
    /// Free bytes on the models' file system.
    #[serde(default)]
    pub disk_free: Bytes,
    /// What the owner lets the node do.
    #[serde(default)]
    pub owner: OwnerState,
    /// Version of the provider program.
    #[serde(default)]
    pub version: String,
}

/// State of one service on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedService {
    /// Which service.
    pub service_id: ServiceId,
    /// How far it is.
    pub state: ServiceState,
    /// Requests it can take at a time.
    #[serde(default)]
    pub slots: u32,
    /// Requests it works on.
    #[serde(default)]
    pub in_flight: u32,
    /// Engine that serves it, such as `builtin`.
    #[serde(default)]
    pub engine: String,
    /// Process id of the engine, where the node started it.
    #[serde(default)]
    pub pid: Option<u32>,
    /// SHA-256 of the model file that is served.
    #[serde(default)]
    pub digest: Option<String>,
    /// Why it is not ready.
    #[serde(default)]
    pub code: Option<Code>,
    /// One sentence for the owner.
    #[serde(default)]
    pub detail: Option<String>,
    /// How far the fetching or checking of its files is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// How far the files of a service are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are here, of all files.
    pub bytes: Bytes,
    /// Bytes of all files.
    pub total: Bytes,
    /// Where they come from now: `local`, or the host that is asked.
    #[serde(default)]
    pub source: String,
    /// Bytes per second of late; 0 while nobody can tell.
    #[serde(default)]
    pub rate: u64,
}

impl Progress {
    /// Seconds until the rest is here at this rate; `None` where that cannot be told.
    #[must_use]
    pub const fn seconds_left(&self) -> Option<u64> {
        self.total.0.saturating_sub(self.bytes.0).checked_div(self.rate)
    }
}

/// For people: bytes, source and rate; the time that is left only where a rate was measured.
impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", readable(self.bytes), readable(self.total))?;
        if !self.source.is_empty() {
            write!(f, " from {}", self.source)?;
        }
        if self.rate > 0 {
            write!(f, ", {}/s", readable(Bytes(self.rate)))?;
        }
        match self.seconds_left() {
            Some(left) if left >= 3600 => write!(f, ", {} h {} min left", left / 3600, left / 60 % 60),
            Some(left) if left >= 60 => write!(f, ", {} min left", left / 60),
            Some(left) => write!(f, ", {left} s left"),
            None => Ok(()),
        }
    }
}

/// A size for people, such as `3.5 GiB`.
#[must_use]
pub fn readable(size: Bytes) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).take_while(|unit| size.0 >> (10 * unit) >= 1024).count();
    if unit == 0 {
        return format!("{} B", size.0);
    }
    let tenths = (u128::from(size.0) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_told_with_the_time_left_where_a_rate_is_known() {
        let mut progress = Progress { bytes: Bytes(3 << 30), total: Bytes(4 << 30), ..Progress::default() };
        assert_eq!(progress.to_string(), "3.0 GiB of 4.0 GiB");
        progress.source = "nas:80".into();
        for (rate, left) in [(64 << 20, "64.0 MiB/s, 16 s left"), (1 << 20, "1.0 MiB/s, 17 min left")] {
            progress.rate = rate;
            assert_eq!(progress.to_string(), format!("3.0 GiB of 4.0 GiB from nas:80, {left}"));
        }
        progress.rate = 100 << 10;
        assert!(progress.to_string().ends_with("100.0 KiB/s, 2 h 54 min left"));
        let sizes = [3, 1023, 1024, 5 << 30, u64::MAX].map(|size| readable(Bytes(size)));
        assert_eq!(sizes, ["3 B", "1023 B", "1.0 KiB", "5.0 GiB", "16777215.9 TiB"]);
    }
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not there.
    Absent,
    /// Waiting for its turn.
    Queued,
    /// Files are being fetched.
    Downloading,
    /// Files are being checked.
    Verifying,
    /// The engine starts.
    Loading,
    /// It takes work.
    Ready,
    /// It fails too often and waits for another plan.
    Degraded,
    /// It is being stopped.
    Stopping,
    /// It cannot run; `code` says why.
    Failed,
}

/// Load of one accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuLoad {
    /// Position.
    pub index: u32,
    /// Free memory.
    pub memory_free: Bytes,
    /// Percent busy.
    pub utilisation: u32,
    /// Degrees Celsius.
    pub temperature: u32,
}

/// What the owner lets the node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// Work is welcome.
    #[default]
    Available,
    /// The owner paused it.
    Paused,
    /// It is leaving.
    Draining,
}
