//! Who may read what: whether an origin lets a caller of the gateway read a repository, and which of this node's own
//! credentials are for all members of the network.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tracing::{debug, info};
use wherry_gateway::Host;
use wherry_gateway::origin::{Credential, OriginError};
use wherry_gateway::server::{Ask, Refusal, RefusalKind};
use wherry_proto::Digest;

use super::callers::Right;
use super::push::Clients;
use super::{CallerSettings, Images};
use crate::config::units::show_age;
use crate::flights::Flights;
use crate::transfer::Route;

/// How long it is remembered that an origin lets somebody not read.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Of how many callers and repositories it is remembered what the origin says; those that were asked about the longest time
/// ago are forgotten.
const MAX_VERDICTS: usize = 4096;

/// Who may read what is not for everybody at an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All members of the network: this node reads with its own credentials for any of them.
    Members,
    /// Whom the origin itself lets read: it is asked with the caller's own credentials.
    Verify {
        /// For how long its word counts.
        ttl: Duration,
        /// For how much longer it counts while the origin is out of reach.
        grace: Duration,
    },
}

/// Who may read what, and do what.
#[derive(Clone, Debug, Default)]
pub struct AccessRules {
    /// By origin. Without one all members are given what is here, and this node reads with its own credentials for its own
    /// clients alone.
    pub of: HashMap<Host, Access>,
    /// Users and tokens of this node's gateway.
    pub callers: CallerSettings,
}

/// Who wants to read, and what: the hash of what a caller has shown, if anything.
type Reader = (Route, Option<Digest>);

/// What origins have said of readers, and when.
#[derive(Default)]
pub(super) struct Verdicts {
    known: Mutex<HashMap<Reader, (bool, Instant)>>,
    asking: Flights<Reader, Result<bool, OriginError>>,
}

impl Verdicts {
    fn known(&self) -> MutexGuard<'_, HashMap<Reader, (bool, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, reader: &Reader) -> Option<(bool, Duration)> {
        self.known().get(reader).map(|(may, when)| (*may, when.elapsed()))
    }

    fn note(&self, reader: Reader, may: bool) {
        let mut known = self.known();
        if known.len() >= MAX_VERDICTS
            && !known.contains_key(&reader)
            && let Some(oldest) =
                known.iter().min_by_key(|(_, (_, when))| *when).map(|(reader, _)| reader.clone())
        {
            known.remove(&oldest);
        }
        known.insert(reader, (may, Instant::now()));
    }
}

impl Images {
    /// Whether this node may read with its own credentials for other members.
    pub(super) fn is_for_members(&self, host: &Host) -> bool {
        self.0.parts.access.of.get(host) == Some(&Access::Members)
    }

    /// Whether any client has to say who it is, now or for some repositories.
    pub(super) async fn greet(
        &self,
        ask: Option<&Credential>,
        client: std::net::SocketAddr,
    ) -> Result<(), Refusal> {
        self.0.callers.check(client, ask, Right::Pull, Ok(())).await?;
        let verifies = self.0.parts.access.of.values().any(|access| matches!(access, Access::Verify { .. }));
        if verifies && ask.is_none() {
            // Some clients send what they have only if they were asked for it here; what is for everybody they get without.
            let message = "some repositories are only for those whom their registry lets read: log in to this gateway with \
                           what you have for it";
            return Err(Refusal::new(RefusalKind::Unauthorized, message));
        }
        Ok(())
    }

    /// Whether a client may change something.
    pub(super) async fn may_change(&self, ask: &Ask, right: Right, open: Clients) -> Result<(), Refusal> {
        let (key, what) = match right {
            Right::Delete => ("delete", "remove anything"),
            _ => ("push", "push"),
        };
        let open_to = open.check(ask.client, key, what);
        if open == Clients::Nobody {
            return open_to;
        }
        self.0.callers.check(ask.client, ask.credential.as_ref(), right, open_to).await
    }

    /// Whether a client may read a repository.
    pub(super) async fn may_read(&self, ask: &Ask) -> Result<(), Refusal> {
        self.0.callers.check(ask.client, ask.credential.as_ref(), Right::Pull, Ok(())).await?;
        let route = self.route(ask);
        match self.0.parts.access.of.get(&route.host) {
            Some(Access::Verify { ttl, grace }) => {
                self.verify(route, ask.credential.as_ref(), *ttl, *grace).await
            }
            _ => Ok(()),
        }
    }

    async fn verify(
        &self,
        route: Route,
        credential: Option<&Credential>,
        ttl: Duration,
        grace: Duration,
    ) -> Result<(), Refusal> {
        let shown = credential.map(|credential| match credential {
            Credential::Password { username, password } => {
                Digest::sha256(format!("{username}:{password}").as_bytes())
            }
            Credential::IdentityToken(token) => Digest::sha256(format!(":{token}").as_bytes()),
        });
        let reader = (route, shown);
        let before = self.0.verdicts.of(&reader);
        let asked = match before {
            Some((true, age)) if age < ttl => Ok(true),
            Some((false, age)) if age < REFUSED_FOR.min(ttl) => Ok(false),
            _ => {
                let asking = self.0.verdicts.asking.join(reader.clone(), || {
                    let (images, reader, credential) = (self.clone(), reader.clone(), credential.cloned());
                    async move {
                        let (Route { host, repository }, _) = &reader;
                        let may =
                            images.0.parts.origins.admits(host, repository, credential.as_ref()).await?;
                        debug!(repository = %reader.0, may, "the origin says whether somebody may read");
                        images.0.verdicts.note(reader, may);
                        Ok(may)
                    }
                    .boxed()
                });
                asking.await
            }
        };
        let route = &reader.0;
        match (asked, before) {
            (Ok(true), _) => Ok(()),
            (Ok(false), _) if credential.is_none() => {
                let message = format!(
                    "{route} is not for everybody: log in to this gateway with what you have for {}, as with 'docker login' \
                     or 'podman login'",
                    route.host
                );
                Err(Refusal::new(RefusalKind::Unauthorized, message))
            }
            (Ok(false), _) => {
                let message = format!(
                    "{} does not let you read {route} with the credentials that you sent",
                    route.host
                );
                Err(Refusal::new(RefusalKind::Denied, message))
            }
            (Err(error), Some((true, age))) if age < ttl.saturating_add(grace) => {
                info!(repository = %route, %error, "whether somebody may read cannot be checked: the last word counts");
                Ok(())
            }
            (Err(error), _) => {
                let message = format!(
                    "whether you may read {route} cannot be checked: {error}. It is {}here for those whom {} has let read \
                     within {}; the setting 'grace' of that origin makes it longer",
                    if grace.is_zero() { "" } else { "still " },
                    route.host,
                    show_age(ttl.saturating_add(grace))
                );
                Err(Refusal::new(RefusalKind::Unavailable, message))
            }
        }
    }
}
