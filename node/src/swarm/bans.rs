//! Nodes that are not talked to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use wherry_proto::NodeId;

/// How long a ban lasts.
pub const BAN_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How many bans are kept; the oldest goes first. A ban takes proof, so more of them than this are unlikely.
pub const MAX_BANS: usize = 1024;

/// A node that is not talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The node.
    pub node: NodeId,
    /// What it did.
    pub reason: String,
    /// The second, since the Unix epoch, at which the ban ends.
    pub until: u64,
}

/// The bans of this run: they are not kept over a restart.
#[derive(Default)]
pub(super) struct Bans(Mutex<HashMap<NodeId, (u64, String)>>);

impl Bans {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, (u64, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, node: NodeId, reason: &str, now: u64) {
        let mut bans = self.lock();
        if bans.len() >= MAX_BANS
            && !bans.contains_key(&node)
            && let Some(oldest) = bans.iter().min_by_key(|(_, (until, _))| *until).map(|(node, _)| *node)
        {
            bans.remove(&oldest);
        }
        bans.insert(node, (now.saturating_add(BAN_TIME.as_secs()), reason.chars().take(200).collect()));
    }

    /// Why a node is banned at this time, if it is.
    pub(super) fn reason(&self, node: &NodeId, now: u64) -> Option<String> {
        let mut bans = self.lock();
        if bans.get(node).is_some_and(|(until, _)| *until <= now) {
            bans.remove(node);
        }
        bans.get(node).map(|(_, reason)| reason.clone())
    }

    pub(super) fn list(&self, now: u64) -> Vec<Ban> {
        let ban = |(node, (until, reason)): (&NodeId, &(u64, String))| Ban {
            node: *node,
            reason: reason.clone(),
            until: *until,
        };
        self.lock().iter().filter(|(_, (until, _))| *until > now).map(ban).collect()
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    fn node(number: u16) -> NodeId {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        SecretKey::from_seed(seed).node()
    }

    #[test]
    fn a_ban_ends_by_itself() {
        let bans = Bans::default();
        bans.add(node(1), "lied", 100);
        assert_eq!(bans.reason(&node(1), 100).as_deref(), Some("lied"));
        assert_eq!(bans.reason(&node(2), 100), None);
        assert_eq!(bans.reason(&node(1), 100 + BAN_TIME.as_secs()), None);
    }

    #[test]
    fn the_oldest_ban_goes_when_there_are_too_many() {
        let bans = Bans::default();
        for number in 0..=MAX_BANS as u16 {
            bans.add(node(number), "lied", u64::from(number));
        }
        assert_eq!(bans.list(0).len(), MAX_BANS);
        assert_eq!(bans.reason(&node(0), 1), None);
        assert!(bans.reason(&node(1), 1).is_some());
    }
}
