//! When an origin is asked what a tag means, and tags that never move.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use std::sync::atomic::Ordering;

use images_support::*;
use wherry_gateway::Reference;
use wherry_node::images::{ImageError, Resolved, TagPolicy, Unasked};
use wherry_proto::Digest;

/// A node with these rules, where a tag means an image that came long ago; the origin has moved on.
struct Long {
    lab: Lab,
    node: Node,
    tag: Reference,
    old: Image,
    new: Image,
}

async fn long(rules: &[&str]) -> Long {
    let lab = Lab::new().await;
    lab.rules(rules);
    let (old, new) = (lab.image("old"), lab.image("new"));
    let tag = lab.reference("app:1");
    lab.origin.tag("app", "1", &old);
    let node = lab.node();
    node.images.manifest(&tag).await.unwrap();
    lab.origin.tag("app", "1", &new);
    lab.clock_to(NOW + 1_000_000);
    Long { lab, node, tag, old, new }
}

fn answer(resolved: Resolved) -> (Digest, Option<Unasked>) {
    (*resolved.manifest.digest(), resolved.unasked)
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_origin_is_asked_again_after_a_while() {
    let Long { node, tag, new, .. } = long(&[]).await;
    assert_eq!(answer(node.images.manifest(&tag).await.unwrap()), (new.digest, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn site_first_asks_no_origin_for_what_the_site_knows_until_somebody_wants_it_asked() {
    let Long { lab, node, tag, old, new } = long(&["site-first"]).await;
    let said = Some(Unasked::Policy(TagPolicy::SiteFirst));
    let asked = lab.origin.asked.load(Ordering::Relaxed);
    assert_eq!(answer(node.images.manifest(&tag).await.unwrap()), (old.digest, said));
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), asked);
    assert_eq!(node.images.manifest_anew(&tag).await.unwrap().manifest.digest(), &new.digest);
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn site_first_asks_the_neighbours_before_any_origin() {
    let Long { lab, tag, old, .. } = long(&["site-first"]).await;
    let second = lab.node();
    second.put(&old);
    second.site.says(record(&tag, &old, 5, NOW));
    let asked = lab.origin.asked.load(Ordering::Relaxed);
    assert_eq!(second.images.manifest(&tag).await.unwrap().manifest.digest(), &old.digest);
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_tag_never_moves_whoever_says_so() {
    let Long { lab, node, tag, old, new } = long(&["frozen"]).await;
    let frozen = || (old.digest, Some(Unasked::Policy(TagPolicy::Frozen)));
    assert_eq!(answer(node.images.manifest(&tag).await.unwrap()), frozen());
    // The origin is asked on demand, a neighbour tells, and one is asked.
    assert_eq!(answer(node.images.manifest_anew(&tag).await.unwrap()), frozen());
    assert!(!node.told(&record(&tag, &new, NOW + 5_000, NOW)));
    node.site.says(record(&tag, &new, NOW + 5_000, NOW + 1_000_000));
    node.site.meetings.fetch_add(1, Ordering::Relaxed);
    assert_eq!(answer(node.images.manifest(&tag).await.unwrap()), frozen());
    // An archive is imported, or an image is pushed.
    let error = node.images.may_mean(&tag, &new.digest).await.unwrap_err();
    assert!(matches!(error, ImageError::Frozen { .. }), "{error}");
    node.images.may_mean(&tag, &old.digest).await.unwrap();
    node.images.may_mean(&lab.reference("app:2"), &new.digest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_tag_is_fetched_by_its_digest_where_its_manifest_has_left() {
    let Long { lab, tag, old, .. } = long(&["frozen"]).await;
    let second = lab.node();
    second.site.says(record(&tag, &old, 5, NOW));
    let (digest, unasked) = answer(second.images.manifest(&tag).await.unwrap());
    assert_eq!((digest, unasked), (old.digest, Some(Unasked::Policy(TagPolicy::Frozen))));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_for_those_tags_that_they_name() {
    let Long { lab, node, tag, new, .. } = long(&["*/app:2=frozen", "*/app2=frozen"]).await;
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
    drop(lab);
}
