//! Whether docker asks the gateway.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::finding::Findings;
use super::gateway::{Gateway, Leads};
use super::image::{Asking, Image};
use super::machine::Process;
use crate::cli::runtime::docker::{FILE, read};
use crate::cli::runtime::trust::Chain;

/// How long docker may take to tell about itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that it tells, in bytes.
const MAX_INFO: u64 = 1 << 20;

/// What there is to be judged.
pub(super) struct Seen {
    /// Where its configuration is.
    pub(super) path: String,
    /// What is in there, if it is there, or why it cannot be read.
    pub(super) text: Result<Option<String>, String>,
    /// When it was written.
    pub(super) written: Option<SystemTime>,
    /// The authorities that it trusts beside the machine's, for each host.
    pub(super) trusted: Vec<(String, Chain)>,
    /// The daemon that has it.
    pub(super) process: Option<Process>,
    /// What `docker info` tells, or why it does not.
    pub(super) info: Result<Value, String>,
}

/// What `docker info` tells of the daemon.
pub(super) fn info() -> Result<Value, String> {
    let mut command = Command::new("docker");
    command.args(["info", "--format", "{{json .}}"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("docker cannot be run: {error}"))?;
    let (out, err) = (heard(child.stdout.take()), heard(child.stderr.take()));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("'docker info' says nothing within {} s", PATIENCE.as_secs()));
            }
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    told(status.success(), &out, &String::from_utf8_lossy(&err))
}

fn heard(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stream.map(|stream| stream.take(MAX_INFO).read_to_end(&mut text));
        text
    })
}

/// What the daemon tells. Without one there is an object too, and why there is none is in it or beside it.
fn told(is_fine: bool, out: &[u8], err: &str) -> Result<Value, String> {
    let info = serde_json::from_slice::<Value>(out).ok();
    let error = info.as_ref().and_then(|info| info.get("ServerErrors")?.get(0)?.as_str());
    let beside = err.lines().map(str::trim).find(|line| !line.is_empty());
    match (info.as_ref(), error.or_else(|| beside.filter(|_| !is_fine))) {
        (_, Some(error)) => Err(error.to_owned()),
        (Some(info), None) if is_fine => Ok(info.clone()),
        _ => Err("'docker info' fails and does not say why".to_owned()),
    }
}

/// Looks at it all. The second is what a pull of the image would ask the gateway, if it would.
pub(super) fn judge(
    findings: &mut Findings,
    seen: &Seen,
    gateway: &Gateway,
    default_origin: Option<&str>,
    image: Option<&Image>,
) -> (bool, Option<Asking>) {
    // Mirrors count for docker.io alone.
    let needs_mirror = image.is_none_or(|image| !image.through && image.host().is_docker_io());
    let configured = configured(findings, seen, gateway, needs_mirror);
    let runs = runs(findings, seen, gateway, configured);
    network(findings, seen, gateway);
    let has_namespace = seen.info.as_ref().is_ok_and(uses_containerd);
    if let Some(origin) = default_origin.filter(|it| *it != "docker.io")
        && needs_mirror
        && runs
        && !has_namespace
    {
        findings.note(
            format!(
                "docker does not say which registry it means, and the node takes that for {origin}: images of docker.io \
                 are looked for there"
            ),
            Some("leave --default-origin at docker.io, or take the gateway out of registry-mirrors".to_owned()),
        );
    }
    let Some(image) = image else { return (runs, None) };
    if image.through {
        insecure(findings, seen, gateway);
        trusts(findings, seen, gateway, image.host().as_str());
        return (true, Some(image.by_repository()));
    }
    if needs_mirror {
        let asking = if has_namespace { image.by_namespace() } else { image.by_repository() };
        return (runs, runs.then_some(asking));
    }
    let says = format!(
        "docker asks mirrors for images of docker.io alone, and {} is at {}",
        image.text,
        image.host()
    );
    match image.by_gateway(gateway) {
        Some(name) => {
            findings.wrong(says, format!("pull it by its name through the gateway: docker pull {name}"));
            (runs, Some(image.by_path(&image.name())))
        }
        None => {
            findings.wrong(
                says,
                format!(
                    "no name can hold that registry's port behind the gateway: give it an alias, wherry up --origin '{} \
                     alias=NAME', and pull {}/NAME/…",
                    image.host(),
                    gateway.host
                ),
            );
            (runs, None)
        }
    }
}

/// Whether daemon.json, or a flag, has the gateway among its mirrors.
fn configured(findings: &mut Findings, seen: &Seen, gateway: &Gateway, needed: bool) -> bool {
    let path = &seen.path;
    let daemon = match &seen.text {
        Ok(text) => read(text.as_deref().unwrap_or_default()),
        Err(why) => {
            findings.wrong(why.clone(), "run this as root");
            return false;
        }
    };
    let mut mirrors = match daemon {
        Ok(daemon) => daemon.mirrors,
        Err(why) => {
            findings.wrong(format!("{path} {why}"), "mend it: docker does not start with it");
            return false;
        }
    };
    let flags: Vec<&str> = seen.process.iter().flat_map(|it| it.values("--registry-mirror")).collect();
    if !flags.is_empty() && !mirrors.is_empty() {
        findings.wrong(
            format!(
                "registry-mirrors are in {path} and in dockerd's flags, with which it does not start again"
            ),
            "leave one of them",
        );
    }
    mirrors.extend(flags.into_iter().map(str::to_owned));
    let leads: Vec<Leads> = mirrors.iter().map(|mirror| gateway.leads(mirror)).collect();
    match leads.iter().position(|leads| *leads == Leads::There) {
        Some(0) => findings.ok(format!("{path} has the gateway among its registry-mirrors")),
        Some(at) => findings.note(
            format!("{path} has the gateway among its registry-mirrors, behind {}", mirrors[..at].join(", ")),
            Some("put it first, so that it is asked first".to_owned()),
        ),
        None if leads.contains(&Leads::OtherScheme) => findings.wrong(
            format!("{path} has the gateway by another scheme than it speaks"),
            format!("write {} there, and have docker trust its certificate if it has one", gateway.url()),
        ),
        None => {
            let says = match mirrors.is_empty() {
                true => format!("{path} has no registry-mirrors"),
                false => {
                    format!(
                        "{path} has other registry-mirrors than the gateway {}: {}",
                        gateway.url(),
                        mirrors.join(", ")
                    )
                }
            };
            findings.unset(says, gateway.setup("docker"), needed);
        }
    }
    let Some(at) = leads.iter().position(|leads| *leads == Leads::There) else { return false };
    let host =
        mirrors[at].split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
    !needed || trusts(findings, seen, gateway, host)
}

/// Whether docker trusts the gateway by this name. On loopback it asks for no certificate that could be trusted.
fn trusts(findings: &mut Findings, seen: &Seen, gateway: &Gateway, host: &str) -> bool {
    let own = seen.trusted.iter().find(|(it, _)| it == host);
    let nothing = Chain::new();
    gateway.at.ip().is_loopback()
        || super::trusts(findings, "docker", gateway, host, own.map_or(&nothing, |(_, all)| all))
}

/// Whether the daemon that runs knows of it.
fn runs(findings: &mut Findings, seen: &Seen, gateway: &Gateway, configured: bool) -> bool {
    let reload = "sudo systemctl reload docker    # containers run on";
    match &seen.info {
        Ok(info) => {
            let applies = mirrors_apply(info, gateway);
            match (applies, configured) {
                (true, true) => findings.ok("docker runs with it"),
                (true, false) => {
                    findings
                        .note("docker still runs with the gateway, until it is restarted or reloaded", None);
                }
                (false, true) => {
                    findings.wrong(
                        format!("docker runs without it: it has not read {} since", seen.path),
                        reload,
                    );
                }
                (false, false) => {}
            }
            applies
        }
        Err(why) => match &seen.process {
            Some(process) if configured && process.began_before(seen.written) => {
                findings.note(
                    format!("docker may not know of it: {} is newer than dockerd, and {why}", seen.path),
                    Some(reload.to_owned()),
                );
                true
            }
            Some(_) => {
                findings.note(
                    format!("docker runs, and does not tell about itself: {why}"),
                    Some("run this as root".to_owned()),
                );
                configured
            }
            None => {
                findings.note(format!("docker does not run with {}: {why}", seen.path), None);
                configured
            }
        },
    }
}

fn mirrors_apply(info: &Value, gateway: &Gateway) -> bool {
    let mirrors = info.pointer("/RegistryConfig/Mirrors").and_then(Value::as_array);
    mirrors.into_iter().flatten().filter_map(Value::as_str).any(|it| gateway.leads(it) == Leads::There)
}

/// Whether it has containerd's store, which says of which registry an image is.
fn uses_containerd(info: &Value) -> bool {
    let pairs = info.get("DriverStatus").and_then(Value::as_array).into_iter().flatten();
    pairs.into_iter().any(|pair| {
        pair.get(0).and_then(Value::as_str) == Some("driver-type")
            && pair.get(1).and_then(Value::as_str).is_some_and(|it| it.starts_with("io.containerd"))
    })
}

/// What lies between the daemon and the gateway.
fn network(findings: &mut Findings, seen: &Seen, gateway: &Gateway) {
    let Some(process) = &seen.process else { return };
    super::way(findings, process, gateway);
    if let Ok(info) = &seen.info {
        let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let told = [("HTTP_PROXY", "HttpProxy"), ("HTTPS_PROXY", "HttpsProxy"), ("NO_PROXY", "NoProxy")];
        let variables = told.map(|(name, key)| (name.to_owned(), text(key)));
        super::proxy(findings, "docker", &variables, gateway);
    }
}

/// By its name a gateway that is not on loopback is asked over TLS, unless it is excepted.
fn insecure(findings: &mut Findings, seen: &Seen, gateway: &Gateway) {
    if gateway.at.ip().is_loopback() || gateway.tls {
        return;
    }
    let Ok(info) = &seen.info else { return };
    let configs = info.pointer("/RegistryConfig/IndexConfigs").and_then(Value::as_object);
    let config = configs.and_then(|configs| configs.get(gateway.host.as_str()));
    if config.and_then(|config| config.get("Secure")).and_then(Value::as_bool) != Some(false) {
        findings.note(
            format!(
                "docker asks {} over TLS when images are named by it, and it speaks plain HTTP",
                gateway.host
            ),
            Some(format!("add \"insecure-registries\": [\"{}\"] to {FILE}, and reload docker", gateway.host)),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use serde_json::json;

    use super::super::finding::Verdict;
    use super::super::gateway::tests::gateway;
    use super::super::machine::tests::process;
    use super::*;

    const OURS: &str = "{\"registry-mirrors\": [\"http://127.0.0.1:5050\"]}";

    fn seen(text: &str, mirrors: &[&str]) -> Seen {
        Seen {
            path: FILE.to_owned(),
            text: Ok(Some(text.to_owned())),
            written: None,
            trusted: Vec::new(),
            process: None,
            info: Ok(json!({ "RegistryConfig": { "Mirrors": mirrors } })),
        }
    }

    fn told(seen: &Seen, image: Option<&str>) -> (Findings, Option<Asking>) {
        let image = image.map(|image| Image::new(image, &gateway()).unwrap());
        let mut findings = Findings::new("docker");
        let (_, asking) = judge(&mut findings, seen, &gateway(), Some("docker.io"), image.as_ref());
        (findings, asking)
    }

    fn wrong(seen: &Seen, image: Option<&str>, says: &str) {
        let (findings, _) = told(seen, image);
        let all: Vec<_> = findings.all.iter().filter(|it| it.verdict == Verdict::Wrong).collect();
        assert!(all.len() == 1 && all[0].says.contains(says), "{says}: {findings:?}");
    }

    #[test]
    fn each_reason_why_docker_passes_the_gateway_by_is_found_alone() {
        let running = ["http://127.0.0.1:5050/"];
        assert!(!told(&seen(OURS, &running), None).0.is_wrong());
        wrong(&seen("", &[]), None, "no registry-mirrors");
        wrong(&seen("{\"registry-mirrors\": [\"http://127.0.0.1:1\"]}", &[]), None, "http://127.0.0.1:1");
        wrong(&seen("{\"registry-mirrors\": [\"https://127.0.0.1:5050\"]}", &[]), None, "another scheme");
        wrong(&seen("[]", &[]), None, "no JSON object");
        wrong(&seen(OURS, &[]), None, "runs without it");
        wrong(&seen(OURS, &running), Some("quay.io/org/app"), "is at quay.io");
        wrong(&seen(OURS, &running), Some("localhost:5000/app"), "is at localhost:5000");
        let both = Seen {
            process: Some(process(&["dockerd", "--registry-mirror=http://x"], SystemTime::UNIX_EPOCH)),
            ..seen(OURS, &running)
        };
        wrong(&both, None, "in dockerd's flags");
    }

    #[test]
    fn a_daemon_that_is_not_there_tells_nothing_however_docker_says_so() {
        assert_eq!(super::told(true, b"{\"ID\":\"x\"}", "WARNING: no swap").unwrap()["ID"], "x");
        for (out, err) in [
            (&b"{\"ID\":\"\"}"[..], "\nCannot connect to the daemon. Is it running?\n"),
            (b"{\"ServerErrors\":[\"Cannot connect\"]}", ""),
            (b"", "Cannot connect"),
        ] {
            assert!(super::told(false, out, err).unwrap_err().contains("Cannot connect"));
        }
        super::told(false, b"", "").unwrap_err();
    }

    #[test]
    fn an_image_that_needs_no_mirror_is_not_wrong_for_want_of_one() {
        let (findings, asking) = told(&seen("", &[]), Some("127.0.0.1:5050/quay.io/org/app:1"));
        assert!(!findings.is_wrong(), "{findings:?}");
        let image = Image::new("127.0.0.1:5050/quay.io/org/app:1", &gateway()).unwrap();
        assert_eq!(asking, Some(image.by_repository()));
    }

    #[test]
    fn docker_with_containerds_store_says_which_registry_it_means() {
        let mut seen = seen(OURS, &["http://127.0.0.1:5050/"]);
        let image = Image::new("debian", &gateway()).unwrap();
        assert_eq!(told(&seen, Some("debian")).1, Some(image.by_repository()));
        seen.info = Ok(json!({
            "RegistryConfig": { "Mirrors": ["http://127.0.0.1:5050/"] },
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        }));
        assert_eq!(told(&seen, Some("debian")).1, Some(image.by_namespace()));
    }
}
