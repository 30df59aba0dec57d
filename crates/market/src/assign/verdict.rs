//! Why a service was chosen for a provision, or not: one sentence each.

use std::fmt;

use cxmpute_wire::{Bytes, MicroCredits, ServiceId};

use super::{Demand, MOST_SERVICES, WINDOW_MINUTES};
use crate::catalogue::Engine;

/// What a machine has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Memory of accelerators.
    Vram,
    /// Memory of the machine.
    Memory,
    /// Disk of the models.
    Disk,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Chosen: it runs already, and what runs stays.
    Stays {
        /// For so many minutes.
        minutes: u64,
        /// Other provisions that serve it.
        others: u64,
    },
    /// Chosen: it was worth most among what fits.
    Added {
        /// How much it was worth, in millionths of a wanted provision.
        value: u64,
        /// Other provisions that serve it.
        others: u64,
        /// How many the catalogue wants.
        target: u32,
        /// What was asked for.
        demand: Demand,
        /// Its files are on the disk already.
        stored: bool,
    },
    /// Chosen: it is worth much more than what ran in its place.
    Replaces {
        /// What ends for it.
        out: Vec<ServiceId>,
        /// How much it is worth.
        value: u64,
        /// How much what ends was worth.
        lost: u64,
    },
    /// Not chosen: the catalogue wants none.
    NotOffered,
    /// Not chosen: the owner does not allow it.
    OwnerDenies,
    /// Not chosen: the owner allows others only.
    OwnerAllowsOthers,
    /// Not chosen: it costs less than the owner wants to be asked for.
    BelowLeastPrice {
        /// The owner's.
        least: MicroCredits,
        /// What it costs.
        price: MicroCredits,
    },
    /// Not chosen: no engine that can run it is there.
    NoEngine {
        /// Any of these would do.
        engines: Vec<Engine>,
    },
    /// Not chosen: an engine is there, but not the model, and nobody pins its files.
    NotHeld {
        /// The engine.
        engine: Engine,
    },
    /// Not chosen: the machine has no accelerator.
    NoAccelerator {
        /// Memory of one that it needs.
        needs: Bytes,
    },
    /// Not chosen: it would not fit if nothing else ran.
    TooLarge {
        /// What is too small.
        kind: Kind,
        /// How much it needs.
        needs: Bytes,
        /// How much there is.
        has: Bytes,
        /// It needs more than the catalogue says: it ran out of memory there.
        learned: bool,
    },
    /// Not chosen: what is worth more took the room.
    NoRoom {
        /// What is missing.
        kind: Kind,
        /// How much it needs.
        needs: Bytes,
        /// How much is left.
        left: Bytes,
        /// How much it was worth.
        value: u64,
    },
    /// Not chosen: the provision runs as many services as one may.
    Full,
    /// Not chosen yet: it is worth more than what runs, which has not run for long enough.
    Waits {
        /// What it waits for.
        instead_of: Vec<ServiceId>,
        /// For so many minutes still.
        minutes: u64,
    },
    /// Not chosen any more: something worth much more took its place.
    Replaced,
}

impl Verdict {
    /// Whether the service is in the plan.
    #[must_use]
    pub const fn is_chosen(&self) -> bool {
        matches!(self, Self::Stays { .. } | Self::Added { .. } | Self::Replaces { .. })
    }

    /// A short name for programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stays { .. } => "stays",
            Self::Added { .. } => "added",
            Self::Replaces { .. } => "replaces",
            Self::NotOffered => "not_offered",
            Self::OwnerDenies => "owner_denies",
            Self::OwnerAllowsOthers => "owner_allows_others",
            Self::BelowLeastPrice { .. } => "below_least_price",
            Self::NoEngine { .. } => "no_engine",
            Self::NotHeld { .. } => "not_held",
            Self::NoAccelerator { .. } => "no_accelerator",
            Self::TooLarge { .. } => "too_large",
            Self::NoRoom { .. } => "no_room",
            Self::Full => "full",
            Self::Waits { .. } => "waits",
            Self::Replaced => "replaced",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stays { minutes, others } => {
                match minutes {
                    0 => f.write_str("has just begun to run here")?,
                    _ => write!(f, "runs here for {minutes} min")?,
                }
                write!(f, " and stays; {} it", served(*others))
            }
            Self::Added { value, others, target, demand, stored } => {
                let here = if *stored { ", its files are here" } else { "" };
                write!(f, "worth {}{here}: {} it, {target} wanted", Value(*value), served(*others))?;
                asked(f, demand)
            }
            Self::Replaces { out, value, lost } => {
                write!(f, "worth {}, more than twice the {} of {}", Value(*value), Value(*lost), list(out))
            }
            Self::NotOffered => f.write_str("the catalogue wants none (target = 0)"),
            Self::OwnerDenies => f.write_str("the owner's services.deny names it"),
            Self::OwnerAllowsOthers => f.write_str("the owner's services.allow names only others"),
            Self::BelowLeastPrice { least, price } => write!(
                f,
                "costs {} credits per million units, less than the owner's services.least_price of {}",
                price.to_credits(),
                least.to_credits()
            ),
            Self::NoEngine { engines } => {
                let names: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
                write!(f, "no engine here runs it; one of {} would", names.join(", "))
            }
            Self::NotHeld { engine } => {
                write!(f, "{engine} is here but does not hold the model, and nobody pins its files")
            }
            Self::NoAccelerator { needs } => {
                write!(f, "needs an accelerator with {}; there is none", Size(*needs))
            }
            Self::TooLarge { kind, needs, has, learned } => {
                let found = if *learned { ", because with less it ran out of memory here" } else { "" };
                write!(f, "needs {} of {kind}{found}; there are {}", Size(*needs), Size(*has))
            }
            Self::NoRoom { kind, needs, left, value } => write!(
                f,
                "needs {} of {kind}; {} are left beside what is worth at least its {}",
                Size(*needs),
                Size(*left),
                Value(*value)
            ),
            Self::Full => write!(f, "{MOST_SERVICES} services are enough for one provision"),
            Self::Waits { instead_of, minutes } => {
                write!(f, "will replace {} in {minutes} min, when that has had its time", list(instead_of))
            }
            Self::Replaced => f.write_str("gave way to what is worth more than twice as much"),
        }
    }
}

fn served(others: u64) -> String {
    match others {
        0 => "nobody else serves".to_owned(),
        1 => "1 other serves".to_owned(),
        more => format!("{more} others serve"),
    }
}

fn asked(f: &mut fmt::Formatter<'_>, demand: &Demand) -> fmt::Result {
    if demand.is_none() {
        return f.write_str(", nobody asked lately");
    }
    write!(f, "; in {WINDOW_MINUTES} min {} requests", demand.requests)?;
    if demand.queued > 0 {
        write!(f, ", {} waited", demand.queued)?;
    }
    if demand.refused > 0 {
        write!(f, ", {} refused", demand.refused)?;
    }
    Ok(())
}

fn list(services: &[ServiceId]) -> String {
    let names: Vec<&str> = services.iter().map(ServiceId::as_str).collect();
    names.join(" and ")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vram => "accelerator memory",
            Self::Memory => "memory",
            Self::Disk => "disk",
        })
    }
}

/// Wanted provisions with three decimals; values are kept in millionths.
struct Value(u64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

/// Mebibytes, or gibibytes with one decimal.
struct Size(Bytes);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: u64 = 1 << 30;
        match self.0.0 {
            small if small < GIB => write!(f, "{} MiB", small >> 20),
            large => write!(f, "{}.{} GiB", large / GIB, large % GIB * 10 / GIB),
        }
    }
}
