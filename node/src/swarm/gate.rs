//! How many strangers may stand at the door, all together and from one address.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::identity::Host;

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

/// Keeps the gate for libp2p's inbound connections, of all transports together.
#[derive(Default)]
pub(super) struct Behaviour {
    gate: Arc<Gate>,
    handshakes: HashMap<ConnectionId, Handshake>,
}

/// Why a connection is refused before its handshake.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_HANDSHAKES_PER_ADDRESS} connections from {0} are in their handshakes already")]
struct Crowded(IpAddr);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        // All transports tell the IP address of a connection that comes in.
        if let Some(Host::Ip(address)) = Host::of(remote) {
            let handshake =
                self.gate.enter(address).ok_or_else(|| ConnectionDenied::new(Crowded(address)))?;
            self.handshakes.insert(connection, handshake);
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handshakes.remove(&connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event {
            self.handshakes.remove(&connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
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
    use libp2p::swarm::ListenError;

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

    #[test]
    fn a_libp2p_connection_counts_until_it_is_made_or_has_failed() {
        let mut behaviour = Behaviour::default();
        let here: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let (tcp, quic, elsewhere): (Multiaddr, Multiaddr, Multiaddr) = (
            "/ip4/192.0.2.1/tcp/1".parse().unwrap(),
            "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap(),
            "/ip4/192.0.2.2/tcp/1".parse().unwrap(),
        );
        let id = ConnectionId::new_unchecked;
        let enter = |behaviour: &mut Behaviour, number, remote| {
            behaviour.handle_pending_inbound_connection(id(number), &here, remote).is_ok()
        };
        for number in 0..MAX_HANDSHAKES_PER_ADDRESS {
            let remote = if number % 2 == 0 { &tcp } else { &quic };
            assert!(enter(&mut behaviour, number, remote));
        }
        assert!(!enter(&mut behaviour, 100, &tcp) && !enter(&mut behaviour, 101, &quic));
        assert!(enter(&mut behaviour, 102, &elsewhere));
        let peer = PeerId::random();
        assert!(behaviour.handle_established_inbound_connection(id(0), peer, &here, &tcp).is_ok());
        assert!(enter(&mut behaviour, 103, &quic) && !enter(&mut behaviour, 104, &quic));
        behaviour.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
            local_addr: &here,
            send_back_addr: &quic,
            error: &ListenError::Aborted,
            connection_id: id(1),
            peer_id: None,
        }));
        assert!(enter(&mut behaviour, 105, &tcp) && !enter(&mut behaviour, 106, &tcp));
    }
}
