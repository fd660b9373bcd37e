//! A folder that holds an OCI layout becomes a tar stream, so that there is one way in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, Header};

use super::PackError;
use super::name::{self, Name};

/// Writes the layout in a folder as a tar archive for [`import`](super::import()). Only files with a layout's names are
/// taken; a link in such a place is an error, and whatever else lies in the folder is left out.
pub fn pack_directory(path: &Path, writer: impl Write) -> Result<(), PackError> {
    let mut tar = Builder::new(writer);
    let mut indexed = false;
    for name in ["oci-layout", "index.json", "manifest.json"] {
        indexed |= append(&mut tar, path, name)? && name != "oci-layout";
    }
    if !indexed {
        return Err(PackError::NotALayout(path.to_owned()));
    }
    for algorithm in ["sha256", "sha512"] {
        let folder = format!("blobs/{algorithm}");
        for below in ["blobs", &folder] {
            let below = path.join(below);
            if fs::symlink_metadata(&below).is_ok_and(|data| !data.is_dir()) {
                return Err(PackError::Kind(below));
            }
        }
        for file in list(&path.join(&folder))? {
            let name = format!("{folder}/{file}");
            if matches!(name::parse(&name), Some(Name::Blob(_))) {
                append(&mut tar, path, &name)?;
            }
        }
    }
    tar.into_inner().and_then(|mut writer| writer.flush()).map_err(PackError::Write)
}

/// Appends a file; says whether it was there.
fn append(tar: &mut Builder<impl Write>, root: &Path, name: &str) -> Result<bool, PackError> {
    let path = root.join(name);
    let failed = |source| PackError::Read { path: path.clone(), source };
    let data = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    if !data.is_file() {
        return Err(PackError::Kind(path));
    }
    // It may have become a link since, and a link is not followed.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, exactly(file, size)).map_err(PackError::Write)?;
    Ok(true)
}

/// As many bytes as the header announces: zeros for what was cut off meanwhile, which no digest then allows.
fn exactly(file: File, size: u64) -> impl io::Read {
    io::Read::take(io::Read::chain(file, io::repeat(0)), size)
}

/// The names in a folder, sorted; none if there is no such folder.
fn list(path: &Path) -> Result<Vec<String>, PackError> {
    let failed = |source| PackError::Read { path: PathBuf::from(path), source };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names.map_err(failed)?;
    names.sort();
    Ok(names)
}
