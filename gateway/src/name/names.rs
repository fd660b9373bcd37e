//! What the names that people and clients write are short for.

use std::collections::BTreeMap;

use super::{Host, NameError, Repository, excerpt};

/// The most aliases that a node has.
pub const MAX_ALIASES: usize = 256;

/// Short names of origins: `lab` for `registry.lab.example:5000`, which no part of a path may hold.
///
/// An alias stands where a host would, and hides a host, or the first part of a repository, of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases(BTreeMap<String, Host>);

impl Aliases {
    /// Adds one; one that is there already means the new host from now on.
    ///
    /// # Errors
    /// When it could not be the first part of a path, as what has upper case or a `:`, or there are [`MAX_ALIASES`].
    pub fn add(&mut self, alias: &str, host: Host) -> Result<(), NameError> {
        let wrong = |why| NameError::Alias { text: excerpt(alias), why };
        if alias.contains('/') || alias.parse::<Repository>().is_err() {
            return Err(wrong("it is no part of a path"));
        }
        if alias.parse::<Host>().is_ok_and(|host| host.is_docker_io() || host.is_site()) {
            return Err(wrong("it is the name of another registry"));
        }
        if self.0.len() >= MAX_ALIASES && !self.0.contains_key(alias) {
            return Err(wrong("there are too many"));
        }
        self.0.insert(alias.to_owned(), host);
        Ok(())
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.0.iter().map(|(alias, host)| (alias.as_str(), host))
    }

    /// The origin that the first part of a name or path means; `None` if it is part of a repository.
    pub(crate) fn host(&self, first: &str) -> Result<Option<Host>, NameError> {
        match self.0.get(first) {
            Some(host) => Ok(Some(host.clone())),
            None if Host::looks_like_host(first) => first.parse().map(Some),
            None => Ok(None),
        }
    }
}

/// How a node reads names: its aliases, and which origin is meant when none is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The origin of names that name none.
    pub default_origin: Host,
    /// Short names of origins.
    pub aliases: Aliases,
}

impl Default for Names {
    /// Docker Hub, and no aliases.
    fn default() -> Self {
        Self { default_origin: Host::docker_io(), aliases: Aliases::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_what_can_begin_a_path() {
        let mut aliases = Aliases::default();
        let lab: Host = "registry.lab:5000".parse().unwrap();
        for good in ["lab", "registry.lab", "a-b_c", "localhost"] {
            aliases.add(good, lab.clone()).unwrap();
            assert_eq!(aliases.host(good).unwrap(), Some(lab.clone()));
        }
        for bad in ["", "Lab", "a/b", "a:5", "-a", "..", "a b", "docker.io", "site.wherry"] {
            assert!(aliases.add(bad, lab.clone()).is_err(), "{bad}");
        }
        assert_eq!(aliases.host("team").unwrap(), None);
        assert_eq!(aliases.host("quay.io").unwrap(), Some("quay.io".parse().unwrap()));
    }
}
