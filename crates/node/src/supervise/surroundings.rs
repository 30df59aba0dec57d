//! What all services of a node share.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use cxmpute_runtime::confine::Confiner;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_wire::ProvisionId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::diagnose::gpu::Cards;
use crate::engines::discover::Finds;
use crate::engines::fake::Fake;
use crate::models::Models;

/// What all services of a node share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The owner's settings.
    pub config: Arc<NodeConfig>,
    /// The time.
    pub clock: Clock,
    /// Where tasks run.
    pub tasks: Tasks,
    /// Moves with every change of a service.
    pub changes: Arc<watch::Sender<u64>>,
    /// Images that the last plan names.
    pub images: Arc<Mutex<BTreeSet<String>>>,
    /// This node, for what it leaves with others.
    pub provision: ProvisionId,
    /// The servers of the owner that were found.
    pub finds: Finds,
    /// The accelerators.
    pub cards: Cards,
    /// `cxmpute-provider`, which is an engine, too.
    pub program: PathBuf,
    /// What confines engines.
    pub confiner: Option<Confiner>,
    /// Brings the files of models.
    pub models: Models,
    /// Takes the place of all engines, in tests.
    pub fake: Option<Fake>,
}
