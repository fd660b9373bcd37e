//! `wherry images`, `wherry peers` and `wherry status`.

use std::time::Duration;

use serde_json::json;

use super::args::NodeArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::network::now;
use super::output::{count, harmless, note, print, print_json};
use super::table::{Align, Table};
use crate::config::units::{show_age, show_date, show_size};
use crate::control::api::{Damage, ImageSummary, NodeStatus, PeerInfo, Recovery};
use crate::status::{DamagedStatus, Joined, RefusedNode, State, UnreachedAddress};

pub(super) async fn images(args: &NodeArgs, environment: &Environment) -> Result<(), Failure> {
    let mut images = args.client(environment).images().await?;
    images.sort_by(|a, b| a.reference.cmp(&b.reference));
    if args.json {
        return print_json(&images);
    }
    if images.is_empty() {
        note("no images yet: bring one with 'wherry pull' or 'wherry import'");
    }
    print(&(images_table(&images, now()) + &damaged_images(&images)))
}

/// What the disk has damaged; nothing where it has not.
pub(super) fn damaged_images(images: &[ImageSummary]) -> String {
    let damaged = images.iter().filter_map(|image| Some((&image.reference, image.damaged?)));
    let lines = damaged.map(|(name, Damage { blobs, state })| {
        let blobs = if blobs == 1 { "a blob".to_owned() } else { format!("{blobs} blobs") };
        match state {
            Recovery::Healing => format!("\n{name} is damaged: {blobs} of it, on the way again"),
            Recovery::Waiting => {
                format!("\n{name} is damaged: {blobs} of it; 'wherry pull {name}' brings what is wrong again")
            }
        }
    });
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { lines + "\n" }
}

pub(super) fn images_table(images: &[ImageSummary], now: u64) -> String {
    let mut table = Table::new(&[
        ("IMAGE", Align::Left),
        ("DIGEST", Align::Left),
        ("SIZE", Align::Right),
        ("LAYERS", Align::Right),
        ("HERE FOR", Align::Left),
        ("PINNED", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for image in images {
        table.row([
            image.reference.clone(),
            image.digest.short(),
            show_size(image.size),
            image.layers.to_string(),
            image
                .added
                .map_or_else(String::new, |added| show_age(Duration::from_secs(now.saturating_sub(added)))),
            if image.pinned { "yes".to_owned() } else { String::new() },
            remarks(image),
        ]);
    }
    table.to_string()
}

/// What there is to say of an image that is not whole, or that a tag has left behind.
fn remarks(image: &ImageSummary) -> String {
    let mut remarks = Vec::new();
    if !image.whole {
        remarks.push(format!("{} of it here", show_size(image.here)));
    }
    if !image.was.is_empty() {
        remarks.push(format!("was {}", image.was.join(", ")));
    }
    remarks.join("; ")
}

pub(super) async fn peers(args: &NodeArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.client(environment);
    let mut peers = client.peers().await?;
    peers.sort_by(|a, b| (&a.site, a.peer_id).cmp(&(&b.site, b.peer_id)));
    let status = client.status().await?;
    let NodeStatus { refused, unreached, joined, .. } = &status;
    if args.json {
        return print_json(&json!({
            "peers": peers, "refused": refused, "unreached": unreached, "joined": joined,
        }));
    }
    if peers.is_empty() && refused.is_empty() && unreached.is_empty() && joined.is_none() {
        note("no peers: this node is alone, see 'wherry network --help'");
    }
    let table = if peers.is_empty() { String::new() } else { peers_table(&peers) };
    print(&(table + &apart(&status, now())))
}

/// What keeps a node apart from others, and what can be done about it; nothing where nothing does.
fn apart(status: &NodeStatus, now: u64) -> String {
    let mut out = String::new();
    if let Some(Joined { network, expires }) = status.joined {
        out += &format!(
            "\nrestart this node: it has been admitted to the network {network} until {}, and still runs without that\n",
            show_date(expires)
        );
    }
    for UnreachedAddress { address, why, since } in &status.unreached {
        let length = show_age(Duration::from_secs(now.saturating_sub(*since)));
        out += &format!(
            "\nbootstrap address not connected for {length}: {}\n  {}\n",
            harmless(address),
            harmless(why)
        );
    }
    for RefusedNode { peer_id, address, why, hint, seconds_ago } in &status.refused {
        let ago = show_age(Duration::from_secs(*seconds_ago));
        out += &format!(
            "\nnot connected to {peer_id}, {ago} ago at {}:\n  {}\n",
            harmless(address),
            harmless(why)
        );
        if let Some(hint) = hint {
            out += &format!("  hint: {}\n", harmless(hint));
        }
    }
    out
}

pub(super) fn peers_table(peers: &[PeerInfo]) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("SITE", Align::Left),
        ("CONNECTED FOR", Align::Left),
        ("ADDRESS", Align::Left),
    ]);
    for peer in peers {
        table.row([
            peer.peer_id.to_string(),
            peer.site.clone(),
            show_age(Duration::from_secs(peer.connected_seconds)),
            peer.address.clone(),
        ]);
    }
    table.to_string()
}

pub(super) async fn status(args: &NodeArgs, environment: &Environment) -> Result<(), Failure> {
    let status = args.client(environment).status().await?;
    if args.json { print_json(&status) } else { print(&status_page(&status, now())) }
}

pub(super) fn status_page(status: &NodeStatus, now: u64) -> String {
    let up = show_age(Duration::from_secs(status.uptime_seconds));
    let state = match status.state {
        State::Ready => "up for",
        State::Stopping => "stopping after",
    };
    let mut out = format!("wherry {}, {state} {up}\n\n", harmless(&status.version));
    let mut line = |name: &str, value: String| out += &format!("{name:<10} {}\n", harmless(&value));
    line("peer id", status.peer_id.to_string());
    line("network", status.network.to_string());
    line("site", status.site.clone());
    line("gateway", status.addresses.gateway.to_string());
    line("status", format!("http://{}", status.addresses.status));
    line("peers", format!("{}, {} connected", status.addresses.peers, status.peers));
    for address in for_others(&status.addresses.bootstrap) {
        line("bootstrap", address.to_owned());
    }
    line("bulk", status.addresses.bulk.to_string());
    line("control", status.addresses.control.display().to_string());
    let store = &status.store;
    let bound = match store.budget {
        Some(budget) => format!("of {}", show_size(budget)),
        None => format!("with {} free", show_size(store.free)),
    };
    line(
        "store",
        format!(
            "{} {bound}: {}, {}",
            show_size(store.bytes),
            count(status.images, "image"),
            count(store.blobs as usize, "blob")
        ) + &match store.partial_blobs {
            0 => String::new(),
            partial => format!(", {partial} not whole yet"),
        },
    );
    let traffic = &status.traffic;
    line(
        "received",
        format!(
            "{} from peers, {} from origins",
            show_size(traffic.from_peers),
            show_size(traffic.from_origin)
        ),
    );
    line(
        "sent",
        format!("{} to clients, {} to peers", show_size(traffic.to_clients), show_size(traffic.to_peers)),
    );
    if let Some(why) = &status.wan.why {
        line("limited", why.clone());
    }
    for it in &status.remaining {
        line(
            "rate limit",
            format!(
                "{} gives {} more for now",
                harmless(&it.origin),
                count(usize::try_from(it.manifests).unwrap_or(usize::MAX), "manifest")
            ),
        );
    }
    for it in &status.left_alone {
        let of = it.mirror_of.as_ref().map_or_else(String::new, |of| format!(", a mirror of {of},"));
        let left = show_age(Duration::from_secs(it.until.saturating_sub(now)));
        line("left alone", format!("{}{of} for {left} more: {}", it.registry, it.why));
    }
    let errors = &status.errors;
    if errors.peer + errors.origin + errors.store + errors.client > 0 {
        line(
            "failures",
            format!(
                "{} of peers, {} of origins, {} of the store, {} of clients",
                errors.peer, errors.origin, errors.store, errors.client
            ),
        );
    }
    if !status.damaged.is_empty() {
        line("damaged", damaged_blobs(&status.damaged));
    }
    if !status.transfers.is_empty() {
        let mut table = Table::new(&[
            ("ON ITS WAY", Align::Left),
            ("HERE", Align::Right),
            ("OF", Align::Right),
            ("FROM PEERS", Align::Right),
            ("FROM ORIGIN", Align::Right),
            ("SOURCES", Align::Right),
            ("IMAGE", Align::Left),
        ]);
        for transfer in &status.transfers {
            table.row([
                transfer.digest.short(),
                show_size(transfer.bytes),
                show_size(transfer.size),
                show_size(transfer.from_peers),
                show_size(transfer.from_origin),
                transfer.sources.to_string(),
                transfer.images.join(", "),
            ]);
        }
        out += &format!("\n{table}");
    }
    out + &apart(status, now)
}

fn damaged_blobs(damaged: &[DamagedStatus]) -> String {
    let healing = damaged.iter().filter(|blob| blob.state == Recovery::Healing).count();
    let mut images: Vec<&str> = damaged.iter().flat_map(|blob| &blob.images).map(String::as_str).collect();
    images.sort_unstable();
    images.dedup();
    let blobs = if damaged.len() == 1 { "blob" } else { "blobs" };
    let images = if images.is_empty() { "no image that is here".to_owned() } else { images.join(", ") };
    let rest = match damaged.len() - healing {
        0 => "on the way again".to_owned(),
        waiting => format!("{healing} on the way again, {waiting} until the next pull"),
    };
    format!("{} {blobs} of {images}: {rest}", damaged.len())
}

/// What another machine may be given as `--bootstrap`: over TCP, and only on loopback where there is nothing else.
fn for_others(multiaddrs: &[String]) -> Vec<&str> {
    let over_tcp: Vec<&str> =
        multiaddrs.iter().map(String::as_str).filter(|it| it.contains("/tcp/")).collect();
    let stays_here = |address: &&str| {
        ["/ip4/127.", "/ip6/::1/", "/ip6/fe80:"].iter().any(|start| address.starts_with(start))
    };
    let dialable: Vec<&str> = over_tcp.iter().copied().filter(|address| !stays_here(address)).collect();
    if dialable.is_empty() { over_tcp } else { dialable }
}
