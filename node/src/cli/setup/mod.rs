//! `wherry setup`: has a container runtime use this node's gateway, and undoes that.

mod containerd;
mod docker;
mod k3s;
mod plan;
mod podman;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;
use wherry_gateway::Host;

use super::environment::Environment;
use super::failure::Failure;
use super::output::{note, print, print_json};
use super::runtime::probe::{Found, probe};
use super::runtime::{Files, Runtime, reachable};
use plan::Plan;

/// The registries that podman and CRI-O ask the gateway about, unless others are named: these runtimes know no pattern for all.
const REGISTRIES: [&str; 4] = ["docker.io", "quay.io", "ghcr.io", "registry.k8s.io"];

#[derive(Debug, clap::Args)]
pub(super) struct SetupArgs {
    /// The runtime
    #[arg(value_name = "RUNTIME")]
    runtime: Runtime,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take away what was set up
    #[arg(long)]
    undo: bool,
    /// Where the gateway is [default: as 'wherry config' says]
    #[arg(long, value_name = "ADDR")]
    gateway: Option<SocketAddr>,
    /// For podman and crio: a registry that is asked through the gateway (may be repeated) [default: docker.io, quay.io,
    /// ghcr.io, registry.k8s.io]
    #[arg(long, value_name = "HOST")]
    registry: Vec<Host>,
    /// The system whose files are changed, such as that of an image in the making
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &SetupArgs, environment: &Environment) -> Result<(), Failure> {
    let gateway = match args.gateway {
        Some(gateway) => gateway,
        None => crate::config::load(&environment.sources(None, &[])?)?.config.gateway,
    };
    let gateway = reachable(gateway);
    let files = Files { root: args.root.clone() };
    let registries = match args.registry.is_empty() {
        true => REGISTRIES.iter().filter_map(|name| name.parse::<Host>().ok()).collect(),
        false => args.registry.clone(),
    };
    let plan = match args.runtime {
        Runtime::Containerd => containerd::plan(&files, gateway, args.undo),
        Runtime::Docker => docker::plan(&files, gateway, args.undo),
        Runtime::Podman => podman::plan(&files, gateway, &registries, args.undo),
        Runtime::Crio => podman::plan(&files, gateway, &registries, args.undo).map(|mut plan| {
            if !plan.changes.is_empty() {
                plan.then.push("systemctl reload crio".to_owned());
            }
            plan
        }),
        Runtime::K3s => k3s::plan(&files, gateway, args.undo),
    }?;
    if !args.dry_run {
        plan.changes.iter().try_for_each(|change| change.apply(&files.root))?;
    }
    // What it says of the gateway is no part of what was done, and comes last.
    let answers = (!args.undo && !args.dry_run).then(|| ask(gateway));
    show(args, &plan, gateway, answers.as_ref())?;
    match answers {
        Some(Err(why)) => Err(Failure::with_hint(
            format!("the gateway at {gateway} does not answer: {why}"),
            "start the node with 'wherry up', or say with --gateway where it is",
        )),
        _ => Ok(()),
    }
}

fn show(
    args: &SetupArgs,
    plan: &Plan,
    gateway: SocketAddr,
    answers: Option<&Result<(), String>>,
) -> Result<(), Failure> {
    if args.json {
        let changes = plan
            .changes
            .iter()
            .map(|change| json!({ "path": change.path, "before": change.before, "after": change.after }));
        return print_json(&json!({
            "gateway": gateway.to_string(),
            "changes": changes.collect::<Vec<_>>(),
            "written": !args.dry_run,
            "notes": plan.notes,
            "then": plan.then,
            "answers": answers.map(Result::is_ok),
        }));
    }
    for change in &plan.changes {
        print(&change.shown())?;
    }
    if plan.changes.is_empty() {
        print(match args.undo {
            true => "nothing of wherry is there: nothing to undo\n",
            false => "everything is as it should be: nothing to change\n",
        })?;
    }
    plan.notes.iter().for_each(|text| note(&format!("note: {text}")));
    if args.dry_run && !plan.changes.is_empty() {
        note("nothing was changed: leave out --dry-run to do so");
    } else if !plan.then.is_empty() {
        note("now let it take effect:");
        plan.then.iter().for_each(|line| note(&format!("  {line}")));
    }
    Ok(())
}

/// Whether a gateway answers there as it is pointed at.
fn ask(gateway: SocketAddr) -> Result<(), String> {
    match probe(gateway) {
        Found::Wherry { tls: false, .. } => Ok(()),
        Found::Wherry { tls: true, .. } => {
            Err("it speaks TLS, and runtimes are pointed at it over plain HTTP".to_owned())
        }
        Found::Nothing(why) => Err(why),
        Found::Registry { .. } => Err("what listens there is another registry".to_owned()),
        Found::Other(_) | Found::Silent => Err("what listens there is no registry".to_owned()),
    }
}
