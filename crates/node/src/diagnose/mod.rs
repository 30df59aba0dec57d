//! What this machine is made of, measured: memory is memory, video memory is video memory, the disk is the one that
//! holds the models.

mod gpu;

use std::path::Path;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::{CpuInfo, Diagnostics, DiskInfo, GpuLoad, MemoryInfo, NetInfo, OsInfo};
use sysinfo::{Disks, System};

/// Measures. Takes some milliseconds; asks no network.
#[must_use]
pub fn measure(models_dir: &Path) -> Diagnostics {
    let mut system = System::new();
    system.refresh_memory();
    system.refresh_cpu_all();
    let threads = u32::try_from(system.cpus().len()).unwrap_or(u32::MAX);
    Diagnostics {
        os: OsInfo {
            name: System::name().unwrap_or_default(),
            version: System::os_version().unwrap_or_default(),
            kernel: System::kernel_version().unwrap_or_default(),
            architecture: std::env::consts::ARCH.into(),
        },
        cpu: CpuInfo {
            name: system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
            cores: System::physical_core_count().and_then(|n| u32::try_from(n).ok()).unwrap_or(threads),
            threads,
        },
        memory: MemoryInfo {
            total: Bytes(system.total_memory()),
            available: Bytes(system.available_memory()),
        },
        disk: disk(models_dir),
        gpus: gpu::list(),
        net: NetInfo::default(),
    }
}

/// Load of the accelerators now.
#[must_use]
pub fn gpu_load() -> Vec<GpuLoad> {
    gpu::load()
}

/// The file system that holds `dir`, or will hold it once it is made.
#[must_use]
pub fn disk(dir: &Path) -> DiskInfo {
    let mut existing = dir;
    let real = loop {
        if let Ok(real) = existing.canonicalize() {
            break real;
        }
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => break Path::new("/").to_owned(),
        }
    };
    let disks = Disks::new_with_refreshed_list();
    let holder = disks
        .iter()
        .filter(|disk| real.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().as_os_str().len());
    holder.map_or_else(DiskInfo::default, |disk| DiskInfo {
        mount: disk.mount_point().display().to_string(),
        total: Bytes(disk.total_space()),
        free: Bytes(disk.available_space()),
    })
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
