//! Telling the network what this node holds, or leaving that to others of the site who hold it too.

use std::time::{Duration, Instant};

use futures::future::join_all;
use libp2p::kad::QueryId;
use wherry_proto::{Digest, NodeId};

use super::actor::{Actor, Command};
use super::announcements::{self, ANNOUNCERS, LOOK_TIME, RENEWAL_TIME, RETRY_TIME, announcers};
use super::neighbours::Entry;
use super::wants::offer;

impl Actor {
    pub(super) fn add_announcement(&mut self, digest: Digest, due: Instant) {
        if !self.announcements.add(digest, due) {
            tracing::warn!(%digest, "too many blobs are announced: this one is held in silence");
        }
    }

    /// Announces what is due; says when to look again.
    pub(super) fn announce(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let digest = match self.announcements.next(now) {
                Ok(digest) => digest,
                Err(next) => return next,
            };
            let me = &self.doorkeeper.certificate.node;
            match announcers(&digest, me, self.neighbours.near().into_iter()) {
                Some(others) => self.ask_whether_others_do(digest, others),
                None => self.provide(digest, now),
            }
        }
    }

    fn ask_whether_others_do(&self, digest: Digest, others: [NodeId; ANNOUNCERS]) {
        let others: Vec<Entry> = others.iter().filter_map(|node| self.neighbours.get(node)).collect();
        let commands = self.to_self.clone();
        self.tasks.spawn(async move {
            let offers: Vec<_> = others.into_iter().map(|other| offer(other, digest)).collect();
            let command = match join_all(offers).await.into_iter().collect::<Option<Vec<_>>>() {
                Some(offers) if offers.len() == ANNOUNCERS => {
                    let is_coming = offers.iter().any(|offer| offer.arriving.is_some());
                    let pause = if is_coming { RETRY_TIME } else { LOOK_TIME };
                    Command::LeaveToOthers { digest, pause }
                }
                _ => Command::Provide(digest),
            };
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(command).await;
            }
        });
    }

    pub(super) fn provide(&mut self, digest: Digest, now: Instant) {
        if !self.announcements.has(&digest) {
            // It was withdrawn while others were asked.
            return self.announcements.done(&digest, RETRY_TIME, now);
        }
        match self.swarm.behaviour_mut().kad.start_providing(announcements::key(&digest)) {
            Ok(query) => {
                tracing::debug!(%digest, "tells the network that it holds a blob");
                self.announcing.insert(query, digest);
            }
            Err(error) => {
                tracing::debug!(%digest, %error, "cannot announce");
                self.announcements.done(&digest, RETRY_TIME, now);
            }
        }
    }

    pub(super) fn on_provided(&mut self, query: QueryId, success: bool, now: Instant) {
        if let Some(digest) = self.announcing.remove(&query) {
            self.announcements.done(&digest, if success { RENEWAL_TIME } else { RETRY_TIME }, now);
        }
    }

    /// What was told before lapses.
    pub(super) fn leave_to_others(&mut self, digest: Digest, pause: Duration, now: Instant) {
        self.swarm.behaviour_mut().kad.stop_providing(&announcements::key(&digest));
        self.announcements.done(&digest, pause, now);
    }

    pub(super) fn withdraw(&mut self, digest: &Digest) {
        self.announcements.remove(digest);
        self.swarm.behaviour_mut().kad.stop_providing(&announcements::key(digest));
    }
}
