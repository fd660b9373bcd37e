//! What runs over libp2p connections once they are admitted.

use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::kad::{self, BucketInserts, Caching, Mode, StoreInserts};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{Multiaddr, PeerId, StreamProtocol, mdns};
use tokio::sync::mpsc;
use wherry_proto::NetworkId;

use super::records::Providers;
use super::regions::KEEPERS;
use super::settings::SwarmError;
use super::streams::{self, Arrived};
use super::transport::MAX_HANDSHAKES;

/// How long a provider record lives on the nodes that keep it: each is a hint, and what the provider answers is the truth.
pub const RECORD_TIME: Duration = Duration::from_secs(2 * 60 * 60);

/// How many connections are held, and how many of them may be such as others made.
pub const MAX_CONNECTIONS: u32 = 512;
const MAX_INBOUND: u32 = 384;

/// How many connections that this node makes may be in their handshakes.
const MAX_DIALS: u32 = 32;

/// How many that others make may. The gate cuts those beyond [`MAX_HANDSHAKES`]; the ones that it has cut are still among
/// these for a moment.
const MAX_PENDING: u32 = 2 * MAX_HANDSHAKES as u32;

/// How many connections one peer may have: two nodes that dial each other at once make two, over each of two
/// transports.
const MAX_PER_PEER: u32 = 4;

/// How long a walk through the table of nodes may take. Those of a site that comes up fill its uplink where that is thin: with
/// twice as long, they went on into the first pull.
const QUERY_TIME: Duration = Duration::from_secs(10);

/// How long one node may take to answer in such a walk.
const KAD_STREAM_TIME: Duration = Duration::from_secs(5);

/// How often the table of nodes is refreshed, which takes a walk for each of its parts: some seven, in each of which twenty nodes
/// answer with 3 kB in a network of two dozen. Seldom: whoever connects is learned of at once, and walks pass over who has gone.
const REFRESH_TIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The longest Kademlia message, in bytes.
const MAX_KAD_PACKET: usize = 16 << 10;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) kad: kad::Behaviour<Providers>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) streams: streams::Behaviour,
}

impl Behaviour {
    pub(super) fn new(
        me: PeerId,
        network: &NetworkId,
        mdns: bool,
    ) -> Result<(Self, mpsc::Receiver<Arrived>), SwarmError> {
        let limits = ConnectionLimits::default()
            .with_max_established(Some(MAX_CONNECTIONS))
            .with_max_established_incoming(Some(MAX_INBOUND))
            .with_max_established_per_peer(Some(MAX_PER_PEER))
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_DIALS));
        let mdns = if mdns {
            Some(mdns::tokio::Behaviour::new(mdns::Config::default(), me).map_err(SwarmError::Mdns)?)
        } else {
            None
        };
        let (streams, arrivals) = streams::Behaviour::new();
        let behaviour = Self {
            limits: connection_limits::Behaviour::new(limits),
            kad: kademlia(me, network),
            mdns: Toggle::from(mdns),
            streams,
        };
        Ok((behaviour, arrivals))
    }
}

/// How many addresses of one peer Kademlia keeps and tells.
const MAX_PEER_ADDRESSES: usize = 8;

/// Tells Kademlia where a peer listens. What it knew is forgotten when the peer comes anew, and the oldest when there
/// is too much: a peer that comes from ever other places would leave more with each of them.
pub(super) fn learn(
    kad: &mut kad::Behaviour<Providers>,
    peer: PeerId,
    addresses: impl IntoIterator<Item = Multiaddr>,
    anew: bool,
) {
    let mut all: Vec<Multiaddr> = addresses.into_iter().filter_map(|new| new.with_p2p(peer).ok()).collect();
    all.truncate(MAX_PEER_ADDRESSES);
    let known = listed(kad, &peer);
    if known.is_none() {
        // It may wait for a place in a full bucket; then only taking it out tells what is known of it.
        let waiting = kad.remove_peer(&peer).map(|entry| entry.node.value.into_vec());
        all.extend(waiting.into_iter().flatten().filter(|_| !anew));
        all.truncate(MAX_PEER_ADDRESSES);
    }
    for address in &all {
        kad.add_address(&peer, address.clone());
    }
    // Taken away one by one, and only now: a peer that is taken out and put in again would count as a new one, for
    // which Kademlia walks through the whole network.
    let stale: Vec<_> = known.iter().flatten().filter(|address| !all.contains(address)).collect();
    let kept = if anew { 0 } else { MAX_PEER_ADDRESSES.saturating_sub(all.len()) };
    // The oldest stand first.
    for address in stale.iter().take(stale.len().saturating_sub(kept)) {
        kad.remove_address(&peer, address);
    }
}

/// The addresses that the table of nodes holds of a peer; `None` if the peer is not in it.
fn listed(kad: &mut kad::Behaviour<Providers>, peer: &PeerId) -> Option<Vec<Multiaddr>> {
    let bucket = kad.kbucket(*peer)?;
    let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer)?;
    Some(entry.node.value.iter().cloned().collect())
}

fn kademlia(me: PeerId, network: &NetworkId) -> kad::Behaviour<Providers> {
    let name = format!("/wherry/{network}/kad/1");
    #[expect(clippy::expect_used, reason = "the name starts with a slash")]
    let mut config = kad::Config::new(StreamProtocol::try_from_owned(name).expect("a slash in front"));
    config
        // What this node provides it tells in its own words, at its own pace; nothing else is published.
        .set_provider_publication_interval(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        // What others would have kept in Kademlia's words comes as events, which are thrown away.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(Caching::Disabled)
        // Addresses come from the hello, where a node says at which ports it listens.
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_periodic_bootstrap_interval(Some(REFRESH_TIME))
        .set_query_timeout(QUERY_TIME)
        .set_substreams_timeout(KAD_STREAM_TIME)
        .set_max_packet_size(MAX_KAD_PACKET)
        .set_replication_factor(KEEPERS);
    let mut kad = kad::Behaviour::with_config(me, Providers::new(me), config);
    kad.set_mode(Some(Mode::Server));
    kad
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use libp2p::swarm::ToSwarm;
    use wherry_proto::SecretKey;

    use super::*;

    fn known(kad: &mut kad::Behaviour<Providers>, peer: PeerId) -> Vec<Multiaddr> {
        let bare = |mut address: Multiaddr| {
            address.pop();
            address
        };
        listed(kad, &peer).unwrap().into_iter().map(bare).collect()
    }

    fn table() -> kad::Behaviour<Providers> {
        kademlia(PeerId::random(), &SecretKey::from_seed([1; 32]).network())
    }

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn a_peer_that_comes_from_ever_other_places_leaves_few_addresses() {
        let (mut kad, peer) = (table(), PeerId::random());
        for port in 1..100 {
            learn(&mut kad, peer, [address(port)], false);
            let newest: Vec<_> = (1..=port).rev().take(MAX_PEER_ADDRESSES).rev().map(address).collect();
            assert_eq!(known(&mut kad, peer), newest);
        }
        learn(&mut kad, peer, [address(1), address(2)], true);
        assert_eq!(known(&mut kad, peer), [address(1), address(2)]);
        learn(&mut kad, peer, [], true);
        assert!(listed(&mut kad, &peer).is_none());
    }

    #[test]
    fn a_peer_counts_as_new_but_once() {
        let (mut kad, peer) = (table(), PeerId::random());
        let mut counted = 0;
        for (port, anew) in [(1, true), (2, false), (2, true), (3, true), (4, false), (5, true)] {
            learn(&mut kad, peer, [address(port)], anew);
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(action) = kad.poll(&mut cx) {
                if let ToSwarm::GenerateEvent(kad::Event::RoutingUpdated { is_new_peer, .. }) = action {
                    counted += usize::from(is_new_peer);
                }
            }
        }
        // Kademlia begins to walk through the network for each.
        assert_eq!(counted, 1);
    }
}
