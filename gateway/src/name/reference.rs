//! Image references.

use std::fmt;
use std::str::FromStr;

use wherry_proto::Digest;

use super::{Host, NameError, Names, Repository, Tag, excerpt};

/// Longer than any valid reference: 259 for the host, 255, 128 and 135 for the rest, and their separators.
const MAX_REFERENCE: usize = 800;

/// What picks one manifest in a repository.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TagOrDigest {
    /// A name that may be moved.
    Tag(Tag),
    /// The manifest itself.
    Digest(Digest),
}

impl TagOrDigest {
    /// The digest, if it is one.
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
        }
    }

    /// The tag, if it is one.
    pub const fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

impl FromStr for TagOrDigest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for TagOrDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Debug for TagOrDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

super::serde_as_text!(TagOrDigest);

/// Where an image is and which one it is, with nothing left out: `docker.io/library/alpine:latest`.
///
/// [`FromStr`] fills in what people leave out, as docker does: `alpine` is
/// `docker.io/library/alpine:latest`, and a first part is a host if it has a dot or a colon or is
/// `localhost`. Of `name:tag@digest` the digest alone counts and the tag is dropped.
/// [`Display`](fmt::Display) writes the full form, which reads back as the same reference.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: Host,
    repository: Repository,
    target: TagOrDigest,
}

impl Reference {
    /// A reference from its parts. On `docker.io` a repository of one part is moved into `library/`.
    pub fn new(host: Host, repository: Repository, target: TagOrDigest) -> Self {
        let repository = if host.is_docker_io() { repository.with_library() } else { repository };
        Self { host, repository, target }
    }

    /// Reads a reference as [`FromStr`] does, but one that names no host is at the default origin of `names`, and one whose
    /// first part is an alias at what that stands for.
    ///
    /// # Errors
    /// When the text is no reference; whether it is one hardly depends on `names`.
    pub fn parse_with(text: &str, names: &Names) -> Result<Self, NameError> {
        let wrong = |why| NameError::Reference { text: excerpt(text), why };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_REFERENCE {
            return Err(wrong("it is longer than any reference can be"));
        }
        if text.contains("://") {
            return Err(wrong("a reference has no scheme: leave out http:// or https://"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, rest) = match named.split_once('/') {
            Some((first, rest)) => match names.aliases.host(first)? {
                Some(host) => (host, rest),
                None => (names.default_origin.clone(), named),
            },
            None => (names.default_origin.clone(), named),
        };
        let is_digest = |text: &str| text.starts_with("sha256:") || text.starts_with("sha512:");
        if digest.is_none() && is_digest(text) {
            return Err(wrong("a digest alone says not where the image is"));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse::<Tag>()?)),
            None => (rest, None),
        };
        let target = match digest {
            Some(digest) => TagOrDigest::Digest(digest),
            None => TagOrDigest::Tag(tag.unwrap_or_else(Tag::latest)),
        };
        Ok(Self::new(host, repository.parse()?, target))
    }

    /// The origin's host.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The repository there.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag or digest.
    pub const fn target(&self) -> &TagOrDigest {
        &self.target
    }

    /// The same repository with another tag or digest.
    #[must_use]
    pub fn with_target(&self, target: TagOrDigest) -> Self {
        Self { target, ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse_with(text, &Names::default())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.target {
            TagOrDigest::Tag(_) => ':',
            TagOrDigest::Digest(_) => '@',
        };
        write!(f, "{}/{}{separator}{}", self.host, self.repository, self.target)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

super::serde_as_text!(Reference);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_people_leave_out_is_filled_in_as_docker_does() {
        let by_digest = format!("docker.io/library/alpine@{DIGEST}");
        for (short, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("Quay.io/a/b/c:D", "quay.io/a/b/c:D"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            (&format!("alpine@{DIGEST}"), &by_digest),
            (&format!("alpine:3.20@{DIGEST}"), &by_digest),
        ] {
            assert_eq!(short.parse::<Reference>().unwrap().to_string(), full, "{short}");
        }
    }

    #[test]
    fn a_name_without_a_host_is_at_the_default_and_no_other_is() {
        let mut names = Names { default_origin: "registry.local:5000".parse().unwrap(), ..Names::default() };
        names.aliases.add("lab", "registry.lab:5000".parse().unwrap()).unwrap();
        for (short, full) in [
            ("alpine", "registry.local:5000/alpine:latest"),
            ("library/alpine:3", "registry.local:5000/library/alpine:3"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("lab/team/app:1", "registry.lab:5000/team/app:1"),
            ("lab", "registry.local:5000/lab:latest"),
        ] {
            assert_eq!(Reference::parse_with(short, &names).unwrap().to_string(), full, "{short}");
        }
    }

    #[test]
    fn what_is_no_reference_says_what_was_expected() {
        for bad in [
            "",
            "/",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:00",
            "https://a.io/b",
            "a.io/",
            "/a",
            "a.io//b",
            "A",
            "a.io/B",
            "a:b:c",
            "a b",
            "a@b@c",
            "sha256:1",
            DIGEST,
            "docker.io",
            "a/b:",
            "../etc/passwd",
            "a.io:99999/b",
            &"a/".repeat(500),
        ] {
            let error = match bad.parse::<Reference>() {
                // A bare host is a repository whose name has a dot: docker reads it so too.
                Ok(reference) => {
                    assert_eq!(reference.to_string(), "docker.io/library/docker.io:latest");
                    continue;
                }
                Err(error) => error.to_string(),
            };
            assert!(error.contains("expected") || error.contains("digest"), "{bad:?}: {error}");
        }
    }

    prop_compose! {
        fn host()(name in "[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,5}[a-z0-9])?){1,3}", port in proptest::option::of(1u16..)) -> String {
            match port { Some(port) => format!("{name}:{port}"), None => name }
        }
    }

    proptest! {
        #[test]
        fn the_full_form_reads_back(host in host(), repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", by_digest: bool) {
            let text = if by_digest { format!("{host}/{repository}@{DIGEST}") } else { format!("{host}/{repository}:{tag}") };
            let reference: Reference = text.parse().unwrap();
            let written = reference.to_string();
            prop_assert_eq!(&written.parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(written, text);
            let json = serde_json::to_string(&reference).unwrap();
            prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
        }

        #[test]
        fn no_text_panics_and_what_parses_reads_back(text in "[a-zA-Z0-9:/@._\\[\\] -]{0,60}|\\PC{0,60}") {
            crate::hostile::references(text.as_bytes());
            crate::hostile::names(text.as_bytes());
        }
    }
}
