//! Programs that see folders of another system in place of this machine's: for configuration that they look for in one place
//! and nowhere else.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// Mounts each folder over the one behind it, in a namespace of its own, and goes on as the program: the same process.
const MOUNT: &str =
    r#"while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@""#;

/// What to start a program by, and the first arguments of that, so that it sees these folders below `root` in place of this
/// machine's. A folder that is missing is made on both sides.
///
/// # Errors
/// When it cannot be made.
pub fn seeing(root: &Path, folders: &[&str]) -> Result<(OsString, Vec<OsString>)> {
    let mut before: Vec<OsString> = ["--mount", "sh", "-c", MOUNT, "sh"].map(Into::into).to_vec();
    for folder in folders {
        let other = root.join(folder.trim_start_matches('/'));
        fs::create_dir_all(&other)?;
        fs::create_dir_all(folder)?;
        before.extend([other.into_os_string(), (*folder).into()]);
    }
    before.push("--".into());
    Ok(("unshare".into(), before))
}

/// The same command, which sees these folders so.
///
/// # Errors
/// As [`seeing`].
pub fn command_seeing(root: &Path, folders: &[&str], command: &Command) -> Result<Command> {
    let (program, before) = seeing(root, folders)?;
    let mut other = Command::new(program);
    other.args(before).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    Ok(other)
}
