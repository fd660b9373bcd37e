//! `wherry rm`, `wherry pin` and `wherry unpin`.

use super::args::{ImagesArgs, OneImageArgs};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{count, harmless, print, print_json};
use crate::config::units::show_size;
use crate::control::api::{PinRequest, RemoveRequest, RemoveSummary};

pub(super) async fn remove(args: &ImagesArgs, environment: &Environment) -> Result<(), Failure> {
    let request = RemoveRequest { references: args.references.clone() };
    let summary = args.node.client(environment).remove(&request).await?;
    if args.node.json { print_json(&summary) } else { print(&removed(&summary)) }
}

pub(super) fn removed(summary: &RemoveSummary) -> String {
    let mut out = String::new();
    for image in &summary.removed {
        let mut blobs = count(image.blobs, "blob");
        if image.partial > 0 {
            blobs += &format!(" and what was here of {} more", image.partial);
        }
        out += &format!("{} removed, {blobs} with {}", harmless(&image.reference), show_size(image.bytes));
        match image.shared {
            0 => {}
            1 => out += "; 1 that other images have too stays",
            many => out += &format!("; {many} that other images have too stay"),
        }
        if image.pinned {
            out += "; it was pinned";
        }
        out += "\n";
    }
    out
}

pub(super) async fn pin(args: &OneImageArgs, pinned: bool, environment: &Environment) -> Result<(), Failure> {
    let request = PinRequest { reference: args.reference.clone(), pinned };
    let summary = args.node.client(environment).pin(&request).await?;
    if args.node.json {
        return print_json(&summary);
    }
    let what = if summary.pinned { "pinned: it stays whatever the disk budget" } else { "no longer pinned" };
    print(&format!("{} {what}\n", harmless(&summary.reference)))
}
