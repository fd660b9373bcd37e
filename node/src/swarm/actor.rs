//! The event loop: one task owns the libp2p swarm, takes commands, and never waits for anybody.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult};
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, mdns};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wherry_proto::{Digest, Hello, NodeId, Provide, Question};

use super::admission::Doorkeeper;
use super::aiming::Aiming;
use super::announcements::{self, Announcements, Outcome};
use super::ask::{self, Asking, MAX_ASKED, Quiet, REPLY_TIME};
use super::behaviour::{Behaviour, BehaviourEvent, learn};
use super::codec::WireError;
use super::discovery::{Dial, Discovery};
use super::identity::{Host, node_of, peer_of};
use super::neighbours::{Entry, LinkClass, Neighbour, Neighbours};
use super::streams::{OpenError, Protocol};
use super::unreached::{self, Unreached};

/// How many commands may wait for the event loop; then those who give them wait.
pub(super) const MAX_COMMANDS: usize = 256;

/// How many searches for providers may be under way; further ones find nobody.
const MAX_SEARCHES: usize = 64;

/// How often what only time changes is looked after: expired certificates and records.
const UPKEEP_TIME: Duration = Duration::from_secs(60);

/// How long there is at least between two attempts to open a stream for questions.
const LINK_RETRY: Duration = Duration::from_secs(2);

/// How long a neighbour may take to show that it is there when one of several connections to it has ended: whoever was
/// killed says no word on those over QUIC.
const PROBE_TIME: Duration = REPLY_TIME;

/// How many addresses are dialed at a time of whoever is wanted by name, or somebody waits for: more than a node has.
const ALL_AT_ONCE: NonZeroU8 = NonZeroU8::MAX;

/// How many own addresses are told to others.
const MAX_OWN_ADDRESSES: usize = 8;

/// What others in this process ask of the event loop.
pub(super) enum Command {
    /// Open a stream to a neighbour.
    Open { node: NodeId, protocol: Protocol, reply: oneshot::Sender<Result<libp2p::Stream, OpenError>> },
    /// Find who provides a blob, and connect to them.
    Providers { digest: Digest, found: mpsc::Sender<NodeId> },
    /// Announce a blob, from the time when it is due on.
    Announce { digest: Digest, due: Instant },
    /// Tell the network of some blobs now, since nobody else of the site does, and leave others to others for a while.
    Provide { own: Vec<Digest>, left: Vec<(Digest, Outcome)> },
    /// Those who keep the records of these blobs have been told, or not.
    Told(Vec<(Digest, Outcome)>),
    /// Keep that a neighbour holds some blobs.
    Keep(NodeId, Box<Provide>),
    /// Announce a blob no more.
    Withdraw(Digest),
    /// Tell which blobs are announced.
    Announced(oneshot::Sender<Vec<Digest>>),
    /// End all connections to a node.
    Disconnect(NodeId),
}

pub(super) struct Actor {
    pub(super) swarm: libp2p::Swarm<Behaviour>,
    pub(super) doorkeeper: Arc<Doorkeeper>,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) listening: Arc<Mutex<Vec<Multiaddr>>>,
    pub(super) unreached: Arc<Mutex<Vec<Unreached>>>,
    // Whether peers can only be on this machine.
    pub(super) on_loopback: bool,
    pub(super) discovery: Discovery,
    pub(super) announcements: Announcements,
    pub(super) aiming: Aiming,
    // To those who keep the record of a blob.
    pub(super) walk: Option<QueryId>,
    pub(super) searches: HashMap<QueryId, mpsc::Sender<NodeId>>,
    // Those of whose connections one has ended, until they show that they are there.
    pub(super) probes: HashMap<NodeId, CancellationToken>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) to_self: mpsc::WeakSender<Command>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    // Cancelled once it is known who of those that the node started with can be reached.
    pub(super) settled: CancellationToken,
}

impl Actor {
    /// Runs until it is stopped; then every connection is dropped.
    pub(super) async fn run(mut self) {
        let mut upkeep = Instant::now() + UPKEEP_TIME;
        loop {
            let now = Instant::now();
            if now >= upkeep {
                self.upkeep(now);
                upkeep = now + UPKEEP_TIME;
            }
            if !self.settled.is_cancelled() && self.discovery.is_settled(|peer| self.swarm.is_connected(peer))
            {
                self.settled.cancel();
            }
            let wake = self.plans(now).map_or(upkeep, |next| next.min(upkeep));
            tokio::select! {
                () = self.stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                () = sleep_until(wake.into()) => {}
            }
        }
        for entry in self.neighbours.all() {
            self.neighbours.remove(&entry.neighbour.node);
        }
    }

    /// Dials and announces what is due; says when to look again.
    fn plans(&mut self, now: Instant) -> Option<Instant> {
        let lonely = self.neighbours.is_empty();
        let (dials, dial_next) = {
            let swarm = &self.swarm;
            self.discovery.due(now, lonely, |peer| swarm.is_connected(peer))
        };
        for dial in dials {
            self.dial(&dial, now, lonely);
        }
        // Where nobody is connected there is nobody to tell.
        let announce_next = if lonely { None } else { self.announce(now) };
        dial_next.into_iter().chain(announce_next).min()
    }

    fn dial(&mut self, dial: &Dial, now: Instant, lonely: bool) {
        let opts: DialOpts = match (dial.peer, dial.addresses.first()) {
            (Some(peer), _) => DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(dial.addresses.clone())
                .override_dial_concurrency_factor(ALL_AT_ONCE)
                .build(),
            (None, Some(address)) => DialOpts::unknown_peer_id().address(address.clone()).build(),
            (None, None) => return,
        };
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => self.discovery.began(dial, connection),
            Err(error) => {
                tracing::debug!(addresses = ?dial.addresses, %error, "cannot dial");
                // Where another address of the same node is being tried nothing has failed yet.
                if matches!(error, DialError::DialPeerConditionFalse(_)) {
                    return self.discovery.deferred(dial, now);
                }
                // What this node listens on is left out of what is dialed.
                let is_own = matches!(error, DialError::NoAddresses)
                    && dial.addresses.iter().any(|address| self.swarm.listeners().any(|own| own == address));
                let why = (!is_own).then(|| unreached::why(&error));
                let news = self.discovery.refused(dial, why.as_deref(), now, lonely);
                self.say_unreached(news);
            }
        }
    }

    fn upkeep(&mut self, now: Instant) {
        self.swarm.behaviour_mut().kad.store_mut().expire(now);
        self.searches.retain(|_, found| !found.is_closed());
        self.doorkeeper.look_for_twins();
        for entry in self.neighbours.all() {
            let node = entry.neighbour.node;
            if let Err(why) = self.doorkeeper.check(&node, &entry.certificate) {
                tracing::info!(peer = %node, %why, "a neighbour belongs no more");
                self.disconnect(&node);
            }
        }
    }

    fn disconnect(&mut self, node: &NodeId) {
        if let Some(peer) = peer_of(node) {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Open { node, protocol, reply } => match peer_of(&node) {
                Some(peer) if self.swarm.is_connected(&peer) => {
                    self.swarm.behaviour_mut().streams.open(peer, protocol, reply);
                }
                _ => {
                    let _ = reply.send(Err(OpenError::NotConnected));
                }
            },
            Command::Providers { digest, found } => {
                if self.searches.len() < MAX_SEARCHES {
                    let query = self.swarm.behaviour_mut().kad.get_providers(announcements::key(&digest));
                    self.searches.insert(query, found);
                }
            }
            Command::Announce { digest, due } => self.add_announcement(digest, due),
            Command::Provide { own, left } => {
                self.leave_to_others(left, Instant::now());
                self.provide(own, Instant::now());
            }
            Command::Told(told) => self.on_told(told, Instant::now()),
            Command::Keep(provider, provide) => self.keep(&provider, &provide, Instant::now()),
            Command::Withdraw(digest) => self.withdraw(&digest),
            Command::Announced(reply) => {
                let _ = reply.send(self.announcements.all());
            }
            Command::Disconnect(node) => self.disconnect(&node),
        }
    }

    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_mdns(event, now),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.discovery.connected(connection_id, peer_id);
                self.tell_unreached();
                let remote = endpoint.get_remote_address();
                self.on_connected(peer_id, connection_id, remote, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                self.discovery.disconnected(&peer_id, now, self.doorkeeper.now());
                self.tell_unreached();
                if let Some(node) = node_of(&peer_id) {
                    // Most end without a word, be it by a kill or in order: what was missed on the wire says nothing more.
                    let cause = cause.map(|cause| cause.to_string());
                    let cause = cause.as_deref().and_then(|cause| cause.split(": http").next());
                    tracing::debug!(peer = %node, cause, "the last connection to a neighbour has ended");
                    tracing::info!(peer = %node, "neighbour gone");
                    self.neighbours.remove(&node);
                    self.probes.remove(&node);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, .. } => self.probe(&peer_id),
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error, now);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(address = %send_back_addr, %error, "an inbound connection failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening().retain(|known| *known != address);
                self.swarm.remove_external_address(&address);
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, ?reason, "a listener for peers has ended");
                self.listening().retain(|known| !addresses.contains(known));
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener for peers has trouble")
            }
            _ => {}
        }
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Vec<Multiaddr>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_listening(&mut self, address: Multiaddr) {
        let port = address.iter().find_map(|part| match part {
            Part::Tcp(port) => Some((true, port)),
            Part::Udp(port) => Some((false, port)),
            _ => None,
        });
        {
            let mut ports = self.doorkeeper.ports.lock().unwrap_or_else(PoisonError::into_inner);
            match port {
                Some((true, port)) => ports.tcp = port,
                Some((false, port)) => ports.quic = port,
                None => {}
            }
        }
        let known = self.listening().len();
        let loopback = matches!(Host::of(&address), Some(Host::Ip(ip)) if ip.is_loopback());
        if known < MAX_OWN_ADDRESSES && loopback == self.on_loopback {
            // Those who keep records are told the external ones, as is whoever walks to this node.
            self.swarm.add_external_address(address.clone());
        }
        self.listening().push(address);
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, remote: &Multiaddr, anew: bool) {
        let Some((node, hello, host)) =
            node_of(&peer).and_then(|node| Some((node, self.doorkeeper.guest(&node)?, Host::of(remote)?)))
        else {
            // It has gone again, or came over a transport that wherry does not build.
            self.swarm.close_connection(connection);
            return;
        };
        // A ban that came while the hellos were exchanged did not find this connection among those that it ended.
        if let Err(why) = self.doorkeeper.check(&node, &hello.certificate) {
            tracing::info!(peer = %node, %why, "a connection is ended");
            self.swarm.close_connection(connection);
            return;
        }
        learn(&mut self.swarm.behaviour_mut().kad, peer, host.addresses(&hello.ports), anew);
        let neighbour = self.neighbour(node, &hello, &host);
        if self.neighbours.get(&node).is_none() {
            self.new_neighbour(neighbour, &hello, host);
        } else {
            if let Some(probe) = self.probes.remove(&node) {
                // Whoever connects is there.
                probe.cancel();
            }
            // What the doorkeeper knows is the newest.
            self.neighbours.renew(neighbour, &hello, host);
        }
    }

    fn neighbour(&self, node: NodeId, hello: &Hello, host: &Host) -> Neighbour {
        let class = if hello.site == self.doorkeeper.site { LinkClass::Lan } else { LinkClass::Wan };
        Neighbour {
            node,
            site: hello.site.to_string(),
            class,
            address: host.with_port(hello.ports.tcp),
            since: self.doorkeeper.now(),
        }
    }

    fn new_neighbour(&mut self, neighbour: Neighbour, hello: &Hello, host: Host) {
        let node = neighbour.node;
        tracing::info!(
            peer = %node,
            site = neighbour.site,
            address = neighbour.address,
            "new neighbour"
        );
        let (asks, questions) = mpsc::channel(MAX_ASKED);
        let stop = self.stop.child_token();
        let link = link(node, Quiet::of(neighbour.class), self.to_self.clone(), questions);
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            stopped.run_until_cancelled(link).await;
        });
        let (certificate, ports) = (hello.certificate.clone(), hello.ports);
        self.aiming.meet(&node);
        if neighbour.class == LinkClass::Wan && self.neighbours.of_class(LinkClass::Wan).is_empty() {
            self.aiming.meet_many();
            self.announcements.renew(Instant::now());
        }
        self.neighbours.insert(Entry { neighbour, certificate, host, ports, asks, stop });
    }

    /// Ends what is left of connections to a neighbour unless it shows soon that it is there.
    fn probe(&mut self, peer: &PeerId) {
        let Some(node) = node_of(peer) else { return };
        let Some(entry) = self.neighbours.get(&node) else { return };
        let stop = entry.stop.child_token();
        if let Some(before) = self.probes.insert(node, stop.clone()) {
            before.cancel();
        }
        let (asks, commands) = (entry.asks, self.to_self.clone());
        self.tasks.spawn(async move {
            let ping = async {
                loop {
                    let (reply, answered) = oneshot::channel();
                    let asked = asks.send(Asking { question: Question::Ping, reply }).await;
                    // One that was put on the connection that has ended goes unanswered, and says nothing of the others.
                    if asked.is_err() || answered.await.is_ok() {
                        return;
                    }
                }
            };
            if let Some(Err(_)) = stop.run_until_cancelled(timeout(PROBE_TIME, ping)).await
                && let Some(sender) = commands.upgrade()
            {
                tracing::debug!(peer = %node, "one connection has ended, and nothing comes over the others");
                let _ = sender.send(Command::Disconnect(node)).await;
            }
        });
    }

    fn on_dial_failed(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
        now: Instant,
    ) {
        let lonely = self.neighbours.is_empty();
        tracing::debug!(peer = peer.map(tracing::field::display), %error, "cannot connect");
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.discovery.is_own(connection);
        }
        let news = self.discovery.failed(connection, &unreached::why(error), now, lonely);
        self.say_unreached(news);
    }

    fn say_unreached(&self, news: Option<Unreached>) {
        if let Some(Unreached { address, why, .. }) = news {
            tracing::warn!(address, why, "a bootstrap address is not connected, and is tried again");
        }
        self.tell_unreached();
    }

    /// Whoever asks sees from now on which bootstrap addresses are not connected.
    pub(super) fn tell_unreached(&self) {
        let unreached = self.discovery.unreached(|peer| self.swarm.is_connected(peer));
        *self.unreached.lock().unwrap_or_else(PoisonError::into_inner) = unreached;
    }

    fn on_mdns(&mut self, event: mdns::Event, now: Instant) {
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, address) in found {
                    // An address of another kind of node, or one with an Ed25519 key at least.
                    if node_of(&peer).is_some() && peer != *self.swarm.local_peer_id() {
                        self.discovery.found(peer, address, now);
                    }
                }
            }
            mdns::Event::Expired(lost) => {
                for (peer, address) in lost {
                    self.discovery.lost(&peer, &address);
                }
            }
        }
    }

    fn on_kad(&mut self, event: kad::Event, now: Instant) {
        // Records of providers come as questions, many at a time.
        let kad::Event::OutboundQueryProgressed { id, result, stats, step } = event else { return };
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.on_providers(id, &providers);
            }
            QueryResult::GetClosestPeers(found) => self.on_walked(id, found, &stats, now),
            _ => {}
        }
        if step.last {
            self.searches.remove(&id);
        }
    }

    fn on_providers(&mut self, query: QueryId, providers: &HashSet<PeerId>) {
        let Some(found) = self.searches.get(&query).cloned() else { return };
        let me = *self.swarm.local_peer_id();
        for peer in providers.iter().filter(|peer| **peer != me) {
            let Some(node) = node_of(peer) else { continue };
            // While the search goes on, Kademlia knows the addresses that came with the record.
            let condition = PeerCondition::DisconnectedAndNotDialing;
            let dial = DialOpts::peer_id(*peer).condition(condition);
            let _ = self.swarm.dial(dial.override_dial_concurrency_factor(ALL_AT_ONCE).build());
            let _ = found.try_send(node);
        }
    }
}

/// Keeps a stream for questions to a neighbour open, and so the connection alive, until it is stopped.
async fn link(
    node: NodeId,
    quiet: Quiet,
    commands: mpsc::WeakSender<Command>,
    mut questions: mpsc::Receiver<Asking>,
) {
    let mut failures = 0u32;
    loop {
        let began = Instant::now();
        let (reply, opened) = oneshot::channel();
        let Some(sender) = commands.upgrade() else { return };
        if sender.send(Command::Open { node, protocol: Protocol::Ask, reply }).await.is_err() {
            return;
        }
        drop(sender);
        let (why, is_silent) = match opened.await {
            Ok(Ok(stream)) => {
                failures = 0;
                let why = ask::ask(stream, &mut questions, quiet).await;
                (why.to_string(), matches!(why, WireError::Silent(_)))
            }
            Ok(Err(error)) => (error.to_string(), false),
            Err(_) => ("the connection ended".to_owned(), false),
        };
        failures += 1;
        tracing::debug!(peer = %node, why, failures, "no stream for questions");
        if is_silent || failures > 1 {
            // It does not answer, or lets itself not be asked: the connection is of no use, and perhaps dead.
            if let Some(sender) = commands.upgrade() {
                let _ = sender.send(Command::Disconnect(node)).await;
            }
        }
        tokio::time::sleep(LINK_RETRY.saturating_sub(began.elapsed())).await;
    }
}
