//! An archive becomes blobs in the store, and images that name them.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use wherry_gateway::json_fault;
use wherry_proto::{Algorithm, Digest};

use super::document::{DockerImage, LayoutFile, MAX_DOCKER_MANIFEST_LEN, MAX_MANIFEST_LEN};
use super::name::{self, Name};
use super::tarball::{Entry, Kind, Tarball, input};
use super::{ImportError, docker, resolve};
use crate::store::{Claim, Store, StoreError, StoredBlob};

/// How many entries an archive may have.
const MAX_ENTRIES: usize = 1 << 16;

/// The longest `oci-layout`, in bytes.
const MAX_LAYOUT_LEN: u64 = 4 << 10;

/// How many bytes are read at once.
const BUFFER: usize = 256 << 10;

/// Hears how an import gets on.
pub trait Progress {
    /// An entry of `size` bytes begins.
    fn entry(&mut self, name: &str, size: u64) {
        let _ = (name, size);
    }

    /// A blob was read and has its digest; `new` if the store did not have it before.
    fn verified(&mut self, digest: &Digest, size: u64, new: bool) {
        let _ = (digest, size, new);
    }

    /// So many bytes more of the entry are in the store, or were there already.
    fn advanced(&mut self, bytes: u64) {
        let _ = bytes;
    }
}

impl Progress for () {}

/// What an archive held.
#[derive(Debug)]
pub struct Imported {
    /// The images, in the order of the archive's index.
    pub images: Vec<ImportedImage>,
    /// Keeps their blobs from being evicted or removed until they are pinned: drop it afterwards.
    pub claims: Vec<Claim>,
}

/// An image that an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedImage {
    /// References as the archive has them: often full, sometimes short (`app:1`), sometimes a tag alone.
    /// Printable ASCII, at most 512 bytes each.
    pub names: Vec<String>,
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
    /// Everything that it is made of and that is in the store, the manifest itself first.
    pub blobs: Vec<Digest>,
    /// Bytes of its configurations and layers, of all platforms that are here, each counted once.
    pub size: u64,
}

/// Takes an archive into the store.
pub fn import(
    store: &Store,
    reader: impl Read,
    progress: &mut dyn Progress,
) -> Result<Imported, ImportError> {
    take_in(store, reader, progress, false)
}

/// The same for an archive that must have one image, so that it can be given a name.
pub fn import_one(
    store: &Store,
    reader: impl Read,
    progress: &mut dyn Progress,
) -> Result<Imported, ImportError> {
    take_in(store, reader, progress, true)
}

fn take_in(
    store: &Store,
    reader: impl Read,
    progress: &mut dyn Progress,
    one: bool,
) -> Result<Imported, ImportError> {
    let mut intake = Intake::new(store);
    let resolved = intake.read(reader, progress).and_then(|()| {
        let oci = intake.index.take();
        let docker = std::mem::take(&mut intake.docker);
        match oci {
            Some(index) => resolve::images(&mut intake, &index, &docker),
            None if !docker.is_empty() => docker::images(&mut intake, &docker),
            None => Err(ImportError::NoImage),
        }
    });
    let resolved = resolved.and_then(|images| match images.len() {
        found if one && found != 1 => Err(ImportError::NotOne(found)),
        _ => Ok(images),
    });
    let needed: HashSet<Digest> = match &resolved {
        Ok(images) => images.iter().flat_map(|image| &image.blobs).copied().collect(),
        Err(_) => HashSet::new(),
    };
    for digest in intake.added.iter().filter(|digest| !needed.contains(digest)) {
        intake.blobs.remove(digest);
        match store.remove(digest) {
            // Somebody else has found it of use meanwhile.
            Ok(_) | Err(StoreError::Pinned(_) | StoreError::Claimed(_)) => {}
            Err(error) => tracing::warn!(%error, "a blob that no image needs could not be removed"),
        }
    }
    let images = resolved?;
    let claims = intake.blobs.into_iter().filter(|(digest, _)| needed.contains(digest)).map(|(_, blob)| blob);
    Ok(Imported { images, claims: claims.collect() })
}

/// What was read of an archive so far.
pub(super) struct Intake<'a> {
    store: &'a Store,
    /// Names of entries, normalized.
    seen: HashSet<String>,
    /// Blobs of the archive and those of the store that its images need; claimed, so that none leaves.
    blobs: HashMap<Digest, Claim>,
    /// Blobs that were not in the store before.
    added: Vec<Digest>,
    /// `index.json`
    index: Option<Vec<u8>>,
    /// `manifest.json`
    docker: Vec<DockerImage>,
    /// Layers that are named by anything but their digest.
    layers: HashMap<String, Digest>,
    /// Names of layers that stand for other names.
    links: HashMap<String, String>,
}

impl<'a> Intake<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            seen: HashSet::new(),
            blobs: HashMap::new(),
            added: Vec::new(),
            index: None,
            docker: Vec::new(),
            layers: HashMap::new(),
            links: HashMap::new(),
        }
    }

    fn read(&mut self, reader: impl Read, progress: &mut dyn Progress) -> Result<(), ImportError> {
        let mut tarball = Tarball::new(input(reader)?);
        let mut first = true;
        loop {
            let entry = match tarball.next() {
                Err(ImportError::Damaged { .. } | ImportError::Truncated { .. }) if first => {
                    return Err(ImportError::NotAnArchive("it does not begin with a tar header"));
                }
                other => other?,
            };
            let Some(entry) = entry else { return Ok(()) };
            first = false;
            self.take(&mut tarball, entry, progress)?;
        }
    }

    fn take<R: Read>(
        &mut self,
        tarball: &mut Tarball<R>,
        entry: Entry,
        progress: &mut dyn Progress,
    ) -> Result<(), ImportError> {
        let Entry { name, kind, size } = entry;
        let normal = name::normal(&name);
        let Some(parsed) = name::parse(normal) else {
            return Err(ImportError::Name { entry: name.chars().take(200).collect() });
        };
        match &kind {
            Kind::Folder if parsed == Name::Folder => return Ok(()),
            Kind::File if parsed != Name::Folder => {}
            Kind::Symlink(target) if parsed == Name::Layer => {
                let target = name::link_target(target).ok_or(ImportError::Kind {
                    entry: name.clone(),
                    kind: "link to something that is no layer",
                })?;
                self.links.insert(normal.to_owned(), target.to_owned());
            }
            Kind::Symlink(_) => return Err(ImportError::Kind { entry: name, kind: "symbolic link" }),
            Kind::Other(kind) => return Err(ImportError::Kind { entry: name, kind }),
            Kind::Folder => return Err(ImportError::Kind { entry: name, kind: "folder" }),
            Kind::File => return Err(ImportError::Kind { entry: name, kind: "file where a folder must be" }),
        }
        if self.seen.len() >= MAX_ENTRIES {
            return Err(ImportError::TooManyEntries(MAX_ENTRIES));
        }
        if !self.seen.insert(normal.to_owned()) {
            return Err(ImportError::Duplicate { entry: name });
        }
        if kind != Kind::File {
            return Ok(());
        }
        progress.entry(normal, size);
        match parsed {
            Name::Layout => check_layout(&tarball.read_all(MAX_LAYOUT_LEN)?)?,
            Name::Index => self.index = Some(tarball.read_all(MAX_MANIFEST_LEN)?),
            Name::DockerManifest => {
                let bytes = tarball.read_all(MAX_DOCKER_MANIFEST_LEN)?;
                self.docker = serde_json::from_slice(&bytes).map_err(|error| json(normal, &error))?;
            }
            Name::Blob(digest) => drop(self.store_entry(tarball, normal, size, Some(digest), progress)?),
            Name::Config(_) if size > MAX_MANIFEST_LEN => {
                return Err(ImportError::TooLarge { entry: name, size, limit: MAX_MANIFEST_LEN });
            }
            Name::Config(digest) => drop(self.store_entry(tarball, normal, size, Some(digest), progress)?),
            Name::Layer => {
                let digest = self.store_entry(tarball, normal, size, None, progress)?;
                self.layers.insert(normal.to_owned(), digest);
            }
            Name::Legacy | Name::Folder => {}
        }
        Ok(())
    }

    fn store_entry<R: Read>(
        &mut self,
        tarball: &mut Tarball<R>,
        entry: &str,
        size: u64,
        expected: Option<Digest>,
        progress: &mut dyn Progress,
    ) -> Result<Digest, ImportError> {
        if let Some(digest) = expected
            && let Some(held) = self
                .sound(&digest)
                .map_err(|source| ImportError::Store { entry: entry.to_owned(), source })?
        {
            // The archive's bytes need not be read.
            if held.size() != size {
                return Err(wrong_length(&digest, held.size(), size, entry));
            }
            progress.advanced(size);
            progress.verified(&digest, size, false);
            self.blobs.insert(digest, held);
            return Ok(digest);
        }
        let refused = |source| match source {
            StoreError::WrongDigest { found, .. } => {
                ImportError::WrongDigest { entry: entry.to_owned(), found }
            }
            source => ImportError::Store { entry: entry.to_owned(), source },
        };
        let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut staged = self.store.stage(algorithm, size).map_err(refused)?;
        let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER).max(1))];
        loop {
            match tarball.read(&mut buffer)? {
                0 => break,
                n => {
                    staged.write(&buffer[..n]).map_err(refused)?;
                    progress.advanced(n as u64);
                }
            }
        }
        let (blob, new) = staged.finish_new(expected).map_err(refused)?;
        let digest = blob.digest();
        progress.verified(&digest, size, new);
        self.claim(digest, new).map_err(refused)
    }

    /// Claims what was stored, if nobody was so quick as to remove it.
    fn claim(&mut self, digest: Digest, new: bool) -> Result<Digest, StoreError> {
        if new {
            self.added.push(digest);
        }
        let claim = self.store.claim(&digest).ok_or(StoreError::NotHeld(digest))?;
        self.blobs.insert(digest, claim);
        Ok(digest)
    }

    /// A blob of the archive or, since archives may leave out what a site has, of the store.
    pub(super) fn blob(&mut self, digest: &Digest) -> Option<StoredBlob> {
        if let Some(blob) = self.blobs.get(digest) {
            return Some(StoredBlob::clone(blob));
        }
        let sound =
            self.sound(digest).inspect_err(|error| tracing::warn!(%error, "a stored blob cannot be checked"));
        let claim = sound.ok().flatten()?;
        let blob = StoredBlob::clone(&claim);
        self.blobs.insert(*digest, claim);
        Some(blob)
    }

    /// A blob that the store holds and that is still what its digest says: one that has rotted is set aside.
    fn sound(&self, digest: &Digest) -> Result<Option<Claim>, StoreError> {
        let Some(held) = self.store.claim(digest) else { return Ok(None) };
        match self.store.verify(digest) {
            Ok(true) => Ok(Some(held)),
            Ok(false) | Err(StoreError::NotHeld(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the archive itself has this blob.
    pub(super) fn brought(&self, digest: &Digest) -> bool {
        self.seen.contains(&name::blob_path(digest))
    }

    /// Stores a document that was made here.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<Digest, ImportError> {
        let digest = Digest::sha256(bytes);
        let new = !self.store.holds(&digest);
        let claimed = self.store.put(&digest, bytes).and_then(|_| self.claim(digest, new));
        claimed.map_err(|source| ImportError::Store { entry: "a manifest".to_owned(), source })
    }

    /// The digest of a layer that docker's manifest names.
    pub(super) fn layer(&self, path: &str) -> Option<Digest> {
        let mut path = name::normal(path);
        if let Some(Name::Blob(digest)) = name::parse(path) {
            return self.blobs.contains_key(&digest).then_some(digest);
        }
        // A link points at a layer, and old writers let it point at another link.
        for _ in 0..4 {
            if let Some(digest) = self.layers.get(path) {
                return Some(*digest);
            }
            path = self.links.get(path)?;
        }
        None
    }

    /// The bytes of a document.
    pub(super) fn document(&mut self, digest: &Digest) -> Result<Vec<u8>, ImportError> {
        let entry = digest.to_string();
        let Some(blob) = self.blob(digest) else {
            return Err(ImportError::Missing { what: entry, by: "the archive".to_owned() });
        };
        if blob.size() > MAX_MANIFEST_LEN {
            return Err(ImportError::TooLarge { entry, size: blob.size(), limit: MAX_MANIFEST_LEN });
        }
        blob.read(MAX_MANIFEST_LEN).map_err(|source| ImportError::Read { entry, source })
    }
}

fn check_layout(bytes: &[u8]) -> Result<(), ImportError> {
    let layout: LayoutFile = serde_json::from_slice(bytes).map_err(|error| json("oci-layout", &error))?;
    if layout.version.starts_with("1.") {
        return Ok(());
    }
    let why = format!("version {:.20} of the layout is not known, only 1", layout.version);
    Err(ImportError::Json { entry: "oci-layout".to_owned(), why })
}

pub(super) fn json(entry: &str, error: &serde_json::Error) -> ImportError {
    ImportError::Json { entry: entry.to_owned(), why: json_fault(error) }
}

pub(super) fn wrong_length(digest: &Digest, found: u64, announced: u64, by: &str) -> ImportError {
    ImportError::WrongLength { digest: Box::new(*digest), found, announced, by: by.to_owned() }
}
