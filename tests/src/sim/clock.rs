//! Virtual time, and what is to happen when.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// Nanoseconds since the simulation began.
pub(super) type Time = u64;

/// A length of time in the unit of [`Time`].
pub(super) const fn nanos(length: Duration) -> Time {
    // 584 years fit.
    length.as_nanos() as Time
}

struct Entry<E> {
    at: Time,
    // What was put in earlier happens earlier, so that a run is the same each time.
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Events in the order of their time.
pub(super) struct Clock<E> {
    now: Time,
    number: u64,
    entries: BinaryHeap<Reverse<Entry<E>>>,
}

impl<E> Clock<E> {
    pub(super) fn new() -> Self {
        Self { now: 0, number: 0, entries: BinaryHeap::new() }
    }

    pub(super) const fn now(&self) -> Time {
        self.now
    }

    pub(super) fn at(&mut self, at: Time, event: E) {
        self.number += 1;
        self.entries.push(Reverse(Entry { at: at.max(self.now), number: self.number, event }));
    }

    pub(super) fn after(&mut self, length: Time, event: E) {
        self.at(self.now + length, event);
    }

    /// When the next event is due.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.entries.peek().map(|Reverse(entry)| entry.at)
    }

    /// Moves to the next event.
    pub(super) fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.entries.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}
