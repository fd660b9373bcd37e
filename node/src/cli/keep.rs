//! `wherry rm`, `wherry pin` and `wherry unpin`.

use super::args::{ImagesArgs, OneImageArgs};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, print, print_json};
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
        let blobs = if image.blobs == 1 { "blob" } else { "blobs" };
        out += &format!(
            "{} removed, {} {blobs} with {}",
            harmless(&image.reference),
            image.blobs,
            show_size(image.bytes)
        );
        if image.shared > 0 {
            out += &format!("; {} that other images have too stay", image.shared);
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
