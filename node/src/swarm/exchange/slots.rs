//! Who may be sent something now: few at a time, a few more wait in line, and everybody else is told at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::{UPLOAD_SLOTS, UPLOAD_WAIT, WAITING_UPLOADS};

/// For how long upload counts as scarce after somebody found no place. Where chunks and links are alike all slots come
/// free in the same moment, which is no sign of plenty.
const SCARCE_TIME: Duration = Duration::from_millis(200);

/// The slots of a node, and the short line for them.
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    // Those who have a slot, and those in line.
    places: Arc<Semaphore>,
    // Counts those who found no place, and when the last one did.
    sent_away: AtomicU64,
    last_sent_away: Mutex<Option<Instant>>,
    // How many of them wait to be told.
    told_away: AtomicUsize,
    // That a place came free, for those who were told that there is none, in the order in which they were.
    freed: Notify,
}

impl Slots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(UPLOAD_SLOTS)),
            places: Arc::new(Semaphore::new(UPLOAD_SLOTS + WAITING_UPLOADS)),
            sent_away: AtomicU64::new(0),
            last_sent_away: Mutex::default(),
            told_away: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// A place for a peer that may have these of its own; `None`, at once, if they or all places are taken. The line is
    /// short: who is sent away asks somebody else meanwhile, and is told.
    pub(super) fn take(self: &Arc<Self>, own: &Arc<Semaphore>) -> Option<Place> {
        let own = Arc::clone(own).try_acquire_owned().ok()?;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.sent_away.fetch_add(1, Ordering::Relaxed);
            *self.last_sent_away.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            return None;
        };
        Some(Place { permits: Some((own, place)), slots: Arc::clone(self) })
    }

    /// Changes when somebody finds no place: whoever had one since then lets others go first.
    pub(super) fn sent_away(&self) -> u64 {
        self.sent_away.load(Ordering::Relaxed)
    }

    /// Whether upload is plentiful: at least half of the slots are free, and everybody found a place lately.
    pub(super) fn are_plentiful(&self, now: Instant) -> bool {
        let last = *self.last_sent_away.lock().unwrap_or_else(PoisonError::into_inner);
        2 * self.slots.available_permits() >= UPLOAD_SLOTS
            && last.is_none_or(|last| now.saturating_duration_since(last) >= SCARCE_TIME)
    }

    /// Returns when there is a place for a peer with these of its own, and it is its turn among those who wait for one.
    pub(super) async fn free_for(&self, own: &Semaphore) {
        let mut is_first = self.told_away.fetch_add(1, Ordering::Relaxed) == 0;
        let _waits = Counted(&self.told_away);
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // In line before it is looked: what comes free meanwhile is not missed.
            freed.as_mut().enable();
            if is_first && self.places.available_permits() > 0 && own.available_permits() > 0 {
                return;
            }
            freed.await;
            is_first = true;
        }
    }
}

/// One of a count, until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to be sent something now or next.
pub(super) struct Place {
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    slots: Arc<Slots>,
}

impl Place {
    /// The slot that it stands for, in the order of the line; `None` if it takes longer than [`UPLOAD_WAIT`].
    pub(super) async fn slot(self) -> Option<Slot> {
        self.slot_within(UPLOAD_WAIT).await
    }

    async fn slot_within(self, wait: Duration) -> Option<Slot> {
        let waiting = Arc::clone(&self.slots.slots).acquire_owned();
        let sending = timeout(wait, waiting).await.ok()?.ok()?;
        Some(Slot { _sending: sending, _place: self })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Free before it is told.
        drop(self.permits.take());
        // As many of those who found none as there are now, the first of them first: were more told, more would ask, and be
        // sent away again, which is most of what is said where upload is scarce. One that has found elsewhere what it
        // wanted leaves a place free, of which two are told when the next one is.
        let free = self.slots.places.available_permits();
        (0..free).for_each(|_| self.slots.freed.notify_one());
    }
}

/// The right to have something on its way to a peer. The next in line has it before anybody is told of the place.
pub(super) struct Slot {
    _sending: OwnedSemaphorePermit,
    _place: Place,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::super::SLOTS_PER_PEER;
    use super::*;

    fn own() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(SLOTS_PER_PEER))
    }

    /// How many have a place when all places are taken.
    const ALL: usize = UPLOAD_SLOTS + WAITING_UPLOADS;

    #[tokio::test]
    async fn those_in_line_get_the_slots_that_come_free_in_turn() {
        let slots = Slots::new();
        let places: Vec<_> = (0..ALL).map(|_| slots.take(&own()).unwrap()).collect();
        let mut line: Vec<_> = places.into_iter().map(|place| Box::pin(place.slot())).collect();
        let mut sent: Vec<_> = line.iter_mut().map(|next| next.as_mut().now_or_never()).collect();
        assert!(sent.iter().take(UPLOAD_SLOTS).all(Option::is_some));
        assert!(sent.iter().skip(UPLOAD_SLOTS).all(Option::is_none));
        sent.remove(0);
        assert!(slots.take(&own()).is_some(), "who had a slot has left a place");
        let next = line.iter_mut().skip(UPLOAD_SLOTS).map(|next| next.as_mut().now_or_never());
        let next: Vec<_> = next.collect();
        assert!(next[0].is_some() && next[1].is_none());
    }

    #[tokio::test]
    async fn whoever_waits_in_line_for_too_long_is_told_to_ask_again() {
        let slots = Slots::new();
        let mut sent = Vec::new();
        for _ in 0..UPLOAD_SLOTS {
            sent.push(slots.take(&own()).unwrap().slot().await.unwrap());
        }
        let late = slots.take(&own()).unwrap();
        assert!(late.slot_within(Duration::from_millis(10)).await.is_none());
        sent.pop();
        let next = slots.take(&own()).unwrap();
        assert!(
            next.slot_within(Duration::from_millis(10)).await.is_some(),
            "who gave up is in nobody's way"
        );
    }

    #[tokio::test]
    async fn whoever_finds_no_place_is_sent_away_at_once_and_told_when_there_is_one() {
        let slots = Slots::new();
        let mut sent: Vec<_> = (0..ALL).map(|_| slots.take(&own()).unwrap()).collect();
        let (late, before) = (own(), slots.sent_away());
        assert!(slots.take(&late).is_none());
        assert_ne!(slots.sent_away(), before);
        let mut told = Box::pin(slots.free_for(&late));
        assert!(told.as_mut().now_or_never().is_none());
        sent.pop();
        assert!(told.as_mut().now_or_never().is_some());
        assert!(slots.take(&late).is_some());
    }

    #[tokio::test]
    async fn of_many_who_found_no_place_as_many_are_told_as_there_are_places_and_all_in_turn() {
        let slots = Slots::new();
        let mut sent: Vec<_> = (0..ALL).map(|_| slots.take(&own()).unwrap()).collect();
        let late: Vec<_> = (0..9).map(|_| own()).collect();
        let mut waiting: Vec<_> = late.iter().map(|own| Box::pin(slots.free_for(own))).collect();
        waiting.iter_mut().for_each(|told| assert!(told.as_mut().now_or_never().is_none()));
        // One of those who are told each time takes nothing, so that one more place is free the next time.
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
        assert_eq!(slots.sent_away(), 0);
    }

    #[test]
    fn upload_is_scarce_for_a_while_after_somebody_was_sent_away() {
        let slots = Slots::new();
        let now = Instant::now();
        assert!(slots.are_plentiful(now));
        let taken: Vec<_> = (0..ALL).map(|_| slots.take(&own()).unwrap()).collect();
        assert!(slots.take(&own()).is_none() && !slots.are_plentiful(now));
        drop(taken);
        assert!(!slots.are_plentiful(now));
        assert!(slots.are_plentiful(Instant::now() + SCARCE_TIME));
    }
}
