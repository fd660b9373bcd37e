//! When origins last answered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::name::Host;

/// Of how many origins it is remembered; of more, the one that has not answered for the longest time is forgotten.
const MAX_ANSWERED: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Answered(Mutex<HashMap<Host, Instant>>);

impl Answered {
    fn lock(&self) -> MutexGuard<'_, HashMap<Host, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, host: &Host) -> Option<Instant> {
        self.lock().get(host).copied()
    }

    pub(super) fn note(&self, host: &Host) {
        let mut answered = self.lock();
        if let Some(when) = answered.get_mut(host) {
            *when = Instant::now();
            return;
        }
        if answered.len() >= MAX_ANSWERED
            && let Some(oldest) = answered.iter().min_by_key(|(_, when)| **when).map(|(host, _)| host.clone())
        {
            answered.remove(&oldest);
        }
        answered.insert(host.clone(), Instant::now());
    }
}
