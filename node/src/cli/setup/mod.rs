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
use super::runtime::probe::{Found, probe, shown};
use super::runtime::trust::{self, Distrust};
use super::runtime::{Address, Files, Given, Runtime};
use plan::{Plan, Target};

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
    /// Where the gateway is, HOST:PORT or, where it speaks TLS, https://HOST:PORT [default: as 'wherry config' says]
    #[arg(long, value_name = "ADDR")]
    gateway: Option<Given>,
    /// For a gateway that speaks TLS: the authority that vouches for its certificate, as PEM, if the machine trusts in none
    /// that does
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
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
    let mut gateway = Address::meant(args.gateway.as_ref(), environment)?;
    let mut is_sure = args.gateway.as_ref().is_some_and(Given::has_scheme) || gateway.tls;
    if !is_sure
        && !args.undo
        && let Ok(at) = gateway.resolved()
        && let Found::Wherry { tls, .. } = probe(at, &gateway.host)
    {
        (gateway.tls, is_sure) = (tls, true);
    }
    let authority = args.ca.as_deref().map(trust::authorities).transpose()?;
    if authority.is_some() && !gateway.tls && !args.undo {
        let message =
            format!("--ca is for a gateway that speaks TLS, and {gateway} is asked over plain HTTP");
        return Err(Failure::Usage(format!("{message}: give --gateway https://{}", gateway.host)));
    }
    let target = Target { gateway, authority, undo: args.undo, is_sure };
    let files = Files { root: args.root.clone() };
    let registries = match args.registry.is_empty() {
        true => REGISTRIES.iter().filter_map(|name| name.parse::<Host>().ok()).collect(),
        false => args.registry.clone(),
    };
    let plan = match args.runtime {
        Runtime::Containerd => containerd::plan(&files, &target),
        Runtime::Docker => docker::plan(&files, &target),
        Runtime::Podman => podman::plan(&files, &target, &registries),
        Runtime::Crio => podman::plan(&files, &target, &registries).map(|mut plan| {
            if !plan.changes.is_empty() {
                plan.then.push("systemctl reload crio".to_owned());
            }
            plan
        }),
        Runtime::K3s => k3s::plan(&files, &target),
    }?;
    if !args.dry_run {
        plan.changes.iter().try_for_each(|change| change.apply(&files.root))?;
    }
    // What it says of the gateway is no part of what was done, and comes last.
    let answers = (!args.undo && !args.dry_run)
        .then(|| ask(args.runtime, &target.gateway, plan.authority.as_deref().unwrap_or_default()));
    show(args, &plan, &target.gateway, answers.as_ref().map(Result::is_ok))?;
    answers.unwrap_or(Ok(()))
}

fn show(args: &SetupArgs, plan: &Plan, gateway: &Address, answers: Option<bool>) -> Result<(), Failure> {
    if args.json {
        let changes = plan
            .changes
            .iter()
            .map(|change| json!({ "path": change.path, "before": change.before, "after": change.after }));
        return print_json(&json!({
            "gateway": gateway.host,
            "tls": gateway.tls,
            "changes": changes.collect::<Vec<_>>(),
            "written": !args.dry_run,
            "notes": plan.notes,
            "then": plan.then,
            "answers": answers,
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

/// Whether a gateway answers there as it is pointed at, to whom trusts in the machine's authorities and this one.
fn ask(runtime: Runtime, gateway: &Address, authority: &str) -> Result<(), Failure> {
    let host = &gateway.host;
    let found = match gateway.resolved() {
        Ok(at) => probe(at, host),
        Err(error) => Found::Nothing(error.to_string()),
    };
    let why = match found {
        Found::Wherry { tls, .. } if tls == gateway.tls => return trusts(runtime, gateway, authority),
        Found::Wherry { tls, .. } => {
            let (speaks, other) = if tls { ("TLS", "https") } else { ("plain HTTP", "http") };
            return Err(Failure::with_hint(
                format!("the gateway at {host} speaks {speaks}, and runtimes are now pointed at {gateway}"),
                format!("set it up again with --gateway {other}://{host}"),
            ));
        }
        Found::Nothing(why) => why,
        Found::Registry { .. } => "what listens there is another registry".to_owned(),
        Found::Other(_) | Found::Silent => "what listens there is no registry".to_owned(),
    };
    Err(Failure::with_hint(
        format!("the gateway at {host} does not answer: {why}"),
        "start the node with 'wherry up', or say with --gateway where it is",
    ))
}

/// Whether the certificate of a gateway is one that the runtime will trust.
fn trusts(runtime: Runtime, gateway: &Address, authority: &str) -> Result<(), Failure> {
    // docker asks those on loopback for none.
    let matters = |at: &SocketAddr| gateway.tls && !(runtime == Runtime::Docker && at.ip().is_loopback());
    let at = gateway.resolved().ok().filter(matters);
    let Some(chain) = at.and_then(|at| shown(at, &gateway.host)) else { return Ok(()) };
    let Err(distrust) = trust::judge(&chain, &gateway.host, &trust::certificates(authority)) else {
        return Ok(());
    };
    let hint = match &distrust {
        Distrust::Stranger => {
            "set it up again with --ca FILE, the authority that vouches for it: of one that vouches for itself the \
             certificate, as the node has it in gateway_certificate"
        }
        Distrust::OtherName(_) => "set it up again with --gateway https://NAME:PORT, a name that is in it",
        Distrust::Other(_) => "give the node another one, with --gateway-certificate and --gateway-key",
    };
    let message = format!("the gateway at {} answers, and its certificate {}", gateway.host, distrust.why());
    Err(Failure::with_hint(message, hint))
}
