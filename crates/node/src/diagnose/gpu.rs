//! NVIDIA accelerators through NVML, which is loaded when it is there; a machine without it has none.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::{GpuInfo, GpuLoad};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use parking_lot::Mutex;

/// Generations that are looked back in the search for the program that started a process.
const GENERATIONS: usize = 32;

/// The library, opened once: opening it takes a second on machines with many cards.
fn library() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    LIBRARY.get_or_init(|| Nvml::init().ok()).as_ref()
}

/// Where one looks for accelerators.
#[derive(Clone, Debug, Default)]
pub enum Cards {
    /// In this machine.
    #[default]
    Machine,
    /// These, in tests.
    Given(Vec<GpuInfo>),
}

impl Cards {
    /// What is there, and how much of it is free now.
    #[must_use]
    pub fn list(&self) -> Vec<GpuInfo> {
        match self {
            Self::Machine => list(),
            Self::Given(cards) => cards.clone(),
        }
    }
}

/// The accelerators of this machine.
pub fn list() -> Vec<GpuInfo> {
    let Some(nvml) = library() else {
        return Vec::new();
    };
    let driver = nvml.sys_driver_version().unwrap_or_default();
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            let memory = device.memory_info().ok()?;
            let capability = device.cuda_compute_capability().ok();
            Some(GpuInfo {
                index,
                vendor: "nvidia".into(),
                name: device.name().unwrap_or_default(),
                uuid: device.uuid().unwrap_or_default(),
                driver: driver.clone(),
                compute_capability: capability.map(|c| format!("{}.{}", c.major, c.minor)),
                memory_total: Bytes(memory.total),
                memory_free: Bytes(memory.free),
            })
        })
        .collect()
}

/// Their load now.
pub fn load() -> Vec<GpuLoad> {
    let Some(nvml) = library() else {
        return Vec::new();
    };
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            Some(GpuLoad {
                index,
                memory_free: Bytes(device.memory_info().ok()?.free),
                utilisation: device.utilization_rates().map(|rates| rates.gpu).unwrap_or(0),
                temperature: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
            })
        })
        .collect()
}

/// How many there are.
#[must_use]
pub fn count() -> u32 {
    library().and_then(|nvml| nvml.device_count().ok()).unwrap_or(0)
}

/// What programs other than ours take of the busiest accelerator, in percent. Drivers that do not tell programs apart say
/// how busy a card is while none of ours works (`working`).
pub fn foreign(ours: &[u32], working: bool) -> u32 {
    let Some(nvml) = library() else {
        return 0;
    };
    let of_card = |index| {
        let device = nvml.device_by_index(index).ok()?;
        match device.process_utilization_stats(newest(index)) {
            Ok(samples) => {
                let seen = samples.iter().map(|sample| sample.timestamp).max();
                note(index, seen);
                let samples = samples.iter().map(|sample| (sample.pid, sample.sm_util));
                busiest(samples, ours, &parent)
            }
            // No program used it since the last look.
            Err(NvmlError::NotFound) => None,
            Err(_) if working => None,
            Err(_) => device.utilization_rates().ok().map(|rates| rates.gpu),
        }
    };
    (0..count()).filter_map(of_card).max().unwrap_or(0)
}

/// The newest sample of each card that was looked at; older ones say nothing new.
static SEEN: Mutex<BTreeMap<u32, u64>> = Mutex::new(BTreeMap::new());

fn newest(index: u32) -> Option<u64> {
    SEEN.lock().get(&index).copied()
}

fn note(index: u32, seen: Option<u64>) {
    if let Some(seen) = seen {
        SEEN.lock().insert(index, seen);
    }
}

/// What the busiest process takes that is not ours. One that is gone, or that the driver knows by a number of another
/// machine's, takes nothing.
fn busiest(
    samples: impl Iterator<Item = (u32, u32)>,
    ours: &[u32],
    parent: &impl Fn(u32) -> Option<u32>,
) -> Option<u32> {
    let foreign = samples.filter(|(pid, _)| parent(*pid).is_some() && !descends(*pid, ours, parent));
    foreign.map(|(_, percent)| percent.min(100)).max()
}

/// Whether a process is one of ours or was started by one of them.
fn descends(pid: u32, ours: &[u32], parent: &impl Fn(u32) -> Option<u32>) -> bool {
    let line = std::iter::successors(Some(pid), |pid| parent(*pid).filter(|parent| *parent > 1));
    line.take(GENERATIONS).any(|pid| ours.contains(&pid))
}

/// The parent of a process: the second word behind the name, which stands in brackets and may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_engines_start_is_ours() {
        let parents = |pid| match pid {
            9 => Some(8),
            8 => Some(5),
            7 => Some(1),
            // A table that was read while it changed.
            6 => Some(6),
            _ => None,
        };
        let ours = |pid| descends(pid, &[5, 4], &parents);
        assert_eq!([9, 8, 5, 4, 7, 6, 3].map(ours), [true, true, true, true, false, false, false]);
        let own = std::process::id();
        assert!(parent(own).is_some_and(|parent| parent > 0) && parent(u32::MAX).is_none());
    }

    #[test]
    fn processes_that_are_gone_use_nothing() {
        let parents = |pid| match pid {
            9 => Some(5),
            7 | 5 => Some(1),
            _ => None,
        };
        let of = |samples: &[(u32, u32)]| busiest(samples.iter().copied(), &[5], &parents);
        assert_eq!(of(&[(9, 90), (5, 80), (3, 70)]), None);
        assert_eq!(of(&[(9, 90), (7, 300), (7, 20)]), Some(100));
    }
}
