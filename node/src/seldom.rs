//! What would be said again and again is said now and then, so that the log can be read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing more is said of a thing.
const SILENCE: Duration = Duration::from_secs(60);

/// How many things are remembered; of further ones nothing is said until one of these may be said again.
const MAX_SAID: usize = 256;

/// Things by name, with when each was said last.
#[derive(Default)]
pub(crate) struct Seldom(Mutex<HashMap<String, Said>>);

struct Said {
    when: Instant,
    left_out: u64,
}

impl Seldom {
    /// Whether to say it now; then also how often it was left out since the last time.
    pub(crate) fn say(&self, what: &dyn ToString) -> Option<u64> {
        self.say_at(what.to_string(), Instant::now())
    }

    fn say_at(&self, what: String, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |said: &Said| now.duration_since(said.when) < SILENCE;
        if let Some(said) = all.get_mut(&what) {
            if is_fresh(said) {
                said.left_out += 1;
                return None;
            }
            said.when = now;
            return Some(std::mem::take(&mut said.left_out));
        }
        if all.len() >= MAX_SAID {
            all.retain(|_, said| is_fresh(said));
        }
        if all.len() >= MAX_SAID {
            return None;
        }
        all.insert(what, Said { when: now, left_out: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_in_a_while_with_how_often_it_was_not() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let say = |what: &str, after: Duration| seldom.say_at(what.to_owned(), start + after);
        assert_eq!(say("a", Duration::ZERO), Some(0));
        assert_eq!([say("a", SILENCE / 2), say("a", SILENCE / 2)], [None, None]);
        assert_eq!(say("b", SILENCE / 2), Some(0), "another thing");
        assert_eq!(say("a", SILENCE), Some(2));
        assert_eq!(say("a", SILENCE * 3), Some(0));
    }

    #[test]
    fn ever_new_things_fill_neither_log_nor_memory() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let said =
            |after| (0..9999).filter_map(|n| seldom.say_at(format!("{n} {after:?}"), start + after)).count();
        assert_eq!(said(Duration::ZERO), MAX_SAID);
        assert_eq!(said(SILENCE), MAX_SAID);
        assert_eq!(seldom.0.lock().unwrap().len(), MAX_SAID);
    }
}
