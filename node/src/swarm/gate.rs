//! How many strangers may stand at the door, all together and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections from one address may be in their handshakes: several nodes may share one, but nobody is to
/// keep all others out.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 16;

/// Counts the connections whose peers are not admitted yet, by where they come from.
#[derive(Default)]
pub(super) struct Gate(Mutex<HashMap<IpAddr, usize>>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more from this address; `None` if there are too many of it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Handshake> {
        let from = origin(address);
        let mut counts = self.lock();
        let count = counts.entry(from).or_default();
        if *count >= MAX_HANDSHAKES_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Handshake { gate: Arc::clone(self), from })
    }
}

/// One counted handshake.
pub(super) struct Handshake {
    gate: Arc<Gate>,
    from: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// What counts as one address: of IPv6 the network, in which a single machine has as many addresses as it likes.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_places_of_others() {
        let gate = Arc::new(Gate::default());
        let one = "192.0.2.1".parse().unwrap();
        let mut held: Vec<_> = (0..2 * MAX_HANDSHAKES_PER_ADDRESS).filter_map(|_| gate.enter(one)).collect();
        assert_eq!(held.len(), MAX_HANDSHAKES_PER_ADDRESS);
        assert!(gate.enter("::ffff:192.0.2.1".parse().unwrap()).is_none());
        assert!(gate.enter("192.0.2.2".parse().unwrap()).is_some());
        held.pop();
        assert!(gate.enter(one).is_some());
        drop(held);
        assert!(gate.lock().is_empty());
    }

    #[test]
    fn a_machine_with_many_ipv6_addresses_counts_once() {
        let gate = Arc::new(Gate::default());
        let addresses =
            (0..2 * MAX_HANDSHAKES_PER_ADDRESS).map(|n| format!("2001:db8:1:2::{n:x}").parse().unwrap());
        let held: Vec<_> = addresses.filter_map(|address| gate.enter(address)).collect();
        assert_eq!(held.len(), MAX_HANDSHAKES_PER_ADDRESS);
        assert!(gate.enter("2001:db8:1:3::1".parse().unwrap()).is_some());
    }
}
