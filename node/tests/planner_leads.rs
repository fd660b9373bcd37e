//! Who leads, as one node sees it: nobody takes a place that is not free.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::sync::Arc;
use std::time::Duration;

use planner_support::site::{
    FOLLOWING, Site, alone, asked, leading, leads, may_lead, may_lead_after_asking, says, signed, ticks,
};
use planner_support::{CHUNK, blob, true_chain};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, MAX_PEERS, NoStates, Planner, Proof, Scope, Source};
use wherry_proto::{Attempt, ChunkIndex, ChunkMap, End, List, NodeId, Role, SecretKey, State, Update, link};

#[test]
fn a_leader_that_others_go_by_is_believed_before_it_has_said_anything_itself() {
    let site = Site::new(4);
    let (leader, others) = (site.nodes[3], &site.nodes[1..3]);
    let mut planner = site.planner();
    let stream = Some(Attempt { signer: leader, number: 7 });
    for other in others {
        planner.apply(Event::Met(*other, LinkClass::Lan, None));
    }
    planner.apply(Event::Met(leader, LinkClass::Lan, None));
    for known in 1..20 {
        let role = Role::Following { stream, known, may_lead: true, led_slowly: false };
        let told: Vec<_> = others.iter().flat_map(|other| says(&mut planner, *other, role)).collect();
        assert!(!leads(&told) && !leads(&may_lead(&mut planner)) && !leads(&planner.apply(Event::Tick)));
    }
    // It says itself that it does not.
    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
    assert!(leads(&says(&mut planner, leader, role)));
}

#[test]
fn those_who_say_by_turns_that_they_hold_the_blob_and_make_no_claim_hold_up_nobody() {
    let site = Site::new(3);
    let (mut holder, mut other) = (site.nodes[1], site.nodes[2]);
    let mut planner = site.planner();
    for node in [holder, other] {
        planner.apply(Event::Met(node, LinkClass::Lan, None));
        says(&mut planner, node, Role::Held);
    }
    let mut has_led = leads(&may_lead(&mut planner));
    for _ in 0..50 {
        // At any time one of them is about to make its claim.
        let nothing = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
        has_led |= leads(&says(&mut planner, other, nothing));
        for _ in 0..4 {
            has_led |= leads(&planner.apply(Event::Tick));
        }
        (holder, other) = (other, holder);
        has_led |= leads(&says(&mut planner, holder, Role::Held));
    }
    assert!(has_led);
}

#[test]
fn a_leader_keeps_its_place_however_many_come() {
    let count = 3 * MAX_PEERS;
    let site = Site::new(count as u8);
    // It had begun before the others came, whatever its rank.
    for leader in &site.nodes[count / 2..] {
        let mut planner = site.planner();
        planner.apply(Event::Met(*leader, LinkClass::Lan, None));
        says(&mut planner, *leader, Role::Leading { attempt: 1, known: 1 });
        assert!(!leads(&may_lead(&mut planner)) && !leads(&planner.apply(Event::Tick)));
        for newcomer in site.nodes[1..].iter().filter(|newcomer| *newcomer != leader) {
            let effects = planner.apply(Event::Met(*newcomer, LinkClass::Lan, None));
            assert!(!effects.contains(&Effect::Unfollow(*leader)));
        }
    }
}

fn searches(effects: &[Effect], scope: Scope) -> bool {
    effects.contains(&Effect::Search(scope))
}

/// A search of the network costs many messages, a question to each node elsewhere costs some, and a thin link bears them.
#[test]
fn nodes_elsewhere_are_asked_by_whoever_leads_and_not_by_those_who_follow() {
    let site = Site::new(3);
    let mut follower = site.planner();
    follower.apply(Event::Met(site.nodes[1], LinkClass::Lan, Some(Role::Leading { attempt: 9, known: 0 })));
    let mut effects = may_lead(&mut follower);
    for _ in 0..8 {
        effects.extend(follower.apply(Event::Tick));
        effects.extend(says(&mut follower, site.nodes[1], Role::Leading { attempt: 9, known: 0 }));
    }
    let any = effects.iter().any(|effect| matches!(effect, Effect::Search(_)));
    assert!(!any, "{effects:?}");
    let mut alone = site.planner();
    let effects = may_lead(&mut alone);
    assert!(searches(&effects, Scope::OtherSites) && searches(&effects, Scope::Network) && alone.leads());
}

#[test]
fn nothing_is_read_before_those_at_other_sites_have_said_whether_they_hold_the_blob() {
    let site = Site::new(2);
    let start = || {
        let mut planner = site.planner();
        let mut effects = planner.apply(Event::OriginOffered);
        effects.extend(planner.apply(Event::Searched(Scope::Site)));
        effects.extend(planner.apply(Event::RolesAsked));
        assert!(searches(&effects, Scope::OtherSites) && !searches(&effects, Scope::Network), "{effects:?}");
        assert!(!leads(&effects) && !leads(&planner.apply(Event::Tick)));
        planner
    };
    let mut planner = start();
    let effects = planner.apply(Event::Searched(Scope::OtherSites));
    assert!(leads(&effects) && planner.reads_origin() && searches(&effects, Scope::Network), "{effects:?}");
    // What one of them holds comes from there, and nobody else need be searched for.
    let mut planner = start();
    let mut effects = planner.apply(Event::Offered(site.nodes[1], LinkClass::Wan));
    effects.extend(planner.apply(Event::Searched(Scope::OtherSites)));
    effects.extend(planner.apply(Event::Tick));
    assert!(!planner.reads_origin() && !searches(&effects, Scope::Network), "{effects:?}");
    // Unless it gives nothing after all.
    let effects = planner.apply(Event::PeerFailed(site.nodes[1], "it is gone".into()));
    assert!(leads(&effects) && planner.reads_origin() && searches(&effects, Scope::Network), "{effects:?}");
}

#[test]
fn those_at_other_sites_are_asked_once_more_when_a_limit_has_ended() {
    let site = Site::new(2);
    let mut planner = site.planner();
    assert!(leads(&may_lead(&mut planner)));
    planner.apply(Event::Limited(true));
    let mut effects = planner.apply(Event::Limited(false));
    effects.extend(planner.apply(Event::Tick));
    effects.extend(planner.apply(Event::RolesAsked));
    assert!(searches(&effects, Scope::OtherSites) && !leads(&effects), "{effects:?}");
    assert!(leads(&planner.apply(Event::Searched(Scope::OtherSites))));
}

#[test]
fn a_small_blob_is_read_rather_than_searched_for_all_over_the_network_where_there_is_an_origin() {
    let site = Site::new(1);
    let start = |size| Planner::new(site.nodes[0], site.digest, ChunkMap::new(size).unwrap(), &[], 1);
    for (size, is_searched) in [(6 << 20, false), ((6 << 20) + 1, true)] {
        let effects = may_lead(&mut start(size));
        assert!(searches(&effects, Scope::OtherSites) && leads(&effects));
        assert_eq!(searches(&effects, Scope::Network), is_searched);
        // One that gives nothing may be out of reach, whatever it takes to be told so.
        let mut planner = start(size);
        let effects: Vec<Effect> =
            may_lead(&mut planner).into_iter().chain(ticks(&mut planner, 20)).collect();
        assert!(planner.reads_origin() && searches(&effects, Scope::Network));
        let mut planner = start(size);
        let events = [Event::Searched(Scope::Site), Event::NobodyLeads, Event::Searched(Scope::OtherSites)];
        let effects: Vec<Effect> = events.into_iter().flat_map(|event| planner.apply(event)).collect();
        assert!(searches(&effects, Scope::Network), "{effects:?}");
    }
}

#[test]
fn where_nobody_has_a_way_to_a_blob_those_of_high_rank_search_the_network_first_and_all_in_the_end() {
    let waited = |place| {
        let site = Site::new(16);
        let mut planner = site.planner_of(place);
        for node in site.nodes.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, node)| *node)
        {
            planner.apply(Event::Met(node, LinkClass::Lan, None));
            says(
                &mut planner,
                node,
                Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false },
            );
        }
        let mut effects = planner.apply(Event::Searched(Scope::Site));
        let mut ticks = 0;
        while !searches(&effects, Scope::OtherSites) {
            ticks += 1;
            assert!(ticks < 10, "{effects:?}");
            effects.extend(planner.apply(Event::Tick));
        }
        effects.extend(planner.apply(Event::Searched(Scope::OtherSites)));
        assert!(searches(&effects, Scope::Network));
        ticks
    };
    let waited: Vec<u32> = (0..16).map(waited).collect();
    assert_eq!(waited[..4], [0, 1, 2, 3]);
    assert!(waited.iter().all(|ticks| *ticks <= 4), "{waited:?}");
}

#[test]
fn a_word_that_was_asked_for_counts_no_more_once_a_peer_tells_itself() {
    let site = Site::new(3);
    let peer = site.nodes[1];
    let mut planner = site.planner();
    planner.apply(Event::Met(peer, LinkClass::Lan, Some(Role::Leading { attempt: 9, known: 0 })));
    assert!(!leads(&may_lead(&mut planner)));
    assert!(leads(&says(&mut planner, peer, FOLLOWING)));
    // It was said before, and came late.
    let late = planner.apply(Event::Met(peer, LinkClass::Lan, Some(Role::Leading { attempt: 9, known: 5 })));
    assert!(late.is_empty());
    assert!(planner.leads());
}

#[test]
fn a_word_with_more_states_than_the_blob_has_counts_for_nothing() {
    let site = Site::new(3);
    let mut planner = site.planner();
    let word = Role::Leading { attempt: 9, known: u32::MAX };
    planner.apply(Event::Met(site.nodes[1], LinkClass::Lan, Some(word)));
    assert!(asked(&may_lead(&mut planner)).is_some());
    // It was connected at once, and may say something for a while.
    let mut effects = planner.apply(Event::RolesAsked);
    for _ in 0..4 {
        effects.extend(planner.apply(Event::Tick));
        effects.extend(alone(&mut planner, Event::RolesAsked));
    }
    assert!(leads(&effects));
}

#[test]
fn a_cold_site_shakes_hands_with_the_highest_in_rank_and_the_leader_at_once_and_with_the_others_by_and_by() {
    let count = MAX_PEERS + 1;
    let site = Site::new(count as u8);
    let mut planner = site.planner();
    let followed = |effects: &[Effect]| -> Vec<NodeId> {
        effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Follow(node) => Some(*node),
                _ => None,
            })
            .collect()
    };
    let mut met = Vec::new();
    for node in &site.nodes[1..count - 1] {
        met.extend(followed(&planner.apply(Event::Met(*node, LinkClass::Lan, Some(FOLLOWING)))));
    }
    assert!(met.len() <= 10 && site.nodes[1..5].iter().all(|node| met.contains(node)), "{}", met.len());
    let leader = site.nodes[count - 1];
    let word = Some(Role::Leading { attempt: 9, known: 0 });
    assert_eq!(followed(&planner.apply(Event::Met(leader, LinkClass::Lan, word))), [leader]);
    let mut ticks = 0;
    while met.len() < count - 2 {
        let further = followed(&planner.apply(Event::Tick));
        assert!((1..=6).contains(&further.len()));
        met.extend(further);
        ticks += 1;
    }
    assert!(ticks <= 5);
    // Whoever holds the blob is worth it at once.
    let holder = SecretKey::from_seed([200; 32]).node();
    assert!(followed(&planner.apply(Event::Offered(holder, LinkClass::Lan))).contains(&holder));
}

/// A planner that reads the origin, and what it reads.
struct Reading {
    planner: Planner,
    map: ChunkMap,
    next: Option<(ChunkIndex, State)>,
}

impl Reading {
    fn new(mut planner: Planner) -> Self {
        let effects = may_lead(&mut planner);
        let next = effects.iter().find_map(|effect| match effect {
            Effect::ReadOrigin(from, state, _) => Some((*from, *state)),
            _ => None,
        });
        Self { planner, map: ChunkMap::new(64 << 20).unwrap(), next }
    }

    /// One more chunk comes and is kept.
    fn reads(&mut self) {
        let (index, state) = self.next.unwrap();
        let bytes = vec![0; self.map.len(index) as usize];
        let read = link(&self.map, index, state, &bytes).unwrap();
        self.planner.apply(Event::Arrived(Source::Origin, index, vec![read], Duration::ZERO));
        self.planner.apply(Event::Kept(Source::Origin, index, read));
        let End::State(state) = read.to else { panic!("the blob is longer than that") };
        self.next = self.map.next(index).map(|next| (next, state));
    }
}

#[test]
fn a_leader_whose_link_is_slow_is_not_unseated_by_one_of_higher_rank_that_begins_later() {
    let site = Site::new(2);
    let newcomer = site.nodes[0];
    for (chunks, ticks, stays) in [
        // A chunk takes 2 s: it began long before.
        (3, 4, true),
        // All of them came within the last second: who can tell.
        (3, 0, false),
        // It is ahead by so much that nothing else counts.
        (20, 0, true),
    ] {
        let mut reading = Reading::new(site.planner_of(1));
        assert!(reading.planner.leads());
        for _ in 0..chunks {
            reading.reads();
            (0..ticks).for_each(|_| drop(reading.planner.apply(Event::Tick)));
        }
        reading.planner.apply(Event::Met(newcomer, LinkClass::Lan, None));
        says(&mut reading.planner, newcomer, Role::Leading { attempt: 9, known: 0 });
        assert_eq!(reading.planner.leads(), stays, "{chunks} chunks, {ticks} ticks each");
    }
}

#[test]
fn one_of_higher_rank_that_begins_later_leaves_the_place_to_whoever_is_in_front() {
    let site = Site::new(2);
    let sitting = site.nodes[1];
    let mut reading = Reading::new(site.planner());
    reading.planner.apply(Event::Met(sitting, LinkClass::Lan, None));
    // It reads a chunk in 1.5 s, and so does this node.
    let mut ticks = 0;
    while reading.planner.leads() {
        says(&mut reading.planner, sitting, Role::Leading { attempt: 9, known: 4 + ticks / 3 });
        reading.planner.apply(Event::Tick);
        ticks += 1;
        if ticks % 3 == 0 {
            reading.reads();
        }
        assert!(ticks < 4);
    }
}

#[test]
fn of_two_who_begin_at_the_same_time_the_higher_in_rank_stays() {
    let site = Site::new(2);
    for me in [0, 1] {
        let other = site.nodes[1 - me];
        let mut reading = Reading::new(site.planner_of(me));
        reading.planner.apply(Event::Met(other, LinkClass::Lan, None));
        for known in 0..3 {
            says(&mut reading.planner, other, Role::Leading { attempt: 9, known });
            if reading.planner.leads() {
                reading.reads();
            }
        }
        assert_eq!(reading.planner.leads(), me == 0);
    }
}

/// A leader that is done holds the blob from then on: its chain comes, and then what is missing.
#[test]
fn a_leader_that_has_finished_is_not_taken_for_one_that_is_gone() {
    let truth = blob(8 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let map = chain.map();
    let [me, leader] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let mut planner = Planner::new(me, chain.digest(), map, &[], 1);
    planner.apply(Event::OriginOffered);
    planner.apply(Event::Met(leader, LinkClass::Lan, None));
    let says = |role| Event::Updated(leader, Update { role, here: List::first_of([]) });
    planner.apply(says(Role::Leading { attempt: 7, known: 0 }));
    planner.apply(Event::Searched(Scope::Site));
    // It reads for a long time.
    for known in 1..8 {
        for _ in 0..8 {
            planner.apply(Event::Tick);
        }
        planner.apply(says(Role::Leading { attempt: 7, known }));
    }
    let mut effects = planner.apply(says(Role::Held));
    // Making the chain may take it a moment.
    for _ in 0..4 {
        effects.extend(planner.apply(Event::Tick));
    }
    assert_eq!(effects, [Effect::AskChain(leader)]);
    let effects = planner.apply(Event::Chain(leader, chain));
    let is_fetch = |effect: &Effect| matches!(effect, Effect::Fetch(node, ..) if *node == leader);
    assert!(!effects.is_empty() && effects.iter().all(is_fetch), "{effects:?}");
    // One that then says nothing more is given up all the same.
    alone(&mut planner, Event::PeerFailed(leader, "silent".into()));
    assert!(planner.leads());
}

#[test]
fn whoever_names_ever_new_leaders_that_nobody_has_seen_keeps_nobody_from_leading() {
    let site = Site::new(3);
    let (mut planner, _) = leading(&site);
    let invent = |planner: &mut Planner, number: u64| {
        let stream = Some(Attempt { signer: SecretKey::from_seed([200; 32]).node(), number });
        let role = Role::Following { stream, known: 900, may_lead: true, led_slowly: false };
        says(planner, site.nodes[1], role);
    };
    for number in 0..100 {
        invent(&mut planner, number);
        ticks(&mut planner, 3);
    }
    assert!(planner.leads());
}

#[test]
fn whoever_signs_two_readings_under_one_number_is_banned_and_nobody_who_passed_them_on() {
    let site = Site::new(3);
    let (leader, relay) = (site.nodes[1], site.nodes[2]);
    let attempt = Attempt { signer: leader, number: 7 };
    let leading = |known| Role::Leading { attempt: 7, known };
    let following =
        |known| Role::Following { stream: Some(attempt), known, may_lead: false, led_slowly: false };
    let asked = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::AskStates(node, of, before) if *of == attempt => Some((*node, before.known())),
            _ => None,
        })
    };
    let blamed = |effects: &[Effect]| -> Vec<Effect> {
        let blames = |effect: &&Effect| matches!(effect, Effect::Ban(..) | Effect::Drop(..));
        effects.iter().filter(blames).cloned().collect()
    };
    let mut planner = site.planner();
    planner.apply(Event::Met(leader, LinkClass::Lan, None));
    planner.apply(Event::Met(relay, LinkClass::Lan, None));
    assert_eq!(asked(&says(&mut planner, leader, leading(2))), Some((leader, 0)));
    planner.apply(Event::States(leader, attempt, Ok(signed(&site, attempt, &[1, 2]))));
    // More of the same is no lie.
    assert_eq!(asked(&says(&mut planner, leader, leading(3))), Some((leader, 2)));
    let effects = planner.apply(Event::States(leader, attempt, Ok(signed(&site, attempt, &[1, 2, 3]))));
    assert_eq!((blamed(&effects), planner.ledger().stream().known()), (Vec::new(), 3));
    // Another node was told something else, which does not go on from there.
    assert_eq!(asked(&says(&mut planner, relay, following(4))), Some((relay, 3)));
    let effects = planner.apply(Event::States(relay, attempt, Err(NoStates::Others)));
    let (node, known) = asked(&effects).unwrap();
    assert_eq!((blamed(&effects), known), (Vec::new(), 0));
    let effects = planner.apply(Event::States(node, attempt, Ok(signed(&site, attempt, &[1, 9, 3, 4]))));
    assert_eq!(blamed(&effects), [Effect::Ban(leader, Proof::TwoReadings(7))]);
    assert!(effects.contains(&Effect::StreamVoid(attempt)));
    // Nothing of it counts any more, whoever still goes by it.
    assert_eq!(planner.ledger().stream().known(), 0);
    assert_eq!(asked(&says(&mut planner, relay, following(5))), None);
    assert!(leads(&may_lead_after_asking(&mut planner)));
}
