//! Why the files of a model are not here.

use std::io;

use cxmpute_wire::{Bytes, Code};

/// Why the files of a model are not here, each with what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Nobody says where the file could be had.
    #[error("{0} is missing; put it there, or set models.dir to where the model files are")]
    Missing(String),
    /// The plan names a file outside the model directory.
    #[error("the plan names the file {0:?}, which is not below the model directory")]
    UnsafePath(String),
    /// The plan is not of the catalogue that this node follows.
    #[error(
        "{0}; nothing of it is started. Ask the operator; only if the catalogue has a new key, remove catalogue.json in data_dir, or set api.catalogue_key"
    )]
    Refused(String),
    /// No source gives it.
    #[error("no source has {file}: {why}; it is tried again by itself, or put the file below models.dir")]
    Unavailable {
        /// Its name.
        file: String,
        /// What each source said.
        why: String,
    },
    /// What there is has another content.
    #[error("{file} is not the file that the catalogue pins ({why}); nothing of it was loaded")]
    Wrong {
        /// Its name.
        file: String,
        /// Whose file, and how it differs.
        why: String,
    },
    /// It is of no format that is loaded.
    #[error("{file} is not loaded: {why}; the catalogue should name a safetensors, GGUF or ONNX file")]
    Format {
        /// Its name.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// It does not fit.
    #[error(
        "the disk of the models has {} MiB free, {} MiB are needed; free some, set models.dir to a larger disk, or raise owner.caps.disk_mib",
        free.0 >> 20, needs.0.div_ceil(1 << 20)
    )]
    DiskLow {
        /// With the margin.
        needs: Bytes,
        /// After everything unused went.
        free: Bytes,
    },
    /// The disk fails.
    #[error("the directory of the models cannot be used: {0}")]
    Disk(#[from] io::Error),
}

impl DeliveryError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::ModelMissing,
            Self::UnsafePath(_) => Code::NotReady,
            Self::Refused(_) => Code::CatalogueRefused,
            Self::Unavailable { .. } | Self::Disk(_) => Code::ModelUnavailable,
            Self::Wrong { .. } => Code::DigestMismatch,
            Self::Format { .. } => Code::ModelFormat,
            Self::DiskLow { .. } => Code::DiskLow,
        }
    }
}
