//! Which blobs to announce, and when again: a plan without a network or a clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use libp2p::kad::RecordKey;
use wherry_proto::{Algorithm, Digest, NodeId, rank};

/// How many blobs one node announces; it holds others in silence, and answers for them when asked.
pub const MAX_ANNOUNCED: usize = 65_536;

/// How many nodes of a site tell the network of a blob that more of them hold: each of these is enough for others to find
/// the site, and one that is gone is missed by nobody. Were it all, a site would send as many times more, over thin links
/// too.
pub const ANNOUNCERS: usize = 2;

/// After what time an announcement is renewed: records live twice as long, and a little. A thousand blobs at a site are two
/// thousand walks in that time, each of some 25 messages of up to 2 kB with what comes back: 29 kB a second over its uplink.
pub const RENEWAL_TIME: Duration = Duration::from_secs(58 * 60);

/// How long the network is not told of what has just come: meanwhile the rest of the image comes, over a link that is as thin as
/// the one on which it would be told, and neighbours are asked directly anyway. By then all of a site have it that get it at once,
/// and leave it to the [`ANNOUNCERS`].
pub const ANNOUNCE_AFTER: Duration = Duration::from_secs(60);

/// After what time a node that leaves a blob to others looks again whether these are there and hold it, which takes a question to
/// each of them; and how often, at most, all is told anew since the network is [reached again](Announcements::renew).
pub(super) const LOOK_TIME: Duration = Duration::from_secs(15 * 60);

/// How many announcements are on their way at once.
pub const MAX_ANNOUNCING: usize = 8;

/// How soon one announcement follows another: at most twenty a second.
const PACE: Duration = Duration::from_millis(50);

/// How long to wait with one that could not be made, or that is left to nodes that do not hold the blob yet.
pub(super) const RETRY_TIME: Duration = Duration::from_secs(30);

/// Under which key Kademlia keeps who provides a blob: the digest as a multihash.
pub(super) fn key(digest: &Digest) -> RecordKey {
    let code = match digest.algorithm() {
        Algorithm::Sha256 => 0x12,
        Algorithm::Sha512 => 0x13,
    };
    let bytes = digest.as_bytes();
    // A digest has 32 or 64 bytes.
    let mut multihash = vec![code, bytes.len() as u8];
    multihash.extend_from_slice(bytes);
    RecordKey::from(multihash)
}

/// To which nodes of its site `me` leaves it to announce a blob, if they hold it: those that come first in rank. `None` if
/// it is one of these itself.
pub(super) fn announcers(
    digest: &Digest,
    me: &NodeId,
    near: impl Iterator<Item = NodeId>,
) -> Option<[NodeId; ANNOUNCERS]> {
    let own = rank(digest, me);
    let mut before: Vec<_> =
        near.map(|node| (rank(digest, &node), node)).filter(|(rank, _)| *rank > own).collect();
    before.sort_unstable_by(|one, two| two.cmp(one));
    before.iter().map(|(_, node)| *node).take(ANNOUNCERS).collect::<Vec<_>>().try_into().ok()
}

/// The plan.
#[derive(Default)]
pub(super) struct Announcements {
    due: HashMap<Digest, Option<Instant>>,
    order: BTreeSet<(Instant, Digest)>,
    under_way: usize,
    paced: Option<Instant>,
    renewed: Option<Instant>,
}

impl Announcements {
    /// Announces a blob from `due` on; `false` if there are too many.
    pub(super) fn add(&mut self, digest: Digest, due: Instant) -> bool {
        if self.due.contains_key(&digest) {
            return true;
        }
        if self.due.len() >= MAX_ANNOUNCED {
            return false;
        }
        self.plan(digest, due);
        true
    }

    /// Nobody outside the site was reached for a while, and whatever was told then has not left it: all is due within
    /// [`LOOK_TIME`], so that a thin link that is there again is not filled by it. Links that come and go count once in that time.
    pub(super) fn renew(&mut self, now: Instant) {
        let from = self.renewed.map_or(now, |at| now.max(at + LOOK_TIME));
        let soon = |digest: &Digest| {
            let share = digest.as_bytes().first().copied().map_or(0, u32::from);
            from + LOOK_TIME * share / u32::from(u8::MAX)
        };
        let later: Vec<_> = self.order.iter().filter(|(due, digest)| *due > soon(digest)).copied().collect();
        if !later.is_empty() && from == now {
            self.renewed = Some(now);
        }
        for (due, digest) in later {
            self.order.remove(&(due, digest));
            self.plan(digest, soon(&digest));
        }
    }

    /// Renews a blob's announcement no more.
    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(Some(due)) = self.due.remove(digest) {
            self.order.remove(&(due, *digest));
        }
    }

    /// Whether a blob is announced, or is to be.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.due.contains_key(digest)
    }

    /// Every blob that is announced, at most [`MAX_ANNOUNCED`].
    pub(super) fn all(&self) -> Vec<Digest> {
        self.due.keys().copied().collect()
    }

    /// The next blob to announce now or, if there is none, when to ask again.
    pub(super) fn next(&mut self, now: Instant) -> Result<Digest, Option<Instant>> {
        if self.under_way >= MAX_ANNOUNCING {
            return Err(None);
        }
        let Some((due, digest)) = self.order.first().copied() else { return Err(None) };
        let from = self.paced.map_or(due, |paced| due.max(paced));
        if from > now {
            return Err(Some(from));
        }
        self.order.pop_first();
        self.due.insert(digest, None);
        self.under_way += 1;
        self.paced = Some(now + PACE);
        Ok(digest)
    }

    /// An announcement is done, or left to others; the next one is due after `pause`.
    pub(super) fn done(&mut self, digest: &Digest, pause: Duration, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        // It may have been withdrawn meanwhile and be planned anew.
        if let Some(None) = self.due.get(digest) {
            self.plan(*digest, now + pause);
        }
    }

    fn plan(&mut self, digest: Digest, due: Instant) {
        self.due.insert(digest, Some(due));
        self.order.insert((due, digest));
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    fn digests(count: u32) -> impl Iterator<Item = Digest> {
        (0..count).map(|number| Digest::sha256(&number.to_be_bytes()))
    }

    #[test]
    fn many_blobs_are_announced_at_a_pace_and_few_at_once() {
        let start = Instant::now();
        let mut plan = Announcements::default();
        digests(100).for_each(|digest| assert!(plan.add(digest, start)));
        let mut now = start;
        for _ in 0..MAX_ANNOUNCING {
            plan.next(now).unwrap();
            assert_eq!(
                plan.next(now),
                if plan.under_way == MAX_ANNOUNCING { Err(None) } else { Err(Some(now + PACE)) }
            );
            now += PACE;
        }
        assert_eq!(plan.next(now), Err(None));
    }

    #[test]
    fn an_announcement_is_renewed_until_it_is_withdrawn() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let [digest] = digests(1).collect::<Vec<_>>()[..] else { unreachable!() };
        plan.add(digest, now);
        assert_eq!(plan.next(now), Ok(digest));
        plan.done(&digest, RENEWAL_TIME, now);
        assert_eq!(plan.next(now + PACE), Err(Some(now + RENEWAL_TIME)));
        assert_eq!(plan.next(now + RENEWAL_TIME), Ok(digest));
        plan.remove(&digest);
        plan.done(&digest, RENEWAL_TIME, now);
        assert_eq!(plan.next(now + 2 * RENEWAL_TIME), Err(None));
    }

    #[test]
    fn what_is_to_be_announced_later_holds_up_nothing_that_is_due() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let [later, soon] = digests(2).collect::<Vec<_>>()[..] else { unreachable!() };
        plan.add(later, now + ANNOUNCE_AFTER);
        assert_eq!(plan.next(now), Err(Some(now + ANNOUNCE_AFTER)));
        plan.add(soon, now);
        assert_eq!(plan.next(now), Ok(soon));
        assert_eq!(plan.next(now + ANNOUNCE_AFTER), Ok(later));
    }

    #[test]
    fn all_is_told_by_and_by_once_the_network_is_reached_again_but_not_whenever_a_link_comes_back() {
        let start = Instant::now();
        let mut plan = Announcements::default();
        let all: Vec<Digest> = digests(8).collect();
        // Nothing has been told: whoever is met first makes no difference.
        plan.renew(start);
        let mut now = start;
        for digest in &all {
            plan.add(*digest, now);
            assert_eq!(plan.next(now), Ok(*digest));
            plan.done(digest, RENEWAL_TIME, now);
            now += PACE;
        }
        let due = |plan: &Announcements| plan.order.iter().map(|(due, _)| *due).collect::<Vec<_>>();
        plan.renew(now);
        let first = due(&plan);
        assert!(first.iter().all(|due| (now..=now + LOOK_TIME).contains(due)));
        assert!(*first.last().unwrap() > first[0] + LOOK_TIME / 4, "it is spread");
        // A link that comes back soon once more has it told when that time is over, however often it does.
        for digest in &all {
            plan.remove(digest);
            plan.add(*digest, now + 3 * LOOK_TIME);
        }
        for _ in 0..3 {
            plan.renew(now + LOOK_TIME / 2);
            let again = due(&plan);
            assert!(again.iter().all(|due| (now + LOOK_TIME..=now + 2 * LOOK_TIME).contains(due)));
        }
    }

    #[test]
    fn what_was_withdrawn_and_comes_back_while_it_is_announced_is_announced_again_and_withdrawn_for_good() {
        let mut now = Instant::now();
        let mut plan = Announcements::default();
        let [digest] = digests(1).collect::<Vec<_>>()[..] else { unreachable!() };
        plan.add(digest, now);
        assert_eq!(plan.next(now), Ok(digest));
        plan.remove(&digest);
        plan.add(digest, now);
        // That was the first one, which told others before it was withdrawn.
        plan.done(&digest, RENEWAL_TIME, now);
        now += PACE;
        assert_eq!(plan.next(now), Ok(digest));
        plan.done(&digest, RENEWAL_TIME, now);
        plan.remove(&digest);
        assert_eq!(plan.next(now + 2 * RENEWAL_TIME), Err(None));
    }

    #[test]
    fn two_nodes_of_a_site_announce_a_blob_and_others_leave_it_to_them_be_the_site_large_or_small() {
        for count in [1, 3, 4, 40] {
            let nodes: Vec<NodeId> = (0..count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
            for digest in digests(20) {
                let left = nodes.iter().filter_map(|me| {
                    announcers(&digest, me, nodes.iter().copied().filter(|node| node != me))
                });
                let left: Vec<_> = left.collect();
                assert_eq!(left.len(), nodes.len().saturating_sub(ANNOUNCERS));
                assert!(left.windows(2).all(|pair| pair[0] == pair[1]));
            }
        }
    }

    #[test]
    fn the_number_of_announced_blobs_is_bounded() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let taken = digests(MAX_ANNOUNCED as u32 + 5).filter(|digest| plan.add(*digest, now)).count();
        assert_eq!(taken, MAX_ANNOUNCED);
    }

    #[test]
    fn the_key_is_the_multihash() {
        let digest = Digest::sha256(b"");
        assert_eq!(key(&digest).as_ref()[..2], [0x12, 32]);
        assert_eq!(&key(&digest).as_ref()[2..], digest.as_bytes());
    }
}
