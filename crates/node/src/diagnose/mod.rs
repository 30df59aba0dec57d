//! What this machine is made of, measured: memory is memory, video memory is video memory, the disk is the one that
//! holds the models.

mod cpu;
mod disk;
pub mod gpu;
mod memory;
pub mod net;

use std::path::Path;

use cxmpute_wire::control::{Diagnostics, GpuLoad, NetInfo, OsInfo, ServiceWishes};
use sysinfo::System;

pub use disk::{look as disk, room as disk_room, size_of};

/// Measures. Takes some milliseconds; asks no network.
#[must_use]
pub fn measure(models_dir: &Path) -> Diagnostics {
    let mut system = System::new();
    system.refresh_memory();
    system.refresh_cpu_all();
    Diagnostics {
        os: OsInfo {
            name: System::name().unwrap_or_default(),
            version: System::os_version().unwrap_or_default(),
            kernel: System::kernel_version().unwrap_or_default(),
            architecture: std::env::consts::ARCH.into(),
        },
        cpu: cpu::look(&system),
        memory: memory::look(&system),
        disk: disk(models_dir),
        gpus: gpu::list(),
        net: NetInfo::default(),
        engines: Vec::new(),
        services: ServiceWishes::default(),
        files: Vec::new(),
    }
}

/// Load of the accelerators now.
#[must_use]
pub fn gpu_load() -> Vec<GpuLoad> {
    gpu::load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_memory_and_a_disk() {
        let found = measure(Path::new("/nonexistent/models"));
        assert!(found.cpu.threads > 0 && found.cpu.cores > 0);
        assert!(found.memory.total.0 > 64 << 20 && found.memory.available <= found.memory.total);
        assert!(found.disk.total.0 > 0, "{:?}", found.disk);
        assert!(found.disk.free <= found.disk.total);
    }
}
