//! How old what is known of a tag is, with clocks that may be wrong.

use std::time::Duration;

use wherry_gateway::Reference;
use wherry_proto::TagRecord;

use super::Images;

/// How far ahead of this node's clock a time may lie at which an origin confirmed a tag, in seconds. One beyond this comes
/// from a wrong clock and says nothing of the answer's age, which then is unknown, as if it had not been confirmed.
const CLOCK_SKEW: u64 = 30;

/// How far ahead of this node's clock a record's sequence may lie, in seconds. Honest sequences are at most a few
/// above the time at which they were signed, so one beyond this comes from a wrong clock or from a member that wants
/// its word to win for ever.
///
/// Such a record is neither kept nor passed on, never counts as confirmed, and the origin is asked before it. It is
/// the last resort all the same: it may be this node's clock that is wrong, as after a start without a battery, when
/// every record of the site lies ahead, and the site's newest answer must still be had without its origin. A
/// member that lies wins nothing by it that it could not have within the bound, and nothing that lasts: whoever
/// resolves next signs a number that is higher than all that were kept.
const MAX_AHEAD: u64 = 24 * 60 * 60;

impl Images {
    pub(super) fn is_ahead(&self, record: &TagRecord) -> bool {
        record.sequence > (self.0.parts.clock)().saturating_add(MAX_AHEAD)
    }

    pub(super) fn is_fresh(&self, reference: &Reference, confirmed: u64) -> bool {
        self.age(confirmed).is_some_and(|age| age < self.0.parts.tags.ttl(reference))
    }

    /// How long ago an origin confirmed what it confirmed then; `None` if none did, or not at that time.
    pub(super) fn age(&self, confirmed: u64) -> Option<Duration> {
        let age = (self.0.parts.clock)().saturating_sub(confirmed);
        (self.credible(confirmed) > 0).then(|| Duration::from_secs(age))
    }

    /// When an origin confirmed something, as far as that can be; else 0, as if none had.
    pub(super) fn credible(&self, confirmed: u64) -> u64 {
        if confirmed <= self.latest() { confirmed } else { 0 }
    }

    /// After this time nothing can have been confirmed, in seconds since the Unix epoch.
    pub(super) fn latest(&self) -> u64 {
        (self.0.parts.clock)().saturating_add(CLOCK_SKEW)
    }
}
