//! Who may read what: whether an origin lets a caller of the gateway read a repository, and which of this node's own
//! credentials are for all members of the network.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::Semaphore;
use tracing::{debug, info};
use wherry_gateway::Host;
use wherry_gateway::origin::{Admission, Credential, OriginError};
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

/// How many questions origins are asked at a time; further clients wait.
const QUESTIONS: usize = 8;

/// How long an origin is waited for: clients give up after 10 s. Where an older word counts, less.
const PATIENCE: Duration = Duration::from_secs(6);
const PATIENCE_IN_GRACE: Duration = Duration::from_secs(2);

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

/// Those of whom an origin has said the same, and when.
type Told = HashMap<Reader, (Admission, Instant)>;

/// What origins have said of readers. Those who may not, who can be anybody, push out none of those who may.
pub(super) struct Verdicts {
    may: Mutex<Told>,
    may_not: Mutex<Told>,
    asking: Flights<Reader, Result<Admission, OriginError>>,
    questions: Semaphore,
}

impl Default for Verdicts {
    fn default() -> Self {
        let questions = Semaphore::new(QUESTIONS);
        Self { may: Mutex::default(), may_not: Mutex::default(), asking: Flights::default(), questions }
    }
}

impl Verdicts {
    fn told(&self, may: bool) -> MutexGuard<'_, Told> {
        let told = if may { &self.may } else { &self.may_not };
        told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, reader: &Reader, may: bool) -> Option<(Admission, Duration)> {
        self.told(may).get(reader).map(|(said, when)| (*said, when.elapsed()))
    }

    fn note(&self, reader: Reader, said: Admission) {
        let may = said == Admission::May;
        self.told(!may).remove(&reader);
        let mut known = self.told(may);
        if known.len() >= MAX_VERDICTS
            && !known.contains_key(&reader)
            && let Some(oldest) =
                known.iter().min_by_key(|(_, (_, when))| *when).map(|(reader, _)| reader.clone())
        {
            known.remove(&oldest);
        }
        known.insert(reader, (said, Instant::now()));
    }
}

impl Images {
    /// Whether this node may read with its own credentials for other members.
    pub(super) fn is_for_members(&self, host: &Host) -> bool {
        self.0.parts.access.of.get(host) == Some(&Access::Members)
    }

    /// Whether an origin is asked whom it lets read.
    pub(super) fn is_verified(&self, host: &Host) -> bool {
        matches!(self.0.parts.access.of.get(host), Some(Access::Verify { .. }))
    }

    /// Whether any client has to say who it is, now or for some repositories.
    pub(super) async fn greet(
        &self,
        client: SocketAddr,
        credential: Option<&Credential>,
    ) -> Result<(), Refusal> {
        self.0.callers.check(client, credential, Right::Pull, Ok(())).await?;
        let verifies = self.0.parts.access.of.values().any(|access| matches!(access, Access::Verify { .. }));
        if verifies && credential.is_none() {
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
        let verdicts = &self.0.verdicts;
        let before = verdicts.of(&reader, true).map(|(_, age)| age);
        let in_grace = before.filter(|age| *age < ttl.saturating_add(grace));
        let asked = if before.is_some_and(|age| age < ttl) {
            Ok(Admission::May)
        } else if let Some((said, _)) =
            verdicts.of(&reader, false).filter(|(_, age)| *age < REFUSED_FOR.min(ttl))
        {
            Ok(said)
        } else if let Some(error) = self.is_down(&reader.0.host, format!("the tags of {}", reader.0)) {
            Err(error)
        } else {
            let patience = if in_grace.is_some() { PATIENCE_IN_GRACE } else { PATIENCE };
            let asking = tokio::time::timeout(patience, self.ask(reader.clone(), credential));
            let asked = asking.await.unwrap_or_else(|_| {
                let why = format!("it gave no answer within {} s", patience.as_secs());
                let (host, what) = (reader.0.host.to_string(), format!("the tags of {}", reader.0));
                Err(OriginError::Unreachable { host, what, why })
            });
            // Only what was really asked counts, or asking often would keep an origin down.
            asked.inspect_err(|error| self.note_down(&reader.0.host, error))
        };
        let route = &reader.0;
        match (asked, in_grace) {
            (Ok(Admission::May), _) => Ok(()),
            (Ok(Admission::NoRepository), _) => {
                let message = format!(
                    "{} has no repository {} that you may see, and it is asked whether you may read what is here of it",
                    route.host, route.repository
                );
                Err(Refusal::new(RefusalKind::NameUnknown, message))
            }
            (Ok(Admission::MayNot), _) if credential.is_none() => {
                let message = format!(
                    "{route} is not for everybody: log in to this gateway with what you have for {}, as with 'docker login' \
                     or 'podman login'",
                    route.host
                );
                Err(Refusal::new(RefusalKind::Unauthorized, message))
            }
            (Ok(Admission::MayNot), _) => {
                let message = format!(
                    "{} does not let you read {route} with the credentials that you sent",
                    route.host
                );
                Err(Refusal::new(RefusalKind::Denied, message))
            }
            (Err(error), Some(_)) => {
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

    /// What the origin says of a reader now. Those who ask the same at once share one question.
    async fn ask(&self, reader: Reader, credential: Option<&Credential>) -> Result<Admission, OriginError> {
        let asking = self.0.verdicts.asking.join(reader.clone(), || {
            let (images, credential) = (self.clone(), credential.cloned());
            async move {
                let verdicts = &images.0.verdicts;
                // Never closed.
                let _turn = verdicts.questions.acquire().await;
                let (Route { host, repository }, _) = &reader;
                let said = images.0.parts.origins.admits(host, repository, credential.as_ref()).await?;
                debug!(repository = %reader.0, ?said, "the origin says whether somebody may read");
                verdicts.note(reader, said);
                Ok(said)
            }
            .boxed()
        });
        asking.await
    }
}
