//! What was written to a TCP socket and is still to be sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

/// As much of Linux's `struct tcp_info` as is asked for: up to the end of `tcpi_delivery_rate`.
const TCP_INFO_LEN: usize = 168;

/// Where `tcpi_notsent_bytes` is in it.
const NOT_SENT: usize = 144;

/// Where `tcpi_delivery_rate` is, in bytes a second.
const DELIVERY_RATE: usize = 160;

/// How long what is left may take to be sent while something counts as sent: the link must not idle until the next
/// bytes come.
const REST: Duration = Duration::from_millis(5);

/// The longest and the shortest time after which it is looked again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// A socket's bytes that are not on their way yet. It keeps the socket open.
pub(super) struct Backlog(OwnedFd);

impl Backlog {
    /// That of a TCP socket.
    ///
    /// # Errors
    ///
    /// If there are too many open files.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    /// After what time to look again whether all is sent but what the link takes at once; `None` if it is, or if that
    /// cannot be known.
    pub(super) fn wait(&self) -> Option<Duration> {
        let (unsent, rate) = self.unsent().ok()?;
        if unsent == 0 {
            return None;
        }
        let (least, most) = LOOK_AGAIN;
        let time = if rate == 0 { least } else { Duration::from_secs_f64(f64::from(unsent) / rate as f64) };
        (rate == 0 || time > REST).then(|| time.saturating_sub(REST).clamp(least, most))
    }

    /// How many bytes are not sent yet, and how many a second the peer's kernel confirmed lately, 0 if that is unknown.
    fn unsent(&self) -> io::Result<(u32, u64)> {
        let mut info = [0_u8; TCP_INFO_LEN];
        let mut len = TCP_INFO_LEN as libc::socklen_t;
        // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes, which the buffer has.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if (len as usize) < TCP_INFO_LEN {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let unsent = info[NOT_SENT..NOT_SENT + 4].try_into().map(u32::from_ne_bytes);
        let rate = info[DELIVERY_RATE..].try_into().map(u64::from_ne_bytes);
        unsent.ok().zip(rate.ok()).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn what_a_peer_does_not_take_waits_and_what_it_takes_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (giver, taker) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut giver, (mut taker, _)) = (giver.unwrap(), taker.unwrap());
        let backlog = Backlog::of(&giver).unwrap();
        assert_eq!(backlog.wait(), None);
        // Until neither the peer's socket nor this one takes any more.
        let mut written = 0;
        let piece = vec![7; 1 << 20];
        while let Ok(len) = timeout(Duration::from_millis(200), giver.write(&piece)).await {
            written += len.unwrap();
        }
        let wait = backlog.wait().unwrap();
        assert!((LOOK_AGAIN.0..=LOOK_AGAIN.1).contains(&wait));

        let mut taken = vec![0; written];
        taker.read_exact(&mut taken).await.unwrap();
        let drained = async {
            while let Some(wait) = backlog.wait() {
                sleep(wait).await;
            }
        };
        timeout(Duration::from_secs(10), drained).await.unwrap();
    }
}
