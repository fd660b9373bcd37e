//! k3s: registries.yaml, which is ours as a whole or not at all.

use std::net::SocketAddr;

use super::plan::{OWN, Plan};
use crate::cli::failure::Failure;
use crate::cli::runtime::Files;
use crate::cli::runtime::k3s::FILE;

pub(super) fn plan(files: &Files, gateway: SocketAddr, undo: bool) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    let mirrors = format!("mirrors:\n  \"*\":\n    endpoint:\n      - \"http://{gateway}\"\n");
    let after = (!undo).then(|| format!("{OWN}{mirrors}"));
    let instead =
        format!("add the mirror to it by hand, before what is listed for each registry:\n{mirrors}");
    plan.own_file(files, FILE, after, &instead)?;
    if !plan.changes.is_empty() {
        plan.then.push("systemctl restart k3s    # or k3s-agent; pods run on".to_owned());
    }
    Ok(plan)
}
