//! How much of the machine the network may plan with. Pure: what was measured is lowered, never raised.

use cxmpute_wire::Bytes;
use cxmpute_wire::control::Diagnostics;
use serde::{Deserialize, Serialize};

/// Machines with fewer processors than this keep none back: half of two would be too much.
const RESERVE_FROM_THREADS: u32 = 4;

/// `[owner.caps]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Memory for all services together, in MiB.
    pub memory_mib: Option<u64>,
    /// Memory of each accelerator, in MiB; 0 keeps the accelerators for the owner.
    pub gpu_memory_mib: Option<u64>,
    /// All files in the model directory together, in MiB.
    pub disk_mib: Option<u64>,
    /// Processors that engines leave alone; 1 when absent, none on machines with fewer than four.
    pub reserved_cores: Option<u32>,
    /// Requests, answers and files that are fetched, of one day in UTC, in MiB.
    pub daily_transfer_mib: Option<u64>,
}

const fn mebibytes(count: u64) -> Bytes {
    Bytes(count.saturating_mul(1 << 20))
}

impl Caps {
    /// What the network is told instead of what was measured. `models` is what the model directory holds already.
    pub fn lower(&self, found: &mut Diagnostics, models: Bytes) {
        if let Some(cap) = self.memory_mib.map(mebibytes) {
            found.memory.total = found.memory.total.min(cap);
            found.memory.available = found.memory.available.min(cap);
        }
        if let Some(cap) = self.gpu_memory_mib.map(mebibytes) {
            found.gpus.retain(|_| cap > Bytes(0));
            for gpu in &mut found.gpus {
                gpu.memory_total = gpu.memory_total.min(cap);
                gpu.memory_free = gpu.memory_free.min(cap);
            }
        }
        found.disk.free = self.disk_free(found.disk.free, models);
    }

    /// What models may still take of the disk.
    #[must_use]
    pub fn disk_free(&self, free: Bytes, models: Bytes) -> Bytes {
        self.disk_mib.map_or(free, |cap| free.min(mebibytes(cap).saturating_sub(models)))
    }

    /// Processors that engines may use, of `threads`; at least one.
    #[must_use]
    pub fn processors(&self, threads: u32) -> u32 {
        let reserved = self.reserved_cores.unwrap_or(u32::from(threads >= RESERVE_FROM_THREADS));
        threads.saturating_sub(reserved).max(1)
    }

    /// Whether a day's transfers are used up.
    #[must_use]
    pub fn is_used_up(&self, transferred: Bytes) -> bool {
        self.transfer_left(transferred) == Some(Bytes(0))
    }

    /// What is left of a day's transfers; `None` without a cap.
    #[must_use]
    pub fn transfer_left(&self, transferred: Bytes) -> Option<Bytes> {
        self.daily_transfer_mib.map(|cap| mebibytes(cap).saturating_sub(transferred))
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::control::{DiskInfo, GpuInfo, MemoryInfo};

    use super::*;

    fn machine() -> Diagnostics {
        let gpu = |index| GpuInfo {
            index,
            memory_total: mebibytes(8000),
            memory_free: mebibytes(500),
            ..GpuInfo::default()
        };
        Diagnostics {
            memory: MemoryInfo { total: mebibytes(16_000), available: mebibytes(3000) },
            disk: DiskInfo { free: mebibytes(90_000), ..DiskInfo::default() },
            gpus: vec![gpu(0), gpu(1)],
            ..Diagnostics::default()
        }
    }

    #[test]
    fn what_was_measured_is_lowered_and_never_raised() {
        let mut found = machine();
        Caps::default().lower(&mut found, mebibytes(5));
        assert_eq!(found, machine());
        let caps = Caps {
            memory_mib: Some(4000),
            gpu_memory_mib: Some(6000),
            disk_mib: Some(50_000),
            ..Caps::default()
        };
        caps.lower(&mut found, mebibytes(20_000));
        assert_eq!(found.memory, MemoryInfo { total: mebibytes(4000), available: mebibytes(3000) });
        assert_eq!(found.gpus[1].memory_total, mebibytes(6000));
        assert_eq!(found.gpus[1].memory_free, mebibytes(500));
        assert_eq!(found.disk.free, mebibytes(30_000), "what models take already counts");
        assert_eq!(caps.disk_free(mebibytes(7), mebibytes(60_000)), Bytes(0));
        let huge = Caps { memory_mib: Some(u64::MAX), disk_mib: Some(u64::MAX), ..Caps::default() };
        let before = found.clone();
        huge.lower(&mut found, Bytes(0));
        assert_eq!(found, before);
        Caps { gpu_memory_mib: Some(0), ..Caps::default() }.lower(&mut found, Bytes(0));
        assert!(found.gpus.is_empty());
    }

    #[test]
    fn engines_leave_a_processor_to_the_owner_where_there_are_enough() {
        let of = |reserved_cores| Caps { reserved_cores, ..Caps::default() };
        let left = |caps: Caps| [1, 2, 3, 4, 16].map(|threads| caps.processors(threads));
        assert_eq!(left(of(None)), [1, 2, 3, 3, 15]);
        assert_eq!(left(of(Some(0))), [1, 2, 3, 4, 16]);
        assert_eq!(left(of(Some(3))), [1, 1, 1, 1, 13]);
    }

    #[test]
    fn a_day_is_used_up_at_its_cap() {
        let caps = Caps { daily_transfer_mib: Some(2), ..Caps::default() };
        assert!(!caps.is_used_up(Bytes((2 << 20) - 1)) && caps.is_used_up(Bytes(2 << 20)));
        assert_eq!(caps.transfer_left(Bytes(2 << 19)), Some(Bytes(2 << 19)));
        assert!(!Caps::default().is_used_up(Bytes(u64::MAX)));
    }
}
