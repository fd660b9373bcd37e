//! Which blobs to announce, and when again: a plan without a network or a clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use libp2p::kad::RecordKey;
use wherry_proto::{Algorithm, Digest, NodeId, rank};

use super::regions::of_blob;

/// How many blobs one node announces; it holds others in silence, and answers for them when asked.
pub const MAX_ANNOUNCED: usize = 65_536;

/// How many nodes of a site tell the network of a blob that more of them hold: each of these is enough for others to find
/// the site, and one that is gone is missed by nobody. Were it all, a site would send as many times more, over thin links
/// too.
pub const ANNOUNCERS: usize = 2;

/// In how many groups blobs are announced, by the first bits of their keys. Those of one group are announced by the same nodes of
/// a site, so that a walk and a message serve many of them; more groups share what others then ask of these nodes with more of the
/// site, and take a walk each at least.
const GROUPS: usize = 8;

/// How many blobs of a group are announced together.
const MAX_TOGETHER: usize = 1024;

/// After what time an announcement is renewed, or somewhat earlier with others: records live twice as long, and a little.
pub const RENEWAL_TIME: Duration = Duration::from_secs(58 * 60);

/// How long the network is not told of what has just come: meanwhile the rest of the image comes, over a link that is as thin as
/// the one on which it would be told, and neighbours are asked directly anyway. By then all of a site have it that get it at once,
/// and leave it to the [`ANNOUNCERS`].
pub const ANNOUNCE_AFTER: Duration = Duration::from_secs(60);

/// After what time a node that leaves a blob to others looks again whether these are there and hold it, and what was told to some
/// alone is told again; how often, at most, all is told anew since the network is [reached again](Announcements::renew); and what
/// is to be renewed within this time goes along with what is due now.
const LOOK_TIME: Duration = Duration::from_secs(15 * 60);

/// Of what is not to be renewed only what is due within this time goes along.
const SOON: Duration = Duration::from_secs(15);

/// How many times blobs of some group are announced at once.
pub const MAX_ANNOUNCING: usize = 8;

/// How soon one group follows another: at most twenty a second.
const PACE: Duration = Duration::from_millis(50);

/// How long to wait with one that could not be made, doubled with each further failure up to [`LOOK_TIME`], or that is left to nodes
/// that do not hold the blob yet.
const RETRY_TIME: Duration = Duration::from_secs(30);

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

/// The group of a blob: keys of one begin alike, so that few nodes keep the records of many of them.
fn group(digest: &Digest) -> usize {
    usize::from(of_blob(digest)[0]) * GROUPS / (usize::from(u8::MAX) + 1)
}

/// To which nodes of its site `me` leaves it to announce a blob, if they hold it: those that come first in rank. `None` if
/// it is one of these itself.
pub fn announcers(
    digest: &Digest,
    me: &NodeId,
    near: impl Iterator<Item = NodeId>,
) -> Option<[NodeId; ANNOUNCERS]> {
    let group = Digest::sha256(&[group(digest) as u8]);
    let own = rank(&group, me);
    let mut before: Vec<_> =
        near.map(|node| (rank(&group, &node), node)).filter(|(rank, _)| *rank > own).collect();
    before.sort_unstable_by(|one, two| two.cmp(one));
    before.iter().map(|(_, node)| *node).take(ANNOUNCERS).collect::<Vec<_>>().try_into().ok()
}

/// The plan.
#[derive(Default)]
pub(super) struct Announcements {
    planned: HashMap<Digest, Planned>,
    // Of each group, what is due when.
    due: [BTreeSet<(Instant, Digest)>; GROUPS],
    under_way: usize,
    paced: Option<Instant>,
    renewed: Option<Instant>,
}

/// One blob.
struct Planned {
    group: usize,
    // `None` while it is under way.
    due: Option<Instant>,
    // When it is due at the latest after what is under way, since the network was reached again meanwhile.
    latest: Option<Instant>,
    // What came of it the last time.
    last: Option<Outcome>,
    failures: u32,
}

/// What came of announcing a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Half of those who keep its record or more have been told.
    Told,
    /// The same, but there may be others who should keep it.
    ToldSome,
    /// It is left to others, who hold it.
    Left,
    /// It is left to others, on whose way it is.
    Coming,
    /// Too few could be told, or those to whom it might be left did not answer.
    Failed,
}

impl Planned {
    fn new(group: usize, due: Instant) -> Self {
        Self { group, due: Some(due), latest: None, last: None, failures: 0 }
    }

    /// When it is due again.
    fn again(&mut self, outcome: Outcome, now: Instant) -> Instant {
        self.failures = if outcome == Outcome::Failed { self.failures.saturating_add(1) } else { 0 };
        let pause = match outcome {
            Outcome::Told => RENEWAL_TIME,
            Outcome::ToldSome | Outcome::Left => LOOK_TIME,
            Outcome::Coming => RETRY_TIME,
            Outcome::Failed => {
                let doubled = 2_u32.saturating_pow(self.failures.saturating_sub(1));
                RETRY_TIME.saturating_mul(doubled).min(LOOK_TIME)
            }
        };
        let due = self.latest.take().map_or(now + pause, |latest| latest.min(now + pause));
        (self.due, self.last) = (Some(due), Some(outcome));
        due
    }
}

impl Announcements {
    /// Announces a blob from `due` on; `false` if there are too many.
    pub(super) fn add(&mut self, digest: Digest, due: Instant) -> bool {
        if self.has(&digest) {
            return true;
        }
        if self.planned.len() >= MAX_ANNOUNCED {
            return false;
        }
        let group = group(&digest);
        self.planned.insert(digest, Planned::new(group, due));
        self.due[group].insert((due, digest));
        true
    }

    /// Nobody outside the site was reached for a while, and whatever was told then has not left it: all is due within
    /// [`LOOK_TIME`], one group after the other, so that a thin link that is there again is not filled by it. Links that come and
    /// go count once in that time.
    pub(super) fn renew(&mut self, now: Instant) {
        let from = self.renewed.map_or(now, |at| now.max(at + LOOK_TIME));
        let soon = |group| from + LOOK_TIME * group / GROUPS as u32;
        let mut any = false;
        for planned in self.planned.values_mut().filter(|planned| planned.due.is_none()) {
            planned.latest = Some(soon(planned.group as u32));
            any = true;
        }
        for (number, group) in (0..).zip(&mut self.due) {
            let soon = soon(number);
            // The first digest that is due later than that.
            let later = group.iter().find(|(due, _)| *due > soon).copied();
            let later = later.map(|later| group.split_off(&later)).unwrap_or_default();
            any |= !later.is_empty();
            for (_, digest) in later {
                group.insert((soon, digest));
                if let Some(planned) = self.planned.get_mut(&digest) {
                    planned.due = Some(soon);
                }
            }
        }
        if any && from == now {
            self.renewed = Some(now);
        }
    }

    /// Renews a blob's announcement no more.
    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(Planned { group, due: Some(due), .. }) = self.planned.remove(digest) {
            self.due[group].remove(&(due, *digest));
        }
    }

    /// Whether a blob is announced, or is to be.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.planned.contains_key(digest)
    }

    /// Every blob that is announced, at most [`MAX_ANNOUNCED`].
    pub(super) fn all(&self) -> Vec<Digest> {
        self.planned.keys().copied().collect()
    }

    /// The blobs to announce together now, which are of one group and under way until [`again`](Self::again), as they all are until
    /// [`end`](Self::end); or, if there are none, when to ask again.
    pub(super) fn next(&mut self, now: Instant) -> Result<Vec<Digest>, Option<Instant>> {
        if self.under_way >= MAX_ANNOUNCING {
            return Err(None);
        }
        let first = |group: &BTreeSet<(Instant, Digest)>| group.first().map(|(due, _)| *due);
        let firsts = self.due.iter().enumerate().filter_map(|(number, group)| Some((first(group)?, number)));
        let Some((due, group)) = firsts.min() else { return Err(None) };
        let from = self.paced.map_or(due, |paced| due.max(paced));
        if from > now {
            return Err(Some(from));
        }
        let is_told =
            |digest: &Digest| self.planned.get(digest).is_some_and(|known| known.last == Some(Outcome::Told));
        let goes_along = |(due, digest): &&(Instant, Digest)| {
            *due <= now + SOON || (*due <= now + LOOK_TIME && is_told(digest))
        };
        let together: Vec<_> =
            self.due[group].iter().filter(goes_along).take(MAX_TOGETHER).copied().collect();
        for (due, digest) in &together {
            self.due[group].remove(&(*due, *digest));
            if let Some(planned) = self.planned.get_mut(digest) {
                planned.due = None;
            }
        }
        self.under_way += 1;
        self.paced = Some(now + PACE);
        Ok(together.into_iter().map(|(_, digest)| digest).collect())
    }

    /// What came of a blob's announcement, which says when it is due again.
    pub(super) fn again(&mut self, digest: &Digest, outcome: Outcome, now: Instant) {
        // It may have been withdrawn meanwhile and be planned anew.
        if let Some(planned) = self.planned.get_mut(digest)
            && planned.due.is_none()
        {
            let due = planned.again(outcome, now);
            self.due[planned.group].insert((due, *digest));
        }
    }

    /// What was begun by [`next`](Self::next) is done.
    pub(super) fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    /// Blobs of the first group.
    fn alike(count: usize) -> Vec<Digest> {
        digests().filter(|digest| group(digest) == 0).take(count).collect()
    }

    /// A blob of each group.
    fn one_of_each() -> Vec<Digest> {
        (0..GROUPS).map(|number| digests().find(|digest| group(digest) == number).unwrap()).collect()
    }

    fn digests() -> impl Iterator<Item = Digest> {
        (0_u32..).map(|number| Digest::sha256(&number.to_be_bytes()))
    }

    fn done(plan: &mut Announcements, digests: &[Digest], now: Instant) {
        digests.iter().for_each(|digest| plan.again(digest, Outcome::Told, now));
        plan.end();
    }

    #[test]
    fn blobs_of_a_group_are_announced_together_and_groups_at_a_pace() {
        let mut now = Instant::now();
        let mut plan = Announcements::default();
        let all: BTreeSet<Digest> = digests().take(1000).collect();
        all.iter().for_each(|digest| assert!(plan.add(*digest, now)));
        let mut announced = BTreeSet::new();
        for _ in 0..GROUPS {
            let together = plan.next(now).unwrap();
            assert!(together.iter().all(|digest| group(digest) == group(&together[0])));
            announced.extend(together);
            assert!(plan.next(now).is_err());
            now += PACE;
        }
        assert_eq!(announced, all);
    }

    #[test]
    fn no_more_is_under_way_than_may_be() {
        let mut now = Instant::now();
        let mut plan = Announcements::default();
        for digest in digests().take(2 * MAX_ANNOUNCING * MAX_TOGETHER) {
            plan.add(digest, now);
        }
        let mut begun = Vec::new();
        for _ in 0..MAX_ANNOUNCING {
            begun.push(plan.next(now).unwrap());
            assert!(begun.iter().all(|together| together.len() <= MAX_TOGETHER));
            now += PACE;
        }
        assert_eq!(plan.next(now), Err(None));
        done(&mut plan, &begun[0], now);
        assert!(plan.next(now).is_ok());
    }

    #[test]
    fn an_announcement_is_renewed_until_it_is_withdrawn() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let [digest] = alike(1)[..] else { unreachable!() };
        plan.add(digest, now);
        assert_eq!(plan.next(now), Ok(vec![digest]));
        done(&mut plan, &[digest], now);
        assert_eq!(plan.next(now + PACE), Err(Some(now + RENEWAL_TIME)));
        assert_eq!(plan.next(now + RENEWAL_TIME), Ok(vec![digest]));
        plan.remove(&digest);
        done(&mut plan, &[digest], now);
        assert_eq!(plan.next(now + 2 * RENEWAL_TIME), Err(None));
    }

    #[test]
    fn what_is_to_be_announced_later_holds_up_nothing_that_is_due_and_does_not_go_along() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let [later, soon] = alike(2)[..] else { unreachable!() };
        plan.add(later, now + ANNOUNCE_AFTER);
        assert_eq!(plan.next(now), Err(Some(now + ANNOUNCE_AFTER)));
        plan.add(soon, now);
        assert_eq!(plan.next(now), Ok(vec![soon]));
        assert_eq!(plan.next(now + ANNOUNCE_AFTER), Ok(vec![later]));
    }

    #[test]
    fn what_was_told_at_other_times_is_renewed_together() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let mut plan = Announcements::default();
        let all = alike(10);
        for (number, digest) in (0..).zip(&all) {
            let now = start + minute * number;
            plan.add(*digest, now);
            assert_eq!(plan.next(now), Ok(vec![*digest]));
            done(&mut plan, &[*digest], now);
        }
        assert_eq!(plan.next(start + RENEWAL_TIME), Ok(all));
    }

    #[test]
    fn all_is_told_by_and_by_once_the_network_is_reached_again_but_not_whenever_a_link_comes_back() {
        let start = Instant::now();
        let mut plan = Announcements::default();
        let all = one_of_each();
        // Nothing has been told: whoever is met first makes no difference.
        plan.renew(start);
        let mut now = start;
        for digest in &all {
            plan.add(*digest, now);
            assert_eq!(plan.next(now), Ok(vec![*digest]));
            done(&mut plan, &[*digest], now);
            now += PACE;
        }
        let due = |plan: &Announcements| {
            let mut due: Vec<_> = plan.due.iter().flatten().map(|(due, _)| *due).collect();
            due.sort_unstable();
            due
        };
        plan.renew(now);
        let first = due(&plan);
        assert!(first.iter().all(|due| (now..=now + LOOK_TIME).contains(due)));
        assert!(*first.last().unwrap() > first[0] + LOOK_TIME / 2, "it is spread");
        // A link that comes back soon once more has it told when that time is over, however often it does.
        for digest in &all {
            plan.remove(digest);
            plan.add(*digest, now + 3 * LOOK_TIME);
        }
        for _ in 0..3 {
            plan.renew(now + LOOK_TIME / 2);
            let again = due(&plan);
            assert_eq!(again.len(), all.len());
            assert!(again.iter().all(|due| (now + LOOK_TIME..=now + 2 * LOOK_TIME).contains(due)));
        }
    }

    #[test]
    fn what_is_under_way_when_the_network_is_reached_again_is_told_once_more_before_long() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let [digest] = alike(1)[..] else { unreachable!() };
        plan.add(digest, now);
        assert_eq!(plan.next(now), Ok(vec![digest]));
        plan.renew(now);
        done(&mut plan, &[digest], now);
        assert!(plan.next(now + LOOK_TIME).is_ok());
        done(&mut plan, &[digest], now);
        assert_eq!(plan.next(now + LOOK_TIME), Err(Some(now + RENEWAL_TIME)));
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_and_takes_nothing_along_that_is_left_to_others() {
        let mut now = Instant::now();
        let mut plan = Announcements::default();
        let [failing, left] = alike(2)[..] else { unreachable!() };
        plan.add(failing, now);
        plan.add(left, now);
        assert!(plan.next(now).is_ok());
        plan.again(&left, Outcome::Left, now);
        for pause in [30, 60, 120, 240] {
            plan.again(&failing, Outcome::Failed, now);
            plan.end();
            let due = now + Duration::from_secs(pause);
            assert_eq!(plan.next(now + PACE), Err(Some(due)));
            assert_eq!(plan.next(due), Ok(vec![failing]));
            now = due;
        }
        plan.remove(&left);
        for _ in 0..40 {
            plan.again(&failing, Outcome::Failed, now);
            plan.end();
            now += LOOK_TIME;
            assert_eq!(plan.next(now), Ok(vec![failing]), "it is not given up");
        }
    }

    #[test]
    fn what_was_withdrawn_and_comes_back_while_it_is_announced_is_announced_again_and_withdrawn_for_good() {
        let mut now = Instant::now();
        let mut plan = Announcements::default();
        let [digest] = alike(1)[..] else { unreachable!() };
        plan.add(digest, now);
        assert_eq!(plan.next(now), Ok(vec![digest]));
        plan.remove(&digest);
        plan.add(digest, now);
        // That was the first one, which told others before it was withdrawn.
        done(&mut plan, &[digest], now);
        now += PACE;
        assert_eq!(plan.next(now), Ok(vec![digest]));
        done(&mut plan, &[digest], now);
        plan.remove(&digest);
        assert_eq!(plan.next(now + 2 * RENEWAL_TIME), Err(None));
    }

    #[test]
    fn two_nodes_of_a_site_announce_a_blob_and_others_leave_it_to_them_be_the_site_large_or_small() {
        for count in [1, 3, 4, 40] {
            let nodes: Vec<NodeId> = (0..count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
            for digest in digests().take(20) {
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
    fn a_site_shares_what_is_to_be_announced_among_its_nodes() {
        let nodes: Vec<NodeId> = (0..40).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
        let me = SecretKey::from_seed([99; 32]).node();
        let all: BTreeSet<NodeId> = one_of_each()
            .iter()
            .filter_map(|digest| announcers(digest, &me, nodes.iter().copied()))
            .flatten()
            .collect();
        assert!(all.len() > GROUPS, "{} nodes announce all", all.len());
    }

    #[test]
    fn the_number_of_announced_blobs_is_bounded() {
        let now = Instant::now();
        let mut plan = Announcements::default();
        let taken = digests().take(MAX_ANNOUNCED + 5).filter(|digest| plan.add(*digest, now)).count();
        assert_eq!(taken, MAX_ANNOUNCED);
    }

    #[test]
    fn the_key_is_the_multihash() {
        let digest = Digest::sha256(b"");
        assert_eq!(key(&digest).as_ref()[..2], [0x12, 32]);
        assert_eq!(&key(&digest).as_ref()[2..], digest.as_bytes());
    }
}
