//! Counters that the rooms of a node share.

use std::fmt::Write as _;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::limits::Limit;

use super::report::{ErrorCounts, NodeStatus, Traffic};

/// The counters of one node. Clones count together, and counting is one atomic addition.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Bytes of blobs and manifests that came from other nodes.
    pub from_peers: Counter,
    /// Bytes of blobs and manifests that came from origins.
    pub from_origin: Counter,
    /// Bytes of blobs and manifests that went to container runtimes.
    pub to_clients: Counter,
    /// Bytes of blobs that went to other nodes.
    pub to_peers: Counter,
    /// Bytes that came from origins and from other sites, and count against the site's budget.
    pub wan_received: Counter,
    /// Bytes that went to other sites.
    pub wan_sent: Counter,
    /// Requests of container runtimes, however they ended.
    pub requests: Counter,
    /// Blobs that were fetched to the end and verified.
    pub fetched: Counter,
    /// Chunks that were thrown away because they did not link.
    pub rejected_chunks: Counter,
    received: Family<Way, Counter>,
    sent: Family<Way, Counter>,
    errors: Family<Failed, Counter>,
}

/// What kind of thing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A peer sent something wrong or nothing at all.
    Peer,
    /// An origin could not be reached or answered something wrong.
    Origin,
    /// The disk could not be read or written.
    Store,
    /// A client's request could not be answered.
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    side: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Peers,
    Origin,
    Clients,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    kind: ErrorKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    origin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    by: String,
}

impl EncodeLabelValue for Side {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Peers => "peers",
            Self::Origin => "origin",
            Self::Clients => "clients",
        })
    }
}

impl EncodeLabelValue for ErrorKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Peer => "peer",
            Self::Origin => "origin",
            Self::Store => "store",
            Self::Client => "client",
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let received = Family::<Way, Counter>::default();
        let sent = Family::<Way, Counter>::default();
        let way = |family: &Family<Way, Counter>, side| family.get_or_create_owned(&Way { side });
        let errors = Family::<Failed, Counter>::default();
        // Made at once, so that a scrape shows zeros instead of gaps.
        for kind in [ErrorKind::Peer, ErrorKind::Origin, ErrorKind::Store, ErrorKind::Client] {
            errors.get_or_create_owned(&Failed { kind });
        }
        Self {
            from_peers: way(&received, Side::Peers),
            from_origin: way(&received, Side::Origin),
            to_clients: way(&sent, Side::Clients),
            to_peers: way(&sent, Side::Peers),
            wan_received: Counter::default(),
            wan_sent: Counter::default(),
            requests: Counter::default(),
            fetched: Counter::default(),
            rejected_chunks: Counter::default(),
            received,
            sent,
            errors,
        }
    }
}

impl Metrics {
    /// Counts a failure.
    pub fn failed(&self, kind: ErrorKind) {
        self.errors.get_or_create_owned(&Failed { kind }).inc();
    }

    /// The bytes that were counted so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            from_peers: self.from_peers.get(),
            from_origin: self.from_origin.get(),
            to_clients: self.to_clients.get(),
            to_peers: self.to_peers.get(),
        }
    }

    /// The failures that were counted so far.
    pub fn errors(&self) -> ErrorCounts {
        let count = |kind| self.errors.get_or_create_owned(&Failed { kind }).get();
        ErrorCounts {
            peer: count(ErrorKind::Peer),
            origin: count(ErrorKind::Origin),
            store: count(ErrorKind::Store),
            client: count(ErrorKind::Client),
        }
    }

    /// Everything in the OpenMetrics text format.
    pub(super) fn openmetrics(&self, status: &NodeStatus) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("wherry");
        let bytes = || Unit::Bytes;
        registry.register_with_unit(
            "received",
            "Blobs and manifests received",
            bytes(),
            self.received.clone(),
        );
        registry.register_with_unit("sent", "Blobs and manifests sent", bytes(), self.sent.clone());
        let help = "Blobs and manifests received from outside the site";
        registry.register_with_unit("wan_received", help, bytes(), self.wan_received.clone());
        let help = "Chunks sent out of the site";
        registry.register_with_unit("wan_sent", help, bytes(), self.wan_sent.clone());
        let limited = Family::<By, Gauge>::default();
        for by in [Limit::Pause, Limit::Window, Limit::Budget] {
            let holds = status.wan.limited.is_some_and(|limited| limited.by == by);
            limited.get_or_create_owned(&By { by: by.to_string() }).set(i64::from(holds));
        }
        registry.register("wan_limited", "Whether this limit keeps bytes from coming into the site", limited);
        registry.register("requests", "Requests of container runtimes", self.requests.clone());
        registry.register("fetched_blobs", "Blobs fetched and verified", self.fetched.clone());
        let rejected = self.rejected_chunks.clone();
        registry.register("rejected_chunks", "Chunks thrown away because they did not link", rejected);
        registry.register("errors", "Failures by what failed", self.errors.clone());
        let remaining = Family::<Of, Gauge>::default();
        for it in &status.remaining {
            let left = i64::try_from(it.manifests).unwrap_or(i64::MAX);
            remaining.get_or_create_owned(&Of { origin: it.origin.clone() }).set(left);
        }
        registry.register("ratelimit_remaining", "Manifests that the origin still gives", remaining);
        let identity = vec![
            ("version", status.version.clone()),
            ("peer_id", status.peer_id.to_string()),
            ("network", status.network.to_string()),
            ("site", status.site.clone()),
        ];
        registry.register("node", "Who this node is", Info::new(identity));
        let store = &status.store;
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: u64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, gauge),
                None => registry.register(name, help, gauge),
            }
        };
        gauge("store", "Disk that blobs take", Some(bytes()), store.bytes);
        gauge("store_free", "Disk that is free", Some(bytes()), store.free);
        if let Some(budget) = store.budget {
            gauge("store_budget", "Disk that blobs may take", Some(bytes()), budget);
        }
        gauge("wan_spent", "Bytes that came into the site today", Some(bytes()), status.wan.spent);
        if let Some(budget) = status.wan.budget {
            gauge("wan_budget", "Bytes that may come into the site in a day", Some(bytes()), budget);
        }
        gauge("store_blobs", "Verified blobs", None, store.blobs);
        gauge("store_partial_blobs", "Blobs that are not whole yet", None, store.partial_blobs);
        gauge("images", "Images that are whole", None, status.images as u64);
        gauge("peers", "Connected members of the network", None, status.peers as u64);
        gauge("transfers", "Blobs on their way", None, status.transfers.len() as u64);
        gauge("uptime", "Time since the start", Some(Unit::Seconds), status.uptime_seconds);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}
