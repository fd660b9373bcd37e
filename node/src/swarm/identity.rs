//! The node's identity in libp2p's words.

use std::net::IpAddr;

use libp2p::identity::{Keypair, PublicKey};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use wherry_proto::{NodeId, Ports, SecretKey};

/// The multihash code of identity: the key itself, as Ed25519 peer ids hold it.
const IDENTITY: u64 = 0;

/// The key as libp2p signs with it.
pub(super) fn keypair(key: &SecretKey) -> Keypair {
    let mut seed = key.seed();
    #[expect(clippy::expect_used, reason = "every 32 bytes are an Ed25519 seed")]
    Keypair::ed25519_from_bytes(&mut seed).expect("32 bytes")
}

/// The node behind a peer id; `None` if its key is of another kind than wherry's.
pub(super) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    Some(NodeId::from_public_key(key.to_bytes()))
}

/// The peer id of a node; `None` if its bytes are no point on the curve, so that nobody can own it.
pub(super) fn peer_of(node: &NodeId) -> Option<PeerId> {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(node.public_key()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Where a machine is, without a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Host {
    /// At an IP address.
    Ip(IpAddr),
    /// Under a DNS name.
    Name(String),
}

impl Host {
    /// From the front of a multiaddr.
    pub(super) fn of(address: &Multiaddr) -> Option<Self> {
        match address.iter().next()? {
            Protocol::Ip4(ip) => Some(Self::Ip(ip.into())),
            Protocol::Ip6(ip) => Some(Self::Ip(ip.into())),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                Some(Self::Name(name.into_owned()))
            }
            _ => None,
        }
    }

    fn multiaddr(&self) -> Multiaddr {
        match self {
            Self::Ip(ip) => Multiaddr::from(*ip),
            Self::Name(name) => Multiaddr::from(Protocol::Dns(name.as_str().into())),
        }
    }

    /// The multiaddrs of a node that listens there at these ports, without its peer id.
    pub(super) fn addresses(&self, ports: &Ports) -> Vec<Multiaddr> {
        let tcp = (ports.tcp != 0).then(|| self.multiaddr().with(Protocol::Tcp(ports.tcp)));
        let quic = (ports.quic != 0)
            .then(|| self.multiaddr().with(Protocol::Udp(ports.quic)).with(Protocol::QuicV1));
        tcp.into_iter().chain(quic).collect()
    }

    /// As addresses are written with a port.
    pub(super) fn with_port(&self, port: u16) -> String {
        match self {
            Self::Ip(ip) => std::net::SocketAddr::new(*ip, port).to_string(),
            Self::Name(name) => format!("{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_its_peer_id_are_written_alike() {
        let key = SecretKey::from_seed([9; 32]);
        let peer = keypair(&key).public().to_peer_id();
        assert_eq!(node_of(&peer), Some(key.node()));
        assert_eq!(peer_of(&key.node()), Some(peer));
        assert_eq!(peer.to_string(), key.node().to_string());
        assert_eq!(node_of(&PeerId::random()), None);
    }
}
