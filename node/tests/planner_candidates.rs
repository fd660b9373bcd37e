//! Who is about to lead says so and asks, before it reads.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::collections::BTreeSet;

use planner_support::site::{FOLLOWING, Site, alone, asked, leading, leads, may_lead, says, ticks};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, MAX_PEERS, STALL};
use wherry_proto::{Attempt, Role};

#[test]
fn nobody_begins_to_lead_what_a_neighbour_says_it_leads_before_that_one_is_connected() {
    let site = Site::new(4);
    for (leader, word) in [
        (1, Role::Leading { attempt: 3, known: 0 }),
        (
            3,
            Role::Following {
                stream: Some(Attempt { signer: site.nodes[1], number: 3 }),
                known: 2,
                may_lead: true,
                led_slowly: false,
            },
        ),
    ] {
        let mut planner = site.planner();
        planner.apply(Event::Met(site.nodes[2], LinkClass::Lan, Some(FOLLOWING)));
        planner.apply(Event::Met(site.nodes[leader], LinkClass::Lan, Some(word)));
        assert!(!leads(&may_lead(&mut planner)));
        // Nothing further is heard of it: then its place is free after the usual time.
        let (mut ticks, mut begun) = (0, false);
        while !begun {
            let mut effects = alone(&mut planner, Event::Tick);
            if asked(&effects).is_some() {
                effects = alone(&mut planner, Event::RolesAsked);
            }
            begun = leads(&effects);
            ticks += 1;
            assert!(ticks < 2 * STALL);
        }
        assert!(ticks >= STALL);
    }
}

#[test]
fn whoever_is_about_to_lead_asks_those_first_who_do_not_tell_it_yet() {
    let site = Site::new(4);
    let (silent, tells) = (site.nodes[2], site.nodes[1]);
    for leads_there in [false, true] {
        let mut planner = site.planner();
        planner.apply(Event::Met(silent, LinkClass::Lan, Some(FOLLOWING)));
        planner.apply(Event::Met(tells, LinkClass::Lan, None));
        says(&mut planner, tells, FOLLOWING);
        let effects = may_lead(&mut planner);
        assert!(!leads(&effects));
        // All but those who tell it themselves.
        assert_eq!(asked(&effects), Some(BTreeSet::from([tells])));
        let word = if leads_there { Role::Leading { attempt: 9, known: 0 } } else { FOLLOWING };
        planner.apply(Event::Met(silent, LinkClass::Lan, Some(word)));
        assert_eq!(leads(&alone(&mut planner, Event::RolesAsked)), !leads_there);
    }
}

#[test]
fn the_first_in_rank_that_has_asked_all_does_not_wait_until_newcomers_say_what_they_do() {
    let site = Site::new(4);
    for (newcomer, waits) in [(0, true), (2, false)] {
        let mut planner = site.planner_of(1);
        planner.apply(Event::Met(site.nodes[3], LinkClass::Lan, Some(FOLLOWING)));
        assert!(asked(&may_lead(&mut planner)).is_some());
        let mut effects = planner.apply(Event::Met(site.nodes[newcomer], LinkClass::Lan, None));
        effects.extend(planner.apply(Event::Tick));
        assert!(effects.contains(&Effect::Follow(site.nodes[newcomer])));
        assert_eq!(leads(&alone(&mut planner, Event::RolesAsked)), !waits);
    }
}

#[test]
fn where_a_site_is_larger_than_what_one_node_sees_it_asks_all_before_it_leads() {
    let count = MAX_PEERS + 2;
    let site = Site::new(count as u8);
    let leader = site.nodes[count - 1];
    let mut planner = site.planner();
    for node in &site.nodes[1..count - 1] {
        planner.apply(Event::Met(*node, LinkClass::Lan, None));
        says(&mut planner, *node, FOLLOWING);
    }
    let effects = may_lead(&mut planner);
    assert!(!leads(&effects));
    assert_eq!(asked(&effects), Some(site.nodes[1..count - 1].iter().copied().collect()));
    // Though its rank is the lowest, it has a place at once.
    let word = Some(Role::Leading { attempt: 9, known: 0 });
    assert!(planner.apply(Event::Met(leader, LinkClass::Lan, word)).contains(&Effect::Follow(leader)));
    assert!(!leads(&alone(&mut planner, Event::RolesAsked)));
}

#[test]
fn a_leader_that_has_no_time_to_tell_is_asked_again_before_its_place_is_taken() {
    let site = Site::new(3);
    let (leader, other) = (site.nodes[1], site.nodes[2]);
    let mut planner = site.planner();
    let word = |known| Event::Met(leader, LinkClass::Lan, Some(Role::Leading { attempt: 9, known }));
    planner.apply(Event::Met(other, LinkClass::Lan, None));
    says(&mut planner, other, FOLLOWING);
    planner.apply(word(0));
    assert!(!leads(&may_lead(&mut planner)));
    // A site that begins at once has its hands full for longer than a leader may stand still.
    for round in 1..3 {
        let mut effects = Vec::new();
        while asked(&effects).is_none() {
            effects = planner.apply(Event::Tick);
            assert!(!leads(&effects));
        }
        planner.apply(word(3 * round));
        assert!(!leads(&alone(&mut planner, Event::RolesAsked)));
    }
}

#[test]
fn of_two_who_are_about_to_lead_at_the_same_time_one_reads_and_the_other_has_not_begun() {
    let site = Site::new(3);
    let mut planners = [site.planner_of(0), site.planner_of(1)];
    for (place, planner) in planners.iter_mut().enumerate() {
        // Neither is connected to the other yet.
        planner.apply(Event::Met(site.nodes[1 - place], LinkClass::Lan, Some(FOLLOWING)));
        assert!(!leads(&may_lead(planner)));
    }
    while !planners.iter().all(|planner| matches!(planner.role(), Role::Candidate { .. })) {
        planners.iter_mut().for_each(|planner| assert!(!leads(&planner.apply(Event::Tick))));
    }
    let [high, low] = &mut planners;
    low.apply(Event::Met(site.nodes[0], LinkClass::Lan, Some(high.role())));
    assert!(matches!(low.role(), Role::Following { .. }));
    assert!(!leads(&alone(low, Event::RolesAsked)));
    high.apply(Event::Met(site.nodes[1], LinkClass::Lan, Some(low.role())));
    assert!(leads(&alone(high, Event::RolesAsked)));
}

#[test]
fn whoever_reads_stays_though_one_of_higher_rank_is_about_to() {
    let site = Site::new(3);
    let mut reads = site.planner_of(1);
    reads.apply(Event::Met(site.nodes[2], LinkClass::Lan, Some(FOLLOWING)));
    may_lead(&mut reads);
    ticks(&mut reads, 4);
    assert!(reads.leads());
    // Nothing has come yet.
    let candidate = Some(Role::Candidate { attempt: 9, known: 0 });
    reads.apply(Event::Met(site.nodes[0], LinkClass::Lan, candidate));
    assert!(reads.leads());
    let mut other = site.planner_of(0);
    other.apply(Event::Met(site.nodes[2], LinkClass::Lan, Some(FOLLOWING)));
    may_lead(&mut other);
    other.apply(Event::Met(site.nodes[1], LinkClass::Lan, Some(reads.role())));
    assert!(!leads(&ticks(&mut other, 4)));
}

#[test]
fn whoever_has_stepped_down_is_not_taken_for_a_leader_though_it_knows_more_states() {
    let site = Site::new(3);
    let (resigned, other) = (site.nodes[1], site.nodes[2]);
    let mut planner = site.planner();
    planner.apply(Event::Met(other, LinkClass::Lan, Some(FOLLOWING)));
    may_lead(&mut planner);
    let stream = Some(Attempt { signer: resigned, number: 5 });
    let word = Role::Following { stream, known: 100, may_lead: true, led_slowly: false };
    planner.apply(Event::Met(resigned, LinkClass::Lan, Some(word)));
    ticks(&mut planner, 4);
    assert!(planner.leads());
}

#[test]
fn a_leader_reads_on_until_one_that_knows_more_states_begins() {
    let site = Site::new(3);
    let other = site.nodes[1];
    let (mut planner, _) = leading(&site);
    says(&mut planner, other, Role::Candidate { attempt: 9, known: 100 });
    ticks(&mut planner, 2);
    assert!(planner.leads());
    says(&mut planner, other, Role::Leading { attempt: 9, known: 100 });
    assert!(!planner.leads());
}

#[test]
fn a_node_that_reads_another_blob_leaves_this_one_for_three_seconds_to_those_who_are_about_to_want_it() {
    let site = Site::new(3);
    let mut planner = site.planner();
    planner.set_laden(true);
    assert!(!leads(&may_lead(&mut planner)));
    assert!(!leads(&ticks(&mut planner, 5)));
    assert!(leads(&ticks(&mut planner, 1)));

    let mut planner = site.planner();
    planner.set_laden(true);
    assert!(!leads(&may_lead(&mut planner)));
    // It reads nothing any more.
    planner.set_laden(false);
    assert!(leads(&ticks(&mut planner, 1)));
}
