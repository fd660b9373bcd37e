//! The node itself: whether it runs, and what else may hold up a pull.

use super::finding::Findings;
use crate::cli::output::{are, count};
use crate::config::units::{show_age, show_size};
use crate::control::ClientError;
use crate::control::api::{NodeStatus, WanStatus};
use crate::status::State;

/// A disk with less free than this is nearly full, in bytes.
const LITTLE: u64 = 512 << 20;

/// What is told of the node. `answers` is whether a gateway of wherry answers where it should, which may be another
/// machine's.
pub(super) fn judge(status: &Result<NodeStatus, ClientError>, answers: bool) -> Findings {
    let mut findings = Findings::new("node");
    match status {
        Ok(status) => running(&mut findings, status),
        // Whoever uses the gateway of another machine needs no node here, and the user may not be the node's.
        Err(error) if answers => findings.note(error.to_string(), error.hint().map(str::to_owned)),
        Err(error) => findings.wrong(error.to_string(), error.hint().unwrap_or("look at the node's log")),
    }
    findings
}

fn running(findings: &mut Findings, status: &NodeStatus) {
    let up = show_age(std::time::Duration::from_secs(status.uptime_seconds));
    match status.state {
        State::Ready => findings.ok(format!("it runs, for {up}, at site {}", status.site)),
        State::Stopping => {
            findings.wrong("it is about to end, and takes nothing new", "start it again: wherry up")
        }
    }
    let store = &status.store;
    if store.free < LITTLE {
        findings.note(
            format!("its disk is nearly full: {} free", show_size(store.free)),
            Some(
                "make room with 'wherry rm', or let it make room by itself: wherry up --disk-budget"
                    .to_owned(),
            ),
        );
    }
    if let WanStatus { why: Some(why), .. } = &status.wan {
        findings.note(
            format!("what neither it nor its site has does not come now: {why}"),
            Some("'wherry wan status' shows the limits".to_owned()),
        );
    }
    match status.peers {
        0 if status.unreached.is_empty() && status.refused.is_empty() => {
            findings.note("it is connected to no other node: everything comes from registries", None);
        }
        0 => findings.note(
            "it is connected to no other node, though it knows of some",
            Some("'wherry peers' says why, for each".to_owned()),
        ),
        _ => {}
    }
    if status.joined.is_some() {
        findings.note(
            "it has been admitted to a network and still runs without that",
            Some("restart it".to_owned()),
        );
    }
    if !status.damaged.is_empty() {
        findings.note(
            format!("{} damaged by its disk", are(status.damaged.len(), "blob")),
            Some("'wherry status' names the images; the next pull heals them".to_owned()),
        );
    }
    for it in status.remaining.iter().filter(|it| it.manifests < 10) {
        findings.note(
            format!(
                "{} gives no more than {} for now",
                it.origin,
                count(usize::try_from(it.manifests).unwrap_or(usize::MAX), "manifest")
            ),
            Some("log the node in to it: docker's and podman's logins on this machine count".to_owned()),
        );
    }
}
