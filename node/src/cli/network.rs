//! `wherry network`: works on the files of the data folder, whether a node runs there or not.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use wherry_proto::Certificate;

use super::args::{NetworkArgs, NetworkCommand};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{count, note, print, print_json};
use crate::config::units::{show_age, show_date};
use crate::config::{control_sockets, data_folder};
use crate::identity::{self, Identity, JoinLine, Membership};

pub(super) fn run(args: NetworkArgs, environment: &Environment) -> Result<(), Failure> {
    let data = data(&args, environment)?;
    let now = now();
    match args.command {
        NetworkCommand::Init { days } => {
            let Membership { key, certificate, .. } = identity::init(&data, now, days)?;
            if args.json {
                return print_json(&member_json(&key.node().to_string(), &certificate));
            }
            print(&format!("network {}\npeer id {}\n", certificate.network, key.node()))?;
            note(&format!(
                "The operator key is {}: keep a copy elsewhere. Admit other nodes with 'wherry network admit PEER_ID'.",
                data.join("network/operator.key").display()
            ));
        }
        NetworkCommand::Admit { peer, days, bootstrap } => {
            let line = identity::admit(&data, peer, now, days, bootstrap)?;
            if args.json {
                return print_json(&line_json(&line));
            }
            print(&format!("{line}\n"))?;
            note(&format!(
                "On that node: wherry network join 'LINE'. It is admitted until {}.",
                show_date(line.certificate.expires)
            ));
        }
        NetworkCommand::Join { line, replace } => {
            let Membership { key, certificate, .. } = identity::join(&data, &line.join(" "), now, replace)?;
            // A socket at which somebody answers: the node is asked nothing, since it could not change its network now.
            let runs = UnixStream::connect(control_socket(&data, environment)).is_ok();
            if args.json {
                let mut member = member_json(&key.node().to_string(), &certificate);
                member["restart"] = runs.into();
                return print_json(&member);
            }
            print(&format!("network {}\npeer id {}\n", certificate.network, key.node()))?;
            let restart =
                if runs { " Restart the node that runs here: until then it is what it was." } else { "" };
            note(&format!("Admitted until {}.{restart}", show_date(certificate.expires)));
        }
        NetworkCommand::Show => {
            let identity = identity::show(&data)?;
            return if args.json {
                print_json(&identity_json(&identity, now))
            } else {
                print(&show(&identity, now))
            };
        }
    }
    Ok(())
}

/// Seconds since 1970; a clock before that counts as then.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn data(args: &NetworkArgs, environment: &Environment) -> Result<PathBuf, Failure> {
    let flags: Vec<_> = args.data.iter().map(|data| ("data", vec![data.clone()])).collect();
    data_folder(&environment.lenient_sources(&flags))
        .ok_or_else(|| Failure::Usage("no HOME to keep data in: say where it is with --data".to_owned()))
}

/// Where the node of this data folder answers, if it runs.
fn control_socket(data: &Path, environment: &Environment) -> PathBuf {
    let flags = [("data", vec![data.display().to_string()])];
    let sockets = control_sockets(&environment.lenient_sources(&flags));
    sockets.into_iter().next().unwrap_or_else(|| data.join("control.sock"))
}

fn member_json(peer: &str, certificate: &Certificate) -> serde_json::Value {
    json!({ "peer_id": peer, "network": certificate.network, "expires": certificate.expires })
}

fn line_json(line: &JoinLine) -> serde_json::Value {
    json!({
        "line": line.to_string(),
        "peer_id": line.certificate.node,
        "network": line.certificate.network,
        "expires": line.certificate.expires,
    })
}

fn identity_json(identity: &Identity, now: u64) -> serde_json::Value {
    let certificate = identity.certificate.as_ref();
    json!({
        "peer_id": identity.node,
        "network": certificate.map(|certificate| certificate.network),
        "roles": certificate.map(|certificate| {
            certificate.roles.to_string().split(", ").map(str::to_owned).collect::<Vec<_>>()
        }),
        "expires": certificate.map(|certificate| certificate.expires),
        "expired": certificate.map(|certificate| certificate.expires <= now),
        "bootstrap": identity.bootstrap,
        "operates": identity.operates,
        "admitted": identity.admitted,
    })
}

/// What `wherry network show` prints.
pub(super) fn show(identity: &Identity, now: u64) -> String {
    let mut out = format!("peer id   {}\n", identity.node);
    match &identity.certificate {
        None => out += "network   none yet: join one, or 'wherry up' makes one of its own\n",
        Some(certificate) => {
            out += &format!("network   {}\n", certificate.network);
            out += &format!("roles     {}\n", certificate.roles);
            let date = show_date(certificate.expires);
            let length = |seconds| show_age(std::time::Duration::from_secs(seconds));
            out += &match certificate.expires.checked_sub(now).filter(|left| *left > 0) {
                Some(left) => format!("admitted  until {date}, {} from now\n", length(left)),
                None => format!("admitted  no longer: expired {date}, have the operator admit it again\n"),
            };
        }
    }
    for address in &identity.bootstrap {
        out += &format!("bootstrap {address}\n");
    }
    if let Some(network) = identity.operates {
        let nodes = count(identity.admitted.len(), "other node");
        out += &format!("operator  of {network}, which has admitted {nodes}\n");
    }
    out
}
