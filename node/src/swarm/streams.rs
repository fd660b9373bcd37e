//! Streams of wherry's own protocols over libp2p connections: opened on demand, handed over when they come in.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandlerEvent, DialUpgradeError, FullyNegotiatedInbound,
    FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream,
    StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{mpsc, oneshot};

/// How many streams may wait on one connection to be opened.
const MAX_OPENING: usize = 16;

/// How many inbound streams may wait to be taken up, over all connections.
pub(super) const MAX_ARRIVED: usize = 256;

/// The two protocols that run on streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// Small questions.
    Ask,
    /// Chains and chunks, where the bulk plane does not reach.
    Exchange,
}

impl Protocol {
    const ALL: [Self; 2] = [Self::Ask, Self::Exchange];

    const fn name(self) -> StreamProtocol {
        match self {
            Self::Ask => StreamProtocol::new("/wherry/ask/1"),
            Self::Exchange => StreamProtocol::new("/wherry/exchange/1"),
        }
    }
}

/// A stream that a peer opened.
pub(super) struct Arrived {
    pub(super) peer: PeerId,
    pub(super) protocol: Protocol,
    pub(super) stream: Stream,
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer.
    #[error("it is not connected")]
    NotConnected,
    /// Too many streams are being opened on the connection.
    #[error("too many streams are being opened to it")]
    Crowded,
    /// The peer does not speak the protocol.
    #[error("it does not speak the protocol")]
    Unsupported,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Failed(std::io::Error),
}

/// A stream that is to be opened.
#[derive(Debug)]
pub(super) struct Open {
    protocol: Protocol,
    reply: oneshot::Sender<Result<Stream, OpenError>>,
}

pub(super) struct Behaviour {
    arrived: mpsc::Sender<Arrived>,
    opening: VecDeque<(PeerId, Open)>,
}

impl Behaviour {
    /// Inbound streams go to the receiver; those that it does not take up in time are refused.
    pub(super) fn new() -> (Self, mpsc::Receiver<Arrived>) {
        let (arrived, arrivals) = mpsc::channel(MAX_ARRIVED);
        (Self { arrived, opening: VecDeque::new() }, arrivals)
    }

    /// Opens a stream to a peer that is connected. The caller must see that it is.
    pub(super) fn open(
        &mut self,
        peer: PeerId,
        protocol: Protocol,
        reply: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        self.opening.push_back((peer, Open { protocol, reply }));
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(peer, self.arrived.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(peer, self.arrived.clone()))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // `open` is called by the task that polls, right before it polls again: no waker is needed.
        match self.opening.pop_front() {
            Some((peer_id, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event })
            }
            None => Poll::Pending,
        }
    }
}

/// Opens and takes streams on one connection.
pub(super) struct Handler {
    peer: PeerId,
    arrived: mpsc::Sender<Arrived>,
    opening: VecDeque<Open>,
    under_way: usize,
}

impl Handler {
    fn new(peer: PeerId, arrived: mpsc::Sender<Arrived>) -> Self {
        Self { peer, arrived, opening: VecDeque::new(), under_way: 0 }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade(Protocol::ALL.to_vec()), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Upgrade, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        match self.opening.pop_front() {
            Some(open) => {
                self.under_way += 1;
                let protocol = SubstreamProtocol::new(Upgrade(vec![open.protocol]), open);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, open: Open) {
        if self.opening.len() + self.under_way >= MAX_OPENING {
            let _ = open.reply.send(Err(OpenError::Crowded));
        } else {
            self.opening.push_back(open);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Upgrade, Upgrade, (), Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                let arrived = Arrived { peer: self.peer, protocol, stream };
                if self.arrived.try_send(arrived).is_err() {
                    tracing::debug!(peer = %self.peer, ?protocol, "too many streams wait: one is refused");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info,
            }) => {
                self.under_way -= 1;
                let _ = info.reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.under_way -= 1;
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Failed(std::io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Io(error) => OpenError::Failed(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.reply.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Agrees on one of these protocols and hands over the stream.
pub(super) struct Upgrade(Vec<Protocol>);

/// A protocol by its name, for negotiation.
#[derive(Clone)]
pub(super) struct Named(Protocol, StreamProtocol);

impl AsRef<str> for Named {
    fn as_ref(&self) -> &str {
        self.1.as_ref()
    }
}

impl UpgradeInfo for Upgrade {
    type Info = Named;
    type InfoIter = std::vec::IntoIter<Named>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().map(|protocol| Named(*protocol, protocol.name())).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, Named(protocol, _): Named) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, Named(protocol, _): Named) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
