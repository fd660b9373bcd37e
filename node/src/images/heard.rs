//! What is known of a tag while it is found out what it means.

use tokio::time::{Instant, timeout_at};
use wherry_gateway::Reference;
use wherry_gateway::server::Source;
use wherry_proto::{TagRecord, TagWord};

use super::{ImageError, TagEntry};

/// What is known of a tag before the origin is asked.
pub(super) struct Heard {
    pub(super) known: Option<TagEntry>,
    pub(super) source: Source,
    // The best of those that lie too far ahead of the clock.
    pub(super) ahead: Option<TagRecord>,
}

impl Heard {
    /// What the tag means, unless that was taken back.
    pub(super) fn meaning(&self) -> Option<&TagEntry> {
        self.known.as_ref().filter(|entry| entry.counts())
    }

    /// Nobody gives what was pushed: an origin is not asked instead, since what it has under this name is something else.
    pub(super) fn unless_lost(&self, reference: &Reference) -> Result<(), ImageError> {
        match self.meaning() {
            Some(entry) if entry.record.word == TagWord::Pushed => {
                Err(ImageError::Lost { what: reference.to_string(), digest: entry.record.digest })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn has_answer(&self) -> bool {
        self.meaning().is_some() || self.ahead.is_some()
    }

    /// What comes of this until then, or however late where there is nothing to serve instead. `None` if it is late.
    pub(super) async fn unless_late<T>(&self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        if self.has_answer() { timeout_at(until, work).await.ok() } else { Some(work.await) }
    }
}

/// When an origin was asked, and what was known then.
pub(super) struct Asking {
    /// In seconds since the Unix epoch. What it says counts from then on: the answer may have been long on its way.
    pub(super) at: u64,
    /// The sequence of the record that was known.
    pub(super) before: Option<u64>,
}

impl Asking {
    /// Whether this was learned since.
    pub(super) fn is_before(&self, known: &TagEntry) -> bool {
        self.before.is_none_or(|before| known.record.sequence > before)
    }
}
