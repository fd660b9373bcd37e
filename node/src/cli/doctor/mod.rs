//! `wherry doctor`: finds out why a pull does not go through wherry. It changes nothing.
//!
//! Each runtime has a file that judges what was seen of it; what is seen is read here, and with the readers that `setup`
//! has too.

mod args;
mod containerd;
mod docker;
mod finding;
mod gateway;
mod image;
mod k3s;
mod machine;
mod node;
mod podman;

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::environment::Environment;
use super::failure::Failure;
use super::output::{are, print, print_json};
use super::runtime::probe::{Found, probe};
use super::runtime::{
    Files, Runtime, containerd as of_containerd, docker as of_docker, k3s as of_k3s, reachable,
};
use crate::control::api::{InspectRequest, NodeStatus};
use crate::control::{Client, ClientError};
pub(super) use args::DoctorArgs;
use finding::{Finding, Findings, Verdict};
use gateway::Gateway;
use image::{Asking, Image};
use machine::{Process, processes};

/// How long the node may take to say what it has of an image.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn run(args: &DoctorArgs, environment: &Environment) -> Result<(), Failure> {
    let (named, image) = args.meant()?;
    let client = args.node.client(environment);
    let status = client.status().await;
    let meant = gateway(args, environment, status.as_ref().ok())?;
    let found = probe(meant.at);
    let tls = matches!(found, Found::Wherry { tls: true, .. } | Found::Registry { tls: true });
    let gateway = Gateway { tls, ..meant };
    let image = image.map(|text| {
        Image::new(&text, &gateway).ok_or_else(|| Failure::Usage(format!("'{text}' is no name of an image")))
    });
    let image = image.transpose()?;
    let answers = matches!(found, Found::Wherry { .. });

    let mut all = vec![node::judge(&status, answers), gateway::judge(&gateway, &found, status.is_ok())];
    let files = Files { root: args.root.clone() };
    let origin =
        status.as_ref().ok().map(|status| status.default_origin.as_str()).filter(|it| !it.is_empty());
    let look = Look { files: &files, gateway: &gateway, image: image.as_ref(), origin };
    all.extend(runtimes(&look, named, answers));
    if let (Some(image), Ok(_)) = (&image, &status) {
        all.extend(held(&client, image).await);
    }
    show(args, &gateway, all.into_iter().flat_map(|findings| findings.all).collect())
}

/// Where the gateway is: as it is said, as the node that runs says, or as it would be started.
fn gateway(
    args: &DoctorArgs,
    environment: &Environment,
    status: Option<&NodeStatus>,
) -> Result<Gateway, Failure> {
    let at = match (args.gateway, status) {
        (Some(gateway), _) => gateway,
        (None, Some(status)) => status.addresses.gateway,
        (None, None) => crate::config::load(&environment.sources(None, &[])?)?.config.gateway,
    };
    let here = reachable(at);
    let mut flags = String::new();
    // What the others of its commands would find by themselves need not be said.
    if crate::config::load(&environment.lenient_sources(&[])).ok().map(|it| reachable(it.config.gateway))
        != Some(here)
    {
        flags += &format!(" --gateway {here}");
    }
    if args.root != Path::new("/") {
        flags += &format!(" --root {}", args.root.display());
    }
    Ok(Gateway { at: here, everywhere: at.ip().is_unspecified(), tls: false, flags })
}

/// What all runtimes are judged by.
struct Look<'a> {
    files: &'a Files,
    gateway: &'a Gateway,
    image: Option<&'a Image>,
    /// The registry that names without one mean to the node.
    origin: Option<&'a str>,
}

/// The runtime that is named, or all that are installed.
fn runtimes(look: &Look<'_>, named: Option<Runtime>, answers: bool) -> Vec<Findings> {
    let is_here = |runtime: &Runtime| machine::is_installed(look.files, runtime.program());
    let all: Vec<Runtime> = match named {
        Some(runtime) => vec![runtime],
        None => Runtime::ALL.into_iter().filter(is_here).collect(),
    };
    if all.is_empty() {
        let mut findings = Findings::new("runtimes");
        findings.note(
            "none is installed here: neither docker, containerd, podman, CRI-O nor k3s",
            Some("name one to have its files looked at all the same: wherry doctor docker".to_owned()),
        );
        return vec![findings];
    }
    let mut told: Vec<(Findings, bool)> = Vec::new();
    for runtime in all {
        let mut findings = Findings::new(runtime.name());
        if look.files.root == Path::new("/") && !is_here(&runtime) {
            findings.note(format!("{} is not installed where programs usually are", runtime.program()), None);
        }
        let (set_up, asking) = one(&mut findings, look, runtime);
        if let (Some(asking), Some(image), true) = (asking, look.image, answers) {
            image::ask(&mut findings, look.gateway, image, &asking);
        }
        told.push((findings, set_up));
    }
    // Whoever has several often means one of them.
    if told.iter().any(|(_, set_up)| *set_up) {
        told.iter_mut().for_each(|(findings, _)| findings.excuse());
    }
    told.into_iter().map(|(findings, _)| findings).collect()
}

/// Looks at one runtime. The first is whether it knows of the gateway, the second what it would ask it for the image.
fn one(findings: &mut Findings, look: &Look<'_>, runtime: Runtime) -> (bool, Option<Asking>) {
    let (files, gateway, image) = (look.files, look.gateway, look.image);
    let is_this_machine = files.root == Path::new("/");
    // The daemon that has this configuration: another one says nothing about it.
    let with = |flags: &[&str], file: &str| {
        let mut all = processes(runtime.program()).into_iter();
        all.rfind(|it| it.configuration(flags, file) == files.path(file))
    };
    let read = |file: &str| files.read(file).map_err(|failure| told(&failure));
    match runtime {
        Runtime::Docker => {
            let process = with(&["--config-file"], of_docker::FILE);
            let info = match is_this_machine || process.is_some() {
                true => docker::info(),
                false => Err("it is not of this system".to_owned()),
            };
            let (path, text) = (files.shown(of_docker::FILE), read(of_docker::FILE));
            let seen = docker::Seen { path, text, written: files.written(of_docker::FILE), process, info };
            docker::judge(findings, &seen, gateway, look.origin, image)
        }
        Runtime::Containerd => {
            let process = with(&["--config", "-c"], of_containerd::CONFIG);
            containerd::judge(findings, &containerd::Seen::of(files, process), gateway, image)
        }
        Runtime::Podman | Runtime::Crio => {
            let is_podman = runtime == Runtime::Podman;
            let home = std::env::var("HOME").ok().filter(|_| is_podman && is_this_machine);
            let is_daemon = !is_podman && is_this_machine;
            let process = is_daemon.then(|| processes("crio").into_iter().next_back()).flatten();
            let mut seen = podman::Seen::of(runtime.name(), files, home.as_deref(), process);
            seen.variables = match &seen.process {
                Some(process) => process.variables.clone(),
                None if is_podman => {
                    std::env::vars().filter(|(name, _)| name.to_lowercase().ends_with("_proxy")).collect()
                }
                None => Vec::new(),
            };
            podman::judge(findings, &seen, gateway, image)
        }
        Runtime::K3s => {
            let process = processes("k3s").into_iter().next_back().filter(|_| is_this_machine);
            let (path, text) = (files.shown(of_k3s::FILE), read(of_k3s::FILE));
            let seen = k3s::Seen { path, text, written: files.written(of_k3s::FILE), process };
            k3s::judge(findings, &seen, gateway, image)
        }
    }
}

/// A failure in one line.
fn told(failure: &Failure) -> String {
    match failure {
        Failure::Failed { message, .. } | Failure::Usage(message) | Failure::Interrupted { message, .. } => {
            message.clone()
        }
        Failure::ClosedPipe => String::new(),
    }
}

/// Says where a daemon cannot reach what is on this machine's loopback.
fn way(findings: &mut Findings, process: &Process, gateway: &Gateway) {
    if process.own_network && gateway.at.ip().is_loopback() {
        findings.wrong(
            format!(
                "it runs in a network of its own (process {}), where {} is not this machine",
                process.id,
                gateway.at.ip()
            ),
            "have the gateway listen on an address that it reaches, wherry up --gateway ADDR:PORT --gateway-plain, and point \
             it there",
        );
    }
}

/// Says that a daemon runs with what it should.
fn way_ok(findings: &mut Findings, process: &Process) {
    findings.ok(format!("it runs since then, as process {}", process.id));
}

/// Says where a proxy stands between a runtime and the gateway.
fn proxy(findings: &mut Findings, name: &str, variables: &[(String, String)], gateway: &Gateway) {
    if let Some(variable) = machine::proxied(gateway.at, gateway.tls, variables) {
        findings.wrong(
            format!("{name} has {variable}, and goes to {} by way of that proxy", gateway.at),
            format!("add {} to its NO_PROXY, and restart it", gateway.at.ip()),
        );
    }
}

/// What the node has of the image.
async fn held(client: &Client, image: &Image) -> Option<Findings> {
    let mut findings = Findings::new("image");
    let request = InspectRequest { reference: image.at_node(), platform: None };
    match tokio::time::timeout(PATIENCE, client.why(&request)).await {
        Ok(Ok(why)) => image::had(&mut findings, &why),
        Ok(Err(ClientError::Refused(error))) => findings.note(error.message, error.hint),
        Ok(Err(_)) | Err(_) => return None,
    }
    Some(findings)
}

fn show(args: &DoctorArgs, gateway: &Gateway, all: Vec<Finding>) -> Result<(), Failure> {
    let wrong = all.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    match args.node.json {
        true => print_json(&json!({ "gateway": gateway.at, "checks": all, "wrong": wrong }))?,
        false => print(&all.iter().map(Finding::shown).collect::<String>())?,
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{} wrong", are(wrong, "thing")))),
    }
}
