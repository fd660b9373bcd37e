//! Who may be sent something now: few at a time, and everybody else is told at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{MOST_IN_A_ROW, UPLOAD_SLOTS};

/// For how long upload counts as scarce after somebody found no slot. Where chunks and links are alike all slots come
/// free in the same moment, which is no sign of plenty.
const SCARCE_TIME: Duration = Duration::from_millis(200);

/// How many bytes [`MOST_IN_A_ROW`] answers may have: 32 chunks of the shorter ones, while of the longest a few take as long.
const MOST_BYTES_IN_A_ROW: usize = 2 << 20;

/// How long a peer may keep a slot so, however slowly it takes: others are to have a place before they give up, and on slow
/// links a few chunks take as long.
const MOST_TIME_IN_A_ROW: Duration = Duration::from_secs(60);

/// The slots of a node.
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    // When somebody last found none.
    last_sent_away: Mutex<Option<Instant>>,
    // How many are to be told when there is one.
    waiting: AtomicUsize,
    // That a slot came free, for those who were told that there is none, in the order in which they were.
    freed: Notify,
}

impl Slots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(UPLOAD_SLOTS)),
            last_sent_away: Mutex::default(),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// A slot for a peer that may have these of its own; `None`, at once, if they or all slots are taken. Nobody waits in
    /// a line: who is sent away asks somebody else meanwhile, and is told.
    pub(super) fn take(self: &Arc<Self>, own: &Arc<Semaphore>) -> Option<Slot> {
        let own = Arc::clone(own).try_acquire_owned().ok()?;
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            *self.last_sent_away.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            return None;
        };
        Some(Slot { permits: Some((own, slot)), slots: Arc::clone(self) })
    }

    /// Whether somebody waits to be told of a slot.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether upload is plentiful for somebody who may have one of the slots already: at least half of them are free but for
    /// that one, and everybody found one lately.
    pub(super) fn are_plentiful(&self, now: Instant, has_one: bool) -> bool {
        let last = *self.last_sent_away.lock().unwrap_or_else(PoisonError::into_inner);
        2 * (self.slots.available_permits() + usize::from(has_one)) >= UPLOAD_SLOTS
            && last.is_none_or(|last| now.saturating_duration_since(last) >= SCARCE_TIME)
    }

    /// Returns when there is a slot for a peer with these of its own.
    pub(super) async fn free_for(&self, own: &Semaphore) {
        let _waits = Waits::new(&self.waiting);
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // In line before it is looked: what comes free meanwhile is not missed.
            freed.as_mut().enable();
            if self.slots.available_permits() > 0 && own.available_permits() > 0 {
                return;
            }
            freed.await;
        }
    }
}

/// That somebody waits, for as long as this lives.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to have something on its way to a peer.
pub(super) struct Slot {
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    slots: Arc<Slots>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Free before it is told.
        drop(self.permits.take());
        // As many of those who found none as there are now, the first of them first: were more told, more would ask, and be
        // sent away again, which is most of what is said where upload is scarce. One that has found elsewhere what it
        // wanted leaves a slot free, of which two are told when the next one is.
        let free = self.slots.slots.available_permits();
        (0..free).for_each(|_| self.slots.freed.notify_one());
    }
}

/// The slot that a connection has for what it sends, if it has one, and what was sent in it.
#[derive(Default)]
pub(super) struct Held {
    slot: Option<(Slot, Instant)>,
    answers: u32,
    bytes: usize,
}

impl Held {
    pub(super) fn is_free(&self) -> bool {
        self.slot.is_none()
    }

    pub(super) fn take(&mut self, slot: Slot) {
        *self = Self { slot: Some((slot, Instant::now())), answers: 0, bytes: 0 };
    }

    pub(super) fn free(&mut self) {
        *self = Self::default();
    }

    /// So many bytes are sent, in the slot if there is one.
    pub(super) fn sends(&mut self, bytes: usize) {
        self.answers = self.answers.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether the slot has been used for as much, or as long, as it may be while others find none.
    pub(super) fn has_had_its_time(&self, now: Instant) -> bool {
        let is_old =
            |(_, since): &(Slot, Instant)| now.saturating_duration_since(*since) >= MOST_TIME_IN_A_ROW;
        self.answers >= MOST_IN_A_ROW
            || self.bytes >= MOST_BYTES_IN_A_ROW
            || self.slot.as_ref().is_some_and(is_old)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::super::SLOTS_PER_PEER;
    use super::*;

    fn own() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(SLOTS_PER_PEER))
    }

    #[tokio::test]
    async fn whoever_finds_no_slot_is_sent_away_at_once_and_told_when_there_is_one() {
        let slots = Slots::new();
        let mut sent: Vec<_> = (0..UPLOAD_SLOTS).map(|_| slots.take(&own()).unwrap()).collect();
        let late = own();
        assert!(slots.take(&late).is_none() && !slots.are_wanted());
        let mut told = Box::pin(slots.free_for(&late));
        assert!(told.as_mut().now_or_never().is_none() && slots.are_wanted());
        sent.pop();
        assert!(told.as_mut().now_or_never().is_some() && !slots.are_wanted());
        assert!(slots.take(&late).is_some());
    }

    #[tokio::test]
    async fn of_many_who_found_no_slot_as_many_are_told_as_there_are_slots_and_all_in_turn() {
        let slots = Slots::new();
        let mut sent: Vec<_> = (0..UPLOAD_SLOTS).map(|_| slots.take(&own()).unwrap()).collect();
        let late: Vec<_> = (0..9).map(|_| own()).collect();
        let mut waiting: Vec<_> = late.iter().map(|own| Box::pin(slots.free_for(own))).collect();
        waiting.iter_mut().for_each(|told| assert!(told.as_mut().now_or_never().is_none()));
        // One of those who are told each time takes nothing, so that one more slot is free the next time.
        for free in [1, 2, 2, 2] {
            sent.pop();
            let told = waiting.iter_mut().map(|told| told.as_mut().now_or_never().is_some());
            let told = told.take_while(|told| *told).count();
            assert_eq!(told, free);
            waiting.drain(..told);
            sent.extend((1..told).filter_map(|_| slots.take(&own())));
        }
    }

    #[test]
    fn a_peer_has_no_more_than_its_share_and_sends_nobody_away_with_it() {
        let (slots, own) = (Slots::new(), own());
        let _share: Vec<_> = (0..SLOTS_PER_PEER).map(|_| slots.take(&own).unwrap()).collect();
        assert!(slots.take(&own).is_none());
        assert!(slots.last_sent_away.lock().unwrap().is_none());
    }

    #[test]
    fn upload_is_scarce_for_a_while_after_somebody_was_sent_away() {
        let slots = Slots::new();
        let now = Instant::now();
        assert!(slots.are_plentiful(now, false));
        let taken: Vec<_> = (0..UPLOAD_SLOTS).map(|_| slots.take(&own()).unwrap()).collect();
        assert!(!slots.are_plentiful(now, false) && slots.take(&own()).is_none());
        drop(taken);
        assert!(!slots.are_plentiful(now, false));
        assert!(slots.are_plentiful(Instant::now() + SCARCE_TIME, false));
    }

    #[test]
    fn a_slot_is_kept_for_so_many_answers_so_many_bytes_or_so_long() {
        let slots = Slots::new();
        let now = Instant::now();
        let mut held = Held::default();
        let mut has_had_its_time_after = |answers: u32, bytes: usize, later: Duration| {
            held.free();
            held.take(slots.take(&own()).unwrap());
            (0..answers).for_each(|_| held.sends(bytes));
            held.has_had_its_time(now + later)
        };
        let short = 64 << 10;
        assert!(!has_had_its_time_after(MOST_IN_A_ROW - 1, short, Duration::ZERO));
        assert!(has_had_its_time_after(MOST_IN_A_ROW, 1, Duration::ZERO));
        assert!(!has_had_its_time_after(3, 512 << 10, Duration::ZERO));
        assert!(has_had_its_time_after(4, 512 << 10, Duration::ZERO));
        assert!(!has_had_its_time_after(1, short, MOST_TIME_IN_A_ROW / 2));
        assert!(has_had_its_time_after(1, short, 2 * MOST_TIME_IN_A_ROW));
    }
}
