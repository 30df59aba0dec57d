//! The processor.

use cxmpute_wire::control::CpuInfo;
use sysinfo::System;

/// The processor of this machine.
pub fn look(system: &System) -> CpuInfo {
    let threads = u32::try_from(system.cpus().len()).unwrap_or(u32::MAX);
    CpuInfo {
        name: system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
        cores: System::physical_core_count().and_then(|n| u32::try_from(n).ok()).unwrap_or(threads),
        threads,
    }
}
