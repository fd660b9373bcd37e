//! Whether podman, buildah, skopeo and CRI-O ask the gateway.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::finding::Findings;
use super::gateway::Gateway;
use super::image::{Asking, Image};
use super::machine::Process;
use crate::cli::runtime::podman::{CERTS, FOLDER, MAIN, Mirror, NAME, Registry, read};
use crate::cli::runtime::trust::{self, Chain};
use crate::cli::runtime::{Files, docker};

/// Where a user's own files are, below HOME.
const USER: &str = ".config/containers";

/// What there is to be judged.
pub(super) struct Seen {
    /// `podman` or `crio`.
    pub(super) name: &'static str,
    /// The files, each with its path, in the order in which later ones win.
    pub(super) files: Vec<(String, Result<String, String>)>,
    /// When the youngest of them was written.
    pub(super) written: Option<SystemTime>,
    /// The file of this user that is read instead of the machine's.
    pub(super) instead: Option<String>,
    /// CRI-O; podman has no daemon.
    pub(super) process: Option<Process>,
    /// The authorities that are trusted beside the machine's, for each host.
    pub(super) trusted: Vec<(String, Chain)>,
    /// The variables that name proxies.
    pub(super) variables: Vec<(String, String)>,
}

impl Seen {
    /// `home` is that of the user who pulls, if it is one of this machine.
    pub(super) fn of(
        name: &'static str,
        files: &Files,
        home: Option<&str>,
        process: Option<Process>,
    ) -> Self {
        let mut seen = Self {
            name,
            files: Vec::new(),
            written: None,
            instead: None,
            process,
            trusted: Vec::new(),
            variables: Vec::new(),
        };
        let system = Files { root: files.root.clone() };
        let own = home.map(|home| Files { root: home.into() });
        let certs = format!("{USER}/certs.d");
        let folders =
            [(Some(&system), CERTS), (Some(&system), docker::CERTS), (own.as_ref(), certs.as_str())];
        for (files, folder) in folders {
            seen.trusted.extend(files.into_iter().flat_map(|files| trust::folders(files, folder)));
        }
        let mut add = |files: &Files, path: &str| {
            match files.read(path) {
                Ok(None) => return false,
                Ok(Some(text)) => seen.files.push((files.shown(path), Ok(text))),
                Err(failure) => seen.files.push((files.shown(path), Err(super::told(&failure)))),
            }
            seen.written = seen.written.max(files.written(path));
            true
        };
        let names = |files: &Files, folder: &str| -> Vec<String> {
            let names = files.names(folder).into_iter().filter(|name| name.ends_with(".conf"));
            names.map(|name| format!("{folder}/{name}")).collect()
        };
        let main = format!("{USER}/registries.conf");
        let is_own = own.as_ref().is_some_and(|own| add(own, &main));
        if !is_own {
            add(&system, MAIN);
            for path in names(&system, FOLDER) {
                add(&system, &path);
            }
        }
        if let Some(own) = &own {
            for path in names(own, &format!("{USER}/registries.conf.d")) {
                add(own, &path);
            }
            seen.instead = is_own.then(|| own.shown(&main));
        }
        seen
    }
}

/// Looks at it all. The second is what a pull of the image would ask the gateway, if it would.
pub(super) fn judge(
    findings: &mut Findings,
    seen: &Seen,
    gateway: &Gateway,
    image: Option<&Image>,
) -> (bool, Option<Asking>) {
    let mut effective: BTreeMap<String, (Registry, &str)> = BTreeMap::new();
    let mut lost: Vec<(String, &str)> = Vec::new();
    for (path, text) in &seen.files {
        let registries = match text {
            Ok(text) => {
                read(text).map_err(|why| (format!("{path} {why}"), "mend it: nothing is pulled with it"))
            }
            Err(why) => Err((why.clone(), "run this as root")),
        };
        let registries = match registries {
            Ok(registries) => registries,
            Err((why, hint)) => {
                findings.wrong(why, hint);
                return (false, None);
            }
        };
        for registry in registries {
            let prefix = registry.prefix.clone();
            let is_ours = mirror(&registry, gateway).is_some();
            let before = effective.insert(prefix.clone(), (registry, path.as_str()));
            if before.is_some_and(|(before, _)| mirror(&before, gateway).is_some()) && !is_ours {
                lost.push((prefix, path));
            }
        }
    }
    let all: Vec<&(Registry, &str)> = effective.values().collect();
    let with: Vec<&&(Registry, &str)> = all.iter().filter(|it| mirror(&it.0, gateway).is_some()).collect();
    let set_up = match image {
        Some(image) if image.through => true,
        Some(image) => one(findings, seen, &all, gateway, image),
        // What has taken all of them away is said below.
        None if with.is_empty() && !lost.is_empty() => false,
        None => every(findings, seen, &with, gateway),
    };
    for (prefix, path) in lost.iter().filter(|_| image.is_none()) {
        findings.wrong(
            format!("{path} says of {prefix} what takes the gateway away again"),
            format!("add the mirror there: location = \"{}/{prefix}\"", gateway.host),
        );
    }
    if let Some(path) = &seen.instead {
        findings.note(
            format!("{path} is there, so that this user's {} reads nothing of {FOLDER}", seen.name),
            None,
        );
    }
    if set_up {
        running(findings, seen);
    }
    super::proxy(findings, seen.name, &seen.variables, gateway);
    let Some(image) = image else { return (set_up, None) };
    if image.through {
        let plain = all.iter().any(|(it, _)| {
            it.insecure && gateway.is_host(&it.location, gateway.own_port()) && it.fits(&image.name())
        });
        if !plain && !gateway.tls {
            findings.wrong(
                format!(
                    "{} asks {} over TLS when images are named by it, and it speaks plain HTTP",
                    seen.name, gateway.host
                ),
                format!("pull with --tls-verify=false, or: {}", gateway.setup(seen.name)),
            );
        }
        if gateway.tls && !plain {
            trusts(findings, seen, gateway, image.host().as_str());
        }
        return (set_up, Some(image.by_repository()));
    }
    let asking = speaks(&all, image).and_then(|(registry, _)| {
        let mirror = mirror(registry, gateway)?;
        let moved = registry.moved(&image.name(), &mirror.location);
        Some(image.by_path(moved.split_once('/')?.1))
    });
    (set_up, asking.filter(|_| set_up))
}

/// The mirror that is the gateway.
fn mirror<'a>(registry: &'a Registry, gateway: &Gateway) -> Option<&'a Mirror> {
    registry.mirrors.iter().find(|mirror| {
        let host = mirror.location.split('/').next().unwrap_or_default();
        gateway.is_host(host, gateway.own_port())
    })
}

/// What speaks for an image: the longest prefix.
fn speaks<'a>(all: &[&'a (Registry, &'a str)], image: &Image) -> Option<(&'a Registry, &'a str)> {
    let name = image.name();
    let fitting = all.iter().filter(|(registry, _)| registry.fits(&name));
    fitting.max_by_key(|(registry, _)| registry.prefix.len()).map(|(registry, path)| (registry, *path))
}

/// Without an image: which registries are asked for through the gateway.
fn every(findings: &mut Findings, seen: &Seen, with: &[&&(Registry, &str)], gateway: &Gateway) -> bool {
    if with.is_empty() {
        let says = match seen.files.is_empty() {
            true => format!("{MAIN} and {FOLDER}/{NAME} are not there"),
            false => format!("no registry in {} has the gateway {} for a mirror", names(seen), gateway.host),
        };
        findings.unset(says, gateway.setup(seen.name), true);
        return false;
    }
    let mut fine = Vec::new();
    for (registry, path) in with.iter().map(|it| (&it.0, it.1)) {
        if obstacle(findings, seen, registry, path, gateway) {
            continue;
        }
        fine.push(registry.prefix.as_str());
    }
    if !fine.is_empty() {
        findings.ok(format!(
            "{} asks the gateway for {}, and for no other registry",
            seen.name,
            fine.join(", ")
        ));
    }
    true
}

fn names(seen: &Seen) -> String {
    seen.files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether an image is asked for through the gateway.
fn one(
    findings: &mut Findings,
    seen: &Seen,
    all: &[&(Registry, &str)],
    gateway: &Gateway,
    image: &Image,
) -> bool {
    let host = image.host();
    let setup = format!("{} --registry {host}    # with all others that are meant", gateway.setup(seen.name));
    let Some((registry, path)) = speaks(all, image) else {
        findings.unset(format!("no file says that {host} has a mirror"), setup, true);
        return false;
    };
    if registry.blocked {
        findings.wrong(
            format!("{path} blocks {}: nothing of it is pulled", registry.prefix),
            "take 'blocked' away",
        );
        return false;
    }
    if mirror(registry, gateway).is_none() {
        findings.unset(
            format!("{path} says where {} comes from, without the gateway", registry.prefix),
            format!(
                "add a [[registry.mirror]] there: location = \"{}/{}\"{}",
                gateway.host,
                registry.prefix,
                if gateway.tls { "" } else { ", insecure = true" }
            ),
            true,
        );
        return false;
    }
    if obstacle(findings, seen, registry, path, gateway) {
        return false;
    }
    findings.ok(format!("{path} has the gateway for a mirror of {}", registry.prefix));
    true
}

/// What keeps a mirror from being asked, or from being asked the right thing; says it.
fn obstacle(
    findings: &mut Findings,
    seen: &Seen,
    registry: &Registry,
    path: &str,
    gateway: &Gateway,
) -> bool {
    let Some(mirror) = mirror(registry, gateway) else { return false };
    let prefix = &registry.prefix;
    if registry.by_digest_only || mirror.asked_for.as_deref() == Some("digest-only") {
        findings.wrong(
            format!("{path} has mirrors of {prefix} asked for digests alone, and not for tags"),
            "take mirror-by-digest-only or pull-from-mirror away",
        );
        return true;
    }
    if !mirror.insecure && !gateway.tls {
        findings.wrong(
            format!("{path} has the gateway asked over TLS for {prefix}, and it speaks plain HTTP"),
            "add insecure = true to that mirror",
        );
        return true;
    }
    if !mirror.location.contains('/') {
        findings.wrong(
            format!("{path} has the gateway asked for {prefix} without the registry's name, which means the node's default"),
            format!("write location = \"{}/{prefix}\"", gateway.host),
        );
        return true;
    }
    let host = mirror.location.split('/').next().unwrap_or_default();
    if !mirror.insecure && !trusts(findings, seen, gateway, host) {
        return true;
    }
    if let Some(at) = registry.mirrors.iter().position(|it| it == mirror).filter(|at| *at > 0) {
        findings.note(
            format!("{path} has the gateway behind {at} other mirrors of {prefix}"),
            Some("put it first, so that it is asked first".to_owned()),
        );
    }
    false
}

/// Whether the gateway is trusted by this name.
fn trusts(findings: &mut Findings, seen: &Seen, gateway: &Gateway, host: &str) -> bool {
    let all = seen.trusted.iter().filter(|(it, _)| it == host);
    let more: Chain = all.flat_map(|(_, certificates)| certificates.iter().cloned()).collect();
    super::trusts(findings, seen.name, gateway, host, &more)
}

/// Whether the daemon that runs knows of it. podman has none, and reads its files at each pull.
fn running(findings: &mut Findings, seen: &Seen) {
    if seen.name != "crio" {
        return;
    }
    match &seen.process {
        Some(process) if process.began_before(seen.written) => findings.note(
            "CRI-O may not know of it: its files were written after it began",
            Some("sudo systemctl reload crio".to_owned()),
        ),
        Some(process) => super::way_ok(findings, process),
        None => findings.note("CRI-O does not run", None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::super::finding::Verdict;
    use super::super::gateway::tests::gateway;
    use super::*;

    const OURS: &str = "[[registry]]\nlocation = \"127.0.0.1:5050\"\ninsecure = true\n[[registry]]\nprefix = \"quay.io\"\n\
        location = \"quay.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:5050/quay.io\"\ninsecure = true\n";

    fn told(texts: &[&str], image: Option<&str>) -> (Findings, Option<Asking>) {
        let files = texts.iter().enumerate().map(|(at, text)| (format!("{at}.conf"), Ok((*text).to_owned())));
        let seen = Seen {
            name: "podman",
            files: files.collect(),
            written: None,
            instead: None,
            process: None,
            trusted: Vec::new(),
            variables: Vec::new(),
        };
        let image = image.map(|image| Image::new(image, &gateway()).unwrap());
        let mut findings = Findings::new("podman");
        let (_, asking) = judge(&mut findings, &seen, &gateway(), image.as_ref());
        (findings, asking)
    }

    fn wrong(texts: &[&str], image: Option<&str>, says: &str) {
        let (findings, _) = told(texts, image);
        let all: Vec<_> = findings.all.iter().filter(|it| it.verdict == Verdict::Wrong).collect();
        assert!(all.len() == 1 && all[0].says.contains(says), "{says}: {findings:?}");
    }

    #[test]
    fn each_reason_why_podman_passes_the_gateway_by_is_found_alone() {
        let image = Image::new("quay.io/a/b:1", &gateway()).unwrap();
        let (findings, asking) = told(&[OURS], Some("quay.io/a/b:1"));
        assert!(!findings.is_wrong(), "{findings:?}");
        assert_eq!(asking, Some(image.by_path("quay.io/a/b")));
        assert!(!told(&[OURS], None).0.is_wrong());
        wrong(&[], None, "are not there");
        wrong(&["unqualified-search-registries = []\n"], None, "no registry in 0.conf");
        wrong(&["nonsense"], None, "not TOML");
        wrong(&[OURS], Some("debian"), "no file says that docker.io has a mirror");
        wrong(&[OURS, "[[registry]]\nlocation = \"quay.io\"\n"], None, "takes the gateway away");
        wrong(&[OURS, "[[registry]]\nlocation = \"quay.io\"\n"], Some("quay.io/a/b"), "without the gateway");
        wrong(
            &[OURS, "[[registry]]\nlocation = \"quay.io/a\"\nblocked = true\n"],
            Some("quay.io/a/b"),
            "blocks quay.io/a",
        );
        wrong(&[&OURS.replace("/quay.io\"\ninsecure", "/quay.io\"\nx")], None, "asked over TLS");
        wrong(&[&OURS.replace("5050/quay.io", "5050")], None, "without the registry's name");
        let digests = OURS.replace("prefix =", "mirror-by-digest-only = true\nprefix =");
        wrong(&[&digests], Some("quay.io/a/b"), "digests alone");
    }

    #[test]
    fn a_users_own_file_is_read_instead_of_the_machines() {
        let (machine, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files { root: machine.path().to_owned() };
        let write = |path: std::path::PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(files.path(&format!("{FOLDER}/{NAME}")), OURS);
        let judged = || {
            let seen = Seen::of("podman", &files, home.path().to_str(), None);
            let mut findings = Findings::new("podman");
            judge(&mut findings, &seen, &gateway(), None);
            findings
        };
        assert!(!judged().is_wrong());
        write(home.path().join(".config/containers/registries.conf"), "");
        let findings = judged();
        assert!(findings.is_wrong(), "{findings:?}");
        assert!(findings.all.iter().any(|it| it.says.contains("reads nothing of")), "{findings:?}");
    }

    #[test]
    fn a_name_through_the_gateway_needs_plain_http_to_be_allowed() {
        let name = "127.0.0.1:5050/quay.io/a/b";
        let image = Image::new(name, &gateway()).unwrap();
        let (findings, asking) = told(&[OURS], Some(name));
        assert!(!findings.is_wrong() && asking == Some(image.by_repository()), "{findings:?}");
        wrong(&[], Some(name), "over TLS when images are named by it");
    }
}
