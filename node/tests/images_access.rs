//! Who may read what an origin is asked about.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use images_support::*;
use wherry_gateway::server::{Ask, Content, Refusal, RefusalKind, Want};
use wherry_node::images::Access;

/// What a client is told that asks for an image's manifest.
async fn told(node: &Node, lab: &Lab) -> Result<(), Refusal> {
    let ask = Ask {
        client: "127.0.0.1:1".parse().unwrap(),
        credential: None,
        origin: Some(lab.host.clone()),
        repository: "app".parse().unwrap(),
        is_mirror: false,
    };
    let target = lab.reference("app:1").target().clone();
    Content::manifest(&node.images, ask, target, Want::Get).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_time_and_again_do_not_keep_a_registry_out_of_reach() {
    let lab = Lab::new().await;
    lab.access(Access::Verify { ttl: Duration::from_secs(60), grace: Duration::ZERO });
    lab.origin.tag("app", "1", &lab.image("app"));
    let node = lab.node();
    lab.origin.stop();
    for seconds in 0..5 {
        lab.clock_to(NOW + seconds);
        assert_eq!(told(&node, &lab).await.unwrap_err().kind, RefusalKind::Unavailable);
    }
    lab.origin_again();
    lab.clock_to(NOW + 6);
    told(&node, &lab).await.unwrap();
    assert!(lab.origin.asked.load(Ordering::Relaxed) > 0);
}
