//! Who clients of the gateway are, by users and tokens of this node's own, and what they may do.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tracing::warn;
use wherry_gateway::origin::Credential;
use wherry_gateway::server::{Refusal, RefusalKind};
use wherry_proto::Digest;

/// The longest file of users or tokens that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How long it is remembered who somebody is: a changed file counts after this.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// How many callers are remembered.
const MAX_KNOWN: usize = 1024;

/// How many passwords are checked at a time, each of which takes a core for about 50 ms; further callers wait.
const CHECKS_AT_ONCE: usize = 2;

/// How many wait for their turn to be checked; further ones are refused, and may come back after this.
const MAX_WAITING: usize = 64;
const BUSY: Duration = Duration::from_secs(2);

/// A password's hash that nobody has, at the cost that `htpasswd -B` takes: whoever is no user is found out as late as who is.
const NOBODY: &str = "$2y$05$......................0Ri7Wc2JtYqY3dQxnQkqvGdy1dpyuLm";

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Read.
    Pull,
    /// Add images.
    Push,
    /// Remove tags, manifests and blobs.
    Delete,
}

impl Right {
    const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// What one user, or with `*` every other one, may do: `anna=pull+push`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    name: String,
    rights: BTreeSet<Right>,
}

impl Rights {
    /// Whose they are.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Rights {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, rights) = text.split_once('=').ok_or(())?;
        if name.is_empty() || name.len() > 256 || name.contains(char::is_whitespace) {
            return Err(());
        }
        let right = |word: &str| Right::ALL.into_iter().find(|right| right.as_str() == word.trim());
        let rights: Option<BTreeSet<Right>> = match rights.trim() {
            "none" => Some(BTreeSet::new()),
            rights => rights.split('+').map(right).collect(),
        };
        Ok(Self { name: name.to_owned(), rights: rights.ok_or(())? })
    }
}

impl std::fmt::Display for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rights: Vec<_> = self.rights.iter().map(|right| right.as_str()).collect();
        let rights = if rights.is_empty() { "none".to_owned() } else { rights.join("+") };
        write!(f, "{}={rights}", self.name)
    }
}

/// Where users and tokens are, and what they may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerSettings {
    /// A file of lines `NAME:BCRYPT`, as `htpasswd -B` writes it.
    pub users: Option<PathBuf>,
    /// A file of lines `NAME:SHA256`, with the SHA-256 of a bearer token in hexadecimal.
    pub tokens: Option<PathBuf>,
    /// What each may do. Who is in none of them may pull.
    pub rights: Vec<Rights>,
}

impl CallerSettings {
    fn is_set(&self) -> bool {
        self.users.is_some() || self.tokens.is_some()
    }

    fn has(&self, name: &str, right: Right) -> bool {
        let of = |name: &str| self.rights.iter().find(|rights| rights.name == name);
        of(name).or_else(|| of("*")).map_or(right == Right::Pull, |rights| rights.rights.contains(&right))
    }
}

/// Those who showed who they are a moment ago, by the hash of what they have shown.
type Known = HashMap<Digest, (Arc<str>, Instant)>;

/// Knows callers.
pub(super) struct Callers {
    settings: CallerSettings,
    known: Mutex<Known>,
    // Whoever guesses wrong is remembered apart, and pushes out none of those who are known.
    unknown: Mutex<HashMap<Digest, Instant>>,
    checks: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Callers {
    pub(super) fn new(settings: CallerSettings) -> Self {
        Self {
            settings,
            known: Mutex::default(),
            unknown: Mutex::default(),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// Whether a client may do something: without users and tokens whoever is `open`, and then besides these who shows that it
    /// is one that may.
    pub(super) async fn check(
        &self,
        client: SocketAddr,
        credential: Option<&Credential>,
        right: Right,
        open: Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let is_here = client.ip().to_canonical().is_loopback();
        if !self.settings.is_set() || (is_here && open.is_ok()) {
            return open;
        }
        let Some(credential) = credential else {
            let message =
                "this gateway knows its users: log in to it, as with 'docker login' or 'podman login'";
            return Err(Refusal::new(RefusalKind::Unauthorized, message));
        };
        let Some(name) = self.name(credential).await? else {
            let message = "this gateway does not know this user, password or token: log in again";
            return Err(Refusal::new(RefusalKind::Unauthorized, message));
        };
        if self.settings.has(&name, right) {
            return Ok(());
        }
        let message = format!(
            "{name} may not {} at this gateway: --rights {name}=pull+{} at its node changes that",
            right.as_str(),
            right.as_str()
        );
        Err(Refusal::new(RefusalKind::Denied, message))
    }

    /// Who this is, if anybody that is known.
    async fn name(&self, credential: &Credential) -> Result<Option<Arc<str>>, Refusal> {
        let shown = match credential {
            Credential::Password { username, password } => format!("{username}:{password}"),
            Credential::IdentityToken(token) => token.clone(),
        };
        let kind = matches!(credential, Credential::Password { .. });
        let key = Digest::sha256(format!("{kind} {shown}").as_bytes());
        if let Some(name) = self.remembered(&key) {
            return Ok(name);
        }
        let stopped = || Refusal::new(RefusalKind::Internal, "the node is shutting down");
        let Ok(_place) = self.waiting.try_acquire() else {
            let message = "too many log in to this gateway at once: try again";
            return Err(Refusal::new(RefusalKind::TooManyRequests, message).retry_after(BUSY));
        };
        let turn = self.checks.clone().acquire_owned().await.map_err(|_| stopped())?;
        // Whoever had the turn before may have asked the same.
        if let Some(name) = self.remembered(&key) {
            return Ok(name);
        }
        let (settings, credential) = (self.settings.clone(), credential.clone());
        let checked = tokio::task::spawn_blocking(move || {
            // The turn lasts as long as this does, whether the client waits or not.
            let _turn = turn;
            look_up(&settings, &credential)
        });
        let name = checked.await.map_err(|_| stopped())?.map_err(|why| {
            warn!(why, "the gateway cannot tell who asks");
            Refusal::new(RefusalKind::Internal, "the gateway cannot tell who asks: its log says why")
        })?;
        let name: Option<Arc<str>> = name.map(Arc::from);
        let now = Instant::now();
        match &name {
            Some(name) => {
                let mut known = lock(&self.known);
                known.retain(|_, (_, when)| when.elapsed() < KNOWN_FOR);
                if known.len() < MAX_KNOWN {
                    known.insert(key, (name.clone(), now));
                }
            }
            None => {
                let mut unknown = lock(&self.unknown);
                unknown.retain(|_, when| when.elapsed() < KNOWN_FOR);
                if unknown.len() < MAX_KNOWN {
                    unknown.insert(key, now);
                }
            }
        }
        Ok(name)
    }

    /// Who showed this a moment ago, `None` within if nobody that is known did.
    fn remembered(&self, key: &Digest) -> Option<Option<Arc<str>>> {
        let is_fresh = |when: &Instant| when.elapsed() < KNOWN_FOR;
        if let Some((name, when)) = lock(&self.known).get(key)
            && is_fresh(when)
        {
            return Some(Some(name.clone()));
        }
        lock(&self.unknown).get(key).is_some_and(is_fresh).then_some(None)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a file of users, or of tokens, is written as it has to be.
///
/// # Errors
/// What is wrong with it, and in which line; nothing of what it hides.
pub fn check_file(path: &Path, tokens: bool) -> Result<(), String> {
    let text = read(path)?;
    let mut names = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, secret) = line.split_once(':').ok_or(format!("line {number} has no ':' behind a name"))?;
        let fits = match tokens {
            true => secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()),
            false => secret.parse::<bcrypt::HashParts>().is_ok(),
        };
        if !fits {
            let wanted =
                if tokens { "a SHA-256 in hexadecimal" } else { "what 'htpasswd -B' makes of a password" };
            return Err(format!("line {number} does not have {wanted} behind the name {name}"));
        }
        if !names.insert(name) {
            return Err(format!("line {number} has the name {name} once more"));
        }
    }
    if names.is_empty() { Err("there is no name in it".to_owned()) } else { Ok(()) }
}

fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Who shows this, by the files. Reads the disk, and computes for a while.
fn look_up(settings: &CallerSettings, credential: &Credential) -> Result<Option<String>, String> {
    let (path, wanted) = match credential {
        Credential::Password { username, .. } => (&settings.users, Some(username)),
        Credential::IdentityToken(_) => (&settings.tokens, None),
    };
    let Some(path) = path else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = read(path).map_err(|error| failed(&error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut is_user = false;
    for (name, secret) in lines.filter_map(|line| line.split_once(':')) {
        let fits = match credential {
            Credential::Password { password, .. } => {
                wanted.is_some_and(|wanted| wanted == name)
                    && bcrypt::verify(password, secret).map_err(|error| {
                        failed(&format!(
                            "the password of {name} is not written as 'htpasswd -B' does it: {error}"
                        ))
                    })?
            }
            // Hashes are compared, so that the time that this takes tells nothing of a token.
            Credential::IdentityToken(token) => {
                Digest::sha256(token.as_bytes()).hex() == secret.to_ascii_lowercase()
            }
        };
        if fits {
            return Ok(Some(name.to_owned()));
        }
        is_user |= wanted.is_some_and(|wanted| wanted == name);
    }
    if let (Credential::Password { password, .. }, false) = (credential, is_user) {
        let _ = bcrypt::verify(password, NOBODY);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.to_owned(), password: password.to_owned() }
    }

    fn callers(dir: &Path) -> Callers {
        let (users, tokens) = (dir.join("users"), dir.join("tokens"));
        let hashed = bcrypt::hash("s3cret", 4).unwrap();
        std::fs::write(&users, format!("# people\nanna:{hashed}\nbert:{hashed}\nold:{{SHA}}xyz\n")).unwrap();
        std::fs::write(&tokens, format!("ci:{}\n", Digest::sha256(b"t0ken").hex())).unwrap();
        let rights = ["anna=pull+push", "ci=pull+push+delete", "*=none"];
        Callers::new(CallerSettings {
            users: Some(users),
            tokens: Some(tokens),
            rights: rights.iter().map(|text| text.parse().unwrap()).collect(),
        })
    }

    #[tokio::test]
    async fn users_and_tokens_have_the_rights_that_they_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let client: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let anna = password("anna", "s3cret");
        let bert = password("bert", "s3cret");
        let token = Credential::IdentityToken("t0ken".to_owned());
        for (credential, right, kind) in [
            (Some(&anna), Right::Push, None),
            (Some(&anna), Right::Delete, Some(RefusalKind::Denied)),
            (Some(&bert), Right::Pull, Some(RefusalKind::Denied)),
            (Some(&token), Right::Delete, None),
            (Some(&password("anna", "wrong")), Right::Pull, Some(RefusalKind::Unauthorized)),
            (Some(&password("carl", "s3cret")), Right::Pull, Some(RefusalKind::Unauthorized)),
            (
                Some(&Credential::IdentityToken("s3cret".to_owned())),
                Right::Pull,
                Some(RefusalKind::Unauthorized),
            ),
            (None, Right::Pull, Some(RefusalKind::Unauthorized)),
        ] {
            let checked = callers.check(client, credential, right, Ok(())).await;
            assert_eq!(checked.err().map(|refusal| refusal.kind), kind, "{credential:?} {right:?}");
        }
        // Whoever is on the machine itself may do what is open to all there.
        callers.check("127.0.0.1:9".parse().unwrap(), None, Right::Pull, Ok(())).await.unwrap();
        // Whoever is a stranger is not told what is wrong here.
        let old = callers.check(client, Some(&password("old", "x")), Right::Pull, Ok(())).await.unwrap_err();
        assert!(!old.message.contains("old") && old.kind == RefusalKind::Internal, "{old}");
    }

    #[test]
    fn whoever_is_no_user_is_found_out_as_late_as_who_is() {
        assert!(!bcrypt::verify("", NOBODY).unwrap());
    }

    #[test]
    fn what_is_no_file_of_users_or_tokens_is_found_out_before_anybody_logs_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let hashed = bcrypt::hash("x", 4).unwrap();
        let token = Digest::sha256(b"t").hex();
        for (text, tokens, fits) in [
            (format!("# people\n\nanna:{hashed}\nbert:{hashed}\n"), false, true),
            (format!("ci:{token}\n"), true, true),
            (String::new(), false, false),
            ("anna".to_owned(), false, false),
            ("anna:plain".to_owned(), false, false),
            ("anna:$apr1$x$y".to_owned(), false, false),
            (format!("anna:{hashed}\nanna:{hashed}\n"), false, false),
            ("ci:t0ken".to_owned(), true, false),
            (format!("anna:{hashed}\n"), true, false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(check_file(&path, tokens).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn rights_read_back_as_they_are_written() {
        for text in ["anna=pull+push", "*=none", "ci=delete"] {
            assert_eq!(text.parse::<Rights>().unwrap().to_string(), text);
        }
        for bad in ["", "anna", "=pull", "anna=", "anna=pull,push", "a b=pull", "anna=all"] {
            assert!(bad.parse::<Rights>().is_err(), "{bad}");
        }
    }
}
