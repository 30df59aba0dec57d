//! An engine server as a child process: what is started, with what taken away from it, and what is asked of it.

use std::path::PathBuf;

use cxmpute_runtime::Secret;
use cxmpute_runtime::once::Sandbox;

use super::Server;

/// How to start one engine server for one service, and how to talk to it.
#[derive(Clone)]
pub struct Child {
    /// The server that it becomes.
    pub server: Server,
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without a shell between; never a secret, for every user of the machine sees them.
    pub arguments: Vec<String>,
    /// Its variables, beside those of the profile.
    pub environment: Vec<(&'static str, Secret<String>)>,
    /// The socket that it makes; removed once it has ended.
    pub socket: Option<PathBuf>,
    /// The directory that is its own: made before it starts, gone with all that is in it once it has ended.
    pub room: Option<PathBuf>,
    /// What is taken away from it before it starts.
    pub sandbox: Sandbox,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("Child")
            .field("server", &self.server)
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .field("environment", &named)
            .finish_non_exhaustive()
    }
}
