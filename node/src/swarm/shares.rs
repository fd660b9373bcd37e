//! A bound that several fill together, each with its fair share of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names that several members tell, beside those that are known without them, and no more than a bound.
///
/// When there is no room, the member for which the most names count makes way for one for which fewer do, so that nobody's
/// many names keep out the few of another. A name counts for one of those who tell it: for one with few.
pub(super) struct Shares {
    known: BTreeSet<String>,
    room: usize,
    // Who tells each name; it counts for the first of them.
    names: BTreeMap<Arc<str>, Vec<u16>>,
    counted: Vec<BTreeSet<Arc<str>>>,
}

impl Shares {
    /// For so many members, who are numbered from 0. What is `known` has its place first.
    pub(super) fn new(most: usize, members: u16, known: BTreeSet<String>) -> Self {
        let room = most.saturating_sub(known.len());
        Self { known, room, names: BTreeMap::new(), counted: vec![BTreeSet::new(); usize::from(members)] }
    }

    /// Takes in what a member tells; `false` if it has its share already, so that further names of it are of no use.
    pub(super) fn add(&mut self, member: u16, name: &str) -> bool {
        if self.known.contains(name) {
            return true;
        }
        if let Some((name, tellers)) = self.names.get_key_value(name) {
            if !tellers.contains(&member) {
                let name = Arc::clone(name);
                self.names.entry(Arc::clone(&name)).or_default().push(member);
                self.settle(&name);
            }
            return true;
        }
        while self.names.len() >= self.room {
            let Some(greatest) = (0..self.counted.len() as u16).max_by_key(|member| self.count(*member))
            else {
                return false;
            };
            if self.count(greatest) <= self.count(member) + 1 {
                return false;
            }
            let Some(last) = self.counted[usize::from(greatest)].last().cloned() else { return false };
            // Another may tell it too, and have room for it within its share.
            if !self.settle(&last) {
                self.counted[usize::from(greatest)].remove(&last);
                self.names.remove(&last);
            }
        }
        let name = Arc::<str>::from(name);
        self.counted[usize::from(member)].insert(Arc::clone(&name));
        self.names.insert(name, vec![member]);
        true
    }

    /// All names, in order.
    pub(super) fn into_names(self) -> BTreeSet<String> {
        let told = self.names.into_keys().map(|name| name.to_string());
        self.known.into_iter().chain(told).collect()
    }

    fn count(&self, member: u16) -> usize {
        self.counted[usize::from(member)].len()
    }

    /// Lets a name count for whoever of those who tell it has the fewest, if that brings the shares closer together; says
    /// whether it did.
    fn settle(&mut self, name: &Arc<str>) -> bool {
        let Some(tellers) = self.names.get(name) else { return false };
        let fewest = (0..tellers.len()).min_by_key(|at| self.count(tellers[*at]));
        let (Some(from), Some(at)) = (tellers.first().copied(), fewest) else { return false };
        let to = tellers[at];
        if self.count(from) <= self.count(to) + 1 {
            return false;
        }
        if let Some(tellers) = self.names.get_mut(name) {
            tellers.swap(0, at);
        }
        self.counted[usize::from(from)].remove(name);
        self.counted[usize::from(to)].insert(Arc::clone(name));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 100;

    fn tell(shares: &mut Shares, member: u16, names: impl IntoIterator<Item = String>) {
        let _ = names.into_iter().all(|name| shares.add(member, &name));
    }

    fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
        (0..count).map(move |number| format!("{prefix}{number:04}"))
    }

    fn kept(shares: Shares, prefix: &str) -> usize {
        let names = shares.into_names();
        assert!(names.len() <= MOST);
        names.iter().filter(|name| name.starts_with(prefix)).count()
    }

    #[test]
    fn nobodys_many_names_keep_out_the_few_of_others_whoever_comes_first() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut shares = Shares::new(MOST, 3, BTreeSet::new());
            for member in order {
                let count = if member == 0 { 10 * MOST } else { 20 };
                tell(&mut shares, member, numbered(&format!("{member}-"), count));
            }
            let names = shares.into_names();
            assert_eq!(names.len(), MOST);
            for member in [1, 2] {
                assert!(numbered(&format!("{member}-"), 20).all(|name| names.contains(&name)), "{order:?}");
            }
        }
    }

    #[test]
    fn a_true_name_stays_although_one_with_too_many_tells_it_as_well() {
        for liar_first in [true, false] {
            let mut shares = Shares::new(MOST, 3, BTreeSet::new());
            let lies = || numbered("true-", 30).chain(numbered("a-", 10 * MOST));
            if liar_first {
                tell(&mut shares, 0, lies());
                tell(&mut shares, 1, numbered("true-", 30));
            } else {
                tell(&mut shares, 1, numbered("true-", 30));
                tell(&mut shares, 0, lies());
            }
            tell(&mut shares, 2, numbered("other-", 30));
            assert_eq!(kept(shares, "true-"), 30);
        }
    }

    #[test]
    fn those_who_tell_the_same_inventions_have_one_share_each_and_no_more() {
        let mut shares = Shares::new(MOST, 4, BTreeSet::new());
        for liar in [0, 1] {
            tell(&mut shares, liar, numbered("lie-", 10 * MOST));
        }
        for honest in [2, 3] {
            tell(&mut shares, honest, numbered(&format!("true-{honest}-"), 40));
        }
        assert!(kept(shares, "true-") >= MOST / 2 - 2);
    }

    #[test]
    fn what_is_known_anyway_makes_way_for_nobody_and_is_told_once() {
        let known: BTreeSet<String> = numbered("own-", 60).collect();
        let mut shares = Shares::new(MOST, 2, known);
        tell(&mut shares, 0, numbered("own-", 60).chain(numbered("x-", 10)));
        tell(&mut shares, 1, numbered("a-", MOST));
        let names = shares.into_names();
        assert_eq!(names.len(), MOST);
        assert!(numbered("own-", 60).chain(numbered("x-", 10)).all(|name| names.contains(&name)));
        let full = Shares::new(MOST, 1, numbered("own-", MOST).collect()).add(0, "x");
        assert!(!full);
    }
}
