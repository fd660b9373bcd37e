//! From sources to one configuration, or to everything that is wrong with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use wherry_gateway::origin::{ClientCertificate, SettingsError, check_authorities, check_client_certificate};

use wherry_gateway::server::ServerTls;

use super::key::{KEYS, Key};
use super::origins::{self, Wrong};
use super::source::{Entry, PREFIX, Said, Source, Sources, Surroundings, is_unknown, spellings, takes_value};
use super::{AccessWord, Config, OriginConfig};
use crate::images::{Rights, check_file};

/// How much of a bad value is repeated in a message, in characters.
const MAX_QUOTED: usize = 80;

/// What is found where a name is that nothing has.
const NO_SETTING: &str = "no setting";

/// A configuration, and where each of its values was set.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What counts.
    pub config: Config,
    sources: BTreeMap<&'static str, Source>,
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as far as it is known.
    pub key: String,
    /// Where it was set.
    pub source: Source,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: Expected,
}

/// What should stand where a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A value of this shape.
    Value(String),
    /// Another key, or none: there is no such key. Names the nearest one, if one is near.
    Key(Option<String>),
}

/// Everything that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one, the weakest source first.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File { .. } if self.key.is_empty() => write!(f, "{}: {}", self.source, self.found)?,
            Source::File { .. } => write!(f, "{}: {} is {}", self.source, self.key, self.found)?,
            Source::Default => write!(f, "{} is {}", self.key, self.found)?,
            Source::Variable(_) | Source::Flag(_) => write!(f, "{} is {}", self.source, self.found)?,
        }
        match &self.expected {
            Expected::Value(shape) => write!(f, "; expected {shape}"),
            Expected::Key(Some(name)) => write!(f, "; did you mean {name}?"),
            Expected::Key(None) => write!(f, "; 'wherry config' lists those that exist"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "the configuration is wrong: {one}"),
            all => {
                write!(f, "the configuration is wrong in {} places:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Loaded {
    /// Where this key was set.
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }

    /// The whole configuration as a file that would give the same, with the source of each value beside it.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for key in &KEYS {
            out += &format!("\n# {}.\n", key.about);
            match key.value(&self.config) {
                Some(serde_json::Value::Object(tables)) if !tables.is_empty() => {
                    out += &format!("# Set by {}.\n", self.source(key.name));
                    tables.iter().for_each(|(name, table)| out += &toml_table(key.name, name, table));
                }
                Some(serde_json::Value::Object(_)) => {
                    out += &format!("# {} is not set; it would be {}\n", key.name, key.expected);
                }
                Some(value) => {
                    out += &format!("{} = {}  # {}\n", key.name, toml_literal(&value), self.source(key.name));
                }
                None => out += &format!("# {} is not set; it would be {}\n", key.name, key.expected),
            }
        }
        out.trim_start().to_owned()
    }

    /// The same for scripts: `{"key": {"value": …, "source": "…"}}`; keys that are not set have the value null.
    pub fn to_json(&self) -> serde_json::Value {
        let entry = |key: &Key| {
            let source = self.source(key.name).to_string();
            serde_json::json!({ "value": key.value(&self.config), "source": source })
        };
        KEYS.iter().map(|key| (key.name.to_owned(), entry(key))).collect::<serde_json::Map<_, _>>().into()
    }
}

fn toml_table(key: &str, name: &str, table: &serde_json::Value) -> String {
    let lines = table.as_object().into_iter().flatten();
    let lines = lines.map(|(setting, value)| format!("{setting} = {}\n", toml_literal(value)));
    format!("[{key}.{}]\n{}", toml_literal(&name.into()), lines.collect::<String>())
}

/// A JSON string, boolean or array of strings is written in the same way in TOML, but for the escapes.
fn toml_literal(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => toml::Value::from(text.as_str()).to_string(),
        serde_json::Value::Array(items) => {
            format!("[{}]", items.iter().map(toml_literal).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Makes one configuration of all sources, the strongest winning key by key. Of the files that it names it reads those
/// with certificates, so that one that is of no use is reported with all else that is wrong.
///
/// The control socket moves with the data folder when that is set by a source at least as strong.
///
/// # Errors
/// All problems of all sources, also of values that a stronger source replaces.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let mut set = BTreeMap::new();
    let default_data = default_data(&sources.surroundings);
    let mut config = Config::new(default_data.clone().unwrap_or_default());
    for entry in sources.entries() {
        let Some(key) = Key::find(&entry.key).filter(|_| !matches!(entry.said, Said::Broken(_))) else {
            problems.push(unknown(&entry));
            continue;
        };
        match apply(key, &entry.said, &mut config) {
            Ok(()) => {
                if key.name == "ca" {
                    problems.extend(unusable_authorities("ca", &config.ca, &entry.source));
                }
                if let Said::Origin(said) = &entry.said {
                    problems.extend(unusable_files(said, &config, &entry.source));
                }
                set.insert(key.name, entry.source);
            }
            Err((found, expected)) => problems.push(Problem {
                key: key.name.to_owned(),
                source: entry.source,
                found,
                expected: Expected::Value(expected),
            }),
        }
    }
    if default_data.is_none()
        && !set.contains_key("data")
        && !problems.iter().any(|problem| problem.key == "data")
    {
        problems.push(Problem {
            key: "data".to_owned(),
            source: Source::Default,
            found: "not set, and there is no HOME to put it under".to_owned(),
            expected: Expected::Value("the path of a folder, by --data or WHERRY_DATA".to_owned()),
        });
    }
    if follows(set.get("control"), set.get("data")) {
        config.control = socket_in(&config.data, &sources.surroundings);
        set.remove("control");
    }
    problems.extend(unusable_certificates(&config, set.get("origin")));
    for (found, expected) in origins::contradictions(&config.origins) {
        let source = set.get("origin").cloned().unwrap_or(Source::Default);
        let expected = Expected::Value(expected);
        problems.push(Problem { key: "origin".to_owned(), source, found, expected });
    }
    problems.extend(idle_rules(&config, set.get("tag_policy")));
    clashes(&config, &set, &mut problems);
    problems.extend(unusable_gateway(&config, &set));
    if problems.is_empty() { Ok(Loaded { config, sources: set }) } else { Err(ConfigError { problems }) }
}

/// The variables that look like settings and are none, each with the setting that may have been meant. They count for
/// nothing.
pub fn unknown_variables(variables: &[(String, String)]) -> Vec<Problem> {
    let unknown = variables.iter().filter(|(name, value)| is_unknown(name, value));
    let problem = |(name, _): &(String, String)| {
        let source = Source::Variable(name.clone());
        Problem {
            key: name.clone(),
            found: NO_SETTING.to_owned(),
            expected: Expected::Key(closest(name, &spellings(&source))),
            source,
        }
    };
    unknown.map(problem).collect()
}

/// Which data folder is meant, by the same rules as [`load`] but blind to all other keys: a mistake in the node's
/// configuration is for the node to report.
///
/// `None` when nothing says where, and there is no home folder to look in.
pub fn data_folder(sources: &Sources) -> Option<PathBuf> {
    strongest(sources, "data").map(|(path, _)| path).or_else(|| default_data(&sources.surroundings))
}

/// Where a client command looks for a node's control socket, in this order: only where something says that it is, by the
/// rules of [`data_folder`]; else where this user's own node has it, and then where the system's has.
pub fn control_sockets(sources: &Sources) -> Vec<PathBuf> {
    let data = strongest(sources, "data");
    if let Some((path, source)) = strongest(sources, "control")
        && !follows(Some(&source), data.as_ref().map(|(_, source)| source))
    {
        return vec![path];
    }
    let own = data.as_ref().map(|(path, _)| path.clone()).or_else(|| default_data(&sources.surroundings));
    let mut sockets: Vec<PathBuf> =
        own.iter().map(|folder| socket_in(folder, &sources.surroundings)).collect();
    let is_the_systems = |folder: &PathBuf| folder == Path::new(SYSTEM_DATA);
    if data.is_none() || own.as_ref().is_some_and(is_the_systems) {
        sockets.push(SYSTEM_CONTROL.into());
    }
    sockets.dedup();
    sockets
}

fn strongest(sources: &Sources, key: &str) -> Option<(PathBuf, Source)> {
    let mut found = None;
    for entry in sources.entries().into_iter().filter(|entry| entry.key == key) {
        if let Said::Values(values) = entry.said
            && let [path] = values.as_slice()
        {
            found = Some((path.into(), entry.source));
        }
    }
    found
}

/// Whether the socket stands in the data folder: it is not set, or set by a weaker source than the folder.
fn follows(control: Option<&Source>, data: Option<&Source>) -> bool {
    match (control, data) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(control), Some(data)) => strength(data) > strength(control),
    }
}

fn strength(source: &Source) -> u8 {
    match source {
        Source::Default => 0,
        Source::File { .. } => 1,
        Source::Variable(_) => 2,
        Source::Flag(_) => 3,
    }
}

/// Where the system keeps a root daemon's data.
const SYSTEM_DATA: &str = "/var/lib/wherry";

/// Where the system keeps a root daemon's socket.
const SYSTEM_CONTROL: &str = "/run/wherry/control.sock";

fn default_data(surroundings: &Surroundings) -> Option<PathBuf> {
    if surroundings.root {
        return Some(SYSTEM_DATA.into());
    }
    // The XDG specification wants relative paths ignored.
    let xdg = surroundings.xdg_data_home.as_ref().filter(|path| path.is_absolute());
    let base = xdg.cloned().or_else(|| Some(surroundings.home.as_ref()?.join(".local/share")))?;
    Some(base.join("wherry"))
}

fn socket_in(data: &Path, surroundings: &Surroundings) -> PathBuf {
    if surroundings.root && data == Path::new(SYSTEM_DATA) {
        SYSTEM_CONTROL.into()
    } else {
        data.join("control.sock")
    }
}

fn apply(key: &Key, said: &Said, config: &mut Config) -> Result<(), Wrong> {
    let wrong = |found: String| (found, expected(key));
    let values = match said {
        Said::Values(values) => values,
        Said::Array(values) if key.many => values,
        Said::Array(_) => return Err(wrong("an array".to_owned())),
        Said::Origin(said) => return said.apply(config),
        Said::Never(what) => return Err(wrong((*what).to_owned())),
        Said::Broken(message) => return Err(wrong(message.clone())),
    };
    if (key.set)(config, values).is_some() {
        return Ok(());
    }
    // Of several values only the bad ones are worth reading.
    let bad: Vec<String> = match key.many {
        true => {
            let refused =
                |value: &&String| (key.set)(&mut config.clone(), std::slice::from_ref(value)).is_none();
            values.iter().filter(refused).map(|value| quoted(value)).collect()
        }
        false => values.iter().map(|value| quoted(value)).collect(),
    };
    Err(wrong(bad.join(", ")))
}

fn unusable_authorities(key: &str, paths: &[PathBuf], source: &Source) -> Vec<Problem> {
    let problem = |path: &PathBuf| {
        let why = match check_authorities(path).err()? {
            SettingsError::ReadCa { source, .. } => format!("which cannot be read: {source}"),
            SettingsError::BadCa { why, .. } => format!("of which no certificate can be used: {why}"),
            error => error.to_string(),
        };
        Some(Problem {
            key: key.to_owned(),
            source: source.clone(),
            found: format!("{}, {why}", quoted(&path.display().to_string())),
            expected: Expected::Value("a file with the certificates of authorities, as PEM".to_owned()),
        })
    };
    paths.iter().filter_map(problem).collect()
}

/// What is wrong with the files that were just named for an origin.
fn unusable_files(said: &origins::Said, config: &Config, source: &Source) -> Vec<Problem> {
    let host = said.host.parse().ok();
    let Some(origin) = host.as_ref().and_then(|host| config.origins.get(host)) else { return Vec::new() };
    match said.setting.replace('-', "_").as_str() {
        "ca" => unusable_authorities("origin", &origin.ca, source),
        "password_file" => unreadable(origin.password_file.as_deref(), source),
        "credentials" => unreadable(origin.credentials.as_deref(), source),
        _ => Vec::new(),
    }
}

fn unreadable(path: Option<&Path>, source: &Source) -> Vec<Problem> {
    let problem = |path: &Path| {
        let error = std::fs::File::open(path).err()?;
        Some(Problem {
            key: "origin".to_owned(),
            source: source.clone(),
            found: format!("{}, which cannot be read: {error}", quoted(&path.display().to_string())),
            expected: Expected::Value("a file that this node can read".to_owned()),
        })
    };
    path.and_then(problem).into_iter().collect()
}

/// What is wrong with the certificates that are shown to origins, once all is known of each.
fn unusable_certificates(config: &Config, source: Option<&Source>) -> Vec<Problem> {
    let shown = config.origins.values().filter_map(OriginConfig::client_certificate);
    let problem = |client: ClientCertificate| {
        let error = check_client_certificate(&client).err()?;
        Some(Problem {
            key: "origin".to_owned(),
            source: source.cloned().unwrap_or(Source::Default),
            found: error.to_string(),
            expected: Expected::Value("files with a certificate and its private key, as PEM".to_owned()),
        })
    };
    shown.filter_map(problem).collect()
}

/// The rules for tags that never count.
fn idle_rules(config: &Config, source: Option<&Source>) -> Vec<Problem> {
    let rules = &config.tag_policy;
    let idle = rules.iter().enumerate().filter_map(|(at, rule)| {
        let before = rules[..at].iter().find(|before| before.covers(rule))?;
        let found =
            format!("'{rule}', which never counts, since '{before}' before it takes all that it fits");
        let expected = "the narrower of two rules first, or one of them alone: the first that fits counts";
        Some(Problem {
            key: "tag_policy".to_owned(),
            source: source.cloned().unwrap_or(Source::Default),
            found,
            expected: Expected::Value(expected.to_owned()),
        })
    });
    idle.collect()
}

/// What is wrong with how the gateway would be reached.
fn unusable_gateway(config: &Config, set: &BTreeMap<&'static str, Source>) -> Vec<Problem> {
    let problem = |key: &str, found: String, expected: &str| Problem {
        key: key.to_owned(),
        source: set.get(key).cloned().unwrap_or(Source::Default),
        found,
        expected: Expected::Value(expected.to_owned()),
    };
    let mut problems = Vec::new();
    match (&config.gateway_certificate, &config.gateway_key) {
        (Some(certificate), key) => {
            if let Err(error) = ServerTls::new(certificate, key.as_ref().unwrap_or(certificate)) {
                let expected = "files with a certificate and its private key, as PEM";
                problems.push(problem("gateway_certificate", error.to_string(), expected));
            }
        }
        (None, Some(key)) => {
            let found = format!("{}, without gateway_certificate", key.display());
            problems.push(problem("gateway_key", found, "both"));
        }
        (None, None) if !config.gateway.ip().to_canonical().is_loopback() && !config.gateway_plain => {
            let found = format!(
                "{}, where other machines can reach it, and it would speak plain HTTP",
                config.gateway
            );
            let expected = "gateway_certificate beside it, or gateway_plain = true (--gateway-plain) where that is meant";
            problems.push(problem("gateway", found, expected));
        }
        _ => {}
    }
    let files = [("users", &config.callers.users), ("tokens", &config.callers.tokens)];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        if let Err(why) = check_file(path, key == "tokens") {
            let found = format!("{}, which cannot be used: {why}", path.display());
            let expected = match key {
                "tokens" => "a file of lines NAME:SHA256",
                _ => "a file of lines NAME:BCRYPT, as 'htpasswd -B' writes it",
            };
            problems.push(problem(key, found, expected));
        }
    }
    let verified = config.origins.iter().find(|(_, its)| its.access == Some(AccessWord::Verify));
    for (key, path) in [("users", &config.callers.users), ("tokens", &config.callers.tokens)] {
        if let (Some((host, _)), true) = (verified, path.is_some()) {
            let found = format!(
                "set beside access = verify for {host}, which would be shown what is this gateway's own"
            );
            problems.push(problem(key, found, "one of the two"));
        }
    }
    let mut names: Vec<_> = config.callers.rights.iter().map(Rights::name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        problems.push(problem(
            "rights",
            format!("set twice for {}", twice[0]),
            "all rights of a name in one place",
        ));
    }
    if !config.callers.rights.is_empty() && config.callers.users.is_none() && config.callers.tokens.is_none()
    {
        problems.push(problem("rights", "set for nobody".to_owned(), "users or tokens beside it"));
    }
    problems
}

fn quoted(value: &str) -> String {
    let mut short: String = value.chars().take(MAX_QUOTED).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn expected(key: &Key) -> String {
    if takes_value(key) && key.many {
        format!("each to be {}", key.expected)
    } else {
        key.expected.to_owned()
    }
}

fn unknown(entry: &Entry) -> Problem {
    let (found, expected) = match &entry.said {
        Said::Broken(message) => (
            format!("this is not TOML: {message}"),
            Expected::Value("lines such as site = \"harbour\"".to_owned()),
        ),
        _ => {
            let written = match &entry.source {
                Source::Flag(name) => name,
                _ => &entry.key,
            };
            (NO_SETTING.to_owned(), Expected::Key(closest(written, &spellings(&entry.source))))
        }
    };
    Problem { key: entry.key.clone(), source: entry.source.clone(), found, expected }
}

/// Services that would take each other's port.
fn clashes(config: &Config, set: &BTreeMap<&'static str, Source>, problems: &mut Vec<Problem>) {
    let listeners = [
        ("gateway", config.gateway),
        ("status", config.status),
        ("peers", config.peers),
        ("bulk", config.bulk),
    ];
    for (i, (name, address)) in listeners.iter().enumerate() {
        let taken = listeners[..i].iter().find(|(_, other)| {
            let same_host =
                other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified();
            address.port() != 0 && other.port() == address.port() && same_host
        });
        if let Some((other, _)) = taken {
            problems.push(Problem {
                key: (*name).to_owned(),
                source: set.get(name).cloned().unwrap_or(Source::Default),
                found: format!("{address}, which the key {other} takes already"),
                expected: Expected::Value("an address of its own".to_owned()),
            });
        }
    }
}

/// The name that is nearest to what was written, if one is near at all.
fn closest(written: &str, names: &[String]) -> Option<String> {
    // What all names have in common says nothing about how near they are.
    let plain = |text: &str| {
        let own = text.strip_prefix(PREFIX).or_else(|| text.strip_prefix("--")).unwrap_or(text);
        own.to_lowercase().replace('-', "_")
    };
    let written = plain(written);
    let near = names.iter().map(|name| (distance(&written, &plain(name)), name)).min()?;
    let most = (written.chars().count() / 3).max(1);
    (near.0 <= most).then(|| near.1.clone())
}

/// Levenshtein's distance: how many characters have to be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // Nothing that is a hundred characters long is near to any key.
    for (i, from) in a.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
