//! The one table of everything that can be set.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use wherry_gateway::Host;
use wherry_proto::{MAX_SITE_LEN, NodeId};

use super::origins;
use super::source::PREFIX;
use super::units::{parse_duration, parse_size, show_duration, show_exact_size};
use super::{Config, LogFormat};
use crate::images::push::Clients;
use crate::images::{MAX_RULES, TagRule};
use crate::limits::{MAX_WINDOWS, Window, parse_rate, show_rate};

/// The smallest disk budget: less holds no image at all.
const MIN_BUDGET: u64 = 1 << 20;

/// The smallest daily budget: a chunk and a manifest or two.
const MIN_WAN_BUDGET: u64 = 1 << 20;

/// The most copies of what is pushed: beyond that an image is better preloaded.
const MAX_COPIES: usize = 64;

/// The longest timeout or age that can be set.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);

/// One thing that can be set.
pub struct Key {
    /// Its name in the configuration file.
    pub name: &'static str,
    /// How its flag takes the value.
    pub flag: Flag,
    /// Whether it holds several values: an array in the file, commas in the variable, a repeated flag.
    pub many: bool,
    /// What a value has to look like, to be read after "expected".
    pub expected: &'static str,
    /// What it is for, in one sentence.
    pub about: &'static str,
    /// Checks the values and puts them into the configuration; without `many` there is exactly one.
    pub(super) set: fn(&mut Config, &[String]) -> Option<()>,
    /// The values as the file would hold them, so that reading them again gives the same.
    pub(super) show: fn(&Config) -> Shown,
}

/// How a key appears as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// `--name VALUE`, with this placeholder for the value.
    Value(&'static str),
    /// `--name`, which sets it to true.
    Yes,
    /// `--no-name`, which sets it to false.
    No,
}

/// A value in the form that the configuration file has.
pub(super) enum Shown {
    Unset,
    Text(String),
    Bool(bool),
    Many(Vec<String>),
    Table(serde_json::Map<String, serde_json::Value>),
}

impl Key {
    /// Its environment variable, such as `WHERRY_TAG_TTL`.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Its flag without the dashes, such as `tag-ttl` or `no-mdns`.
    pub fn long(&self) -> String {
        let name = self.name.replace('_', "-");
        match self.flag {
            Flag::Value(_) | Flag::Yes => name,
            Flag::No => format!("no-{name}"),
        }
    }

    /// The key of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Its value in a configuration, as the file would hold it; `None` when it is not set at all.
    pub fn value(&self, config: &Config) -> Option<serde_json::Value> {
        match (self.show)(config) {
            Shown::Unset => None,
            Shown::Text(text) => Some(text.into()),
            Shown::Bool(value) => Some(value.into()),
            Shown::Many(values) => Some(values.into()),
            Shown::Table(table) => Some(table.into()),
        }
    }
}

macro_rules! address {
    ($field:ident) => {
        (
            |config, values| {
                config.$field = parsed(values)?;
                Some(())
            },
            |config| Shown::Text(config.$field.to_string()),
        )
    };
}

macro_rules! clients {
    ($field:ident) => {
        (
            |config, values| {
                config.push.$field = Clients::parse(one(values)?)?;
                Some(())
            },
            |config| Shown::Text(config.push.$field.as_str().to_owned()),
        )
    };
}

macro_rules! path {
    ($field:ident) => {
        (
            |config, values| {
                config.$field = PathBuf::from(filled(one(values)?)?);
                Some(())
            },
            |config| Shown::Text(config.$field.display().to_string()),
        )
    };
}

macro_rules! optional_path {
    ($($field:ident).+) => {
        (
            |config, values| {
                config.$($field).+ = Some(PathBuf::from(filled(one(values)?)?));
                Some(())
            },
            |config| match &config.$($field).+ {
                Some(path) => Shown::Text(path.display().to_string()),
                None => Shown::Unset,
            },
        )
    };
}

macro_rules! duration {
    ($field:ident, $least:expr) => {
        (
            |config, values| {
                let value = parse_duration(one(values)?)?;
                (Duration::from_millis($least)..=MAX_DURATION).contains(&value).then(|| config.$field = value)
            },
            |config| Shown::Text(show_duration(config.$field)),
        )
    };
}

macro_rules! rate {
    ($field:ident) => {
        (
            |config, values| {
                config.wan.$field = Some(parse_rate(one(values)?)?);
                Some(())
            },
            |config| config.wan.$field.map_or(Shown::Unset, |rate| Shown::Text(show_rate(rate))),
        )
    };
}

type Setter = fn(&mut Config, &[String]) -> Option<()>;
type Shower = fn(&Config) -> Shown;

const fn key(
    name: &'static str,
    placeholder: &'static str,
    expected: &'static str,
    about: &'static str,
    (set, show): (Setter, Shower),
) -> Key {
    Key { name, flag: Flag::Value(placeholder), many: false, expected, about, set, show }
}

const fn list(key: Key) -> Key {
    Key { many: true, ..key }
}

const ADDRESS: &str = "IP:PORT, such as 127.0.0.1:5050 or [::1]:5050; port 0 takes any that is free";
const RATE: &str = "a rate of at least 64kbit/s, such as 4Mbit/s or 500kB/s";
const CLIENTS: &str = "nobody, local (clients on this machine) or anyone";

const ORIGIN: &str =
    "a host or host:port without scheme or path, with a dot or a port, such as docker.io or registry:5000";

/// Everything that can be set, in the order in which it is shown.
pub static KEYS: [Key; 33] = [
    key("data", "DIR", "the path of a folder", "Folder for blobs, index and identity", path!(data)),
    key("gateway", "ADDR", ADDRESS, "Where container runtimes reach the registry API", address!(gateway)),
    key("status", "ADDR", ADDRESS, "Where /healthz, /status and /metrics are served", address!(status)),
    key("peers", "ADDR", ADDRESS, "Where other nodes reach this one (TCP and QUIC)", address!(peers)),
    key("bulk", "ADDR", ADDRESS, "Where other nodes fetch chunks (TCP)", address!(bulk)),
    key(
        "control",
        "PATH",
        "the path of a Unix socket",
        "Socket for the other commands; in the data folder unless set",
        path!(control),
    ),
    key(
        "site",
        "NAME",
        "a name of 1 to 64 characters without spaces, the same on all nodes that reach each other cheaply",
        "Name of the site that this machine belongs to",
        (
            |config, values| {
                let site = filled(one(values)?)?;
                let fits =
                    site.len() <= MAX_SITE_LEN && !site.chars().any(|c| c.is_whitespace() || c.is_control());
                fits.then(|| config.site = site.to_owned())
            },
            |config| Shown::Text(config.site.clone()),
        ),
    ),
    key(
        "default_origin",
        "HOST",
        ORIGIN,
        "Registry that is meant when a name has none, in commands as at the gateway",
        (
            |config, values| {
                config.default_origin = origin(one(values)?)?;
                Some(())
            },
            |config| Shown::Text(config.default_origin.clone()),
        ),
    ),
    key(
        "push",
        "WHO",
        CLIENTS,
        "Who may push images to the gateway: nobody, local or anyone",
        clients!(push),
    ),
    key(
        "delete",
        "WHO",
        CLIENTS,
        "Who may remove tags, manifests and blobs at the gateway: nobody, local or anyone",
        clients!(delete),
    ),
    key(
        "users",
        "FILE",
        "the path of a file of lines NAME:BCRYPT, as 'htpasswd -B' writes it",
        "File with the users of the gateway, for clients on other machines; without one all that reach the gateway may pull",
        optional_path!(callers.users),
    ),
    key(
        "tokens",
        "FILE",
        "the path of a file of lines NAME:SHA256, with the SHA-256 of a token in hexadecimal",
        "File with the bearer tokens of the gateway, for clients on other machines",
        optional_path!(callers.tokens),
    ),
    list(key(
        "rights",
        "NAME=RIGHTS",
        "a name of a user or token, or * for all others, and none or some of pull, push and delete joined by +, such as \
         anna=pull+push",
        "What a user or token may do; pull, unless set",
        (
            |config, values| {
                config.callers.rights =
                    values.iter().map(|value| value.trim().parse().ok()).collect::<Option<_>>()?;
                (config.callers.rights.len() <= MAX_RULES).then_some(())
            },
            |config| Shown::Many(config.callers.rights.iter().map(ToString::to_string).collect()),
        ),
    )),
    key(
        "gateway_certificate",
        "FILE",
        "the path of a PEM file",
        "File with the certificate that the gateway shows to its clients; without it they are spoken to in plain HTTP",
        optional_path!(gateway_certificate),
    ),
    key(
        "gateway_key",
        "FILE",
        "the path of a PEM file",
        "File with the key of that certificate; the same file unless set",
        optional_path!(gateway_key),
    ),
    Key {
        name: "gateway_plain",
        flag: Flag::Yes,
        many: false,
        expected: "true or false",
        about: "Speak plain HTTP to other machines too, where the gateway is not on loopback",
        set: |config, values| {
            config.gateway_plain = truth(values)?;
            Some(())
        },
        show: |config| Shown::Bool(config.gateway_plain),
    },
    key(
        "copies",
        "N",
        "a number from 1 to 64",
        "How many nodes of the site are to have each image that is pushed",
        (
            |config, values| {
                let copies: usize = one(values)?.parse().ok()?;
                (1..=MAX_COPIES).contains(&copies).then(|| config.copies = copies)
            },
            |config| Shown::Text(config.copies.to_string()),
        ),
    ),
    list(key(
        "insecure",
        "HOST",
        ORIGIN,
        "Registry that is asked over plain HTTP",
        (
            |config, values| {
                config.insecure = values.iter().map(|value| origin(value)).collect::<Option<_>>()?;
                Some(())
            },
            |config| Shown::Many(config.insecure.clone()),
        ),
    )),
    list(key(
        "ca",
        "FILE",
        "the path of a PEM file",
        "File with a certification authority for registries, on top of the system's",
        (
            |config, values| {
                config.ca = values.iter().map(|value| Some(filled(value)?.into())).collect::<Option<_>>()?;
                Some(())
            },
            |config| Shown::Many(config.ca.iter().map(|path| path.display().to_string()).collect()),
        ),
    )),
    list(key(
        "bootstrap",
        "MULTIADDR",
        "a multiaddress, such as /ip4/192.0.2.7/tcp/4050 or /dns/seed.example/udp/4050/quic-v1, with or without \
         /p2p/PEER_ID",
        "Node to begin with",
        (
            |config, values| {
                config.bootstrap = values.iter().map(|value| multiaddr(value)).collect::<Option<_>>()?;
                Some(())
            },
            |config| Shown::Many(config.bootstrap.clone()),
        ),
    )),
    Key {
        name: "mdns",
        flag: Flag::No,
        many: false,
        expected: "true or false",
        about: "Look for nodes on the local network by mDNS",
        set: |config, values| {
            config.mdns = truth(values)?;
            Some(())
        },
        show: |config| Shown::Bool(config.mdns),
    },
    key(
        "disk_budget",
        "SIZE",
        "a size of at least 1MiB, such as 20GiB or 500MB",
        "Most disk that blobs may take; without it as much as there is",
        (
            |config, values| {
                let budget = parse_size(one(values)?)?;
                (budget >= MIN_BUDGET).then(|| config.disk_budget = Some(budget))
            },
            |config| config.disk_budget.map_or(Shown::Unset, |budget| Shown::Text(show_exact_size(budget))),
        ),
    ),
    key(
        "wan_down",
        "RATE",
        RATE,
        "How fast bytes may come from registries and other sites, for all nodes of this site together",
        rate!(down),
    ),
    key(
        "wan_up",
        "RATE",
        RATE,
        "How fast chunks may go to other sites, for all nodes of this site together",
        rate!(up),
    ),
    key(
        "wan_budget",
        "SIZE",
        "a size of at least 1MiB, such as 2GiB or 500MB",
        "How many bytes may come from registries and other sites in a day, for all nodes of this site together",
        (
            |config, values| {
                let budget = parse_size(one(values)?)?;
                (budget >= MIN_WAN_BUDGET).then(|| config.wan.budget = Some(budget))
            },
            |config| config.wan.budget.map_or(Shown::Unset, |budget| Shown::Text(show_exact_size(budget))),
        ),
    ),
    list(key(
        "wan_window",
        "HOURS",
        "hours of this machine's clock such as 01:00-05:00, 22:00-06:00, Sat 00:00-24:00 or Mon-Fri 20:00-06:00",
        "When bytes may come from and go to registries and other sites; always, without one",
        (
            |config, values| {
                let windows: Vec<Window> =
                    values.iter().map(|value| Window::parse(value)).collect::<Option<_>>()?;
                (windows.len() <= MAX_WINDOWS).then(|| config.wan.windows = windows)
            },
            |config| Shown::Many(config.wan.windows.iter().map(ToString::to_string).collect()),
        ),
    )),
    key(
        "tag_ttl",
        "TIME",
        "a time with its unit, such as 30s, 5m or 1h",
        "How long a tag is answered without asking its registry again",
        duration!(tag_ttl, 0),
    ),
    list(key(
        "tag_policy",
        "[PATTERN=]POLICY",
        "a policy (origin-first, site-first or frozen), or where it counts, beginning with the registry's own name and no alias, \
         and a policy, such as docker.io/library/*=site-first or registry.example/team/app:v*=frozen",
        "When a registry is asked what a tag means: first (origin-first), only where the site does not know (site-first), \
         or never again (frozen); the first that fits counts",
        (
            |config, values| {
                let rules: Vec<TagRule> =
                    values.iter().map(|value| value.trim().parse().ok()).collect::<Option<_>>()?;
                (rules.len() <= MAX_RULES).then(|| config.tag_policy = rules)
            },
            |config| Shown::Many(config.tag_policy.iter().map(ToString::to_string).collect()),
        ),
    )),
    key(
        "origin_connect_timeout",
        "TIME",
        "a time of at least 1s with its unit, such as 10s",
        "How long connecting to a registry may take",
        duration!(origin_connect_timeout, 1_000),
    ),
    key(
        "origin_stall_timeout",
        "TIME",
        "a time of at least 1s with its unit, such as 30s",
        "How long a registry may send nothing before it counts as gone",
        duration!(origin_stall_timeout, 1_000),
    ),
    key(
        "log",
        "FILTER",
        "a level (error, warn, info, debug, trace) or directives such as warn,wherry=debug",
        "Which log lines are written to standard error",
        (
            |config, values| {
                let filter = filled(one(values)?)?;
                tracing_subscriber::EnvFilter::try_new(filter).ok()?;
                config.log = filter.to_owned();
                Some(())
            },
            |config| Shown::Text(config.log.clone()),
        ),
    ),
    key(
        "log_format",
        "FORMAT",
        "text or json",
        "How log lines look: text or json",
        (
            |config, values| {
                config.log_format = match one(values)? {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    _ => return None,
                };
                Some(())
            },
            |config| {
                Shown::Text(
                    match config.log_format {
                        LogFormat::Text => "text",
                        LogFormat::Json => "json",
                    }
                    .to_owned(),
                )
            },
        ),
    ),
    // Last, since what follows a table in a file belongs to it.
    list(key(
        "origin",
        "HOST SETTING=VALUE…",
        "a registry and what is set for it, such as 'registry.lab:5000 alias=lab insecure=true' or \
         'docker.io mirror=mirror.example tag_ttl=5m'; in the file a table [origin.\"HOST\"]",
        "What is set for one registry: alias, mirror, insecure, ca, certificate, certificate_key, credentials, user, \
         password_file, password_variable, rate, tag_ttl, access, verify_ttl, grace",
        (
            |config, values| {
                for value in values {
                    for said in origins::read(value)? {
                        said.apply(config).ok()?;
                    }
                }
                Some(())
            },
            |config| Shown::Table(origins::show(&config.origins)),
        ),
    )),
];

fn one(values: &[String]) -> Option<&str> {
    match values {
        [value] => Some(value.trim()),
        _ => None,
    }
}

fn truth(values: &[String]) -> Option<bool> {
    match one(values)?.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn filled(value: &str) -> Option<&str> {
    let value = value.trim();
    (!value.is_empty()).then_some(value)
}

fn parsed(values: &[String]) -> Option<SocketAddr> {
    one(values)?.parse().ok()
}

fn origin(text: &str) -> Option<String> {
    Some(filled(text)?.parse::<Host>().ok()?.to_string())
}

/// Whether a text has the shape of a multiaddress that nodes can be reached by.
pub(crate) fn is_multiaddr(text: &str) -> bool {
    multiaddr(text).is_some()
}

/// The shape of a multiaddress, so that a slip is reported with all others and not once the node is half up.
fn multiaddr(text: &str) -> Option<String> {
    let text = filled(text)?;
    let mut parts = text.strip_prefix('/')?.split('/');
    let host = (parts.next()?, parts.next()?);
    let reachable = match host.0 {
        "ip4" => host.1.parse::<Ipv4Addr>().is_ok(),
        "ip6" => host.1.parse::<Ipv6Addr>().is_ok(),
        "dns" | "dns4" | "dns6" | "dnsaddr" => !host.1.is_empty() && host.1.len() <= 253,
        _ => false,
    };
    let mut transported = host.0 == "dnsaddr";
    let mut fits = reachable;
    while let Some(protocol) = parts.next() {
        fits &= match protocol {
            "tcp" | "udp" => {
                transported = true;
                parts.next()?.parse::<u16>().is_ok()
            }
            "quic-v1" => true,
            "p2p" => parts.next()?.parse::<NodeId>().is_ok(),
            _ => false,
        };
    }
    (fits && transported).then(|| text.to_owned())
}
