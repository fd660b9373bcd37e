//! Who makes room for whom: abandoned partial blobs first, then blobs [image by image](super::order). Pinned blobs stay, and
//! those that somebody has a handle of; what is left of a pinned blob that was damaged stays as well.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use wherry_proto::Digest;

use super::order::{Held, Images};
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
        let partials = partials.into_iter().map(|(key, partial)| (Victim::Partial(*key), partial.charge));
        let (mut victims, mut freed) = (Vec::new(), 0);
        for (victim, frees) in partials {
            if freed >= excess {
                return (victims, true);
            }
            freed += frees;
            victims.push((victim, frees));
        }
        if freed >= excess {
            return (victims, true);
        }
        let held: HashMap<Digest, Held> = self
            .blobs
            .iter()
            .map(|(digest, entry)| {
                let is_loose = Arc::strong_count(entry) == 1 && !self.pins.contains_key(digest);
                let (used, frees) = (entry.used.load(Ordering::Relaxed), entry_charge(digest, entry.size));
                (*digest, Held { used, is_loose, frees })
            })
            .collect();
        let coming: HashSet<Digest> = self
            .partials
            .iter()
            .filter(|(_, partial)| partial.open)
            .map(|((digest, _), _)| *digest)
            .collect();
        let images = Images::new(&held, &self.named);
        let mut going = Vec::new();
        for digest in images.order(&coming) {
            if freed >= excess {
                break;
            }
            freed += held[&digest].frees;
            going.push(digest);
        }
        // What was taken before something large may not have been needed: of that, what was used last stays first.
        let mut goes: HashSet<Digest> = going.iter().copied().collect();
        for digest in going.iter().rev() {
            let together = images.with_what_tells_of(digest, &goes);
            let frees: u64 = together.iter().map(|digest| held[digest].frees).sum();
            if freed.saturating_sub(frees) >= excess {
                freed -= frees;
                together.iter().for_each(|digest| _ = goes.remove(digest));
            }
        }
        let going = going.into_iter().filter(|digest| goes.contains(digest));
        let going = going.chain(images.left_with_nothing(&goes, &coming));
        victims.extend(going.map(|digest| (Victim::Blob(digest), held[&digest].frees)));
        (victims, freed >= excess)
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
                    state.take(digest);
                    self.note_change();
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
