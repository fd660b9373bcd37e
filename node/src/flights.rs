//! Those who want the same thing at once share one piece of work, and its outcome.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};

type Flight<T> = BoxFuture<'static, T>;

/// Work by key. Memory is taken only for keys that somebody waits for.
pub(crate) struct Flights<K, T: Clone>(Mutex<HashMap<K, WeakShared<Flight<T>>>>);

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, T: Clone> Flights<K, T> {
    /// The work that is under way for this key, else what `start` makes. It goes on while anybody waits for it, ends
    /// when nobody does, and whoever comes after its end starts anew.
    pub(crate) fn join(&self, key: K, start: impl FnOnce() -> Flight<T>) -> Shared<Flight<T>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.upgrade().is_some_and(|flight| flight.peek().is_none()));
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let flight = start().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn all_who_come_while_it_is_under_way_share_it_and_the_next_one_starts_anew() {
        let (flights, started) = (Flights::default(), AtomicU32::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let join = |key: &'static str| {
            flights.join(key, || {
                let (number, gate) = (started.fetch_add(1, Ordering::Relaxed), gate.clone());
                async move {
                    gate.acquire().await.unwrap().forget();
                    number
                }
                .boxed()
            })
        };
        let (first, second, other) = (join("a"), join("a"), join("b"));
        drop(first.clone());
        gate.add_permits(2);
        assert_eq!(futures::join!(second, other), (0, 1));
        // The first still has its outcome, which is over all the same.
        let third = join("a");
        gate.add_permits(1);
        assert_eq!((first.await, third.await), (0, 2));
    }

    #[tokio::test]
    async fn who_leaves_takes_nothing_from_the_others_and_work_that_nobody_wants_ends() {
        let flights = Flights::default();
        let gate = Arc::new(Semaphore::new(0));
        let work = || {
            let gate = gate.clone();
            async move { gate.acquire().await.unwrap().forget() }.boxed()
        };
        let (mut first, second) = (flights.join(1, work), flights.join(1, work));
        assert_eq!(futures::poll!(&mut first), std::task::Poll::Pending);
        drop(first);
        gate.add_permits(1);
        second.await;
        drop(flights.join(1, work));
        assert_eq!(Arc::strong_count(&gate), 1);
    }
}
