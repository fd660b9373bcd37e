//! Whether containerd asks the gateway.

use std::time::SystemTime;

use super::finding::Findings;
use super::gateway::{Gateway, Leads};
use super::image::{Asking, Image};
use super::machine::Process;
use crate::cli::runtime::Files;
use crate::cli::runtime::containerd::{CERTS, CONFIG, Config, Endpoint, endpoints, folders, read};
use crate::cli::runtime::trust::{Chain, certificates};

/// What there is to be judged.
pub(super) struct Seen {
    /// Where its configuration is.
    pub(super) path: String,
    /// What is in there, if it is there, or why it cannot be read.
    pub(super) text: Result<Option<String>, String>,
    /// When it was written.
    pub(super) written: Option<SystemTime>,
    /// The folders of its hosts in the order in which they count.
    pub(super) hosts: Vec<Folder>,
    /// The daemon that has it.
    pub(super) process: Option<Process>,
}

/// What is said of one registry, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    /// The folder that it is in, of several that are looked into.
    pub(super) parent: String,
    /// The registry.
    pub(super) name: String,
    /// Its hosts.toml, if there is one, or why it cannot be read.
    pub(super) text: Result<Option<String>, String>,
    /// The authorities that are named there, by the names of their files.
    pub(super) authorities: Vec<(String, Chain)>,
}

impl Folder {
    fn of(files: &Files, parent: &str, name: String) -> Self {
        let within = format!("{parent}/{name}");
        let text = files.read(&format!("{within}/hosts.toml")).map_err(|failure| super::told(&failure));
        let hosts = text.as_ref().ok().and_then(Option::as_deref).and_then(|text| endpoints(text).ok());
        let named = hosts.into_iter().flatten().flat_map(|host| host.authorities);
        let authorities = named.map(|file| {
            let path = if file.starts_with('/') { file.clone() } else { format!("{within}/{file}") };
            let text = files.read(&path).ok().flatten().unwrap_or_default();
            (file, certificates(&text))
        });
        let authorities = authorities.collect();
        Self { parent: files.shown(parent), name, text, authorities }
    }
}

impl Seen {
    pub(super) fn of(files: &Files, process: Option<Process>) -> Self {
        let told = |failure| super::told(&failure);
        let text = files.read(CONFIG).map_err(told);
        let config = text.as_ref().ok().and_then(Option::as_ref).and_then(|text| read(text).ok());
        let mut hosts = Vec::new();
        for parent in config.map(|config| config.paths).unwrap_or_default() {
            for name in files.names(&parent) {
                if files.path(&format!("{parent}/{name}")).is_dir() {
                    hosts.push(Folder::of(files, &parent, name));
                }
            }
        }
        Self { path: files.shown(CONFIG), text, written: files.written(CONFIG), hosts, process }
    }

    /// The folder that speaks for a registry: of the first parent that has one.
    fn folder(&self, registry: &str) -> Option<&Folder> {
        let mut parents: Vec<&str> = self.hosts.iter().map(|it| it.parent.as_str()).collect();
        parents.dedup();
        let names = folders(registry);
        parents.into_iter().find_map(|parent| {
            let of = |name: &String| self.hosts.iter().find(|it| it.parent == parent && it.name == *name);
            names.iter().find_map(of)
        })
    }
}

/// Looks at it all. The second is what a pull of the image would ask the gateway, if it would.
pub(super) fn judge(
    findings: &mut Findings,
    seen: &Seen,
    gateway: &Gateway,
    image: Option<&Image>,
) -> (bool, Option<Asking>) {
    let text = match &seen.text {
        Ok(text) => text.as_deref().unwrap_or_default(),
        Err(why) => {
            findings.wrong(why.clone(), "run this as root");
            return (false, None);
        }
    };
    let path = &seen.path;
    // A file that is empty, or not there, leaves everything at its default.
    let config = match if text.trim().is_empty() { Ok(Config::default()) } else { read(text) } {
        Ok(config) => config,
        Err(fault) => {
            findings.wrong(format!("{path} {}", fault.why()), fault.hint());
            return (false, None);
        }
    };
    if config.is_old && !config.paths.is_empty() {
        findings.wrong(
            format!("{path} has config_path and registry mirrors of the old form, with which its CRI plugin does not start"),
            "move what the old form says to hosts.toml files, and remove it",
        );
        return (false, None);
    }
    let set_up = match config.is_old {
        true => old(findings, path, &config, gateway, image),
        false => new(findings, seen, &config, gateway, image),
    };
    if set_up {
        running(findings, seen);
    }
    aside(findings, path, &config);
    if let Some(process) = &seen.process {
        super::way(findings, process, gateway);
        super::proxy(findings, "containerd", &process.variables, gateway);
    }
    let asking = image.filter(|_| set_up && !findings.is_wrong()).map(Image::by_namespace);
    (set_up, asking)
}

/// By registry mirrors in config.toml itself.
fn old(
    findings: &mut Findings,
    path: &str,
    config: &Config,
    gateway: &Gateway,
    image: Option<&Image>,
) -> bool {
    let registry = image.map(|image| image.host().as_str());
    let speaks = |name: &&str| config.mirrors.iter().any(|(it, _)| it == name);
    let name = registry.filter(speaks).unwrap_or("*");
    let mut all = config.mirrors.iter().filter(|(it, _)| registry.is_none() || it == name);
    let there = all.any(|(_, urls)| urls.iter().any(|url| gateway.leads(url) == Leads::There));
    if there {
        findings.ok(format!("{path} has the gateway among its registry mirrors, in the old form"));
    } else {
        findings.unset(
            format!("{path} has registry mirrors of the old form, and none of them is the gateway"),
            format!(
                "move them to hosts.toml files in {CERTS}, remove them, and then: {}",
                gateway.setup("containerd")
            ),
            true,
        );
    }
    there
}

/// By hosts.toml files.
fn new(
    findings: &mut Findings,
    seen: &Seen,
    config: &Config,
    gateway: &Gateway,
    image: Option<&Image>,
) -> bool {
    let path = &seen.path;
    if config.paths.is_empty() {
        let says = match &seen.text {
            Ok(None) => format!("{path} is not there, so that no folder of hosts is looked into"),
            _ => format!("{path} names no folder of hosts (config_path)"),
        };
        findings.unset(says, gateway.setup("containerd"), true);
        return false;
    }
    let registry = image.map_or("_default", |image| image.host().as_str());
    let Some(folder) = seen.folder(registry) else {
        let says = format!("{} has no hosts.toml for {}", config.paths.join(" and "), shown(registry));
        findings.unset(says, gateway.setup("containerd"), true);
        return false;
    };
    let is_asked = hosts(findings, folder, gateway);
    if is_asked && image.is_none() {
        let others = seen.hosts.iter().filter(|it| it.name != "_default");
        let others: Vec<&str> = others
            .filter(|it| !leads(it, gateway).iter().any(|(_, leads)| *leads == Leads::There))
            .map(|it| it.name.as_str())
            .collect();
        if !others.is_empty() {
            findings.note(
                format!("{} in {} go their own way, without the gateway", others.join(", "), folder.parent),
                Some("add the gateway to their hosts.toml if that is not meant".to_owned()),
            );
        }
    }
    is_asked
}

fn shown(registry: &str) -> &str {
    if registry == "_default" { "all registries" } else { registry }
}

/// Where the hosts of a folder lead.
fn leads(folder: &Folder, gateway: &Gateway) -> Vec<(Endpoint, Leads)> {
    let text = folder.text.as_ref().ok().and_then(Option::as_deref).unwrap_or_default();
    let all = endpoints(text).unwrap_or_default().into_iter();
    all.map(|host| {
        let leads = gateway.leads(&host.url);
        (host, leads)
    })
    .collect()
}

/// Whether the hosts of a folder have the gateway among them.
fn hosts(findings: &mut Findings, folder: &Folder, gateway: &Gateway) -> bool {
    let path = format!("{}/{}/hosts.toml", folder.parent, folder.name);
    let add = format!("add to it, before other hosts: [host.\"{}\"]", gateway.url());
    match &folder.text {
        Err(why) => {
            findings.wrong(why.clone(), "run this as root");
            return false;
        }
        Ok(None) => {
            findings.wrong(
                format!("{path} is not there, and its folder alone has the registry asked itself"),
                format!("remove the folder, or write the file with [host.\"{}\"]", gateway.url()),
            );
            return false;
        }
        Ok(Some(text)) => {
            if let Err(why) = endpoints(text) {
                findings
                    .wrong(format!("{path} is not TOML: {why}"), "mend it: containerd pulls nothing with it");
                return false;
            }
        }
    }
    let all = leads(folder, gateway);
    let Some(at) = all.iter().position(|(_, leads)| *leads == Leads::There) else {
        match all.iter().any(|(_, leads)| *leads == Leads::OtherScheme) {
            true => findings.wrong(
                format!("{path} has the gateway by another scheme than it speaks"),
                format!(
                    "write [host.\"{}\"] there, with 'ca' if it has a certificate of its own",
                    gateway.url()
                ),
            ),
            false => findings.unset(format!("{path} does not have the gateway {}", gateway.url()), add, true),
        }
        return false;
    };
    let host = &all[at].0;
    let may = |what: &str| host.capabilities.as_ref().is_none_or(|all| all.iter().any(|it| it == what));
    if host.overrides_path {
        findings.wrong(
            format!("{path} has the gateway with override_path, so that it is asked without /v2"),
            "take override_path away",
        );
        return false;
    }
    if !may("pull") {
        findings.wrong(
            format!("{path} has the gateway without the capability to pull"),
            "write capabilities = [\"pull\", \"resolve\"]",
        );
        return false;
    }
    let named = |it: &&(String, Chain)| host.authorities.contains(&it.0);
    let more = folder.authorities.iter().filter(named).flat_map(|(_, all)| all.iter().cloned()).collect();
    let name = host.url.split_once("://").map_or(host.url.as_str(), |(_, rest)| rest);
    let name = name.split('/').next().unwrap_or_default();
    if !host.trusts_all && !super::trusts(findings, "containerd", gateway, name, &more) {
        return false;
    }
    if !may("resolve") {
        findings.note(
            format!(
                "{path} has the gateway without the capability to resolve: what tags mean is asked elsewhere"
            ),
            Some("write capabilities = [\"pull\", \"resolve\"]".to_owned()),
        );
    }
    match at {
        0 => findings.ok(format!("{path} has the gateway first")),
        _ => {
            let before: Vec<&str> = all[..at].iter().map(|(host, _)| host.url.as_str()).collect();
            findings.note(format!("{path} has the gateway behind {}", before.join(", ")), Some(add));
        }
    }
    true
}

/// Whether the daemon that runs knows of it. It reads hosts.toml files at each pull.
fn running(findings: &mut Findings, seen: &Seen) {
    match &seen.process {
        Some(process) if process.began_before(seen.written) => findings.wrong(
            format!("containerd runs without it: {} was written after it began", seen.path),
            "sudo systemctl restart containerd    # containers run on",
        ),
        Some(_) => findings.ok(format!("containerd runs, and has read {}", seen.path)),
        None => findings.note(format!("containerd does not run with {}", seen.path), None),
    }
}

/// What else may make a difference.
fn aside(findings: &mut Findings, path: &str, config: &Config) {
    if config.without_cri {
        findings.note(
            format!("{path} switches the CRI plugin off: no kubelet pulls by way of this containerd"),
            Some(format!(
                "'nerdctl' looks into {CERTS} by itself, 'ctr' where it is told: ctr image pull --hosts-dir {CERTS}"
            )),
        );
    }
    if !config.imports.is_empty() {
        findings.note(
            format!("{path} takes in {}, which may say otherwise", config.imports.join(", ")),
            Some("'containerd config dump' shows what counts".to_owned()),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::time::Duration;

    use super::super::finding::Verdict;
    use super::super::gateway::tests::gateway;
    use super::super::machine::tests::process;
    use super::*;

    const WITH: &str =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/c\"\n";
    const OURS: &str = "[host.\"http://127.0.0.1:5050\"]\ncapabilities = [\"pull\", \"resolve\"]\n";

    fn seen(text: &str, hosts: &[(&str, Option<&str>)]) -> Seen {
        let folder = |(name, text): &(&str, Option<&str>)| Folder {
            parent: "/c".to_owned(),
            name: (*name).to_owned(),
            text: Ok(text.map(str::to_owned)),
            authorities: Vec::new(),
        };
        Seen {
            path: CONFIG.to_owned(),
            text: Ok(Some(text.to_owned())),
            written: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)),
            hosts: hosts.iter().map(folder).collect(),
            process: None,
        }
    }

    fn told(seen: &Seen, image: Option<&str>) -> (Findings, Option<Asking>) {
        let image = image.map(|image| Image::new(image, &gateway()).unwrap());
        let mut findings = Findings::new("containerd");
        let (_, asking) = judge(&mut findings, seen, &gateway(), image.as_ref());
        (findings, asking)
    }

    fn wrong(seen: &Seen, image: Option<&str>, says: &str) {
        let (findings, asking) = told(seen, image);
        let all: Vec<_> = findings.all.iter().filter(|it| it.verdict == Verdict::Wrong).collect();
        assert!(all.len() == 1 && all[0].says.contains(says), "{says}: {findings:?}");
        assert_eq!(asking, None);
    }

    #[test]
    fn each_reason_why_containerd_passes_the_gateway_by_is_found_alone() {
        let ours = [("_default", Some(OURS))];
        let image = Image::new("quay.io/a/b", &gateway()).unwrap();
        let (findings, asking) = told(&seen(WITH, &ours), Some("quay.io/a/b"));
        assert!(!findings.is_wrong() && asking == Some(image.by_namespace()), "{findings:?}");
        wrong(&seen("version = 2\n", &ours), None, "names no folder of hosts");
        wrong(&seen("", &ours), None, "names no folder of hosts");
        wrong(&Seen { text: Ok(None), ..seen("", &[]) }, None, "is not there");
        wrong(&seen("root = 1\n", &[]), None, "version 1");
        wrong(&seen("nonsense", &[]), None, "not TOML");
        wrong(&seen(WITH, &[]), None, "no hosts.toml for all registries");
        wrong(
            &seen(WITH, &[("_default", Some("server = \"https://x\"\n"))]),
            None,
            "does not have the gateway",
        );
        wrong(&seen(WITH, &[("_default", Some("nonsense"))]), None, "not TOML");
        wrong(&seen(WITH, &[("_default", None)]), None, "its folder alone");
        wrong(&seen(WITH, &[("_default", Some("[host.\"127.0.0.1:5050\"]\n"))]), None, "another scheme");
        let off = OURS.replace("\"pull\", ", "");
        wrong(&seen(WITH, &[("_default", Some(&off))]), None, "capability to pull");
        wrong(
            &seen(WITH, &[("_default", Some(&format!("{OURS}override_path = true\n")))]),
            None,
            "override_path",
        );
        let old = "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"http://127.0.0.1:5050\"]\n";
        wrong(&seen(&format!("{WITH}{old}"), &ours), None, "does not start");
        wrong(
            &seen(&format!("version = 2\n{old}"), &ours),
            Some("quay.io/a/b"),
            "none of them is the gateway",
        );
        assert!(!told(&seen(&format!("version = 2\n{old}"), &[]), Some("debian")).0.is_wrong());
    }

    #[test]
    fn a_folder_of_the_images_registry_comes_before_that_of_all() {
        let both = [("_default", Some(OURS)), ("docker.io", Some("")), ("x.example_1_", None)];
        assert!(!told(&seen(WITH, &both), Some("quay.io/a/b")).0.is_wrong());
        wrong(&seen(WITH, &both), Some("debian"), "docker.io/hosts.toml does not have");
        wrong(&seen(WITH, &both), Some("x.example:1/a"), "its folder alone");
        let (findings, _) = told(&seen(WITH, &both), None);
        assert!(findings.all.iter().any(|it| it.says.contains("docker.io, x.example_1_")), "{findings:?}");
    }

    #[test]
    fn a_daemon_that_began_before_its_configuration_has_to_be_restarted() {
        let at =
            |seconds| Some(process(&["containerd"], SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        let ours = [("_default", Some(OURS))];
        wrong(&Seen { process: at(10), ..seen(WITH, &ours) }, None, "runs without it");
        assert!(!told(&Seen { process: at(70), ..seen(WITH, &ours) }, None).0.is_wrong());
    }
}
