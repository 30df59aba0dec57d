//! A userspace TCP proxy with faults, for what networks do to connections: silence, slowness, delay, breaks and half-closed
//! ends. Each direction has a fault of its own, which can change while connections run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Pieces that may be under way in one direction. Beyond it the sender is not read any more, as on a full link.
const UNDER_WAY: usize = 256;

/// A direction through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected to the target.
    ToTarget,
    /// From the target to whoever connected.
    ToCaller,
}

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: they pass, and so do ends.
    #[default]
    None,
    /// At most so many bytes a second pass, in small pieces.
    Throttle(u64),
    /// Each byte arrives so much later, in order; later pieces do not wait for earlier ones.
    Delay(Duration),
    /// So many bytes of each connection pass from now on; then the connection is over, both ways.
    CutAfter(u64),
    /// The receiver is told that nothing more comes; what still comes is swallowed. The other direction goes on.
    HalfClose,
}

/// What the proxy does to the connections it carries.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    to_target: Fault,
    to_caller: Fault,
    /// Connections made up to this number copy nothing any more; they stay open.
    silent_up_to: u64,
}

/// A proxy in front of one address. Dropping it ends every connection.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead.
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    made: Arc<AtomicU64>,
    passed: Arc<[AtomicU64; 2]>,
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
        let (weather, look) = watch::channel(Weather::default());
        let made = Arc::new(AtomicU64::new(0));
        let passed = Arc::<[AtomicU64; 2]>::default();
        let (counter, meter) = (Arc::clone(&made), Arc::clone(&passed));
        let accept = tokio::spawn(async move {
            let mut carried = tokio::task::JoinSet::new();
            while let Ok((inbound, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                let (look, meter) = (look.clone(), meter.clone());
                carried.spawn(async move {
                    if let Ok(outbound) = TcpStream::connect(target).await {
                        carry(inbound, outbound, number, look, &meter).await;
                    }
                });
                while carried.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, weather, made, passed, _accept: AbortOnDropHandle::new(accept) })
    }

    /// From now on, for every connection, also those that exist.
    pub fn set(&self, way: Way, fault: Fault) {
        self.weather.send_modify(|weather| match way {
            Way::ToTarget => weather.to_target = fault,
            Way::ToCaller => weather.to_caller = fault,
        });
    }

    /// Every connection that exists now goes silent for ever: nothing arrives, nothing is refused; later ones work.
    pub fn blackhole(&self) {
        let up_to = self.made.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.silent_up_to = up_to);
    }

    /// How many connections were made through it so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// How many bytes arrived in one direction so far.
    #[must_use]
    pub fn passed(&self, way: Way) -> u64 {
        self.passed[way as usize].load(Ordering::SeqCst)
    }
}

/// How one direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The sender closed, and the receiver was told.
    Closed,
    /// The connection is over, both ways.
    Broken,
}

async fn carry(
    inbound: TcpStream,
    outbound: TcpStream,
    number: u64,
    look: watch::Receiver<Weather>,
    passed: &[AtomicU64; 2],
) {
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let (inbound_read, inbound_write) = inbound.into_split();
    let (outbound_read, outbound_write) = outbound.into_split();
    let lane = |way| Lane { number, way, look: look.clone(), passed: &passed[way as usize] };
    let mut up = std::pin::pin!(lane(Way::ToTarget).copy(inbound_read, outbound_write));
    let mut down = std::pin::pin!(lane(Way::ToCaller).copy(outbound_read, inbound_write));
    // One direction may end before the other; a break ends both.
    tokio::select! {
        end = &mut up => if end == End::Closed { down.await; },
        end = &mut down => if end == End::Closed { up.await; },
    }
}

/// One direction of one connection.
struct Lane<'a> {
    number: u64,
    way: Way,
    look: watch::Receiver<Weather>,
    passed: &'a AtomicU64,
}

impl Lane<'_> {
    /// The fault that holds now; none where the connection is silent.
    fn fault(&self) -> Option<Fault> {
        let weather = *self.look.borrow();
        (self.number > weather.silent_up_to).then_some(match self.way {
            Way::ToTarget => weather.to_target,
            Way::ToCaller => weather.to_caller,
        })
    }

    /// Reads and writes at the same time, so that what is under way does not hold up what comes.
    async fn copy(self, mut from: OwnedReadHalf, to: OwnedWriteHalf) -> End {
        let (queue, queued) = mpsc::channel(UNDER_WAY);
        let read = async move {
            let mut buffer = vec![0_u8; 32 * 1024];
            loop {
                match from.read(&mut buffer).await {
                    Ok(0) => return End::Closed,
                    Err(_) => return End::Broken,
                    Ok(count) => {
                        // Nobody writes any more: the rest is swallowed until the sender ends.
                        let _ = queue.send((Instant::now(), buffer[..count].to_vec())).await;
                    }
                }
            }
        };
        let mut read = std::pin::pin!(read);
        let mut write = std::pin::pin!(self.write(to, queued));
        tokio::select! {
            end = &mut read => if end == End::Closed { write.await } else { end },
            end = &mut write => if end == End::Closed { read.await } else { end },
        }
    }

    async fn write(mut self, mut to: OwnedWriteHalf, mut queued: mpsc::Receiver<(Instant, Vec<u8>)>) -> End {
        // Bytes that passed under the fault that holds now.
        let (mut since, mut under) = (self.fault(), 0_u64);
        loop {
            let next = tokio::select! {
                biased;
                changed = self.look.changed() => if changed.is_err() { return End::Broken } else { None },
                next = queued.recv() => match next {
                    Some(piece) => Some(piece),
                    None => {
                        let _ = to.shutdown().await;
                        return End::Closed;
                    }
                },
            };
            let fault = self.fault();
            if fault != since {
                (since, under) = (fault, 0);
            }
            let Some(fault) = fault else {
                // Silent: what comes is swallowed; the end of the socket is still seen, so that nothing leaks.
                while queued.recv().await.is_some() {}
                return End::Broken;
            };
            if fault == Fault::HalfClose {
                let _ = to.shutdown().await;
                return End::Closed;
            }
            let Some((came, bytes)) = next else { continue };
            match self.pass(&mut to, fault, came, &bytes, &mut under).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return End::Broken,
            }
        }
    }

    /// Writes one piece as the fault has it; false when the connection is to be cut.
    async fn pass(
        &self,
        to: &mut OwnedWriteHalf,
        fault: Fault,
        came: Instant,
        bytes: &[u8],
        under: &mut u64,
    ) -> std::io::Result<bool> {
        /// Pieces of a throttled direction in a second.
        const PIECES: u64 = 20;
        let mut piece = bytes.len().max(1);
        match fault {
            Fault::Delay(by) => tokio::time::sleep_until(came + by).await,
            Fault::Throttle(rate) => piece = usize::try_from(rate / PIECES).unwrap_or(piece).max(1),
            Fault::None | Fault::CutAfter(_) | Fault::HalfClose => {}
        }
        let room = match fault {
            Fault::CutAfter(most) => usize::try_from(most.saturating_sub(*under)).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        for part in bytes[..bytes.len().min(room)].chunks(piece) {
            if let Fault::Throttle(rate) = fault {
                let parts = u32::try_from(part.len()).unwrap_or(u32::MAX);
                tokio::time::sleep(Duration::from_secs(1) * parts / u32::try_from(rate.max(1)).unwrap_or(1))
                    .await;
            }
            to.write_all(part).await?;
            *under += part.len() as u64;
            self.passed.fetch_add(part.len() as u64, Ordering::SeqCst);
        }
        Ok(bytes.len() <= room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who sends back what comes, and after the end of that says goodbye.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.write_all(b"bye").await;
                });
            }
        });
        address
    }

    async fn world(way: Way, fault: Fault) -> (Proxy, TcpStream) {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        proxy.set(way, fault);
        (proxy, stream)
    }

    async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        all
    }

    #[tokio::test]
    async fn a_clear_line_passes_bytes_and_ends() {
        let (proxy, mut stream) = world(Way::ToTarget, Fault::None).await;
        let bytes = vec![7; 200_000];
        assert_eq!(exchange(&mut stream, &bytes).await, [&bytes[..], b"bye"].concat());
        assert_eq!((proxy.connections(), proxy.passed(Way::ToTarget)), (1, 200_000));
    }

    #[tokio::test]
    async fn a_delay_is_waited_for_once_and_not_for_each_piece() {
        let (_proxy, mut stream) = world(Way::ToTarget, Fault::Delay(Duration::from_millis(200))).await;
        let start = Instant::now();
        let bytes = vec![7; 200_000];
        assert_eq!(exchange(&mut stream, &bytes).await.len(), 200_003);
        let took = start.elapsed();
        assert!((200..1_000).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn a_throttled_line_takes_its_time() {
        let (_proxy, mut stream) = world(Way::ToCaller, Fault::Throttle(20_000)).await;
        let start = Instant::now();
        assert_eq!(exchange(&mut stream, &[7; 10_000]).await.len(), 10_003);
        let took = start.elapsed();
        assert!((500..5_000).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn a_cut_line_passes_just_so_many_bytes() {
        let (proxy, mut stream) = world(Way::ToCaller, Fault::CutAfter(777)).await;
        assert_eq!(exchange(&mut stream, &[7; 10_000]).await.len(), 777);
        assert_eq!(proxy.passed(Way::ToCaller), 777);
    }

    #[tokio::test]
    async fn a_half_closed_line_ends_one_way_only() {
        let (proxy, mut stream) = world(Way::ToTarget, Fault::None).await;
        stream.write_all(b"before").await.unwrap();
        let mut all = vec![0; 6];
        stream.read_exact(&mut all).await.unwrap();
        proxy.set(Way::ToTarget, Fault::HalfClose);
        let mut end = Vec::new();
        stream.read_to_end(&mut end).await.unwrap();
        assert_eq!((&all[..], &end[..]), (&b"before"[..], &b"bye"[..]));
    }

    #[tokio::test]
    async fn a_silent_line_swallows_and_later_ones_work() {
        let (proxy, mut stream) = world(Way::ToTarget, Fault::None).await;
        // The line goes silent that was made, and it is made when the proxy has taken it.
        while proxy.connections() == 0 {
            tokio::task::yield_now().await;
        }
        proxy.blackhole();
        stream.write_all(b"lost").await.unwrap();
        let mut later = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(exchange(&mut later, b"heard").await, b"heardbye");
        assert_eq!(proxy.passed(Way::ToTarget), 5);
    }
}
