//! What is to be done to files, before it is done.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cli::failure::Failure;
use crate::cli::runtime::{Address, Files};

/// Begins the files that are wherry's own, so that nobody else's is replaced or removed.
pub(super) const OWN: &str = "# Written by 'wherry setup'; 'wherry setup RUNTIME --undo' removes it.\n";

/// What the file with the authority of a gateway's certificate is called; docker and podman read all that end so.
pub(super) const AUTHORITY: &str = "wherry.crt";

/// What is to be set up or undone.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Where the gateway is.
    pub(super) gateway: Address,
    /// The authority that vouches for its certificate, as PEM, where one is given.
    pub(super) authority: Option<String>,
    /// Whether it is taken away instead.
    pub(super) undo: bool,
    /// Whether it is known if the gateway speaks TLS, and not only supposed that it does not.
    pub(super) is_sure: bool,
}

/// A file before and after; `None` where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// What makes a runtime use the gateway, or no longer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Those files alone that do change.
    pub(super) changes: Vec<Change>,
    /// What whoever reads this should know.
    pub(super) notes: Vec<String>,
    /// What has to be done afterwards.
    pub(super) then: Vec<String>,
    /// The authority that the runtime has for the gateway, as PEM.
    pub(super) authority: Option<String>,
}

impl Plan {
    /// Adds what becomes of a file, if that is not what it is.
    pub(super) fn change(&mut self, path: PathBuf, before: Option<String>, after: Option<String>) {
        if before != after {
            self.changes.push(Change { path, before, after });
        }
    }

    /// Adds a file that is wherry's own as a whole, or removes it where `after` is none. One that is somebody else's is
    /// refused: `instead` says what to put into it.
    pub(super) fn own_file(
        &mut self,
        files: &Files,
        path: &str,
        after: Option<String>,
        instead: &str,
    ) -> Result<(), Failure> {
        let before = files.read(path)?;
        let is_own = before.as_ref().is_none_or(|text| text.starts_with(OWN));
        match (is_own, &after) {
            (true, _) => self.change(files.path(path), before, after),
            (false, None) => {}
            (false, Some(_)) => {
                let message =
                    format!("{} is there already, and not written by wherry", files.path(path).display());
                return Err(Failure::with_hint(message, instead));
            }
        }
        Ok(())
    }

    /// Adds the file with the authority of the gateway's certificate: as it is given or, where none is, as it was given
    /// before. Without TLS, or for an undo, it goes.
    pub(super) fn authority_file(
        &mut self,
        files: &Files,
        path: &str,
        target: &Target,
    ) -> Result<(), Failure> {
        let before = files.read(path)?.filter(|text| text.starts_with(OWN));
        let after = match (&target.authority, target.gateway.tls && !target.undo) {
            // It may be needed again: nobody has said that the gateway speaks no TLS.
            (_, false) if !target.undo && !target.is_sure => before,
            (_, false) => None,
            (Some(pem), true) => Some(format!("{OWN}{pem}")),
            (None, true) => before,
        };
        self.authority.clone_from(&after);
        self.own_file(files, path, after, "move it away, or add the authority to it by hand")
    }
}

impl Change {
    /// The lines that differ, for people.
    pub(super) fn shown(&self) -> String {
        let lines = |text: &Option<String>| -> Vec<String> {
            text.as_deref().unwrap_or_default().lines().map(str::to_owned).collect()
        };
        let (before, after) = (lines(&self.before), lines(&self.after));
        let same = before.iter().zip(&after).take_while(|(one, two)| one == two).count();
        let rest = before.len().min(after.len()) - same;
        let same_end = before
            .iter()
            .rev()
            .zip(after.iter().rev())
            .take(rest)
            .take_while(|(one, two)| one == two)
            .count();
        let what = match (&self.before, &self.after) {
            (None, _) => " (new)",
            (_, None) => " (removed)",
            _ => "",
        };
        let mut out = format!("{}{what}\n", self.path.display());
        let mut add =
            |sign: &str, lines: &[String]| lines.iter().for_each(|line| out += &format!("{sign}{line}\n"));
        add("  ", &before[same.saturating_sub(2)..same]);
        add("- ", &before[same..before.len() - same_end]);
        add("+ ", &after[same..after.len() - same_end]);
        add("  ", &before[before.len() - same_end..(before.len() - same_end + 2).min(before.len())]);
        out
    }

    /// Where the file is in the end, as far as links lead there; that must be below the root.
    fn within(&self, root: &Path) -> Result<PathBuf, Failure> {
        let there = self.path.ancestors().find_map(|at| Some((at, fs::canonicalize(at).ok()?)));
        let Some((there, real)) = there else { return Ok(self.path.clone()) };
        let path = match self.path.strip_prefix(there) {
            Ok(rest) if rest != Path::new("") => real.join(rest),
            _ => real,
        };
        if fs::canonicalize(root).is_ok_and(|root| !path.starts_with(root)) {
            let message = format!(
                "{} leads to {}, which is not below {}",
                self.path.display(),
                path.display(),
                root.display()
            );
            return Err(Failure::with_hint(message, "change that file by hand"));
        }
        Ok(path)
    }

    /// Does it, in one step. Rights and owner of a file that is replaced stay.
    /// One that is a link stays so, and what it leads to is changed, if that is below the root.
    pub(super) fn apply(&self, root: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run it as root",
                _ => "nothing of this file has changed",
            };
            Failure::with_hint(format!("{} could not be changed: {error}", self.path.display()), hint)
        };
        let path = self.within(root)?;
        let Some(after) = &self.after else {
            fs::remove_file(&self.path).map_err(failed)?;
            // The folder for all registries, or for the gateway, is made for this file; it stays if anything else is in there.
            let is_made = |folder: &&Path| {
                folder
                    .parent()
                    .is_some_and(|parent| folder.ends_with("_default") || parent.ends_with("certs.d"))
            };
            if let Some(folder) = self.path.parent().filter(is_made) {
                let _ = fs::remove_dir(folder);
            }
            return Ok(());
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder).map_err(failed)?;
        let write = || -> io::Result<()> {
            let mut file = tempfile_in(folder)?;
            file.1.write_all(after.as_bytes())?;
            if let Ok(metadata) = fs::metadata(&path) {
                use std::os::unix::fs::MetadataExt as _;
                fs::set_permissions(&file.0, metadata.permissions())?;
                std::os::unix::fs::chown(&file.0, Some(metadata.uid()), Some(metadata.gid()))?;
            } else {
                // Runtimes that are not root read them too, whatever the mask here.
                fs::set_permissions(&file.0, fs::Permissions::from_mode(0o644))?;
            }
            file.1.sync_all()?;
            fs::rename(&file.0, &path).inspect_err(|_| _ = fs::remove_file(&file.0))
        };
        write().map_err(failed)
    }
}

/// Makes a folder and those above it that are missing; all may look into them, whatever the mask here.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::set_permissions(folder, fs::Permissions::from_mode(0o755)),
    }
}

/// A new file beside others, by a name that is not there yet.
fn tempfile_in(folder: &Path) -> io::Result<(PathBuf, fs::File)> {
    let path = folder.join(format!(".wherry-setup-{}", std::process::id()));
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn nothing_is_written_or_removed_beyond_links_that_lead_out_of_the_root() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("etc/docker")).unwrap();
        let path = root.path().join("etc/docker/certs.d/host/wherry.crt");
        let change = Change { path: path.clone(), before: None, after: Some("x".to_owned()) };
        change.apply(root.path()).unwrap_err();
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "theirs").unwrap();
        Change { path: path.clone(), before: None, after: None }.apply(root.path()).unwrap_err();
        assert_eq!(fs::read_to_string(path).unwrap(), "theirs");
    }
}
