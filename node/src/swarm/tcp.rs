//! What Linux says of a TCP socket, and what it may be told, as far as no library knows of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

/// As much of `struct tcp_info` as is asked for: up to the end of `tcpi_delivery_rate`.
const LEN: usize = 168;

/// Where `tcpi_snd_mss` is in it, in bytes.
const SENDS: usize = 16;

/// Where `tcpi_rcv_mss` is, in bytes.
const TAKES: usize = 20;

/// Where `tcpi_notsent_bytes` is.
const NOT_SENT: usize = 144;

/// Where `tcpi_min_rtt` is, in microseconds.
const LEAST_ROUND_TRIP: usize = 148;

/// Where `tcpi_delivery_rate` is, in bytes a second.
const DELIVERY_RATE: usize = 160;

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    /// How many bytes were written and are not sent yet.
    pub(super) unsent: u32,
    /// How many bytes the longest packet has that goes either way.
    pub(super) packet: u32,
    /// The shortest time that the peer's kernel took lately to confirm something; `None` if that is unknown.
    pub(super) least_round_trip: Option<Duration>,
    /// How many bytes a second the peer's kernel confirmed lately; 0 if that is unknown.
    pub(super) delivery_rate: u64,
}

/// The state of a TCP socket.
///
/// # Errors
///
/// If it is none, or the kernel is older than Linux 4.9.
pub(super) fn info(socket: &impl AsFd) -> io::Result<Info> {
    let info: [u8; LEN] = raw_info(socket)?;
    let packet = word(&info, SENDS).max(word(&info, TAKES));
    let round_trip = Some(word(&info, LEAST_ROUND_TRIP)).filter(|micros| !matches!(*micros, 0 | u32::MAX));
    Ok(Info {
        unsent: word(&info, NOT_SENT),
        packet,
        least_round_trip: round_trip.map(|micros| Duration::from_micros(micros.into())),
        delivery_rate: info[DELIVERY_RATE..].try_into().map_or(0, u64::from_ne_bytes),
    })
}

fn word(info: &[u8], at: usize) -> u32 {
    info[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
}

/// The first bytes of the kernel's `struct tcp_info`.
fn raw_info<const LEN: usize>(socket: &impl AsFd) -> io::Result<[u8; LEN]> {
    let mut info = [0_u8; LEN];
    let mut len = LEN as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes, which the buffer has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match result {
        0 if len as usize >= LEN => Ok(info),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bounds how many bytes may be on their way to a TCP socket. The kernel forgets it when it makes more room for the connection, or
/// learns that packets take more or less of that than it thought. Before Linux 5.15 it narrows no connection that exists.
///
/// # Errors
///
/// If it is none.
pub(super) fn clamp_window(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open, and the kernel reads as many bytes as it is told that there are.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many bytes the peer of a TCP socket lets be on their way to it: `tcpi_snd_wnd`, since Linux 5.4.
#[cfg(test)]
pub(super) fn send_window(socket: &impl AsFd) -> io::Result<u32> {
    const AT: usize = 228;
    raw_info::<{ AT + 4 }>(socket).map(|info| word(&info, AT))
}
