//! NVIDIA accelerators through NVML, which is loaded when it is there; a machine without it has none.

use std::sync::OnceLock;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::{GpuInfo, GpuLoad};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

/// The library, opened once: opening it takes a second on machines with many cards.
fn library() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    LIBRARY.get_or_init(|| Nvml::init().ok()).as_ref()
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
