//! What is left of a machine while a plan fills it.

use cxmpute_wire::Bytes;

use super::{DISK_RESERVE, MEMORY_RESERVE, MOST_SERVICES, Need, Offer, VRAM_RESERVE, total};

/// A part of one accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuClaim {
    /// Its position on the machine.
    pub index: u32,
    /// How much of it.
    pub memory: Bytes,
}

/// What a service takes of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// Parts of accelerators; several where one is too small.
    pub gpus: Vec<GpuClaim>,
    /// Memory of the machine.
    pub memory: Bytes,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Accelerator { needs: Bytes },
    Vram { needs: Bytes, left: Bytes },
    Memory { needs: Bytes, left: Bytes },
    Disk { needs: Bytes, left: Bytes },
    Places,
}

impl Lack {
    /// Whether the end of a service brings some of it.
    pub fn is_eased_by(self, claim: &Claim, disk: u64) -> bool {
        match self {
            Self::Accelerator { .. } => false,
            Self::Vram { .. } => !claim.gpus.is_empty(),
            Self::Memory { .. } => claim.memory.0 > 0,
            Self::Disk { .. } => disk > 0,
            Self::Places => true,
        }
    }
}

/// What is left.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Free memory of each accelerator.
    gpus: Vec<GpuClaim>,
    /// Memory of all accelerators when nothing runs.
    vram: u64,
    memory: u64,
    disk: u64,
    places: usize,
}

impl Room {
    /// An empty machine.
    pub fn of(offer: &Offer) -> Self {
        let usable = |memory: Bytes| memory.saturating_sub(VRAM_RESERVE);
        let gpus: Vec<GpuClaim> =
            offer.gpus.iter().map(|gpu| GpuClaim { index: gpu.index, memory: usable(gpu.memory) }).collect();
        Self {
            vram: total(gpus.iter().map(|gpu| gpu.memory)),
            gpus,
            memory: offer.memory.saturating_sub(MEMORY_RESERVE).0,
            disk: offer.disk_free.saturating_sub(DISK_RESERVE).0,
            places: MOST_SERVICES,
        }
    }

    /// Whether the accelerators of the machine, empty, hold a model. An engine that finds an accelerator uses it, so such a
    /// model is never put beside them.
    pub fn accelerates(&self, need: &Need) -> bool {
        need.vram.0 > 0 && need.vram.0 <= self.vram
    }

    /// What a service would take, if it fits; `disk` is what it adds to the disk.
    pub fn claim(&self, need: &Need, disk: u64) -> Result<Claim, Lack> {
        if self.places == 0 {
            return Err(Lack::Places);
        }
        if disk > self.disk {
            return Err(Lack::Disk { needs: Bytes(disk), left: Bytes(self.disk) });
        }
        if self.accelerates(need) {
            if need.memory.0 > self.memory {
                return Err(Lack::Memory { needs: need.memory, left: Bytes(self.memory) });
            }
            let gpus = self.gpu_claim(need.vram.0)?;
            return Ok(Claim { gpus, memory: need.memory });
        }
        match need.cpu_memory {
            Some(memory) if memory.0 <= self.memory => Ok(Claim { gpus: Vec::new(), memory }),
            Some(memory) => Err(Lack::Memory { needs: memory, left: Bytes(self.memory) }),
            None if self.vram == 0 => Err(Lack::Accelerator { needs: need.vram }),
            None => Err(Lack::Vram { needs: need.vram, left: Bytes(self.vram) }),
        }
    }

    /// The smallest accelerator that is large enough, else the fewest together.
    fn gpu_claim(&self, vram: u64) -> Result<Vec<GpuClaim>, Lack> {
        let one =
            self.gpus.iter().filter(|gpu| gpu.memory.0 >= vram).min_by_key(|gpu| (gpu.memory, gpu.index));
        if let Some(gpu) = one {
            return Ok(vec![GpuClaim { index: gpu.index, memory: Bytes(vram) }]);
        }
        let left = total(self.gpus.iter().map(|gpu| gpu.memory));
        if left < vram {
            return Err(Lack::Vram { needs: Bytes(vram), left: Bytes(left) });
        }
        let mut gpus: Vec<&GpuClaim> = self.gpus.iter().collect();
        gpus.sort_by_key(|gpu| (std::cmp::Reverse(gpu.memory), gpu.index));
        let mut rest = vram;
        let mut parts = Vec::new();
        for gpu in gpus {
            let part = rest.min(gpu.memory.0);
            if part > 0 {
                parts.push(GpuClaim { index: gpu.index, memory: Bytes(part) });
                rest -= part;
            }
        }
        parts.sort_by_key(|part| part.index);
        Ok(parts)
    }

    /// The place that a service had, if it still needs as much and the place is still there.
    pub fn same_claim(&self, need: &Need, gpus: &[GpuClaim]) -> Option<Claim> {
        let sum = total(gpus.iter().map(|part| part.memory));
        let there = |part: &GpuClaim| {
            self.gpus.iter().any(|gpu| gpu.index == part.index && gpu.memory >= part.memory)
        };
        let fits = self.places > 0
            && !gpus.is_empty()
            && sum == need.vram.0
            && need.memory.0 <= self.memory
            && gpus.iter().all(there);
        fits.then(|| Claim { gpus: gpus.to_vec(), memory: need.memory })
    }

    /// Takes it. The disk of what runs may be over-full already; it never goes below zero.
    pub fn take(&mut self, claim: &Claim, disk: u64) {
        self.memory = self.memory.saturating_sub(claim.memory.0);
        self.disk = self.disk.saturating_sub(disk);
        self.places = self.places.saturating_sub(1);
        for part in &claim.gpus {
            for gpu in self.gpus.iter_mut().filter(|gpu| gpu.index == part.index) {
                gpu.memory = gpu.memory.saturating_sub(part.memory);
            }
        }
    }

    /// Gives it back; `disk` is what its files would free.
    pub fn give_back(&mut self, claim: &Claim, disk: u64) {
        self.memory = self.memory.saturating_add(claim.memory.0);
        self.disk = self.disk.saturating_add(disk);
        self.places += 1;
        for part in &claim.gpus {
            for gpu in self.gpus.iter_mut().filter(|gpu| gpu.index == part.index) {
                gpu.memory = Bytes(gpu.memory.0.saturating_add(part.memory.0));
            }
        }
    }
}
