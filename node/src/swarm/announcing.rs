//! Telling the network what this node holds, or leaving that to others of the site who hold it too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use libp2p::kad::store::RecordStore as _;
use libp2p::kad::{GetClosestPeersError, GetClosestPeersOk, GetClosestPeersResult, ProviderRecord, QueryId};
use tokio::time::timeout;
use wherry_proto::{Answer, Digest, List, MAX_WANT, NodeId, Question};

use super::actor::{Actor, Command};
use super::announcements::{self, ANNOUNCERS, LOOK_TIME, RENEWAL_TIME, RETRY_TIME, announcers};
use super::ask::REPLY_TIME;
use super::behaviour::RECORD_TIME;
use super::identity::{node_of, peer_of};
use super::neighbours::Entry;
use super::regions::{FOUND, of_blob};
use super::wants::all_offers;

/// How many nodes are told at a time of what is announced together.
const TOLD_AT_ONCE: usize = 8;

/// Blobs that are announced together.
#[derive(Default)]
pub(super) struct Round {
    // Those of which it is known which nodes keep their records.
    aimed: Vec<(Digest, Vec<NodeId>)>,
    open: Vec<Digest>,
}

impl Actor {
    pub(super) fn add_announcement(&mut self, digest: Digest, due: Instant) {
        if !self.announcements.add(digest, due) {
            tracing::warn!(%digest, "too many blobs are announced: this one is held in silence");
        }
    }

    /// Announces what is due; says when to look again.
    pub(super) fn announce(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let together = match self.announcements.next(now) {
                Ok(together) => together,
                Err(next) => return next,
            };
            let me = &self.doorkeeper.certificate.node;
            // The same for all of a group.
            let others = together
                .first()
                .and_then(|digest| announcers(digest, me, self.neighbours.near().into_iter()));
            match others {
                Some(others) => self.ask_whether_others_do(together, others),
                None => self.provide(together, now),
            }
        }
    }

    fn ask_whether_others_do(&self, together: Vec<Digest>, others: [NodeId; ANNOUNCERS]) {
        let others: Vec<Entry> = others.iter().filter_map(|node| self.neighbours.get(node)).collect();
        let commands = self.to_self.clone();
        self.tasks.spawn(async move {
            let offers = join_all(others.iter().map(|other| all_offers(other, &together))).await;
            let (mut own, mut left) = (Vec::new(), Vec::new());
            for (number, digest) in together.into_iter().enumerate() {
                let of_each = offers.iter().map(|offers| offers.get(number).copied().flatten());
                match of_each.collect::<Option<Vec<_>>>() {
                    Some(all) if all.len() == ANNOUNCERS => {
                        let is_coming = all.iter().any(|offer| offer.arriving.is_some());
                        left.push((digest, if is_coming { RETRY_TIME } else { LOOK_TIME }));
                    }
                    _ => own.push(digest),
                }
            }
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Provide { own, left }).await;
            }
        });
    }

    /// What was told of these before lapses.
    pub(super) fn leave_to_others(&mut self, left: Vec<(Digest, Duration)>, now: Instant) {
        for (digest, pause) in left {
            self.provide_no_more(&digest);
            self.announcements.again(&digest, pause, now);
        }
    }

    /// Tells those who keep the records of these that they are to be had here.
    pub(super) fn provide(&mut self, together: Vec<Digest>, now: Instant) {
        // Some may have been withdrawn while others were asked.
        let open: Vec<_> = together.into_iter().filter(|digest| self.announcements.has(digest)).collect();
        let me = *self.swarm.local_peer_id();
        for digest in &open {
            let record = ProviderRecord::new(announcements::key(digest), me, vec![]);
            if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
                tracing::debug!(%digest, %error, "an own record is not kept");
            }
        }
        self.aim(Round { aimed: Vec::new(), open }, now);
    }

    /// Tells them once it is known of each blob who they are: as long as it is not, a walk tells of one, and mostly of others too.
    fn aim(&mut self, mut round: Round, now: Instant) {
        for digest in std::mem::take(&mut round.open) {
            match self.regions.keepers(&of_blob(&digest), now) {
                Some(keepers) => round.aimed.push((digest, keepers)),
                None => round.open.push(digest),
            }
        }
        match round.open.first() {
            Some(digest) => {
                let key = announcements::key(digest).to_vec();
                let walk = self.swarm.behaviour_mut().kad.get_n_closest_peers(key, FOUND);
                self.walks.insert(walk, round);
            }
            None => self.tell(round.aimed),
        }
    }

    /// A walk to the keepers of a record is over.
    pub(super) fn on_walked(&mut self, walk: QueryId, found: GetClosestPeersResult, now: Instant) {
        let Some(mut round) = self.walks.remove(&walk) else { return };
        let (peers, is_whole) = match found {
            Ok(GetClosestPeersOk { peers, .. }) => (peers, true),
            Err(GetClosestPeersError::Timeout { peers, .. }) => (peers, false),
        };
        let nodes: Vec<NodeId> = peers.iter().filter_map(|peer| node_of(&peer.peer_id)).collect();
        match round.open.first() {
            Some(digest) if !nodes.is_empty() => {
                self.regions.learn(of_blob(digest), nodes, is_whole, now);
                self.aim(round, now);
            }
            _ => {
                for digest in round.open.drain(..) {
                    self.announcements.again(&digest, RETRY_TIME, now);
                }
                self.tell(round.aimed);
            }
        }
    }

    /// Tells each keeper of all blobs whose records it is to keep.
    fn tell(&mut self, aimed: Vec<(Digest, Vec<NodeId>)>) {
        let mut of_each = BTreeMap::<NodeId, Vec<usize>>::new();
        for (number, (_, keepers)) in aimed.iter().enumerate() {
            for keeper in keepers {
                of_each.entry(*keeper).or_default().push(number);
            }
        }
        tracing::debug!(blobs = aimed.len(), nodes = of_each.len(), "tells the network what it holds");
        // Whoever a walk has found is connected, or has gone since.
        let of_each: Vec<_> = of_each
            .into_iter()
            .filter_map(|(keeper, numbers)| Some((self.neighbours.get(&keeper)?, numbers)))
            .collect();
        let commands = self.to_self.clone();
        self.tasks.spawn(async move {
            let aimed = &aimed;
            let told = stream::iter(of_each)
                .map(|(keeper, numbers)| async move {
                    let mut told = Vec::new();
                    for some in numbers.chunks(MAX_WANT) {
                        let digests =
                            some.iter().filter_map(|number| aimed.get(*number)).map(|(digest, _)| *digest);
                        let question = Question::Provide(List::first_of(digests));
                        match timeout(REPLY_TIME, keeper.ask(question)).await {
                            Ok(Some(Answer::Provided)) => told.extend_from_slice(some),
                            _ => break,
                        }
                    }
                    told
                })
                .buffer_unordered(TOLD_AT_ONCE);
            let mut counts = vec![0; aimed.len()];
            let mut told = std::pin::pin!(told);
            while let Some(numbers) = told.next().await {
                numbers.into_iter().for_each(|number| counts[number] += 1);
            }
            // Most of them are enough: whoever looks for a record asks them all.
            let told = aimed
                .iter()
                .zip(counts)
                .map(|((digest, keepers), count)| (*digest, 2 * count >= keepers.len()));
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Told(told.collect())).await;
            }
        });
    }

    /// So many of the keepers of each have been told of it, or not.
    pub(super) fn on_told(&mut self, told: Vec<(Digest, bool)>, now: Instant) {
        for (digest, is_told) in told {
            if !is_told {
                tracing::debug!(%digest, "too few of those who keep its record could be told");
                self.regions.forget(&of_blob(&digest));
            }
            self.announcements.again(&digest, if is_told { RENEWAL_TIME } else { RETRY_TIME }, now);
        }
        self.announcements.end();
    }

    /// A neighbour holds these, and this node is to tell that to whoever looks for them.
    pub(super) fn keep(&mut self, provider: &NodeId, digests: &[Digest], now: Instant) {
        let (Some(entry), Some(peer)) = (self.neighbours.get(provider), peer_of(provider)) else { return };
        let addresses = entry.host.addresses(&entry.ports);
        for digest in digests {
            let (key, addresses) = (announcements::key(digest), addresses.clone());
            let record = ProviderRecord { key, provider: peer, expires: Some(now + RECORD_TIME), addresses };
            if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
                tracing::debug!(%digest, %error, "a provider record is not kept");
            }
        }
    }

    pub(super) fn withdraw(&mut self, digest: &Digest) {
        self.announcements.remove(digest);
        self.provide_no_more(digest);
    }

    fn provide_no_more(&mut self, digest: &Digest) {
        let me = *self.swarm.local_peer_id();
        self.swarm.behaviour_mut().kad.store_mut().remove_provider(&announcements::key(digest), &me);
    }
}
