//! System memory; a container's limit counts as all there is.

use cxmpute_wire::Bytes;
use cxmpute_wire::control::MemoryInfo;
use sysinfo::System;

/// The memory of this machine.
pub fn look(system: &System) -> MemoryInfo {
    let limits = system.cgroup_limits().filter(|limits| limits.total_memory > 0);
    let (total, available) = (system.total_memory(), system.available_memory());
    match limits {
        Some(limits) => MemoryInfo {
            total: Bytes(total.min(limits.total_memory)),
            available: Bytes(available.min(limits.free_memory)),
        },
        None => MemoryInfo { total: Bytes(total), available: Bytes(available) },
    }
}
