//! What runs over libp2p connections once they are admitted.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::kad::{self, BucketInserts, Caching, Mode, StoreInserts};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, StreamProtocol, mdns};
use tokio::sync::mpsc;
use wherry_proto::NetworkId;

use super::records::Providers;
use super::settings::SwarmError;
use super::streams::{self, Arrived};

/// How long a provider record lives on the nodes that keep it.
pub const RECORD_TIME: Duration = Duration::from_secs(30 * 60);

/// How many connections are held, and how many of them may be such as others made.
pub const MAX_CONNECTIONS: u32 = 512;
const MAX_INBOUND: u32 = 384;

/// How many connections may be in their handshakes, in each direction. A stranger's may hold a QUIC connection's
/// window each, or one yamux stream's.
const MAX_PENDING: u32 = 32;

/// How many connections one peer may have: two nodes that dial each other at once make two, over each of two
/// transports.
const MAX_PER_PEER: u32 = 4;

/// How long a walk through the table of nodes may take.
const QUERY_TIME: Duration = Duration::from_secs(10);

/// How long one node may take to answer in such a walk.
const KAD_STREAM_TIME: Duration = Duration::from_secs(5);

/// How often the table of nodes is refreshed.
const REFRESH_TIME: Duration = Duration::from_secs(30 * 60);

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
            .with_max_pending_outgoing(Some(MAX_PENDING));
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

fn kademlia(me: PeerId, network: &NetworkId) -> kad::Behaviour<Providers> {
    let name = format!("/wherry/{network}/kad/1");
    #[expect(clippy::expect_used, reason = "the name starts with a slash")]
    let mut config = kad::Config::new(StreamProtocol::try_from_owned(name).expect("a slash in front"));
    config
        // Renewed by this node itself, at its own pace; nothing else is published.
        .set_provider_publication_interval(None)
        .set_provider_record_ttl(Some(RECORD_TIME))
        .set_replication_interval(None)
        .set_publication_interval(None)
        // Value records come as events, which are thrown away.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(Caching::Disabled)
        // Addresses come from the hello, where a node says at which ports it listens.
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_periodic_bootstrap_interval(Some(REFRESH_TIME))
        .set_query_timeout(QUERY_TIME)
        .set_substreams_timeout(KAD_STREAM_TIME)
        .set_max_packet_size(MAX_KAD_PACKET)
        .set_replication_factor(REPLICATION);
    let mut kad = kad::Behaviour::with_config(me, Providers::new(me), config);
    kad.set_mode(Some(Mode::Server));
    kad
}

/// On how many nodes a record is kept.
const REPLICATION: NonZeroUsize = NonZeroUsize::MIN.saturating_add(11);
