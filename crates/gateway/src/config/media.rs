//! `[media]`: sound and pictures of clients.

use std::path::PathBuf;

use cxmpute_egress::judge::Permission;
use serde::{Deserialize, Serialize};

/// The section `[media]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MediaConfig {
    /// The ffmpeg that packs speech as mp3, opus, aac or flac, and decodes recordings in opus; looked for in the usual places
    /// when absent, not used when empty. Without it speech is wav or pcm, and recordings have the other codecs.
    pub ffmpeg: Option<PathBuf>,
    /// Networks (`10.0.0.0/8`) and addresses (`10.1.2.3:8080`) that are not public and from which pictures may be fetched
    /// all the same.
    pub allow: Vec<Permission>,
}
