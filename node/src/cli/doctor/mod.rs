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
use wherry_gateway::Host;

use super::environment::Environment;
use super::failure::Failure;
use super::output::{are, print, print_json};
use super::runtime::probe::{Found, probe, shown};
use super::runtime::{
    Address, Files, Runtime, containerd as of_containerd, docker as of_docker, k3s as of_k3s, reachable,
    trust,
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
    let (gateway, found) = gateway(args, environment, status.as_ref().ok())?;
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

/// Where the gateway is: as it is said, as the node that runs says, or as it would be started; and what answers there.
fn gateway(
    args: &DoctorArgs,
    environment: &Environment,
    status: Option<&NodeStatus>,
) -> Result<(Gateway, Found), Failure> {
    let (at, meant) = match (&args.gateway, status) {
        (Some(given), _) => {
            let meant = Address::meant(Some(given), environment)?;
            let at = meant.resolved().map_err(|error| {
                Failure::with_hint(
                    format!("nobody knows where the gateway {} is: {error}", meant.host),
                    "say with --gateway where it is",
                )
            })?;
            (at, meant)
        }
        (None, Some(status)) => {
            let at = status.addresses.gateway;
            (at, Address::of(reachable(at), false)?)
        }
        (None, None) => {
            let config = crate::config::load(&environment.sources(None, &[])?)?.config;
            (config.gateway, Address::set(&config)?)
        }
    };
    let here = reachable(at);
    let found = probe(here, &meant.host);
    let tls = matches!(found, Found::Wherry { tls: true, .. } | Found::Registry { tls: true });
    let is_silent = matches!(found, Found::Nothing(_) | Found::Silent);
    let meant = Address { tls: tls || (is_silent && meant.tls), host: meant.host };
    let chain = if tls { shown(here, &meant.host).unwrap_or_default() } else { Vec::new() };
    let mut flags = String::new();
    // What the others of its commands would find by themselves need not be said.
    let set = crate::config::load(&environment.lenient_sources(&[])).ok();
    if set.and_then(|it| Address::set(&it.config).ok()).as_ref() != Some(&meant) {
        let scheme = if meant.tls { "https://" } else { "" };
        flags += &format!(" --gateway {scheme}{}", meant.host);
    }
    if !chain.is_empty() && trust::judge(&chain, &meant.host, &Vec::new()) == Err(trust::Distrust::Stranger) {
        flags += " --ca FILE";
    }
    if args.root != Path::new("/") {
        flags += &format!(" --root {}", args.root.display());
    }
    let everywhere = at.ip().is_unspecified();
    Ok((Gateway { at: here, host: meant.host, everywhere, tls: meant.tls, chain, flags }, found))
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
            let written = files.written(of_docker::FILE);
            let trusted = trust::folders(files, of_docker::CERTS);
            let seen = docker::Seen { path, text, written, trusted, process, info };
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

/// Whether a runtime trusts the certificate of a gateway that it names so, given these authorities beside the machine's;
/// says where it does not.
fn trusts(
    findings: &mut Findings,
    runtime: &str,
    gateway: &Gateway,
    host: &str,
    more: &trust::Chain,
) -> bool {
    let Ok(host) = host.parse::<Host>() else { return true };
    let Err(distrust) = gateway.is_trusted(&host, more) else { return true };
    let hint = match distrust {
        trust::Distrust::Stranger => gateway.setup(runtime),
        trust::Distrust::OtherName(_) => format!(
            "point it at a name that is in the certificate: sudo wherry setup {runtime} --gateway https://NAME:{}",
            gateway.at.port()
        ),
        trust::Distrust::Other(_) => {
            "give the node another one, with --gateway-certificate and --gateway-key".to_owned()
        }
    };
    findings.wrong(
        format!("{runtime} does not trust the gateway at {host}: its certificate {}", distrust.why()),
        hint,
    );
    false
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
            "have the gateway listen on an address that it reaches, wherry up --gateway ADDR:PORT --gateway-plain (or with a \
             certificate), and point it there",
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
        true => print_json(&json!({ "gateway": gateway.host, "checks": all, "wrong": wrong }))?,
        false => print(&all.iter().map(Finding::shown).collect::<String>())?,
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{} wrong", are(wrong, "thing")))),
    }
}
