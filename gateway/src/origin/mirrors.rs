//! Other registries that have what an origin has.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::http::{Http, Target};
use super::retry::Failure;
use super::{OriginError, OriginSettings};
use crate::name::{Host, NameError, Repository};

/// How long a mirror may take until it begins to answer. Clients are to be refused, or given something, within
/// 10 s, and the origin is still to be asked.
const PATIENCE: Duration = Duration::from_secs(4);

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

/// A mirror, and whether it is of use now.
#[derive(Debug)]
pub(super) struct Known {
    mirror: Mirror,
    of: Host,
    again: Mutex<Option<Instant>>,
}

impl Known {
    fn is_left_alone(&self) -> bool {
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        again.is_some_and(|again| again > Instant::now())
    }

    /// The mirror is left alone for a while.
    pub(super) fn leave_alone(&self, why: &dyn fmt::Display) {
        let until = Instant::now() + LEFT_ALONE;
        let before = self.again.lock().unwrap_or_else(PoisonError::into_inner).replace(until);
        // Several may have been on their way to it.
        if before.is_none_or(|before| before <= Instant::now()) {
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
pub(super) struct Mirrors(HashMap<Host, Vec<Arc<Known>>>);

impl Mirrors {
    pub(super) fn new(settings: &OriginSettings) -> Self {
        let mut all: HashMap<Host, Vec<_>> = HashMap::new();
        for (host, its) in &settings.hosts {
            let known = its.mirrors.iter().map(|mirror| {
                Arc::new(Known { mirror: mirror.clone(), of: host.clone(), again: Mutex::default() })
            });
            all.entry(host.clone()).or_default().extend(known);
        }
        Self(all)
    }

    /// Leaves those of an origin alone of which something wrong has come.
    pub(super) fn doubt(&self, host: &Host) {
        for known in self.0.get(host).into_iter().flatten() {
            known.leave_alone(&"what came did not have its digest");
        }
    }
}

impl Http {
    /// The mirrors of an origin that are of use now, each with what a repository is called there.
    pub(super) fn mirrors_of(&self, target: Target<'_>) -> Vec<(Arc<Known>, Repository)> {
        let all = self.mirrors.0.get(target.host).into_iter().flatten();
        let usable = all.filter(|known| !known.is_left_alone());
        // A name may become too long.
        usable.filter_map(|known| Some((known.clone(), known.repository(target.repository).ok()?))).collect()
    }

    /// What a mirror gives within its time, if it gives something.
    pub(super) async fn heard<T>(
        &self,
        known: &Known,
        what: &str,
        asked: impl Future<Output = Result<T, Failure>>,
    ) -> Option<T> {
        let error = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(given)) => {
                self.answered.note(&known.of);
                return Some(given);
            }
            Ok(Err(Failure::Final(error) | Failure::Passing(error, _))) => error,
            Err(_) => {
                let (host, what) = (known.mirror.host.to_string(), what.to_owned());
                let why = format!("it gave no answer within {} s", PATIENCE.as_secs());
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
