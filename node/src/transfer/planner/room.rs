//! What the transfers of a node may ask of nodes that trade, together.
//!
//! Each node sends to a few others at a time, so each is to take from as many: where all take from more, most are sent away,
//! ask again and are sent away again, and those who are given something share links with many. The layers of an image come at
//! the same time, so what one of them may ask for depends on the others. They take turns, and each asks nodes that no other
//! has asked: a node answers one request after the other. Whoever has no slot for one blob has none for another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use wherry_proto::NodeId;

use crate::swarm::UPLOAD_SLOTS;

/// How long it takes until a place that has come free at one node is used by another: messages both ways, and those who are
/// asked in vain.
const HANDOVER: Duration = Duration::from_millis(10);

/// Of how many nodes one takes chunks at a time: as many as it gives to. All have as many slots as the others then, and keep
/// them, where with half as many again some always have too few: in the simulation of 64 nodes whose upload is scarce the last
/// of them is done a tenth later then.
pub const USUAL_ROOM: usize = UPLOAD_SLOTS;

/// Of how many while it reads an origin: its site waits for what it reads, which has to share its link with them. It goes on
/// with those that send to it already for as long as they do.
const WHILE_READING: usize = 2;

/// Of how many afterwards: it has fallen behind the others, who have their links for themselves.
const CATCHING_UP: usize = UPLOAD_SLOTS + 1;

/// Of how many at most: on quick links most of the time of a chunk would pass with messages.
pub const MOST_ROOM: usize = 3 * UPLOAD_SLOTS;

/// One of the transfers that share.
pub type Sharer = u64;

/// What a transfer may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Of how many more nodes.
    pub room: usize,
    /// Nodes that are engaged with other transfers: asked for a chunk, or without a slot for one. Nobody where there is no
    /// room either.
    pub engaged: BTreeSet<NodeId>,
}

/// What a transfer has asked for, and what it lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of how many nodes it has asked for chunks that are not here yet.
    pub asked: usize,
    /// How long one takes.
    pub pace: Option<Duration>,
    /// Whom it has asked, and who had no slot: at most [`MAX_PEERS`](super::MAX_PEERS).
    pub engaged: BTreeSet<NodeId>,
    /// Why it does not ask for more, if it could.
    pub lack: Option<Lack>,
}

/// What a transfer waits for that could ask for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Room for one more node.
    Room,
    /// A node that is engaged with another transfer.
    Node,
}

#[derive(Debug, Default)]
struct Share {
    // Asked and not done yet.
    used: usize,
    // Its turn has come to ask so many more.
    granted: usize,
    pace: Option<Duration>,
    engaged: BTreeSet<NodeId>,
}

/// What the transfers of a node share: no more entries than there are transfers.
#[derive(Debug, Default)]
pub struct Room {
    shares: BTreeMap<Sharer, Share>,
    // Those that wait for room, in this order.
    waiting: VecDeque<Sharer>,
    // Those that wait for a node.
    blocked: BTreeSet<Sharer>,
    // Those that read an origin.
    readers: BTreeSet<Sharer>,
    // Whether one has since there was no transfer.
    has_read: bool,
}

impl Room {
    /// How many nodes are asked at a time; more where a chunk takes less than what has to be said about it.
    fn size(&self) -> usize {
        let quickest = self.shares.values().filter_map(|share| share.pace).min();
        let more = quickest.map_or(0.0, |pace| HANDOVER.as_secs_f64() / pace.as_secs_f64().max(1e-6));
        let least = match self.readers.is_empty() {
            false => WHILE_READING,
            true if self.has_read => CATCHING_UP,
            true => USUAL_ROOM,
        };
        (least + (UPLOAD_SLOTS as f64 * more) as usize).min(MOST_ROOM)
    }

    /// A transfer reads an origin from now on, or does not. Returns whose turn has come.
    pub fn reads(&mut self, sharer: Sharer, reads: bool) -> Vec<Sharer> {
        match reads {
            true => self.readers.insert(sharer),
            false => self.readers.remove(&sharer),
        };
        self.has_read |= reads;
        self.give_turns()
    }

    fn free(&self) -> usize {
        let taken: usize = self.shares.values().map(|share| share.used + share.granted).sum();
        self.size().saturating_sub(taken)
    }

    /// What a transfer may ask for now.
    pub fn of(&self, sharer: Sharer) -> Allowance {
        let granted = self.shares.get(&sharer).map_or(0, |share| share.granted);
        // Whoever waits comes first.
        let room = granted + if self.waiting.is_empty() { self.free() } else { 0 };
        if room == 0 {
            return Allowance::default();
        }
        let others = self.shares.iter().filter(|(other, _)| **other != sharer);
        let engaged = others.flat_map(|(_, share)| &share.engaged).copied().collect();
        Allowance { room, engaged }
    }

    /// What a transfer has asked for by now and what it lacks. Returns whose turn has come.
    pub fn takes(&mut self, sharer: Sharer, needs: Needs) -> Vec<Sharer> {
        let Needs { asked, pace, engaged, lack } = needs;
        let before = self.shares.remove(&sharer).unwrap_or_default();
        let frees = !before.engaged.is_subset(&engaged);
        self.shares.insert(sharer, Share { used: asked, granted: 0, pace, engaged });
        self.blocked.remove(&sharer);
        let mut turns = self.unblock(frees);
        match lack {
            Some(Lack::Room) if !self.waiting.contains(&sharer) => self.waiting.push_back(sharer),
            Some(Lack::Node) => {
                self.blocked.insert(sharer);
            }
            _ => {}
        }
        turns.extend(self.give_turns());
        turns
    }

    /// A transfer has ended. Returns whose turn has come.
    pub fn ends(&mut self, sharer: Sharer) -> Vec<Sharer> {
        let gone = self.shares.remove(&sharer);
        self.readers.remove(&sharer);
        self.blocked.remove(&sharer);
        self.waiting.retain(|waiting| *waiting != sharer);
        self.has_read &= !self.shares.is_empty();
        let mut turns = self.unblock(gone.is_some_and(|share| !share.engaged.is_empty()));
        turns.extend(self.give_turns());
        turns
    }

    fn unblock(&mut self, frees: bool) -> Vec<Sharer> {
        if frees { std::mem::take(&mut self.blocked).into_iter().collect() } else { Vec::new() }
    }

    fn give_turns(&mut self) -> Vec<Sharer> {
        let mut turns = Vec::new();
        for _ in 0..self.free() {
            let Some(next) = self.waiting.pop_front() else { break };
            if let Some(share) = self.shares.get_mut(&next) {
                share.granted += 1;
                turns.push(next);
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    /// A transfer that has asked so many nodes on a slow link.
    fn asked(asked: usize) -> Needs {
        Needs { asked, pace: Some(Duration::from_secs(1)), ..Needs::default() }
    }

    fn short(chunks: usize) -> Needs {
        Needs { lack: Some(Lack::Room), ..asked(chunks) }
    }

    #[test]
    fn transfers_share_the_nodes_that_one_takes_from_at_a_time_and_take_turns() {
        let mut room = Room::default();
        assert_eq!(room.of(1).room, USUAL_ROOM);
        assert!(room.takes(1, short(USUAL_ROOM)).is_empty());
        assert_eq!(room.of(2).room, 0);
        assert!(room.takes(2, short(0)).is_empty());
        assert!(room.takes(3, short(0)).is_empty());
        // It stands in front of the line itself, having asked for more first.
        assert_eq!(room.takes(1, asked(USUAL_ROOM - 1)), [1]);
        assert_eq!([1, 2, 3].map(|sharer| room.of(sharer).room), [1, 0, 0]);
        // And does not use it.
        assert_eq!(room.takes(1, asked(USUAL_ROOM - 1)), [2]);
        assert_eq!(room.takes(2, short(1)), [] as [Sharer; 0]);
        assert_eq!(room.takes(1, asked(USUAL_ROOM - 3)), [3, 2]);
        assert_eq!(room.ends(3), [] as [Sharer; 0]);
        assert_eq!(room.of(1).room, 1);
    }

    #[test]
    fn where_chunks_take_no_time_more_nodes_are_asked_within_bounds() {
        let mut room = Room::default();
        let mut sized = |pace| {
            room.takes(1, Needs { pace: Some(pace), ..Needs::default() });
            room.of(1).room
        };
        assert_eq!(sized(Duration::from_millis(10)), USUAL_ROOM + UPLOAD_SLOTS);
        assert_eq!(sized(Duration::ZERO), MOST_ROOM);
        assert_eq!(sized(Duration::from_secs(1)), USUAL_ROOM);
    }

    #[test]
    fn a_node_that_reads_an_origin_asks_few_others_and_more_than_usual_when_it_has_read() {
        let mut room = Room::default();
        assert!(room.reads(3, true).is_empty());
        assert_eq!(room.of(1).room, WHILE_READING);
        assert!(room.takes(1, asked(WHILE_READING)).is_empty());
        assert!(room.takes(2, short(0)).is_empty());
        assert_eq!(room.reads(3, false), [2]);
        let left = CATCHING_UP - WHILE_READING;
        assert_eq!((room.of(1).room, room.of(2).room), (left - 1, left));
        // What was behind is through.
        [1, 2].into_iter().for_each(|sharer| drop(room.ends(sharer)));
        assert_eq!(room.of(4).room, USUAL_ROOM);
    }

    #[test]
    fn a_node_that_one_transfer_has_asked_is_asked_by_no_other_until_it_has_answered() {
        let node = SecretKey::from_seed([7; 32]).node();
        let engaging = |engaged: &[NodeId], chunks| Needs {
            engaged: engaged.iter().copied().collect(),
            ..asked(chunks)
        };
        let mut room = Room::default();
        room.takes(1, engaging(&[node], 1));
        assert_eq!(room.of(2).engaged, BTreeSet::from([node]));
        assert_eq!(room.of(1).engaged, BTreeSet::new());
        let blocked = Needs { lack: Some(Lack::Node), ..asked(0) };
        assert!(room.takes(2, blocked.clone()).is_empty());
        assert!(room.takes(1, engaging(&[node], 0)).is_empty(), "it is busy");
        assert_eq!(room.takes(1, engaging(&[], 0)), [2]);
        assert_eq!(room.of(2).engaged, BTreeSet::new());
        // Told once, and again when it says so.
        room.takes(1, engaging(&[node], 1));
        assert!(room.takes(1, engaging(&[], 0)).is_empty());
        room.takes(1, engaging(&[node], 1));
        room.takes(2, blocked);
        assert_eq!(room.ends(1), [2]);
    }

    #[test]
    fn whoever_is_done_leaves_nothing_behind() {
        let mut room = Room::default();
        for sharer in 0..100 {
            room.takes(sharer, short(1));
            room.takes(sharer, Needs { lack: Some(Lack::Node), ..asked(1) });
            room.reads(sharer, true);
            room.ends(sharer);
        }
        assert!(room.shares.is_empty() && room.waiting.is_empty() && room.readers.is_empty());
        assert!(room.blocked.is_empty());
    }
}
