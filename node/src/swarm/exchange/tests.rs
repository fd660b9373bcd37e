//! The taking side against peers that break the protocol, over a stream in memory.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wherry_proto::{
    Algorithm, ChainBuilder, ChunkMap, ClaimError, Digest, HeldClaim, MAX_CHUNK_LEN, Request, Response,
    SecretKey, decode_payload, encode_frame,
};

use super::{Buffers, Downlink, Exchange, ExchangeError, Inflow, Patience, start};
use crate::swarm::codec::read_payload;

pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// Less than anybody has, so that a test is over soon.
pub(super) const LITTLE: Patience = Patience {
    silence: Duration::from_millis(600),
    request: Duration::from_millis(2400),
    idle: Duration::from_millis(1800),
};

/// An exchange with node 2 of network 1, and the other end of its stream.
pub(super) fn exchange() -> (Exchange, DuplexStream) {
    exchange_over(Downlink::default())
}

fn exchange_over(downlink: Downlink) -> (Exchange, DuplexStream) {
    exchange_of(downlink, Inflow::default())
}

fn exchange_of(downlink: Downlink, inflow: Inflow) -> (Exchange, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (node, network, stop) = (key(2).node(), key(1).network(), CancellationToken::new());
    let shared = (Buffers::default(), downlink, inflow);
    let (exchange, work) = start(ours, node, network, true, shared, LITTLE, stop);
    tokio::spawn(work);
    (exchange, theirs)
}

pub(super) async fn request(stream: &mut DuplexStream) -> Request {
    decode_payload(&read_payload::<Request>(stream).await.unwrap()).unwrap()
}

pub(super) async fn say(stream: &mut DuplexStream, response: &Response, raw: &[u8]) {
    stream.write_all(&encode_frame(response).unwrap()).await.unwrap();
    stream.write_all(raw).await.unwrap();
}

fn blob() -> (Digest, ChunkMap) {
    (Digest::sha256(&[7; 100]), ChunkMap::new(100).unwrap())
}

/// What one request for the only chunk of the blob ends with when this is said in return.
async fn answered(response: impl Fn(u32) -> Response, raw: &[u8]) -> Result<Vec<u8>, ExchangeError> {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let peer = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        say(&mut stream, &response(id), raw).await;
        // Held open until the test is over.
        stream
    };
    let (chunk, _stream) =
        futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer).await;
    chunk.map(|bytes| bytes.to_vec())
}

fn is_protocol(result: &Result<Vec<u8>, ExchangeError>) -> bool {
    matches!(result, Err(ExchangeError::Protocol { .. }))
}

#[tokio::test]
async fn a_chunk_of_another_length_is_a_broken_protocol() {
    assert_eq!(answered(|id| Response::Chunk { id, len: 100 }, &[7; 100]).await, Ok(vec![7; 100]));
    for len in [0, 99, 101, MAX_CHUNK_LEN, u32::MAX] {
        let result = answered(|id| Response::Chunk { id, len }, &[]).await;
        assert!(is_protocol(&result), "{len}: {result:?}");
    }
}

#[tokio::test]
async fn a_slot_that_came_free_before_anybody_waited_for_it_is_not_missed() {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let peer = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        say(&mut stream, &Response::Busy { id }, &[]).await;
        say(&mut stream, &Response::Free, &[]).await;
        stream
    };
    let (chunk, _stream) =
        futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer).await;
    assert_eq!(chunk, Err(ExchangeError::Busy(key(2).node())));
    exchange.free().await;
}

#[tokio::test]
async fn a_response_to_no_request_is_a_broken_protocol() {
    let result = answered(|id| Response::Busy { id: id + 1 }, &[]).await;
    assert!(is_protocol(&result), "{result:?}");
    let result = answered(|id| Response::Chunk { id: id + 1, len: 100 }, &[]).await;
    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn garbage_is_a_broken_protocol_and_takes_no_memory() {
    for garbage in [&u32::MAX.to_be_bytes()[..], &0u32.to_be_bytes(), b"\0\0\0\x04junk", b"HTTP/1.1 400"] {
        let (exchange, mut stream) = exchange();
        let (digest, map) = blob();
        let peer = async {
            request(&mut stream).await;
            stream.write_all(garbage).await.unwrap();
            stream
        };
        let (chunk, mut stream) =
            futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer).await;
        assert!(is_protocol(&chunk.map(|bytes| bytes.to_vec())), "{garbage:?}");
        exchange.closed().await;
        // The stream is closed too, so that the peer sees it.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_stops_in_the_middle_of_a_chunk_is_silent() {
    let begun = tokio::time::Instant::now();
    let result = answered(|id| Response::Chunk { id, len: 100 }, &[7; 60]).await;
    assert_eq!(result, Err(ExchangeError::Silent(key(2).node())));
    assert!(begun.elapsed() < 5 * LITTLE.silence);
}

#[tokio::test]
async fn a_peer_whose_bytes_wait_behind_those_of_many_others_is_not_called_silent() {
    let link = Downlink::default();
    let _others: Vec<_> = (0..15).map(|_| link.wait()).collect();
    let (exchange, mut stream) = exchange_over(link.clone());
    let (digest, map) = blob();
    let peer = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        let mut frame = encode_frame(&Response::Chunk { id, len: 100 }).unwrap();
        frame.extend([7; 60]);
        for part in [&frame[..], &[7; 40]] {
            tokio::time::sleep(LITTLE.silence / 2).await;
            // The shortest chunk to each of the others.
            link.received(15 * (32 << 10));
            tokio::time::sleep(LITTLE.silence).await;
            stream.write_all(part).await.unwrap();
        }
        stream
    };
    let (chunk, _stream) =
        futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer).await;
    assert_eq!(chunk.map(|bytes| bytes.to_vec()), Ok(vec![7; 100]));
}

#[tokio::test]
async fn a_peer_that_trickles_is_given_up_at_the_limit() {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let trickle = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        say(&mut stream, &Response::Chunk { id, len: 100 }, &[]).await;
        loop {
            tokio::time::sleep(LITTLE.silence / 3).await;
            if stream.write_all(&[7]).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = trickle => unreachable!(),
        chunk = exchange.chunk(digest, map, map.first(), |_| {}) => {
            assert_eq!(chunk, Err(ExchangeError::TimedOut(key(2).node())));
        }
    }
}

#[tokio::test]
async fn an_exchange_is_closed_when_it_was_idle_for_long_and_not_while_it_is_asked() {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 2 * LITTLE.idle {
        let peer = async {
            let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
            tokio::time::sleep(LITTLE.silence / 2).await;
            say(&mut stream, &Response::Chunk { id, len: 100 }, &[7; 100]).await;
        };
        let (chunk, ()) = futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer).await;
        assert_eq!(chunk.unwrap().len(), 100);
    }
    assert!(!exchange.is_closed());
    exchange.closed().await;
    let late = exchange.chunk(digest, map, map.first(), |_| {}).await;
    assert!(matches!(late, Err(ExchangeError::Closed { .. })), "{late:?}");
}

/// What asking for the claim of a blob ends with when this claim and these states come.
async fn claimed(claim: HeldClaim, states: &[u8]) -> Result<(), ExchangeError> {
    let (exchange, mut stream) = exchange();
    let (digest, size) = (chain(1).digest(), chain(1).map().size());
    let peer = async {
        let Request::Chain { id, .. } = request(&mut stream).await else { panic!("another request") };
        // At most 8 MiB in these tests.
        let len = states.len() as u32;
        say(&mut stream, &Response::Chain { id, claim, len }, states).await;
        stream
    };
    let (held, _stream) = futures::future::join(exchange.held(digest, size, None), peer).await;
    held.map(drop)
}

fn chain(seed: u8) -> wherry_proto::StateChain {
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(100_000).unwrap());
    builder.update(&[seed; 100_000]).unwrap();
    builder.finish().unwrap()
}

#[tokio::test]
async fn a_claim_must_be_the_peers_own_about_the_blob_in_this_network_with_the_signed_states() {
    let (network, states) = (key(1).network(), chain(1).to_bytes());
    let good = HeldClaim::sign(&key(2), &network, &chain(1));
    assert_eq!(claimed(good.clone(), &states).await, Ok(()));
    let by_another = HeldClaim::sign(&key(3), &network, &chain(1));
    assert!(matches!(claimed(by_another, &states).await, Err(ExchangeError::Protocol { .. })));
    let on_another = HeldClaim::sign(&key(2), &network, &chain(9));
    assert!(matches!(claimed(on_another, &states).await, Err(ExchangeError::Protocol { .. })));
    assert!(matches!(claimed(good.clone(), &states[32..]).await, Err(ExchangeError::Protocol { .. })));
    let elsewhere = HeldClaim::sign(&key(2), &key(9).network(), &chain(1));
    assert!(matches!(claimed(elsewhere, &states).await, Err(ExchangeError::Claim { .. })));
    let mut changed = states;
    changed[0] ^= 1;
    assert!(matches!(claimed(good, &changed).await, Err(ExchangeError::Claim { .. })));
}

#[tokio::test]
async fn claimed_states_are_taken_from_anybody_and_only_if_they_have_the_digest_that_was_claimed() {
    let states = chain(1).to_bytes();
    let mut changed = states.clone();
    changed[0] ^= 1;
    for (given, expected) in [(&states[..], Ok(chain(1))), (&changed, Err(true)), (&states[32..], Err(false))]
    {
        let (exchange, mut stream) = exchange();
        let peer = async {
            let Request::ClaimedStates { id, .. } = request(&mut stream).await else {
                panic!("another request")
            };
            // At most 8 MiB in these tests.
            say(&mut stream, &Response::ClaimedStates { id, len: given.len() as u32 }, given).await;
            stream
        };
        let (digest, size) = (chain(1).digest(), chain(1).map().size());
        let asking = exchange.claimed(digest, size, Digest::sha256(&states));
        let (taken, _stream) = futures::future::join(asking, peer).await;
        let is_claim = |why| matches!(why, ExchangeError::Claim { reason: ClaimError::OtherStates, .. });
        assert_eq!(taken.map_err(is_claim), expected);
    }
}

#[tokio::test]
async fn states_may_stay_away_only_if_they_are_spared_and_the_claim_is_the_peers_own_all_the_same() {
    for (network, insists, fits) in [(1, false, true), (9, false, false), (1, true, false)] {
        let (exchange, mut stream) = exchange();
        let claim = HeldClaim::sign(&key(2), &key(network).network(), &chain(1));
        let peer = async {
            let Request::Chain { id, spares, .. } = request(&mut stream).await else {
                panic!("another request")
            };
            assert_eq!(spares, !insists);
            say(&mut stream, &Response::Chain { id, claim, len: 0 }, &[]).await;
            stream
        };
        let (digest, size) = (chain(1).digest(), chain(1).map().size());
        let asking = async {
            match insists {
                true => exchange.held(digest, size, None).await.map(|_| ()),
                false => exchange.claim(digest, size).await.map(|(_, chain)| assert_eq!(chain, None)),
            }
        };
        let (claimed, _stream) = futures::future::join(asking, peer).await;
        assert_eq!(claimed.is_ok(), fits, "{claimed:?}");
    }
}

#[tokio::test]
async fn only_states_that_are_known_may_stay_away() {
    let network = key(1).network();
    for (claimed, fits) in [(1, true), (9, false)] {
        let (exchange, mut stream) = exchange();
        let mut claim = HeldClaim::sign(&key(2), &network, &chain(claimed));
        claim.digest = chain(1).digest();
        let peer = async {
            let Request::Chain { id, known, .. } = request(&mut stream).await else {
                panic!("another request")
            };
            assert_eq!(known, Some(Digest::sha256(&chain(1).to_bytes())));
            say(&mut stream, &Response::Chain { id, claim, len: 0 }, &[]).await;
            stream
        };
        let (digest, size) = (chain(1).digest(), chain(1).map().size());
        let (held, _stream) = futures::future::join(exchange.held(digest, size, Some(&chain(1))), peer).await;
        match held {
            Ok((_, chain)) => assert!(fits && chain == self::chain(1)),
            Err(why) => assert!(!fits && matches!(why, ExchangeError::Protocol { .. }), "{why}"),
        }
    }
}

#[tokio::test]
async fn how_fast_a_chunk_came_is_known_unless_it_came_at_once() {
    const HALF: usize = 16 << 10;
    const PAUSE: Duration = Duration::from_millis(50);
    let map = ChunkMap::new(2 * HALF as u64).unwrap();
    for at_once in [true, false] {
        let inflow = Inflow::default();
        let (exchange, mut stream) = exchange_of(Downlink::default(), inflow.clone());
        let (came, mut coming) = mpsc::channel(2);
        let peer = async {
            let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
            let (chunk, first) = (vec![7; 2 * HALF], if at_once { 2 * HALF } else { HALF });
            say(&mut stream, &Response::Chunk { id, len: chunk.len() as u32 }, &chunk[..first]).await;
            // The time is taken from when the first half has been read.
            assert_eq!(coming.recv().await, Some(first));
            tokio::time::sleep(PAUSE).await;
            stream.write_all(&chunk[first..]).await.unwrap();
            stream
        };
        let progress = move |bytes| came.try_send(bytes).unwrap();
        let asking = exchange.chunk(Digest::sha256(&[7; 2 * HALF]), map, map.first(), progress);
        let (chunk, _stream) = futures::future::join(asking, peer).await;
        chunk.unwrap();
        match inflow.rate() {
            Some(rate) => assert!(!at_once && rate as f64 <= HALF as f64 / PAUSE.as_secs_f64(), "{rate}"),
            None => assert!(at_once),
        }
    }
}
