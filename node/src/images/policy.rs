//! When an origin is asked what a tag means.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wherry_gateway::{Host, Reference};
use wherry_proto::{Digest, NodeId, TagWord};

use super::{ImageError, Images};

/// The most rules that a node has: each is tried for every tag that is asked for.
pub const MAX_RULES: usize = 256;

/// The longest pattern, in bytes: as long as the longest name and tag.
const MAX_PATTERN: usize = 800;

/// What is done about a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagPolicy {
    /// The origin is asked, at most once per `tag_ttl` and site; the newest answer of the site serves while it is out of
    /// reach.
    #[default]
    OriginFirst,
    /// The site's newest answer serves, however old it is; the origin is asked where the site has none, or when somebody
    /// wants to have it asked.
    SiteFirst,
    /// What the tag means when the site first learns of it, it means until it is removed.
    Frozen,
}

impl TagPolicy {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OriginFirst => "origin-first",
            Self::SiteFirst => "site-first",
            Self::Frozen => "frozen",
        }
    }
}

impl fmt::Display for TagPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For which tags a policy is meant: `docker.io/library/*:v*=frozen`, `registry.example=site-first`, or, for all, the policy
/// alone.
///
/// What stands before the `=` is an origin, an origin and a repository, or these and a tag. A `*` stands for any text, `/`
/// included; a repository without a tag means all its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRule {
    /// The origin and repository, as a pattern; `*` is all.
    name: String,
    /// The tag, as a pattern.
    tag: String,
    policy: TagPolicy,
}

impl FromStr for TagRule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() > MAX_PATTERN {
            return Err(());
        }
        let (pattern, policy) = text.rsplit_once('=').unwrap_or(("*", text));
        let policy = match policy.trim() {
            "origin-first" => TagPolicy::OriginFirst,
            "site-first" => TagPolicy::SiteFirst,
            "frozen" => TagPolicy::Frozen,
            _ => return Err(()),
        };
        let (name, tag) = split(pattern.trim()).ok_or(())?;
        Ok(Self { name, tag, policy })
    }
}

/// The name and the tag of a pattern, each as what is compared.
fn split(pattern: &str) -> Option<(String, String)> {
    let plain = |text: &str, more: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "*.-_".contains(c) || more.contains(c);
        !text.is_empty() && text.chars().all(allowed)
    };
    if pattern == "*" {
        return Some(("*".to_owned(), "*".to_owned()));
    }
    let Some((host, rest)) = pattern.split_once('/') else {
        // A ':' here is that of a port.
        let host: Host = pattern.parse().ok()?;
        return Some((format!("{host}/*"), "*".to_owned()));
    };
    let (repository, tag) = rest.split_once(':').unwrap_or((rest, "*"));
    // Hosts have one name each, so that a pattern for a host must not have another.
    let host = match host.contains('*') {
        true => host.to_owned(),
        false => host.parse::<Host>().ok()?.to_string(),
    };
    let fits = plain(&host, ":[]") && plain(repository, "/") && plain(tag, "");
    let is_official = host == "docker.io" && !repository.contains(['/', '*']);
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    let lower = !repository.bytes().any(|byte| byte.is_ascii_uppercase());
    (fits && lower).then(|| (format!("{host}/{repository}"), tag.to_owned()))
}

impl fmt::Display for TagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tag, policy } = self;
        match (name.as_str(), tag.as_str()) {
            ("*", "*") => write!(f, "{policy}"),
            (name, "*") => write!(f, "{}={policy}", host_alone(name).unwrap_or(name)),
            (name, tag) => write!(f, "{name}:{tag}={policy}"),
        }
    }
}

/// The host of a name that means all of it.
fn host_alone(name: &str) -> Option<&str> {
    name.strip_suffix("/*").filter(|host| !host.contains(['/', '*']))
}

impl TagRule {
    /// Whether this takes all that another one fits, so that the other never counts behind it.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        // A '*' of the other is any text, which nothing but a '*' takes.
        let covers = |all: &str, part: &str| matches(all.as_bytes(), part.as_bytes());
        covers(&self.name, &other.name) && covers(&self.tag, &other.tag)
    }

    fn fits(&self, reference: &Reference, tag: &str) -> bool {
        let name = format!("{}/{}", reference.host(), reference.repository());
        matches(self.name.as_bytes(), name.as_bytes()) && matches(self.tag.as_bytes(), tag.as_bytes())
    }
}

/// Whether a text is as a pattern says. After a mismatch only the last `*` is tried at one place more, so that the time is at
/// most the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What is known of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagDetails {
    /// When its origin is asked what it means.
    pub policy: TagPolicy,
    /// It was pushed to the site, and no origin is asked.
    pub pushed: bool,
    /// The node that pushed or resolved it.
    pub by: NodeId,
    /// How long ago an origin said what it means, in seconds; unknown where none has.
    pub age: Option<u64>,
    /// What it means now, where that is another image than this.
    pub moved: Option<Digest>,
}

/// What is done about each tag, and how long an answer of its origin counts.
#[derive(Clone, Debug, Default)]
pub struct TagRules {
    /// The first that fits counts; where none does the origin is asked first.
    pub rules: Vec<TagRule>,
    /// For how long an origin's answer counts for the site.
    pub ttl: Duration,
    /// The same for single origins.
    pub ttl_of: HashMap<Host, Duration>,
}

impl TagRules {
    pub(super) fn policy(&self, reference: &Reference) -> TagPolicy {
        let Some(tag) = reference.target().tag() else { return TagPolicy::default() };
        let tag = tag.to_string();
        let rule = self.rules.iter().find(|rule| rule.fits(reference, &tag));
        rule.map_or_else(TagPolicy::default, |rule| rule.policy)
    }

    pub(super) fn ttl(&self, reference: &Reference) -> Duration {
        self.ttl_at(reference.host())
    }

    pub(super) fn ttl_at(&self, host: &Host) -> Duration {
        self.ttl_of.get(host).copied().unwrap_or(self.ttl)
    }
}

impl Images {
    /// What this node knows of a tag, to be shown beside the image with this digest. Reads the disk.
    pub fn tag_details(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<TagDetails>, ImageError> {
        let Some(entry) = self.0.records.tag(reference)? else { return Ok(None) };
        Ok(Some(TagDetails {
            policy: self.0.parts.tags.policy(reference),
            pushed: entry.record.word == TagWord::Pushed,
            by: entry.record.signer(),
            age: self.age(entry.confirmed).map(|age| age.as_secs()),
            moved: Some(entry.record.digest).filter(|now| now != digest),
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> TagRules {
        TagRules { rules: texts.iter().map(|text| text.parse().unwrap()).collect(), ..TagRules::default() }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rules = rules(&[
            "docker.io/debian=origin-first",
            "docker.io/library/*:v*=frozen",
            "docker.io=site-first",
            "registry.lab:5000=frozen",
            "*/edge/*:latest=origin-first",
            "*=site-first",
        ]);
        for (name, policy) in [
            ("debian:12", TagPolicy::OriginFirst),
            ("alpine:v3", TagPolicy::Frozen),
            ("alpine:3", TagPolicy::SiteFirst),
            ("docker.io/team/app:v1", TagPolicy::SiteFirst),
            ("registry.lab:5000/a:1", TagPolicy::Frozen),
            ("quay.io/edge/app:latest", TagPolicy::OriginFirst),
            ("quay.io/edge/app:1", TagPolicy::SiteFirst),
        ] {
            assert_eq!(rules.policy(&name.parse().unwrap()), policy, "{name}");
        }
        assert_eq!(TagRules::default().policy(&"alpine".parse().unwrap()), TagPolicy::OriginFirst);
    }

    #[test]
    fn what_is_no_rule_is_refused_and_what_is_one_reads_back() {
        for bad in [
            "",
            "=",
            "frozn",
            "docker.io/*=",
            "docker.io/a b=frozen",
            "docker=frozen",
            "docker.io/A=frozen",
            "a.io/x:y:z=frozen",
        ] {
            assert!(bad.parse::<TagRule>().is_err(), "{bad}");
        }
        for good in [
            "frozen",
            "docker.io=site-first",
            "[::1]:5000=frozen",
            "*.io/a/*:v*=frozen",
            "a.io/b=origin-first",
        ] {
            assert_eq!(good.parse::<TagRule>().unwrap().to_string(), good);
        }
    }

    proptest! {
        #[test]
        fn a_pattern_fits_what_it_was_made_of(parts in prop::collection::vec("[a-c/]{0,4}", 1..5), fill in prop::collection::vec("[a-c/]{0,4}", 5)) {
            let pattern = parts.join("*");
            let text: String = parts.iter().zip(&fill).map(|(part, fill)| format!("{part}{fill}")).collect();
            let text = &text[..text.len() - fill[parts.len() - 1].len()];
            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }

        #[test]
        fn a_pattern_without_a_star_fits_itself_alone(pattern in "[a-b]{0,4}", text in "[a-b]{0,4}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), pattern == text);
        }

        #[test]
        fn no_text_is_too_odd_for_a_rule(text in "\\PC{0,60}") {
            if let Ok(rule) = text.parse::<TagRule>() {
                prop_assert_eq!(rule.to_string().parse::<TagRule>(), Ok(rule));
            }
        }
    }
}
