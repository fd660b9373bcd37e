//! What may be seen of a node: read-only HTTP for people, scripts and Prometheus.
//!
//! `/healthz` says whether the node serves, `/status` tells everything as JSON ([`NodeStatus`]), `/metrics` gives
//! counters in the OpenMetrics format. Nothing can be changed here, and no page loads anything from elsewhere.

mod metrics;
mod report;
mod server;
#[cfg(test)]
mod tests;

pub use metrics::{ErrorKind, Metrics};
pub use report::{
    Addresses, Damage, DamagedStatus, ErrorCounts, Joined, LeftAlone, MAX_TRANSFERS, NodeStatus, Recovery,
    RefusedNode, Remaining, Report, State, StoreStatus, Traffic, TransferStatus, UnreachedAddress,
};
pub use server::serve;
