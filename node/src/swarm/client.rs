//! What the rest of the node asks of the swarm.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, FuturesUnordered};
use futures::{Stream, StreamExt as _};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wherry_proto::{
    Answer, Certificate, Digest, NodeId, PreloadRefusal, Preloading, Question, Resolution, TagPage,
    TagRecord, Text, WanWord, WantedImage,
};

use super::actor::Command;
use super::admission::Doorkeeper;
use super::bans::Ban;
use super::bulk::{self, BulkError, Inbound};
use super::exchange::{self, Buffers, Downlink, Exchange, Inflow, Patience};
use super::identity::peer_of;
use super::leading::RESOLVE_TIME;
use super::neighbours::{Entry, LinkClass, Neighbour, Neighbours, Notice};
use super::refusals::Refusal;
use super::shares::Shares;
use super::streams::{OpenError, Protocol};
use super::tls::Tls;
use super::unreached::Unreached;
use super::wants::{Offer, Turn, WANT_TIME, Wants, company_time, offer};

/// How long after its start a node may still not know who of those that it is to join by can be reached; whoever asks
/// the site waits no longer than that. Nodes of a site answer within milliseconds.
pub const SETTLE_TIME: Duration = Duration::from_secs(3);

/// How many providers one search takes from Kademlia.
pub const MAX_PROVIDERS: usize = 20;

/// How long a provider that is not connected may take to be reached and to answer: many records outlive their nodes.
const PROVIDER_TIME: Duration = Duration::from_secs(3);

/// How long it takes until the bulk plane of a peer is tried again that could not be reached.
pub const DIRECT_RETRY: Duration = Duration::from_secs(60);

/// How many peers are remembered for the next run.
pub const MAX_REMEMBERED: usize = 64;

/// How many tags of one repository are known together, here and at the neighbours.
pub const MAX_SITE_TAGS: usize = 10_000;

/// Why there is no exchange with a peer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer is not connected.
    #[error("peer {0} is not connected")]
    NotConnected(NodeId),
    /// Neither the bulk plane nor a stream in its stead can be had.
    #[error("no way to take from peer {node}: direct: {direct}; by stream: {stream}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why not directly.
        direct: String,
        /// Why not by a stream.
        stream: OpenError,
    },
}

/// The handle to a swarm that is running. Clones share it.
#[derive(Clone)]
pub struct Client(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) me: NodeId,
    // None: the node is alone.
    pub(super) door: Option<Door>,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) unreached: Arc<Mutex<Vec<Unreached>>>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) pool: Mutex<HashMap<NodeId, Arc<Lane>>>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) buffers: Buffers,
    pub(super) downlink: Downlink,
    pub(super) near_wants: Wants,
    pub(super) far_wants: Wants,
    pub(super) announce_after: Duration,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) settled: CancellationToken,
    pub(super) settled_by: Instant,
}

pub(super) struct Door {
    pub(super) keeper: Arc<Doorkeeper>,
    pub(super) tls: Tls,
}

/// The exchange with one peer, made by whoever needs it first while the others wait.
#[derive(Default)]
pub(super) struct Lane {
    state: tokio::sync::Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    exchange: Option<Exchange>,
    direct_failed: Option<(Instant, String)>,
}

/// A record of a reference that a neighbour gave, if it is about that and holds.
fn believed(door: &Door, node: NodeId, reference: &str, record: Option<TagRecord>) -> Option<TagRecord> {
    let record = record?;
    let keeper = &door.keeper;
    if record.reference.as_str() != reference {
        tracing::info!(peer = %node, reference, "a tag record about something else is passed over");
        return None;
    }
    if let Err(why) = record.check(&keeper.network, keeper.now(), keeper.min_epoch) {
        tracing::info!(peer = %node, reference, %why, "a tag record is passed over");
        return None;
    }
    Some(record)
}

impl Client {
    /// This node.
    pub fn me(&self) -> NodeId {
        self.0.me
    }

    /// Whether the node belongs to no network and so talks to nobody.
    pub fn is_alone(&self) -> bool {
        self.0.door.is_none()
    }

    /// The members that are connected.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.0.neighbours.all().into_iter().map(|entry| entry.neighbour).collect()
    }

    /// The members of this site that are connected.
    pub fn near(&self) -> Vec<NodeId> {
        self.0.neighbours.near()
    }

    /// Counts up whenever a neighbour of this site comes.
    pub fn meetings(&self) -> u64 {
        self.0.neighbours.meetings()
    }

    /// Whether one of this site has asked this node for an image or a blob in the last seconds.
    pub fn are_neighbours_astir(&self) -> bool {
        self.0.neighbours.are_astir()
    }

    /// How cheaply a member is reached; `None` if it is not connected.
    pub fn class(&self, node: &NodeId) -> Option<LinkClass> {
        self.0.neighbours.get(node).map(|entry| entry.neighbour.class)
    }

    /// From now on, who comes and goes. A slow listener misses the oldest notices.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.0.neighbours.notices()
    }

    /// The neighbours' addresses, to be given to the next run as `remembered`.
    pub fn remember(&self) -> Vec<String> {
        let addresses = |entry: &Entry| {
            let peer = peer_of(&entry.neighbour.node)?;
            let address = entry.host.addresses(&entry.ports).into_iter().next()?;
            Some(address.with_p2p(peer).ok()?.to_string())
        };
        self.0.neighbours.all().iter().filter_map(addresses).take(MAX_REMEMBERED).collect()
    }

    /// Returns once the node has tried every address that it was started with, at the latest [`SETTLE_TIME`] after the
    /// start, and at once if there were none: before that, that no neighbour knows something says little. All
    /// questions to the neighbours wait for it.
    pub async fn settled(&self) {
        tokio::select! {
            // Ready, if it is, without a timer.
            biased;
            () = self.0.settled.cancelled() => {}
            () = self.0.stop.cancelled() => {}
            () = sleep_until(self.0.settled_by) => {}
        }
    }

    /// Who has a blob, or will have it: all neighbours of this site or, if `class` is [`LinkClass::Wan`], all others are asked at
    /// once, and where there are many, together with what else is wanted in the same moment. Offers come as the answers do, one
    /// from each peer, until all have answered or the deadline is over. The deadline counts from when the node is
    /// [settled](Client::settled).
    pub fn want(
        &self,
        digest: Digest,
        class: LinkClass,
        deadline: Duration,
    ) -> impl Stream<Item = Offer> + Send + use<> {
        let client = self.clone();
        let offers = async move {
            client.settled().await;
            let end = Instant::now() + deadline;
            let mut offers = client.wanted(digest, class);
            stream::poll_fn(move |cx| offers.poll_recv(cx)).take_until(sleep_until(end))
        };
        stream::once(offers).flatten()
    }

    /// The same of those whom Kademlia names: a walk through the network, and connections to whoever is not connected yet.
    pub fn want_of_providers(
        &self,
        digest: Digest,
        deadline: Duration,
    ) -> impl Stream<Item = Offer> + Send + use<> {
        let client = self.clone();
        let offers = async move {
            client.settled().await;
            let end = Instant::now() + deadline;
            let nodes = stream::unfold(client.providers(digest).await, |found| async {
                let mut found = found?;
                found.recv().await.map(|node| (node, Some(found)))
            });
            let offer = move |node| {
                let client = client.clone();
                async move {
                    let answer = async {
                        let entry = client.0.neighbours.connected(&node).await?;
                        offer(entry, digest).await
                    };
                    timeout(PROVIDER_TIME, answer).await.ok().flatten()
                }
            };
            let offers = nodes.map(offer).buffer_unordered(MAX_PROVIDERS);
            offers.filter_map(std::future::ready).take_until(sleep_until(end))
        };
        stream::once(offers).flatten()
    }

    /// What these neighbours have to do with a blob, as [`Client::want`] asks it of all; whoever of them is not connected
    /// gives no answer.
    pub fn want_of(
        &self,
        nodes: &BTreeSet<NodeId>,
        digest: Digest,
        deadline: Duration,
    ) -> impl Stream<Item = Offer> + Send + use<> {
        let mut neighbours = self.0.neighbours.all();
        neighbours.retain(|entry| nodes.contains(&entry.neighbour.node));
        let end = Instant::now() + deadline;
        let offers: FuturesUnordered<_> = neighbours.into_iter().map(|entry| offer(entry, digest)).collect();
        offers.filter_map(std::future::ready).take_until(sleep_until(end))
    }

    /// Sees to it that all neighbours of a class are asked about a blob soon.
    fn wanted(&self, digest: Digest, class: LinkClass) -> mpsc::Receiver<Offer> {
        let Inner { near_wants, far_wants, neighbours, tasks, stop, .. } = &*self.0;
        let wants = match class {
            LinkClass::Lan => near_wants,
            LinkClass::Wan => far_wants,
        };
        let (offers, turn) = wants.add(digest);
        let wait = match turn {
            Turn::Others => return offers,
            Turn::Soon => company_time(neighbours.of_class(class).len()),
            Turn::Now => Duration::ZERO,
        };
        let (wants, neighbours, stop) = (wants.clone(), Arc::clone(neighbours), stop.clone());
        tasks.spawn(async move {
            let ask = async {
                if !wait.is_zero() {
                    sleep(wait).await;
                }
                wants.ask(neighbours.of_class(class)).await;
            };
            if stop.run_until_cancelled(ask).await.is_none() {
                wants.give_up();
            }
        });
        offers
    }

    async fn providers(&self, digest: Digest) -> Option<mpsc::Receiver<NodeId>> {
        let (found, nodes) = mpsc::channel(MAX_PROVIDERS);
        self.0.commands.send(Command::Providers { digest, found }).await.ok()?;
        Some(nodes)
    }

    /// What the neighbours of a class know a reference to mean. Each record is about this very reference, was passed on by
    /// a member, and is signed by a member that may resolve, be it connected or not. The deadline counts from when
    /// the node is [settled](Client::settled).
    pub async fn tag(&self, reference: &str, class: LinkClass, deadline: Duration) -> Vec<TagRecord> {
        let (Some(door), Ok(text)) = (&self.0.door, reference.parse()) else { return Vec::new() };
        self.settled().await;
        let end = Instant::now() + deadline;
        let question = Question::Tag(text);
        let entries = self.0.neighbours.of_class(class);
        let mut answers: FuturesUnordered<_> = entries
            .iter()
            .map(|entry| async { (entry.neighbour.node, entry.ask(question.clone()).await) })
            .collect();
        let mut records = Vec::new();
        while let Ok(Some((node, answer))) = timeout_at(end, answers.next()).await {
            let Some(Answer::Tag(record)) = answer else { continue };
            if let Some(record) = believed(door, node, reference, record)
                && !records.contains(&record)
            {
                records.push(record);
            }
        }
        records
    }

    /// What an origin says that a reference means, by way of a neighbour that asks it; see [`Client::tag`]. `None` if
    /// it does not know, or does not answer within [`RESOLVE_TIME`]. Whether the manifest, if it gives that, has the digest is
    /// for the caller to check.
    pub async fn resolve(&self, node: NodeId, reference: &str) -> Option<Resolution> {
        let (door, question) = (self.0.door.as_ref()?, Question::Resolve(reference.parse().ok()?));
        let entry = self.0.neighbours.get(&node)?;
        let answer = timeout(RESOLVE_TIME, entry.ask(question)).await.ok()?;
        let Some(Answer::Resolved(Some(Resolution { record, manifest }))) = answer else { return None };
        Some(Resolution { record: believed(door, node, reference, Some(record))?, manifest })
    }

    /// Tells a neighbour what this node does with the links that lead out of the site, and returns what that one does.
    /// `None` if it does not answer within [`WANT_TIME`], is not connected, or is at another site.
    pub async fn wan(&self, node: NodeId, word: WanWord) -> Option<WanWord> {
        let entry = self.0.neighbours.get(&node)?;
        match timeout(WANT_TIME, entry.ask(Question::Wan(word))).await {
            Ok(Some(Answer::Wan(word))) => word,
            _ => None,
        }
    }

    /// Tells the neighbours of this site what a tag means now; how many there are, and how many of them know it when all have
    /// answered or the time is up. What is on its way then still arrives.
    pub async fn moved(&self, record: &TagRecord, deadline: Duration) -> (usize, usize) {
        let near = self.0.neighbours.of_class(LinkClass::Lan);
        let end = Instant::now() + deadline;
        let mut answers: FuturesUnordered<_> =
            near.iter().map(|entry| entry.ask(Question::Moved(record.clone()))).collect();
        let mut know = 0;
        while let Ok(Some(answer)) = timeout_at(end, answers.next()).await {
            know += usize::from(matches!(answer, Some(Answer::Moved(true))));
        }
        (near.len(), know)
    }

    /// Asks a neighbour to bring an image to itself. `None` if it does not answer within [`WANT_TIME`], or is not connected.
    pub async fn preload(&self, node: NodeId, image: WantedImage) -> Option<Result<(), PreloadRefusal>> {
        let entry = self.0.neighbours.get(&node)?;
        match timeout(WANT_TIME, entry.ask(Question::Preload(image))).await {
            Ok(Some(Answer::Preload(answer))) => Some(answer),
            _ => None,
        }
    }

    /// Whether a neighbour says that it holds a blob.
    pub async fn holds(&self, node: NodeId, digest: Digest) -> bool {
        let Some(entry) = self.0.neighbours.get(&node) else { return false };
        offer(entry, digest).await.is_some_and(|offer| offer.arriving.is_none())
    }

    /// How an image comes that a neighbour was asked to bring; `Some(None)` if it knows of none. `None` if it does not answer
    /// within [`WANT_TIME`], or is not connected.
    pub async fn preloading(&self, node: NodeId, image: WantedImage) -> Option<Option<Preloading>> {
        let entry = self.0.neighbours.get(&node)?;
        match timeout(WANT_TIME, entry.ask(Question::Preloading(image))).await {
            Ok(Some(Answer::Preloading(answer))) => Some(answer),
            _ => None,
        }
    }

    /// The tags of an origin's repository that are `known` and, with them, those that the neighbours of this site know,
    /// at most [`MAX_SITE_TAGS`], of which each neighbour has its share: what has come when all have told theirs or the
    /// deadline is over. That a tag is named is a member's word and no more; [`Client::tag`] tells what it means. The
    /// deadline counts as there. The names are valid for nothing but to be shown or asked for.
    pub async fn tags(
        &self,
        origin: &str,
        repository: &str,
        known: BTreeSet<String>,
        deadline: Duration,
    ) -> BTreeSet<String> {
        let (Ok(origin), Ok(repository)) = (origin.parse(), repository.parse()) else { return known };
        let question = |after| Question::Tags {
            origin: Text::clone(&origin),
            repository: Text::clone(&repository),
            after,
        };
        self.settled().await;
        let end = Instant::now() + deadline;
        let near = self.0.neighbours.of_class(LinkClass::Lan);
        // There are at most MAX_CONNECTIONS neighbours.
        let mut shares = Shares::new(MAX_SITE_TAGS, near.len() as u16, known);
        let first = (0..).zip(near).map(|(number, entry)| self.tag_page(number, entry, question(None)));
        let mut pages: FuturesUnordered<_> = first.collect();
        while let Ok(Some(answered)) = timeout_at(end, pages.next()).await {
            let Some((number, entry, page)) = answered else { continue };
            let of_use = page.names.iter().all(|name| shares.add(number, name));
            if page.more
                && of_use
                && let Some(last) = page.names.last()
            {
                pages.push(self.tag_page(number, entry, question(Some(last.clone()))));
            }
        }
        shares.into_names()
    }

    /// One neighbour's answer, if it is one: names that are in order and behind what was told before, so that
    /// whoever is asked page by page comes to an end.
    async fn tag_page(&self, number: u16, entry: Entry, question: Question) -> Option<(u16, Entry, TagPage)> {
        let Question::Tags { after, .. } = question.clone() else { return None };
        let Answer::Tags(page) = entry.ask(question).await? else { return None };
        let names = after.iter().chain(page.names.iter());
        if !names.is_sorted_by(|before, next| before < next) {
            tracing::info!(
                peer = %entry.neighbour.node,
                "a list of tags is not in order: it is passed over"
            );
            return None;
        }
        Some((number, entry, page))
    }

    /// Tells the network before long that this node holds a blob ([`announce_after`](super::SwarmSettings::announce_after)), and
    /// from then on, or leaves that to others of the site who hold it too ([`ANNOUNCERS`](super::ANNOUNCERS)). Waits only while
    /// very many are told at once.
    pub async fn announce(&self, digest: Digest) {
        let due = std::time::Instant::now() + self.0.announce_after;
        let _ = self.0.commands.send(Command::Announce { digest, due }).await;
    }

    /// Tells it no more; what was told is forgotten within [`RECORD_TIME`](super::RECORD_TIME).
    pub async fn withdraw(&self, digest: Digest) {
        let _ = self.0.commands.send(Command::Withdraw(digest)).await;
    }

    /// The blobs that this node tells the network of, or leaves to others of the site to tell, at most
    /// [`MAX_ANNOUNCED`](super::MAX_ANNOUNCED).
    pub async fn announced(&self) -> Vec<Digest> {
        let (reply, announced) = oneshot::channel();
        let _ = self.0.commands.send(Command::Announced(reply)).await;
        announced.await.unwrap_or_default()
    }

    /// The exchange with a neighbour: the one that is there or a new one, directly or, where that fails, by a
    /// stream over the connection that is there.
    pub async fn exchange(&self, node: NodeId) -> Result<Exchange, ConnectError> {
        let lane = self.lane(node);
        let mut state = lane.state.lock().await;
        if let Some(exchange) = state.exchange.as_ref().filter(|exchange| !exchange.is_closed()) {
            return Ok(exchange.clone());
        }
        let (Some(door), Some(entry)) = (&self.0.door, self.0.neighbours.get(&node)) else {
            return Err(ConnectError::NotConnected(node));
        };
        let exchange = self.connect(door, &entry, &mut state).await?;
        if door.keeper.bans.reason(&node, door.keeper.now()).is_some() {
            exchange.close();
            return Err(ConnectError::NotConnected(node));
        }
        state.exchange = Some(exchange.clone());
        Ok(exchange)
    }

    fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut pool = self.0.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if !pool.contains_key(&node) {
            // Lanes of peers that are gone and that nobody uses make room.
            pool.retain(|node, lane| Arc::strong_count(lane) > 1 || self.0.neighbours.get(node).is_some());
        }
        Arc::clone(pool.entry(node).or_default())
    }

    async fn connect(
        &self,
        door: &Door,
        entry: &Entry,
        state: &mut LaneState,
    ) -> Result<Exchange, ConnectError> {
        let node = entry.neighbour.node;
        let direct = match &state.direct_failed {
            Some((when, why)) if when.elapsed() < DIRECT_RETRY => why.clone(),
            _ => match self.direct(door, entry).await {
                Ok(exchange) => {
                    state.direct_failed = None;
                    return Ok(exchange);
                }
                Err(why) => {
                    tracing::info!(peer = %node, %why, "no direct connection: a stream takes its place");
                    let why = why.to_string();
                    state.direct_failed = Some((Instant::now(), why.clone()));
                    why
                }
            },
        };
        let (reply, opened) = oneshot::channel();
        let _ = self.0.commands.send(Command::Open { node, protocol: Protocol::Exchange, reply }).await;
        match opened.await.unwrap_or(Err(OpenError::NotConnected)) {
            Ok(stream) => Ok(self.start(
                door,
                node,
                entry.certificate.clone(),
                (stream.compat(), false, Inflow::default()),
            )),
            Err(stream) => Err(ConnectError::Unreachable { node, direct, stream }),
        }
    }

    async fn direct(&self, door: &Door, entry: &Entry) -> Result<Exchange, BulkError> {
        if entry.ports.bulk == 0 {
            return Err(BulkError::None);
        }
        let node = entry.neighbour.node;
        let (stream, certificate) =
            bulk::dial(&door.tls, &door.keeper, node, &entry.host, entry.ports.bulk).await?;
        let inflow = stream.get_ref().0.get_ref().inflow().clone();
        Ok(self.start(door, node, certificate, (stream, true, inflow)))
    }

    fn start<S>(
        &self,
        door: &Door,
        node: NodeId,
        certificate: Certificate,
        (stream, direct, inflow): (S, bool, Inflow),
    ) -> Exchange
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let stop = self.0.stop.child_token();
        let shared = (self.0.buffers.clone(), self.0.downlink.clone(), inflow);
        let (exchange, work) =
            exchange::start(stream, node, door.keeper.network, direct, shared, Patience::USUAL, stop);
        let (keeper, watched) = (Arc::clone(&door.keeper), exchange.clone());
        self.0.tasks.spawn(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                () = &mut work => return,
                why = keeper.belongs_no_more(&node, &certificate) => {
                    tracing::info!(peer = %node, %why, "an exchange is ended");
                    watched.close();
                }
            }
            // It tells those who wait for answers.
            work.await;
        });
        exchange
    }

    /// Ends every connection to a node and refuses new ones for [`BAN_TIME`](super::BAN_TIME). Only with proof
    /// that it lied.
    pub async fn ban(&self, node: NodeId, reason: &str) {
        let Some(door) = &self.0.door else { return };
        tracing::warn!(peer = %node, reason, "banned");
        door.keeper.bans.add(node, reason, door.keeper.now());
        self.0.inbound.end(&node);
        let _ = self.0.commands.send(Command::Disconnect(node)).await;
        // Last, since whoever makes a new exchange holds the lane meanwhile; it asks about bans when it has one.
        let lane = self.0.pool.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if let Some(lane) = lane
            && let Some(exchange) = lane.state.lock().await.exchange.take()
        {
            exchange.close();
        }
    }

    /// The nodes that were not admitted lately, or did not admit this one.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.0.door.as_ref().map(|door| door.keeper.refusals.list(door.keeper.now())).unwrap_or_default()
    }

    /// The bootstrap addresses that are not connected.
    pub fn unreached(&self) -> Vec<Unreached> {
        self.0.unreached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes that are banned now.
    pub fn bans(&self) -> Vec<Ban> {
        self.0.door.as_ref().map(|door| door.keeper.bans.list(door.keeper.now())).unwrap_or_default()
    }
}
