//! The registries.conf files of podman, buildah, skopeo and CRI-O.

use toml::{Table, Value};

pub(in crate::cli) const MAIN: &str = "/etc/containers/registries.conf";
pub(in crate::cli) const FOLDER: &str = "/etc/containers/registries.conf.d";
/// The file there that is ours.
pub(in crate::cli) const NAME: &str = "50-wherry.conf";
/// Where the authorities are that are trusted in for single registries, in a folder for each.
pub(in crate::cli) const CERTS: &str = "/etc/containers/certs.d";

/// What is said of the images whose names begin alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Registry {
    /// How their names begin.
    pub(in crate::cli) prefix: String,
    /// What is put in place of that.
    pub(in crate::cli) location: String,
    /// Whether nothing may come from there.
    pub(in crate::cli) blocked: bool,
    /// Whether it may speak plain HTTP.
    pub(in crate::cli) insecure: bool,
    /// Whether mirrors are asked for digests alone.
    pub(in crate::cli) by_digest_only: bool,
    /// What is asked before it.
    pub(in crate::cli) mirrors: Vec<Mirror>,
}

/// A mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Mirror {
    /// What is put in place of the prefix.
    pub(in crate::cli) location: String,
    /// Whether it may speak plain HTTP.
    pub(in crate::cli) insecure: bool,
    /// What it is asked for: `all`, `digest-only` or `tag-only`.
    pub(in crate::cli) asked_for: Option<String>,
}

/// The registries of one file.
pub(in crate::cli) fn read(text: &str) -> Result<Vec<Registry>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| format!("is not TOML: {error}"))?;
    let registries = table.get("registry").and_then(Value::as_array).into_iter().flatten();
    Ok(registries.map(registry).collect())
}

fn registry(value: &Value) -> Registry {
    let (prefix, location) = (text(value, "prefix"), text(value, "location"));
    let mirrors = value.get("mirror").and_then(Value::as_array).into_iter().flatten();
    Registry {
        // Either stands for the other where one alone is there.
        prefix: prefix.clone().or_else(|| location.clone()).unwrap_or_default(),
        location: location.or(prefix).unwrap_or_default(),
        blocked: flag(value, "blocked"),
        insecure: flag(value, "insecure"),
        by_digest_only: flag(value, "mirror-by-digest-only"),
        mirrors: mirrors
            .map(|mirror| Mirror {
                location: text(mirror, "location").unwrap_or_default(),
                insecure: flag(mirror, "insecure"),
                asked_for: text(mirror, "pull-from-mirror"),
            })
            .collect(),
    }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(|text| text.trim_end_matches('/').to_owned()).filter(|it| !it.is_empty())
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

impl Registry {
    /// Whether it says something of a whole registry, or of a part of it.
    pub(in crate::cli) fn is_of(&self, host: &str) -> bool {
        [&self.prefix, &self.location].into_iter().any(|name| begins(name, host))
    }

    /// Whether it speaks for an image. `name` has its registry, and no tag.
    pub(in crate::cli) fn fits(&self, name: &str) -> bool {
        match self.prefix.strip_prefix("*.") {
            Some(domain) => {
                let host = name.split('/').next().unwrap_or_default();
                host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
            }
            None => begins(name, &self.prefix),
        }
    }

    /// What a mirror, or the registry itself, calls an image that this speaks for.
    pub(in crate::cli) fn moved(&self, name: &str, location: &str) -> String {
        let rest = match self.prefix.starts_with("*.") {
            true => name.find('/').map_or("", |at| &name[at..]),
            false => name.strip_prefix(self.prefix.as_str()).unwrap_or_default(),
        };
        format!("{location}{rest}")
    }
}

/// Whether a name is another or goes on where that ends.
fn begins(name: &str, with: &str) -> bool {
    name.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
        && !with.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn prefixes_speak_for_images_and_are_put_in_another_place() {
        let all = read(
            "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"gw:1/quay.io/\"\ninsecure = true\n\
             [[registry]]\nprefix = \"*.example\"\nlocation = \"x\"\nblocked = true\n",
        )
        .unwrap();
        let quay = &all[0];
        assert_eq!((quay.prefix.as_str(), quay.location.as_str()), ("quay.io", "quay.io"));
        assert!(quay.fits("quay.io/a/b") && !quay.fits("quay.iou/a") && quay.is_of("quay.io"));
        assert_eq!(quay.moved("quay.io/a/b", &quay.mirrors[0].location), "gw:1/quay.io/a/b");
        assert!(all[1].fits("a.example/b") && !all[1].fits("example/b") && all[1].blocked);
        assert_eq!(all[1].moved("a.example/b", "gw:1/x"), "gw:1/x/b");
    }
}
