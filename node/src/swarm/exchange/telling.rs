//! When whoever follows a blob is told what is new: soon what it may hear of nowhere else, together with more what it may.

use std::time::Duration;

use wherry_proto::{ChunkIndex, ChunkMap, ChunkSet, List, MAX_RUNS, Role, Run, Update};

use super::{MOST_UPDATE_TIME, UPDATE_TIME};

/// How many chunks that are nothing rare are told together at once. Most messages of a site that trades would be of
/// these, one for each chunk, node and neighbour, and would cost it more processor time than the chunks themselves.
const TOGETHER: u32 = 8;

/// How long news wait for company at most where links are not slow: short beside the time after which a leader counts as
/// stalled.
const COMPANY_TIME: Duration = Duration::from_secs(2);

/// The same for whoever has nothing but more states to tell of. They come with news of chunks as well, and nobody needs them
/// before: in the first 20 s of 64 nodes whose upload is scarce such messages are 4 % of all bytes with two seconds.
const COMPANY_TIME_OF_STATES: Duration = Duration::from_secs(3);

/// The same for one who leads: it must be seen that it reads on, and whoever follows it from another site hears of its chunks
/// from nobody else.
const COMPANY_TIME_OF_READING: Duration = Duration::from_secs(1);

/// For how many times as long as rare news what is common waits for company where links are slow. In the simulation of 64
/// nodes whose upload is scarce, words about chunks are a tenth of all bytes with two, and all are done 2 % sooner with six.
const COMPANY_WAITS: u32 = 6;

/// The same for one who leads, and for whoever has nothing but more states to tell of: that a reading goes on must be seen.
const COMPANY_WAITS_OF_READING: u32 = 2;

/// For how long news are kept back where a chunk takes so long to come: one to two times as long. Those who trade have
/// several under way, and more to choose from, while a message for each chunk and follower would be a fifth of all bytes.
/// Doubled step by step, so that what is told of several blobs falls together.
fn patience(pace: Option<Duration>) -> Duration {
    let mut patience = UPDATE_TIME;
    while patience < MOST_UPDATE_TIME && pace.is_some_and(|pace| patience <= pace) {
        patience *= 2;
    }
    patience
}

/// With how few chunks here those that are rare are told without delay, as if links were quick: nobody has enough to choose from
/// yet, and links idle until they have.
const BEGINNING: u32 = 16;

/// How many followers of a blob are told soon of a rare chunk where links are slow, and of one that has just been read. The
/// others hear of it together with more, and of most of it from these.
///
/// The whole site follows whoever leads, and asks it for states: were all told at once, words would fill most of its link at the
/// beginning.
const FIRST_TOLD: usize = 4;

/// Of so many of the chunks that it has read last a leader tells only those who are told first, other ones for each chunk, as one
/// who seeds sparingly does ("superseeding", J. Hoffman, BEP 16): what all know of all ask for, most of them in vain, and the few
/// that are given it soon pass it on. In the simulation of 64 nodes whose upload is scarce all are done 0.6 % sooner by that and by
/// [`BEGINNING`], with 3 % fewer messages.
const HELD_BACK: u32 = 32;

/// After how long it tells all of them, or twice as long at most, if fewer than [`HELD_BACK`] more were read: those who were told
/// first may be slow, or gone.
const HOLD_BACK_TIME: Duration = Duration::from_secs(8);

/// What one follower has been told of a blob that arrives.
pub struct Telling {
    map: ChunkMap,
    told: ChunkSet,
    role: Option<Role>,
    // When, since the beginning of whatever clock the caller has.
    at: Duration,
    // Since when there is something to tell.
    since: Option<Duration>,
    // Which chunks it is among the first to be told of.
    lot: u32,
    front: Front,
}

/// How far a reading was some time ago.
#[derive(Default)]
struct Front {
    since: Duration,
    known: u32,
    // How far it was when that was looked at before.
    known_before: u32,
}

/// What matters of those who follow a blob.
#[derive(Debug, Clone)]
pub struct Audience {
    /// The chunks that are no news to this follower: it has them, or several others do.
    pub no_news: ChunkSet,
    /// How long a chunk takes to come here; `None` if none has.
    pub pace: Option<Duration>,
    /// How many there are.
    pub followers: usize,
    /// Whether this follower is of this site, where others tell it of chunks too.
    pub is_near: bool,
}

/// What to do for a follower now.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Tell this.
    Say(Update),
    /// Nothing for so long, unless something else is new before.
    Wait(Duration),
    /// Nothing until something is new.
    Nothing,
    /// What was told cannot be taken back: whoever follows must begin anew.
    Anew,
}

impl Telling {
    /// Of a follower that has been told nothing. Its `lot` is to differ from those of others.
    pub fn new(map: ChunkMap, lot: u32) -> Self {
        Self {
            map,
            told: ChunkSet::empty(map),
            role: None,
            at: Duration::ZERO,
            since: None,
            lot,
            front: Front::default(),
        }
    }

    /// Whether this follower is among the first who are told of a chunk.
    fn is_first_told(&self, index: ChunkIndex, audience: &Audience) -> bool {
        let share = (audience.followers / FIRST_TOLD).max(1) as u32;
        index.get().wrapping_add(self.lot).is_multiple_of(share)
    }

    /// The chunks that are left to others to tell this follower of for now.
    fn held_back(&mut self, role: Role, fresh: &ChunkSet, audience: &Audience, now: Duration) -> ChunkSet {
        let mut held = ChunkSet::empty(self.map);
        let Role::Leading { known, .. } = role else { return held };
        // What has come to its end moves no more, and would look as if it stood still.
        if known + 1 >= self.map.count() {
            return held;
        }
        if now >= self.front.since + HOLD_BACK_TIME {
            self.front = Front { since: now, known, known_before: self.front.known };
        }
        let from = self.front.known_before.max(known.saturating_sub(HELD_BACK));
        let last = (from..known).filter_map(|number| self.map.index(number));
        for index in last.filter(|index| audience.is_near && fresh.contains(*index)) {
            if !self.is_first_told(index, audience) {
                held.insert(index);
            }
        }
        held
    }

    /// What to tell, given what is here, and who it is told to. What is said counts as told. `now` is on any clock that goes
    /// on steadily, the same for all that one follower is told.
    pub fn next(&mut self, role: Role, here: &ChunkSet, audience: &Audience, now: Duration) -> News {
        if !self.told.without(here).is_empty() {
            return News::Anew;
        }
        let all_fresh = here.without(&self.told);
        let held = self.held_back(role, &all_fresh, audience, now);
        let fresh = all_fresh.without(&held);
        if fresh.is_empty() && self.role == Some(role) {
            let until = self.front.since + HOLD_BACK_TIME;
            return if held.is_empty() { News::Nothing } else { News::Wait(until - now) };
        }
        let since = *self.since.get_or_insert(now);
        let rare = fresh.without(&audience.no_news);
        let patience = match here.len() <= BEGINNING && !rare.is_empty() {
            true => UPDATE_TIME,
            false => patience(audience.pace),
        };
        let leads = matches!(role, Role::Leading { .. } | Role::Candidate { .. });
        let is_urgent = match patience {
            UPDATE_TIME if !leads => !rare.is_empty(),
            _ => rare.iter().any(|index| self.is_first_told(index, audience)),
        };
        // What comes last has no company to wait for, and it is all that whoever follows still waits for.
        let is_ending = here.len() + TOGETHER >= self.map.count();
        let due = match self.role {
            Some(before) if before.is_alike(role) => {
                match is_urgent || fresh.len() >= TOGETHER || is_ending {
                    true => match patience {
                        UPDATE_TIME => self.at + UPDATE_TIME,
                        // Other blobs that the follower is told of come to the same times.
                        long => long * (since.as_millis() / long.as_millis() + 1) as u32,
                    },
                    // Nor is it news of its own how many more states are known: whoever reads them has their chunks in a
                    // moment, and whoever follows asks where there are chunks.
                    false => {
                        let (least, waits) = match (leads, fresh.is_empty()) {
                            (true, _) => (COMPANY_TIME_OF_READING, COMPANY_WAITS_OF_READING),
                            (false, true) => (COMPANY_TIME_OF_STATES, COMPANY_WAITS_OF_READING),
                            (false, false) => (COMPANY_TIME, COMPANY_WAITS),
                        };
                        self.at + least.max(waits * patience)
                    }
                }
            }
            _ => now,
        };
        if now < due {
            return News::Wait(due - now);
        }
        let runs: Vec<Run> = fresh.runs().take(MAX_RUNS).collect();
        let numbers = runs.iter().flat_map(|run| run.from..run.from + run.len);
        for index in numbers.filter_map(|number| self.map.index(number)) {
            self.told.insert(index);
        }
        self.role = Some(role);
        (self.at, self.since) = (now, None);
        News::Say(Update { role, here: List::first_of(runs) })
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::{Attempt, SecretKey};

    use super::*;

    /// One follower on a quick link.
    fn knows(no_news: &ChunkSet) -> Audience {
        Audience { no_news: no_news.clone(), pace: None, followers: 1, is_near: true }
    }

    fn map() -> ChunkMap {
        ChunkMap::new(64 << 20).unwrap()
    }

    fn set(numbers: impl IntoIterator<Item = u32>) -> ChunkSet {
        let mut set = ChunkSet::empty(map());
        numbers.into_iter().for_each(|number| {
            set.insert(map().index(number).unwrap());
        });
        set
    }

    fn following(known: u32) -> Role {
        let signer = SecretKey::from_seed([1; 32]).node();
        let stream = Some(Attempt { signer, number: 1 });
        Role::Following { stream, known, may_lead: true, led_slowly: false }
    }

    /// Where nobody leads, and so many states of a claimed chain are known.
    fn by_chain(known: u32) -> Role {
        Role::Following { stream: None, known, may_lead: true, led_slowly: false }
    }

    fn said(news: News) -> Vec<u32> {
        let News::Say(update) = news else { panic!("{news:?}") };
        update.chunks(&map()).unwrap().map(|index| index.get()).collect()
    }

    #[test]
    fn a_rare_chunk_is_told_soon_and_a_common_one_when_there_are_more_or_it_has_waited() {
        let (none, second) = (set([]), Duration::from_secs(1));
        let mut telling = Telling::new(map(), 0);
        assert_eq!(said(telling.next(following(0), &none, &knows(&none), second)), [0; 0]);
        assert_eq!(telling.next(following(0), &none, &knows(&none), second), News::Nothing);
        assert_eq!(telling.next(following(0), &set([3]), &knows(&none), second), News::Wait(UPDATE_TIME));
        let now = second + UPDATE_TIME;
        assert_eq!(said(telling.next(following(0), &set([3]), &knows(&none), now)), [3]);
        let common = set(0..32);
        assert_eq!(telling.next(following(0), &set([3, 5]), &knows(&common), now), News::Wait(COMPANY_TIME));
        assert_eq!(telling.next(following(0), &set(3..10), &knows(&common), now), News::Wait(COMPANY_TIME));
        assert_eq!(telling.next(following(0), &set(3..12), &knows(&common), now), News::Wait(UPDATE_TIME));
        assert_eq!(said(telling.next(following(0), &set([3, 5]), &knows(&common), now + COMPANY_TIME)), [5]);
    }

    #[test]
    fn common_chunks_at_the_end_of_a_blob_are_told_soon() {
        let count = map().count();
        let mut telling = Telling::new(map(), 0);
        let (rest, common) = (set(0..count - TOGETHER - 1), set(0..count));
        assert!(matches!(telling.next(following(0), &rest, &knows(&common), COMPANY_TIME), News::Say(_)));
        let next = telling.next(following(0), &set(0..count - TOGETHER), &knows(&common), COMPANY_TIME);
        assert_eq!(next, News::Wait(UPDATE_TIME));
    }

    #[test]
    fn a_change_of_role_is_told_at_once_and_more_states_alone_are_not() {
        let (none, now) = (set([]), Duration::from_secs(1));
        let mut telling = Telling::new(map(), 0);
        telling.next(following(0), &none, &knows(&none), now);
        assert_eq!(telling.next(following(7), &none, &knows(&none), now), News::Wait(COMPANY_TIME_OF_STATES));
        assert_eq!(
            said(telling.next(Role::Leading { attempt: 1, known: 7 }, &none, &knows(&none), now)),
            [0; 0]
        );
    }

    #[test]
    fn it_is_told_at_once_that_a_chain_is_known_since_others_wait_for_its_states() {
        let (none, now) = (set([]), Duration::from_secs(1));
        let mut telling = Telling::new(map(), 0);
        telling.next(by_chain(0), &none, &knows(&none), now);
        assert_eq!(said(telling.next(by_chain(map().count() - 1), &none, &knows(&none), now)), [0; 0]);
    }

    #[test]
    fn whoever_was_told_of_a_chunk_that_is_not_here_any_more_begins_anew() {
        let (none, now) = (set([]), Duration::from_secs(1));
        let mut telling = Telling::new(map(), 0);
        telling.next(following(0), &set([1]), &knows(&none), now);
        assert_eq!(telling.next(following(0), &none, &knows(&none), now), News::Anew);
    }

    /// More than [`BEGINNING`] chunks, which are told, and these.
    fn many_and(numbers: impl IntoIterator<Item = u32>) -> ChunkSet {
        set((100..100 + BEGINNING).chain(numbers))
    }

    #[test]
    fn on_slow_links_news_of_several_blobs_are_told_together() {
        let (none, ms) = (set([]), Duration::from_millis);
        let slow = Audience { pace: Some(ms(1_300)), ..knows(&none) };
        let (mut one, mut two) = (Telling::new(map(), 0), Telling::new(map(), 0));
        for telling in [&mut one, &mut two] {
            telling.next(following(0), &many_and([]), &slow, ms(10));
        }
        // 1,600 ms is the first step above.
        assert_eq!(one.next(following(0), &many_and([1]), &slow, ms(1_850)), News::Wait(ms(1_350)));
        assert_eq!(two.next(following(0), &many_and([2]), &slow, ms(3_150)), News::Wait(ms(50)));
        assert_eq!(said(one.next(following(0), &many_and([1]), &slow, ms(3_200))), [1]);
        assert_eq!(said(two.next(following(0), &many_and([2]), &slow, ms(3_200))), [2]);
        let patiences = [ms(0), ms(49), ms(50), ms(3_600_000)].map(|pace| patience(Some(pace)));
        assert_eq!(patiences, [UPDATE_TIME, UPDATE_TIME, 2 * UPDATE_TIME, MOST_UPDATE_TIME]);
    }

    #[test]
    fn on_slow_links_the_first_chunks_are_told_to_all_at_once_if_they_are_rare() {
        let (none, ms) = (set([]), Duration::from_millis);
        let slow = Audience { pace: Some(ms(1_300)), followers: 32, ..knows(&none) };
        let waits = waits_for_a_chunk(following(0), &set([]), &slow);
        assert!(waits.iter().all(|wait| *wait == UPDATE_TIME), "{waits:?}");
        let common = Audience { no_news: set(0..32), ..slow };
        let waits = waits_for_a_chunk(following(0), &set([]), &common);
        assert!(waits.iter().all(|wait| *wait == COMPANY_WAITS * ms(1_600)), "{waits:?}");
    }

    #[test]
    fn on_slow_links_common_chunks_wait_for_company_and_how_far_a_reading_is_does_not() {
        let (none, common, ms) = (set([]), set(0..32), Duration::from_millis);
        let slow = Audience { pace: Some(ms(1_300)), ..knows(&common) };
        let wait = |role: fn(u32) -> Role, here: &ChunkSet| {
            let mut telling = Telling::new(map(), 0);
            telling.next(role(0), &none, &slow, ms(0));
            let News::Wait(wait) = telling.next(role(9), here, &slow, ms(0)) else { panic!() };
            wait
        };
        assert_eq!(wait(following, &set([3])), 6 * ms(1_600));
        assert_eq!(wait(following, &none), 2 * ms(1_600));
        assert_eq!(wait(|known| Role::Leading { attempt: 1, known }, &set([3])), 2 * ms(1_600));
    }

    /// For how long each of many followers waits until it is told of chunk 5 besides what is here already; each is, then.
    fn waits_for_a_chunk(role: Role, here: &ChunkSet, audience: &Audience) -> Vec<Duration> {
        let begin = Duration::from_millis(10);
        let mut more = here.clone();
        more.insert(map().index(5).unwrap());
        let tell = |lot| {
            let mut telling = Telling::new(map(), lot);
            telling.next(role, here, audience, begin);
            let mut now = begin;
            loop {
                match telling.next(role, &more, audience, now) {
                    News::Wait(wait) => now += wait,
                    news => {
                        assert_eq!(said(news), [5]);
                        return now - begin;
                    }
                }
            }
        };
        (0..audience.followers as u32).map(tell).collect()
    }

    #[test]
    fn on_slow_links_a_rare_chunk_is_told_soon_to_some_of_many_followers_and_to_all_in_the_end() {
        let (none, ms) = (set([]), Duration::from_millis);
        let slow = Audience { pace: Some(ms(1_300)), followers: 32, ..knows(&none) };
        let waits = waits_for_a_chunk(following(0), &many_and([]), &slow);
        assert_eq!(waits.iter().filter(|wait| **wait < ms(1_600)).count(), FIRST_TOLD);
        assert!(waits.iter().all(|wait| *wait <= COMPANY_WAITS * ms(1_600)), "{waits:?}");
    }

    #[test]
    fn whoever_leads_tells_some_of_many_followers_soon_of_what_it_reads_and_all_in_the_end() {
        let leading = Role::Leading { attempt: 1, known: 7 };
        let quick = Audience { followers: 64, ..knows(&set([])) };
        let waits = waits_for_a_chunk(leading, &set([]), &quick);
        assert_eq!(waits.iter().filter(|wait| **wait == UPDATE_TIME).count(), FIRST_TOLD);
        let late = waits.iter().filter(|wait| **wait != UPDATE_TIME);
        assert!(late.clone().all(|wait| *wait >= HOLD_BACK_TIME), "{waits:?}");
        assert!(late.clone().all(|wait| *wait <= 2 * HOLD_BACK_TIME), "{waits:?}");
        let waits = waits_for_a_chunk(following(0), &set([]), &quick);
        assert!(waits.iter().all(|wait| *wait == UPDATE_TIME), "{waits:?}");
    }

    #[test]
    fn whoever_leads_tells_all_of_what_it_read_long_ago_or_has_from_elsewhere() {
        let quick = Audience { followers: 64, ..knows(&set([])) };
        // Chunk 5 was read before the last ones, or is none of this reading.
        for known in [5 + HELD_BACK + 1, 5] {
            let waits = waits_for_a_chunk(Role::Leading { attempt: 1, known }, &set([]), &quick);
            assert!(waits.iter().all(|wait| *wait <= COMPANY_TIME_OF_READING), "{waits:?}");
        }
    }

    #[test]
    fn what_is_held_back_is_told_once_enough_more_is_read_or_the_reading_ends() {
        let quick = Audience { followers: 64, ..knows(&set([])) };
        let (here, begin) = (set([5]), Duration::from_secs(100));
        let leading = |known| Role::Leading { attempt: 1, known };
        for next in [leading(5 + HELD_BACK), leading(5 + HELD_BACK + 1), following(9)] {
            // Of another lot than chunk 5.
            let mut telling = Telling::new(map(), 1);
            assert_eq!(said(telling.next(leading(7), &here, &quick, begin)), [0; 0]);
            let soon = begin + COMPANY_TIME_OF_READING;
            let is_held = next == leading(5 + HELD_BACK);
            assert_eq!(said(telling.next(next, &here, &quick, soon)).is_empty(), is_held, "{next:?}");
        }
    }

    #[test]
    fn a_reading_that_has_come_to_its_end_holds_nothing_back() {
        let short = ChunkMap::new(20 * (32 << 10)).unwrap();
        let none = ChunkSet::empty(short);
        let mut here = none.clone();
        here.insert(short.index(5).unwrap());
        let quick = Audience { followers: 64, ..knows(&none) };
        for (known, told) in [(18, false), (19, true)] {
            let mut telling = Telling::new(short, 1);
            let News::Say(first) =
                telling.next(Role::Leading { attempt: 1, known }, &here, &quick, COMPANY_TIME)
            else {
                panic!()
            };
            assert_eq!(first.here.iter().count() > 0, told);
        }
    }

    #[test]
    fn followers_at_other_sites_and_few_followers_are_told_of_all_that_is_read() {
        let leading = Role::Leading { attempt: 1, known: 7 };
        let far = Audience { followers: 64, is_near: false, ..knows(&set([])) };
        let few = Audience { followers: FIRST_TOLD, ..knows(&set([])) };
        for audience in [far, few] {
            let waits = waits_for_a_chunk(leading, &set([]), &audience);
            assert!(waits.iter().all(|wait| *wait <= COMPANY_TIME_OF_READING), "{waits:?}");
        }
    }
}
