//! Opening sockets: the only place of this crate that does.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::judge::Judged;

/// Who opens connections.
#[derive(Clone, Debug)]
pub enum Dialler {
    /// The operating system.
    System,
    /// A stage for tests: it notes every address that is asked for and leads public ones to servers of the test.
    Staged(Stage),
}

impl Dialler {
    pub(super) async fn dial(&self, address: Judged) -> io::Result<TcpStream> {
        match self {
            Self::System => TcpStream::connect(address.address()).await,
            Self::Staged(stage) => match stage.lead(address.address()) {
                Some(there) => TcpStream::connect(there).await,
                None => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nothing is staged there")),
            },
        }
    }
}

/// What a test sees of the connections that were asked for. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    notes: Vec<SocketAddr>,
    servers: BTreeMap<IpAddr, SocketAddr>,
}

impl Stage {
    /// Leads connections to `address`, on whatever port, to `server`.
    #[must_use]
    pub fn server(self, address: &str, server: SocketAddr) -> Self {
        if let Ok(address) = address.parse() {
            self.state.lock().servers.insert(address, server);
        }
        self
    }

    /// The addresses that were asked for, in order.
    #[must_use]
    pub fn notes(&self) -> Vec<SocketAddr> {
        self.state.lock().notes.clone()
    }

    fn lead(&self, address: SocketAddr) -> Option<SocketAddr> {
        let mut state = self.state.lock();
        state.notes.push(address);
        state.servers.get(&address.ip()).copied()
    }
}
