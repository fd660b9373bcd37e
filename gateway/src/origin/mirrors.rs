//! Other registries that have what an origin has.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use wherry_proto::Digest;

use super::http::{Http, Target};
use super::retry::Failure;
use super::{OriginError, OriginSettings};
use crate::name::{Host, NameError, Repository};

/// How long a mirror may take until it begins to answer about a manifest. Whoever asks what a tag means waits for little
/// more than a second where an older answer is at hand, and the origin is still to be asked.
pub(super) const MANIFEST_PATIENCE: Duration = Duration::from_secs(1);

/// The same for blobs. Clients are to be refused, or given something, within 10 s.
pub(super) const BLOB_PATIENCE: Duration = Duration::from_secs(4);

/// Whoever gives up on a mirror after so long has waited in vain.
const IN_VAIN: Duration = Duration::from_millis(750);

/// How long the mirrors of an origin are not asked for a blob of which something wrong came, and of how many blobs it is
/// remembered; of further ones, those that were found out first are forgotten.
const DOUBTED_FOR: Duration = Duration::from_secs(60 * 60);
const MAX_DOUBTED: usize = 1024;

/// How long a mirror is left alone that could not be reached, or gave something wrong.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// A registry that is asked before the origin itself: `mirror.example`, or `harbor.example/hub` where the origin's
/// repositories are below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry.
    pub host: Host,
    /// What its repositories have before the origin's own names.
    pub below: Option<Repository>,
}

impl FromStr for Mirror {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((host, below)) => Ok(Self { host: host.parse()?, below: Some(below.parse()?) }),
            None => Ok(Self { host: text.parse()?, below: None }),
        }
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.below {
            Some(below) => write!(f, "{}/{below}", self.host),
            None => self.host.fmt(f),
        }
    }
}

/// A mirror that is left alone for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftAlone {
    /// The mirror.
    pub mirror: Mirror,
    /// The registry that it is a mirror of.
    pub of: Host,
    /// What was wrong with it.
    pub why: String,
    /// For how much longer.
    pub wait: Duration,
}

/// A mirror, and whether it is of use now.
#[derive(Debug)]
pub(super) struct Known {
    mirror: Mirror,
    of: Host,
    /// When it may be asked again, and why not before.
    again: Mutex<Option<(Instant, String)>>,
}

impl Known {
    fn is_left_alone(&self) -> bool {
        self.left_alone().is_some()
    }

    fn left_alone(&self) -> Option<LeftAlone> {
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, why) = again.as_ref()?;
        let wait = until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
        Some(LeftAlone { mirror: self.mirror.clone(), of: self.of.clone(), why: why.clone(), wait })
    }

    /// The mirror is left alone for a while.
    pub(super) fn leave_alone(&self, why: &dyn fmt::Display) {
        let until = Instant::now() + LEFT_ALONE;
        let again = (until, why.to_string());
        let before = self.again.lock().unwrap_or_else(PoisonError::into_inner).replace(again);
        // Several may have been on their way to it.
        if before.is_none_or(|(before, _)| before <= Instant::now()) {
            let seconds = LEFT_ALONE.as_secs();
            tracing::warn!(
                mirror = %self.mirror, of = %self.of, %why, "a mirror is of no use now: it is left alone for {seconds} s"
            );
        }
    }

    /// What is asked of it instead of the origin.
    pub(super) const fn target<'a>(&'a self, repository: &'a Repository, what: &'a str) -> Target<'a> {
        Target { host: &self.mirror.host, repository, what }
    }

    fn repository(&self, repository: &Repository) -> Result<Repository, NameError> {
        match &self.mirror.below {
            Some(below) => format!("{below}/{repository}").parse(),
            None => Ok(repository.clone()),
        }
    }
}

/// The mirrors of all origins, in the order in which they are asked.
#[derive(Debug)]
pub(super) struct Mirrors {
    known: HashMap<Host, Vec<Arc<Known>>>,
    /// Blobs of which something wrong came, and when.
    doubted: Mutex<HashMap<(Host, Digest), Instant>>,
}

impl Mirrors {
    pub(super) fn new(settings: &OriginSettings) -> Self {
        let mut all: HashMap<Host, Vec<_>> = HashMap::new();
        for (host, its) in &settings.hosts {
            let known = its.mirrors.iter().map(|mirror| {
                Arc::new(Known { mirror: mirror.clone(), of: host.clone(), again: Mutex::default() })
            });
            all.entry(host.clone()).or_default().extend(known);
        }
        Self { known: all, doubted: Mutex::default() }
    }

    /// Those that are left alone now, in the order of their names.
    pub(super) fn left_alone(&self) -> Vec<LeftAlone> {
        let mut all: Vec<_> = self.known.values().flatten().filter_map(|known| known.left_alone()).collect();
        all.sort_by_cached_key(|it| (it.mirror.to_string(), it.of.clone()));
        all
    }

    /// Something wrong has come of a blob: the mirrors of its origin are not asked for it again for an hour.
    pub(super) fn doubt(&self, host: &Host, digest: &Digest) {
        if !self.known.contains_key(host) {
            return;
        }
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        doubted.retain(|_, since| now.duration_since(*since) < DOUBTED_FOR);
        if doubted.len() >= MAX_DOUBTED
            && let Some(oldest) = doubted.iter().min_by_key(|(_, since)| **since).map(|(key, _)| key.clone())
        {
            doubted.remove(&oldest);
        }
        doubted.insert((host.clone(), *digest), now);
        tracing::warn!(%host, blob = %digest, "something wrong came of a blob: its origin itself is asked for it next");
    }

    fn is_doubted(&self, host: &Host, digest: &Digest) -> bool {
        let doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        doubted.get(&(host.clone(), *digest)).is_some_and(|since| since.elapsed() < DOUBTED_FOR)
    }
}

/// Leaves a mirror alone if nobody waits for its answer any more before it has come.
struct InVain<'a> {
    known: &'a Known,
    since: Instant,
    heard: bool,
}

impl Drop for InVain<'_> {
    fn drop(&mut self) {
        if !self.heard && self.since.elapsed() >= IN_VAIN {
            self.known.leave_alone(&"it was waited for in vain");
        }
    }
}

impl Http {
    /// The mirrors of an origin that are of use now, for this blob if one is meant, each with what a repository is called
    /// there.
    pub(super) fn mirrors_of(
        &self,
        target: Target<'_>,
        blob: Option<&Digest>,
    ) -> Vec<(Arc<Known>, Repository)> {
        if blob.is_some_and(|blob| self.mirrors.is_doubted(target.host, blob)) {
            return Vec::new();
        }
        let all = self.mirrors.known.get(target.host).into_iter().flatten();
        let usable = all.filter(|known| !known.is_left_alone());
        // A name may become too long.
        usable.filter_map(|known| Some((known.clone(), known.repository(target.repository).ok()?))).collect()
    }

    /// What a mirror gives within its time, if it gives something.
    pub(super) async fn heard<T>(
        &self,
        known: &Known,
        what: &str,
        patience: Duration,
        asked: impl Future<Output = Result<T, Failure>>,
    ) -> Option<T> {
        let mut in_vain = InVain { known, since: Instant::now(), heard: false };
        let outcome = tokio::time::timeout(patience, asked).await;
        in_vain.heard = true;
        let error = match outcome {
            Ok(Ok(given)) => {
                self.answered.note(&known.of);
                return Some(given);
            }
            Ok(Err(Failure::Final(error) | Failure::Passing(error, _))) => error,
            Err(_) => {
                let (host, what) = (known.mirror.host.to_string(), what.to_owned());
                let why = format!("it gave no answer within {} s", patience.as_secs());
                OriginError::Unreachable { host, what, why }
            }
        };
        match &error {
            // It need not have everything, nor give all that it has to everybody.
            OriginError::NotFound { .. } | OriginError::Unauthorized { .. } => {
                tracing::debug!(mirror = %known.mirror, of = %known.of, %error, "a mirror does not have it");
            }
            error => known.leave_alone(error),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_a_host_or_a_repository_at_one() {
        for text in ["mirror.example", "harbor.example:8443/hub", "[::1]:5000/a/b"] {
            assert_eq!(text.parse::<Mirror>().unwrap().to_string(), text);
        }
        for bad in ["", "mirror", "https://mirror.example", "mirror.example/", "mirror.example/A", "/x"] {
            assert!(bad.parse::<Mirror>().is_err(), "{bad}");
        }
    }
}
