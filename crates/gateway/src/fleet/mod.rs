//! The nodes that are here: their tunnels, what they say of themselves, what they are given to run, and who may get
//! work. A service of a node is routable when the node's link answers, the node reports the service as ready, and
//! one completion that the gateway asked for came back right through this very tunnel (DESIGN D14).

mod assign;
mod canary;
mod control;
mod lessons;
mod line;
mod memory;
mod node;
mod offer;
mod overload;
mod plan;
mod pool;
mod record;
mod registry;
mod seat;

pub use lessons::floors_since;
pub use line::{Ticket, Turn, Waiting};
pub use node::{Node, ProvisionSession, slug};
pub use offer::offer_of;
pub use plan::DEMAND_HOLDS;
pub use pool::Wanted;
pub use registry::{Fleet, FleetParts, FleetState, RunningRequest};
pub use seat::Seat;
