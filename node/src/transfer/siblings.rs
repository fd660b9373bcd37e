//! What the transfers of one node have to do with each other: how many chunks they ask for together, and which of them lead,
//! so that blobs which the node could lead too are left to others of its site.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::planner::{Allowance, Needs, Room, Sharer};

/// The transfers of a node that run, which [`MAX_TRANSFERS`](super::MAX_TRANSFERS) bounds.
#[derive(Clone, Default)]
pub(super) struct Siblings(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    next: Sharer,
    leading: HashSet<Sharer>,
    room: Room,
    turns: HashMap<Sharer, Arc<Notify>>,
}

impl All {
    fn tell(&self, turns: Vec<Sharer>) {
        for turn in turns.iter().filter_map(|sharer| self.turns.get(sharer)) {
            turn.notify_one();
        }
    }
}

impl Siblings {
    fn lock(&self) -> MutexGuard<'_, All> {
        // It is whole between any two of its changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more transfer begins.
    pub(super) fn join(&self) -> Sibling {
        let turn = Arc::new(Notify::new());
        let mut all = self.lock();
        let me = all.next;
        all.next += 1;
        all.turns.insert(me, Arc::clone(&turn));
        drop(all);
        Sibling { me, leads: false, reads: false, takes: Needs::default(), turn, all: self.clone() }
    }
}

/// One transfer among those of its node, until it is dropped.
pub(super) struct Sibling {
    me: Sharer,
    // Whether it counts as one that leads.
    leads: bool,
    reads: bool,
    // What was last said of what it takes.
    takes: Needs,
    turn: Arc<Notify>,
    all: Siblings,
}

impl Sibling {
    /// Whether the node leads another blob. If not, this one counts as led: of several that ask at the same time one does,
    /// until it is said whether it [`leads`](Self::leads).
    pub(super) fn is_laden(&mut self) -> bool {
        let mut all = self.all.lock();
        if all.leading.iter().any(|other| *other != self.me) {
            return true;
        }
        all.leading.insert(self.me);
        self.leads = true;
        false
    }

    /// The node leads this blob or does not.
    pub(super) fn leads(&mut self, leads: bool) {
        if std::mem::replace(&mut self.leads, leads) == leads {
            return;
        }
        let mut all = self.all.lock();
        if leads {
            all.leading.insert(self.me);
        } else {
            all.leading.remove(&self.me);
        }
    }

    /// The transfer reads an origin or does not.
    pub(super) fn reads(&mut self, reads: bool) {
        if std::mem::replace(&mut self.reads, reads) != reads {
            let mut all = self.all.lock();
            let turns = all.room.reads(self.me, reads);
            all.tell(turns);
        }
    }

    /// What may be asked of nodes that trade.
    pub(super) fn allowance(&self) -> Allowance {
        self.all.lock().room.of(self.me)
    }

    /// As [`Room::takes`]; whose turn has come is told.
    pub(super) fn takes(&mut self, needs: Needs) {
        // Most events change nothing, and nothing is left over of a turn where none was asked for.
        if self.takes == needs && needs.lack.is_none() {
            return;
        }
        self.takes = needs.clone();
        let mut all = self.all.lock();
        let turns = all.room.takes(self.me, needs);
        all.tell(turns);
    }

    /// Returns when its turn has come to ask for a chunk.
    pub(super) fn turn(&self) -> impl Future<Output = ()> + use<> {
        let turn = Arc::clone(&self.turn);
        async move { turn.notified().await }
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.leading.remove(&self.me);
        all.turns.remove(&self.me);
        let turns = all.room.ends(self.me);
        all.tell(turns);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::super::planner::{Lack, USUAL_ROOM};
    use super::*;

    #[test]
    fn of_several_blobs_that_nobody_leads_one_may_be_led_at_once() {
        let all = Siblings::default();
        let (mut one, mut two) = (all.join(), all.join());
        assert!(!one.is_laden() && two.is_laden());
        one.leads(false);
        assert!(!two.is_laden() && one.is_laden());
        two.leads(true);
        assert!(one.is_laden() && !two.is_laden());
        drop(two);
        assert!(!one.is_laden());
    }

    #[test]
    fn whoever_waits_for_room_is_told_when_another_leaves_some() {
        let all = Siblings::default();
        let asked = |asked| Needs { asked, pace: Some(Duration::from_secs(1)), ..Needs::default() };
        let (mut one, mut two) = (all.join(), all.join());
        one.takes(asked(USUAL_ROOM));
        two.takes(Needs { lack: Some(Lack::Room), ..asked(0) });
        assert!(two.turn().now_or_never().is_none());
        one.takes(asked(USUAL_ROOM - 1));
        assert!(two.turn().now_or_never().is_some() && two.allowance().room == 1);
        // Its turn is over, used or not.
        two.takes(asked(0));
        assert_eq!((one.allowance().room, two.allowance().room), (1, 1));
        drop(one);
        assert_eq!(two.allowance().room, USUAL_ROOM);
    }
}
