//! `wherry why`.

use wherry_proto::NodeId;

use super::args::InspectArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, print, print_json};
use super::preload::short;
use crate::config::units::{show_seconds, show_size};
use crate::control::api::{
    Away, BlobWhy, HeldTo, InspectRequest, Leads, LimitNow, WaitsFor, Why, WhyImage, WhyState,
};
use crate::images::PARALLEL;
use crate::limits::show_rate;
use crate::transfer::STILL;

/// How many peers are named one by one.
const MAX_NAMED: usize = 4;

pub(super) async fn run(args: &InspectArgs, environment: &Environment) -> Result<(), Failure> {
    let platform = args.platform.as_ref().map(ToString::to_string);
    let request = InspectRequest { reference: args.reference.clone(), platform };
    let why = args.node.client(environment).why(&request).await?;
    if args.node.json { print_json(&why) } else { print(&page(&why)) }
}

fn name(node: &NodeId) -> String {
    format!("peer …{}", short(&node.to_string()))
}

fn names(nodes: &[NodeId]) -> String {
    let mut all: Vec<String> = nodes.iter().take(MAX_NAMED).map(name).collect();
    if nodes.len() > MAX_NAMED {
        all.push(format!("{} more", nodes.len() - MAX_NAMED));
    }
    all.join(", ")
}

/// What a person is told.
pub(super) fn page(why: &WhyImage) -> String {
    let image = harmless(&why.reference);
    let registry = harmless(&why.registry);
    let limited = match &why.limit {
        Some(LimitNow { why, .. }) => format!("; but {}", harmless(why)),
        None => String::new(),
    };
    match why.state {
        WhyState::Here => return format!("{image} is here, {}\n", show_size(why.bytes)),
        WhyState::Resolving => {
            return format!(
                "{image} is pulled, and it is not known yet what the name means: {registry} and the nodes of the site \
                 are asked{limited}\n"
            );
        }
        WhyState::Absent => {
            let amount = match why.of_bytes {
                Some(size) => format!(" whole, {} of {}", show_size(why.bytes), show_size(size)),
                None => String::new(),
            };
            let next = match why.holders.is_empty() {
                false => format!("a pull would take it from {}", names(&why.holders)),
                true if registry.is_empty() => "it came without a name: import it again".to_owned(),
                true => {
                    format!("a pull would ask {registry}: no node that is connected has all of it{limited}")
                }
            };
            return format!("{image} is not here{amount}, and nobody pulls it\n{next}\n");
        }
        WhyState::Coming => {}
    }
    let of = why.of_bytes.unwrap_or(why.bytes);
    let mut out = format!("{image}: {} of {} here", show_size(why.bytes), show_size(of));
    if why.rate > 0 {
        out += &format!(", {}/s", show_size(why.rate));
    }
    out += &match (why.seconds_left, held_up(why)) {
        (Some(left), _) => format!(", {} left\n", show_seconds(left)),
        (None, Some(limit)) => format!(", waits: {}\n", harmless(limit)),
        (None, None) => ", unknown when it will be done\n".to_owned(),
    };
    for blob in why.blobs.iter().filter(|blob| blob.transfer.is_some() || blob.bytes < blob.size) {
        out += &paragraph(blob, why.limit.as_ref(), why.pulled);
    }
    out
}

/// The limit that some of an image waits for.
fn held_up(why: &WhyImage) -> Option<&str> {
    let mut transfers = why.blobs.iter().filter_map(|blob| blob.transfer.as_ref());
    let is_limited = transfers.any(|transfer| matches!(transfer.waits_for, WaitsFor::Limit(_)));
    why.limit.as_ref().filter(|_| is_limited).map(|limit| limit.why.as_str())
}

fn paragraph(blob: &BlobWhy, limit: Option<&LimitNow>, is_pulled: bool) -> String {
    let mut out = format!("\n{}  {} of {}", blob.digest.short(), show_size(blob.bytes), show_size(blob.size));
    let Some(why) = &blob.transfer else {
        return match &blob.away {
            Some(away) => out + &format!("\n  {}\n", away_line(away)),
            None if is_pulled => {
                out + &format!("\n  waits for its turn: {PARALLEL} blobs of an image are fetched at a time\n")
            }
            None => {
                out + "\n  nobody fetches it: a runtime wants another part of the image, and nobody pulls that\n"
            }
        };
    };
    if let Some(left) = why.seconds_left {
        out += &format!(", {}/s, {} left", show_size(why.rate), show_seconds(left));
    }
    out += "\n";
    let mut line = |text: String| out += &format!("  {}\n", harmless(&text));
    line(led(why));
    for peer in why.peers.iter().filter(|peer| peer.rate > 0).take(MAX_NAMED) {
        let far = if peer.peer.far { " at another site" } else { "" };
        line(format!("takes {}/s from {}{far}", show_size(peer.rate), name(&peer.peer.node)));
    }
    if why.origin_rate > 0 {
        line(format!("takes {}/s from {}", show_size(why.origin_rate), why.origin));
    }
    match &blob.away {
        Some(away) => line(away_line(away)),
        None => line(waits(why, limit)),
    }
    if let Some(failed) = &why.origin_failed {
        line(format!("{} cannot be read: {failed}", why.origin));
    }
    for failed in why.failed.iter().take(MAX_NAMED) {
        line(format!("{} is not asked any more: {}", name(&failed.node), failed.why));
    }
    out
}

fn away_line(away: &Away) -> String {
    let left = show_seconds(away.seconds_left as f64);
    harmless(&format!("waits until {} is in reach again, {left} more at most: {}", away.origin, away.why))
}

fn led(why: &Why) -> String {
    match why.lead {
        Leads::Needless => "a node of the site has all of it".to_owned(),
        Leads::Here => format!("this node leads: it reads {} for the site", why.origin),
        Leads::Peer(node) => format!("led by {}, which reads it for the site", name(&node)),
        Leads::Promised(node) => format!("{} has said that it will read it for the site", name(&node)),
        Leads::Searching => "nobody leads yet: the nodes of the site are asked who has it".to_owned(),
        Leads::Asking => {
            "nobody leads yet: this node cannot reach a registry that has it, and asks others of the site"
                .to_owned()
        }
        Leads::Denied => "nobody leads: no node that was asked can reach a registry that has it".to_owned(),
        Leads::Limited => "nobody leads: nothing may come into the site now".to_owned(),
        Leads::Settling => "nobody leads yet: it is being settled who does".to_owned(),
    }
}

/// What would have to be faster.
fn waits(why: &Why, limit: Option<&LimitNow>) -> String {
    match (why.waits_for, limit) {
        (WaitsFor::Limit(_), Some(LimitNow { why, .. })) => format!("waits: {why}"),
        (WaitsFor::Turn, _) => waits_for(WaitsFor::Turn, &why.origin),
        (what, _) if why.still >= STILL => {
            format!("{}; nothing has come for {}", waits_for(what, &why.origin), show_seconds(why.still))
        }
        (what, _) => waits_for(what, &why.origin),
    }
}

/// What a blob waits for.
pub(super) fn waits_for(what: WaitsFor, origin: &str) -> String {
    match what {
        WaitsFor::Turn => "waits for its turn: as many blobs as may are on their way here".to_owned(),
        WaitsFor::Limit(_) => "waits for a limit that has ended just now".to_owned(),
        WaitsFor::Lead => "waits until somebody leads".to_owned(),
        WaitsFor::Rate(HeldTo { rate, nodes }) => {
            let shared =
                if nodes > 1 { format!(", which {nodes} of its nodes share now") } else { String::new() };
            format!("waits for the rate that is set for this site, {} (wan_down){shared}", show_rate(rate))
        }
        WaitsFor::Origin => format!("waits for this node's link to {origin}"),
        WaitsFor::Leader(node) => format!("waits for the link of {} to the registry", name(&node)),
        WaitsFor::Slot => {
            "waits for a free slot: the peers that have what is missing send to others".to_owned()
        }
        WaitsFor::Peers => "waits for the links of the peers that it takes from".to_owned(),
    }
}
