//! Which nodes keep the records of which blobs, as far as walks through Kademlia have told: one walk serves all blobs whose keys
//! begin alike, as when Kubo provides what it holds by sweeps through the table (Provide Sweep, 2025). Without a network or a
//! clock of its own.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::KBucketKey;
use wherry_proto::{Digest, NodeId};

use super::announcements::key;
use super::identity::peer_of;

/// On how many nodes a record is kept, those that are closest to its key: as in BitTorrent's Mainline DHT (BEP 5).
pub(super) const KEEPERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// How many nodes a walk finds. Twice the [`KEEPERS`], so that mostly there are about as many among them that begin like the key,
/// and between which there are no others.
pub(super) const FOUND: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// For how long what a walk has found is gone by: nodes come and go.
const FRESH: Duration = Duration::from_secs(15 * 60);

/// How many regions are known: in a network of a thousand nodes there are a hundred.
const MAX_REGIONS: usize = 256;

/// A place in Kademlia's space of keys.
pub(super) type Place = [u8; 32];

/// Where the record of a blob is kept.
pub(super) fn of_blob(digest: &Digest) -> Place {
    place(KBucketKey::new(key(digest)).hashed_bytes())
}

/// Where a node is; `None` if nobody can own its id.
fn of_node(node: &NodeId) -> Option<Place> {
    Some(place(KBucketKey::<PeerId>::from(peer_of(node)?).hashed_bytes()))
}

fn place(hash: &[u8]) -> Place {
    std::array::from_fn(|at| hash.get(at).copied().unwrap_or_default())
}

fn distance(one: &Place, other: &Place) -> Place {
    std::array::from_fn(|at| one[at] ^ other[at])
}

/// How many bits two places begin with alike.
fn alike(one: &Place, other: &Place) -> u32 {
    let zeros = distance(one, other).into_iter().take_while(|byte| *byte == 0).count();
    let rest = distance(one, other).get(zeros).map_or(0, |byte| byte.leading_zeros());
    zeros as u32 * u8::BITS + rest
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Walked {
    /// All whom it asked have answered.
    Whole,
    /// Some did not, and others took their place.
    PastSome,
    /// Its time was over before it came to those who are closest.
    CutShort,
}

/// All places that begin like one, and the nodes that are closest to them.
struct Region {
    at: Place,
    bits: u32,
    nodes: Vec<(Place, NodeId)>,
    walked: Walked,
    until: Instant,
}

impl Region {
    fn has(&self, at: &Place) -> bool {
        alike(&self.at, at) >= self.bits
    }
}

/// Those that are known, the oldest first.
#[derive(Default)]
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// A walk to a place has found these nodes, which are the closest to it unless it was cut short.
    pub(super) fn learn(
        &mut self,
        at: Place,
        nodes: impl IntoIterator<Item = NodeId>,
        walked: Walked,
        now: Instant,
    ) {
        let mut nodes: Vec<_> = nodes.into_iter().filter_map(|node| Some((of_node(&node)?, node))).collect();
        nodes.sort_unstable_by_key(|(there, _)| distance(&at, there));
        let farthest = nodes.last().map_or(0, |(there, _)| alike(&at, there));
        let inside = nodes.iter().filter(|(there, _)| alike(&at, there) > farthest).count();
        let bits = match walked {
            // There are no others.
            Walked::Whole if nodes.len() < FOUND.get() => 0,
            // Whoever is closer than the farthest that was found was found as well. Of whoever keeps a record there the closest are
            // right; the rest may be others a little farther away where these are few.
            Walked::Whole | Walked::PastSome if inside > 0 => farthest + 1,
            // Nearly all of a small network, as far as it answers.
            Walked::CutShort if inside > 0 && nodes.len() < FOUND.get() => farthest + 1,
            Walked::PastSome | Walked::CutShort if nodes.len() < FOUND.get() => farthest,
            _ => at.len() as u32 * u8::BITS,
        };
        let region = Region { at, bits, nodes, walked, until: now + FRESH };
        // What it tells of is known better now.
        let tells_more = |old: &Region| {
            let is_within = region.has(&old.at) && region.bits <= old.bits;
            is_within && (region.walked != Walked::CutShort || old.walked == Walked::CutShort)
        };
        self.0.retain(|old| old.until > now && !tells_more(old));
        if self.0.len() >= MAX_REGIONS {
            self.0.remove(0);
        }
        self.0.push(region);
    }

    /// The nodes that keep the record of what is there, at most [`KEEPERS`] and the closest first, and how the walk ended that has
    /// found them; `None` if a walk has to tell.
    pub(super) fn keepers(&self, at: &Place, now: Instant) -> Option<(Vec<NodeId>, Walked)> {
        let known = self.0.iter().filter(|region| region.until > now && region.has(at));
        let region = known.max_by_key(|region| (region.walked != Walked::CutShort, region.bits))?;
        let mut nodes: Vec<_> =
            region.nodes.iter().map(|(there, node)| (distance(at, there), *node)).collect();
        nodes.sort_unstable();
        nodes.truncate(KEEPERS.get());
        Some((nodes.into_iter().map(|(_, node)| node).collect(), region.walked))
    }

    /// What is known of a place does not hold any more.
    pub(super) fn forget(&mut self, at: &Place) {
        self.0.retain(|region| !region.has(at));
    }

    /// There is a node of which the walks may not have known.
    pub(super) fn meet(&mut self, node: &NodeId) {
        let Some(at) = of_node(node) else { return };
        self.0.retain(|region| !region.has(&at) || region.nodes.iter().any(|(_, known)| known == node));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wherry_proto::SecretKey;

    use super::*;

    /// So many nodes, with their places.
    fn network(count: u16) -> Vec<(Place, NodeId)> {
        let node = |number: u16| {
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&number.to_be_bytes());
            let node = SecretKey::from_seed(seed).node();
            (of_node(&node).unwrap(), node)
        };
        (0..count).map(node).collect()
    }

    fn closest(network: &[(Place, NodeId)], at: &Place, count: usize) -> Vec<NodeId> {
        let mut all: Vec<_> = network.iter().map(|(there, node)| (distance(at, there), *node)).collect();
        all.sort_unstable();
        all.into_iter().take(count).map(|(_, node)| node).collect()
    }

    fn blob(number: u64) -> Place {
        of_blob(&Digest::sha256(&number.to_be_bytes()))
    }

    /// Has all of these blobs kept; says how many walks that took.
    fn keep_all(network: &[(Place, NodeId)], blobs: u64, mut check: impl FnMut(&Place, &[NodeId])) -> usize {
        let (mut regions, now, mut walks) = (Regions::default(), Instant::now(), 0);
        for at in (0..blobs).map(blob) {
            if regions.keepers(&at, now).is_none() {
                walks += 1;
                regions.learn(at, closest(network, &at, FOUND.get()), Walked::Whole, now);
            }
            check(&at, &regions.keepers(&at, now).unwrap().0);
        }
        walks
    }

    #[test]
    fn blobs_are_kept_by_those_who_are_closest_to_them_after_a_walk_for_many() {
        for (nodes, most_walks) in [(1, 1), (8, 1), (15, 1), (48, 12), (500, 120)] {
            let network = network(nodes);
            let (mut right, mut all) = (0, 0);
            let walks = keep_all(&network, 1000, |at, keepers| {
                let closest = closest(&network, at, KEEPERS.get());
                assert_eq!(keepers.len(), closest.len());
                assert_eq!(keepers[0], closest[0], "whoever looks for the record comes to this one");
                right += keepers.iter().filter(|node| closest.contains(node)).count();
                all += closest.len();
            });
            assert!(walks <= most_walks, "{walks} walks in a network of {nodes}");
            assert!(right * 10 >= all * 9, "{right} of {all} keepers are among the closest");
        }
    }

    #[test]
    fn where_nearly_all_nodes_are_in_one_half_blobs_of_the_other_take_no_walk_each() {
        let all = network(100);
        let (left, right): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| at[0] < 0x80);
        let few: Vec<_> = left.into_iter().take(2).chain(right.into_iter().take(20)).collect();
        let walks = keep_all(&few, 1000, |at, keepers| {
            assert_eq!(keepers[0], closest(&few, at, 1)[0]);
        });
        assert!(walks < 20, "{walks} walks");
    }

    #[test]
    fn a_walk_that_was_cut_short_among_many_nodes_tells_of_its_own_blob_alone_and_until_another_knows_better()
    {
        let (network, now, at) = (network(100), Instant::now(), blob(1));
        let mut regions = Regions::default();
        let met: Vec<NodeId> = network.iter().map(|(_, node)| *node).take(FOUND.get()).collect();
        regions.learn(at, met, Walked::CutShort, now);
        assert!(regions.keepers(&at, now).is_some_and(|(_, walked)| walked == Walked::CutShort));
        let mut next = at;
        next[31] ^= 1;
        assert_eq!(regions.keepers(&next, now), None);
        let right = closest(&network, &at, FOUND.get());
        regions.learn(next, right.clone(), Walked::Whole, now);
        assert_eq!(regions.keepers(&at, now), Some((right[..KEEPERS.get()].to_vec(), Walked::Whole)));
        // Nor does one that is cut short later.
        regions.learn(at, [right[0]], Walked::CutShort, now);
        assert!(regions.keepers(&at, now).is_some_and(|(_, walked)| walked == Walked::Whole));
    }

    #[test]
    fn a_walk_that_went_past_some_does_not_say_that_there_are_no_others() {
        let (network, now, at) = (network(10), Instant::now(), blob(1));
        let mut regions = Regions::default();
        regions.learn(at, closest(&network, &at, 10), Walked::PastSome, now);
        assert!(regions.keepers(&at, now).is_some());
        let mut opposite = at;
        opposite[0] ^= 0x80;
        assert_eq!(regions.keepers(&opposite, now), None);
    }

    #[test]
    fn what_is_known_is_gone_by_until_it_is_old_or_turns_out_wrong() {
        let (network, now, at) = (network(5), Instant::now(), blob(1));
        let mut regions = Regions::default();
        assert_eq!(regions.keepers(&at, now), None);
        let known = closest(&network, &at, FOUND.get());
        regions.learn(at, known.clone(), Walked::Whole, now);
        assert!(regions.keepers(&blob(2), now + FRESH - Duration::from_secs(1)).is_some());
        assert_eq!(regions.keepers(&at, now + FRESH), None);
        // Whoever was found may come again.
        regions.meet(&known[0]);
        assert!(regions.keepers(&at, now).is_some());
        regions.forget(&blob(3));
        assert_eq!(regions.keepers(&at, now), None);
    }

    #[test]
    fn a_node_that_comes_keeps_the_records_that_are_told_from_then_on() {
        let (all, now, at) = (network(6), Instant::now(), blob(1));
        let mut regions = Regions::default();
        regions.learn(at, all[..5].iter().map(|(_, node)| *node), Walked::Whole, now);
        regions.meet(&all[5].1);
        assert_eq!(regions.keepers(&at, now), None, "a walk is to tell");
    }

    #[test]
    fn the_number_of_regions_is_bounded() {
        let (mut regions, now) = (Regions::default(), Instant::now());
        let nodes: Vec<NodeId> = network(FOUND.get() as u16).into_iter().map(|(_, node)| node).collect();
        for number in 0..2 * MAX_REGIONS as u64 {
            regions.learn(blob(number), nodes.clone(), Walked::CutShort, now);
        }
        assert_eq!(regions.0.len(), MAX_REGIONS);
        assert!(regions.keepers(&blob(2 * MAX_REGIONS as u64 - 1), now).is_some());
    }

    proptest! {
        #[test]
        fn the_bits_that_are_alike_are_those_before_the_first_that_differs(at: [u8; 32], bit in 0_usize..256) {
            let mut other = at;
            other[bit / 8] ^= 0x80 >> (bit % 8);
            prop_assert_eq!(alike(&at, &other), bit as u32);
            prop_assert_eq!(alike(&at, &at), 256);
        }
    }
}
