//! Credentials, from the files that docker, podman and their helpers keep on this machine.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::name::{Host, Repository};

/// The longest credential file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The most of a helper's answer that is read, in bytes.
const MAX_HELPER_ANSWER: u64 = 64 << 10;

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// The key of Docker Hub in docker's own files.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user's credential for a registry. Its `Debug` form shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name with a password or access token.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token that is traded for access tokens.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username}, …)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
        }
    }
}

/// Where the secret of a login is, which is read each time that a registry asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// In a file, as its only line.
    File(PathBuf),
    /// In a variable of this process's environment.
    Variable(String),
}

/// How this node logs in to one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// With what a file has for it, as [`CredentialSources::files`] are.
    Keys(PathBuf),
    /// As a user with a password or access token.
    User(String, Secret),
}

impl Login {
    async fn find(&self, host: &Host, repository: &Repository) -> Result<Option<Credential>, String> {
        let (username, secret) = match self {
            Self::Keys(path) => {
                let found = look_into(path, host, repository).await;
                return match found.map_err(|problem| format!("{}: {problem}", path.display()))? {
                    None => Err(format!("{} has nothing for {host}", path.display())),
                    found => Ok(found),
                };
            }
            Self::User(username, secret) => (username, secret),
        };
        let password = match secret {
            Secret::Variable(name) => {
                std::env::var(name).map_err(|error| format!("the variable {name}: {error}"))?
            }
            Secret::File(path) => {
                let unreadable = |error| format!("{}: {error}", path.display());
                let text = read_capped(path).await.map_err(unreadable)?;
                let text = String::from_utf8(text).map_err(|_| unreadable("it is no text".to_owned()))?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
        };
        if password.is_empty() {
            return Err(format!("the password of {username} is empty"));
        }
        Ok(Some(Credential::Password { username: username.clone(), password }))
    }
}

/// Where credentials are looked for, in this order. The files are read each time that a registry asks, and
/// need not exist.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CredentialSources {
    /// Given outright.
    pub explicit: Vec<(Host, Credential)>,
    /// Told for one origin each.
    pub logins: Vec<(Host, Login)>,
    /// Files in the format of podman's `auth.json` or docker's `config.json`, helpers included.
    pub files: Vec<PathBuf>,
}

impl CredentialSources {
    /// The files that podman and docker use for a user whose environment is read by `var`: `$REGISTRY_AUTH_FILE`
    /// or `$XDG_RUNTIME_DIR/containers/auth.json` and `$HOME/.config/containers/auth.json`, then
    /// `$DOCKER_CONFIG/config.json` or `$HOME/.docker/config.json`.
    pub fn from_environment(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let mut files = Vec::new();
        if let Some(file) = path("REGISTRY_AUTH_FILE") {
            files.push(file);
        } else {
            files.extend(path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
            let config = path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
            files.extend(config.map(|dir| dir.join("containers/auth.json")));
        }
        let docker = path("DOCKER_CONFIG").or_else(|| home.map(|home| home.join(".docker")));
        files.extend(docker.map(|dir| dir.join("config.json")));
        Self { files, ..Self::default() }
    }

    /// What there is for a repository, and what went wrong on the way to it.
    pub(super) async fn find(&self, host: &Host, repository: &Repository) -> Found {
        let mut found = Found::default();
        if let Some((_, credential)) = self.explicit.iter().find(|(known, _)| known == host) {
            found.credential = Some(credential.clone());
            return found;
        }
        if let Some((_, login)) = self.logins.iter().find(|(known, _)| known == host) {
            match login.find(host, repository).await {
                Ok(credential) => found.credential = credential,
                Err(problem) => {
                    tracing::warn!(%host, problem, "credentials cannot be read");
                    found.problems.push(problem);
                }
            }
            return found;
        }
        for path in &self.files {
            match look_into(path, host, repository).await {
                Ok(Some(credential)) => {
                    found.credential = Some(credential);
                    break;
                }
                Ok(None) => {}
                Err(problem) => {
                    tracing::warn!(path = %path.display(), problem, "credentials cannot be read");
                    found.problems.push(format!("{}: {problem}", path.display()));
                }
            }
        }
        found
    }
}

/// The outcome of a search.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) credential: Option<Credential>,
    /// What could not be read, for the error if the registry then refuses.
    pub(super) problems: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: std::collections::BTreeMap<String, Entry>,
    cred_helpers: std::collections::BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

async fn look_into(path: &Path, host: &Host, repository: &Repository) -> Result<Option<Credential>, String> {
    if !tokio::fs::try_exists(path).await.unwrap_or(true) {
        return Ok(None);
    }
    let text = read_capped(path).await?;
    // The error of the JSON reader may quote the text, which holds secrets.
    let file: AuthFile = serde_json::from_slice(&text).map_err(|error| {
        format!("it is no credential file (line {}, column {})", error.line(), error.column())
    })?;
    let server = if host.is_docker_io() { HUB_KEY } else { host.as_str() };
    if let Some(helper) =
        file.cred_helpers.iter().find(|(key, _)| normal(key) == host.as_str()).map(|(_, h)| h)
    {
        return ask_helper(helper, server).await;
    }
    if let Some(entry) = file.entry(host, repository)
        && let Some(credential) = entry.credential()?
    {
        return Ok(Some(credential));
    }
    match &file.creds_store {
        Some(helper) if !helper.is_empty() => ask_helper(helper, server).await,
        _ => Ok(None),
    }
}

async fn read_capped(path: &Path) -> Result<Vec<u8>, String> {
    let file = tokio::fs::File::open(path).await.map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    let length = file.take(MAX_FILE + 1).read_to_end(&mut text).await.map_err(|error| error.to_string())?;
    if length as u64 > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    Ok(text)
}

impl AuthFile {
    /// The entry for the repository, else for the namespace around it, else for the host, as podman has it.
    fn entry(&self, host: &Host, repository: &Repository) -> Option<&Entry> {
        let mut wanted = format!("{host}/{repository}");
        loop {
            if let Some((_, entry)) = self.auths.iter().find(|(key, _)| normal(key) == wanted) {
                return Some(entry);
            }
            wanted.truncate(wanted.rfind('/')?);
        }
    }
}

/// The key of an entry without what docker adds for historical reasons: a scheme, an API version, and the
/// other names of Docker Hub.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (host, path) = match bare.split_once('/') {
        Some((host, path)) => (host, format!("/{path}")),
        None => (bare, String::new()),
    };
    let host = host.parse::<Host>().map_or_else(|_| host.to_ascii_lowercase(), |host| host.to_string());
    format!("{host}{path}")
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = filled(&self.auth) {
            let lenient =
                GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let decoded = GeneralPurpose::new(&STANDARD, lenient).decode(auth.trim()).ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let Some((username, password)) = text.as_deref().and_then(|text| text.split_once(':')) else {
                return Err("an 'auth' value is not base64 of USER:PASSWORD".to_owned());
            };
            // Docker pads short passwords with zero bytes.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credential::Password { username: username.to_owned(), password }));
        }
        Ok(filled(&self.username)
            .zip(filled(&self.password))
            .map(|(username, password)| Credential::Password { username, password }))
    }
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Runs `docker-credential-NAME get`, as docker does.
async fn ask_helper(name: &str, server: &str) -> Result<Option<Credential>, String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if name.is_empty() || !plain {
        return Err("a credential helper has a name that is no plain word".to_owned());
    }
    let program = format!("docker-credential-{name}");
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_HELPER_ANSWER).read_to_end(&mut answer).await?;
        }
        let status = child.wait().await?;
        std::io::Result::Ok((status, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| format!("{program} did not answer within {} s", HELPER_TIMEOUT.as_secs()))?
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        // The one failure that helpers have a fixed phrase for.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program} failed with {status}"));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| format!("{program} gave no credential"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::IdentityToken(answer.secret),
        _ => Credential::Password { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    async fn find(file: &str, host: &str, repository: &str) -> Found {
        let mut temporary = tempfile::NamedTempFile::new().unwrap();
        temporary.write_all(file.as_bytes()).unwrap();
        let sources =
            CredentialSources { files: vec![temporary.path().to_owned()], ..CredentialSources::default() };
        sources.find(&host.parse().unwrap(), &repository.parse().unwrap()).await
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { username: username.to_owned(), password: password.to_owned() })
    }

    #[tokio::test]
    async fn dockers_keys_for_the_hub_and_for_hosts_are_found() {
        // dTpw is u:pw
        let file = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"https://a.io":{"auth":"dTpw"},"b.io:5000":{"username":"x","password":"y"},"c.io":{"auth":"dTpw","identitytoken":"t"}}}"#;
        assert_eq!(find(file, "docker.io", "library/alpine").await.credential, password("u", "p"));
        assert_eq!(find(file, "a.io", "x").await.credential, password("u", "p"));
        assert_eq!(find(file, "b.io:5000", "x").await.credential, password("x", "y"));
        assert_eq!(find(file, "c.io", "x").await.credential, Some(Credential::IdentityToken("t".to_owned())));
        assert_eq!(find(file, "b.io", "x").await.credential, None);
        assert_eq!(find(file, "evil.io", "x").await.credential, None);
    }

    #[tokio::test]
    async fn podmans_nearest_namespace_wins() {
        let file = r#"{"auths":{"a.io":{"username":"host","password":"p"},"a.io/team":{"username":"team","password":"p"},"a.io/team/app":{"username":"app","password":"p"}}}"#;
        for (repository, user) in
            [("team/app", "app"), ("team/other", "team"), ("teamwork", "host"), ("x/y", "host")]
        {
            assert_eq!(find(file, "a.io", repository).await.credential, password(user, "p"), "{repository}");
        }
    }

    #[tokio::test]
    async fn a_broken_file_is_a_problem_that_shows_no_secret() {
        for broken in [
            "{\"auths\":{\"a.io\":{\"auth\":\"s3cret",
            "{\"auths\":{\"a.io\":{\"auth\":\"s3cret!\"}}}",
            "{\"auths\":\"s3cret\"}",
        ] {
            let found = find(broken, "a.io", "x").await;
            assert_eq!((found.credential, found.problems.len()), (None, 1), "{broken}");
            assert!(!found.problems[0].contains("s3cret"), "{:?}", found.problems);
        }
        let shown =
            format!("{:?} {:?}", password("u", "s3cret"), Credential::IdentityToken("s3cret".to_owned()));
        assert!(!shown.contains("s3cret"));
    }

    #[tokio::test]
    async fn a_helper_is_named_by_a_plain_word() {
        let found = find(r#"{"credHelpers":{"a.io":"../../bin/sh"}}"#, "a.io", "x").await;
        assert!(found.problems[0].contains("plain word"), "{:?}", found.problems);
        let found = find(r#"{"credsStore":"does-not-exist"}"#, "a.io", "x").await;
        assert!(found.problems[0].contains("docker-credential-does-not-exist"), "{:?}", found.problems);
    }

    #[test]
    fn files_are_where_podman_and_docker_keep_them() {
        let env = |set: &'static [(&'static str, &'static str)]| {
            let var = move |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            };
            let files = CredentialSources::from_environment(var).files;
            files.into_iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(env(&[]), [""; 0]);
        assert_eq!(
            env(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]),
            ["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
        );
        assert_eq!(
            env(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a"), ("DOCKER_CONFIG", "/d")]),
            ["/a", "/d/config.json"]
        );
    }
}
