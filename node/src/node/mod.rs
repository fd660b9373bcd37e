//! A whole node: the parts wired, started in order and ended in order.

mod backend;
mod blob;
mod bring;
mod care;
mod checking;
mod damage;
mod find;
mod holdings;
mod keep;
mod listing;
mod losses;
mod pins;
mod preload;
mod publish;
mod pulls;
mod pushed;
mod recent;
mod upkeep;
mod why;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use wherry_gateway::origin::{CredentialSources, HostSettings, OriginSettings, Origins, SettingsError};
use wherry_gateway::server::{Answered, Drained, ServerOptions, ServerTls, TlsError, Watcher, serve};
use wherry_gateway::{Aliases, Host, NameError, Names};
use wherry_proto::{Certificate, SecretKey};

use crate::config::Config;
use crate::config::units::show_date;
use crate::control::{self, BindError, Socket};
use crate::identity::{self, IdentityError, Membership};
use crate::images::{AccessRules, ImageError, Images, ImagesParts, TagRules};
use crate::limits::{self, LimitError, LimitParts, Limits, Talk};
use crate::status::{self, Addresses, ErrorKind, Metrics};
use crate::store::{Store, StoreError, StoreSettings};
use crate::swarm::{self, ANNOUNCE_AFTER, Client, Swarm, SwarmError, SwarmSettings};
use crate::transfer::{Signer, Transfers};
pub use bring::MAX_PRELOADS;
use bring::Preloads;
use care::Care;
pub use care::{CHECKED_FOR, CLEARED_FOR, GROUNDLESS_FOR, MAX_SUSPICIONS, READ_AGAIN};
use holdings::Shelf;
use pins::Pins;
pub use preload::{AWAY_TIME, LEAST_ID_END};
pub use pulls::MAX_PULLS;
use pulls::Pulls;
use pushed::Pushed;
use recent::Recent;
use upkeep::Upkeep;

/// Everything that a node starts with.
#[derive(Debug)]
pub struct Setup {
    /// What was configured.
    pub config: Config,
    /// Cancelled when the node is to end.
    pub shutdown: CancellationToken,
}

/// A node that serves.
pub struct Running {
    /// Where, with the ports that it really has.
    pub addresses: Addresses,
    /// Resolves when the node has ended after it was asked to: within 10 s, of which clients that are reading have
    /// the most.
    pub ended: BoxFuture<'static, Result<(), NodeError>>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The files do not say who the node is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The names cannot be read from the index.
    #[error("{0}")]
    Images(Box<ImageError>),
    /// Limits cannot be kept.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// Origins cannot be reached as configured.
    #[error(transparent)]
    Origins(#[from] SettingsError),
    /// What the gateway's clients would be shown is of no use.
    #[error("the gateway's certificate: {0}")]
    Tls(#[from] TlsError),
    /// The swarm cannot be started.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// A configured host is none.
    #[error("'{text}' is not a registry's host: {why}")]
    Host {
        /// What is configured.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for {what}: {source}. Is another node running? Choose another address with {flag}"
    )]
    Listen {
        /// Which service.
        what: &'static str,
        /// The flag that sets the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] BindError),
    /// A thread or task of the start was cut off.
    #[error("the node was stopped while it started")]
    Stopped,
}

/// A node that runs.
pub struct Node {
    store: Store,
    images: Images,
    transfers: Transfers,
    pulls: Arc<Pulls>,
    pins: Pins,
    preloads: Preloads,
    swarm: Client,
    limits: Limits,
    metrics: Metrics,
    key: SecretKey,
    certificate: Certificate,
    data: PathBuf,
    site: String,
    addresses: Addresses,
    listening: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    started: Instant,
    stopping: AtomicBool,
    recent: Recent,
}

/// The time in seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn host(text: &str) -> Result<Host, NodeError> {
    text.parse().map_err(|error: NameError| NodeError::Host { text: text.to_owned(), why: error.to_string() })
}

fn origins(config: &Config) -> Result<Origins, NodeError> {
    let mut settings = OriginSettings::default();
    settings.insecure = config.insecure.iter().map(|text| host(text)).collect::<Result<_, _>>()?;
    settings.ca_files.clone_from(&config.ca);
    settings.credentials = CredentialSources::from_environment(|name| std::env::var_os(name));
    settings.connect_timeout = config.origin_connect_timeout;
    settings.stall_timeout = config.origin_stall_timeout;
    for (host, its) in &config.origins {
        if its.insecure {
            settings.insecure.push(host.clone());
        }
        settings.credentials.logins.extend(its.login().map(|login| (host.clone(), login)));
        let mirrors = its.mirrors.clone();
        let client = its.client_certificate();
        let own = HostSettings { mirrors, ca_files: its.ca.clone(), client, rate: its.rate };
        settings.hosts.push((host.clone(), own));
    }
    Ok(Origins::new(settings)?)
}

/// What names are short for.
fn names(config: &Config) -> Result<Names, NodeError> {
    let mut aliases = Aliases::default();
    for (host, its) in &config.origins {
        for alias in &its.aliases {
            let wrong = |error: NameError| NodeError::Host { text: alias.clone(), why: error.to_string() };
            aliases.add(alias, host.clone()).map_err(wrong)?;
        }
    }
    Ok(Names { default_origin: host(&config.default_origin)?, aliases })
}

fn access_rules(config: &Config) -> AccessRules {
    let of = config.origins.iter().filter_map(|(host, its)| Some((host.clone(), its.access()?)));
    AccessRules { of: of.collect(), callers: config.callers.clone() }
}

fn tag_rules(config: &Config) -> TagRules {
    let ttls = config.origins.iter().filter_map(|(host, its)| Some((host.clone(), its.tag_ttl?)));
    TagRules { rules: config.tag_policy.clone(), ttl: config.tag_ttl, ttl_of: ttls.collect() }
}

/// Starts a node: returns once every service is bound and answers.
pub async fn start(setup: Setup) -> Result<Running, NodeError> {
    let Setup { mut config, shutdown } = setup;
    // First of all: a node that finds its addresses taken leaves nothing behind.
    let listeners = Listeners::bind(&config).await?;
    let membership = join_network(&mut config)?;
    let is_new_network = membership.is_new_network;
    let origins = origins(&config)?;
    if (config.callers.users.is_some() || config.callers.tokens.is_some())
        && config.gateway.ip().to_canonical().is_loopback()
    {
        warn!(
            gateway = %config.gateway,
            "users and tokens do not bind clients on this machine, and no others reach the gateway, but by a proxy here: those \
             count as clients on this machine"
        );
    }
    let names = names(&config)?;
    let aliases = names.aliases.clone();
    let store = open_store(&config).await?;
    let metrics = Metrics::default();
    let limits = open_limits(&config, &membership, &store, &metrics).await?;
    let (care, suspicions) = Care::new();
    let shelf = Arc::new(Shelf {
        store: store.clone(),
        metrics: metrics.clone(),
        transfers: OnceLock::new(),
        images: OnceLock::new(),
        preloads: OnceLock::new(),
        swarm: OnceLock::new(),
        limits: limits.clone(),
        care: care.clone(),
    });
    let (key, certificate) = (membership.key.clone(), membership.certificate.clone());
    let stops = Stops::default();

    let bulk = listeners.bulk.local_addr().map_err(|_| NodeError::Stopped)?;
    let settings = swarm_settings(&config, membership, listeners.bulk, upkeep::remembered(&store)?);
    let swarm = swarm::start(settings, shelf.clone(), stops.talking.clone()).await?;
    let client = swarm.client();
    let _ = shelf.swarm.set(client.clone());
    let upkeep = Upkeep::new(store.clone(), client.clone());
    let talk = Talk::new(limits.clone(), client.clone());
    let peers = Arc::new(client.clone());
    let transfers = Transfers::new(
        store.clone(),
        peers.clone(),
        Arc::new(origins.clone()),
        metrics.clone(),
        limits.clone(),
        Signer { key: key.clone(), certificate: certificate.clone() },
        stops.fetching.clone(),
    );
    let pushed = open_pushed(&store, config.copies).await?;
    let images = Images::new(ImagesParts {
        store: store.clone(),
        transfers: transfers.clone(),
        peers: peers.clone(),
        site: peers,
        origins,
        metrics: metrics.clone(),
        key: key.clone(),
        certificate: certificate.clone(),
        names,
        tags: tag_rules(&config),
        clock: Arc::new(now),
        access: access_rules(&config),
        served: Arc::new(move |blob, client| care.served(blob, client)),
        push: config.push,
        keeper: Arc::new(pushed.clone()),
    })
    .map_err(Box::new)
    .map_err(NodeError::Images)?;
    images.forget_removed().await.map_err(Box::new).map_err(NodeError::Images)?;
    images.tell_store_all().await.map_err(Box::new).map_err(NodeError::Images)?;
    losses::keep_budget(&store, &images).await;
    let gone = store.evicted();
    // From now on peers can have something stored here.
    let _ = shelf.transfers.set(transfers.clone());
    let _ = shelf.images.set(images.clone());
    let pulls = Arc::<Pulls>::default();
    let pins = Pins::new(store.clone(), images.clone());
    pushed.set(&pins);
    let preloads = Preloads::new(pins.clone(), images.clone(), pulls.clone(), limits.clone());
    let _ = shelf.preloads.set(preloads.clone());

    let telling = losses::tell(images.clone(), metrics.clone(), gone);
    let caring = care::run(store.clone(), suspicions, stops.talking.clone());
    let pinning = pins.clone().follow(transfers.clone(), stops.talking.clone());

    let listening = swarm.listening();
    let bootstrap = listening();
    let addresses = Addresses {
        gateway: listeners.gateway.local_addr().map_err(|_| NodeError::Stopped)?,
        status: listeners.status.local_addr().map_err(|_| NodeError::Stopped)?,
        // As it was asked to: 0.0.0.0 is every address of the machine, and no single one of them.
        peers: SocketAddr::new(config.peers.ip(), peer_port(&bootstrap).unwrap_or(config.peers.port())),
        bulk,
        control: listeners.control.path().to_owned(),
        bootstrap,
    };
    let node = Arc::new(Node {
        store: store.clone(),
        images: images.clone(),
        transfers: transfers.clone(),
        pulls,
        pins,
        preloads,
        swarm: client.clone(),
        limits,
        metrics: metrics.clone(),
        key,
        certificate: certificate.clone(),
        data: config.data.clone(),
        site: config.site.clone(),
        addresses: addresses.clone(),
        listening: Box::new(listening),
        started: Instant::now(),
        stopping: AtomicBool::new(false),
        recent: Recent::default(),
    });
    let mut options = ServerOptions::default();
    options.watcher = Some(count_answers(metrics.clone()));
    options.aliases = aliases;
    if let Some(certificate) = &config.gateway_certificate {
        let key = config.gateway_key.as_ref().unwrap_or(certificate);
        options.tls = Some(ServerTls::new(certificate, key)?);
    }
    let serving = Serving {
        gateway: tokio::spawn(serve(listeners.gateway, Arc::new(images), options, stops.serving.clone())),
        control: tokio::spawn(control::serve(listeners.control, node.clone(), stops.serving.clone())),
        pages: tokio::spawn(status::serve(listeners.status, node.clone(), metrics, stops.talking.clone())),
        upkeep: tokio::spawn(upkeep.run(stops.talking.clone())),
        talk: tokio::spawn(talk.run(stops.talking.clone())),
        caring: tokio::spawn(caring),
        pinning: tokio::spawn(pinning),
        copying: tokio::spawn(pushed.copy(node.clone(), stops.talking.clone())),
        telling: AbortOnDropHandle::new(tokio::spawn(telling)),
    };
    let ended = async move {
        shutdown.cancelled().await;
        end(node, serving, transfers, swarm, stops).await
    };
    info!(
        version = env!("CARGO_PKG_VERSION"), network = certificate.network.short(), is_new_network, peer = %client.me(),
        site = config.site, gateway = %addresses.gateway, status = %addresses.status, peers = %addresses.peers,
        bulk = %addresses.bulk, data = %config.data.display(), "the node is ready"
    );
    Ok(Running { addresses, ended: ended.boxed() })
}

/// Who the node is, with the addresses to begin with that came with its certificate.
fn join_network(config: &mut Config) -> Result<Membership, IdentityError> {
    let membership = identity::load_or_create(&config.data, now())?;
    for address in &membership.bootstrap {
        if !config.bootstrap.contains(address) {
            config.bootstrap.push(address.clone());
        }
    }
    let expires = membership.certificate.expires;
    if expires <= now() {
        warn!(
            expired = show_date(expires),
            "this node is no longer admitted to its network and no peer talks to it: have the operator admit it again"
        );
    }
    Ok(membership)
}

fn count_answers(metrics: Metrics) -> Watcher {
    Arc::new(move |answered: Answered| {
        metrics.requests.inc();
        metrics.to_clients.inc_by(answered.bytes);
        if answered.status.is_some_and(|status| status.is_server_error()) {
            metrics.failed(ErrorKind::Client);
        }
    })
}

/// What ends when: clients read from transfers, and transfers take from the swarm.
#[derive(Default)]
struct Stops {
    serving: CancellationToken,
    fetching: CancellationToken,
    talking: CancellationToken,
}

struct Serving {
    gateway: JoinHandle<Drained>,
    control: JoinHandle<()>,
    pages: JoinHandle<()>,
    upkeep: JoinHandle<()>,
    talk: JoinHandle<()>,
    caring: JoinHandle<()>,
    pinning: JoinHandle<()>,
    copying: JoinHandle<()>,
    telling: AbortOnDropHandle<()>,
}

async fn end(
    node: Arc<Node>,
    serving: Serving,
    transfers: Transfers,
    swarm: Swarm,
    stops: Stops,
) -> Result<(), NodeError> {
    node.stopping.store(true, Ordering::Relaxed);
    node.pulls.ending();
    stops.serving.cancel();
    if let Ok(drained) = serving.gateway.await
        && drained.cut > 0
    {
        warn!(connections = drained.cut, "clients were cut off because they did not finish in time");
    }
    let _ = serving.control.await;
    node.pulls.close().await;
    transfers.close().await;
    stops.talking.cancel();
    let _ = serving.pages.await;
    let _ = serving.upkeep.await;
    let _ = serving.talk.await;
    let _ = serving.caring.await;
    let _ = serving.pinning.await;
    let _ = serving.copying.await;
    drop(serving.telling);
    swarm.join().await;
    let (store, limits) = (node.store.clone(), node.limits.clone());
    let close = move || {
        limits.close();
        store.close()
    };
    match tokio::task::spawn_blocking(close).await {
        Ok(closed) => Ok(closed?),
        Err(_) => Err(NodeError::Stopped),
    }
}

/// What a node listens on.
struct Listeners {
    gateway: TcpListener,
    status: TcpListener,
    bulk: std::net::TcpListener,
    control: Socket,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, NodeError> {
        let failed = |what, flag, address| move |source| NodeError::Listen { what, flag, address, source };
        let gateway = TcpListener::bind(config.gateway).await;
        let status = TcpListener::bind(config.status).await;
        let bulk = std::net::TcpListener::bind(config.bulk);
        // The swarm binds it itself, when the data folder is in use already.
        let peers = std::net::TcpListener::bind(config.peers).map(drop);
        let peers = peers.and_then(|()| std::net::UdpSocket::bind(config.peers).map(drop));
        peers.map_err(failed("other nodes", "--peers", config.peers))?;
        Ok(Self {
            gateway: gateway.map_err(failed("the registry API", "--gateway", config.gateway))?,
            status: status.map_err(failed("the status pages", "--status", config.status))?,
            bulk: bulk.map_err(failed("the bulk plane", "--bulk", config.bulk))?,
            control: control::bind(&config.control)?,
        })
    }
}

async fn open_store(config: &Config) -> Result<Store, NodeError> {
    let (dir, settings) = (config.data.clone(), StoreSettings { budget: config.disk_budget });
    let opened = tokio::task::spawn_blocking(move || Store::open(&dir, settings)).await;
    Ok(opened.map_err(|_| NodeError::Stopped)??)
}

/// What was pushed, and whom it is still to be brought to.
async fn open_pushed(store: &Store, copies: usize) -> Result<Pushed, NodeError> {
    let store = store.clone();
    let opened = tokio::task::spawn_blocking(move || Pushed::open(&store, copies)).await;
    Ok(opened.map_err(|_| NodeError::Stopped)??)
}

/// The limits with what the last run left of them.
async fn open_limits(
    config: &Config,
    membership: &Membership,
    store: &Store,
    metrics: &Metrics,
) -> Result<Limits, NodeError> {
    let parts = LimitParts {
        settings: config.wan.clone(),
        key: membership.key.clone(),
        certificate: membership.certificate.clone(),
        site: config.site.clone(),
        store: store.clone(),
        metrics: metrics.clone(),
        clock: Arc::new(limits::moment),
    };
    let opened = tokio::task::spawn_blocking(move || Limits::new(parts)).await;
    Ok(opened.map_err(|_| NodeError::Stopped)??)
}

fn swarm_settings(
    config: &Config,
    membership: Membership,
    bulk: std::net::TcpListener,
    remembered: Vec<String>,
) -> SwarmSettings {
    SwarmSettings {
        key: membership.key,
        membership: Some(membership.certificate),
        min_epoch: 0,
        site: config.site.clone(),
        peers: config.peers,
        bulk,
        bootstrap: config.bootstrap.clone(),
        mdns: config.mdns,
        remembered,
        announce_after: ANNOUNCE_AFTER,
        clock: Arc::new(now),
    }
}

/// The TCP port in the first multiaddress that has one.
fn peer_port(multiaddrs: &[String]) -> Option<u16> {
    multiaddrs.iter().find_map(|text| {
        let mut parts = text.split('/').skip_while(|part| *part != "tcp");
        parts.nth(1)?.parse().ok()
    })
}
