//! Starting a swarm, and its end.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::{Config, SwarmEvent};
use libp2p::{Multiaddr, PeerId};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wherry_proto::NodeId;

use super::actor::{Actor, Command, MAX_COMMANDS};
use super::admission::Doorkeeper;
use super::aiming::Aiming;
use super::announcements::Announcements;
use super::ask::{self, Answerer};
use super::behaviour::Behaviour;
use super::bulk::{self, Inbound};
use super::client::{Client, Door, Inner, SETTLE_TIME};
use super::discovery::Discovery;
use super::exchange::{self, Buffers, Downlink, Uploader};
use super::holdings::Holdings;
use super::identity::{keypair, node_of};
use super::neighbours::Neighbours;
use super::settings::{SwarmError, SwarmSettings};
use super::streams::{Arrived, Protocol};
use super::tls::Tls;
use super::transport;
use super::wants::Wants;

/// How long the listeners may take to come up.
const LISTEN_TIME: Duration = Duration::from_secs(5);

/// How many inbound streams of one protocol a peer may have: a new one may come before the old one is gone.
const MAX_STREAMS_PER_PEER: usize = 3;

/// How long a connection without any stream is kept.
pub(super) const IDLE_CONNECTION_TIME: Duration = Duration::from_secs(30);

/// How many addresses of a node are dialed at a time by walks through the table of nodes, where TCP stands first. Whoever answers
/// there would be shaken hands with over QUIC as well, over a link that may be thin, and an idle connection over QUIC costs more.
const ONE_AFTER_THE_OTHER: NonZeroU8 = NonZeroU8::MIN;

/// A swarm that is running.
pub struct Swarm {
    client: Client,
    peer: PeerId,
    listening: Arc<Mutex<Vec<Multiaddr>>>,
    bulk: Option<SocketAddr>,
}

/// Where a swarm listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Multiaddrs for others to join by, with the peer id at the end.
    pub peers: Vec<String>,
    /// The bulk plane; none if the node is alone.
    pub bulk: Option<SocketAddr>,
}

impl Swarm {
    /// The handle for the rest of the node.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where it listens now.
    pub fn addresses(&self) -> Addresses {
        Addresses { peers: self.listening()(), bulk: self.bulk }
    }

    /// Tells at any time by which multiaddrs others may join, as [`Addresses::peers`] does: interfaces come and go.
    pub fn listening(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let (listening, peer) = (Arc::clone(&self.listening), self.peer);
        move || {
            let listening = listening.lock().unwrap_or_else(PoisonError::into_inner);
            listening.iter().map(|address| format!("{address}/p2p/{peer}")).collect()
        }
    }

    /// Returns when the swarm has been told to end.
    pub async fn closed(&self) {
        self.client.0.stop.cancelled().await;
    }

    /// Returns when every task of the swarm has ended, after the shutdown token was cancelled.
    pub async fn join(self) {
        self.client.0.stop.cancelled().await;
        self.client.0.tasks.close();
        self.client.0.tasks.wait().await;
    }
}

/// Starts a swarm; it runs until `shutdown` is cancelled. When this returns, all listeners are bound.
pub async fn start(
    settings: SwarmSettings,
    holdings: Arc<dyn Holdings>,
    shutdown: CancellationToken,
) -> Result<Swarm, SwarmError> {
    start_settling_by(settings, holdings, shutdown, tokio::time::Instant::now() + SETTLE_TIME).await
}

/// The same; questions wait no longer than until then for the first neighbours.
async fn start_settling_by(
    settings: SwarmSettings,
    holdings: Arc<dyn Holdings>,
    shutdown: CancellationToken,
    settled_by: tokio::time::Instant,
) -> Result<Swarm, SwarmError> {
    let keypair = keypair(&settings.key);
    let (commands, orders) = mpsc::channel(MAX_COMMANDS);
    let mut inner = Inner {
        me: settings.key.node(),
        door: None,
        neighbours: Arc::new(Neighbours::new()),
        unreached: Arc::default(),
        commands,
        pool: Mutex::default(),
        inbound: Arc::default(),
        buffers: Buffers::default(),
        downlink: Downlink::default(),
        near_wants: Wants::default(),
        far_wants: Wants::default(),
        announce_after: settings.announce_after,
        tasks: TaskTracker::new(),
        stop: shutdown.child_token(),
        settled: CancellationToken::new(),
        settled_by,
    };
    let peer = keypair.public().to_peer_id();
    let listening = Arc::<Mutex<Vec<Multiaddr>>>::default();
    // Whatever fails below, nothing that was begun goes on.
    let on_failure = inner.stop.clone().drop_guard();
    let Some(certificate) = settings.membership.clone() else {
        tracing::info!("no certificate of a network: this node is alone and talks to nobody");
        inner.tasks.spawn(alone(orders, inner.stop.clone()));
        inner.settled.cancel();
        on_failure.disarm();
        return Ok(Swarm { client: Client(Arc::new(inner)), peer, listening, bulk: None });
    };
    let site = settings.site.parse()?;
    let clock = Arc::clone(&settings.clock);
    let keeper = Arc::new(Doorkeeper::new(certificate, site, settings.min_epoch, clock));
    keeper.certificate.check(&keeper.network, &inner.me, keeper.now(), settings.min_epoch)?;
    let tls = Tls::new(&keypair).map_err(SwarmError::Tls)?;
    let uploader =
        Uploader::new(Arc::clone(&holdings), settings.key.clone(), keeper.network, inner.buffers.clone());

    let listener = bulk_listener(settings.bulk)?;
    let bulk = listener.local_addr().ok();
    keeper.ports.lock().unwrap_or_else(PoisonError::into_inner).bulk = bulk.map_or(0, |bulk| bulk.port());

    let transport = transport::build(&keypair, &keeper)?;
    let (behaviour, arrivals) = Behaviour::new(peer, &keeper.network, settings.mdns)?;
    let config = Config::with_executor(executor(&inner))
        .with_idle_connection_timeout(IDLE_CONNECTION_TIME)
        .with_dial_concurrency_factor(ONE_AFTER_THE_OTHER);
    let mut actor = Actor {
        swarm: libp2p::Swarm::new(transport, behaviour, peer, config),
        doorkeeper: Arc::clone(&keeper),
        neighbours: Arc::clone(&inner.neighbours),
        listening: Arc::clone(&listening),
        on_loopback: settings.peers.ip().is_loopback(),
        unreached: Arc::clone(&inner.unreached),
        discovery: Discovery::new(&settings.bootstrap, &settings.remembered, Instant::now(), keeper.now())?,
        announcements: Announcements::default(),
        aiming: Aiming::default(),
        walk: None,
        searches: HashMap::new(),
        probes: HashMap::new(),
        commands: orders,
        to_self: inner.commands.downgrade(),
        tasks: inner.tasks.clone(),
        stop: inner.stop.clone(),
        settled: inner.settled.clone(),
    };
    actor.tell_unreached();
    if actor.discovery.is_settled(|_| false) {
        actor.settled.cancel();
    }
    listen(&mut actor, settings.peers).await?;

    let server = bulk::Server {
        doorkeeper: Arc::clone(&keeper),
        tls: tls.server().into(),
        proofs: tls.proofs().clone(),
        uploader: Arc::clone(&uploader),
        inbound: Arc::clone(&inner.inbound),
        stop: inner.stop.clone(),
        tasks: inner.tasks.clone(),
    };
    let takers = Takers {
        keeper: Arc::clone(&keeper),
        asks: Arc::default(),
        exchanges: Arc::clone(&inner.inbound),
        answerer: Answerer {
            holdings,
            errands: Arc::default(),
            neighbours: Arc::clone(&inner.neighbours),
            commands: inner.commands.downgrade(),
        },
        uploader,
        stop: inner.stop.clone(),
        tasks: inner.tasks.clone(),
    };
    inner.tasks.spawn(bulk::listen(server, listener));
    inner.tasks.spawn(takers.run(arrivals));
    inner.tasks.spawn(actor.run());
    inner.door = Some(Door { keeper, tls });
    on_failure.disarm();
    Ok(Swarm { client: Client(Arc::new(inner)), peer, listening, bulk })
}

/// Takes the orders of a node that is alone: there is nobody to carry them out on.
async fn alone(mut orders: mpsc::Receiver<Command>, stop: CancellationToken) {
    stop.run_until_cancelled(async { while orders.recv().await.is_some() {} }).await;
}

/// Runs libp2p's tasks so that they end with the swarm and can be waited for.
fn executor(inner: &Inner) -> impl Fn(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) + Send + 'static {
    let (tasks, stop) = (inner.tasks.clone(), inner.stop.clone());
    move |task| {
        let stop = stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

fn bulk_listener(listener: std::net::TcpListener) -> Result<TcpListener, SwarmError> {
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let failed = |error: std::io::Error| SwarmError::Listen {
        what: "the bulk plane",
        address: address.clone(),
        reason: error.to_string(),
    };
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

/// Listens with TCP and QUIC, and returns once both are bound.
async fn listen(actor: &mut Actor, at: SocketAddr) -> Result<(), SwarmError> {
    let host = match at.ip() {
        IpAddr::V4(ip) => Multiaddr::from(ip),
        IpAddr::V6(ip) => Multiaddr::from(ip),
    };
    let failed = |reason: String| SwarmError::Listen { what: "peers", address: at.to_string(), reason };
    let tcp = host.clone().with(Part::Tcp(at.port()));
    let quic = host.with(Part::Udp(at.port())).with(Part::QuicV1);
    for address in [tcp, quic] {
        actor.swarm.listen_on(address).map_err(|error| failed(error.to_string()))?;
    }
    let both = async {
        loop {
            let event = actor.swarm.select_next_some().await;
            if let SwarmEvent::ListenerClosed { reason: Err(error), .. } = &event {
                return Err(failed(error.to_string()));
            }
            actor.on_event(event);
            let ports = *actor.doorkeeper.ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.tcp != 0 && ports.quic != 0 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(LISTEN_TIME, both)
        .await
        .map_err(|_| failed("the listeners did not come up".into()))?
}

/// Takes up the streams that peers open.
struct Takers {
    keeper: Arc<Doorkeeper>,
    asks: Arc<Inbound>,
    exchanges: Arc<Inbound>,
    answerer: Answerer,
    uploader: Arc<Uploader>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Takers {
    async fn run(self, mut arrivals: mpsc::Receiver<Arrived>) {
        while let Some(Some(arrived)) = self.stop.run_until_cancelled(arrivals.recv()).await {
            self.take(arrived);
        }
    }

    fn take(&self, Arrived { peer, protocol, stream }: Arrived) {
        let Some(node) = node_of(&peer) else { return };
        let inbound = match protocol {
            Protocol::Ask => &self.asks,
            Protocol::Exchange => &self.exchanges,
        };
        let Some(entered) = inbound.enter(node, MAX_STREAMS_PER_PEER, &self.stop) else {
            tracing::info!(peer = %node, ?protocol, "too many streams of one peer: one is refused");
            return;
        };
        // The connection was admitted; its peer may have been banned or have expired since. Asked after entering,
        // so that a ban either is seen here or ends the stream.
        let belongs = self.keeper.guest(&node).map(|hello| self.keeper.check(&node, &hello.certificate));
        match belongs {
            Some(Ok(())) => {}
            Some(Err(why)) => return tracing::info!(peer = %node, %why, "a stream is refused"),
            None => return,
        }
        let (answerer, uploader) = (self.answerer.clone(), Arc::clone(&self.uploader));
        self.tasks.spawn(async move {
            let serve = async {
                match protocol {
                    Protocol::Ask => ask::answer(stream, node, answerer).await.to_string(),
                    Protocol::Exchange => exchange::serve(uploader, node, stream.compat(), None).await,
                }
            };
            if let Some(why) = entered.token.run_until_cancelled(serve).await {
                log_end(node, protocol, &why);
            }
        });
    }
}

fn log_end(node: NodeId, protocol: Protocol, why: &str) {
    tracing::debug!(peer = %node, ?protocol, why, "a stream ended");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;
    use std::net::TcpListener as StdListener;

    use futures::FutureExt as _;
    use tokio::time::Instant as Time;
    use wherry_proto::{Certificate, Digest, Roles, SecretKey, StateChain, TagRecord};

    use super::super::holdings::ReadAt;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Nothing;

    impl Holdings for Nothing {
        fn held(&self, _: &Digest) -> Option<u64> {
            None
        }

        fn chain(&self, _: &Digest) -> Option<StateChain> {
            None
        }

        fn open(&self, _: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
            Ok(None)
        }

        fn tag(&self, _: &str) -> Option<TagRecord> {
            None
        }
    }

    /// A member that knows of one other, which is at this port of this machine.
    async fn start_with(port: u16, settled_by: Time) -> Swarm {
        let key = SecretKey::from_seed([2; 32]);
        let membership =
            Certificate::sign(&SecretKey::from_seed([1; 32]), key.node(), Roles::MEMBER, 1, 1000);
        let settings = SwarmSettings {
            key,
            membership: Some(membership),
            min_epoch: 0,
            site: "here".to_owned(),
            peers: "127.0.0.1:0".parse().unwrap(),
            bulk: StdListener::bind("127.0.0.1:0").unwrap(),
            bootstrap: vec![format!("/ip4/127.0.0.1/tcp/{port}")],
            mdns: false,
            remembered: vec![],
            announce_after: Duration::ZERO,
            clock: Arc::new(|| 0),
        };
        start_settling_by(settings, Arc::new(Nothing), CancellationToken::new(), settled_by).await.unwrap()
    }

    #[tokio::test]
    async fn a_node_whose_every_dial_is_refused_is_settled_by_that_and_not_by_time() {
        let refusing = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let node = start_with(refusing, Time::now() + Duration::from_secs(3600)).await;
        tokio::time::timeout(PATIENCE, node.client().settled()).await.expect("it waits for its time");
    }

    #[tokio::test]
    async fn a_node_that_dials_who_never_says_a_word_is_settled_once_its_time_has_come() {
        let mute = StdListener::bind("127.0.0.1:0").unwrap();
        let port = mute.local_addr().unwrap().port();
        let late = start_with(port, Time::now() + Duration::from_secs(3600)).await;
        let node = start_with(port, Time::now()).await;
        tokio::time::timeout(PATIENCE, node.client().settled()).await.expect("it waits for the silent one");
        assert!(!node.client.0.settled.is_cancelled(), "it waited for its dial to fail");
        // What waits until a node is settled goes on then.
        let client = node.client();
        let tags = client.tags("r.example", "a", BTreeSet::new(), PATIENCE);
        assert!(tokio::time::timeout(PATIENCE, tags).await.unwrap().is_empty());
        // And not before.
        let client = late.client();
        assert!(client.tags("r.example", "a", BTreeSet::new(), PATIENCE).now_or_never().is_none());
    }
}
