//! Where settings come from, as values.

use std::fmt;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::key::{Flag, KEYS, Key};
use super::origins;

/// The file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/wherry/wherry.toml";

/// The variable that names another file.
pub const FILE_VARIABLE: &str = "WHERRY_CONFIG";

/// What the names of all variables begin with.
pub const PREFIX: &str = "WHERRY_";

/// The longest configuration file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// A configuration file that has been read.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    /// Where it stands, for messages.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// All that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file, if there is one.
    pub file: Option<ConfigFile>,
    /// Environment variables; those that do not start with `WHERRY_` are passed over.
    pub variables: Vec<(String, String)>,
    /// Flags by the name of their key, each with all its values.
    pub flags: Vec<(&'static str, Vec<String>)>,
    /// What the embedded defaults depend on.
    pub surroundings: Surroundings,
}

/// Facts about the process that decide where data goes by default.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Whether the process runs as root.
    pub root: bool,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it is the embedded default.
    Default,
    /// In the configuration file.
    File {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// In an environment variable.
    Variable(String),
    /// By a flag, written without its value.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Something that a source says about a key.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) source: Source,
    pub(super) said: Said,
}

/// What it says.
pub(super) enum Said {
    Values(Vec<String>),
    /// Several values, in a source that can hold them only for a key that takes several.
    Array(Vec<String>),
    /// One setting of one origin.
    Origin(origins::Said),
    /// A value that no key has, such as a table.
    Never(&'static str),
    /// A passage of the file that is not TOML.
    Broken(String),
}

impl Sources {
    /// Everything that is said, the weakest source first.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        if let Some(file) = &self.file {
            file.entries(&mut entries);
        }
        for (name, value) in &self.variables {
            let Some(key) = key_of(name) else { continue };
            // An empty variable is how a shell or a unit file says "not set".
            if value.is_empty() {
                continue;
            }
            let values = match key.many {
                true => value
                    .split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect(),
                false => vec![value.clone()],
            };
            push(&mut entries, key.name, &Source::Variable(name.clone()), Said::Values(values));
        }
        for (name, values) in &self.flags {
            let flag = Key::find(name).map_or_else(|| (*name).to_owned(), Key::long);
            let source = Source::Flag(format!("--{flag}"));
            push(&mut entries, name, &source, Said::Values(values.clone()));
        }
        entries
    }
}

/// The key under which origins have tables of their own.
const ORIGIN: &str = "origin";

/// Adds what a source says of a key; of origins each setting by itself, as far as it can be read.
fn push(entries: &mut Vec<Entry>, key: &str, source: &Source, said: Said) {
    let mut add = |said| entries.push(Entry { key: key.to_owned(), source: source.clone(), said });
    match said {
        Said::Values(texts) | Said::Array(texts) if key == ORIGIN => {
            let mut all: Vec<origins::Said> = Vec::new();
            for text in texts {
                let Some(more) = origins::read(&text) else {
                    add(Said::Values(vec![text]));
                    continue;
                };
                // What one source says of the same in several places it says together.
                for said in more {
                    match all.iter_mut().find(|it| it.host == said.host && it.setting == said.setting) {
                        Some(it) => it.values.extend(said.values),
                        None => all.push(said),
                    }
                }
            }
            all.into_iter().for_each(|said| add(Said::Origin(said)));
        }
        said => add(said),
    }
}

/// The key that a variable sets.
fn key_of(variable: &str) -> Option<&'static Key> {
    Key::find(&variable.strip_prefix(PREFIX)?.to_ascii_lowercase())
}

/// Whether a variable looks like a setting and is none.
pub(super) fn is_unknown(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    !value.is_empty() && name != FILE_VARIABLE && key_of(name).is_none() && !is_service_link(rest, value)
}

/// Whether this is one of the variables that Kubernetes and Docker invent in every container for a service that
/// happens to be called wherry-something. Nobody set them, so nobody is to be told of them.
fn is_service_link(name: &str, value: &str) -> bool {
    let port_of = |name: &str| name == "PORT" || name.ends_with("_PORT") || name.contains("_PORT_");
    name == "SERVICE_HOST"
        || name.ends_with("_SERVICE_HOST")
        || name.starts_with("SERVICE_PORT")
        || name.contains("_SERVICE_PORT")
        || name.starts_with("PORT_")
        || port_of(name) && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
        || name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP"))
}

impl ConfigFile {
    fn entries(&self, entries: &mut Vec<Entry>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        for error in errors {
            let line = self.line(error.span().map_or(0, |span| span.start));
            let source = Source::File { path: self.path.clone(), line };
            entries.push(Entry {
                key: String::new(),
                source,
                said: Said::Broken(error.message().to_owned()),
            });
        }
        // A table sorts its keys; problems read better in the order of the file.
        let mut found: Vec<_> = table.get_ref().iter().collect();
        found.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in found {
            let source = Source::File { path: self.path.clone(), line: self.line(key.span().start) };
            if let (ORIGIN, DeValue::Table(hosts)) = (key.get_ref().as_ref(), value.get_ref()) {
                self.origins(hosts, entries);
                continue;
            }
            let said = match value.get_ref() {
                DeValue::Array(items) => {
                    let texts: Option<Vec<_>> = items.iter().map(|item| scalar(item.get_ref())).collect();
                    texts.map_or(Said::Never("an array that holds arrays or tables"), Said::Array)
                }
                DeValue::Table(_) => Said::Never("a table"),
                value => scalar(value).map_or(Said::Never("a value"), |text| Said::Values(vec![text])),
            };
            push(entries, key.get_ref(), &source, said);
        }
    }

    /// The tables of origins, in the order of the file.
    fn origins(&self, hosts: &DeTable<'_>, entries: &mut Vec<Entry>) {
        let mut found = Vec::new();
        for (host, settings) in hosts.iter() {
            let DeValue::Table(settings) = settings.get_ref() else {
                found.push((host.span().start, Said::Never("no table of a registry")));
                continue;
            };
            for (setting, value) in settings.iter() {
                let values = match value.get_ref() {
                    DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
                    value => scalar(value).map(|text| vec![text]),
                };
                let said = match values {
                    Some(values) => Said::Origin(origins::Said {
                        host: host.get_ref().to_string(),
                        setting: setting.get_ref().to_string(),
                        values,
                    }),
                    None => Said::Never(
                        "a table in that of a registry (a name with a dot stands in quotes: [origin.\"docker.io\"])",
                    ),
                };
                found.push((setting.span().start, said));
            }
        }
        found.sort_by_key(|(start, _)| *start);
        for (start, said) in found {
            let source = Source::File { path: self.path.clone(), line: self.line(start) };
            entries.push(Entry { key: ORIGIN.to_owned(), source, said });
        }
    }

    fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        1 + self.text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count()
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// All names that a setting could have been meant to have in a source of this kind.
pub(super) fn spellings(source: &Source) -> Vec<String> {
    let keys = KEYS.iter().map(|key| match source {
        Source::Variable(_) => key.variable(),
        Source::Flag(_) => format!("--{}", key.long()),
        _ => key.name.to_owned(),
    });
    keys.chain(matches!(source, Source::Variable(_)).then(|| FILE_VARIABLE.to_owned())).collect()
}

/// Whether a flag of this key takes a value of its own.
pub(super) fn takes_value(key: &Key) -> bool {
    matches!(key.flag, Flag::Value(_))
}
