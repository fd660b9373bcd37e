//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use wherry_proto::{ChunkIndex, Digest, TooLarge};

use crate::config::units::show_size;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data folder.
    #[error("the data folder {} is in use by {}: stop that node, or give this one a folder of its own with --data",
        dir.display(), owner(*pid))]
    Locked {
        /// The data folder.
        dir: PathBuf,
        /// The process that has it, if it could be told.
        pid: Option<u32>,
    },
    /// There is no room, neither free nor to be made by eviction.
    #[error("no space for {}: {}", wanted(*needed), shortage(*needed, *free, *budget, *used))]
    NoSpace {
        /// Bytes that were asked for; 0 if a write failed and its length is not known.
        needed: u64,
        /// Bytes that are free on the disk and not promised to anybody.
        free: u64,
        /// The disk budget, if there is one.
        budget: Option<u64>,
        /// Bytes of the budget that are in use.
        used: u64,
    },
    /// A blob has more bytes than wherry carries.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Bytes do not have the digest that they were offered under.
    #[error("the bytes have the digest {found}, not {expected}: nothing was stored")]
    WrongDigest {
        /// What they should have.
        expected: Box<Digest>,
        /// What they have.
        found: Box<Digest>,
    },
    /// More or fewer bytes came than were announced.
    #[error("{announced} bytes were announced, {found} came: nothing was stored")]
    WrongLength {
        /// What was announced.
        announced: u64,
        /// How many came, at least.
        found: u64,
    },
    /// The same partial blob is open already.
    #[error("the partial blob {digest} of {size} bytes is being filled by another transfer of this node")]
    PartialInUse {
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// Too many partial blobs are open at once.
    #[error("{0} blobs are being filled at once, which is the bound: try again when one of them is done")]
    TooManyPartials(usize),
    /// A partial blob was used after it was finished.
    #[error("the partial blob {0} was finished already")]
    Closed(Digest),
    /// A partial blob lacks chunks.
    #[error("{missing} chunks of {digest} are missing")]
    Incomplete {
        /// The blob.
        digest: Digest,
        /// How many of its chunks are not linked.
        missing: u32,
    },
    /// All chunks are there, but their links do not lead from the start to the digest.
    #[error("the chunks of {digest} do not lead to its digest: the chain breaks behind chunk {behind}")]
    Broken {
        /// The blob.
        digest: Digest,
        /// The first chunk that does not lead to its successor or, if it is the last, to the digest.
        behind: ChunkIndex,
    },
    /// A link is of another hash, or leads to a digest in the middle or a state at the end.
    #[error("the link of chunk {index} cannot be one of this blob's")]
    ForeignLink {
        /// The chunk.
        index: ChunkIndex,
    },
    /// A pinned blob was to be removed.
    #[error("{0} is pinned: 'wherry unpin' what needs it before you remove it")]
    Pinned(Digest),
    /// A claimed blob was to be removed.
    #[error("{0} is needed by an import or a pull that is under way: remove it when that is done")]
    Claimed(Digest),
    /// What entered the store did not become durable.
    #[error("what entered the store could not be made durable: {0}")]
    Commit(String),
    /// A blob is not, or no longer, in the store.
    #[error("{0} is not in the store")]
    NotHeld(Digest),
    /// A name for a pin or table is unusable.
    #[error("'{0}' cannot name a pin or a table: names have 1 to {MAX_NAME_LEN} bytes and no NUL")]
    Name(String),
    /// A record is larger than tables take.
    #[error("a record or key of {found} bytes is too large for table {table}: at most {limit}")]
    RecordTooLarge {
        /// The table.
        table: String,
        /// Bytes it would have.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A record cannot be put into bytes.
    #[error("a record of {table} cannot be written to the index: {why}")]
    Record {
        /// The table.
        table: String,
        /// What is wrong with it.
        why: String,
    },
    /// The index failed.
    #[error("the index at {} failed to {what}: {why}. Free some disk space if it is full, then restart the node", dir.display())]
    Index {
        /// The index's folder.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the index said.
        why: String,
    },
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The longest name of a pin or a table, in bytes.
pub const MAX_NAME_LEN: usize = 512;

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn wanted(needed: u64) -> String {
    if needed == 0 { "what was to be written".to_owned() } else { format!("{} more", show_size(needed)) }
}

fn shortage(needed: u64, free: u64, budget: Option<u64>, used: u64) -> String {
    match budget {
        Some(budget) if needed > budget => {
            format!("that alone is more than the disk budget of {}: raise --disk-budget", show_size(budget))
        }
        Some(budget) if needed > budget.saturating_sub(used) => format!(
            "{} of the disk budget of {} are in use, by what is pinned, being fetched or being read; raise \
             --disk-budget, or let images go with 'wherry unpin' or 'wherry rm'",
            show_size(used),
            show_size(budget)
        ),
        _ => format!(
            "the disk has {} left; free some disk space, or remove images with 'wherry rm'",
            show_size(free)
        ),
    }
}

impl StoreError {
    /// Gives an operating system's error its place; a full disk becomes [`StoreError::NoSpace`] with the
    /// figures that are known here.
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            let free = super::files::free(path).unwrap_or(0);
            return Self::NoSpace { needed: 0, free, budget: None, used: 0 };
        }
        Self::Io { what, path: path.to_owned(), source }
    }

    /// Whether the disk or the budget is what stood in the way.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// Whether the operating system means that the disk, or the user's share of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
