//! What can be set for one origin.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use wherry_gateway::origin::{ClientCertificate, Login, Mirror, Secret};
use wherry_gateway::{Aliases, Host};

use super::Config;
use super::key::MAX_DURATION;
use super::units::{parse_duration, show_duration};
use crate::images::Access;
use crate::limits::{parse_rate, show_rate};

/// The most origins of which something can be set.
const MAX_ORIGINS: usize = 256;

/// The most mirrors of one origin: each that is out of reach may cost seconds.
const MAX_MIRRORS: usize = 8;

/// For how long it counts, unless set, that an origin let somebody read.
const VERIFY_TTL: Duration = Duration::from_secs(60);

/// The longest name of a variable or user, in characters.
const MAX_NAME: usize = 256;

/// What is set for one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginConfig {
    /// Short names for it.
    pub aliases: Vec<String>,
    /// Registries that are asked before it, in this order.
    pub mirrors: Vec<Mirror>,
    /// Whether it is asked over plain HTTP.
    pub insecure: bool,
    /// Files with certification authorities for it, in PEM.
    pub ca: Vec<PathBuf>,
    /// The file with the certificate that this node shows to it, in PEM.
    pub certificate: Option<PathBuf>,
    /// The file with the key of that; that of the certificate itself if it is not set.
    pub certificate_key: Option<PathBuf>,
    /// A file with credentials, in the format of docker's `config.json`.
    pub credentials: Option<PathBuf>,
    /// The user as whom this node logs in.
    pub user: Option<String>,
    /// The file with that user's password or access token.
    pub password_file: Option<PathBuf>,
    /// The variable that has it.
    pub password_variable: Option<String>,
    /// The most bytes a second that this node reads from it.
    pub rate: Option<u64>,
    /// For how long its answer about a tag is used without asking again.
    pub tag_ttl: Option<Duration>,
    /// Who may read what is not for everybody there.
    pub access: Option<AccessWord>,
    /// For how long it counts that it let somebody read.
    pub verify_ttl: Option<Duration>,
    /// For how much longer while it is out of reach.
    pub grace: Option<Duration>,
}

/// How [`Access`] is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessWord {
    /// [`Access::Members`]
    Members,
    /// [`Access::Verify`]
    Verify,
}

impl OriginConfig {
    /// What this node shows to the origin.
    pub fn client_certificate(&self) -> Option<ClientCertificate> {
        let certificate = self.certificate.clone()?;
        let key = self.certificate_key.clone().unwrap_or_else(|| certificate.clone());
        Some(ClientCertificate { certificate, key })
    }

    /// Who may read what is not for everybody, if that is set.
    pub fn access(&self) -> Option<Access> {
        Some(match self.access? {
            AccessWord::Members => Access::Members,
            AccessWord::Verify => Access::Verify {
                ttl: self.verify_ttl.unwrap_or(VERIFY_TTL),
                grace: self.grace.unwrap_or_default(),
            },
        })
    }

    /// How this node logs in to the origin, if that is set.
    pub fn login(&self) -> Option<Login> {
        if let Some(path) = &self.credentials {
            return Some(Login::Keys(path.clone()));
        }
        let secret = match (&self.password_file, &self.password_variable) {
            (Some(path), _) => Secret::File(path.clone()),
            (None, variable) => Secret::Variable(variable.clone()?),
        };
        Some(Login::User(self.user.clone()?, secret))
    }
}

/// One thing that can be set for an origin.
pub(super) struct Setting {
    pub(super) name: &'static str,
    many: bool,
    expected: &'static str,
    set: fn(&mut OriginConfig, &[String]) -> Option<()>,
    show: fn(&OriginConfig) -> serde_json::Value,
}

macro_rules! path {
    ($name:literal, $field:ident, $expected:literal) => {
        Setting {
            name: $name,
            many: false,
            expected: $expected,
            set: |origin, values| {
                origin.$field = Some(one(values)?.into());
                Some(())
            },
            show: |origin| origin.$field.as_ref().map(|path| path.display().to_string()).into(),
        }
    };
}

macro_rules! word {
    ($name:literal, $field:ident, $expected:literal) => {
        Setting {
            name: $name,
            many: false,
            expected: $expected,
            set: |origin, values| {
                let value = one(values)?;
                let fits = value.chars().count() <= MAX_NAME && !value.chars().any(char::is_control);
                fits.then(|| origin.$field = Some(value.to_owned()))
            },
            show: |origin| origin.$field.clone().into(),
        }
    };
}

macro_rules! time {
    ($name:literal, $field:ident) => {
        Setting {
            name: $name,
            many: false,
            expected: "a time with its unit, such as 30s, 5m or 1h",
            set: |origin, values| {
                let time = parse_duration(one(values)?)?;
                (time <= MAX_DURATION).then(|| origin.$field = Some(time))
            },
            show: |origin| origin.$field.map(show_duration).into(),
        }
    };
}

/// All of them, in the order in which they are shown.
pub(super) static SETTINGS: [Setting; 15] = [
    Setting {
        name: "alias",
        many: true,
        expected: "lowercase letters, digits, '.', '_' and '-', such as lab",
        set: |origin, values| {
            let mut aliases = Aliases::default();
            let fits = values.iter().all(|alias| aliases.add(alias, Host::docker_io()).is_ok());
            fits.then(|| origin.aliases = values.to_vec())
        },
        show: |origin| origin.aliases.clone().into(),
    },
    Setting {
        name: "mirror",
        many: true,
        expected: "a registry such as mirror.example, or harbor.example/hub where its repositories are below another; \
                   8 at most",
        set: |origin, values| {
            let mirrors: Vec<Mirror> = values.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
            (mirrors.len() <= MAX_MIRRORS).then(|| origin.mirrors = mirrors)
        },
        show: |origin| origin.mirrors.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
    },
    Setting {
        name: "insecure",
        many: false,
        expected: "true or false",
        set: |origin, values| {
            origin.insecure = one(values)?.parse().ok()?;
            Some(())
        },
        show: |origin| origin.insecure.then_some(true).into(),
    },
    Setting {
        name: "ca",
        many: true,
        expected: "the path of a PEM file",
        set: |origin, values| {
            origin.ca = values.iter().map(PathBuf::from).collect();
            Some(())
        },
        show: |origin| origin.ca.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().into(),
    },
    path!("certificate", certificate, "the path of a PEM file with the certificate that this node shows"),
    path!("certificate_key", certificate_key, "the path of a PEM file with the key of the certificate"),
    path!("credentials", credentials, "the path of a file in the format of docker's config.json"),
    word!("user", user, "the name of a user"),
    path!("password_file", password_file, "the path of a file with the user's password"),
    word!("password_variable", password_variable, "the name of a variable with the user's password"),
    Setting {
        name: "rate",
        many: false,
        expected: "a rate of at least 64kbit/s, such as 4Mbit/s or 500kB/s",
        set: |origin, values| {
            origin.rate = Some(parse_rate(one(values)?)?);
            Some(())
        },
        show: |origin| origin.rate.map(show_rate).into(),
    },
    time!("tag_ttl", tag_ttl),
    Setting {
        name: "access",
        many: false,
        expected: "members (this node's own credentials are for all members of the network) or verify (the registry is \
                   asked with the client's)",
        set: |origin, values| {
            origin.access = Some(match one(values)? {
                "members" => AccessWord::Members,
                "verify" => AccessWord::Verify,
                _ => return None,
            });
            Some(())
        },
        show: |origin| {
            let word = origin.access.map(|access| match access {
                AccessWord::Members => "members",
                AccessWord::Verify => "verify",
            });
            word.into()
        },
    },
    time!("verify_ttl", verify_ttl),
    time!("grace", grace),
];

fn one(values: &[String]) -> Option<&str> {
    match values {
        [value] => Some(value.trim()).filter(|value| !value.is_empty()),
        _ => None,
    }
}

/// What a source says of one setting of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) host: String,
    pub(super) setting: String,
    pub(super) values: Vec<String>,
}

/// What a text says, as in `docker.io mirror=a.example mirror=b.example tag_ttl=5m`; `None` if it is not written like this.
pub(super) fn read(text: &str) -> Option<Vec<Said>> {
    let mut words = text.split_whitespace();
    let host = words.next()?;
    let mut all: Vec<Said> = Vec::new();
    for word in words {
        let (setting, value) = word.split_once('=')?;
        match all.iter_mut().find(|said| said.setting == setting) {
            Some(said) => said.values.push(value.to_owned()),
            None => all.push(Said {
                host: host.to_owned(),
                setting: setting.to_owned(),
                values: vec![value.to_owned()],
            }),
        }
    }
    (!all.is_empty()).then_some(all)
}

/// Why something is of no use: what was found, and what is expected instead.
pub(super) type Wrong = (String, String);

impl Said {
    /// Puts it into the configuration, in place of what a weaker source has said of the same.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Wrong> {
        let Self { host, setting, values } = self;
        let Ok(host) = host.parse::<Host>() else {
            let expected =
                "a host or host:port without scheme or path, with a dot or a port, such as docker.io";
            return Err((format!("{host:?}, which is no registry"), expected.to_owned()));
        };
        let name = setting.replace('-', "_");
        let Some(found) = SETTINGS.iter().find(|known| known.name == name) else {
            let names: Vec<_> = SETTINGS.iter().map(|known| known.name).collect();
            return Err((
                format!("{host} {setting:?}, which is no setting"),
                format!("one of {}", names.join(", ")),
            ));
        };
        if config.origins.len() >= MAX_ORIGINS && !config.origins.contains_key(&host) {
            return Err((format!("{host}, one too many"), format!("{MAX_ORIGINS} registries at most")));
        }
        let mut changed = config.origins.get(&host).cloned().unwrap_or_default();
        let fits = (found.many || values.len() == 1) && (found.set)(&mut changed, values).is_some();
        if !fits {
            let values: String = values.join(", ").chars().take(80).collect();
            return Err((format!("{host} {name} {values:?}"), found.expected.to_owned()));
        }
        config.origins.insert(host, changed);
        Ok(())
    }
}

/// What is set for all origins, as the configuration file would have it.
pub(super) fn show(origins: &BTreeMap<Host, OriginConfig>) -> serde_json::Map<String, serde_json::Value> {
    let settings = |origin: &OriginConfig| {
        let all = SETTINGS.iter().map(|setting| (setting.name.to_owned(), (setting.show)(origin)));
        let is_set = |value: &serde_json::Value| {
            !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty())
        };
        all.filter(|(_, value)| is_set(value)).collect::<serde_json::Map<_, _>>()
    };
    origins.iter().map(|(host, origin)| (host.to_string(), settings(origin).into())).collect()
}

/// What does not go together, each as what was found and what is expected.
pub(super) fn contradictions(origins: &BTreeMap<Host, OriginConfig>) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut aliases: BTreeMap<&str, &Host> = BTreeMap::new();
    let verified: Vec<_> = origins
        .iter()
        .filter(|(_, its)| its.access == Some(AccessWord::Verify))
        .map(|(host, _)| host)
        .collect();
    if let [one, other, ..] = verified.as_slice() {
        // Clients keep one login for a gateway, and would show one registry what is meant for another.
        let found = format!("access = verify for {one} and for {other}");
        wrong.push((found, "that for one registry alone: clients have one login for a gateway".to_owned()));
    }
    for (host, origin) in origins {
        let mut say = |found: String, expected: &str| wrong.push((found, expected.to_owned()));
        for mirror in origin.mirrors.iter().filter(|mirror| mirror.host == *host || mirror.host.is_site()) {
            let found =
                format!("{mirror}, a mirror of {host}, which is not another registry that could be asked");
            say(found, "mirrors that are other registries, or none");
        }
        for alias in &origin.aliases {
            if alias.parse::<Host>().is_ok_and(|other| other != *host && origins.contains_key(&other)) {
                say(
                    format!("{alias:?}, an alias of {host} and a registry that is set itself"),
                    "an alias that is no registry's name, such as lab",
                );
            }
            if let Some(other) = aliases.insert(alias, host)
                && other != host
            {
                say(
                    format!("{alias:?}, an alias of {other} and of {host}"),
                    "it at one of the two, and another alias for the other",
                );
            }
        }
        match (&origin.user, &origin.password_file, &origin.password_variable) {
            (_, Some(_), Some(_)) => say(
                format!("both password_file and password_variable for {host}"),
                "one of the two, beside user",
            ),
            (Some(user), None, None) => say(
                format!("user {user:?} for {host}, without a password"),
                "password_file, the path of a file with it, or password_variable beside user",
            ),
            (None, Some(_), None) => {
                say(format!("password_file for {host}, without a user"), "user, a name, beside it");
            }
            (None, None, Some(_)) => {
                say(format!("password_variable for {host}, without a user"), "user, a name, beside it");
            }
            (Some(_), _, _) | (None, None, None) => {}
        }
        if origin.user.is_some() && origin.credentials.is_some() {
            let expected = "one of the two: credentials, or user with its password";
            say(format!("both credentials and user for {host}"), expected);
        }
        if origin.certificate_key.is_some() && origin.certificate.is_none() {
            let found = format!("certificate_key for {host}, without certificate");
            say(found, "certificate, the path of the file with it, beside it, or neither");
        }
        if origin.access != Some(AccessWord::Verify)
            && (origin.verify_ttl.is_some() || origin.grace.is_some())
        {
            let found = format!("verify_ttl or grace for {host}, whose clients are not verified");
            say(found, "access = verify beside it, or neither of them");
        }
        if origin.access == Some(AccessWord::Verify) && host.is_site() {
            let found = format!("access = verify for {host}, which is the site itself and no registry");
            say(found, "it for a registry that can be asked, or not at all");
        }
        if origin.insecure && (origin.certificate.is_some() || !origin.ca.is_empty()) {
            let expected =
                "it without insecure where it speaks HTTPS, and without ca and certificate where it does not";
            say(format!("ca or certificate for {host}, which is insecure: asked over plain HTTP"), expected);
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_host_and_its_settings() {
        let said = read("docker.io mirror=a.example tag_ttl=5m mirror=b.example").unwrap();
        assert_eq!(said.len(), 2);
        assert_eq!((said[0].setting.as_str(), said[0].values.len()), ("mirror", 2));
        for bad in ["", "docker.io", "docker.io mirror", "mirror=a"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
