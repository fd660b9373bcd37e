//! k3s: registries.yaml, which is ours as a whole or not at all.

use super::plan::{AUTHORITY, OWN, Plan, Target};
use crate::cli::failure::Failure;
use crate::cli::runtime::Files;
use crate::cli::runtime::k3s::{FILE, FOLDER};

pub(super) fn plan(files: &Files, target: &Target) -> Result<Plan, Failure> {
    let gateway = &target.gateway;
    let mut plan = Plan::default();
    let authority = format!("{FOLDER}/{AUTHORITY}");
    plan.authority_file(files, &authority, target)?;
    let mut text = format!("mirrors:\n  \"*\":\n    endpoint:\n      - \"{gateway}\"\n");
    if plan.authority.is_some() {
        text += &format!("configs:\n  \"{}\":\n    tls:\n      ca_file: {authority}\n", gateway.host);
    }
    let after = (!target.undo).then(|| format!("{OWN}{text}"));
    let instead = format!("add the mirror to it by hand, before what is listed for each registry:\n{text}");
    plan.own_file(files, FILE, after, &instead)?;
    if !plan.changes.is_empty() {
        plan.then.push("systemctl restart k3s    # or k3s-agent; pods run on".to_owned());
    }
    Ok(plan)
}
