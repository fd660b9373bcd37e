//! Origins that could not be reached a moment ago: for a short while they are not asked about what can be answered without
//! them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wherry_gateway::Host;
use wherry_gateway::origin::OriginError;

use super::Images;
use crate::config::units::show_age;
use crate::status::LeftAlone;

/// How long such an origin is not asked. Whoever asks it while it is silent waits for seconds, so that many names behind it
/// are to cost that once; and once it is back nobody is to be answered from memory for much longer.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// How long an origin is left alone that was asked too often and does not say for how long, and at most: Docker Hub counts
/// over six hours, and gives single manifests meanwhile.
const LIMITED_FOR: Duration = Duration::from_secs(60);
const LIMITED_AT_MOST: Duration = Duration::from_secs(900);

/// How many origins are remembered as out of reach.
const MAX_DOWN: usize = 256;

/// An origin's last failure.
struct Failed {
    when: Instant,
    // The same in seconds since the Unix epoch.
    time: u64,
    what: String,
    why: String,
    // For how long it is left alone.
    wait: Duration,
    // It answers, but gives no manifests for now.
    is_limit: bool,
}

impl Failed {
    /// How long ago that was. A clock that was set meanwhile makes it longer, so that nothing is remembered for ever.
    fn age(&self, now: u64) -> Duration {
        Duration::from_secs(now.abs_diff(self.time))
    }
}

/// Origins that could not be reached, at most [`MAX_DOWN`].
#[derive(Default)]
pub(super) struct Down(Mutex<HashMap<Host, Failed>>);

impl Down {
    fn lock(&self) -> MutexGuard<'_, HashMap<Host, Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    /// Why an origin is not asked for this now: a moment ago it could not be reached, and it has answered nobody since; or it
    /// was asked too often.
    pub(super) fn is_down(&self, host: &Host, what: String) -> Option<OriginError> {
        let (down, now) = (self.0.down.lock(), (self.0.parts.clock)());
        let failed = down.get(host).filter(|failed| self.holds(host, failed, now))?;
        if failed.is_limit {
            let retry_after = Some(failed.wait.saturating_sub(failed.age(now)));
            return Some(OriginError::RateLimited { host: host.to_string(), what, retry_after });
        }
        let why = format!(
            "it was not asked, since {} ago it could not be reached to get {}: {}",
            show_age(failed.age(now)),
            failed.what,
            failed.why
        );
        Some(OriginError::Unreachable { host: host.to_string(), what, why })
    }

    /// Whether what failed still keeps this node from asking an origin.
    fn holds(&self, host: &Host, failed: &Failed, now: u64) -> bool {
        let answered = || self.0.parts.origins.answered(host).is_some_and(|answered| answered > failed.when);
        failed.age(now) < failed.wait && (failed.is_limit || !answered())
    }

    /// The registries and mirrors that are left alone now, why, and until when.
    pub fn left_alone(&self) -> Vec<LeftAlone> {
        let now = (self.0.parts.clock)();
        let of_origin = |(host, failed): (&Host, &Failed)| LeftAlone {
            registry: host.to_string(),
            mirror_of: None,
            why: match failed.is_limit {
                true => format!("it says that it was asked too often, last for {}", failed.what),
                false => format!("it could not be reached to get {}: {}", failed.what, failed.why),
            },
            until: failed.time.saturating_add(failed.wait.as_secs()),
        };
        let down = self.0.down.lock();
        let mut all: Vec<LeftAlone> =
            down.iter().filter(|(host, failed)| self.holds(host, failed, now)).map(of_origin).collect();
        drop(down);
        all.sort_by(|one, other| one.registry.cmp(&other.registry));
        all.extend(self.0.parts.origins.left_alone().into_iter().map(|it| LeftAlone {
            registry: it.mirror.to_string(),
            mirror_of: Some(it.of.to_string()),
            why: it.why,
            until: now.saturating_add(it.wait.as_secs()),
        }));
        all
    }

    /// Remembers that an origin could not be reached or wants to be left alone, if that is what the error says.
    pub(super) fn note_down(&self, host: &Host, error: &OriginError) {
        let (what, why, wait, is_limit) = match error {
            OriginError::Unreachable { what, why, .. } => (what, why.clone(), DOWN_FOR, false),
            OriginError::RateLimited { what, retry_after, .. } => {
                let wait = retry_after.unwrap_or(LIMITED_FOR).clamp(DOWN_FOR, LIMITED_AT_MOST);
                (what, String::new(), wait, true)
            }
            _ => return,
        };
        let (mut down, time) = (self.0.down.lock(), (self.0.parts.clock)());
        down.retain(|_, failed| failed.age(time) < failed.wait);
        if down.len() < MAX_DOWN || down.contains_key(host) {
            let failed = Failed { when: Instant::now(), time, what: what.clone(), why, wait, is_limit };
            down.insert(host.clone(), failed);
        }
    }
}
