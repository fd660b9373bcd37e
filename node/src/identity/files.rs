//! Reading and writing the files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;
use wherry_proto::{Certificate, CertificateError, NodeId, SecretKey};

use super::{IdentityError, Result};

/// The longest file that is read, in bytes; the list of admitted nodes is the only one that grows.
const MAX_FILE: u64 = 1 << 20;

/// The folder that holds all of it.
pub(super) struct Folder {
    data: PathBuf,
}

/// The kinds of keys.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Node,
    Operator,
}

impl Kind {
    const fn file(self) -> &'static str {
        match self {
            Self::Node => "identity",
            Self::Operator => "network/operator.key",
        }
    }

    /// Tells the two apart, so that neither can be put in the other's place by mistake.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Node => "wherry-node-key-1:",
            Self::Operator => "wherry-operator-key-1:",
        }
    }
}

/// Whether a file that is there already is replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Keep,
    Replace,
}

impl Folder {
    const CERTIFICATE: &'static str = "certificate";
    const ADMITTED: &'static str = "network/admitted";
    pub(super) const BOOTSTRAP: &'static str = "network/bootstrap";

    pub(super) fn certificate_written(&self) -> Option<SystemTime> {
        fs::metadata(self.data.join(Self::CERTIFICATE)).ok()?.modified().ok()
    }

    pub(super) fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    /// A key, if its file exists.
    pub(super) fn key(&self, kind: Kind) -> Result<Option<SecretKey>> {
        let path = self.data.join(kind.file());
        let Some(text) = self.read(kind.file())? else { return Ok(None) };
        let mode = fs::metadata(&path).map_err(failed(&path, "read"))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Mode { path, mode });
        }
        match text.trim_end().strip_prefix(kind.prefix()).and_then(seed) {
            Some(seed) => Ok(Some(SecretKey::from_seed(seed))),
            None => Err(IdentityError::Key { path, expected: kind.prefix() }),
        }
    }

    /// A key, made if its file does not exist.
    pub(super) fn key_or_new(&self, kind: Kind) -> Result<SecretKey> {
        if let Some(key) = self.key(kind)? {
            return Ok(key);
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(IdentityError::Random)?;
        let digits: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write(kind.file(), &format!("{}{digits}\n", kind.prefix()), 0o600, Existing::Keep)?;
        Ok(SecretKey::from_seed(seed))
    }

    /// The certificate of this node, if there is one. Its time is not looked at.
    pub(super) fn certificate(&self, node: &NodeId) -> Result<Option<Certificate>> {
        let Some(text) = self.read(Self::CERTIFICATE)? else { return Ok(None) };
        let path = || self.data.join(Self::CERTIFICATE);
        let certificate: Certificate =
            text.parse().map_err(|source| IdentityError::Certificate { path: path(), source })?;
        match certificate.check(&certificate.network, node, 0, 0) {
            // At time 0 nothing that ever counted has expired; its time is for others to judge.
            Ok(()) | Err(CertificateError::Expired { .. }) => Ok(Some(certificate)),
            Err(source) => Err(IdentityError::NotAdmitted { path: path(), source }),
        }
    }

    pub(super) fn put_certificate(&self, certificate: &Certificate) -> Result<()> {
        self.write(Self::CERTIFICATE, &format!("{certificate}\n"), 0o644, Existing::Replace)
    }

    /// The nodes that were admitted from here, each once.
    pub(super) fn admitted(&self) -> Result<Vec<NodeId>> {
        let mut nodes: Vec<NodeId> =
            self.lines(Self::ADMITTED)?.iter().filter_map(|line| line.parse().ok()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(nodes)
    }

    pub(super) fn note_admitted(&self, node: &NodeId) -> Result<()> {
        if self.admitted()?.contains(node) {
            return Ok(());
        }
        let path = self.data.join(Self::ADMITTED);
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            writeln!(file, "{node}")?;
            file.sync_all()
        };
        append().map_err(failed(&path, "written"))
    }

    /// Puts the operator key of a network that is left, and the list of those it admitted, out of the way.
    pub(super) fn retire_operator(&self, now: u64) -> Result<()> {
        for name in [Kind::Operator.file(), Self::ADMITTED] {
            let path = self.data.join(name);
            match fs::rename(&path, self.data.join(format!("{name}.left-{now}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&path, "renamed")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The lines of a file that are not empty; none when it does not exist.
    pub(super) fn lines(&self, name: &str) -> Result<Vec<String>> {
        let text = self.read(name)?.unwrap_or_default();
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    pub(super) fn put_lines(&self, name: &str, lines: &[String]) -> Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.write(name, &text, 0o644, Existing::Replace)
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.data.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file.take(MAX_FILE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, "read")(error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed(&path, "read"))?;
        // What is no text holds nothing that would be accepted, and the error says what was expected.
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn write(&self, name: &str, text: &str, mode: u32, existing: Existing) -> Result<()> {
        let path = self.data.join(name);
        let folder = path.parent().unwrap_or(&self.data);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder, "made"))?;
        let place = || {
            let mut file = NamedTempFile::new_in(folder)?;
            file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            match existing {
                Existing::Keep => file.persist_noclobber(&path).map_err(|error| error.error)?,
                Existing::Replace => file.persist(&path).map_err(|error| error.error)?,
            };
            File::open(folder)?.sync_all()
        };
        place().map_err(failed(&path, "written"))
    }
}

fn failed(path: &Path, tried: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, tried, source }
}

/// 32 bytes from exactly 64 hexadecimal digits.
fn seed(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut seed = [0; 32];
    for (byte, pair) in seed.iter_mut().zip(digits.as_chunks::<2>().0) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok()?;
    }
    Some(seed)
}
