//! Machines that have one identity between them, as after copying an SD card: what one does undoes what the other did.

use std::time::{Duration, Instant};

use wherry_proto::NodeId;

use super::ask::ASKER_IDLE;
use super::start::IDLE_CONNECTION_TIME;

/// For how long two processes of one node must have been connected side by side before they count as two machines: half
/// a minute longer than the connections of a process may last that was killed or lost its power, after the next one of
/// its machine has begun. The last stream on them ends when nothing has been asked for long.
const SIDE_BY_SIDE: Duration =
    Duration::from_secs(ASKER_IDLE.as_secs() + IDLE_CONNECTION_TIME.as_secs() + 30);

/// How many processes of one node are told apart: as many as connections it may have at most.
const MAX_LIVES: usize = 4;

/// The processes of one node that are connected here.
#[derive(Default)]
pub(super) struct Lives {
    all: Vec<Life>,
    said: bool,
}

struct Life {
    life: u64,
    address: String,
    since: Instant,
    connections: usize,
}

impl Lives {
    /// One more connection to the process that says it has this life.
    pub(super) fn begin(&mut self, life: u64, address: String, now: Instant) {
        if let Some(known) = self.all.iter_mut().find(|known| known.life == life) {
            known.connections += 1;
        } else if self.all.len() < MAX_LIVES {
            self.all.push(Life { life, address, since: now, connections: 1 });
        }
    }

    /// One of them has ended.
    pub(super) fn end(&mut self, life: u64) {
        if let Some(known) = self.all.iter_mut().find(|known| known.life == life) {
            known.connections -= 1;
        }
        self.all.retain(|known| known.connections > 0);
        self.said &= self.all.len() > 1;
    }

    /// Where two machines with this identity are, if there are and it was not said yet.
    pub(super) fn news(&mut self, now: Instant) -> Option<(String, String)> {
        let mut lasting = self.all.iter().filter(|life| now.duration_since(life.since) >= SIDE_BY_SIDE);
        let (one, other) = (lasting.next()?, lasting.next()?);
        (!std::mem::replace(&mut self.said, true)).then(|| (one.address.clone(), other.address.clone()))
    }
}

/// What to do about it.
pub(super) fn advice(node: &NodeId) -> String {
    format!(
        "each machine needs an identity of its own, also one that was copied from another: stop wherry on one of the two, \
         remove 'identity' and 'certificate' from its data folder, and let it in anew: 'wherry network show' there tells its \
         new peer id, 'wherry network admit' with that on the operator's machine prints a line for 'wherry network join' \
         there. The other keeps {node}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_that_stay_side_by_side_are_said_once_to_be_two_machines() {
        let (mut lives, begun) = (Lives::default(), Instant::now());
        lives.begin(1, "one".to_owned(), begun);
        lives.begin(1, "one".to_owned(), begun);
        lives.begin(2, "other".to_owned(), begun + SIDE_BY_SIDE);
        assert_eq!(lives.news(begun + SIDE_BY_SIDE), None, "the first may be dead already");
        let later = begun + SIDE_BY_SIDE * 2;
        assert_eq!(lives.news(later), Some(("one".to_owned(), "other".to_owned())));
        assert_eq!(lives.news(later), None);
        // It is said anew when they meet anew.
        lives.end(2);
        lives.begin(2, "elsewhere".to_owned(), later);
        assert_eq!(lives.news(later + SIDE_BY_SIDE), Some(("one".to_owned(), "elsewhere".to_owned())));
    }

    #[test]
    fn a_machine_that_starts_wherry_anew_is_one() {
        let (mut lives, begun) = (Lives::default(), Instant::now());
        for start in 0..100 {
            let now = begun + SIDE_BY_SIDE * start;
            lives.begin(start.into(), "here".to_owned(), now);
            assert_eq!(lives.news(now), None);
            // Its last connection ends a while after it was killed.
            if start > 0 {
                lives.end(u64::from(start) - 1);
            }
        }
        for life in 0..100 {
            lives.begin(life, String::new(), begun);
        }
        assert!(lives.all.len() <= MAX_LIVES);
    }
}
