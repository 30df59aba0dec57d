//! A userspace TCP proxy with faults: it stops copying (a blackhole: nothing arrives, nothing is refused) or resets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the proxy does to the connections it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Clear,
    /// Connections made up to this number copy nothing any more; they stay open.
    Blackhole {
        up_to: u64,
    },
}

/// A proxy in front of one address. Dropping it ends every connection.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead.
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    made: Arc<AtomicU64>,
    _accept: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    ///
    /// # Errors
    /// No port could be taken.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, look) = watch::channel(Weather::Clear);
        let made = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&made);
        let accept = tokio::spawn(async move {
            let mut carried = tokio::task::JoinSet::new();
            while let Ok((inbound, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                let look = look.clone();
                carried.spawn(async move {
                    if let Ok(outbound) = TcpStream::connect(target).await {
                        carry(inbound, outbound, number, look).await;
                    }
                });
                while carried.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, weather, made, _accept: AbortOnDropHandle::new(accept) })
    }

    /// Every connection that exists now goes silent for ever; later ones work.
    pub fn blackhole(&self) {
        let up_to = self.made.load(Ordering::SeqCst);
        self.weather.send_replace(Weather::Blackhole { up_to });
    }

    /// How many connections were made through it so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }
}

async fn carry(inbound: TcpStream, outbound: TcpStream, number: u64, look: watch::Receiver<Weather>) {
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let (inbound_read, inbound_write) = inbound.into_split();
    let (outbound_read, outbound_write) = outbound.into_split();
    let up = copy(inbound_read, outbound_write, number, look.clone());
    let down = copy(outbound_read, inbound_write, number, look);
    // Either side's end closes both; a silent connection ends neither, until an end of it gives up.
    tokio::select! { () = up => {}, () = down => {} }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    number: u64,
    mut look: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        let silent = |weather: &Weather| matches!(weather, Weather::Blackhole { up_to } if number <= *up_to);
        if silent(&look.borrow()) {
            // Swallow what comes, as a dead network does; the end of the socket is still seen so that nothing leaks.
            while let Ok(count) = from.read(&mut buffer).await {
                if count == 0 {
                    return;
                }
            }
            return;
        }
        let count = tokio::select! {
            read = from.read(&mut buffer) => match read { Ok(0) | Err(_) => return, Ok(count) => count },
            changed = look.changed() => { if changed.is_err() { return } continue }
        };
        if silent(&look.borrow()) {
            continue;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
