//! Following and taking states from peers that keep the protocol or break it, over a stream in memory.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::io::DuplexStream;
use wherry_proto::{
    Attempt, Certificate, ChunkMap, ClaimError, Digest, List, MAX_CHUNK_LEN, NodeId, Refusal, Request,
    Response, Role, Roles, Run, SecretKey, State, StatePrefix, StreamClaim, Update,
};

use super::tests::{LITTLE, exchange, key, request, say};
use super::{Exchange, ExchangeError, Follow, MAX_FOLLOWED};

const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A blob of 256 chunks.
fn blob() -> (Digest, ChunkMap) {
    (Digest::sha256(b"blob"), ChunkMap::new(256 * (32 << 10)).unwrap())
}

/// Follows the blob; the peer has got the request, of this number.
async fn follow() -> (Exchange, DuplexStream, Follow, u32) {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let follow = exchange.follow(digest, map);
    let id = followed(&mut stream).await;
    (exchange, stream, follow, id)
}

async fn followed(stream: &mut DuplexStream) -> u32 {
    let Request::Follow { id, blob } = within(request(stream)).await else { panic!("another request") };
    assert_eq!((blob.digest, blob.size), (self::blob().0, self::blob().1.size()));
    id
}

fn update(role: Role, runs: &[(u32, u32)]) -> Update {
    Update { role, here: List::first_of(runs.iter().map(|(from, len)| Run { from: *from, len: *len })) }
}

const fn leading(known: u32) -> Role {
    Role::Leading { attempt: 7, known }
}

async fn tell(stream: &mut DuplexStream, id: u32, update: Update) {
    within(say(stream, &Response::Update { id, update }, &[])).await;
}

#[tokio::test]
async fn what_a_peer_tells_comes_as_it_is_until_the_blob_is_gone() {
    let (exchange, mut stream, mut follow, id) = follow().await;
    assert_eq!(follow.node(), key(2).node());
    let told = [
        update(leading(0), &[]),
        update(leading(2), &[(0, 2), (200, 3)]),
        update(leading(2), &[(7, 1)]),
        update(Role::Held, &[]),
        update(Role::Gone, &[]),
    ];
    for update in told {
        tell(&mut stream, id, update.clone()).await;
        assert_eq!(within(follow.next()).await, Some(update));
    }
    assert_eq!(within(follow.next()).await, None);
    assert!(!exchange.is_closed());
    // It is over on both sides: what is still told of it is no fault of anybody who was not told in time.
    drop(follow);
    let (digest, map) = blob();
    let mut next = exchange.follow(digest, map);
    let id = followed(&mut stream).await;
    tell(&mut stream, id, update(Role::Held, &[])).await;
    assert_eq!(within(next.next()).await, Some(update(Role::Held, &[])));
}

#[tokio::test]
async fn whoever_takes_updates_slowly_is_told_everything_at_once() {
    let (exchange, mut stream, mut follow, id) = follow().await;
    for number in 0..128 {
        tell(&mut stream, id, update(leading(number), &[(2 * number, 1)])).await;
    }
    // Answered in order, so that all of it has been read.
    let (digest, map) = blob();
    let peer = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        say(&mut stream, &Response::NotHere { id }, &[]).await;
    };
    let ask = exchange.chunk(digest, map, map.first(), |_| {});
    let (chunk, ()) = within(futures::future::join(ask, peer)).await;
    assert_eq!(chunk, Err(ExchangeError::NotHere(key(2).node())));
    // Two updates, since there are so many runs.
    for part in 0..2 {
        let runs: Vec<_> = (0..64).map(|number| (2 * (64 * part + number), 1)).collect();
        assert_eq!(within(follow.next()).await, Some(update(leading(127), &runs)));
    }
    assert!(follow.next().now_or_never().is_none());
}

#[tokio::test]
async fn an_update_that_no_honest_peer_sends_ends_the_connection() {
    let bad = [
        update(leading(256), &[]),
        update(Role::Following { stream: None, known: u32::MAX, may_lead: false, led_slowly: false }, &[]),
        update(leading(0), &[(256, 1)]),
        update(leading(0), &[(0, 0)]),
        update(leading(0), &[(5, 1), (4, 1)]),
        // Chunk 1 was told before.
        update(leading(0), &[(0, 256)]),
    ];
    for bad in bad {
        let (exchange, mut stream, mut follow, id) = follow().await;
        let good = update(leading(0), &[(1, 1)]);
        tell(&mut stream, id, good.clone()).await;
        assert_eq!(within(follow.next()).await, Some(good));
        tell(&mut stream, id, bad).await;
        within(exchange.closed()).await;
        // At most what was good of it.
        within(async { while follow.next().await.is_some() {} }).await;
    }
    let (exchange, mut stream) = exchange();
    tell(&mut stream, 0, update(Role::Held, &[])).await;
    within(exchange.closed()).await;
}

#[tokio::test]
async fn whoever_follows_is_neither_idle_nor_owed_anything() {
    let (exchange, mut stream, follow, id) = follow().await;
    let long = tokio::time::timeout(2 * LITTLE.idle, exchange.closed());
    assert!(long.await.is_err(), "closed while something is followed");
    // It is owed what it asks for.
    let (digest, map) = blob();
    let ask = exchange.clone();
    let asking = tokio::spawn(async move { ask.chunk(digest, map, map.first(), |_| {}).await });
    let Request::Chunk { id: chunk, .. } = within(request(&mut stream)).await else {
        panic!("another request")
    };
    say(&mut stream, &Response::Elsewhere { id: chunk }, &[]).await;
    assert_eq!(within(asking).await.unwrap(), Err(ExchangeError::Elsewhere(key(2).node())));
    let begun = tokio::time::Instant::now();
    drop(follow);
    assert_eq!(within(request(&mut stream)).await, Request::Cancel { id });
    within(exchange.closed()).await;
    assert!(begun.elapsed() >= LITTLE.idle);
}

#[tokio::test]
async fn what_is_told_of_a_blob_that_is_followed_no_more_is_passed_over() {
    let (exchange, mut stream, follow, id) = follow().await;
    drop(follow);
    assert_eq!(within(request(&mut stream)).await, Request::Cancel { id });
    tell(&mut stream, id, update(leading(0), &[(0, 1)])).await;
    // In case the first did not get through.
    assert_eq!(within(request(&mut stream)).await, Request::Cancel { id });
    say(&mut stream, &Response::Refused { id, reason: Refusal::TooManyFollowed }, &[]).await;
    let (digest, map) = blob();
    let mut again = exchange.follow(digest, map);
    let id = followed(&mut stream).await;
    tell(&mut stream, id, update(leading(1), &[(0, 1)])).await;
    assert_eq!(within(again.next()).await, Some(update(leading(1), &[(0, 1)])));
}

#[tokio::test]
async fn following_ends_with_the_connection_and_when_it_is_refused() {
    let (exchange, mut stream, mut refused, id) = follow().await;
    say(&mut stream, &Response::Refused { id, reason: Refusal::TooManyFollowed }, &[]).await;
    assert_eq!(within(refused.next()).await, None);
    let (digest, map) = blob();
    let mut follows: Vec<_> = (0..MAX_FOLLOWED).map(|_| exchange.follow(digest, map)).collect();
    assert_eq!(exchange.follow(digest, map).next().now_or_never(), Some(None), "one too many");
    let id = followed(&mut stream).await;
    tell(&mut stream, id, update(leading(0), &[])).await;
    drop(stream);
    within(exchange.closed()).await;
    assert_eq!(within(follows[0].next()).await, Some(update(leading(0), &[])));
    for follow in &mut follows {
        assert_eq!(within(follow.next()).await, None);
    }
    assert_eq!(within(exchange.follow(digest, map).next()).await, None);
}

fn leader() -> SecretKey {
    key(5)
}

fn attempt() -> Attempt {
    Attempt { signer: leader().node(), number: 7 }
}

fn prefix(known: u32) -> StatePrefix {
    let (digest, map) = blob();
    let mut prefix = StatePrefix::new(digest.algorithm(), map);
    (1..=known).for_each(|word| assert!(prefix.push(State::Sha256([word; 8]))));
    prefix
}

fn certificate(node: NodeId) -> Certificate {
    Certificate::sign(&key(1), node, Roles::MEMBER, 1, 1000)
}

fn claim(attempt: u64, known: u32) -> StreamClaim {
    StreamClaim::sign(&leader(), &key(1).network(), blob().0, attempt, &prefix(known))
}

/// What asking for the states behind the second ends with when this claim and these states come.
async fn states(claim: StreamClaim, raw: &[u8]) -> Result<StatePrefix, ExchangeError> {
    let (exchange, mut stream) = exchange();
    let (digest, map) = blob();
    let certificate = certificate(leader().node());
    let peer = async {
        let Request::States { id, attempt, from: 2, .. } = request(&mut stream).await else {
            panic!("another request")
        };
        assert_eq!(attempt, self::attempt());
        let len = raw.len() as u32;
        let response = Response::States { id, claim: claim.clone(), certificate: certificate.clone(), len };
        say(&mut stream, &response, raw).await;
        stream
    };
    let before = prefix(2);
    let ask = exchange.states(digest, map, attempt(), &before);
    let (signed, _stream) = within(futures::future::join(ask, peer)).await;
    let signed = signed?;
    assert_eq!((signed.claim, signed.certificate), (claim.clone(), certificate.clone()));
    Ok(signed.prefix)
}

#[tokio::test]
async fn states_are_those_that_the_leader_signed_of_this_reading() {
    let raw = prefix(9).states_from(2);
    assert_eq!(states(claim(7, 9), &raw).await, Ok(prefix(9)));
    assert_eq!(states(claim(7, 2), &[]).await, Ok(prefix(2)));
    let broken = |result: Result<_, ExchangeError>| matches!(result, Err(ExchangeError::Protocol { .. }));
    assert!(broken(states(claim(8, 9), &raw).await), "another reading");
    assert!(broken(states(claim(7, 9), &raw[32..]).await), "too few");
    assert!(broken(states(claim(7, 1), &[]).await), "fewer than are known");
    let mut other = claim(7, 9);
    other.digest = Digest::sha256(b"other");
    assert!(broken(states(other, &raw).await), "another blob");
    let mut beyond = claim(7, 9);
    beyond.known = u32::MAX;
    assert!(broken(states(beyond, &raw).await), "more than the blob has");

    let false_claim = |reason| Err(ExchangeError::Claim { node: key(2).node(), reason });
    let mut changed = raw.clone();
    changed[40] ^= 1;
    assert_eq!(states(claim(7, 9), &changed).await, false_claim(ClaimError::OtherStates));
    let mut forged = claim(7, 9);
    forged.states = Digest::sha256(b"");
    let result = states(forged, &raw).await;
    assert!(
        matches!(result, Err(ExchangeError::Claim { reason: ClaimError::Signature(_), .. })),
        "{result:?}"
    );
    let elsewhere = StreamClaim::sign(&leader(), &key(9).network(), blob().0, 7, &prefix(9));
    let result = states(elsewhere, &raw).await;
    assert!(
        matches!(result, Err(ExchangeError::Claim { reason: ClaimError::Signature(_), .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_a_broken_protocol() {
    let (digest, map) = blob();
    // A chunk for states.
    let (exchange, mut stream) = exchange();
    let before = prefix(0);
    let peer = async {
        let Request::States { id, .. } = request(&mut stream).await else { panic!("another request") };
        say(&mut stream, &Response::Chunk { id, len: MAX_CHUNK_LEN }, &[]).await;
    };
    let (states, ()) =
        within(futures::future::join(exchange.states(digest, map, attempt(), &before), peer)).await;
    assert!(matches!(states, Err(ExchangeError::Protocol { .. })), "{states:?}");
    // States for a chunk.
    let (exchange, mut stream) = self::exchange();
    let peer = async {
        let Request::Chunk { id, .. } = request(&mut stream).await else { panic!("another request") };
        let certificate = certificate(leader().node());
        say(&mut stream, &Response::States { id, claim: claim(7, 0), certificate, len: 0 }, &[]).await;
    };
    let (chunk, ()) =
        within(futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), peer)).await;
    assert!(matches!(chunk, Err(ExchangeError::Protocol { .. })), "{chunk:?}");
}
