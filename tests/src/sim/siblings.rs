//! What the transfers of one node share, as the node's own `siblings.rs` has it.

use std::time::Duration;

use wherry_node::transfer::planner::Sharer;
use wherry_proto::Role;

use super::message::BlobNo;
use super::setup::NodeSetup;
use super::world::{Happening, World};

/// For how long whoever has asked about an image counts as one who is about to get it.
const ASTIR: Duration = Duration::from_secs(5);

impl World {
    /// Whether a node reads another blob, and neighbours are about to want this one. They have asked about the image by then,
    /// which is not simulated.
    pub(super) fn is_laden(&self, node: usize, blob: BlobNo) -> bool {
        let blobs = self.nodes[node].blobs.iter().enumerate();
        let others = blobs.filter(|(other, _)| *other != blob).filter_map(|(_, one)| one.transfer.as_ref());
        let leads = |role: &Role| matches!(role, Role::Leading { .. } | Role::Candidate { .. });
        let until = Duration::from_nanos(self.clock.now()) + ASTIR;
        let wants = |other: &usize| {
            let NodeSetup { wants, holds, start, .. } = self.nodes[*other].setup;
            wants && !holds && start < until && self.nodes[*other].blobs[blob].done.is_none()
        };
        others.map(|other| other.role).any(|role| leads(&role))
            && self.nodes[node].neighbours.iter().any(wants)
    }

    /// Those whose turn it is may ask for a chunk.
    pub(super) fn tell_turns(&mut self, node: usize, turns: Vec<Sharer>) {
        for sharer in turns {
            let blob = sharer as BlobNo;
            if let Some(run) = self.nodes[node].transfer(blob).map(|transfer| transfer.run) {
                self.clock.after(0, Happening::Room { node, blob, run });
            }
        }
    }
}
