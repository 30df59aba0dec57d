//! The owner first: when the machine works for others, how much of it, and when it rests. What the owner says by `pause`
//! and `resume` is remembered over restarts; hours, caps and what is watched stand in the configuration.

mod caps;
pub mod desktop;
pub mod hours;
mod keeper;
mod processors;
mod senses;
mod transfer;
mod watch;

use serde::{Deserialize, Serialize};

pub use caps::Caps;
pub use hours::{Hours, LocalTime};
pub use keeper::keep;
pub use processors::leave as leave_processors;
pub use senses::Sensors;
pub use transfer::Transfer;
pub use watch::{Decision, Senses, Watch};

/// `[owner]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnerSection {
    /// When the machine may work for others, such as `mon-fri 18:00-08:00` and `sat,sun`; always when empty. The time is
    /// the machine's own.
    pub hours: Hours,
    /// Whether engines are stopped in a rest that the owner did not ask for, so that their memory is free.
    pub free_memory: bool,
    /// The machine works only when nobody has typed at one of its terminals or used a graphical session for so many minutes;
    /// not watched when absent.
    pub idle_minutes: Option<u32>,
    /// Whether it rests while it runs on a battery.
    pub rest_on_battery: bool,
    /// Whether it rests while its network is metered.
    pub rest_on_metered: bool,
    /// Whether model files come over a metered network, too.
    pub metered_downloads: bool,
    /// It rests while processor or accelerator are hotter, in degrees Celsius; not watched when absent.
    pub max_celsius: Option<u32>,
    /// Services leave the accelerators when other programs take this much of one, in percent; never when 0.
    pub gpu_busy_percent: u32,
    /// They come back when the accelerators were quiet for so many seconds.
    pub gpu_quiet_s: u64,
    /// How much of the machine the network may plan with.
    pub caps: Caps,
}

impl OwnerSection {
    /// Whether it matters what the network costs.
    #[must_use]
    pub const fn minds_metered(&self) -> bool {
        self.rest_on_metered || !self.metered_downloads
    }
}

impl Default for OwnerSection {
    fn default() -> Self {
        Self {
            hours: Hours::default(),
            free_memory: false,
            idle_minutes: None,
            rest_on_battery: true,
            rest_on_metered: false,
            metered_downloads: false,
            max_celsius: None,
            gpu_busy_percent: 10,
            gpu_quiet_s: 60,
            caps: Caps::default(),
        }
    }
}

/// A pause that the owner asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// No new work; engines stay loaded.
    Work,
    /// No new work, and engines are stopped.
    Memory,
}

/// Why the node takes no work at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The owner said `pause`.
    PausedByOwner,
    /// It is outside the configured hours.
    OutsideHours,
    /// Somebody uses the machine.
    OwnerActive,
    /// It runs on its battery, or is too hot.
    PowerOrHeat,
    /// The day's transfers are used up.
    TransferUsedUp,
    /// The network is metered.
    NetworkMetered,
}

/// A rest: its cause, and whether engines are stopped meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Why.
    pub cause: Cause,
    /// Whether memory is freed.
    pub free_memory: bool,
}
