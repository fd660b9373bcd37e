//! A leader whose link is slow makes way, as it sees that itself.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::time::Duration;

use planner_support::site::{Site, leading, leads, says, ticks};
use wherry_node::transfer::planner::{Effect, Event, Planner, Source};
use wherry_proto::{Attempt, Role, State, link};

const fn led(stream: Attempt, may_lead: bool, led_slowly: bool) -> Role {
    Role::Following { stream: Some(stream), known: 1, may_lead, led_slowly }
}

#[test]
fn a_leader_that_several_followers_find_slow_for_seconds_makes_way_if_another_may_lead() {
    for (slow, may_lead, time, stays) in
        [(1, true, 8, true), (2, false, 8, true), (2, true, 4, true), (2, true, 8, false)]
    {
        let site = Site::new(6);
        let (mut planner, own) = leading(&site);
        let say = |planner: &mut Planner, slow: usize| {
            for (number, node) in site.nodes[1..].iter().enumerate() {
                says(planner, *node, led(own, may_lead, number < slow));
            }
        };
        say(&mut planner, slow);
        let mut effects = ticks(&mut planner, time);
        // Once it is well again, what was before counts no more.
        say(&mut planner, 0);
        effects.extend(ticks(&mut planner, 4));
        assert_eq!(effects.contains(&Effect::MakeWay), !stays, "{slow} {may_lead} {time}");
        assert_eq!(planner.leads(), stays);
        if !stays {
            // It does not begin again before others could.
            assert!(!leads(&ticks(&mut planner, 10)));
        }
    }
}

#[test]
fn whoever_has_made_way_leads_where_nobody_else_may_and_does_not_make_way_again() {
    let site = Site::new(4);
    let (mut planner, own) = leading(&site);
    let slander = |planner: &mut Planner, own: Attempt, may_lead: bool| {
        for node in &site.nodes[1..] {
            says(planner, *node, led(own, may_lead, true));
        }
    };
    slander(&mut planner, own, true);
    assert!(ticks(&mut planner, 8).contains(&Effect::MakeWay));
    // Those who could have led can no more.
    slander(&mut planner, own, false);
    ticks(&mut planner, 3);
    let Role::Leading { attempt, .. } = planner.role() else { panic!("nobody leads") };
    slander(&mut planner, Attempt { signer: own.signer, number: attempt }, true);
    ticks(&mut planner, 20);
    assert!(planner.leads());
}

#[test]
fn what_a_leader_has_read_is_first_hand_after_it_has_made_way_too() {
    let site = Site::new(4);
    let (mut planner, own) = leading(&site);
    let map = planner.ledger().map();
    let index = map.first();
    assert!(planner.first_hand().is_empty());
    let start = State::initial(site.digest.algorithm());
    let read = link(&map, index, start, &vec![0; map.len(index) as usize]).unwrap();
    planner.apply(Event::Arrived(Source::Origin, index, vec![read], Duration::ZERO));
    planner.apply(Event::Kept(Source::Origin, index, read));
    assert!(planner.first_hand().contains(index));
    for node in &site.nodes[1..] {
        says(&mut planner, *node, led(own, true, true));
    }
    assert!(ticks(&mut planner, 8).contains(&Effect::MakeWay) && !planner.leads());
    assert!(planner.first_hand().contains(index));
}
