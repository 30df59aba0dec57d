//! The file system that holds the models.

use std::path::Path;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::DiskInfo;
use sysinfo::Disks;

/// The file system that holds `dir`, or will hold it once it is made.
#[must_use]
pub fn look(dir: &Path) -> DiskInfo {
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
