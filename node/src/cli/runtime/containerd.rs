//! containerd's config.toml, as far as it is about registries, and its hosts.toml files.

use toml::{Table, Value};

pub(in crate::cli) const CONFIG: &str = "/etc/containerd/config.toml";
pub(in crate::cli) const CERTS: &str = "/etc/containerd/certs.d";

/// What a config.toml says of registries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Config {
    /// The folders in which its CRI plugin looks for hosts.toml files, the first first.
    pub(in crate::cli) paths: Vec<String>,
    /// The endpoints of the old form, by registry.
    pub(in crate::cli) mirrors: Vec<(String, Vec<String>)>,
    /// Whether it has settings of the old form, which no folder goes with.
    pub(in crate::cli) is_old: bool,
    /// Whether the plugin by which kubelets pull is switched off.
    pub(in crate::cli) without_cri: bool,
    /// Further files that may say otherwise.
    pub(in crate::cli) imports: Vec<String>,
}

/// Why nothing can be done with a config.toml.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Fault {
    /// It is not TOML.
    NotToml(String),
    /// It is of the first version.
    VersionOne,
}

impl Fault {
    /// What is wrong, so that it goes on behind the name of the file.
    pub(in crate::cli) fn why(&self) -> String {
        match self {
            Self::NotToml(why) => format!("is not TOML: {why}"),
            Self::VersionOne => "is of version 1, which knows no folder of hosts".to_owned(),
        }
    }

    /// What to do about it.
    pub(in crate::cli) const fn hint(&self) -> &'static str {
        match self {
            Self::NotToml(_) => "mend it first: 'containerd config dump' says what is wrong",
            Self::VersionOne => "let containerd write it anew: containerd config migrate",
        }
    }
}

/// The plugin that has the settings of registries.
pub(in crate::cli) fn plugin(config: &Table) -> &'static str {
    match config.get("version").and_then(Value::as_integer) {
        Some(version) if version >= 3 => "io.containerd.cri.v1.images",
        _ => "io.containerd.grpc.v1.cri",
    }
}

/// Reads a config.toml.
pub(in crate::cli) fn read(text: &str) -> Result<Config, Fault> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| Fault::NotToml(error.to_string()))?;
    if table.get("version").and_then(Value::as_integer).unwrap_or(1) < 2 {
        return Err(Fault::VersionOne);
    }
    let off = strings(table.get("disabled_plugins"));
    let mut config = Config {
        imports: strings(table.get("imports")),
        without_cri: off.iter().any(|name| name == "cri" || name == plugin(&table)),
        ..Config::default()
    };
    let registry = table.get("plugins").and_then(|it| it.get(plugin(&table))?.get("registry"));
    let Some(registry) = registry else { return Ok(config) };
    let entries = |key| registry.get(key).and_then(Value::as_table).filter(|table| !table.is_empty());
    config.is_old = entries("mirrors").is_some() || entries("configs").is_some();
    for (name, mirror) in entries("mirrors").into_iter().flatten() {
        config.mirrors.push((name.clone(), strings(mirror.get("endpoint"))));
    }
    let path = registry.get("config_path").and_then(Value::as_str).unwrap_or_default();
    config.paths = path.split(':').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    Ok(config)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// A host that a hosts.toml has asked.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Endpoint {
    /// Where it is.
    pub(in crate::cli) url: String,
    /// What it is asked for; everything, if that is not said.
    pub(in crate::cli) capabilities: Option<Vec<String>>,
    /// Whether its address is the whole path, so that `/v2` is not put behind it.
    pub(in crate::cli) overrides_path: bool,
    /// Files with authorities that vouch for it, absolute or as seen from the folder of the hosts.toml.
    pub(in crate::cli) authorities: Vec<String>,
    /// Whether any certificate will do.
    pub(in crate::cli) trusts_all: bool,
}

/// The hosts of a hosts.toml in the order in which they are asked.
pub(in crate::cli) fn endpoints(text: &str) -> Result<Vec<Endpoint>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let hosts = table.get("host").and_then(Value::as_table).into_iter().flatten();
    let mut found: Vec<Endpoint> = hosts
        .map(|(url, host)| Endpoint {
            url: url.clone(),
            capabilities: host.get("capabilities").map(|it| strings(Some(it))),
            overrides_path: host.get("override_path").and_then(Value::as_bool).unwrap_or(false),
            authorities: match host.get("ca") {
                Some(Value::String(file)) => vec![file.clone()],
                other => strings(other),
            },
            trusts_all: host.get("skip_verify").and_then(Value::as_bool).unwrap_or(false),
        })
        .collect();
    // The order of the file counts, which a table does not keep.
    let place = |url: &str| ['"', '\''].iter().filter_map(|it| text.find(&format!("{it}{url}{it}"))).min();
    found.sort_by_key(|host| place(&host.url).unwrap_or(usize::MAX));
    Ok(found)
}

/// The names of the folders that may speak for a registry, the first that is there does.
pub(in crate::cli) fn folders(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn the_settings_of_registries_are_found_in_either_version() {
        let two = "version = 2\nimports = [\"/etc/x.toml\"]\ndisabled_plugins = [\"cri\"]\n\
            [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n\
            [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"http://x\"]\n";
        let config = read(two).unwrap();
        assert_eq!(config.paths, ["/a", "/b"]);
        assert_eq!(config.mirrors, [("docker.io".to_owned(), vec!["http://x".to_owned()])]);
        assert!(config.is_old && config.without_cri);
        assert_eq!(config.imports, ["/etc/x.toml"]);
        let three = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a'\n";
        assert_eq!(read(three).unwrap(), Config { paths: vec!["/a".to_owned()], ..Config::default() });
        assert_eq!(read("root = '/x'\n"), Err(Fault::VersionOne));
        assert!(matches!(read("nonsense"), Err(Fault::NotToml(_))));
    }

    #[test]
    fn hosts_are_in_the_order_of_the_file() {
        let text = "server = \"https://z\"\n[host.\"http://z\"]\n[host.'http://a']\ncapabilities = ['pull']\noverride_path = true\n";
        let found = endpoints(text).unwrap();
        assert_eq!(found.iter().map(|host| host.url.as_str()).collect::<Vec<_>>(), ["http://z", "http://a"]);
        assert_eq!(found[0].capabilities, None);
        assert_eq!(found[1].capabilities.as_deref(), Some(&["pull".to_owned()][..]));
        assert!(found[1].overrides_path && !found[0].overrides_path);
        let text = "[host.\"https://z\"]\nca = \"wherry.crt\"\n[host.\"https://y\"]\nca = [\"/a\", \"b\"]\nskip_verify = true\n";
        let found = endpoints(text).unwrap();
        assert_eq!((&found[0].authorities[..], found[0].trusts_all), (&["wherry.crt".to_owned()][..], false));
        assert!(found[1].authorities == ["/a", "b"] && found[1].trusts_all);
        assert_eq!(folders("localhost:5000"), ["localhost_5000_", "localhost:5000", "_default"]);
        assert_eq!(folders("quay.io"), ["quay.io", "_default"]);
    }
}
