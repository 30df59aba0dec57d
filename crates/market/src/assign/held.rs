//! Which files of models a machine holds already: what is on its disk costs no download and takes no room again.

use std::collections::{HashMap, HashSet};

use cxmpute_wire::Bytes;

use super::Need;
use crate::catalogue::ModelFile;

/// A file of a model, as the catalogue pins it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedFile {
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Path below a models directory.
    pub name: String,
    /// Size.
    pub size: Bytes,
}

impl From<&ModelFile> for WantedFile {
    fn from(file: &ModelFile) -> Self {
        Self { sha256: file.sha256.clone(), name: file.name.clone(), size: file.size }
    }
}

/// A file that a machine says it holds. Its node compares the sum before it loads anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// SHA-256, where somebody took it.
    pub sha256: Option<String>,
    /// Path below its models directory, where it lies there under a name.
    pub name: Option<String>,
    /// Size.
    pub size: Bytes,
}

/// A file of a need: which need, and which of its files.
type Place = (usize, usize);

/// The files of all needs, to be found by what machines hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    by_sum: HashMap<String, Vec<(Place, u64)>>,
    by_name: HashMap<String, Vec<(Place, u64)>>,
    totals: HashMap<usize, u64>,
}

impl Files {
    pub fn new(needs: &[Need]) -> Self {
        let mut files = Self::default();
        for (n, need) in needs.iter().enumerate() {
            for (at, file) in need.files.iter().enumerate() {
                let place = ((n, at), file.size.0);
                files.by_sum.entry(file.sha256.clone()).or_default().push(place);
                files.by_name.entry(file.name.clone()).or_default().push(place);
                *files.totals.entry(n).or_default() += file.size.0;
            }
        }
        files
    }

    /// The needs of which a machine holds something: bytes that are here, and whether that is all of it.
    pub fn of(&self, held: &[Held]) -> Vec<(usize, u64, bool)> {
        let mut seen: HashSet<Place> = HashSet::new();
        let mut here: HashMap<usize, u64> = HashMap::new();
        for file in held {
            let sum = file.sha256.as_ref().and_then(|sum| self.by_sum.get(sum));
            let name = file.name.as_ref().and_then(|name| self.by_name.get(name));
            for (place, size) in sum.into_iter().chain(name).flatten() {
                if *size == file.size.0 && seen.insert(*place) {
                    *here.entry(place.0).or_default() += size;
                }
            }
        }
        here.into_iter().map(|(n, bytes)| (n, bytes, self.totals.get(&n) == Some(&bytes))).collect()
    }
}
