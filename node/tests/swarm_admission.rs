//! Nobody gets an answer from any protocol without a certificate of the network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod swarm_support;

use std::num::NonZeroU8;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, StreamExt as _};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _};
use libp2p::core::transport::{Boxed, DialOpts, PortUse};
use libp2p::core::upgrade::Version as Negotiation;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::identity::Keypair;
use libp2p::swarm::{Config, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, identify, kad, quic, tcp, tls, yamux};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use swarm_support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use wherry_node::swarm::{
    self, ADMISSION_TIME, BULK_HANDSHAKE_TIME, Client, LinkClass, MAX_BULK_HANDSHAKES, MAX_HANDSHAKES,
    SwarmError,
};
use wherry_proto::{
    Ask, Certificate, Digest, Hello, NodeId, Ports, Question, Roles, SecretKey, Version, encode_frame,
};

/// What a stranger is to hear.
const NOTHING: [u8; 0] = [];

fn keypair(key: &SecretKey) -> Keypair {
    Keypair::ed25519_from_bytes(key.seed()).unwrap()
}

fn hello(certificate: Certificate) -> Vec<u8> {
    let ports = Ports { tcp: 1, quic: 2, bulk: 3 };
    encode_frame(&Hello {
        version: Version::OURS,
        certificate,
        site: "here".parse().unwrap(),
        ports,
        life: 1,
    })
    .unwrap()
}

/// Certificates that must not admit the node of this key, and what each is.
fn bad_certificates(bearer: &SecretKey) -> Vec<(&'static str, Certificate)> {
    let node = bearer.node();
    let mut forged = certificate(&key(99), node);
    forged.network = operator().network();
    vec![
        ("of another network", certificate(&key(99), node)),
        ("forged", forged),
        ("of another node", certificate(&operator(), key(11).node())),
        ("expired", Certificate::sign(&operator(), node, Roles::MEMBER, 1, NOW)),
        ("of an epoch that is over", Certificate::sign(&operator(), node, Roles::MEMBER, 0, NOW + 1000)),
        ("without the role", Certificate::sign(&operator(), node, Roles::RESOLVER, 1, NOW + 1000)),
    ]
}

/// A libp2p transport like the node's own, without admission.
fn transport(key: &SecretKey) -> Boxed<(PeerId, StreamMuxerBox)> {
    let keypair = keypair(key);
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Negotiation::V1Lazy)
        .authenticate(tls::Config::new(&keypair).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let quic = quic::tokio::Transport::new(quic::Config::new(&keypair))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    tcp.or_transport(quic).map(|output, _| output.into_inner()).boxed()
}

/// A member that looks at epochs from 1 on.
async fn target() -> Node {
    let mut settings = settings(&key(11), &[]);
    settings.min_epoch = 1;
    start(settings).await
}

/// Dials a node without libp2p's swarm, says something on the first stream, and tells what came back on it.
async fn first_words(key: &SecretKey, address: &str, words: Option<Vec<u8>>) -> Vec<u8> {
    let mut address: Multiaddr = address.parse().unwrap();
    address.pop();
    let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let (_, mut muxer) = within(transport(key).dial(address, opts).unwrap()).await.unwrap();
    let mut stream = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
    let drive = async move {
        loop {
            if std::future::poll_fn(|cx| muxer.poll_unpin(cx)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let talk = async move {
        if let Some(words) = words {
            let _ = stream.write_all(&words).await;
            let _ = stream.flush().await;
        }
        let mut answer = Vec::new();
        let mut byte = [0; 1];
        while let Ok(1) = stream.read(&mut byte).await {
            answer.push(byte[0]);
        }
        answer
    };
    tokio::select! {
        () = drive => unreachable!(),
        answer = tokio::time::timeout(2 * ADMISSION_TIME, talk) => answer.expect("the connection was left open"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_answered_and_nobody_else_over_tcp_and_quic() {
    let node = target().await;
    let stranger = key(50);
    for quic in [false, true] {
        let address = node.address(quic);
        let member = hello(certificate(&operator(), stranger.node()));
        let answer = first_words(&stranger, &address, Some(member)).await;
        let hello_back = Hello::read(&answer[4..]).unwrap();
        assert_eq!(hello_back.certificate.node, node.id());
        for (what, certificate) in bad_certificates(&stranger) {
            let answer = first_words(&stranger, &address, Some(hello(certificate))).await;
            assert_eq!(answer, NOTHING, "a certificate {what} was answered (quic: {quic})");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_not_answered_and_the_node_goes_on() {
    let node = target().await;
    let stranger = key(50);
    let mut other_version = hello(certificate(&operator(), stranger.node()));
    other_version[5] += 1;
    let garbage = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        0u32.to_be_bytes().to_vec(),
        [&100u32.to_be_bytes()[..], &[0xff; 100]].concat(),
        other_version,
    ];
    for quic in [false, true] {
        for words in &garbage {
            assert_eq!(first_words(&stranger, &node.address(quic), Some(words.clone())).await, NOTHING);
        }
    }
    // Whoever says nothing at all is not waited for.
    assert_eq!(first_words(&stranger, &node.address(false), None).await, NOTHING);
    let member = member(12, &[node.address(false)]).await;
    meet(&member.client(), node.id()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_opens_a_second_stream_before_it_is_admitted_is_sent_away_at_once() {
    let node = target().await;
    let stranger = key(50);
    let greeting = hello(certificate(&operator(), stranger.node()));
    for quic in [false, true] {
        let mut address: Multiaddr = node.address(quic).parse().unwrap();
        address.pop();
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, mut muxer) = within(transport(&stranger).dial(address, opts).unwrap()).await.unwrap();
        let mut first = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
        let mut second = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
        let drive = async move {
            while std::future::poll_fn(|cx| muxer.poll_unpin(cx)).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let talk = async {
            // A hello that is never finished would be waited for, were it not for the other stream.
            let _ = first.write_all(&greeting[..9]).await;
            let _ = first.flush().await;
            let _ = second.write_all(b"x").await;
            let _ = second.flush().await;
            matches!(first.read(&mut [0; 1]).await, Ok(0) | Err(_))
        };
        tokio::select! {
            () = drive => unreachable!(),
            ended = tokio::time::timeout(ADMISSION_TIME / 2, talk) => {
                assert!(ended.expect("the connection was left open"), "it was answered (quic: {quic})");
            }
        }
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Curious {
    identify: identify::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_from_identify_or_kademlia() {
    let node = target().await;
    for quic in [false, true] {
        let key = key(51);
        let peer = keypair(&key).public().to_peer_id();
        let name = format!("/wherry/{}/kad/1", operator().network());
        let name = StreamProtocol::try_from_owned(name).unwrap();
        let behaviour = Curious {
            identify: identify::Behaviour::new(identify::Config::new("/x/1".into(), keypair(&key).public())),
            kad: kad::Behaviour::with_config(
                peer,
                kad::store::MemoryStore::new(peer),
                kad::Config::new(name),
            ),
        };
        let config = Config::with_tokio_executor().with_dial_concurrency_factor(NonZeroU8::MIN);
        let mut stranger = libp2p::Swarm::new(transport(&key), behaviour, peer, config);
        let address: Multiaddr = node.address(quic).parse().unwrap();
        let target = node.id().to_string().parse().unwrap();
        stranger.behaviour_mut().kad.add_address(&target, address.clone());
        stranger.dial(address).unwrap();
        let query = stranger.behaviour_mut().kad.get_closest_peers(target);
        let mut closed = false;
        let watch = async {
            loop {
                match stranger.select_next_some().await {
                    SwarmEvent::ConnectionClosed { .. } => closed = true,
                    SwarmEvent::Behaviour(CuriousEvent::Identify(identify::Event::Received { .. })) => {
                        panic!("identify answered a stranger")
                    }
                    SwarmEvent::Behaviour(CuriousEvent::Kad(kad::Event::OutboundQueryProgressed {
                        id,
                        stats,
                        step,
                        ..
                    })) if id == query => {
                        assert_eq!(stats.num_successes(), 0, "Kademlia answered a stranger");
                        if step.last && closed {
                            return;
                        }
                    }
                    _ if closed => return,
                    _ => {}
                }
            }
        };
        within(watch).await;
        assert!(node.client().neighbours().is_empty());
    }
}

/// A bulk connection like the node's own, with any key, certificate, and protocol name.
async fn bulk(
    key: &SecretKey,
    node: &Node,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let socket = tokio::net::TcpStream::connect(node.swarm.addresses().bulk.unwrap()).await?;
    bulk_over(key, socket, alpn).await
}

async fn bulk_over(
    key: &SecretKey,
    socket: tokio::net::TcpStream,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let (certificate, private) = libp2p_tls::certificate::generate(&keypair(key)).unwrap();
    let private = rustls::crypto::ring::sign::any_supported_type(&private).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
            vec![certificate],
            private,
        ))));
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = "node.invalid".try_into().unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("only TLS 1.3 is offered")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What comes back on a bulk connection until it is closed.
async fn bulk_words(key: &SecretKey, node: &Node, alpn: &[u8], words: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let talk = async {
        let Ok(mut stream) = bulk(key, node, alpn).await else { return };
        let _ = stream.write_all(words).await;
        let _ = stream.flush().await;
        // The end may come with or without a goodbye.
        let _ = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(2 * ADMISSION_TIME, talk).await.expect("the connection was left open");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_certificate_is_answered_on_the_bulk_plane() {
    let node = target().await;
    let stranger = key(50);
    for (what, certificate) in bad_certificates(&stranger) {
        let words = bulk_words(&stranger, &node, b"wherry-bulk/1", &hello(certificate)).await;
        assert_eq!(words, NOTHING, "a certificate {what} was answered");
    }
    let good = hello(certificate(&operator(), stranger.node()));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &u32::MAX.to_be_bytes(), &good[..10]] {
        assert_eq!(bulk_words(&stranger, &node, b"wherry-bulk/1", garbage).await, NOTHING);
    }
    assert_eq!(
        bulk_words(&stranger, &node, b"http/1.1", &good).await,
        NOTHING,
        "another protocol was answered"
    );

    let mut stream = bulk(&stranger, &node, b"wherry-bulk/1").await.unwrap();
    stream.write_all(&good).await.unwrap();
    let mut prefix = [0; 4];
    within(stream.read_exact(&mut prefix)).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes(prefix) as usize];
    within(stream.read_exact(&mut payload)).await.unwrap();
    assert_eq!(Hello::read(&payload).unwrap().certificate.node, node.id());
    // An admitted peer that then sends nonsense loses this one connection.
    stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_strangers_on_the_bulk_plane_make_way_for_whoever_comes() {
    let node = target().await;
    let bulk = node.swarm.addresses().bulk.unwrap();
    let connect = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        socket.connect(bulk).await.unwrap()
    };
    let mut held = Vec::new();
    for number in 0..MAX_BULK_HANDSHAKES {
        held.push(connect(&format!("127.0.0.{}:0", 2 + number % 4)).await);
    }
    let socket = connect("127.0.0.9:0").await;
    // The oldest goes at once, and only that one.
    let mut ended = async |number: usize| {
        let read = tokio::time::timeout(BULK_HANDSHAKE_TIME / 3, held[number].read(&mut [0; 1])).await;
        read.is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
    };
    assert!(ended(0).await && !ended(1).await);
    let member = key(50);
    let mut stream = within(bulk_over(&member, socket, b"wherry-bulk/1")).await.unwrap();
    stream.write_all(&hello(certificate(&operator(), member.node()))).await.unwrap();
    within(stream.read_exact(&mut [0; 4])).await.unwrap();
}

/// Connects from an address again and again without ever saying a word, and tells each time that this was ended.
async fn mute_stranger(from: String, to: std::net::SocketAddr, ended: tokio::sync::mpsc::Sender<()>) {
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        let _ = ended.try_send(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_strangers_at_several_addresses_keep_no_member_out() {
    const STRANGERS: usize = 3 * MAX_HANDSHAKES;
    let node = target().await;
    let port = node.address(false).split('/').nth(4).unwrap().parse::<u16>().unwrap();
    let (ended, mut ends) = tokio::sync::mpsc::channel(STRANGERS);
    let mut strangers = tokio::task::JoinSet::new();
    for number in 0..STRANGERS {
        let from = format!("127.0.0.{}:0", 2 + number % 8);
        strangers.spawn(mute_stranger(from, ([127, 0, 0, 1], port).into(), ended.clone()));
    }
    // They have taken all places once some had to make way.
    for _ in MAX_HANDSHAKES..STRANGERS {
        within(ends.recv()).await.unwrap();
    }
    let member = member(12, &[node.address(false)]).await;
    meet(&member.client(), node.id()).await;
    meet(&node.client(), member.id()).await;
    assert!(within(member.client().exchange(node.id())).await.unwrap().is_direct());
    strangers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_node_loses_its_connections_and_gets_no_new_ones() {
    let (a, b) = pair().await;
    let (a_id, b_id) = (a.id(), b.id());
    let digest = a.shelf.add(&noise(1000, 1));
    let exchange = within(b.client().exchange(a_id)).await.unwrap();
    within(exchange.held(digest, 1000, None)).await.unwrap();
    a.client().ban(b_id, "it lied").await;
    part(&a.client(), b_id).await;
    part(&b.client(), a_id).await;
    within(exchange.closed()).await;
    assert_eq!(a.client().bans()[0].reason, "it lied");
    let refused = hello(certificate(&operator(), b_id));
    for quic in [false, true] {
        assert_eq!(first_words(&key(12), &a.address(quic), Some(refused.clone())).await, NOTHING);
    }
    assert_eq!(bulk_words(&key(12), &a, b"wherry-bulk/1", &refused).await, NOTHING);
    // Another member is none the worse for it.
    let c = member(13, &[a.address(false)]).await;
    meet(&c.client(), a_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_listens_to_nobody_and_asks_nobody() {
    let member = target().await;
    let mut settings = settings(&key(60), &[member.address(false)]);
    settings.membership = None;
    let bulk = settings.bulk.local_addr().unwrap();
    let alone = start(settings).await;
    assert!(alone.client().is_alone());
    assert_eq!(alone.swarm.addresses(), swarm::Addresses::default());
    assert!(tokio::net::TcpStream::connect(bulk).await.is_err(), "its bulk listener is open");
    let digest = Digest::sha256(b"");
    let mut want = std::pin::pin!(alone.client().want_of_providers(digest, PATIENCE));
    assert_eq!(within(want.next()).await, None);
    assert_eq!(within(alone.client().tag("a:1", LinkClass::Lan, PATIENCE)).await, []);
    within(alone.client().announce(digest)).await;
    assert!(within(alone.client().exchange(member.id())).await.is_err());
    tokio::time::timeout(SILENCE, meet(&member.client(), alone.id())).await.unwrap_err();
    alone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_start_with_a_certificate_that_does_not_admit_it() {
    for (what, membership) in bad_certificates(&key(61)) {
        let mut settings = settings(&key(61), &[]);
        (settings.membership, settings.min_epoch) = (Some(membership), 1);
        let shelf = Arc::new(Shelf::default());
        let started = swarm::start(settings, shelf, CancellationToken::new()).await;
        match (what, started.map(|_| ())) {
            // Alone with an operator of its own it would be a network of another name, which is its right.
            ("of another network", Ok(())) => {}
            (_, Err(SwarmError::Membership(_))) => {}
            (_, other) => panic!("a certificate {what}: {other:?}"),
        }
    }
    let expired = Certificate::sign(&operator(), key(61).node(), Roles::MEMBER, 1, NOW);
    let error =
        SwarmError::Membership(expired.check(&operator().network(), &key(61).node(), NOW, 0).unwrap_err());
    assert!(error.to_string().contains("operator admit the node again"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_different_operators_do_not_meet() {
    let ours = target().await;
    let mut settings = settings(&key(62), &[ours.address(false)]);
    settings.membership = Some(certificate(&key(99), key(62).node()));
    let theirs = start(settings).await;
    tokio::time::timeout(SILENCE, meet(&theirs.client(), ours.id())).await.unwrap_err();
    assert!(ours.client().neighbours().is_empty() && theirs.client().neighbours().is_empty());
}

/// A member that was admitted opens the stream of a protocol and says what it wants.
async fn admitted_words(node: &Node, protocol: &'static str, words: &[u8]) -> Vec<u8> {
    let stranger = key(50);
    let mut address: Multiaddr = node.address(false).parse().unwrap();
    address.pop();
    let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let (_, mut muxer) = within(transport(&stranger).dial(address, opts).unwrap()).await.unwrap();
    let mut first = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
    let mut second = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
    let drive = async move {
        loop {
            if std::future::poll_fn(|cx| muxer.poll_unpin(cx)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let talk = async move {
        let greeting = hello(certificate(&operator(), stranger.node()));
        first.write_all(&greeting).await.unwrap();
        first.flush().await.unwrap();
        let mut byte = [0; 1];
        first.read_exact(&mut byte).await.unwrap();
        let negotiation =
            [&[19][..], b"/multistream/1.0.0\n", &[protocol.len() as u8 + 1], protocol.as_bytes(), b"\n"];
        second.write_all(&negotiation.concat()).await.unwrap();
        second.write_all(words).await.unwrap();
        second.flush().await.unwrap();
        let mut answer = Vec::new();
        while let Ok(1) = second.read(&mut byte).await {
            answer.push(byte[0]);
        }
        answer
    };
    tokio::select! {
        () = drive => unreachable!(),
        answer = tokio::time::timeout(PATIENCE, talk) => answer.expect("the stream was left open"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admitted_peer_that_talks_nonsense_loses_its_stream_and_nothing_else() {
    let node = target().await;
    let ping = encode_frame(&Ask { id: 7, question: Question::Ping }).unwrap();
    for protocol in ["/wherry/ask/1", "/wherry/exchange/1"] {
        let oversize = u32::MAX.to_be_bytes();
        let negotiated = admitted_words(&node, protocol, &oversize).await;
        let expected = 20 + 2 + protocol.len();
        assert_eq!(negotiated.len(), expected, "{protocol}: {negotiated:?}");
    }
    // A good question before the nonsense is answered.
    let words = [&ping[..], &u32::MAX.to_be_bytes()].concat();
    let answered = admitted_words(&node, "/wherry/ask/1", &words).await;
    assert_eq!(answered[20 + 2 + 13..], [0, 0, 0, 2, 7, 0]);
    let member = member(12, &[node.address(false)]).await;
    meet(&member.client(), node.id()).await;
}

/// A member whose clock, once it is armed, lets the node ban a peer in the middle of that peer's admission: between
/// the look at the bans and the look at the certificate, both of which ask for the time.
async fn banning_in_between(peer: NodeId) -> (Node, Arc<AtomicUsize>) {
    let calls_left = Arc::new(AtomicUsize::new(0));
    let client = Arc::new(OnceLock::<Client>::new());
    let mut settings = settings(&key(11), &[]);
    settings.clock = Arc::new({
        let (calls_left, client) = (calls_left.clone(), client.clone());
        move || {
            let call =
                calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if call == Ok(1) {
                client.get().unwrap().ban(peer, "it lied").now_or_never().unwrap();
            }
            NOW
        }
    });
    let node = start(settings).await;
    assert!(client.set(node.client()).is_ok());
    (node, calls_left)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_in_the_middle_of_a_handshake_ends_the_bulk_connection() {
    let banned = key(50);
    let (node, armed) = banning_in_between(banned.node()).await;
    let mut stream = bulk(&banned, &node, b"wherry-bulk/1").await.unwrap();
    armed.store(2, Ordering::SeqCst);
    stream.write_all(&hello(certificate(&operator(), banned.node()))).await.unwrap();
    // It was let in a moment before, so the hello is answered; then nothing more is.
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(ADMISSION_TIME, stream.read_to_end(&mut answer)).await;
    ended.expect("the connection was left open").ok();
    assert_eq!(node.client().bans().len(), 1, "the ban came at another time");
    assert!(!answer.is_empty(), "the ban came too early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_in_the_middle_of_a_handshake_ends_the_connection() {
    let banned = key(50);
    for quic in [false, true] {
        let (node, armed) = banning_in_between(banned.node()).await;
        let mut address: Multiaddr = node.address(quic).parse().unwrap();
        address.pop();
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, mut muxer) = within(transport(&banned).dial(address, opts).unwrap()).await.unwrap();
        let mut first = within(std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx))).await.unwrap();
        armed.store(2, Ordering::SeqCst);
        let greeting = hello(certificate(&operator(), banned.node()));
        let ended = async {
            let answered = async {
                first.write_all(&greeting).await.unwrap();
                first.flush().await.unwrap();
                // Whether the answer still comes through is all the same.
                let _ = first.read_exact(&mut [0; 4]).await;
                std::future::pending::<()>().await;
            };
            // What the node opens before it knows is taken and dropped; the end is an error.
            let ended = async {
                while std::future::poll_fn(|cx| {
                    if let Poll::Ready(Err(error)) = muxer.poll_unpin(cx) {
                        return Poll::Ready(Err(error));
                    }
                    muxer.poll_inbound_unpin(cx)
                })
                .await
                .is_ok()
                {}
            };
            tokio::select! {
                () = answered => unreachable!(),
                () = ended => {}
            }
        };
        tokio::time::timeout(ADMISSION_TIME, ended).await.expect("the connection was left open");
        assert_eq!(node.client().bans().len(), 1, "the ban came at another time");
        assert!(node.client().neighbours().is_empty());
    }
}
