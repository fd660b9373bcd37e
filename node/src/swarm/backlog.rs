//! What was written to a TCP socket and is still to be sent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::time::sleep;

use super::tcp::{self, Info};

/// How long what is left may take to be sent while something counts as sent: the link must not idle until the next
/// bytes come.
const REST: Duration = Duration::from_millis(5);

/// The shortest time after which it is looked again.
const SOONEST: Duration = Duration::from_millis(1);

/// The longest, where nothing is known of the link.
const LATEST_UNKNOWN: Duration = Duration::from_millis(20);

/// The longest, where its rate is known.
const LATEST: Duration = Duration::from_millis(250);

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

    /// Returns when all is sent but what the link takes at once, or if that cannot be known.
    pub(super) async fn drained(&self) {
        let mut looks = 0;
        while let Ok(Info { unsent, delivery_rate, .. }) = tcp::info(&self.0)
            && let Some(wait) = wait(unsent, delivery_rate, looks)
        {
            looks += 1;
            sleep(wait).await;
        }
    }
}

/// After what time to look again at a socket with so many bytes to be sent, at so many a second, 0 if that is unknown, which
/// was looked at so often; `None` if all is sent but what the link takes at once.
///
/// After half of the time that is left: rates rise, and each look wakes the process. A slow link is looked at some ten times a
/// chunk that way.
fn wait(unsent: u32, rate: u64, looks: u32) -> Option<Duration> {
    if unsent == 0 {
        return None;
    }
    if rate == 0 {
        return Some(SOONEST.saturating_mul(1 << looks.min(16)).min(LATEST_UNKNOWN));
    }
    let time = Duration::from_secs_f64(f64::from(unsent) / rate as f64);
    (time > REST).then(|| ((time - REST) / 2).clamp(SOONEST, LATEST))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_a_peer_does_not_take_waits_and_what_it_takes_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (giver, taker) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut giver, (mut taker, _)) = (giver.unwrap(), taker.unwrap());
        let backlog = Backlog::of(&giver).unwrap();
        backlog.drained().await;
        // Until neither the peer's socket nor this one takes any more.
        let mut written = 0;
        let piece = vec![7; 1 << 20];
        while let Ok(len) = timeout(Duration::from_millis(200), giver.write(&piece)).await {
            written += len.unwrap();
        }
        assert!(timeout(Duration::from_millis(200), backlog.drained()).await.is_err());

        let mut taken = vec![0; written];
        taker.read_exact(&mut taken).await.unwrap();
        timeout(Duration::from_secs(10), backlog.drained()).await.unwrap();
    }

    #[test]
    fn a_slow_socket_is_looked_at_a_few_times_and_an_unknown_one_soon() {
        let (mut unsent, rate) = (32_768.0, 25_000);
        let mut waits = Vec::new();
        while let Some(wait) = wait(unsent as u32, rate, waits.len() as u32) {
            unsent -= wait.as_secs_f64() * rate as f64;
            waits.push(wait);
        }
        assert!((5..=16).contains(&waits.len()), "{waits:?}");
        assert!(unsent >= 0.0, "{unsent} bytes: it would have idled");
        assert_eq!(wait(1, 0, 0), Some(SOONEST));
        assert_eq!(wait(u32::MAX, 0, u32::MAX), Some(LATEST_UNKNOWN));
        assert_eq!(wait(0, 0, 0), None);
        assert_eq!(wait(1_000, 1_000_000, 0), None, "the link takes that at once");
    }
}
