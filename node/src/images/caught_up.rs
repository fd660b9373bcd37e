//! Of which tags it is known what the site has learned of them while this node was away.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wherry_gateway::Reference;

use super::MAX_IMAGES;

/// The tags of which the other nodes have been asked since the last of them came, and since this one was started. At most
/// [`MAX_IMAGES`]: of further ones they are asked each time.
#[derive(Default)]
pub(super) struct CaughtUp(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    /// How often somebody had come when the first of these was asked about.
    meetings: u64,
    tags: HashSet<String>,
}

impl CaughtUp {
    fn lock(&self, meetings: u64) -> MutexGuard<'_, Asked> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.meetings < meetings {
            *asked = Asked { meetings, tags: HashSet::new() };
        }
        asked
    }

    /// Whether they have been asked about a tag since somebody came for the last time.
    pub(super) fn has(&self, tag: &Reference, meetings: u64) -> bool {
        self.lock(meetings).tags.contains(&tag.to_string())
    }

    /// They have been asked about a tag, when somebody had come so often.
    pub(super) fn add(&self, tag: &Reference, meetings: u64) {
        let mut asked = self.lock(meetings);
        if asked.meetings == meetings && asked.tags.len() < MAX_IMAGES {
            asked.tags.insert(tag.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn what_was_asked_before_somebody_came_does_not_count() {
        let caught_up = CaughtUp::default();
        let [one, two] = ["r.example/a:1", "r.example/a:2"].map(|tag| tag.parse::<Reference>().unwrap());
        caught_up.add(&one, 0);
        assert!(caught_up.has(&one, 0) && !caught_up.has(&two, 0));
        assert!(!caught_up.has(&one, 1));
        // That began before, and says nothing of whoever came meanwhile.
        caught_up.add(&one, 0);
        assert!(!caught_up.has(&one, 1));
        caught_up.add(&one, 1);
        assert!(caught_up.has(&one, 1));
    }

    #[test]
    fn ever_new_tags_fill_no_memory() {
        let caught_up = CaughtUp::default();
        for number in 0..MAX_IMAGES + 5 {
            caught_up.add(&format!("r.example/a:{number}").parse().unwrap(), 0);
        }
        assert_eq!(caught_up.lock(0).tags.len(), MAX_IMAGES);
    }
}
