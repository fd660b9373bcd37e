//! One typed configuration: embedded defaults, then a file, then `WHERRY_…` variables, then flags.
//!
//! All sources come in as values, so nothing here reads the process environment or the disk. Every bad value is
//! reported, not just the first, each with where it stands, what was found and what is expected. A variable that is no
//! setting may be anybody's: [`unknown_variables`] names it, and nothing fails for it.
//!
//! [`KEYS`] is the one table of keys: from it come the names of variables and flags, the help of `wherry up`, and
//! what `wherry config` prints.

mod key;
mod origins;
mod resolve;
mod source;
#[cfg(test)]
mod tests;
pub mod units;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use wherry_gateway::Host;

use crate::images::push::PushSettings;
use crate::images::{CallerSettings, TagRule};
use crate::limits::LimitSettings;

pub(crate) use key::is_multiaddr;
pub use key::{Flag, KEYS, Key};
pub use origins::{AccessWord, OriginConfig};
pub use resolve::{
    ConfigError, Expected, Loaded, Problem, control_sockets, data_folder, load, unknown_variables,
};
pub use source::{ConfigFile, DEFAULT_FILE, FILE_VARIABLE, MAX_FILE, PREFIX, Source, Sources, Surroundings};

/// Everything that can be set about a node. [`load`] makes one, and [`Config::new`] gives the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The data folder: blobs, index, identity.
    pub data: PathBuf,
    /// Where container runtimes reach the registry API.
    pub gateway: SocketAddr,
    /// Where `/healthz`, `/status` and `/metrics` are served.
    pub status: SocketAddr,
    /// Where other nodes reach this one, over TCP and QUIC.
    pub peers: SocketAddr,
    /// Where other nodes reach the bulk plane, over TCP.
    pub bulk: SocketAddr,
    /// The Unix socket that the command line talks to.
    pub control: PathBuf,
    /// The name of the site that this node belongs to.
    pub site: String,
    /// The origin of requests that name none.
    pub default_origin: String,
    /// Origins, as `host` or `host:port`, that are asked over plain HTTP.
    pub insecure: Vec<String>,
    /// What is set for single origins.
    pub origins: BTreeMap<Host, OriginConfig>,
    /// When origins are asked what tags mean: the first rule that fits counts.
    pub tag_policy: Vec<TagRule>,
    /// Who may change something through the gateway.
    pub push: PushSettings,
    /// Users and tokens of the gateway, and what they may do.
    pub callers: CallerSettings,
    /// The certificate that the gateway shows to its clients, and its key, in PEM; without them it speaks plain HTTP.
    pub gateway_certificate: Option<PathBuf>,
    /// The key of the certificate; in the file of that if it is not set.
    pub gateway_key: Option<PathBuf>,
    /// Whether the gateway may speak plain HTTP to other machines.
    pub gateway_plain: bool,
    /// How many nodes of the site are to have each image that is pushed.
    pub copies: usize,
    /// Files with further certification authorities for origins, in PEM.
    pub ca: Vec<PathBuf>,
    /// Multiaddresses of nodes to begin with.
    pub bootstrap: Vec<String>,
    /// Whether nodes on the local network are found by mDNS.
    pub mdns: bool,
    /// How many bytes of disk the store may take; `None` is as many as there are.
    pub disk_budget: Option<u64>,
    /// What may cross the border of the site, and when.
    pub wan: LimitSettings,
    /// How long the answer of an origin about a tag is used without asking again.
    pub tag_ttl: Duration,
    /// How long connecting to an origin may take.
    pub origin_connect_timeout: Duration,
    /// How long an origin may send nothing before it counts as gone.
    pub origin_stall_timeout: Duration,
    /// Which log lines are written, in the syntax of tracing's `EnvFilter`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The defaults for this data folder.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        let at = |ip, port| SocketAddr::new(IpAddr::V4(ip), port);
        Self {
            gateway: at(Ipv4Addr::LOCALHOST, 5050),
            status: at(Ipv4Addr::LOCALHOST, 5051),
            peers: at(Ipv4Addr::UNSPECIFIED, 4050),
            bulk: at(Ipv4Addr::UNSPECIFIED, 4051),
            control: data.join("control.sock"),
            data,
            site: "default".to_owned(),
            default_origin: "docker.io".to_owned(),
            insecure: Vec::new(),
            origins: BTreeMap::new(),
            tag_policy: Vec::new(),
            push: PushSettings::default(),
            callers: CallerSettings::default(),
            gateway_certificate: None,
            gateway_key: None,
            gateway_plain: false,
            copies: 2,
            ca: Vec::new(),
            bootstrap: Vec::new(),
            mdns: true,
            disk_budget: None,
            wan: LimitSettings::default(),
            tag_ttl: Duration::from_secs(60),
            origin_connect_timeout: Duration::from_secs(10),
            origin_stall_timeout: Duration::from_secs(30),
            log: "warn,wherry=info,libp2p_kad=error".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}
