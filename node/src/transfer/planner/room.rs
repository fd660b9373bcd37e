//! How many chunks a node asks for at a time of nodes that trade, of all its blobs together.
//!
//! Each node sends a few chunks at a time, so each is to take as many: where all take more, most are sent away, ask again
//! and are sent away again, and those who are given something share links with many. The layers of an image come at the
//! same time, so what one of them may ask for depends on the others. They take turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::LEAST_WINDOW;

/// How long it takes until a place that has come free at one node is used by another: messages both ways, and those who are
/// asked in vain.
const HANDOVER: Duration = Duration::from_millis(10);

/// How many chunks are asked for at most: on quick links most of the time of one would pass with messages.
pub const MOST_ROOM: usize = 4 * LEAST_WINDOW;

/// One of the transfers that share.
pub type Sharer = u64;

#[derive(Debug, Default)]
struct Share {
    // Asked for and not here yet.
    used: usize,
    // Its turn has come to ask for so many more.
    granted: usize,
    pace: Option<Duration>,
}

/// What the transfers of a node share: no more entries than there are transfers.
#[derive(Debug, Default)]
pub struct Room {
    shares: BTreeMap<Sharer, Share>,
    waiting: VecDeque<Sharer>,
    // Those that read an origin.
    readers: BTreeSet<Sharer>,
}

impl Room {
    /// How many chunks are asked for at a time: as many as a node sends at a time, and more where a chunk takes less than
    /// what has to be said about it. A node that reads an origin asks for one: its site waits for what it reads, which has to
    /// share its link with them.
    fn size(&self) -> usize {
        let quickest = self.shares.values().filter_map(|share| share.pace).min();
        let more = quickest.map_or(0.0, |pace| HANDOVER.as_secs_f64() / pace.as_secs_f64().max(1e-6));
        let least = if self.readers.is_empty() { LEAST_WINDOW } else { 1 };
        (least + (LEAST_WINDOW as f64 * more) as usize).min(MOST_ROOM)
    }

    /// A transfer reads an origin from now on, or does not. Returns whose turn has come.
    pub fn reads(&mut self, sharer: Sharer, reads: bool) -> Vec<Sharer> {
        match reads {
            true => self.readers.insert(sharer),
            false => self.readers.remove(&sharer),
        };
        self.give_turns()
    }

    fn free(&self) -> usize {
        let taken: usize = self.shares.values().map(|share| share.used + share.granted).sum();
        self.size().saturating_sub(taken)
    }

    /// How many more chunks a transfer may ask for now.
    pub fn of(&self, sharer: Sharer) -> usize {
        let granted = self.shares.get(&sharer).map_or(0, |share| share.granted);
        // Whoever waits comes first.
        granted + if self.waiting.is_empty() { self.free() } else { 0 }
    }

    /// A transfer has now asked for so many chunks, which take so long each, and could ask for more if it is `short`. Returns
    /// whose turn has come.
    pub fn takes(&mut self, sharer: Sharer, used: usize, pace: Option<Duration>, short: bool) -> Vec<Sharer> {
        self.shares.insert(sharer, Share { used, granted: 0, pace });
        if short && !self.waiting.contains(&sharer) {
            self.waiting.push_back(sharer);
        }
        self.give_turns()
    }

    /// A transfer has ended. Returns whose turn has come.
    pub fn ends(&mut self, sharer: Sharer) -> Vec<Sharer> {
        self.shares.remove(&sharer);
        self.readers.remove(&sharer);
        self.waiting.retain(|waiting| *waiting != sharer);
        self.give_turns()
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
    use super::*;

    const SLOW: Option<Duration> = Some(Duration::from_secs(1));

    #[test]
    fn transfers_share_as_many_chunks_as_a_node_sends_at_a_time_and_take_turns() {
        let mut room = Room::default();
        assert_eq!(room.of(1), LEAST_WINDOW);
        assert!(room.takes(1, LEAST_WINDOW, SLOW, true).is_empty());
        assert_eq!(room.of(2), 0);
        assert!(room.takes(2, 0, SLOW, true).is_empty());
        assert!(room.takes(3, 0, SLOW, true).is_empty());
        // It stands in front of the line itself, having asked for more first.
        assert_eq!(room.takes(1, LEAST_WINDOW - 1, SLOW, false), [1]);
        assert_eq!((room.of(1), room.of(2), room.of(3)), (1, 0, 0));
        // And does not use it.
        assert_eq!(room.takes(1, LEAST_WINDOW - 1, SLOW, false), [2]);
        assert_eq!(room.takes(2, 1, SLOW, true), [] as [Sharer; 0]);
        assert_eq!(room.takes(1, LEAST_WINDOW - 3, SLOW, false), [3, 2]);
        assert_eq!(room.ends(3), [] as [Sharer; 0]);
        assert_eq!(room.of(1), 1);
    }

    #[test]
    fn where_chunks_take_no_time_more_of_them_are_asked_for_within_bounds() {
        let mut room = Room::default();
        room.takes(1, 0, Some(Duration::from_millis(10)), false);
        assert_eq!(room.of(1), 2 * LEAST_WINDOW);
        room.takes(1, 0, Some(Duration::ZERO), false);
        assert_eq!(room.of(1), MOST_ROOM);
        room.takes(1, 0, SLOW, false);
        assert_eq!(room.of(1), LEAST_WINDOW);
    }

    #[test]
    fn a_node_that_reads_an_origin_asks_for_one_chunk_at_a_time_and_for_more_when_it_has_read() {
        let mut room = Room::default();
        assert!(room.reads(3, true).is_empty());
        assert_eq!(room.of(1), 1);
        assert!(room.takes(1, 1, SLOW, false).is_empty());
        assert!(room.takes(2, 0, SLOW, true).is_empty());
        assert_eq!(room.reads(3, false), [2]);
        assert_eq!((room.of(1), room.of(2)), (LEAST_WINDOW - 2, LEAST_WINDOW - 1));
    }

    #[test]
    fn whoever_is_done_leaves_nothing_behind() {
        let mut room = Room::default();
        for sharer in 0..100 {
            room.takes(sharer, 1, SLOW, true);
            room.reads(sharer, true);
            room.ends(sharer);
        }
        assert!(room.shares.is_empty() && room.waiting.is_empty() && room.readers.is_empty());
    }
}
