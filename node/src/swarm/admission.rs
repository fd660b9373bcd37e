//! Who is let in: on every connection, before anything else, both sides show their certificates.
//!
//! The transport has proved by then which key the peer owns; the hello proves that the key belongs. The dialer
//! speaks first, so that a stranger who connects here learns nothing at all.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, StreamMuxerExt as _};
use libp2p::core::{ConnectedPoint, Endpoint};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use wherry_proto::{
    Certificate, CertificateError, FrameError, Hello, NetworkId, NodeId, Ports, SiteName, Version,
};

use super::bans::Bans;
use super::codec::{WireError, read_payload, write_within};
use super::identity::{Host, node_of};
use super::refusals::{Refusal, Refusals};
use super::settings::Clock;
use super::twins::{self, Lives};

/// How long the exchange of hellos may take in all.
pub const ADMISSION_TIME: Duration = Duration::from_secs(5);

/// How long a connection that is about to end waits until its peer has read why.
const PARTING_TIME: Duration = Duration::from_secs(1);

/// How many streams are kept that a peer which was dialed opens while its hello is still on the way: over QUIC they
/// may come first.
const MAX_EARLY: usize = 4;

/// After what time it is looked again whether a connected peer still belongs: clocks are set, and peers are banned.
const RECHECK_TIME: Duration = Duration::from_secs(60);

/// Why a connection is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The peer's key is not of the kind that nodes have.
    #[error("its key is not an Ed25519 key")]
    Key,
    /// The peer's certificate does not admit it.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The peer is banned.
    #[error("it is banned: {0}")]
    Banned(String),
    /// What the peer said is no hello.
    #[error(transparent)]
    Hello(#[from] FrameError),
    /// The connection failed before the peer had said hello: it may have refused this node.
    #[error("it ended the connection before it said hello")]
    Ended,
    /// The peer wanted more than the one stream for the hellos before it was let in.
    #[error("it opened further streams before it was admitted")]
    Forward,
    /// It has the key of this node, and is another process.
    #[error("another machine has the identity of this one")]
    Twin,
    /// The peer did not say hello in time.
    #[error("it did not say hello within {ADMISSION_TIME:?}")]
    Silent,
}

impl From<WireError> for AdmissionError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Frame(error) => Self::Hello(error),
            WireError::Silent(_) => Self::Silent,
            WireError::Io(_) => Self::Ended,
        }
    }
}

/// Decides who is let in, for the libp2p transports and the bulk plane alike.
pub(super) struct Doorkeeper {
    pub(super) network: NetworkId,
    pub(super) certificate: Certificate,
    pub(super) site: SiteName,
    pub(super) min_epoch: u32,
    pub(super) clock: Clock,
    life: u64,
    pub(super) bans: Bans,
    pub(super) ports: Mutex<Ports>,
    pub(super) refusals: Refusals,
    guests: Mutex<HashMap<NodeId, Guest>>,
}

/// What an admitted peer said, and over how many libp2p connections it is there. Its certificate has been checked.
struct Guest {
    hello: Hello,
    connections: usize,
    lives: Lives,
}

impl Doorkeeper {
    pub(super) fn new(certificate: Certificate, site: SiteName, min_epoch: u32, clock: Clock) -> Self {
        Self {
            network: certificate.network,
            certificate,
            site,
            min_epoch,
            clock,
            life: rand::random(),
            bans: Bans::default(),
            ports: Mutex::default(),
            refusals: Refusals::default(),
            guests: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        (self.clock)()
    }

    fn hello(&self) -> Hello {
        Hello {
            version: Version::OURS,
            certificate: self.certificate.clone(),
            site: self.site.clone(),
            ports: *self.ports.lock().unwrap_or_else(PoisonError::into_inner),
            life: self.life,
        }
    }

    /// Whether a node with this certificate belongs, now.
    pub(super) fn check(&self, node: &NodeId, certificate: &Certificate) -> Result<(), AdmissionError> {
        if let Some(reason) = self.bans.reason(node, self.now()) {
            return Err(AdmissionError::Banned(reason));
        }
        // One that is connected has shown it before.
        let is_known = self.guests().get(node).is_some_and(|guest| guest.hello.certificate == *certificate);
        let (network, now) = (&self.network, self.now());
        Ok(match is_known {
            true => certificate.check_again(network, node, now, self.min_epoch),
            false => certificate.check(network, node, now, self.min_epoch),
        }?)
    }

    /// What can be done about a node that is of another network than it should be.
    fn advice(&self, node: &NodeId, why: &AdmissionError) -> Option<String> {
        match why {
            AdmissionError::Certificate(CertificateError::OtherNetwork { .. }) => Some(format!(
                "if it is to belong to this network: 'wherry network admit {node}' on the operator's machine, then \
                 'wherry network join LINE' on that node"
            )),
            AdmissionError::Twin => Some(twins::advice(node)),
            // A node tells strangers nothing, not even why it refuses them.
            AdmissionError::Ended => {
                let me = self.certificate.node;
                Some(format!(
                    "it may be of another network than this node, which is of {}, or run another version of wherry. If \
                     this node is to belong to its network: 'wherry network admit {me}' on that network's operator's machine, then 'wherry network \
                     join LINE' here; its own log says why it refuses",
                    self.network
                ))
            }
            _ => None,
        }
    }

    /// Takes note that a connection was not admitted, by this node or by its peer.
    pub(super) fn turned_away(&self, node: &NodeId, address: String, dialer: bool, why: &AdmissionError) {
        // Of two connections at once one ends unused, and whoever comes may leave again: neither refuses anybody.
        let left = match why {
            AdmissionError::Ended => !dialer || self.guest(node).is_some(),
            AdmissionError::Silent => !dialer,
            _ => false,
        };
        let advice = self.advice(node, why);
        let refusal = Refusal { node: *node, address, why: why.to_string(), advice, at: self.now() };
        if left {
            tracing::debug!(peer = %node, address = refusal.address, %why, "a connection ended before its peer was admitted");
        } else if matches!(why, AdmissionError::Twin) {
            self.note_twins(refusal);
        } else {
            self.refusals.note(refusal);
        }
    }

    fn note_twins(&self, refusal: Refusal) {
        if self.refusals.is_news(&refusal) {
            let Refusal { node, address, why, advice, .. } = refusal;
            tracing::warn!(peer = %node, address, why, advice, "two machines have one identity");
        }
    }

    /// Whether a peer has this node's key and is another process. An address of its own leads a node to itself, and that
    /// does no harm.
    fn is_twin(&self, peer: &NodeId, hello: &Hello) -> bool {
        *peer == self.certificate.node && hello.life != self.life
    }

    /// Says which connected nodes are two machines each.
    pub(super) fn look_for_twins(&self) {
        for (node, guest) in self.guests().iter_mut() {
            if let Some((address, other)) = guest.lives.news(Instant::now()) {
                let advice = twins::advice(node);
                tracing::warn!(peer = %node, address, other, advice, "two machines have one identity");
            }
        }
    }

    /// What an admitted peer said, while it is connected.
    pub(super) fn guest(&self, node: &NodeId) -> Option<Hello> {
        self.guests().get(node).map(|guest| guest.hello.clone())
    }

    /// Returns when a peer that showed this certificate belongs no more, and says why. A newer certificate that it has
    /// shown on another connection counts.
    pub(super) async fn belongs_no_more(&self, node: &NodeId, shown: &Certificate) -> AdmissionError {
        loop {
            let newest = self.guest(node).map(|hello| hello.certificate);
            let newest = newest.as_ref().filter(|newest| is_newer(newest, shown)).unwrap_or(shown);
            if let Err(why) = self.check(node, newest) {
                return why;
            }
            let left = Duration::from_secs(newest.expires.saturating_sub(self.now()));
            tokio::time::sleep(left.clamp(Duration::from_secs(1), RECHECK_TIME)).await;
        }
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_hello(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        peer: &NodeId,
    ) -> Result<Hello, AdmissionError> {
        let hello = Hello::read(&read_payload::<Hello>(stream).await?)?;
        self.check(peer, &hello.certificate)?;
        Ok(hello)
    }

    /// Says hello to `peer`, which the transport has authenticated, and hears its hello.
    pub(super) async fn greet(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        peer: &NodeId,
        dialer: bool,
    ) -> Result<Hello, AdmissionError> {
        self.greet_telling(stream, peer, dialer, &AtomicBool::new(false)).await
    }

    /// The same; `heard` is set as soon as the peer's hello has shown that it belongs.
    async fn greet_telling(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        peer: &NodeId,
        dialer: bool,
        heard: &AtomicBool,
    ) -> Result<Hello, AdmissionError> {
        let greet = async {
            if dialer {
                // Nothing is shown to a banned peer either.
                if let Some(reason) = self.bans.reason(peer, self.now()) {
                    return Err(AdmissionError::Banned(reason));
                }
                write_within(stream, &self.hello(), ADMISSION_TIME).await?;
                let hello = self.read_hello(stream, peer).await?;
                heard.store(true, Ordering::Relaxed);
                Ok(hello)
            } else {
                let hello = self.read_hello(stream, peer).await?;
                heard.store(true, Ordering::Relaxed);
                write_within(stream, &self.hello(), ADMISSION_TIME).await?;
                if self.is_twin(peer, &hello) {
                    // Were the connection ended now, QUIC would take the hello with it.
                    let _ = timeout(PARTING_TIME, stream.read(&mut [0])).await;
                }
                Ok(hello)
            }
        };
        let hello = timeout(ADMISSION_TIME, greet).await.map_err(|_| AdmissionError::Silent)??;
        // Both know then.
        if self.is_twin(peer, &hello) { Err(AdmissionError::Twin) } else { Ok(hello) }
    }
}

/// Admits a libp2p connection of any kind: hands it on once the hellos are exchanged on its first substream.
pub(super) async fn admit<M>(
    doorkeeper: Arc<Doorkeeper>,
    peer: PeerId,
    mut muxer: M,
    point: ConnectedPoint,
) -> Result<(PeerId, StreamMuxerBox), AdmissionError>
where
    M: StreamMuxer + Send + Unpin + 'static,
    M::Substream: Send + Unpin + 'static,
    M::Error: Send + Sync + 'static,
{
    let result = match node_of(&peer) {
        Some(node) => hellos(&doorkeeper, &mut muxer, &node, &point).await.map(|hello| (node, hello)),
        None => Err(AdmissionError::Key),
    };
    match result {
        Ok((node, (hello, early))) => {
            let stay = Stay::begin(doorkeeper, node, hello, &point);
            Ok((peer, StreamMuxerBox::new(Admitted { muxer, early, _stay: stay })))
        }
        Err(why) => {
            let address = point.get_remote_address().to_string();
            // The peer is named anyway.
            let address = address.split("/p2p/").next().unwrap_or_default().to_owned();
            match node_of(&peer) {
                Some(node) => doorkeeper.turned_away(&node, address, point.is_dialer(), &why),
                None => tracing::debug!(%peer, address, %why, "not admitted"),
            }
            // Whoever waits for an answer shall see at once that there is none.
            let _ = timeout(PARTING_TIME, muxer.close()).await;
            Err(why)
        }
    }
}

/// The peer's hello, and the streams that it has opened already.
async fn hellos<M>(
    doorkeeper: &Doorkeeper,
    muxer: &mut M,
    node: &NodeId,
    point: &ConnectedPoint,
) -> Result<(Hello, VecDeque<M::Substream>), AdmissionError>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    let dialer = point.to_endpoint() == Endpoint::Dialer;
    let ended = |_: M::Error| AdmissionError::Ended;
    let open = std::future::poll_fn(|cx| {
        let open = if dialer { muxer.poll_outbound_unpin(cx) } else { muxer.poll_inbound_unpin(cx) };
        if open.is_pending()
            && let Poll::Ready(Err(error)) = muxer.poll_unpin(cx)
        {
            return Poll::Ready(Err(error));
        }
        open
    });
    let stream = timeout(ADMISSION_TIME, open).await.map_err(|_| AdmissionError::Silent)?.map_err(ended)?;
    let mut stream = stream.compat();
    let heard = AtomicBool::new(false);
    let mut early = VecDeque::new();
    let mut greet = std::pin::pin!(async {
        let hello = doorkeeper.greet_telling(&mut stream, node, dialer, &heard).await?;
        // A failure to say goodbye concerns this one substream, which is done.
        let _ = timeout(ADMISSION_TIME, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
        Ok(hello)
    });
    // A substream gets on only while its connection is polled.
    let hello = std::future::poll_fn(|cx| {
        let error = 'ended: {
            loop {
                if let Poll::Ready(result) = greet.poll_unpin(cx) {
                    return Poll::Ready(result);
                }
                if heard.load(Ordering::Relaxed) {
                    break;
                }
                // Whoever has not shown that it belongs has no use for a second stream, and each may hold memory.
                match muxer.poll_inbound_unpin(cx) {
                    // The hello of a node that was dialed may have come together with it.
                    Poll::Ready(Ok(stream)) if dialer && early.len() < MAX_EARLY => early.push_back(stream),
                    Poll::Ready(Ok(_)) => return Poll::Ready(Err(AdmissionError::Forward)),
                    Poll::Ready(Err(error)) => break 'ended error,
                    Poll::Pending => break,
                }
            }
            loop {
                match muxer.poll_unpin(cx) {
                    Poll::Ready(Ok(StreamMuxerEvent::AddressChange(_))) => {}
                    Poll::Ready(Err(error)) => break 'ended error,
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        // What came before the end still counts.
        match greet.poll_unpin(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Ready(Err(ended(error))),
        }
    })
    .await?;
    Ok((hello, early))
}

/// Which of two certificates of a node counts.
pub(super) fn is_newer(one: &Certificate, other: &Certificate) -> bool {
    (one.epoch, one.expires) > (other.epoch, other.expires)
}

/// That a peer is connected: what it said is known for as long as one of these lives.
struct Stay {
    doorkeeper: Arc<Doorkeeper>,
    node: NodeId,
    life: u64,
}

impl Stay {
    fn begin(doorkeeper: Arc<Doorkeeper>, node: NodeId, mut hello: Hello, point: &ConnectedPoint) -> Self {
        let mut guests = doorkeeper.guests();
        let (mut connections, mut lives, life) = (1, Lives::default(), hello.life);
        if let Some(known) = guests.remove(&node) {
            connections += known.connections;
            lives = known.lives;
            if is_newer(&known.hello.certificate, &hello.certificate) {
                hello.certificate = known.hello.certificate;
            }
        }
        let host = Host::of(point.get_remote_address());
        let address = host.map_or_else(String::new, |host| host.with_port(hello.ports.tcp));
        lives.begin(life, address, Instant::now());
        guests.insert(node, Guest { hello, connections, lives });
        drop(guests);
        // What is known of a twin does not end because this node has met itself.
        if node != doorkeeper.certificate.node {
            doorkeeper.refusals.forget(&node);
        }
        Self { doorkeeper, node, life }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut guests = self.doorkeeper.guests();
        if let Some(guest) = guests.get_mut(&self.node) {
            guest.connections -= 1;
            guest.lives.end(self.life);
            if guest.connections == 0 {
                guests.remove(&self.node);
            }
        }
    }
}

/// A connection whose peer has been admitted.
struct Admitted<M: StreamMuxer> {
    muxer: M,
    // Streams that came with the hello.
    early: VecDeque<M::Substream>,
    _stay: Stay,
}

impl<M: StreamMuxer<Substream: Unpin> + Unpin> StreamMuxer for Admitted<M> {
    type Substream = M::Substream;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        if let Some(stream) = self.early.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        self.muxer.poll_inbound_unpin(cx)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        self.muxer.poll_outbound_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.muxer.poll_close_unpin(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        self.muxer.poll_unpin(cx)
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::transport::PortUse;
    use wherry_proto::{Roles, SecretKey};

    use super::*;

    const NOW: u64 = 1_000;

    #[test]
    fn a_connected_node_is_admitted_by_its_certificate_and_by_no_other_until_it_expires() {
        let [operator, me, guest] = [1, 2, 3].map(|seed| SecretKey::from_seed([seed; 32]));
        let admit = |key: &SecretKey| Certificate::sign(&operator, key.node(), Roles::MEMBER, 1, NOW + 9);
        let now = Arc::new(std::sync::atomic::AtomicU64::new(NOW));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || now.load(Ordering::Relaxed))
        };
        let site: SiteName = "site".parse().unwrap();
        let doorkeeper = Arc::new(Doorkeeper::new(admit(&me), site.clone(), 0, clock));
        let (node, certificate) = (guest.node(), admit(&guest));
        let ports = Ports { tcp: 1, quic: 1, bulk: 1 };
        let hello = Hello { version: Version::OURS, certificate: certificate.clone(), site, ports, life: 1 };
        let point = ConnectedPoint::Dialer {
            address: "/ip4/127.0.0.1/tcp/1".parse().unwrap(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let _stay = Stay::begin(Arc::clone(&doorkeeper), node, hello, &point);
        doorkeeper.check(&node, &certificate).unwrap();
        let changes: [fn(&mut Certificate); 2] =
            [|c| c.expires += 1, |c| c.roles = c.roles | Roles::RESOLVER];
        for change in changes {
            let mut forged = certificate.clone();
            change(&mut forged);
            doorkeeper.check(&node, &forged).unwrap_err();
        }
        now.store(NOW + 9, Ordering::Relaxed);
        doorkeeper.check(&node, &certificate).unwrap_err();
    }
}
