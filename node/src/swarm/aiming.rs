//! Who is to be told of what is announced: blobs wait until it is known which nodes keep their records. Without a network or a clock
//! of its own.

use std::time::Instant;

use wherry_proto::{Digest, NodeId};

use super::regions::{Regions, Walked, of_blob};

/// A blob, and who keeps its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Aimed {
    pub(super) digest: Digest,
    pub(super) keepers: Vec<NodeId>,
    pub(super) walked: Walked,
}

/// Blobs that are announced together.
struct Round {
    aimed: Vec<Aimed>,
    // Those of which a walk has to tell.
    open: Vec<Digest>,
}

/// What a walk has led to.
#[derive(Default, Debug)]
pub(super) struct Ready {
    /// What may be told now, round by round; a round may be empty.
    pub(super) rounds: Vec<Vec<Aimed>>,
    /// Of whom nobody could be found in time.
    pub(super) failed: Vec<Digest>,
}

/// The blobs that wait, and what is known.
#[derive(Default)]
pub(super) struct Aiming {
    regions: Regions,
    // One at a time: what a walk tells is mostly true for others as well, and several would fill a thin link.
    walk: Option<Digest>,
    waiting: Vec<Round>,
}

impl Aiming {
    /// Some blobs are to be announced together; these are told at once if nothing is to be found out before.
    pub(super) fn add(&mut self, together: Vec<Digest>, now: Instant) -> Option<Vec<Aimed>> {
        match self.aim(Round { aimed: Vec::new(), open: together }, now) {
            Ok(aimed) => Some(aimed),
            Err(round) => {
                self.waiting.push(round);
                None
            }
        }
    }

    /// Takes what is known by now; the round itself if that is not all.
    fn aim(&self, mut round: Round, now: Instant) -> Result<Vec<Aimed>, Round> {
        for digest in std::mem::take(&mut round.open) {
            match self.regions.keepers(&of_blob(&digest), now) {
                Some((keepers, walked)) => round.aimed.push(Aimed { digest, keepers, walked }),
                None => round.open.push(digest),
            }
        }
        if round.open.is_empty() { Ok(round.aimed) } else { Err(round) }
    }

    /// To the keepers of which blob a walk is to begin now, if one is needed and none is under way.
    pub(super) fn next_walk(&mut self) -> Option<Digest> {
        if self.walk.is_some() {
            return None;
        }
        self.walk = self.waiting.iter().find_map(|round| round.open.first()).copied();
        self.walk
    }

    /// The walk is over, and has found these nodes. Blobs that are not held any more are dropped.
    pub(super) fn walked(
        &mut self,
        nodes: Vec<NodeId>,
        walked: Walked,
        is_held: impl Fn(&Digest) -> bool,
        now: Instant,
    ) -> Ready {
        let Some(walk) = self.walk.take() else { return Ready::default() };
        let is_lost = nodes.is_empty();
        if !is_lost {
            self.regions.learn(of_blob(&walk), nodes, walked, now);
        }
        let mut ready = Ready::default();
        for mut round in std::mem::take(&mut self.waiting) {
            // Where nobody answers there is nobody to tell; where some kept a walk from its end, others like it would take as long.
            let gives_up = is_lost || (walked == Walked::CutShort && round.open.contains(&walk));
            round.open.retain(&is_held);
            round.aimed.retain(|aimed| is_held(&aimed.digest));
            match self.aim(round, now) {
                Ok(aimed) => ready.rounds.push(aimed),
                Err(Round { aimed, open }) if gives_up => {
                    ready.failed.extend(open);
                    ready.rounds.push(aimed);
                }
                Err(round) => self.waiting.push(round),
            }
        }
        ready
    }

    /// A blob could not be told to those who were known as its keepers.
    pub(super) fn missed(&mut self, digest: &Digest) {
        self.regions.forget(&of_blob(digest));
    }

    /// There is a node of which the walks may not have known.
    pub(super) fn meet(&mut self, node: &NodeId) {
        self.regions.meet(node);
    }

    /// There may be many of them: the network outside the site is reached again.
    pub(super) fn meet_many(&mut self) {
        self.regions = Regions::default();
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    fn nodes(count: u8) -> Vec<NodeId> {
        (0..count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect()
    }

    /// Blobs whose keys begin with a bit.
    fn blobs(bit: u8, count: usize) -> Vec<Digest> {
        let all = (0_u32..).map(|number| Digest::sha256(&number.to_be_bytes()));
        all.filter(|digest| of_blob(digest)[0] >> 7 == bit).take(count).collect()
    }

    fn told(rounds: &[Vec<Aimed>]) -> Vec<Vec<Digest>> {
        rounds.iter().map(|round| round.iter().map(|aimed| aimed.digest).collect()).collect()
    }

    #[test]
    fn one_walk_serves_all_that_wait_and_those_that_come_later() {
        let (mut aiming, now) = (Aiming::default(), Instant::now());
        let (one, other) = (blobs(0, 3), blobs(1, 3));
        assert_eq!(aiming.add(one.clone(), now), None);
        assert_eq!(aiming.add(other.clone(), now), None);
        assert_eq!(aiming.next_walk(), Some(one[0]));
        assert_eq!(aiming.next_walk(), None, "one at a time");
        let ready = aiming.walked(nodes(5), Walked::Whole, |_| true, now);
        assert_eq!(told(&ready.rounds), [one, other.clone()]);
        assert_eq!((ready.failed, aiming.next_walk()), (vec![], None));
        assert_eq!(aiming.add(other.clone(), now).map(|aimed| told(&[aimed])), Some(vec![other]));
    }

    #[test]
    fn a_walk_that_is_cut_short_ends_its_own_round_and_lets_others_have_theirs() {
        let (mut aiming, now) = (Aiming::default(), Instant::now());
        let (one, other) = (blobs(0, 3), blobs(1, 3));
        aiming.add(one.clone(), now);
        aiming.add(other.clone(), now);
        assert_eq!(aiming.next_walk(), Some(one[0]));
        // Of many nodes it tells nothing but who is close to its own blob.
        let ready = aiming.walked(nodes(16), Walked::CutShort, |_| true, now);
        assert_eq!(told(&ready.rounds), [vec![one[0]]]);
        assert_eq!(ready.rounds[0][0].walked, Walked::CutShort);
        assert_eq!(ready.failed, one[1..]);
        assert_eq!(aiming.next_walk(), Some(other[0]));
        assert_eq!(told(&aiming.walked(nodes(5), Walked::Whole, |_| true, now).rounds), [other]);
    }

    #[test]
    fn where_nobody_answers_all_rounds_end_with_nothing_told() {
        let (mut aiming, now) = (Aiming::default(), Instant::now());
        let all = [blobs(0, 2), blobs(1, 2)];
        all.iter().for_each(|blobs| assert_eq!(aiming.add(blobs.clone(), now), None));
        aiming.next_walk();
        let ready = aiming.walked(vec![], Walked::Whole, |_| true, now);
        assert_eq!(told(&ready.rounds), [[], []] as [[Digest; 0]; 2]);
        assert_eq!(ready.failed, all.concat());
        assert_eq!(aiming.next_walk(), None);
    }

    #[test]
    fn what_is_withdrawn_while_it_waits_is_told_to_nobody() {
        let (mut aiming, now) = (Aiming::default(), Instant::now());
        let [gone, held] = blobs(0, 2)[..] else { unreachable!() };
        aiming.add(vec![gone, held], now);
        assert_eq!(aiming.next_walk(), Some(gone));
        let ready = aiming.walked(nodes(5), Walked::Whole, |digest| *digest == held, now);
        assert_eq!(told(&ready.rounds), [[held]]);
        assert_eq!(ready.failed, []);
    }

    #[test]
    fn once_the_network_is_reached_again_walks_tell_anew() {
        let (mut aiming, now) = (Aiming::default(), Instant::now());
        let blobs = blobs(0, 1);
        aiming.add(blobs.clone(), now);
        aiming.next_walk();
        // Of the site alone, since nobody else answers.
        aiming.walked(nodes(3), Walked::PastSome, |_| true, now);
        assert!(aiming.add(blobs.clone(), now).is_some());
        aiming.meet_many();
        assert_eq!(aiming.add(blobs, now), None);
    }
}
