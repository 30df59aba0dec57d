//! A fleet of any size for measurements: the same for the same numbers, with machines and models of many sizes.

use std::collections::HashMap;

use cxmpute_wire::{Bytes, MicroCredits, ProvisionId, ServiceId, ServiceKind, UserId};

use super::{Demand, Gpu, Need, NodePlan, Offer, Planned, Running, WantedFile};
use crate::catalogue::{Delivery, Engine};

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What the catalogue would want.
    pub needs: Vec<Need>,
    /// The machines; a third has no accelerator.
    pub offers: Vec<Offer>,
    /// What was asked for; half of the services were.
    pub demand: HashMap<ServiceId, Demand>,
}

impl Sample {
    /// So many machines and models.
    #[must_use]
    pub fn new(provisions: u32, models: u32) -> Self {
        let mut dice = Dice(0x0063_786d_7075_7465);
        let needs: Vec<Need> = (0..models).map(|n| need(n, &mut dice)).collect();
        let offers = (0..provisions).map(|n| offer(n, models, &mut dice)).collect();
        let demand = needs
            .iter()
            .filter_map(|need| {
                let asked = dice.below(2) == 0;
                let demand = Demand {
                    requests: dice.below(10_000),
                    queued: dice.below(500),
                    refused: dice.below(50),
                    units: dice.below(1_000_000),
                };
                asked.then(|| (need.service.clone(), demand))
            })
            .collect();
        Self { needs, offers, demand }
    }

    /// Lets the machines run what was planned for them.
    pub fn run(&mut self, plans: &[NodePlan]) {
        for (offer, plan) in self.offers.iter_mut().zip(plans) {
            let running = |planned: &Planned| Running {
                service: planned.service.clone(),
                since: planned.since,
                gpus: planned.claim.gpus.clone(),
                stored: false,
            };
            offer.running = plan.services.iter().map(running).collect();
        }
    }
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn need(n: u32, dice: &mut Dice) -> Need {
    let name = format!("model-{n}");
    let scale = dice.below(17);
    let disk = Bytes((50 + dice.below(1 << scale)) * MIB);
    let vram = Bytes(if dice.below(8) == 0 { 0 } else { disk.0 / 5 * 6 });
    let small = disk.0 < 4 * GIB;
    Need {
        service: ServiceId::new(ServiceKind::Llm, &name),
        names: vec![name],
        engines: if vram.0 == 0 { vec![Engine::Builtin] } else { vec![Engine::Ollama, Engine::Vllm] },
        delivery: if dice.below(2) == 0 { Delivery::Pinned } else { Delivery::Library },
        vram,
        memory: Bytes(512 * MIB),
        cpu_memory: small.then_some(Bytes(disk.0 + 512 * MIB)),
        disk,
        files: vec![WantedFile { sha256: format!("{n:064x}"), name: format!("{n}.gguf"), size: disk }],
        price: MicroCredits(1),
        target: 8,
    }
}

fn offer(n: u32, models: u32, dice: &mut Dice) -> Offer {
    const SIZES: [u64; 6] = [8, 12, 16, 24, 48, 80];
    let size = SIZES[usize::try_from(dice.below(6)).unwrap_or(0)];
    let count = if dice.below(3) == 0 { 0 } else { 1 + dice.below(2) };
    let gpus = (0..u32::try_from(count).unwrap_or(0)).map(|index| Gpu { index, memory: Bytes(size * GIB) });
    let held = (0..8).map(|_| format!("model-{}", dice.below(u64::from(models.max(1))))).collect();
    Offer {
        provision: ProvisionId::from_tail(&format!("sample{n}")),
        owner: UserId::from_tail(&format!("owner{}", n / 3)),
        region: Some(format!("R{}", dice.below(40))),
        gpus: gpus.collect(),
        memory: Bytes((4 << dice.below(6)) * GIB),
        disk_free: Bytes((20 + dice.below(2_000)) * GIB),
        engines: vec![(Engine::Ollama, held)],
        allow: Vec::new(),
        deny: Vec::new(),
        least_prices: Vec::new(),
        held: Vec::new(),
        floors: Vec::new(),
        running: Vec::new(),
    }
}

/// Numbers that look like chance and are the same every time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}
