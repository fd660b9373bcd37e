//! A socket to which hardly more is on its way than comes at once, where links are slow and near.
//!
//! TCP finds out how much that is by losing packets. Where eight peers send over one slow link each has a few packets on
//! their way and loses one of some forty, which has to be sent again; each loss makes the receiver acknowledge packets one by one;
//! and words wait behind all that stands in line. So the receiver bounds it, as rLEDBAT (RFC 9840) does in another way: such
//! connections yield to whatever else fills the line. In namespaces 64 nodes whose upload is scarce lost 1 to 2 % of all packets
//! without it and hardly any with it, and half of them were done 1 % sooner.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::exchange::Inflow;
use super::tcp;

/// For how long packets may stand in line: what modest switches hold.
const QUEUE: Duration = Duration::from_millis(25);

/// So much of a connection that comes within [`QUEUE`] is left to the kernel too, in bytes: on quick links that is so many packets
/// that few are lost.
const MUCH: u64 = 64 << 10;

/// A bound that is none; the kernel keeps it within its own.
const BOUNDLESS: usize = 1 << 30;

/// A socket, and how fast what it takes comes.
pub(super) struct Windowed {
    socket: TcpStream,
    inflow: Inflow,
    // At what rate the window was worked out.
    rate: Option<u64>,
    is_bounded: bool,
}

impl Windowed {
    /// A socket whose window is up to the kernel until something is known of its inflow.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, inflow: Inflow::default(), rate: None, is_bounded: false }
    }

    /// What is known of the rate at which it takes, which is for others to say.
    pub(super) fn inflow(&self) -> &Inflow {
        &self.inflow
    }

    /// Fits the window to the rate, if that is another one than before.
    fn fit(&mut self) {
        let Some(rate) = self.inflow.rate().filter(|rate| self.rate != Some(*rate)) else { return };
        self.rate = Some(rate);
        if let Err(error) = self.fit_to(rate) {
            tracing::debug!(%error, "the window of a connection stays as it is");
        }
    }

    fn fit_to(&mut self, rate: u64) -> io::Result<()> {
        let window = match in_line(rate) {
            MUCH.. => None,
            _ => {
                let info = tcp::info(&self.socket)?;
                info.least_round_trip.and_then(|round_trip| window(rate, round_trip, info.packet.into()))
            }
        };
        match window {
            // Also where it is the same again, since the kernel may have forgotten it.
            Some(bytes) => tcp::clamp_window(&self.socket, bytes)?,
            None if self.is_bounded => tcp::clamp_window(&self.socket, BOUNDLESS)?,
            None => {}
        }
        self.is_bounded = window.is_some();
        Ok(())
    }
}

/// How many bytes come within [`QUEUE`] at so many a second.
fn in_line(rate: u64) -> u64 {
    (rate as f64 * QUEUE.as_secs_f64()) as u64
}

/// How many bytes may be on their way on a connection on which so many come a second; `None` if it is to be left to the kernel: one
/// that is quick, and one so far away that it could not become twice as quick with these.
///
/// Pairs of packets, since each pair is acknowledged at once and a single one late: with three on their way there are a tenth more
/// acknowledgements than with two.
fn window(rate: u64, round_trip: Duration, packet: u64) -> Option<usize> {
    let pair = 2 * packet.max(1);
    let window = (in_line(rate) / pair).max(1) * pair;
    let needed = 2.0 * rate as f64 * round_trip.as_secs_f64();
    (window < MUCH && needed <= window as f64).then_some(window as usize)
}

impl AsyncRead for Windowed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.fit();
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Windowed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// What Ethernet has in a packet.
    const PACKET: u64 = 1448;

    #[test]
    fn a_slow_connection_has_on_its_way_what_comes_while_a_short_line_passes() {
        assert_eq!(window(400_000, MS(1), PACKET), Some(6 * PACKET as usize));
        for (rate, round_trip) in [(1, 1_000), (13_000, 100), (100_000, 10)] {
            assert_eq!(
                window(rate, MS(round_trip), PACKET),
                Some(2 * PACKET as usize),
                "{rate} bytes a second"
            );
        }
    }

    #[test]
    fn a_quick_connection_is_left_to_the_kernel_and_so_is_a_far_one_and_one_of_long_packets() {
        assert_eq!(window(4_000_000, MS(1), PACKET), None);
        assert_eq!(window(100_000, MS(100), PACKET), None);
        assert_eq!(window(1, MS(1), 65_483), None);
    }

    #[test]
    fn no_link_that_is_free_otherwise_is_kept_from_being_filled() {
        let round_trips = [1, 3, 10, 30, 100, 600];
        for (round_trip, capacity) in round_trips.into_iter().flat_map(|ms| [(ms, 30_000), (ms, 2_000_000)]) {
            let filled = |bytes: usize| (1_000 * bytes as u64 / round_trip).min(capacity);
            let mut size = Some(2 * PACKET as usize);
            for _ in 0..30 {
                let Some(bytes) = size else { break };
                size = window(filled(bytes), MS(round_trip), PACKET);
            }
            // What the kernel is left with it fills.
            assert!(
                size.is_none_or(|bytes| filled(bytes) == capacity),
                "{round_trip} ms, {capacity}: {size:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_peer_is_told_the_window_and_told_again_when_there_is_none() {
        const PIECE: usize = 1 << 20;
        let address = "127.0.0.1:0".parse().unwrap();
        let (listener, taker) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
        // As on Ethernet.
        for socket in [&listener, &taker] {
            SockRef::from(socket).set_tcp_mss(1460).unwrap();
        }
        // Kernels that make more room while a connection is quick forget the bound then, until the next chunk has come.
        SockRef::from(&taker).set_recv_buffer_size(128 << 10).unwrap();
        listener.bind(address).unwrap();
        let listener = listener.listen(1).unwrap();
        let connect = taker.connect(listener.local_addr().unwrap());
        let (taker, accepted) = futures::future::join(connect, listener.accept()).await;
        let (mut taker, mut giver) = (Windowed::new(taker.unwrap()), accepted.unwrap().0);
        let mut told = Vec::new();
        for rate in [None, Some(1_000), Some(1 << 30)] {
            rate.inspect(|rate| taker.inflow().came(*rate, Duration::from_secs(1)));
            // All that was told before is used up by then.
            let (piece, mut taken) = (vec![1; PIECE], vec![0; PIECE]);
            let (given, read) =
                futures::future::join(giver.write_all(&piece), taker.read_exact(&mut taken)).await;
            given.and(read).unwrap();
            told.push(tcp::send_window(&giver).unwrap());
        }
        assert!(told[1] < 8 << 10 && told[0] > 4 * told[1] && told[2] > 4 * told[1], "{told:?}");
    }
}
