//! `wherry cancel`.

use super::args::CancelArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, print, print_json};
use crate::config::units::show_size;
use crate::control::api::{CancelRequest, CancelState, CancelSummary};

pub(super) async fn run(args: &CancelArgs, environment: &Environment) -> Result<(), Failure> {
    let request = CancelRequest { reference: args.reference.clone() };
    let summary = args.node.client(environment).cancel(&request).await?;
    if args.node.json { print_json(&summary) } else { print(&page(&summary)) }
}

pub(super) fn page(summary: &CancelSummary) -> String {
    let goes_on = summary.blobs.iter().any(|blob| blob.state != CancelState::Stopped);
    let verdict = if goes_on { "stopped in part" } else { "stopped" };
    let mut out = format!("{} {verdict}\n", harmless(&summary.reference));
    for blob in &summary.blobs {
        let what = match blob.state {
            CancelState::Stopped => "are kept for the next pull",
            CancelState::Read => "are here, and it goes on: a client of the gateway reads it",
            CancelState::Pulled => "are here, and it goes on: an image that is being pulled has it too",
        };
        let (here, size) = (show_size(blob.bytes), show_size(blob.size));
        out += &format!("{} {here} of {size} {what}\n", blob.digest.short());
    }
    out
}
