//! Sound and pictures of clients: taken apart here, by libraries in safe Rust (or by ffmpeg in a cage, where these do not
//! know a codec), bounded in bytes, length and pixels, and
//! handed to nodes in one plain form each. Sound of nodes is checked here and packed as the client asked.

mod desk;
mod ffmpeg;
mod frame;
mod pack;
mod packing;
mod picture;
mod sound;
mod unpack;
mod view;

pub use desk::{Desk, NoPicture};
pub use ffmpeg::Ffmpeg;
pub use frame::{Frame, FrameError, content_type};
pub use pack::{PackError, Packer};
pub use packing::Packing;
pub use picture::{Picture, PictureError};
pub use sound::{SPEECH_RATE, Sound, SoundError, resample};
pub use view::View;

/// A part that is missing on this machine is a visible skip.
#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a skip is visible")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
