//! Who this node is to each repository of each origin, for as long as it is known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::name::{Host, Repository};

/// Repositories whose authorization is remembered. Beyond that the one that was used least recently is
/// forgotten, which costs its next request one round trip.
const MAX_SESSIONS: usize = 256;

/// Tokens are given up so long before they expire, so that none expires on its way.
const LEEWAY: Duration = Duration::from_secs(10);

/// An `Authorization` header and how long it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// Marked as sensitive.
    pub(super) header: HeaderValue,
    /// `None` for credentials that do not expire.
    pub(super) expires: Option<Instant>,
}

impl Grant {
    /// A header that lasts; `None` if the text is no header value.
    pub(super) fn new(text: &str, life: Option<Duration>) -> Option<Self> {
        let mut header = HeaderValue::from_str(text).ok()?;
        header.set_sensitive(true);
        let expires = life.map(|life| Instant::now() + life.saturating_sub(LEEWAY));
        Some(Self { header, expires })
    }

    fn is_good(&self) -> bool {
        self.expires.is_none_or(|at| at > Instant::now())
    }
}

/// The grant for one repository. Whoever authenticates holds the lock, so that requests side by side ask for
/// one token.
pub(super) type Session = Arc<tokio::sync::Mutex<Option<Grant>>>;

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    known: Mutex<HashMap<(Host, Repository), (Session, Instant)>>,
}

impl Sessions {
    pub(super) fn of(&self, host: &Host, repository: &Repository) -> Session {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((session, used)) = known.get_mut(&(host.clone(), repository.clone())) {
            *used = now;
            return Arc::clone(session);
        }
        if known.len() >= MAX_SESSIONS
            && let Some(oldest) = known.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())
        {
            known.remove(&oldest);
        }
        let session = Session::default();
        known.insert((host.clone(), repository.clone()), (Arc::clone(&session), now));
        session
    }
}

/// The header to send, if there is one that is still good.
pub(super) async fn current(session: &Session) -> Option<HeaderValue> {
    let grant = session.lock().await;
    grant.as_ref().filter(|grant| grant.is_good()).map(|grant| grant.header.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_are_bounded_and_the_least_used_goes() {
        let sessions = Sessions::default();
        let host = Host::docker_io();
        let name = |i: usize| format!("r{i}").parse::<Repository>().unwrap();
        *sessions.of(&host, &name(0)).lock().await = Grant::new("Basic x", None);
        *sessions.of(&host, &name(1)).lock().await = Grant::new("Basic x", None);
        for i in 2..MAX_SESSIONS {
            sessions.of(&host, &name(i));
        }
        assert!(current(&sessions.of(&host, &name(0))).await.is_some());
        sessions.of(&host, &name(MAX_SESSIONS));
        assert_eq!(sessions.known.lock().unwrap().len(), MAX_SESSIONS);
        assert!(current(&sessions.of(&host, &name(0))).await.is_some());
        assert!(current(&sessions.of(&host, &name(1))).await.is_none());
    }

    #[tokio::test]
    async fn a_grant_is_given_up_before_it_expires_and_never_shown() {
        let grant = Grant::new("Bearer s3cret", Some(LEEWAY + Duration::from_secs(60))).unwrap();
        assert!(grant.is_good());
        assert!(!format!("{grant:?}").contains("s3cret"));
        assert!(!Grant::new("Bearer s3cret", Some(LEEWAY)).unwrap().is_good());
        assert!(Grant::new("Bearer a\nb", None).is_none());
    }
}
