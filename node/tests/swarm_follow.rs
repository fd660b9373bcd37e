//! Members follow blobs that arrive at each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod swarm_support;

use std::time::Instant;

use futures::{FutureExt as _, StreamExt as _};
use swarm_support::*;
use wherry_node::swarm::{
    Client, Exchange, ExchangeError, Follow, LinkClass, Offer, StatesError, UPDATE_TIME,
};
use wherry_proto::{
    Attempt, Certificate, CertificateError, ChunkMap, ClaimError, Digest, Lead, LeadRefusal, List, Role, Run,
    SecretKey, SignedStates, StreamClaim, Update,
};

/// How many chunks the blob has that is followed.
const CHUNKS: u32 = 10;

fn bytes() -> Vec<u8> {
    noise(CHUNKS as usize * (32 << 10) - 7, 4)
}

const fn leading(known: u32) -> Role {
    Role::Leading { attempt: 3, known }
}

fn update<const N: usize>(role: Role, runs: [(u32, u32); N]) -> Update {
    Update { role, here: List::first_of(runs.map(|(from, len)| Run { from, len })) }
}

async fn next(follow: &mut Follow) -> Option<Update> {
    within(follow.next()).await
}

async fn take(exchange: &Exchange, incoming: &Incoming, number: u32) -> Result<(), ExchangeError> {
    let map = incoming.chain().map();
    let index = map.index(number).unwrap();
    let chunk = within(exchange.chunk(incoming.name().digest, map, index, |_| {})).await?;
    assert!(chunk == incoming.chunk(index));
    Ok(())
}

/// What a leader signs of its reading number 3 of a blob.
fn sign(leader: &SecretKey, incoming: &Incoming, known: u32) -> SignedStates {
    let prefix = incoming.prefix(known);
    let claim = StreamClaim::sign(leader, &operator().network(), incoming.name().digest, 3, &prefix);
    SignedStates { claim, certificate: certificate(&operator(), leader.node()), prefix }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_told_chunks_as_they_come_and_what_becomes_of_the_blob() {
    let (a, b) = pair().await;
    let incoming = a.shelf.expect(&bytes(), leading(0));
    let (digest, map) = (incoming.name().digest, incoming.chain().map());
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let mut follow = exchange.follow(digest, map);
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [])));
    assert_eq!(incoming.followers(), [b.id()]);
    incoming.link([0, 1]);
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [(0, 2)])));
    let following = |may_lead| Role::Following { stream: None, known: 1, may_lead, led_slowly: false };
    incoming.turn(following(true));
    assert_eq!(next(&mut follow).await, Some(update(following(true), [])));
    incoming.link([9, 5, 6]);
    assert_eq!(next(&mut follow).await, Some(update(following(true), [(5, 2), (9, 1)])));
    // What is not linked is not given, and what is is.
    for number in 0..CHUNKS {
        let expected = match number {
            0 | 1 | 5 | 6 | 9 => Ok(()),
            _ => Err(ExchangeError::NotHere(a.id())),
        };
        assert_eq!(take(&exchange, &incoming, number).await, expected, "{number}");
    }
    // It lives on when the blob has arrived, and so does the exchange.
    a.shelf.finish(&incoming);
    assert_eq!(next(&mut follow).await, Some(update(Role::Held, [])));
    for number in 0..CHUNKS {
        assert_eq!(take(&exchange, &incoming, number).await, Ok(()), "{number}");
    }
    assert!(follow.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_held_or_unknown_is_said_to_be_at_once() {
    let (a, b) = pair().await;
    let digest = a.shelf.add(&bytes());
    let map = ChunkMap::new(bytes().len() as u64).unwrap();
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let mut held = exchange.follow(digest, map);
    assert_eq!(next(&mut held).await, Some(update(Role::Held, [])));
    assert!(held.next().now_or_never().is_none());
    let other = Digest::sha256(b"something else");
    let other_len = ChunkMap::new(map.size() + 1).unwrap();
    for (digest, map) in [(other, map), (digest, other_len)] {
        let mut unknown = exchange.follow(digest, map);
        assert_eq!(next(&mut unknown).await, Some(update(Role::Gone, [])));
        assert_eq!(next(&mut unknown).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_when_a_held_blob_leaves_be_it_one_that_has_just_arrived() {
    let (a, b) = pair().await;
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let arrived = a.shelf.expect(&bytes(), leading(0));
    let digest = a.shelf.add(&noise(100, 5));
    let mut held = exchange.follow(digest, ChunkMap::new(100).unwrap());
    assert_eq!(next(&mut held).await, Some(update(Role::Held, [])));
    let mut follow = exchange.follow(arrived.name().digest, arrived.chain().map());
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [])));
    a.shelf.finish(&arrived);
    assert_eq!(next(&mut follow).await, Some(update(Role::Held, [])));
    a.shelf.remove(&arrived.name().digest);
    assert_eq!(next(&mut follow).await, Some(update(Role::Gone, [])));
    assert_eq!(next(&mut follow).await, None);
    // Nothing is said of the other before that leaves too.
    assert!(held.next().now_or_never().is_none());
    a.shelf.remove(&digest);
    assert_eq!(next(&mut held).await, Some(update(Role::Gone, [])));
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_when_the_blob_will_not_arrive() {
    let (a, b) = pair().await;
    let incoming = a.shelf.expect(&bytes(), leading(0));
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let mut follow = exchange.follow(incoming.name().digest, incoming.chain().map());
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [])));
    incoming.link([3]);
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [(3, 1)])));
    assert_eq!(take(&exchange, &incoming, 3).await, Ok(()));
    a.shelf.give_up(&incoming);
    assert_eq!(next(&mut follow).await, Some(update(Role::Gone, [])));
    assert_eq!(next(&mut follow).await, None);
    assert_eq!(take(&exchange, &incoming, 3).await, Err(ExchangeError::NotHeld(a.id())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_turns_out_to_be_lost_when_it_is_read_is_not_here_and_costs_no_connection() {
    let (a, b) = pair().await;
    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
    let incoming = a.shelf.expect(&bytes(), role);
    incoming.link([3, 4]);
    incoming.rot(3);
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let (digest, map) = (incoming.name().digest, incoming.chain().map());
    let mut follow = exchange.follow(digest, map);
    assert_eq!(next(&mut follow).await, Some(update(role, [(3, 2)])));
    assert_eq!(take(&exchange, &incoming, 3).await, Err(ExchangeError::NotHere(a.id())));
    // What was told cannot be taken back: whoever follows begins anew.
    assert_eq!(next(&mut follow).await, Some(update(Role::Gone, [])));
    assert_eq!(take(&exchange, &incoming, 4).await, Ok(()));
    let mut anew = exchange.follow(digest, map);
    assert_eq!(next(&mut anew).await, Some(update(role, [(4, 1)])));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_chunks_make_few_updates_and_a_change_of_role_waits_for_none() {
    let (a, b) = pair().await;
    let bytes = noise(500 * (32 << 10), 4);
    let incoming = a.shelf.expect(&bytes, leading(0));
    let map = incoming.chain().map();
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let begun = Instant::now();
    let mut follow = exchange.follow(incoming.name().digest, map);
    assert_eq!(next(&mut follow).await, Some(update(leading(0), [])));
    let link = async {
        for number in 0..map.count() {
            incoming.link([number]);
            incoming.turn(leading(number));
            tokio::time::sleep(UPDATE_TIME / 50).await;
        }
    };
    let count = async {
        let (mut updates, mut chunks) = (0, 0);
        while chunks < map.count() {
            let update = next(&mut follow).await.unwrap();
            chunks += update.chunks(&map).unwrap().count() as u32;
            updates += 1;
        }
        updates
    };
    let (updates, ()) = futures::future::join(count, link).await;
    let most = begun.elapsed().as_millis() / UPDATE_TIME.as_millis() + 1;
    assert!(updates <= most, "{updates} updates, where {most} are in time");
    // Twice as fast as chunks are told, again and again: no role is left out.
    for attempt in 10..20 {
        let role = Role::Leading { attempt, known: 0 };
        incoming.turn(role);
        while next(&mut follow).await.unwrap().role != role {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_passes_on_what_the_leader_signed_as_it_is() {
    let (relay, follower) = pair().await;
    // It is connected to neither of the two.
    let leader = key(40);
    let stream = Attempt { signer: leader.node(), number: 3 };
    let role = |known| Role::Following { stream: Some(stream), known, may_lead: false, led_slowly: false };
    let incoming = relay.shelf.expect(&bytes(), role(0));
    let (digest, map) = (incoming.name().digest, incoming.chain().map());
    let client = follower.client();
    let states =
        async |before: &SignedStates| client.states(relay.id(), digest, map, stream, &before.prefix).await;
    let none = sign(&leader, &incoming, 0);
    let not_here = |result| matches!(result, Err(StatesError::Exchange(ExchangeError::NotHere(_))));
    assert!(not_here(within(states(&none)).await));
    let first = sign(&leader, &incoming, 4);
    incoming.pass_on(first.clone());
    assert_eq!(within(states(&none)).await.unwrap(), first);
    let second = sign(&leader, &incoming, 9);
    incoming.pass_on(second.clone());
    assert_eq!(within(states(&first)).await.unwrap(), second);
    assert_eq!(within(states(&none)).await.unwrap(), second);
    // It knows less than the follower, and nothing of another reading.
    incoming.pass_on(first);
    assert!(not_here(within(states(&second)).await));
    let other = Attempt { number: 4, ..stream };
    assert!(not_here(within(client.states(relay.id(), digest, map, other, &none.prefix)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_believed_of_members_alone_and_as_they_were_signed() {
    let (a, b) = pair().await;
    let leader = key(40);
    let stream = Attempt { signer: leader.node(), number: 3 };
    let incoming = a.shelf.expect(
        &bytes(),
        Role::Following { stream: Some(stream), known: 4, may_lead: false, led_slowly: false },
    );
    let good = sign(&leader, &incoming, 4);
    let client = b.client();
    let states = async |signed: SignedStates| {
        incoming.pass_on(signed);
        let name = incoming.name();
        let before = incoming.prefix(0);
        within(client.states(a.id(), name.digest, incoming.chain().map(), stream, &before)).await
    };
    assert!(states(good.clone()).await.is_ok());
    let with = |certificate: Certificate| SignedStates { certificate, ..good.clone() };
    let signer = |result| match result {
        Err(StatesError::Signer { node, signer, reason }) => {
            assert_eq!((node, signer), (a.id(), leader.node()));
            reason
        }
        other => panic!("{other:?}"),
    };
    let of_another = signer(states(with(certificate(&operator(), key(41).node()))).await);
    assert!(matches!(of_another, CertificateError::OtherNode { .. }), "{of_another}");
    let elsewhere = signer(states(with(certificate(&key(99), leader.node()))).await);
    assert!(matches!(elsewhere, CertificateError::OtherNetwork { .. }), "{elsewhere}");
    let mut expired = certificate(&operator(), leader.node());
    expired.expires += 1;
    assert!(matches!(signer(states(with(expired)).await), CertificateError::Signature(_)));

    let claim = |result| match result {
        Err(StatesError::Exchange(ExchangeError::Claim { node, reason })) => {
            assert_eq!(node, a.id());
            reason
        }
        other => panic!("{other:?}"),
    };
    let mut forged = good.clone();
    forged.claim.states = incoming.prefix(4).hash();
    forged.claim.signature = sign(&leader, &incoming, 3).claim.signature;
    assert!(matches!(claim(states(forged).await), ClaimError::Signature(_)));
    let mut others = good.clone();
    others.prefix.truncate(3);
    others.prefix.push(incoming.chain().from(incoming.chain().map().last()));
    assert_eq!(claim(states(others).await), ClaimError::OtherStates);
    // None of it is held against the connection.
    assert!(states(good).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_asked_for_a_blob_says_that_it_arrives_and_learns_who_wants_it_too() {
    let (a, b) = pair().await;
    let incoming = a.shelf.expect(&bytes(), leading(0));
    let digest = incoming.name().digest;
    let want =
        async || -> Vec<Offer> { within(b.client().want(digest, LinkClass::Lan, PATIENCE).collect()).await };
    let size = incoming.name().size;
    assert_eq!(want().await, [Offer { node: a.id(), size, arriving: Some(leading(0)) }]);
    assert_eq!(incoming.followers(), [b.id()]);
    a.shelf.finish(&incoming);
    assert_eq!(want().await, [Offer { node: a.id(), size, arriving: None }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_lead_knows_who_asks_and_answers() {
    let (a, b) = pair().await;
    let lead = async |client: Client, blob| within(client.lead(a.id(), blob, "r.example:5000", "a/b")).await;
    let incoming = a.shelf.expect(&bytes(), leading(0));
    let unknown = wherry_proto::BlobName { digest: Digest::sha256(b"x"), size: 1 };
    let refused = Lead::Refuse(LeadRefusal::NoCredentials);
    assert_eq!(lead(b.client(), unknown).await, Some(refused));
    assert_eq!(lead(b.client(), incoming.name()).await, Some(Lead::Leading));
    a.shelf.finish(&incoming);
    assert_eq!(lead(b.client(), incoming.name()).await, Some(Lead::Have));
    let asked = |blob| (b.id(), blob, "r.example:5000/a/b".to_owned());
    let expected = [unknown, incoming.name(), incoming.name()].map(asked);
    assert_eq!(*a.shelf.asked_to_lead.lock().unwrap(), expected);
    assert_eq!(within(b.client().lead(a.id(), unknown, &"x".repeat(300), "a")).await, None);
    assert_eq!(within(b.client().lead(key(99).node(), unknown, "r.example", "a")).await, None);
}
