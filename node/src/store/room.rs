//! Who makes room for whom: abandoned partial blobs first, then blobs by their last use. Pinned blobs stay, and those that
//! somebody has a handle of; what is left of a pinned blob that was damaged stays as well.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use wherry_proto::Digest;

use super::shared::{PartialEntry, PartialKey, Shared, State, Victim, entry_charge, lock};
use super::{StoreError, Why};

/// What leaves, each with the bytes that it frees.
type Victims = Vec<(Victim, u64)>;

impl State {
    /// Whether a partial blob makes room: not one that is being filled, nor what is left of a pinned blob.
    pub(super) fn may_go(&self, key: &PartialKey, partial: &PartialEntry) -> bool {
        let is_pinned = self.damaged.get(&key.0) == Some(&key.1) && self.pins.contains_key(&key.0);
        !partial.open && !is_pinned
    }

    /// Who goes, but not the partial blob `but`, so that `excess` bytes are freed; and whether these are enough.
    fn victims(&self, excess: u64, but: Option<&PartialKey>) -> (Victims, bool) {
        let may_go =
            |(key, partial): &(&PartialKey, &PartialEntry)| Some(*key) != but && self.may_go(key, partial);
        let mut partials: Vec<_> = self.partials.iter().filter(may_go).collect();
        partials.sort_unstable_by_key(|(_, partial)| partial.closed);
        let is_loose = |(digest, entry): &(&Digest, &Arc<_>)| {
            Arc::strong_count(*entry) == 1 && !self.pins.contains_key(*digest)
        };
        let mut blobs: Vec<_> = self.blobs.iter().filter(is_loose).collect();
        blobs.sort_unstable_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed));

        let partials = partials.into_iter().map(|(key, partial)| (Victim::Partial(*key), partial.charge));
        let blobs = blobs
            .into_iter()
            .map(|(digest, entry)| (Victim::Blob(*digest), entry_charge(digest, entry.size)));
        let (mut victims, mut left) = (Vec::new(), excess);
        for (victim, frees) in partials.chain(blobs) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(frees);
            victims.push((victim, frees));
        }
        (victims, left == 0)
    }

    fn excess(&self, charge: u64, budget: Option<u64>) -> u64 {
        self.used.saturating_add(charge).saturating_sub(budget.unwrap_or(u64::MAX))
    }
}

impl Shared {
    /// Evicts what may go, but not the partial blob `but`, so that `charge` more bytes fit, and charges them; nothing
    /// changes if they cannot fit.
    pub(super) fn make_room(
        &self,
        files: &MutexGuard<'_, ()>,
        charge: u64,
        but: Option<&PartialKey>,
    ) -> Result<(), StoreError> {
        let victims = {
            let mut state = lock(&self.state);
            let (victims, is_enough) = state.victims(state.excess(charge, self.budget), but);
            if !is_enough {
                drop(state);
                return Err(self.no_space(charge));
            }
            self.take_away(&mut state, &victims);
            state.used = state.used.saturating_add(charge);
            victims
        };
        self.evict_files(files, victims);
        Ok(())
    }

    pub(super) fn over_budget(&self) -> Vec<(Digest, u64)> {
        let state = lock(&self.state);
        let (victims, _) = state.victims(state.excess(0, self.budget), None);
        let blobs = victims.into_iter().filter_map(|(victim, _)| match victim {
            Victim::Blob(digest) => Some((digest, state.blobs.get(&digest)?.size)),
            Victim::Partial(_) => None,
        });
        blobs.collect()
    }

    pub(super) fn keep_budget(&self) {
        let files = lock(&self.files);
        let victims = {
            let mut state = lock(&self.state);
            let (victims, _) = state.victims(state.excess(0, self.budget), None);
            self.take_away(&mut state, &victims);
            victims
        };
        self.evict_files(&files, victims);
    }

    pub(super) fn would_fit(&self, blobs: &HashMap<Digest, u64>) -> Result<(), StoreError> {
        let Some(budget) = self.budget else { return Ok(()) };
        let (needed, used) = {
            let state = lock(&self.state);
            let missing = blobs.iter().filter(|(digest, _)| !state.blobs.contains_key(*digest));
            let needed = missing.map(|(digest, size)| entry_charge(digest, *size)).sum::<u64>();
            let others = state.pins.keys().filter(|digest| !blobs.contains_key(digest));
            // Of a damaged one its rest has its place.
            let charge = |digest: &Digest| match state.blobs.get(digest) {
                Some(entry) => Some(entry_charge(digest, entry.size)),
                None => Some(state.partials.get(&(*digest, *state.damaged.get(digest)?))?.charge),
            };
            let held = blobs.keys().filter(|digest| state.blobs.contains_key(digest));
            (needed, others.chain(held).filter_map(charge).sum::<u64>())
        };
        if needed > 0 && needed > budget.saturating_sub(used) {
            return Err(StoreError::NoSpace { needed, free: self.free(), budget: Some(budget), used });
        }
        Ok(())
    }

    /// Takes what leaves out of the maps.
    fn take_away(&self, state: &mut State, victims: &Victims) {
        for (victim, frees) in victims {
            match victim {
                Victim::Partial(key) => drop(state.partials.remove(key)),
                Victim::Blob(digest) => {
                    state.blobs.remove(digest);
                    self.tell_gone(digest, Why::Evicted);
                }
            }
            state.used = state.used.saturating_sub(*frees);
        }
    }

    /// What could not be removed is logged, and found at the next start.
    fn evict_files(&self, _files: &MutexGuard<'_, ()>, victims: Victims) {
        for (victim, _) in victims {
            if let Err(error) = self.evict(&victim) {
                tracing::warn!(%error, "an evicted blob could not be removed");
            }
        }
    }

    /// Removes the files of what had to make room. Of a damaged blob nothing is here then, so that it is one like any other.
    pub(super) fn evict(&self, victim: &Victim) -> Result<(), StoreError> {
        if let Victim::Partial((digest, size)) = victim
            && lock(&self.state).damaged.get(digest) == Some(size)
        {
            self.mend(digest);
        }
        self.remove_files(victim)
    }
}
