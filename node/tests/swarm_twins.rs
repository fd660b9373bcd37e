//! Machines with one identity, and a node that meets itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod swarm_support;

use std::net::SocketAddr;
use std::time::Duration;

use swarm_support::*;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use wherry_node::swarm::Client;

async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Whether the node knows that another machine has its identity, and what to do.
fn knows_its_twin(client: &Client) -> bool {
    client.refusals().iter().any(|refusal| {
        let advice = refusal.advice.as_deref().unwrap_or_default();
        refusal.node == client.me()
            && refusal.why.contains("another machine has the identity")
            && advice.contains("remove 'identity'")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_that_meet_both_know_it() {
    for quic in [false, true] {
        let first = member(11, &[]).await;
        let address = first.address(quic);
        let copy = member(11, std::slice::from_ref(&address)).await;
        let (first, copy) = (first.client(), copy.client());
        until(|| knows_its_twin(&first) && knows_its_twin(&copy)).await;
        let says_so = |why: &str| why.contains("another machine has the identity");
        until(|| copy.unreached().iter().any(|place| says_so(&place.why))).await;
        let unreached = copy.unreached();
        assert_eq!((unreached.len(), &unreached[0].address), (1, &address));
        assert!(first.neighbours().is_empty() && copy.neighbours().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_an_address_leads_to_itself_takes_itself_for_nobody_else() {
    // One that it does not know to be its own, as behind a router that leads back.
    let router = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = router.local_addr().unwrap().port();
    let (leads, to) = oneshot::channel::<SocketAddr>();
    tokio::spawn(async move {
        let to = to.await.unwrap();
        while let Ok((mut there, _)) = router.accept().await {
            tokio::spawn(async move {
                let mut back = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut there, &mut back).await;
            });
        }
    });
    let node = start(settings(&key(11), &[format!("/ip4/127.0.0.1/tcp/{port}")])).await;
    assert_eq!(node.client().unreached().len(), 1);
    let own = node.address(false).split('/').nth(4).unwrap().parse().unwrap();
    leads.send(SocketAddr::from(([127, 0, 0, 1], own))).unwrap();
    until(|| node.client().unreached().is_empty()).await;
    assert_eq!(node.client().refusals(), []);
}
