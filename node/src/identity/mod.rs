//! Who this node is and where it belongs: the files of the data folder that say so.
//!
//! ```text
//! <data>/identity                the node's key, mode 0600
//! <data>/certificate             what admits the node to its network
//! <data>/network/operator.key    the key that admits nodes, on the operator's machine alone, mode 0600
//! <data>/network/admitted        the peer ids that this key admitted, one a line
//! <data>/network/bootstrap       multiaddresses that came with the certificate, one a line
//! ```
//!
//! Files appear whole or not at all, and a key that is there is never replaced. Joining replaces the certificate and the
//! addresses to begin with, but within one network never by an older certificate. A running node reads them at its start only.

mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use wherry_proto::{
    Certificate, CertificateError, CertificateTextError, NetworkId, NodeId, Roles, SecretKey,
};

use crate::config::is_multiaddr;
use files::{Folder, Kind};

/// For how many days a certificate admits, unless told otherwise.
pub const DEFAULT_DAYS: u32 = 365;

/// The most days for which a certificate can admit: a hundred years.
pub const MAX_DAYS: u32 = 36_500;

/// The most bootstrap addresses that a join line carries.
pub const MAX_BOOTSTRAP: usize = 16;

/// What is left of a certificate's time when the operator's own node renews it: thirty days.
const RENEW_BEFORE: u64 = 30 * DAY;

const DAY: u64 = 86_400;

/// A node that belongs to a network.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The node's key.
    pub key: SecretKey,
    /// What admits it.
    pub certificate: Certificate,
    /// Addresses of nodes to begin with that came with the certificate.
    pub bootstrap: Vec<String>,
    /// Whether its network was made just now, for it alone.
    pub is_new_network: bool,
}

/// What is known about a node without starting it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// What admits it to a network, if anything does.
    pub certificate: Option<Certificate>,
    /// Addresses of nodes to begin with that came with the certificate.
    pub bootstrap: Vec<String>,
    /// The network whose operator key is here, if there is one.
    pub operates: Option<NetworkId>,
    /// The nodes that this key admitted.
    pub admitted: Vec<NodeId>,
}

/// What the operator hands to whoever runs a node: one line of a certificate, then addresses to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinLine {
    /// The certificate.
    pub certificate: Certificate,
    /// Addresses of nodes to begin with, at most [`MAX_BOOTSTRAP`].
    pub bootstrap: Vec<String>,
}

impl fmt::Display for JoinLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.certificate)?;
        self.bootstrap.iter().try_for_each(|address| write!(f, " {address}"))
    }
}

/// Why the files do not say who the node is, or cannot be made to.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or folder cannot be read or written.
    #[error("{} cannot be {tried}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Read, written, …
        tried: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key file holds no key.
    #[error(
        "{} holds no key: expected one line with {expected} and 64 hexadecimal digits. It was left as it is; \
         restore it from a backup, or move it away and a new key is made, which needs a new certificate",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What it should start with.
        expected: &'static str,
    },
    /// Others can read a key file.
    #[error("{} is a secret, but its mode is {mode:03o}: run 'chmod 600 {}'", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The certificate file holds none.
    #[error("{} holds no certificate: {source}. Join the network again with 'wherry network join'", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: CertificateTextError,
    },
    /// The certificate file is that of another node, or forged.
    #[error("{} does not admit this node: {source}. Join the network again with 'wherry network join'", path.display())]
    NotAdmitted {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: CertificateError,
    },
    /// There is a network already.
    #[error(
        "this node belongs to the network {0} already and nothing was changed: its operator admits further nodes with \
         'wherry network admit'"
    )]
    AlreadyMember(NetworkId),
    /// There is an operator key already.
    #[error(
        "the operator key of the network {0} is here already and nothing was changed: admit further nodes with \
         'wherry network admit'"
    )]
    AlreadyOperator(NetworkId),
    /// There is no operator key, and no network.
    #[error(
        "there is no operator key in {}: make a network with 'wherry network init', or name the folder that has one with \
         --data",
        .0.display()
    )]
    NoOperator(PathBuf),
    /// The node is a member of a network whose operator key is elsewhere.
    #[error(
        "this node is a member of the network {network}, and the key that admits others is not in {}: run this on that \
         network's operator's machine, where 'wherry network show' says 'operator of {network}'",
        data.display()
    )]
    NotOperator {
        /// The folder.
        data: PathBuf,
        /// The network.
        network: NetworkId,
    },
    /// A join line makes no sense.
    #[error("this is no line of 'wherry network admit': {0}")]
    Line(#[from] CertificateTextError),
    /// A join line has something else than addresses after the certificate.
    #[error(
        "'{0}' is no multiaddress: a line of 'wherry network admit' has at most {MAX_BOOTSTRAP} of them after the certificate"
    )]
    Address(String),
    /// A join line does not admit this node.
    #[error("this certificate does not admit this node: {0}")]
    Refused(CertificateError),
    /// It would leave a network.
    #[error("this node belongs to the network {current} and would leave it for {new}: say so with --replace")]
    OtherNetwork {
        /// Where it belongs.
        current: NetworkId,
        /// Where it would.
        new: NetworkId,
    },
    /// There is a newer certificate of the same network.
    #[error(
        "this certificate is older than the one that is here (epoch {}, expires at {} s since 1970; here epoch {}, {} s) and \
         nothing was changed: use the latest line of 'wherry network admit', or say --replace",
        offered.0, offered.1, current.0, current.1
    )]
    Older {
        /// Epoch and expiry of the certificate that is here.
        current: (u32, u64),
        /// Epoch and expiry of that in the line.
        offered: (u32, u64),
    },
    /// The system has no random numbers.
    #[error("no random numbers for a key: {0}")]
    Random(getrandom::Error),
}

type Result<T> = std::result::Result<T, IdentityError>;

fn all_roles() -> Roles {
    Roles::MEMBER | Roles::RESOLVER
}

fn expiry(now: u64, days: u32) -> u64 {
    now.saturating_add(u64::from(days.min(MAX_DAYS)) * DAY)
}

/// Reads the identity and certificate of the node in this folder. What is missing is made: a key, and, for a node that
/// was admitted nowhere, a network of its own. `now` is in seconds since 1970.
///
/// A certificate that has expired is returned as it is, since the node can still serve what it has to its own clients;
/// one that this very folder can renew is renewed.
///
/// # Errors
/// When a file is damaged, readable by others, or of another node. No such file is ever replaced.
pub fn load_or_create(data: &Path, now: u64) -> Result<Membership> {
    let folder = Folder::new(data);
    let key = folder.key_or_new(Kind::Node)?;
    let operator = folder.key(Kind::Operator)?;
    let admitted = folder.certificate(&key.node())?;
    let is_new_network = admitted.is_none();
    let certificate = match (admitted, operator) {
        (Some(certificate), Some(operator))
            if certificate.network == operator.network() && certificate.expires < now + RENEW_BEFORE =>
        {
            sign_own(&folder, &operator, &key, certificate.epoch, now, DEFAULT_DAYS)?
        }
        (Some(certificate), _) => certificate,
        (None, operator) => {
            let operator = operator.map_or_else(|| folder.key_or_new(Kind::Operator), Ok)?;
            sign_own(&folder, &operator, &key, 0, now, DEFAULT_DAYS)?
        }
    };
    let bootstrap = folder.lines(Folder::BOOTSTRAP)?;
    Ok(Membership { key, certificate, bootstrap, is_new_network })
}

fn sign_own(
    folder: &Folder,
    operator: &SecretKey,
    key: &SecretKey,
    epoch: u32,
    now: u64,
    days: u32,
) -> Result<Certificate> {
    let certificate = Certificate::sign(operator, key.node(), all_roles(), epoch, expiry(now, days));
    folder.put_certificate(&certificate)?;
    Ok(certificate)
}

/// Makes a network: an operator key, and a certificate for this node. Nothing that is there is replaced.
///
/// # Errors
/// When there is a network already, or a file cannot be read or written.
pub fn init(data: &Path, now: u64, days: u32) -> Result<Membership> {
    let folder = Folder::new(data);
    if let Some(operator) = folder.key(Kind::Operator)? {
        return Err(IdentityError::AlreadyOperator(operator.network()));
    }
    let key = folder.key_or_new(Kind::Node)?;
    if let Some(certificate) = folder.certificate(&key.node())? {
        return Err(IdentityError::AlreadyMember(certificate.network));
    }
    let operator = folder.key_or_new(Kind::Operator)?;
    let certificate = sign_own(&folder, &operator, &key, 0, now, days)?;
    Ok(Membership { key, certificate, bootstrap: Vec::new(), is_new_network: true })
}

/// Admits a node to the network whose operator key is in this folder.
///
/// # Errors
/// When there is no operator key, or an address is none.
pub fn admit(data: &Path, node: NodeId, now: u64, days: u32, bootstrap: Vec<String>) -> Result<JoinLine> {
    let folder = Folder::new(data);
    let Some(operator) = folder.key(Kind::Operator)? else {
        let data = data.to_owned();
        return Err(match certificate(&data)? {
            Some(certificate) => IdentityError::NotOperator { data, network: certificate.network },
            None => IdentityError::NoOperator(data),
        });
    };
    check_addresses(&bootstrap)?;
    let certificate = Certificate::sign(&operator, node, all_roles(), 0, expiry(now, days));
    folder.note_admitted(&node)?;
    Ok(JoinLine { certificate, bootstrap })
}

/// Makes this node a member by a line of [`admit`], which must be for this node.
///
/// A network of its own that nobody was admitted to is left without a word; any other only with `replace`. The operator
/// key of a network that is left is kept under another name. Within a network, a certificate of a lower epoch, or of the
/// same epoch and an earlier expiry, is taken only with `replace`.
///
/// # Errors
/// When the line is damaged, for another node, expired, older than what is here, or would make the node leave its network.
pub fn join(data: &Path, line: &str, now: u64, replace: bool) -> Result<Membership> {
    let mut words = line.split_whitespace();
    let certificate: Certificate = words.next().unwrap_or_default().parse()?;
    let bootstrap: Vec<String> = words.map(str::to_owned).collect();
    check_addresses(&bootstrap)?;
    let folder = Folder::new(data);
    let key = folder.key_or_new(Kind::Node)?;
    certificate.check(&certificate.network, &key.node(), now, 0).map_err(IdentityError::Refused)?;
    let operates = folder.key(Kind::Operator)?.map(|operator| operator.network());
    let old = folder.certificate(&key.node())?;
    if let Some(old) = old.as_ref().filter(|old| old.network == certificate.network && !replace) {
        let (current, offered) = ((old.epoch, old.expires), (certificate.epoch, certificate.expires));
        if offered < current {
            return Err(IdentityError::Older { current, offered });
        }
    }
    let leaves = old.map(|old| old.network).filter(|old| *old != certificate.network);
    if let Some(current) = leaves {
        let alone = operates == Some(current) && folder.admitted()?.is_empty();
        if !alone && !replace {
            return Err(IdentityError::OtherNetwork { current, new: certificate.network });
        }
    }
    if operates.is_some_and(|network| network != certificate.network) {
        folder.retire_operator(now)?;
    }
    folder.put_lines(Folder::BOOTSTRAP, &bootstrap)?;
    folder.put_certificate(&certificate)?;
    Ok(Membership { key, certificate, bootstrap, is_new_network: false })
}

/// What admits the node in this folder, if anything does. Makes nothing.
///
/// # Errors
/// When a file is damaged, readable by others, or of another node.
pub fn certificate(data: &Path) -> Result<Option<Certificate>> {
    let folder = Folder::new(data);
    folder.key(Kind::Node)?.map_or(Ok(None), |key| folder.certificate(&key.node()))
}

/// When the certificate in a data folder was written; `None` if there is none.
pub fn certificate_written(data: &Path) -> Option<SystemTime> {
    Folder::new(data).certificate_written()
}

/// Tells who the node in this folder is. A node without a key gets one, so that it can be admitted before its first
/// start.
///
/// # Errors
/// As [`load_or_create`].
pub fn show(data: &Path) -> Result<Identity> {
    let folder = Folder::new(data);
    let key = folder.key_or_new(Kind::Node)?;
    Ok(Identity {
        node: key.node(),
        certificate: folder.certificate(&key.node())?,
        bootstrap: folder.lines(Folder::BOOTSTRAP)?,
        operates: folder.key(Kind::Operator)?.map(|operator| operator.network()),
        admitted: folder.admitted()?,
    })
}

fn check_addresses(addresses: &[String]) -> Result<()> {
    match addresses.iter().find(|address| !is_multiaddr(address)).or_else(|| addresses.get(MAX_BOOTSTRAP)) {
        Some(bad) => Err(IdentityError::Address(bad.chars().take(120).collect())),
        None => Ok(()),
    }
}
