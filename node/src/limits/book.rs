//! What the limits say: settings, what was spent, who else uses the links, and the pause, in one place without a clock.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use wherry_proto::{NodeId, PauseRecord, WanWord};

use super::rate::Pace;
use super::window::{Hours, Moment, Window, hours};

/// How long after the last byte, or after the time at which the next one may come, a node still has a share of the rate,
/// in microseconds; and how long a neighbour that said so lately has one, which says so anew every second.
pub const ACTIVE_TIME: u64 = 2_500_000;

/// How many nodes of a site are remembered as having spent something today, besides the one that remembers.
pub const MAX_SPENDERS: usize = 1024;

/// One part in so many of a budget may be spent without being written down: so much of it a power cut gives back.
pub const UNWRITTEN: u64 = 100;

/// So many bytes at least, so that not every piece of what comes is a write.
pub const LEAST_UNWRITTEN: u64 = 64 << 10;

/// What is limited; nothing of it is, unless it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// How fast bytes may come into the site, in bytes a second.
    pub down: Option<u64>,
    /// How fast bytes may leave the site, in bytes a second.
    pub up: Option<u64>,
    /// How many bytes may come into the site in a day.
    pub budget: Option<u64>,
    /// When bytes may come and go; always, if there is none.
    pub windows: Vec<Window>,
}

/// A limit that may say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Somebody has the site pause.
    Pause,
    /// These are not the hours.
    Window,
    /// What may come in a day has come.
    Budget,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Window => "window",
            Self::Budget => "budget",
        })
    }
}

/// Why no bytes flow over the links that lead out of the site now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    /// Which limit says so. Of several the first in the order of [`Limit`].
    pub by: Limit,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
    /// Until when, if that is known: a pause ends when somebody ends it.
    pub until: Option<u64>,
}

/// A rate that holds up what comes into the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTo {
    /// That of the whole site, in bytes a second.
    pub rate: u64,
    /// How many of its nodes share it now.
    pub nodes: u64,
}

/// In which direction bytes cross the border of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into it.
    Down,
    /// Out of it.
    Up,
}

/// A time by two clocks: one for people and one that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// What people call it.
    pub moment: Moment,
    /// Microseconds since any fixed time.
    pub tick: u64,
}

/// What is to outlive a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Which day it is about, in days since 1970-01-01 on the wall.
    pub day: u32,
    /// Who has taken in how many bytes on it.
    pub nodes: BTreeMap<NodeId, u64>,
    /// When the budget was used up, in seconds since the Unix epoch.
    pub used_up: Option<u64>,
}

#[derive(Debug)]
struct Heard {
    takes: bool,
    gives: bool,
    counts: bool,
    at: u64,
}

/// The limits of one node, and of its site as far as the node knows.
#[derive(Debug)]
pub struct Book {
    settings: LimitSettings,
    me: NodeId,
    spent: Spent,
    heard: BTreeMap<NodeId, Heard>,
    pause: Option<PauseRecord>,
    down: Pace,
    up: Pace,
    takes_until: u64,
    gives_until: u64,
}

impl Book {
    /// The book of node `me`, with what an earlier run left.
    pub fn new(settings: LimitSettings, me: NodeId, spent: Spent, pause: Option<PauseRecord>) -> Self {
        Self {
            settings,
            me,
            spent,
            heard: BTreeMap::new(),
            pause,
            down: Pace::default(),
            up: Pace::default(),
            takes_until: 0,
            gives_until: 0,
        }
    }

    /// What is set.
    pub const fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// The newest record that is known of the site's pause.
    pub const fn pause(&self) -> Option<&PauseRecord> {
        self.pause.as_ref()
    }

    /// What is to outlive a restart.
    pub const fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Whether what was spent is worth a write, if `saved` is what was written last. Where no budget is held what others
    /// spent is not: they say it anew.
    pub fn is_worth_writing(&self, saved: &Spent) -> bool {
        if self.settings.budget.is_some() {
            return self.spent != *saved;
        }
        let own = |spent: &Spent| spent.nodes.get(&self.me).map(|bytes| (spent.day, *bytes));
        own(&self.spent).is_some_and(|now| Some(now) != own(saved))
    }

    /// Whether so much of the budget was spent since `saved` was written that it must not be lost.
    pub fn is_urgent(&self, saved: &Spent) -> bool {
        let Some(budget) = self.settings.budget else { return false };
        let own = |spent: &Spent| spent.nodes.get(&self.me).copied().unwrap_or(0);
        let before = if saved.day == self.spent.day { own(saved) } else { 0 };
        own(&self.spent).saturating_sub(before) >= (budget / UNWRITTEN).max(LEAST_UNWRITTEN)
    }

    /// Takes in a record whose signature has been checked; says whether it is news.
    pub fn adopt(&mut self, record: PauseRecord) -> bool {
        let is_news = self.pause.as_ref().is_none_or(|known| record.supersedes(known));
        if is_news {
            self.pause = Some(record);
        }
        is_news
    }

    /// A day may have begun. A clock that was set back begins one as well.
    fn turn_page(&mut self, now: Now) {
        let day = now.moment.day();
        if self.spent.day != day {
            self.spent = Spent { day, ..Spent::default() };
        }
    }

    fn spend(&mut self, now: Now, node: NodeId, bytes: impl FnOnce(u64) -> u64) {
        self.turn_page(now);
        let is_known = self.spent.nodes.contains_key(&node);
        if is_known || node == self.me || self.spent.nodes.len() < MAX_SPENDERS {
            let spent = self.spent.nodes.entry(node).or_default();
            *spent = bytes(*spent);
        }
        match self.is_used_up() {
            true => _ = self.spent.used_up.get_or_insert(now.moment.utc),
            // An earlier run may have had a smaller budget.
            false => self.spent.used_up = None,
        }
    }

    fn is_used_up(&self) -> bool {
        self.settings.budget.is_some_and(|budget| self.total() >= budget)
    }

    fn total(&self) -> u64 {
        self.spent.nodes.values().fold(0, |sum, spent| sum.saturating_add(*spent))
    }

    /// Bytes that have come into the site today: by way of this node, and in all.
    pub fn spent_today(&mut self, now: Now) -> (u64, u64) {
        self.turn_page(now);
        (self.spent.nodes.get(&self.me).copied().unwrap_or(0), self.total())
    }

    /// Bytes have come over a link that leads out, which nobody waited for.
    pub fn count(&mut self, now: Now, bytes: u64) {
        let me = self.me;
        self.spend(now, me, |spent| spent.saturating_add(bytes));
    }

    /// When the next byte may cross, by the rate alone.
    pub fn next(&self, way: Way, now: Now) -> u64 {
        match way {
            Way::Down => self.down.next(now.tick),
            Way::Up => self.up.next(now.tick),
        }
    }

    /// So many bytes cross now: when the next one may, by the rate alone.
    pub fn pass(&mut self, way: Way, now: Now, bytes: u64) -> u64 {
        let rate = match way {
            Way::Down => self.settings.down,
            Way::Up => self.settings.up,
        };
        let sharers = self.sharers(way, now);
        let (pace, until) = match way {
            Way::Down => (&mut self.down, &mut self.takes_until),
            Way::Up => (&mut self.up, &mut self.gives_until),
        };
        let next = rate.map_or(now.tick, |rate| pace.pass(now.tick, bytes, (rate / sharers).max(1)));
        *until = (*until).max(next + ACTIVE_TIME);
        next
    }

    /// The rate that holds up what comes into the site by way of this node, and among how many nodes it is shared; `None` if
    /// something else does.
    pub fn held_to(&self, now: Now) -> Option<HeldTo> {
        let rate = self.settings.down.filter(|_| self.down.is_full() && now.tick < self.takes_until)?;
        Some(HeldTo { rate, nodes: self.sharers(Way::Down, now) })
    }

    /// Among how many nodes the rate is shared, this one included.
    pub fn sharers(&self, way: Way, now: Now) -> u64 {
        let shares = |heard: &&Heard| {
            let is_active = match way {
                Way::Down => heard.takes,
                Way::Up => heard.gives,
            };
            is_active && now.tick < heard.at + ACTIVE_TIME
        };
        1 + self.heard.values().filter(shares).count() as u64
    }

    /// Whether a limit says no, and until when.
    pub fn limited(&mut self, way: Way, now: Now) -> Option<Limited> {
        self.turn_page(now);
        if let Some(record) = self.pause.as_ref().filter(|record| record.paused) {
            return Some(Limited { by: Limit::Pause, since: record.time, until: None });
        }
        if let Hours::Closed { since, until } = hours(&self.settings.windows, now.moment) {
            return Some(Limited { by: Limit::Window, since, until: Some(until) });
        }
        if way == Way::Up || !self.is_used_up() {
            return None;
        }
        // An earlier run may have had a larger budget.
        let since = *self.spent.used_up.get_or_insert(now.moment.utc);
        Some(Limited { by: Limit::Budget, since, until: Some(now.moment.next_day()) })
    }

    /// When [`Book::limited`] may say something else without anything happening, in seconds since the Unix epoch.
    pub fn next_change(&mut self, now: Now) -> Option<u64> {
        let window = match hours(&self.settings.windows, now.moment) {
            Hours::Open { until } => until,
            Hours::Closed { until, .. } => Some(until),
        };
        let day = self.is_used_up().then(|| now.moment.next_day());
        window.into_iter().chain(day).min()
    }

    /// What a neighbour of the site says of itself. Its record is not looked at here.
    pub fn hear(&mut self, now: Now, node: NodeId, word: &WanWord) {
        if node == self.me {
            return;
        }
        let WanWord { takes, gives, counts, .. } = *word;
        self.heard.insert(node, Heard { takes, gives, counts, at: now.tick });
        self.turn_page(now);
        if word.day == self.spent.day && word.spent > 0 {
            // It may have lost a little of what it spent, with a power cut.
            self.spend(now, node, |spent| spent.max(word.spent));
        }
    }

    /// A neighbour has gone; what it spent stays spent.
    pub fn gone(&mut self, node: &NodeId) {
        self.heard.remove(node);
    }

    /// Whether the site holds limits together that have to be counted, as far as is known here.
    pub fn counts(&self) -> bool {
        self.has_sums() || self.heard.values().any(|heard| heard.counts)
    }

    const fn has_sums(&self) -> bool {
        self.settings.down.is_some() || self.settings.up.is_some() || self.settings.budget.is_some()
    }

    /// Whether this node uses the links now, so that its neighbours are to be told.
    pub const fn is_active(&self, now: Now) -> bool {
        now.tick < self.takes_until || now.tick < self.gives_until
    }

    /// What this node tells its neighbours.
    pub fn word(&mut self, now: Now) -> WanWord {
        let (spent, _) = self.spent_today(now);
        WanWord {
            day: self.spent.day,
            spent,
            takes: now.tick < self.takes_until,
            gives: now.tick < self.gives_until,
            counts: self.has_sums(),
            pause: self.pause.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wherry_proto::{Certificate, Roles, SecretKey};

    use super::*;

    const NOON: u64 = 1_795_564_800 + 43_200;

    fn at(seconds: u64) -> Now {
        Now { moment: Moment { utc: NOON + seconds, offset: 0 }, tick: (1_000 + seconds) * 1_000_000 }
    }

    fn node(seed: u8) -> NodeId {
        SecretKey::from_seed([seed; 32]).node()
    }

    fn record(paused: bool, sequence: u64) -> PauseRecord {
        let key = SecretKey::from_seed([1; 32]);
        let certificate = Certificate::sign(&key, key.node(), Roles::MEMBER, 0, u64::MAX);
        PauseRecord::sign(&key, &certificate, "here".parse().unwrap(), paused, sequence, NOON)
    }

    fn book(settings: LimitSettings) -> Book {
        Book::new(settings, node(1), Spent::default(), None)
    }

    fn word(spent: u64, takes: bool) -> WanWord {
        WanWord { day: at(0).moment.day(), spent, takes, gives: false, counts: true, pause: None }
    }

    #[test]
    fn without_settings_nothing_is_ever_limited() {
        let mut book = book(LimitSettings::default());
        book.count(at(0), u64::MAX);
        assert_eq!(book.pass(Way::Down, at(0), 1 << 40), at(0).tick);
        assert_eq!(book.limited(Way::Down, at(0)), None);
        assert_eq!(book.next_change(at(0)), None);
    }

    #[test]
    fn a_pause_holds_both_ways_until_it_is_ended_and_of_two_records_the_newer_counts() {
        let mut book = book(LimitSettings::default());
        assert!(book.adopt(record(true, 2)));
        let limited = Some(Limited { by: Limit::Pause, since: NOON, until: None });
        assert_eq!(book.limited(Way::Down, at(9)), limited);
        assert_eq!(book.limited(Way::Up, at(9)), limited);
        assert!(!book.adopt(record(false, 1)), "it is older");
        assert_eq!(book.limited(Way::Up, at(9)), limited);
        assert!(book.adopt(record(false, 3)));
        assert_eq!(book.limited(Way::Down, at(9)), None);
    }

    #[test]
    fn a_budget_is_the_sites_and_lasts_until_the_day_ends() {
        let mut book = book(LimitSettings { budget: Some(1_000), ..LimitSettings::default() });
        book.count(at(0), 400);
        book.hear(at(0), node(2), &word(300, false));
        book.hear(at(1), node(2), &word(599, false));
        assert_eq!(book.limited(Way::Down, at(1)), None);
        book.gone(&node(2));
        book.count(at(2), 1);
        let until = NOON + 43_200;
        let limited = Some(Limited { by: Limit::Budget, since: NOON + 2, until: Some(until) });
        assert_eq!(book.limited(Way::Down, at(5)), limited);
        assert_eq!(book.next_change(at(5)), Some(until));
        assert_eq!(book.limited(Way::Up, at(5)), None, "giving spends nothing of it");
        let mut again = Book::new(book.settings().clone(), node(1), book.spent().clone(), None);
        assert_eq!(again.limited(Way::Down, at(6)), limited, "a restart gives none of it back");
        assert_eq!(again.limited(Way::Down, at(43_200)), None);
        assert_eq!(again.spent_today(at(43_200)), (0, 0));
    }

    #[test]
    fn what_is_spent_is_to_be_written_down_at_once_when_it_is_a_good_part_of_the_budget() {
        let budget = 10 * UNWRITTEN * LEAST_UNWRITTEN;
        let mut book = book(LimitSettings { budget: Some(budget), ..LimitSettings::default() });
        let nothing = book.spent().clone();
        book.count(at(0), budget / UNWRITTEN - 1);
        assert!(!book.is_urgent(&nothing));
        book.count(at(0), 1);
        assert!(book.is_urgent(&nothing));
        let saved = book.spent().clone();
        assert!(!book.is_urgent(&saved));
        // Others write down what they spend themselves.
        book.hear(at(0), node(2), &word(budget, true));
        assert!(!book.is_urgent(&saved));
        book.count(at(43_200), budget / UNWRITTEN);
        assert!(book.is_urgent(&saved), "what was written is of the day before");
        let mut free = Book::new(LimitSettings::default(), node(1), Spent::default(), None);
        free.count(at(0), budget);
        assert!(!free.is_urgent(&nothing), "there is no budget that could be overrun");
    }

    #[test]
    fn after_a_restart_the_budget_that_is_set_then_holds_and_no_other() {
        let with = |budget| LimitSettings { budget: Some(budget), ..LimitSettings::default() };
        let mut book = book(with(1_000));
        book.count(at(0), 1_000);
        let again = |budget, spent| Book::new(with(budget), node(1), spent, None);
        let mut raised = again(2_000, book.spent().clone());
        assert_eq!(raised.limited(Way::Down, at(1)), None);
        assert_eq!(raised.next_change(at(1)), None);
        raised.count(at(2), 500);
        raised.count(at(3), 500);
        let since = raised.limited(Way::Down, at(4)).map(|limited| limited.since);
        assert_eq!(since, Some(NOON + 3), "it is not used up since the smaller one was");
        let mut lowered = again(500, Spent { used_up: None, ..book.spent().clone() });
        let until = Some(NOON + 43_200);
        assert_eq!(lowered.next_change(at(5)), until);
        assert_eq!(
            lowered.limited(Way::Down, at(5)),
            Some(Limited { by: Limit::Budget, since: NOON + 5, until })
        );
    }

    #[test]
    fn what_this_node_spends_counts_however_many_others_do() {
        let mut book = book(LimitSettings { budget: Some(10_000), ..LimitSettings::default() });
        let key = |seed: u16| {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(&seed.to_le_bytes());
            SecretKey::from_seed(bytes).node()
        };
        for seed in 0..=MAX_SPENDERS as u16 {
            book.hear(at(0), key(seed), &word(1, false));
        }
        book.count(at(0), 5);
        assert_eq!(book.spent_today(at(0)), (5, MAX_SPENDERS as u64 + 5));
    }

    #[test]
    fn a_word_about_another_day_counts_for_nothing() {
        let mut book = book(LimitSettings { budget: Some(1_000), ..LimitSettings::default() });
        book.hear(at(0), node(2), &WanWord { day: at(0).moment.day() + 1, ..word(5_000, false) });
        assert_eq!(book.limited(Way::Down, at(0)), None);
    }

    #[test]
    fn a_rate_is_shared_with_those_who_said_lately_that_they_take() {
        let mut book = book(LimitSettings { down: Some(1_000_000), ..LimitSettings::default() });
        let cost = |book: &mut Book, now: Now| {
            let begin = book.next(Way::Down, now);
            book.pass(Way::Down, now, 1_000_000) - begin
        };
        book.pass(Way::Down, at(0), 300_000);
        assert_eq!(cost(&mut book, at(0)), 1_000_000);
        book.hear(at(0), node(2), &word(0, true));
        book.hear(at(0), node(3), &word(0, false));
        assert_eq!(cost(&mut book, at(0)), 2_000_000);
        book.gone(&node(2));
        assert_eq!(cost(&mut book, at(0)), 1_000_000);
        book.hear(at(0), node(2), &word(0, true));
        assert_eq!(book.sharers(Way::Down, at(3)), 1, "it has not said so for a while");
        assert_eq!(book.sharers(Way::Up, at(0)), 1);
    }

    #[test]
    fn a_rate_holds_up_what_comes_as_fast_as_it_lets_and_nothing_that_is_slower() {
        const RATE: u64 = 1_000_000;
        const PIECE: u64 = 16_000;
        let mut book = book(LimitSettings { down: Some(RATE), ..LimitSettings::default() });
        assert_eq!(book.held_to(at(0)), None);
        // Pieces from a link that gives so many bytes a second, for 5 s.
        let mut tick = at(0).tick;
        let mut take = |book: &mut Book, link: u64| {
            let end = tick + 5_000_000;
            while tick < end {
                let now = Now { tick, ..at(0) };
                tick = (tick + PIECE * 1_000_000 / link).max(book.pass(Way::Down, now, PIECE));
            }
            // In the middle between two pieces.
            book.held_to(Now { tick: tick - PIECE * 500_000 / link, ..at(0) })
        };
        assert_eq!(take(&mut book, 10 * RATE), Some(HeldTo { rate: RATE, nodes: 1 }));
        assert_eq!(take(&mut book, RATE * 9 / 10), None);
        assert_eq!(take(&mut book, RATE / 4), None);
        book.hear(Now { tick: at(0).tick + 15_000_000, ..at(0) }, node(2), &word(0, true));
        assert_eq!(take(&mut book, 10 * RATE).map(|held| held.rate), Some(RATE));
        assert_eq!(book.held_to(at(60)), None, "nothing comes any more");
    }

    #[test]
    fn a_node_is_active_as_long_as_it_takes_or_waits_for_its_turn() {
        let mut book = book(LimitSettings { down: Some(8_000), ..LimitSettings::default() });
        assert!(!book.is_active(at(0)) && !book.word(at(0)).takes);
        book.pass(Way::Down, at(0), 80_000);
        assert!(book.word(at(11)).takes);
        assert!(!book.is_active(at(13)));
    }

    proptest! {
        /// Whatever several nodes take, as fast as they are let, the site's rate holds, and none of them starves.
        #[test]
        fn sharers_hold_the_rate_together(
            count in 1..6u8, rate in 100_000..5_000_000u64, piece in 1_000..100_000u64,
        ) {
            let settings = LimitSettings { down: Some(rate), ..LimitSettings::default() };
            let mut books: Vec<Book> =
                (0..count).map(|seed| Book::new(settings.clone(), node(seed), Spent::default(), None)).collect();
            let mut next = vec![at(0).tick; usize::from(count)];
            let mut taken = vec![0u64; usize::from(count)];
            let end = at(0).tick + 20_000_000;
            let mut told = 0;
            loop {
                let (who, tick) = next.iter().copied().enumerate().min_by_key(|(_, tick)| *tick).unwrap();
                if tick >= end {
                    break;
                }
                let now = Now { tick, ..at(0) };
                if tick >= told {
                    told = tick + 1_000_000;
                    for (seed, book) in (0..count).zip(&mut books) {
                        for other in (0..count).filter(|other| *other != seed) {
                            book.hear(now, node(other), &word(0, true));
                        }
                    }
                }
                taken[who] += piece;
                next[who] = books[who].pass(Way::Down, now, piece);
            }
            let (sum, allowed) = (taken.iter().sum::<u64>(), rate * 20);
            let slack = u64::from(count) * piece + rate / 4;
            prop_assert!(sum <= allowed + slack, "{} of {}", sum, allowed);
            prop_assert!(sum + slack >= allowed, "{} of {}", sum, allowed);
            let fair = sum / u64::from(count);
            prop_assert!(taken.iter().all(|own| own.abs_diff(fair) <= 2 * piece));
        }

        /// Whatever is counted and heard in whatever order, the budget says no as soon as the sum is there and not before.
        #[test]
        fn a_budget_says_no_when_the_sum_is_there(
            budget in 1..10_000u64, steps in prop::collection::vec((0..5u8, 1..2_000u64), 0..20),
        ) {
            let mut book = book(LimitSettings { budget: Some(budget), ..LimitSettings::default() });
            let mut spent = [0u64; 5];
            for (who, bytes) in steps {
                spent[usize::from(who)] += bytes;
                match who {
                    0 => book.count(at(0), bytes),
                    _ => book.hear(at(0), node(10 + who), &word(spent[usize::from(who)], true)),
                }
                let sum = spent.iter().sum::<u64>();
                prop_assert_eq!(book.spent_today(at(0)), (spent[0], sum));
                prop_assert_eq!(book.limited(Way::Down, at(0)).is_some(), sum >= budget);
            }
        }
    }
}
