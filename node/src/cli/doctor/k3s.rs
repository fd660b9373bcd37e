//! Whether k3s asks the gateway.

use std::time::SystemTime;

use super::finding::Findings;
use super::gateway::{Gateway, Leads};
use super::image::{Asking, Image};
use super::machine::Process;
use crate::cli::runtime::k3s::mirrors;

/// What there is to be judged.
pub(super) struct Seen {
    /// Where its configuration is.
    pub(super) path: String,
    /// What is in there, if it is there, or why it cannot be read.
    pub(super) text: Result<Option<String>, String>,
    /// When it was written.
    pub(super) written: Option<SystemTime>,
    /// k3s, or its agent.
    pub(super) process: Option<Process>,
}

/// Looks at it all. The second is what a pull of the image would ask the gateway, if it would.
pub(super) fn judge(
    findings: &mut Findings,
    seen: &Seen,
    gateway: &Gateway,
    image: Option<&Image>,
) -> (bool, Option<Asking>) {
    let path = &seen.path;
    let text = match &seen.text {
        Ok(Some(text)) => text,
        Ok(None) => {
            findings.unset(format!("{path} is not there"), gateway.setup("k3s"), true);
            return (false, None);
        }
        Err(why) => {
            findings.wrong(why.clone(), "run this as root");
            return (false, None);
        }
    };
    let all = match mirrors(text) {
        Ok(all) => all,
        Err(line) => {
            findings.note(
                format!("{path} is written in a way that is not understood here, in line {line}"),
                Some(format!(
                    "look whether {} is among the endpoints of the registry that is meant",
                    gateway.url()
                )),
            );
            return (true, image.map(Image::by_namespace));
        }
    };
    // A registry that has an entry of its own does not go by that for all.
    let of = |name: &str| all.iter().find(|(it, _)| it == name);
    let entry = match image {
        Some(image) => of(image.host().as_str()).or_else(|| of("*")),
        None => of("*").or_else(|| all.iter().find(|(_, urls)| leads(urls, gateway).contains(&Leads::There))),
    };
    let Some((name, urls)) = entry else {
        findings.unset(
            format!("{path} has no mirror for {}", image.map_or("all registries", |it| it.host().as_str())),
            add(gateway),
            true,
        );
        return (false, None);
    };
    let shown = if name == "*" { "all registries" } else { name };
    let leads = leads(urls, gateway);
    match leads.iter().position(|leads| *leads == Leads::There) {
        Some(0) => findings.ok(format!("{path} has the gateway first for {shown}")),
        Some(at) => findings.note(
            format!("{path} has the gateway for {shown} behind {}", urls[..at].join(", ")),
            Some("put it first, so that it is asked first".to_owned()),
        ),
        None if leads.contains(&Leads::OtherScheme) => {
            findings.wrong(
                format!("{path} has the gateway for {shown} by another scheme than it speaks"),
                format!("write {} there", gateway.url()),
            );
            return (false, None);
        }
        None => {
            findings.unset(format!("{path} does not have the gateway for {shown}"), add(gateway), true);
            return (false, None);
        }
    }
    match &seen.process {
        Some(process) if process.began_before(seen.written) => {
            findings.wrong(
                format!("k3s runs without it: {path} was written after it began"),
                "sudo systemctl restart k3s    # or k3s-agent; pods run on",
            );
            return (true, None);
        }
        Some(process) => {
            super::way_ok(findings, process);
            super::way(findings, process, gateway);
            super::proxy(findings, "k3s", &process.variables, gateway);
        }
        None => findings.note("k3s does not run", None),
    }
    (true, image.map(Image::by_namespace))
}

fn leads(urls: &[String], gateway: &Gateway) -> Vec<Leads> {
    urls.iter().map(|url| gateway.leads(url)).collect()
}

fn add(gateway: &Gateway) -> String {
    format!(
        "add \"{}\" to it as the first endpoint, or where the file is wherry's own: {}",
        gateway.url(),
        gateway.setup("k3s")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::time::Duration;

    use super::super::finding::Verdict;
    use super::super::gateway::tests::gateway;
    use super::super::machine::tests::process;
    use super::*;

    const OURS: &str = "mirrors:\n  \"*\":\n    endpoint:\n      - \"http://127.0.0.1:5050\"\n";

    fn told(text: Option<&str>, began: u64, image: Option<&str>) -> (Findings, Option<Asking>) {
        let seen = Seen {
            path: "registries.yaml".to_owned(),
            text: Ok(text.map(str::to_owned)),
            written: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)),
            process: Some(process(&["k3s", "server"], SystemTime::UNIX_EPOCH + Duration::from_secs(began))),
        };
        let image = image.map(|image| Image::new(image, &gateway()).unwrap());
        let mut findings = Findings::new("k3s");
        let (_, asking) = judge(&mut findings, &seen, &gateway(), image.as_ref());
        (findings, asking)
    }

    #[test]
    fn each_reason_why_k3s_passes_the_gateway_by_is_found_alone() {
        let (findings, asking) = told(Some(OURS), 70, Some("quay.io/a/b"));
        assert!(!findings.is_wrong() && asking.is_some(), "{findings:?}");
        let own = format!("{OURS}  docker.io:\n    endpoint:\n      - https://mirror.example\n");
        for (text, began, image, says) in [
            (None, 70, None, "is not there"),
            (Some("configs:\n"), 70, None, "no mirror for all registries"),
            (Some(own.as_str()), 70, Some("debian"), "does not have the gateway for docker.io"),
            (Some(&OURS.replace("http:", "https:")), 70, None, "another scheme"),
            (Some(OURS), 50, None, "runs without it"),
        ] {
            let (findings, _) = told(text, began, image);
            let wrong: Vec<_> = findings.all.iter().filter(|it| it.verdict == Verdict::Wrong).collect();
            assert!(wrong.len() == 1 && wrong[0].says.contains(says), "{says}: {findings:?}");
        }
        assert!(!told(Some("mirrors: {a: {}}\n"), 70, None).0.is_wrong());
    }
}
