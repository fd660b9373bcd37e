//! Telling the network what this node holds, or leaving that to others of the site who hold it too.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use libp2p::Multiaddr;
use libp2p::kad::store::RecordStore as _;
use libp2p::kad::{
    GetClosestPeersError, GetClosestPeersOk, GetClosestPeersResult, ProviderRecord, QueryId, QueryStats,
};
use tokio::time::timeout;
use wherry_proto::{Answer, Digest, List, MAX_ADDRESS_LEN, MAX_WANT, NodeId, Provide, Question};

use super::actor::{Actor, Command};
use super::aiming::Aimed;
use super::announcements::{self, ANNOUNCERS, Outcome, announcers};
use super::ask::REPLY_TIME;
use super::behaviour::RECORD_TIME;
use super::identity::{node_of, peer_of};
use super::neighbours::Entry;
use super::regions::{FOUND, Walked};
use super::wants::all_offers;

/// How many nodes are told at a time of what is announced together.
const TOLD_AT_ONCE: usize = 8;

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
            let said = join_all(others.iter().map(|other| all_offers(other, &together))).await;
            let (mut own, mut left) = (Vec::new(), Vec::new());
            for (number, digest) in together.into_iter().enumerate() {
                let of_each: Vec<_> = said.iter().filter_map(|offers| offers.get(number)).collect();
                if of_each.iter().any(|offer| offer.is_none()) {
                    own.push(digest);
                } else if of_each.len() < ANNOUNCERS {
                    // Whoever does not answer is as good as gone, and is none of them then.
                    left.push((digest, Outcome::Failed));
                } else {
                    let is_coming = of_each.into_iter().flatten().any(|offer| offer.arriving.is_some());
                    left.push((digest, if is_coming { Outcome::Coming } else { Outcome::Left }));
                }
            }
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Provide { own, left }).await;
            }
        });
    }

    /// What was told before of those that others hold lapses.
    pub(super) fn leave_to_others(&mut self, left: Vec<(Digest, Outcome)>, now: Instant) {
        for (digest, outcome) in left {
            if outcome != Outcome::Failed {
                self.provide_no_more(&digest);
            }
            self.announcements.again(&digest, outcome, now);
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
        if let Some(aimed) = self.aiming.add(open, now) {
            self.tell(aimed);
        }
        self.walk();
    }

    /// Begins a walk if one is needed and none is under way.
    fn walk(&mut self) {
        if let Some(digest) = self.aiming.next_walk() {
            let key = announcements::key(&digest).to_vec();
            self.walk = Some(self.swarm.behaviour_mut().kad.get_n_closest_peers(key, FOUND));
        }
    }

    /// A walk is over.
    pub(super) fn on_walked(
        &mut self,
        query: QueryId,
        found: GetClosestPeersResult,
        stats: &QueryStats,
        now: Instant,
    ) {
        if self.walk.take_if(|walk| *walk == query).is_none() {
            return;
        }
        let all_answered = stats.num_failures() == 0 && stats.num_pending() == 0;
        let (peers, walked) = match found {
            Ok(GetClosestPeersOk { peers, .. }) if all_answered => (peers, Walked::Whole),
            Ok(GetClosestPeersOk { peers, .. }) => (peers, Walked::PastSome),
            Err(GetClosestPeersError::Timeout { peers, .. }) => (peers, Walked::CutShort),
        };
        let nodes = peers.iter().filter_map(|peer| node_of(&peer.peer_id)).collect();
        let ready = self.aiming.walked(nodes, walked, |digest| self.announcements.has(digest), now);
        for digest in &ready.failed {
            self.announcements.again(digest, Outcome::Failed, now);
        }
        ready.rounds.into_iter().for_each(|aimed| self.tell(aimed));
        self.walk();
    }

    /// Tells each keeper of all blobs whose records it is to keep.
    fn tell(&mut self, aimed: Vec<Aimed>) {
        let mut of_each = BTreeMap::<NodeId, Vec<usize>>::new();
        for (number, Aimed { keepers, .. }) in aimed.iter().enumerate() {
            for keeper in keepers {
                of_each.entry(*keeper).or_default().push(number);
            }
        }
        tracing::debug!(blobs = aimed.len(), nodes = of_each.len(), "tells the network what it holds");
        // Whoever a walk has found was connected then; those that have gone since are not told.
        let of_each: Vec<_> = of_each
            .into_iter()
            .filter_map(|(keeper, numbers)| Some((self.neighbours.get(&keeper)?, numbers)))
            .collect();
        let addresses = self.swarm.external_addresses().filter(|address| address.len() <= MAX_ADDRESS_LEN);
        let addresses: Vec<_> = addresses.map(|address| List::first_of(address.to_vec())).collect();
        let commands = self.to_self.clone();
        self.tasks.spawn(async move {
            let (aimed, addresses) = (&aimed, &addresses);
            let mut told = stream::iter(of_each)
                .map(|(keeper, numbers)| async move {
                    let mut told = Vec::new();
                    for some in numbers.chunks(MAX_WANT) {
                        let blobs = some.iter().filter_map(|number| aimed.get(*number)).map(|it| it.digest);
                        let provide = Provide {
                            blobs: List::first_of(blobs),
                            addresses: List::first_of(addresses.iter().cloned()),
                        };
                        match timeout(REPLY_TIME, keeper.ask(Question::Provide(provide))).await {
                            Ok(Some(Answer::Provided)) => told.extend_from_slice(some),
                            _ => break,
                        }
                    }
                    told
                })
                .buffer_unordered(TOLD_AT_ONCE)
                .boxed();
            let mut counts = vec![0; aimed.len()];
            while let Some(numbers) = told.next().await {
                numbers.into_iter().for_each(|number| counts[number] += 1);
            }
            // Half of them are enough: whoever looks for a record asks several.
            let told = aimed.iter().zip(counts).map(|(Aimed { digest, keepers, walked }, count)| {
                let outcome = match walked {
                    _ if 2 * count < keepers.len() => Outcome::Failed,
                    Walked::CutShort => Outcome::ToldSome,
                    Walked::Whole | Walked::PastSome => Outcome::Told,
                };
                (*digest, outcome)
            });
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Told(told.collect())).await;
            }
        });
    }

    /// Blobs that were announced together have been, as far as that was possible.
    pub(super) fn on_told(&mut self, told: Vec<(Digest, Outcome)>, now: Instant) {
        for (digest, outcome) in told {
            if outcome == Outcome::Failed {
                tracing::debug!(%digest, "too few of those who keep its record could be told");
                self.aiming.missed(&digest);
            }
            self.announcements.again(&digest, outcome, now);
        }
        self.announcements.end();
    }

    /// A neighbour holds these, and this node is to tell that to whoever looks for them.
    pub(super) fn keep(&mut self, provider: &NodeId, provide: &Provide, now: Instant) {
        let (Some(entry), Some(peer)) = (self.neighbours.get(provider), peer_of(provider)) else { return };
        // Where it is seen from here, and what it says itself, which others may reach and this node may not.
        let mut addresses = entry.host.addresses(&entry.ports);
        for told in provide.addresses.iter() {
            match Multiaddr::try_from(told.to_vec()) {
                Ok(address) if !addresses.contains(&address) => addresses.push(address),
                _ => {}
            }
        }
        for digest in provide.blobs.iter() {
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
