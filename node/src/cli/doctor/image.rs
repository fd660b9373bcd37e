//! The image that is asked about, and what the gateway says when it is asked as a runtime would.

use std::time::Duration;

use serde_json::Value;
use wherry_gateway::{Host, Reference, TagOrDigest};

use super::finding::{Findings, Verdict};
use super::gateway::Gateway;
use crate::cli::output::harmless;
use crate::cli::runtime::probe::{Answer, Broken, exchange};
use crate::config::units::{show_age, show_size};
use crate::control::api::{WhyImage, WhyState};

/// How long the gateway may take to say what a tag means: its own patience with an origin, and a little.
const PATIENCE: Duration = Duration::from_secs(40);

/// The most of a refusal that is shown, in characters.
const MAX_SHOWN: usize = 600;

/// An image.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// As it was given.
    pub(super) text: String,
    reference: Reference,
    /// Whether it is named through the gateway: `127.0.0.1:5050/quay.io/org/app`.
    pub(super) through: bool,
}

/// A request for a manifest, path and query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asking(String);

impl Image {
    pub(super) fn new(text: &str, gateway: &Gateway) -> Option<Self> {
        let reference: Reference = text.parse().ok()?;
        let through = gateway.is_host(reference.host().as_str(), gateway.own_port());
        Some(Self { text: text.to_owned(), reference, through })
    }

    /// The registry that it is at.
    pub(super) const fn host(&self) -> &Host {
        self.reference.host()
    }

    /// Its registry and repository.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host(), self.reference.repository())
    }

    /// How the node knows it: what is behind the gateway's name, or all of it.
    pub(super) fn at_node(&self) -> String {
        match self.through {
            true => self.with_target(self.reference.repository().as_str()),
            false => self.reference.to_string(),
        }
    }

    /// Its name through the gateway; none where its registry has a port, which no name can hold there.
    pub(super) fn by_gateway(&self, gateway: &Gateway) -> Option<String> {
        let plain = self.host().port().is_none();
        plain.then(|| format!("{}/{}", gateway.host, self.with_target(&self.name())))
    }

    fn with_target(&self, name: &str) -> String {
        match self.reference.target() {
            TagOrDigest::Tag(tag) => format!("{name}:{tag}"),
            TagOrDigest::Digest(digest) => format!("{name}@{digest}"),
        }
    }

    /// As a runtime asks that says which registry it means.
    pub(super) fn by_namespace(&self) -> Asking {
        let Asking(path) = self.by_path(self.reference.repository().as_str());
        match self.through {
            true => Asking(path),
            false => Asking(format!("{path}?ns={}", self.host())),
        }
    }

    /// As a runtime asks that knows no registry: by the repository alone.
    pub(super) fn by_repository(&self) -> Asking {
        self.by_path(self.reference.repository().as_str())
    }

    /// As a runtime asks that has put the gateway before the name.
    pub(super) fn by_path(&self, path: &str) -> Asking {
        Asking(format!("/v2/{path}/manifests/{}", self.reference.target()))
    }
}

/// Asks the gateway for the image's manifest.
pub(super) fn ask(findings: &mut Findings, gateway: &Gateway, image: &Image, asking: &Asking) {
    let talk = |method| -> Result<Option<Answer>, Broken> {
        let said = exchange(gateway.at, &gateway.host, gateway.tls, method, &asking.0, PATIENCE)?;
        Ok(Answer::parse(&said))
    };
    // HEAD first, so that nothing moves; only a refusal's reason takes a body.
    let answer = match talk("HEAD") {
        Ok(Some(answer)) if answer.status != 200 => match talk("GET") {
            Ok(Some(told)) => Some(told),
            _ => Some(answer),
        },
        Ok(answer) => answer,
        Err(_) => None,
    };
    judge(findings, gateway, &image.text, &asking.0, answer.as_ref());
}

fn judge(findings: &mut Findings, gateway: &Gateway, name: &str, asked: &str, answer: Option<&Answer>) {
    let Some(answer) = answer else {
        findings.wrong(
            format!("the gateway gives no answer about {name} within {} s", PATIENCE.as_secs()),
            "look at the node's log, and at 'wherry status'",
        );
        return;
    };
    if answer.status == 200 {
        let digest = answer.header("docker-content-digest").unwrap_or("a manifest");
        let source = match answer.header("wherry-source") {
            Some(source) => format!(", says the {source}"),
            None => String::new(),
        };
        let age = answer.header("age").and_then(|age| age.parse().ok()).filter(|age| *age > 0);
        let age = age.map_or_else(String::new, |age| format!(", {} ago", show_age(Duration::from_secs(age))));
        findings.ok(format!("the gateway has {name}: {digest}{source}{age}"));
        return;
    }
    let why = reason(&answer.body).unwrap_or_else(|| format!("it was asked for {asked}"));
    let hint = match answer.status {
        401 => format!(
            "log in to the gateway: 'docker login {0}' or 'podman login {0}' and a pull by its name",
            gateway.host
        ),
        403 => {
            "give the node a login for that registry, or the client one of its own: what it says tells which"
                .to_owned()
        }
        404 => "check the name and the tag; 'wherry why IMAGE' says who was asked".to_owned(),
        429 => "wait until the registry gives again, or log the node in to it".to_owned(),
        503 => "once the registry is in reach of a node of the site, or 'wherry wan status' shows no limit, it comes; 'wherry \
                import' brings it without either"
            .to_owned(),
        _ => "the node's log says more".to_owned(),
    };
    findings.wrong(format!("the gateway refuses {name}: {} {why}", answer.status), hint);
}

/// The message of a refusal.
fn reason(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    let message = body.get("errors")?.get(0)?.get("message")?.as_str()?;
    let shown: String = message.chars().take(MAX_SHOWN).collect();
    Some(harmless(&shown)).filter(|it| !it.is_empty())
}

/// What the node has of an image.
pub(super) fn had(findings: &mut Findings, why: &WhyImage) {
    let name = harmless(&why.reference);
    match why.state {
        WhyState::Here => {
            findings.ok(format!("the node has all of {name}, {}", show_size(why.bytes)));
        }
        WhyState::Coming | WhyState::Resolving => findings.note(
            format!("{name} is on its way to the node"),
            Some(format!("'wherry why {name}' says how far it is, and what it waits for")),
        ),
        WhyState::Absent => {
            let mut says = match why.of_bytes {
                Some(size) => {
                    format!("the node has {} of {} of {name}", show_size(why.bytes), show_size(size))
                }
                None => format!("the node does not have {name} yet"),
            };
            says += &match why.holders.len() {
                0 => format!(", nor a node that it is connected to: a pull asks {}", harmless(&why.registry)),
                nodes => format!("; {nodes} nodes that it is connected to have"),
            };
            match &why.limit {
                Some(limit) => findings.add(
                    if why.holders.is_empty() { Verdict::Wrong } else { Verdict::Note },
                    format!("{says}; but {}", harmless(&limit.why)),
                    Some(
                        "'wherry wan status' shows the limits; a pull waits, or is told to come again"
                            .to_owned(),
                    ),
                ),
                None => findings.note(says, None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::super::gateway::tests::gateway;
    use super::*;

    #[test]
    fn an_image_is_asked_for_as_each_runtime_does() {
        let image = Image::new("quay.io/org/app:1", &gateway()).unwrap();
        assert_eq!(image.by_namespace(), Asking("/v2/org/app/manifests/1?ns=quay.io".to_owned()));
        assert_eq!(image.by_repository(), Asking("/v2/org/app/manifests/1".to_owned()));
        assert_eq!(image.by_gateway(&gateway()).unwrap(), "127.0.0.1:5050/quay.io/org/app:1");
        let short = Image::new("debian", &gateway()).unwrap();
        assert_eq!(short.by_gateway(&gateway()).unwrap(), "127.0.0.1:5050/docker.io/library/debian:latest");
        assert!(Image::new("localhost:5000/a", &gateway()).unwrap().by_gateway(&gateway()).is_none());
        let through = Image::new("127.0.0.1:5050/quay.io/org/app:1", &gateway()).unwrap();
        assert!(through.through);
        assert_eq!(through.at_node(), "quay.io/org/app:1");
        assert_eq!(through.by_namespace(), Asking("/v2/quay.io/org/app/manifests/1".to_owned()));
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_gateway() {
        let answer = |text: &str| Answer::parse(text.as_bytes());
        let mut findings = Findings::new("docker");
        let mut told = |answer: Option<Answer>| {
            judge(&mut findings, &gateway(), "a", "/v2/a", answer.as_ref());
            findings.all.last().cloned().unwrap()
        };
        let body = r#"{"errors":[{"code":"DENIED","message":"frozen \u001b[1mnow","detail":null}]}"#;
        let refused = told(answer(&format!("HTTP/1.1 403 Forbidden\r\n\r\n{body}")));
        assert!(
            refused.verdict == Verdict::Wrong && refused.says.contains("403 frozen \u{fffd}[1mnow"),
            "{refused:?}"
        );
        let ok = told(answer(
            "HTTP/1.1 200 OK\r\nDocker-Content-Digest: sha256:1\r\nWherry-Source: site\r\nAge: 70\r\n\r\n",
        ));
        assert!(ok.verdict == Verdict::Ok && ok.says.contains("sha256:1, says the site, "), "{ok:?}");
        assert_eq!(told(None).verdict, Verdict::Wrong);
        assert_eq!(told(answer("HTTP/1.1 503 x\r\n\r\n<html>")).verdict, Verdict::Wrong);
    }
}
