//! What a swarm is started with, and why it may not start.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{Certificate, CertificateError, SecretKey, TextError};

/// Gives the time in seconds since the Unix epoch, by which certificates and bans expire.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The most bootstrap addresses and remembered peers that are taken, each; more are passed over.
pub const MAX_ADDRESSES: usize = 256;

/// What a swarm is started with.
pub struct SwarmSettings {
    /// The node's own key.
    pub key: SecretKey,
    /// That it belongs to a network. Without it the node is alone: it listens to nobody and talks to nobody.
    pub membership: Option<Certificate>,
    /// The lowest epoch of certificates that count, the node's own included.
    pub min_epoch: u32,
    /// The site that it is at; nodes with the same name reach each other cheaply.
    pub site: String,
    /// Where to listen to peers, with TCP and QUIC. Port 0 takes a free one for each.
    pub peers: SocketAddr,
    /// The bound listener of the bulk plane.
    pub bulk: TcpListener,
    /// Multiaddrs of nodes to join by, such as `/dns/cloud.example/tcp/4050/p2p/12D3KooW…`.
    pub bootstrap: Vec<String>,
    /// Whether to look for nodes on the local network by multicast DNS.
    pub mdns: bool,
    /// Multiaddrs that [`Client::remember`](super::Client::remember) gave in an earlier run.
    pub remembered: Vec<String>,
    /// How long the network is not told of what has just come; [`ANNOUNCE_AFTER`](super::ANNOUNCE_AFTER) for a node.
    pub announce_after: Duration,
    /// The time.
    pub clock: Clock,
}

/// Why a swarm does not start.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The node's own certificate does not admit it.
    #[error("this node cannot join its network: {0}")]
    Membership(#[from] CertificateError),
    /// The site's name cannot be sent.
    #[error("the site's name is not usable: {0}")]
    Site(#[from] TextError),
    /// A bootstrap address cannot be read.
    #[error("'{text}' is no address to join by: {reason}; expected something like /ip4/192.0.2.1/tcp/4050")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A listener cannot be opened.
    #[error("cannot listen to {what} on {address}: {reason}")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The certificate that binds TLS to the node's key cannot be made.
    #[error("cannot prepare TLS: {0}")]
    Tls(String),
    /// The configuration of DNS cannot be read.
    #[error("cannot read how names are resolved: {0}")]
    Dns(std::io::Error),
    /// Multicast DNS cannot be started.
    #[error("cannot look for nodes on the local network (turn mDNS off to do without): {0}")]
    Mdns(std::io::Error),
}
