//! What names mean, and what belongs to which repository: with lying neighbours, and with origins that come and go.
//!
//! The origin is a real registry server (the gateway's own) over real HTTP; neighbours say what a test lets them say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use images_support::*;
use wherry_gateway::server::Source;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_far_ahead_of_the_clock_serves_only_without_the_origin_and_is_never_kept() {
    let lab = Lab::new().await;
    let (honest, liars) = (lab.image("honest"), lab.image("liars"));
    lab.origin.tag("app", "1", &honest);
    let reference = lab.reference("app:1");
    let node = lab.node();
    node.put(&liars);
    for sequence in [NOW + 2 * DAY, u64::MAX] {
        node.site.says(record(&reference, &liars, sequence, NOW + 2 * DAY));
    }

    let resolved = node.images.manifest(&reference).await.unwrap();
    assert_eq!((resolved.manifest.digest(), resolved.source), (&honest.digest, Source::Origin));
    assert_eq!(node.images.vouch(&reference).unwrap().digest, honest.digest);

    // A node whose own clock stands still in the past needs its site all the same.
    let slow = lab.node();
    slow.put(&liars);
    slow.site.says(record(&reference, &liars, NOW + 2 * DAY, NOW + 2 * DAY));
    lab.origin.stop();
    assert_eq!(slow.images.manifest(&reference).await.unwrap().manifest.digest(), &liars.digest);
    assert_eq!(slow.images.vouch(&reference), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sites_newer_answer_within_the_bound_wins() {
    let lab = Lab::new().await;
    let (old, new) = (lab.image("old"), lab.image("new"));
    let reference = lab.reference("app:1");
    let node = lab.node();
    node.put(&old);
    node.put(&new);
    lab.origin.stop();
    node.site.says(record(&reference, &old, NOW - 10, NOW));
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest.digest(), &old.digest);
    node.site.says(record(&reference, &new, NOW + DAY, NOW));
    lab.clock_to(NOW + 100);
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest.digest(), &new.digest);
    assert_eq!(node.images.vouch(&reference).unwrap().sequence, NOW + DAY);
}
