//! Who may be sent something now: few at a time and a short line behind them; everybody else is told at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::{MAX_WAITING, SLOT_WAIT, UPLOAD_SLOTS};

/// The slots of a node.
pub(super) struct Slots {
    // For those who are sent something and those in the short line.
    places: Arc<Semaphore>,
    slots: Arc<Semaphore>,
    // Counts those who found no place.
    sent_away: AtomicU64,
    // Counts places that came free, for those who were told that there is none.
    freed: watch::Sender<u64>,
}

impl Slots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(UPLOAD_SLOTS + MAX_WAITING)),
            slots: Arc::new(Semaphore::new(UPLOAD_SLOTS)),
            sent_away: AtomicU64::new(0),
            freed: watch::Sender::new(0),
        })
    }

    /// A place for a peer that may have these of its own; `None`, at once, if they or all places are taken.
    pub(super) fn enter(self: &Arc<Self>, own: &Arc<Semaphore>) -> Option<Place> {
        let own = Arc::clone(own).try_acquire_owned().ok()?;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.sent_away.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        Some(Place { permits: Some((own, place)), slots: Arc::clone(self) })
    }

    /// Changes when somebody finds no place: whoever had one since then lets others go first.
    pub(super) fn sent_away(&self) -> u64 {
        self.sent_away.load(Ordering::Relaxed)
    }

    /// Whether at least half of the slots are free.
    pub(super) fn are_half_free(&self) -> bool {
        2 * self.slots.available_permits() >= UPLOAD_SLOTS
    }

    /// Returns when there is a place for a peer with these of its own.
    pub(super) async fn free_for(&self, own: &Semaphore) {
        let mut freed = self.freed.subscribe();
        while self.places.available_permits() == 0 || own.available_permits() == 0 {
            // The sender is here.
            let _ = freed.changed().await;
        }
    }
}

/// The right to a slot, sooner or later.
pub(super) struct Place {
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    slots: Arc<Slots>,
}

impl Place {
    /// Waits for a slot; `None` if there is none soon.
    pub(super) async fn slot(self) -> Option<Slot> {
        let slots = Arc::clone(&self.slots.slots);
        let slot = timeout(SLOT_WAIT, slots.acquire_owned()).await.ok()?.ok()?;
        Some(Slot { _slot: slot, _place: self })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Free before it is told.
        drop(self.permits.take());
        self.slots.freed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The right to have something on its way to a peer. Its fields go in this order.
pub(super) struct Slot {
    _slot: OwnedSemaphorePermit,
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

    #[tokio::test]
    async fn whoever_finds_neither_slot_nor_line_is_sent_away_at_once_and_told_when_there_is_a_place() {
        let slots = Slots::new();
        let mut sent = Vec::new();
        for _ in 0..UPLOAD_SLOTS {
            sent.push(slots.enter(&own()).unwrap().slot().await.unwrap());
        }
        let mut line: Vec<_> =
            (0..MAX_WAITING).map(|_| Box::pin(slots.enter(&own()).unwrap().slot())).collect();
        assert!(line.iter_mut().all(|waiting| waiting.as_mut().now_or_never().is_none()));
        let (late, before) = (own(), slots.sent_away());
        assert!(slots.enter(&late).is_none());
        assert_ne!(slots.sent_away(), before);
        let mut told = Box::pin(slots.free_for(&late));
        assert!(told.as_mut().now_or_never().is_none());
        // The first in line has the slot that comes free, so that the line has a place.
        sent.pop();
        let _next = line.remove(0).now_or_never().flatten().unwrap();
        assert!(told.as_mut().now_or_never().is_some());
        assert!(slots.enter(&late).is_some());
    }

    #[test]
    fn a_peer_has_no_more_than_its_share_and_sends_nobody_away_with_it() {
        let (slots, own) = (Slots::new(), own());
        let _share: Vec<_> = (0..SLOTS_PER_PEER).map(|_| slots.enter(&own).unwrap()).collect();
        assert!(slots.enter(&own).is_none());
        assert_eq!(slots.sent_away(), 0);
    }
}
