//! Files below a root.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cli::failure::Failure;

/// The longest configuration of a runtime that is read, in bytes.
pub(in crate::cli) const MAX_FILE: u64 = 1 << 20;

/// The files below a root: `/`, or that of a system that is being made.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Files {
    pub(in crate::cli) root: PathBuf,
}

impl Files {
    pub(in crate::cli) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The same for people.
    pub(in crate::cli) fn shown(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }

    /// What is in a file; `None` if there is none.
    pub(in crate::cli) fn read(&self, path: &str) -> Result<Option<String>, Failure> {
        let path = self.path(path);
        let failed = |why: String| Failure::new(format!("{} cannot be read: {why}", path.display()));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE => {
                Err(failed(format!("it has more than {MAX_FILE} bytes")))
            }
            Ok(_) => fs::read_to_string(&path).map(Some).map_err(|error| failed(error.to_string())),
            // A file where a folder could be has nothing within.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The names in a folder, sorted; none if there is no such folder.
    pub(in crate::cli) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// When a file was written last, if it is there.
    pub(in crate::cli) fn written(&self, path: &str) -> Option<SystemTime> {
        fs::metadata(self.path(path)).and_then(|metadata| metadata.modified()).ok()
    }
}
