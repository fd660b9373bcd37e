//! A whole node: the parts wired, started in order and ended in order.

mod backend;
mod holdings;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_gateway::Host;
use wherry_gateway::origin::{CredentialSources, OriginSettings, Origins, SettingsError};
use wherry_gateway::server::{ServerOptions, serve};
use wherry_proto::{Certificate, NetworkId, SecretKey};

use crate::config::Config;
use crate::control::{self, Socket};
use crate::images::{ImageError, Images, ImagesParts};
use crate::status::{self, Addresses, Metrics};
use crate::store::{Store, StoreError, StoreSettings};
use crate::swarm::{self, Client, Notice, SwarmError, SwarmSettings};
use crate::transfer::Transfers;
use holdings::Shelf;

/// Under which key of the index the addresses of other nodes are remembered.
const REMEMBERED: &[u8] = b"neighbours";

/// Who a node is, and where it belongs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its own key.
    pub key: SecretKey,
    /// Its network.
    pub network: NetworkId,
    /// That it belongs there; without it the node talks to nobody.
    pub certificate: Option<Certificate>,
}

/// What a node listens on, bound before it starts, so that whoever starts it knows every port.
pub struct Listeners {
    /// The registry API.
    pub gateway: TcpListener,
    /// The status pages.
    pub status: TcpListener,
    /// The bulk plane.
    pub bulk: std::net::TcpListener,
    /// The control socket.
    pub control: Socket,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The names cannot be read from the index.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// Origins cannot be reached as configured.
    #[error(transparent)]
    Origins(#[from] SettingsError),
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
    /// A listener's address cannot be told.
    #[error("a listener of the node is not usable: {0}")]
    Listener(#[from] std::io::Error),
}

/// A node that runs.
pub struct Node {
    store: Store,
    images: Images,
    transfers: Transfers,
    swarm: Client,
    metrics: Metrics,
    identity: Identity,
    site: String,
    addresses: Addresses,
    started: Instant,
    stopping: AtomicBool,
}

/// The time in seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn host(text: &str) -> Result<Host, NodeError> {
    text.parse().map_err(|error: wherry_gateway::NameError| NodeError::Host {
        text: text.to_owned(),
        why: error.to_string(),
    })
}

fn origins(config: &Config) -> Result<Origins, NodeError> {
    let mut settings = OriginSettings::default();
    settings.insecure = config.insecure.iter().map(|text| host(text)).collect::<Result<_, _>>()?;
    settings.ca_files.clone_from(&config.ca);
    settings.credentials = CredentialSources::from_environment(|name| std::env::var_os(name));
    settings.connect_timeout = config.origin_connect_timeout;
    settings.stall_timeout = config.origin_stall_timeout;
    Ok(Origins::new(settings)?)
}

/// Runs a node until `shutdown` is cancelled and everything has ended: within 10 s, of which clients that are
/// reading have the most. `ready` is told the addresses as soon as all of them answer.
pub async fn run(
    config: &Config,
    identity: Identity,
    listeners: Listeners,
    shutdown: CancellationToken,
    ready: impl FnOnce(&Addresses),
) -> Result<(), NodeError> {
    let origins = origins(config)?;
    let default_origin = host(&config.default_origin)?;
    let store = open_store(config).await?;
    let metrics = Metrics::default();
    let shelf = Arc::new(Shelf { store: store.clone(), metrics: metrics.clone(), images: OnceLock::new() });

    // What clients read from outlives the servers, and the swarm outlives the transfers that use it.
    let (serving, fetching, talking) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let bulk_address = listeners.bulk.local_addr()?;
    let remembered = remembered(&store)?;
    let settings = swarm_settings(config, &identity, listeners.bulk, remembered);
    let swarm = swarm::start(settings, shelf.clone(), talking.clone()).await?;
    let client = swarm.client();

    let peers = Arc::new(client.clone());
    let transfers = Transfers::new(
        store.clone(),
        peers.clone(),
        Arc::new(origins.clone()),
        metrics.clone(),
        fetching.clone(),
    );
    let images = Images::new(ImagesParts {
        store: store.clone(),
        transfers: transfers.clone(),
        peers: peers.clone(),
        site: peers,
        origins,
        metrics: metrics.clone(),
        key: identity.key.clone(),
        network: identity.network,
        default_origin,
        tag_ttl: config.tag_ttl,
        clock: now,
    })?;
    let _ = shelf.images.set(images.clone());

    let addresses = Addresses {
        gateway: listeners.gateway.local_addr()?,
        status: listeners.status.local_addr()?,
        peers: peer_address(&swarm.addresses().peers).unwrap_or(config.peers),
        bulk: bulk_address,
        control: listeners.control.path().to_owned(),
        bootstrap: swarm.addresses().peers,
    };
    let node = Arc::new(Node {
        store: store.clone(),
        images: images.clone(),
        transfers: transfers.clone(),
        swarm: client.clone(),
        metrics: metrics.clone(),
        identity,
        site: config.site.clone(),
        addresses: addresses.clone(),
        started: Instant::now(),
        stopping: AtomicBool::new(false),
    });

    let gateway =
        tokio::spawn(serve(listeners.gateway, Arc::new(images), ServerOptions::default(), serving.clone()));
    let status_pages =
        tokio::spawn(status::serve(listeners.status, node.clone(), metrics.clone(), talking.clone()));
    let control = tokio::spawn(control::serve(listeners.control, node.clone(), serving.clone()));
    let upkeep = tokio::spawn(upkeep(store.clone(), client, talking.clone()));
    ready(&addresses);

    shutdown.cancelled().await;
    info!("ending: clients that are reading may finish");
    node.stopping.store(true, Ordering::Relaxed);
    serving.cancel();
    if let Ok(drained) = gateway.await
        && drained.cut > 0
    {
        warn!(connections = drained.cut, "connections of clients were cut because they did not end in time");
    }
    let _ = control.await;
    transfers.close().await;
    talking.cancel();
    let _ = status_pages.await;
    let _ = upkeep.await;
    swarm.join().await;
    drop((node, transfers, shelf));
    match tokio::task::spawn_blocking(move || store.close()).await {
        Ok(closed) => Ok(closed?),
        Err(_) => Ok(()),
    }
}

async fn open_store(config: &Config) -> Result<Store, NodeError> {
    let (dir, settings) = (config.data.clone(), StoreSettings { budget: config.disk_budget });
    let opened = tokio::task::spawn_blocking(move || Store::open(&dir, settings)).await;
    Ok(opened.map_err(std::io::Error::other)??)
}

fn swarm_settings(
    config: &Config,
    identity: &Identity,
    bulk: std::net::TcpListener,
    remembered: Vec<String>,
) -> SwarmSettings {
    SwarmSettings {
        key: identity.key.clone(),
        membership: identity.certificate.clone(),
        min_epoch: 0,
        site: config.site.clone(),
        peers: config.peers,
        bulk,
        bootstrap: config.bootstrap.clone(),
        mdns: config.mdns,
        remembered,
        clock: Arc::new(now),
    }
}

/// Keeps what the network is told, and what is remembered of it, in step with what is so.
async fn upkeep(store: Store, swarm: Client, stop: CancellationToken) {
    let (mut gone, mut notices) = (store.evicted(), swarm.notices());
    let announce = async {
        for (digest, _) in store.blobs() {
            swarm.announce(digest).await;
        }
        std::future::pending::<()>().await;
    };
    let withdraw = async {
        loop {
            match gone.recv().await {
                Ok(digest) => swarm.withdraw(digest).await,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    let remember = async {
        loop {
            match notices.recv().await {
                Ok(Notice::Connected(_)) => {
                    let kept =
                        store.table("peers").and_then(|table| table.put(REMEMBERED, &swarm.remember()));
                    if let Err(error) = kept {
                        warn!(%error, "the addresses of neighbours are not remembered");
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = announce => {}
        () = withdraw => {}
        () = remember => {}
    }
}

fn remembered(store: &Store) -> Result<Vec<String>, StoreError> {
    Ok(store.table::<Vec<String>>("peers")?.get(REMEMBERED)?.unwrap_or_default())
}

/// The TCP address in the first multiaddress that has one.
fn peer_address(multiaddrs: &[String]) -> Option<SocketAddr> {
    multiaddrs.iter().find_map(|text| {
        let mut parts = text.split('/').skip(1);
        match (parts.next()?, parts.next()?, parts.next()?, parts.next()?) {
            ("ip4" | "ip6", host, "tcp", port) => {
                Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
            }
            _ => None,
        }
    })
}
