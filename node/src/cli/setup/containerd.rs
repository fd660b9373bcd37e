//! containerd: a hosts.toml for all registries, and that its CRI plugin looks there. Of the administrator's config.toml the
//! lines that are needed change and no others, each with a mark by which it is found again.

use toml::Table;

use super::plan::{OWN, Plan, Target};
use crate::cli::failure::Failure;
use crate::cli::runtime::Files;
use crate::cli::runtime::containerd::{CERTS, CONFIG, plugin, read};

/// What the authority of a gateway's certificate is called. Not `*.crt`: where hosts.toml is missing or cannot be read,
/// containerd takes all of these in its folder for authorities of every registry.
const AUTHORITY: &str = "wherry-ca.pem";

/// Ends a line that was added, and one that was changed, which then says from what.
const MARK: &str = "# wherry setup";

pub(super) fn plan(files: &Files, target: &Target) -> Result<Plan, Failure> {
    let undo = target.undo;
    let mut plan = Plan::default();
    let before = files.read(CONFIG)?;
    let written = before.as_ref().filter(|text| !text.trim().is_empty());
    let certs = match written.map(|text| configured(files, text)) {
        // What is wrong with it keeps nothing from being undone.
        Some(Err(error)) if !undo => return Err(error),
        Some(Ok(Some(certs))) => certs,
        _ => CERTS.to_owned(),
    };
    let hosts = format!("{certs}/_default/hosts.toml");
    let authority = format!("{certs}/_default/{AUTHORITY}");
    if undo {
        // What names the authority goes before it does.
        plan.own_file(files, &hosts, None, "")?;
        plan.authority_file(files, &authority, target)?;
        // A file of which nothing is left was not there before.
        let after = before.as_deref().map(without_marks);
        let after = after.filter(|text| !text.is_empty() || before.as_deref() == Some(""));
        plan.change(files.path(CONFIG), before, after);
    } else {
        plan.authority_file(files, &authority, target)?;
        let after = match written {
            Some(text) if configured(files, text)?.is_none() => with_path(files, text)?,
            Some(text) => text.clone(),
            None => with_path(files, &format!("version = 2 {MARK}\n"))?,
        };
        let mut text =
            format!("{OWN}\n[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", target.gateway);
        if plan.authority.is_some() {
            // Beside this file, wherever that is.
            text += &format!("  ca = \"{AUTHORITY}\"\n");
        }
        plan.own_file(files, &hosts, Some(text), "add the gateway to it, before the other hosts")?;
        plan.change(files.path(CONFIG), before, Some(after));
        for name in files.names(&certs).into_iter().filter(|name| name != "_default") {
            plan.notes.push(format!(
                "{name} has a configuration of its own in {}, which comes first: add the gateway there",
                files.path(&certs).join(&name).display()
            ));
        }
    }
    if plan.changes.iter().any(|change| change.path == files.path(CONFIG)) {
        plan.then.push("systemctl restart containerd    # containers run on".to_owned());
    }
    Ok(plan)
}

fn wrong(files: &Files, why: &str, hint: &str) -> Failure {
    Failure::with_hint(format!("{} {why}", files.path(CONFIG).display()), hint)
}

/// The folder that containerd looks into already, if it does.
fn configured(files: &Files, text: &str) -> Result<Option<String>, Failure> {
    let config = read(text).map_err(|fault| wrong(files, &fault.why(), fault.hint()))?;
    if config.is_old {
        let hint = "move them to hosts.toml files first: containerd takes one or the other";
        return Err(wrong(files, "has registry mirrors of the old form", hint));
    }
    Ok(config.paths.into_iter().next())
}

/// The configuration with the folder in it.
fn with_path(files: &Files, text: &str) -> Result<String, Failure> {
    let config: Table = text.parse().unwrap_or_default();
    let plugin = plugin(&config);
    let headers = ['"', '\''].map(|quote| format!("[plugins.{quote}{plugin}{quote}.registry]"));
    let is_header = |line: &str| headers.iter().any(|header| line.trim().starts_with(header.as_str()));
    let mut out: Vec<String> = Vec::new();
    let (mut within, mut done) = (false, false);
    for line in text.lines() {
        let trimmed = line.trim_start();
        let is_next = trimmed.starts_with('[') && !is_header(line);
        let indent = &line[..line.len() - trimmed.len()];
        if within && is_next && !done {
            out.push(format!("  config_path = \"{CERTS}\" {MARK}"));
            done = true;
        }
        within = (within && !is_next) || is_header(line);
        match trimmed.strip_prefix("config_path").map(|rest| rest.trim_start().starts_with('=')) {
            Some(true) if within && !done => {
                out.push(format!("{indent}config_path = \"{CERTS}\" {MARK}, instead of: {trimmed}"));
                done = true;
            }
            _ => out.push(line.to_owned()),
        }
    }
    if !done {
        if !within {
            out.push(format!("{} {MARK}", headers[0]));
        }
        out.push(format!("  config_path = \"{CERTS}\" {MARK}"));
    }
    let text = out.join("\n") + "\n";
    match configured(files, &text) {
        Ok(Some(path)) if path == CERTS => Ok(text),
        _ => Err(wrong(
            files,
            "could not be changed so that it means what it should",
            &format!("set config_path = \"{CERTS}\" in the table {} by hand", headers[0]),
        )),
    }
}

/// The configuration as it was.
fn without_marks(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        match line.split_once(MARK) {
            None => out += line,
            Some((changed, rest)) => {
                if let Some(before) = rest.trim_end().strip_prefix(", instead of: ") {
                    let indent = &changed[..changed.len() - changed.trim_start().len()];
                    out += &format!("{indent}{before}\n");
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    fn files() -> Files {
        Files { root: "/nowhere".into() }
    }

    #[test]
    fn what_an_administrator_wrote_stays_as_it_is_and_comes_back_as_it_was() {
        let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n";
        let dumped = "version = 3\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'overlayfs'\n    [plugins.'io.containerd.cri.v1.images'.registry]\n      config_path = ''   # none\n    [plugins.'io.containerd.cri.v1.images'.image_decryption]\n      key_model = 'node'\n";
        let empty =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n[debug]\nlevel = \"warn\"\n";
        for text in [debian, dumped, empty, "version = 2\n"] {
            assert_eq!(configured(&files(), text).unwrap(), None);
            let with = with_path(&files(), text).unwrap();
            assert_eq!(configured(&files(), &with).unwrap().as_deref(), Some(CERTS), "{with}");
            assert_eq!(without_marks(&with), text, "{with}");
        }
    }

    #[test]
    fn what_would_contradict_it_is_refused_with_what_to_do() {
        let says = |text: &str| match configured(&files(), text) {
            Err(Failure::Failed { message, hint }) => format!("{message}; {}", hint.unwrap_or_default()),
            other => panic!("{other:?}"),
        };
        assert!(says("root = \"/x\"\n").contains("config migrate"));
        assert!(says("version = 2\nnonsense").contains("not TOML"));
        let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://x\"]\n";
        assert!(says(old).contains("hosts.toml"));
    }
}
