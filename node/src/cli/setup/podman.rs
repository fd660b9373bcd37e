//! podman, buildah, skopeo and CRI-O: a file of our own beside theirs, and who vouches for a gateway that speaks TLS.

use wherry_gateway::Host;

use super::plan::{AUTHORITY, OWN, Plan, Target};
use crate::cli::failure::Failure;
use crate::cli::runtime::podman::{CERTS, FOLDER, MAIN, NAME, read};
use crate::cli::runtime::{Address, Files};

pub(super) fn plan(files: &Files, target: &Target, registries: &[Host]) -> Result<Plan, Failure> {
    let Target { gateway, undo, .. } = target;
    let mut plan = Plan::default();
    let path = format!("{FOLDER}/{NAME}");
    let after = match undo {
        true => None,
        false => Some(content(files, gateway, registries, &mut plan)?),
    };
    plan.authority_file(files, &format!("{CERTS}/{}/{AUTHORITY}", gateway.host), target)?;
    // The file names one gateway, so that what vouches for any other is of no use.
    for host in files.names(CERTS).into_iter().filter(|host| host != gateway.host.as_str()) {
        let path = format!("{CERTS}/{host}/{AUTHORITY}");
        if files.read(&path)?.is_some() {
            plan.own_file(files, &path, None, "")?;
        }
    }
    let instead = "move it away, or set up what deploy/runtimes/podman-registries.conf shows by hand";
    plan.own_file(files, &path, after, instead)?;
    Ok(plan)
}

fn content(
    files: &Files,
    gateway: &Address,
    registries: &[Host],
    plan: &mut Plan,
) -> Result<String, Failure> {
    let mut others = vec![MAIN.to_owned()];
    let names = files.names(FOLDER).into_iter().filter(|name| name.ends_with(".conf") && name != NAME);
    others.extend(names.map(|name| format!("{FOLDER}/{name}")));
    let insecure = if gateway.tls { "" } else { "insecure = true\n" };
    let gateway = &gateway.host;
    let mut text = format!("{OWN}\n[[registry]]\nlocation = \"{gateway}\"\n{insecure}");
    for host in registries {
        let host = host.as_str();
        let mut known = None;
        for path in &others {
            let Some(text) = files.read(path)? else { continue };
            let configured = read(&text).map_err(|why| {
                let message = format!("{} {why}", files.shown(path));
                Failure::with_hint(message, "mend it first: podman would not start with it")
            })?;
            if configured.iter().any(|registry| registry.is_of(host)) {
                known = Some(files.path(path));
            }
        }
        match known {
            // Of two blocks for a registry one would win, and it may have credentials or mirrors that are needed.
            Some(path) => plan.notes.push(format!(
                "{host} is left alone, since {} configures it: add the mirror {gateway}/{host} there",
                path.display()
            )),
            // A name holds no ':' but before its tag, so that the gateway cannot be asked for it in this way.
            None if host.contains(':') => plan.notes.push(format!(
                "{host} is left alone: no name of an image can hold its port behind another registry's"
            )),
            None => {
                text += &format!(
                    "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n[[registry.mirror]]\n\
                     location = \"{gateway}/{host}\"\n{insecure}"
                );
            }
        }
    }
    Ok(text)
}
