//! Origins that are out of reach: what is known serves, nobody waits for long, and nobody is told of something else.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

mod images_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use images_support::*;
use tokio::net::TcpListener;
use wherry_gateway::Reference;
use wherry_node::swarm::RESOLVE_TIME;
use wherry_proto::{List, Resolution, TagRecord};

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_back_is_asked_again_as_soon_as_it_has_answered_anything() {
    let lab = Lab::new().await;
    let (one, other) = (lab.reference("one:1"), lab.reference("other:1"));
    lab.origin.tag("one", "1", &lab.image("one"));
    lab.origin.tag("other", "1", &lab.image("other"));
    let node = lab.node();
    for tag in [&one, &other] {
        node.images.manifest(tag).await.unwrap();
    }
    lab.clock_to(NOW + 100);
    lab.origin.stop();
    until(|| std::net::TcpStream::connect(lab.host.to_string()).is_err()).await;
    node.images.manifest(&one).await.unwrap();
    // Whoever is answered from memory since another name could not be had is told of both.
    let told = node.images.manifest(&other).await.unwrap().unasked.unwrap().to_string();
    assert!(told.contains("to get manifest other:1: it was not asked, since"), "{told}");
    assert!(told.contains("ago it could not be reached to get manifest one:1"), "{told}");

    lab.origin_again();
    assert!(node.images.manifest(&other).await.unwrap().unasked.is_some(), "it cannot know it yet");
    let (next, third) = (lab.image("next"), lab.reference("third:1"));
    lab.origin.tag("other", "1", &next);
    // What nobody knows here is asked for at once, and that it is not there is an answer.
    node.images.manifest(&third).await.unwrap_err();
    let resolved = node.images.manifest(&other).await.unwrap();
    assert_eq!((resolved.manifest.digest(), resolved.unasked), (&next.digest, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_for_a_name_behind_a_silent_origin_are_told_at_once() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::at(silent.local_addr().unwrap().to_string().parse().unwrap());
    let node = lab.node();
    let asked = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let asked = asked.clone();
        async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = silent.accept().await {
                asked.fetch_add(1, Ordering::Relaxed);
                open.push(stream);
                // It says nothing for a while, and then no more than that it is gone.
                if open.len() == 1 {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    open.clear();
                }
            }
        }
    });
    let reference = lab.reference("app:1");
    let clients = (0..20).map(|_| node.images.manifest(&reference));
    let told = futures::future::join_all(clients).await;
    let first = told[0].as_ref().unwrap_err().to_string();
    assert!(told.iter().all(|told| told.as_ref().unwrap_err().to_string() == first));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// An origin that takes connections and says nothing, as one behind a cable that is cut.
async fn silent_lab() -> (TcpListener, Lab) {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::at(silent.local_addr().unwrap().to_string().parse().unwrap());
    (silent, lab)
}

/// A node with all of an image, whose tag is known to it, and not that an origin ever confirmed it.
async fn long_known(lab: &Lab, reference: &Reference, image: &Image) -> Node {
    let node = lab.node();
    node.put(image);
    node.images.set_tag(reference, &image.parsed()).await.unwrap();
    node
}

async fn serves(node: &Node, reference: &Reference, image: &Image) -> Duration {
    let began = Instant::now();
    let resolved = node.images.manifest(reference).await.unwrap();
    assert_eq!(resolved.manifest.digest(), &image.digest);
    began.elapsed()
}

const AT_ONCE: Duration = Duration::from_secs(1);

/// At once, without the manifest.
fn says(record: TagRecord) -> Resolver {
    Resolver::Says(Box::new(Resolution { record, manifest: None }), Duration::ZERO)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_cable_cut_what_is_known_is_served_within_5_s_and_then_at_once() {
    let (_silent, lab) = silent_lab().await;
    let (reference, image) = (lab.reference("app:1"), lab.image("app"));
    // The first in rank has the same answer, and says so when it has waited for the origin itself.
    let first = long_known(&lab, &reference, &image).await;
    let began = Instant::now();
    let record = first.images.resolve_for(&reference).await.unwrap();
    let waited = began.elapsed();
    assert!(waited + Duration::from_millis(500) < RESOLVE_TIME, "{waited:?}");

    let node = long_known(&lab, &reference, &image).await;
    node.site.has(Resolver::Says(Box::new(record), waited));
    let waited = serves(&node, &reference, &image).await;
    assert!(waited < Duration::from_millis(5_500), "{waited:?}");
    let waited = serves(&node, &reference, &image).await;
    assert!(waited < AT_ONCE, "{waited:?}");
    assert_eq!(node.site.resolving.load(Ordering::Relaxed), 1);
    assert_eq!(node.site.asking_anybody.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_at_other_sites_are_asked_by_whoever_asks_the_origin_and_by_nobody_who_is_told() {
    let lab = Lab::new().await;
    let (reference, image) = (lab.reference("app:1"), lab.image("app"));
    lab.origin.tag("app", "1", &image);
    let first = lab.node();
    let told = first.images.resolve_for(&reference).await.unwrap();
    assert_eq!(first.site.asking_afar.load(Ordering::Relaxed), 1);

    let other = lab.node();
    other.site.has(Resolver::Says(Box::new(told), Duration::ZERO));
    serves(&other, &reference, &image).await;
    assert_eq!(other.site.asking_afar.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_site_has_from_the_origin_spares_asking_it() {
    let lab = Lab::new().await;
    let (reference, old, new) = (lab.reference("app:1"), lab.image("old"), lab.image("new"));
    lab.origin.tag("app", "1", &new);
    let node = long_known(&lab, &reference, &old).await;
    node.put(&new);
    node.site.says_afar(record(&reference, &new, NOW + 1, NOW));
    serves(&node, &reference, &new).await;
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_at_another_site_is_what_a_tag_means_whatever_an_origin_says() {
    let lab = Lab::new().await;
    let (reference, image, pushed) = (lab.reference("app:1"), lab.image("app"), lab.image("pushed"));
    lab.origin.tag("app", "1", &image);
    let node = lab.node();
    node.put(&pushed);
    node.site.says_afar(record_of_push(&reference, &pushed, NOW));
    serves(&node, &reference, &pushed).await;
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_anew_at_another_site_is_heard_after_a_meeting_and_when_the_old_is_lost_and_told_here()
 {
    let lab = Lab::new().await;
    let reference = lab.reference("app:1");
    let [first, second, third] = ["first", "second", "third"].map(|name| lab.image(name));
    let node = lab.node();
    let pushed = |image, sequence| record_of_push(&reference, image, sequence);
    node.put(&first);
    node.site.says(pushed(&first, NOW));
    serves(&node, &reference, &first).await;
    assert_eq!(node.site.was_told(), []);
    // Nobody has come: what is known is served at once.
    node.put(&second);
    let moved = pushed(&second, NOW + 1);
    node.site.says_afar(moved.clone());
    serves(&node, &reference, &first).await;
    node.site.meetings.fetch_add(1, Ordering::Relaxed);
    serves(&node, &reference, &second).await;
    assert_eq!(node.site.was_told(), [moved]);

    node.store.remove(&second.digest).unwrap();
    node.put(&third);
    node.site.says_afar(pushed(&third, NOW + 2));
    serves(&node, &reference, &third).await;
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_in_rank_that_is_silent_keeps_no_client_from_what_is_known() {
    let (_silent, lab) = silent_lab().await;
    let (reference, image) = (lab.reference("app:1"), lab.image("app"));
    let node = long_known(&lab, &reference, &image).await;
    node.site.has(Resolver::Silent);
    let waited = serves(&node, &reference, &image).await;
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    let waited = serves(&node, &reference, &image).await;
    assert!(waited < AT_ONCE, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_in_rank_has_from_the_origin_spares_asking_it() {
    let lab = Lab::new().await;
    let (reference, old, new) = (lab.reference("app:1"), lab.image("old"), lab.image("new"));
    lab.origin.tag("app", "1", &new);
    let node = long_known(&lab, &reference, &old).await;
    node.put(&new);
    node.site.has(says(record(&reference, &new, NOW + 1, NOW)));
    serves(&node, &reference, &new).await;
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_comes_with_the_answer_of_the_first_in_rank_and_whatever_else_comes_is_passed_over() {
    let lab = Lab::new().await;
    let (reference, image, other) = (lab.reference("app:1"), lab.image("app"), lab.image("other"));
    lab.origin.tag("app", "1", &image);
    let first = lab.node();
    let told = first.images.resolve_for(&reference).await.unwrap();
    let manifest = told.manifest.clone().unwrap();
    assert_eq!(*manifest, **image.parsed().raw());
    let asked = lab.origin.asked.load(Ordering::Relaxed);

    let node = lab.node();
    node.site.has(Resolver::Says(Box::new(told.clone()), Duration::ZERO));
    serves(&node, &reference, &image).await;
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), asked, "no peer holds it, and no origin was asked");

    let lie = List::first_of(other.parsed().raw().iter().copied());
    let node = lab.node();
    node.site.has(Resolver::Says(Box::new(Resolution { manifest: Some(lie), ..told }), Duration::ZERO));
    serves(&node, &reference, &image).await;
    assert!(node.store.look(other.parsed().digest()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_in_rank_that_lies_hides_no_answer_of_the_origin() {
    let lab = Lab::new().await;
    let (reference, honest, liars) = (lab.reference("app:1"), lab.image("honest"), lab.image("liars"));
    lab.origin.tag("app", "1", &honest);
    // A number that would win for ever; a time at which nothing can have been confirmed; a manifest that nobody has.
    let nobodys = lab.image("nobodys");
    for lie in [
        record(&reference, &liars, NOW + 2 * DAY, NOW),
        record(&reference, &liars, NOW + 1, NOW + DAY),
        record(&reference, &nobodys, NOW + 1, NOW),
    ] {
        let node = lab.node();
        node.put(&liars);
        node.site.has(says(lie));
        serves(&node, &reference, &honest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_nothing_of_a_tag_asks_all_who_may_reach_its_origin() {
    let (silent, lab) = silent_lab().await;
    drop(silent);
    let (reference, image) = (lab.reference("app:1"), lab.image("app"));
    let node = lab.node();
    node.site.has(Resolver::Silent);
    assert!(node.images.manifest(&reference).await.is_err());
    assert_eq!(node.site.asking_anybody.load(Ordering::Relaxed), 1);
    node.put(&image);
    node.site.has(says(record(&reference, &image, NOW, NOW)));
    serves(&node, &reference, &image).await;
}
