//! What a node says about itself.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wherry_proto::{Digest, NetworkId, NodeId};

use crate::limits::WanStatus;

/// The most transfers that one status lists; there may be more.
pub const MAX_TRANSFERS: usize = 100;

/// Whoever can tell what the node is doing: the node itself, asked by the status page, Prometheus and `wherry status`.
pub trait Report: Send + Sync + 'static {
    /// Whether the node serves. Costs nothing.
    fn state(&self) -> State;

    /// The state of things now. Cheap enough to be asked every second, and never waits for a peer or an origin.
    fn status(&self) -> impl Future<Output = NodeStatus> + Send;
}

/// A node, as `/status` and `wherry status --json` tell it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The version of the program.
    pub version: String,
    /// Where the node stands between start and end.
    pub state: State,
    /// Its peer id.
    pub peer_id: NodeId,
    /// The network that its certificate admits it to.
    pub network: NetworkId,
    /// Its site.
    pub site: String,
    /// The registry that names without one mean.
    #[serde(default)]
    pub default_origin: String,
    /// How long it has been up, in seconds.
    pub uptime_seconds: u64,
    /// Where it can be reached, with the ports that it really has.
    pub addresses: Addresses,
    /// What its store holds.
    pub store: StoreStatus,
    /// How many images it has whole.
    pub images: usize,
    /// How many members of the network it is connected to.
    pub peers: usize,
    /// Nodes that it did not admit lately, or that did not admit it.
    pub refused: Vec<RefusedNode>,
    /// Configured bootstrap addresses that are not connected.
    #[serde(default)]
    pub unreached: Vec<UnreachedAddress>,
    /// What the files of its data folder say of its membership, where that is not what it was started with: it counts
    /// after a restart.
    pub joined: Option<Joined>,
    /// Blobs on their way to it, at most [`MAX_TRANSFERS`].
    pub transfers: Vec<TransferStatus>,
    /// Blobs that the disk has damaged and that are not whole again, at most [`MAX_TRANSFERS`].
    #[serde(default)]
    pub damaged: Vec<DamagedStatus>,
    /// The links that lead out of the site.
    #[serde(default)]
    pub wan: WanStatus,
    /// How many manifests each registry that counts them still gives, as it said last.
    #[serde(default)]
    pub remaining: Vec<Remaining>,
    /// The registries and mirrors that it does not ask for now.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
    /// Bytes of blobs and manifests since the start.
    pub traffic: Traffic,
    /// What failed since the start, by kind.
    pub errors: ErrorCounts,
}

/// What a registry that limits pulls still gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// The registry.
    pub origin: String,
    /// How many manifests.
    pub manifests: u64,
}

/// A registry, or a mirror of one, that is left alone for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The registry.
    pub registry: String,
    /// What it is a mirror of, if it is left alone as such.
    pub mirror_of: Option<String>,
    /// Why.
    pub why: String,
    /// Until when, in seconds since the Unix epoch.
    pub until: u64,
}

/// A node that this one does not talk to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedNode {
    /// Its peer id.
    pub peer_id: NodeId,
    /// Where it is.
    pub address: String,
    /// Why one of the two does not admit the other, as far as it can be seen from here.
    pub why: String,
    /// What can be done about it, if that is known.
    pub hint: Option<String>,
    /// How long ago that was, in seconds.
    pub seconds_ago: u64,
}

/// A bootstrap address that is not connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreachedAddress {
    /// The address as it was configured.
    pub address: String,
    /// Why, as far as it can be seen from here.
    pub why: String,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
}

/// What a node has joined while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The network.
    pub network: NetworkId,
    /// Until when it is admitted, in seconds since the Unix epoch.
    pub expires: u64,
}

/// Where a node stands between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It serves.
    Ready,
    /// It finishes what clients are reading, and takes nothing new.
    Stopping,
}

/// The addresses of a node, bound: no port is 0 here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The registry API for container runtimes.
    pub gateway: SocketAddr,
    /// `/healthz`, `/status`, `/metrics`.
    pub status: SocketAddr,
    /// Where it listens for other nodes, over TCP; an unspecified address means all of the machine's.
    pub peers: SocketAddr,
    /// The bulk plane.
    pub bulk: SocketAddr,
    /// The socket of the command line.
    pub control: PathBuf,
    /// Multiaddresses that another node may use as `--bootstrap`, with this node's peer id, one for each address of
    /// the machine and each transport.
    pub bootstrap: Vec<String>,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Verified blobs.
    pub blobs: u64,
    /// Blobs that are not whole yet.
    pub partial_blobs: u64,
    /// Bytes that all of them take now, those that are still to come left out.
    pub bytes: u64,
    /// The most bytes that they may take, if that is bounded.
    pub budget: Option<u64>,
    /// Bytes that are free on the disk.
    pub free: u64,
}

/// A blob on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// The blob.
    pub digest: Digest,
    /// The images that it belongs to, as far as that is known.
    pub images: Vec<String>,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of it that are here and linked.
    pub bytes: u64,
    /// Bytes that came from peers, in this transfer.
    pub from_peers: u64,
    /// Bytes that came from the origin, in this transfer.
    pub from_origin: u64,
    /// How many it comes from at the moment: peers that have some of it, and the origin while this node reads that.
    pub sources: usize,
}

/// A blob that was here whole before the disk damaged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedStatus {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// The images that it belongs to, as far as that is known.
    pub images: Vec<String>,
    /// What becomes of it.
    pub state: Recovery,
}

/// What is damaged of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// How many of its blobs: manifests, configurations and layers.
    pub blobs: usize,
    /// What becomes of them.
    pub state: Recovery,
}

/// What becomes of what is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// It comes when somebody wants it next.
    Waiting,
    /// It is on its way again.
    Healing,
}

/// Bytes of blobs and manifests; what was fetched twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Received from other nodes.
    pub from_peers: u64,
    /// Received from origins.
    pub from_origin: u64,
    /// Sent to container runtimes.
    pub to_clients: u64,
    /// Sent to other nodes.
    pub to_peers: u64,
}

/// How often something failed, by what failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCounts {
    /// Peers that sent something wrong or nothing at all.
    pub peer: u64,
    /// Origins that could not be reached or answered something wrong.
    pub origin: u64,
    /// Reads and writes of the disk.
    pub store: u64,
    /// Requests of clients that could not be answered.
    pub client: u64,
}
