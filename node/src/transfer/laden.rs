//! Which blobs this node leads at the moment, so that those that it could lead too are left to others of its site.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wherry_proto::Digest;

/// The blobs that this node leads or is about to.
#[derive(Clone, Default)]
pub(super) struct Leading(Arc<Mutex<HashSet<Digest>>>);

impl Leading {
    fn lock(&self) -> MutexGuard<'_, HashSet<Digest>> {
        // The set is whole between any two of its changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of one blob, which is given up when it is dropped.
    pub(super) fn place(&self, blob: Digest) -> Place {
        Place { blob, taken: false, all: self.clone() }
    }
}

/// One blob's place among those that this node leads.
pub(super) struct Place {
    blob: Digest,
    // Whether it is taken.
    taken: bool,
    all: Leading,
}

impl Place {
    /// Whether the node leads another blob. Takes the place if not: of several that ask at the same time one has it, until
    /// it is said whether it [`leads`](Self::leads).
    pub(super) fn is_laden(&mut self) -> bool {
        let mut all = self.all.lock();
        if all.iter().any(|other| *other != self.blob) {
            return true;
        }
        all.insert(self.blob);
        self.taken = true;
        false
    }

    /// The node leads this blob or does not.
    pub(super) fn leads(&mut self, leads: bool) {
        if std::mem::replace(&mut self.taken, leads) == leads {
            return;
        }
        let mut all = self.all.lock();
        if leads {
            all.insert(self.blob);
        } else {
            all.remove(&self.blob);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leads(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_blobs_that_nobody_leads_one_may_be_led_at_once() {
        let all = Leading::default();
        let [mut one, mut two] = [b"one", b"two"].map(|name| all.place(Digest::sha256(name)));
        assert!(!one.is_laden() && two.is_laden());
        one.leads(false);
        assert!(!two.is_laden() && one.is_laden());
        two.leads(true);
        assert!(one.is_laden() && !two.is_laden());
        drop(two);
        assert!(!one.is_laden());
    }
}
