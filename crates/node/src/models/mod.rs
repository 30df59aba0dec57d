//! Model delivery (NR31 to NR35).
pub mod digest;
pub mod format;
pub mod journal;
pub mod partial;
pub mod room;
pub mod shelf;
