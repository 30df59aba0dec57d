//! Model delivery (NR31 to NR35): the files of a planned service, on this disk, with the sums that the plan names.
//!
//! Rooms: [`names`] (where a plan may put a file), [`room`] (does it fit), [`journal`] (what is known of a file that is not complete) and [`source`] (who is asked,
//! in which order) are pure. [`partial`] holds a file on its way, [`shelf`] the whole ones, [`hashes`] remembers the sums of
//! the owner's own files, [`mod@format`] looks at what came, [`client`] asks one source, [`gate`] says whether
//! it may be asked now, [`mod@holdings`] tells what is here, [`delivery`] does all of it for one
//! service. [`seals`] says whose catalogue is followed.

pub mod client;
pub mod delivery;
pub mod digest;
pub mod error;
pub mod format;
pub mod gate;
pub mod hashes;
pub mod holdings;
pub mod journal;
pub mod meter;
pub mod names;
mod obtain;
pub mod partial;
pub mod room;
pub mod seals;
pub mod shelf;
pub mod source;

pub use delivery::{Models, Placed};
pub use error::DeliveryError;
pub use gate::{Gate, Wait};
pub use holdings::holdings;
