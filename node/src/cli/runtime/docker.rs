//! docker's daemon.json.

use serde_json::{Map, Value};

pub(in crate::cli) const FILE: &str = "/etc/docker/daemon.json";
/// Where the authorities are that it trusts in for single registries and mirrors, in a folder for each.
pub(in crate::cli) const CERTS: &str = "/etc/docker/certs.d";
pub(in crate::cli) const KEY: &str = "registry-mirrors";

/// What a daemon.json says.
#[derive(Debug, Default)]
pub(in crate::cli) struct Daemon {
    /// All of it.
    pub(in crate::cli) object: Map<String, Value>,
    /// Its mirrors, in the order in which they are asked.
    pub(in crate::cli) mirrors: Vec<String>,
}

/// Reads a daemon.json. What is wrong with one is said so that it goes on behind the name of the file.
pub(in crate::cli) fn read(text: &str) -> Result<Daemon, String> {
    if text.trim().is_empty() {
        return Ok(Daemon::default());
    }
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let Value::Object(object) = value else { return Err("is no JSON object".to_owned()) };
    let mirrors = match object.get(KEY) {
        None | Some(Value::Null) => Vec::new(),
        Some(mirrors) => serde_json::from_value(mirrors.clone())
            .map_err(|_| format!("has a '{KEY}' that is no list of addresses"))?,
    };
    Ok(Daemon { object, mirrors })
}
