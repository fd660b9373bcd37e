//! How many strangers may stand at the door: few, and none of them keeps others out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places for connections whose peers are not admitted yet.
///
/// Whoever comes gets one. If all are taken, one handshake is cut to make room: the oldest of those from the address of
/// which there are the most. So one who takes many places loses its own, from however many addresses, as long as others
/// come from others still; and who would keep everybody out has to bring more connections than there are places in
/// the time that one honest handshake takes, for as long as that is to last.
pub(super) struct Gate {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    entered: u64,
    // By number, and so the oldest first.
    handshakes: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl Gate {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection from this address.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Handshake {
        let (from, cut) = (origin(address), CancellationToken::new());
        let mut taken = self.taken();
        if taken.handshakes.len() >= self.places
            && let Some(number) = taken.victim(from)
            && let Some((from, cut)) = taken.handshakes.remove(&number)
        {
            tracing::debug!(%from, "a handshake makes way for a newer one");
            cut.cancel();
        }
        taken.entered += 1;
        let number = taken.entered;
        taken.handshakes.insert(number, (from, cut.clone()));
        Handshake { gate: Arc::clone(self), number, cut }
    }
}

impl Taken {
    /// Who makes way for one that comes from there, and is counted already.
    fn victim(&self, newcomer: IpAddr) -> Option<u64> {
        let mut counts = HashMap::from([(newcomer, 1)]);
        for (from, _) in self.handshakes.values() {
            *counts.entry(*from).or_default() += 1;
        }
        // Of equals, `max_by_key` takes the last one.
        let oldest_last = self.handshakes.iter().rev();
        oldest_last.max_by_key(|(_, (from, _))| counts.get(from)).map(|(number, _)| *number)
    }
}

/// One place.
pub(super) struct Handshake {
    gate: Arc<Gate>,
    number: u64,
    cut: CancellationToken,
}

impl Handshake {
    /// Keeps the place until the work is done; `None` if it had to make way before.
    pub(super) async fn hold<T>(self, work: impl Future<Output = T>) -> Option<T> {
        self.cut.run_until_cancelled(work).await
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.gate.taken().handshakes.remove(&self.number);
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

    fn enter(gate: &Arc<Gate>, address: &str) -> Handshake {
        gate.enter(address.parse().unwrap())
    }

    fn kept(handshakes: &[Handshake]) -> Vec<usize> {
        let kept = handshakes.iter().enumerate().filter(|(_, handshake)| !handshake.cut.is_cancelled());
        kept.map(|(number, _)| number).collect()
    }

    #[test]
    fn many_from_a_few_addresses_make_way_for_one_and_never_the_other_way_round() {
        let gate = Gate::new(8);
        let honest = enter(&gate, "192.0.2.9");
        let strangers: Vec<_> =
            (0..100).map(|number| enter(&gate, &format!("192.0.2.{}", number % 3))).collect();
        assert!(!honest.cut.is_cancelled());
        assert_eq!(kept(&strangers), [93, 94, 95, 96, 97, 98, 99]);
        let late = enter(&gate, "192.0.2.10");
        assert!(!late.cut.is_cancelled() && !honest.cut.is_cancelled());
        assert_eq!(kept(&strangers).len(), 6);
        drop((honest, late));
        assert_eq!(gate.taken().handshakes.len(), 6);
        // There is room now, so nobody makes way.
        let room = [enter(&gate, "192.0.2.1"), enter(&gate, "192.0.2.1")];
        assert_eq!((kept(&strangers).len(), kept(&room).len()), (6, 2));
        drop((strangers, room));
        assert!(gate.taken().handshakes.is_empty());
    }

    #[test]
    fn of_as_many_from_each_address_the_oldest_makes_way() {
        let gate = Gate::new(4);
        let all: Vec<_> = (0..6).map(|number| enter(&gate, &format!("192.0.2.{number}"))).collect();
        assert_eq!(kept(&all), [2, 3, 4, 5]);
        // Whoever has a place already makes way for itself.
        let again = enter(&gate, "192.0.2.4");
        assert_eq!(kept(&all), [2, 3, 5]);
        assert!(!again.cut.is_cancelled());
    }

    #[test]
    fn a_machine_with_many_addresses_counts_once() {
        let gate = Gate::new(8);
        let honest = enter(&gate, "2001:db8:1:3::1");
        let one: Vec<_> = (0..100).map(|number| enter(&gate, &format!("2001:db8:1:2::{number:x}"))).collect();
        assert_eq!((honest.cut.is_cancelled(), kept(&one).len()), (false, 7));
        let same = [enter(&gate, "192.0.2.1"), enter(&gate, "::ffff:192.0.2.1")];
        assert_eq!((kept(&one).len(), kept(&same).len()), (5, 2));
    }

    #[tokio::test]
    async fn a_handshake_that_makes_way_ends_at_once_and_one_that_is_done_frees_its_place() {
        let gate = Gate::new(1);
        let cut = enter(&gate, "192.0.2.1");
        let next = enter(&gate, "192.0.2.2");
        assert_eq!(cut.hold(std::future::pending::<()>()).await, None);
        assert_eq!(gate.taken().handshakes.len(), 1);
        assert_eq!(next.hold(async { 7 }).await, Some(7));
        assert!(gate.taken().handshakes.is_empty());
    }
}
