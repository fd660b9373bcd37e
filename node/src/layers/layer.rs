//! One layer, read as a stream and checked as it is read.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256, Sha512};
use wherry_proto::{Algorithm, Digest};

use super::entry::Entry;
use super::image::ImageLayer;
use super::{LayerError, MAX_BYTES, MAX_ENTRIES, MAX_RATIO, RATIO_GRACE};
use crate::tarball::inflate::{Compression, Growth, Inflated, RatioExceeded, buffered, start};
use crate::tarball::{TarError, Tarball};

/// What may still be read of an image.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Entries.
    pub entries: u64,
    /// Decompressed bytes.
    pub bytes: u64,
    /// How many times larger than its compressed form a layer may be.
    pub ratio: u64,
    /// Decompressed bytes of a layer to which no ratio applies.
    pub grace: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: MAX_ENTRIES, bytes: MAX_BYTES, ratio: MAX_RATIO, grace: RATIO_GRACE }
    }
}

/// A layer that is being read.
pub struct Layer<'a, R: Read> {
    layer: &'a ImageLayer,
    budget: &'a mut Budget,
    tarball: Tarball<Content<Inflated<Compressed<R>>>>,
    numbered: u64,
}

impl<'a, R: Read> Layer<'a, R> {
    /// Begins to read a layer, of which `input` has the bytes as registries have them. How they are compressed they say
    /// themselves, whatever the media type says of that.
    ///
    /// # Errors
    /// When it is no file system, or cannot be read.
    pub fn open(layer: &'a ImageLayer, input: R, budget: &'a mut Budget) -> Result<Self, LayerError> {
        if !is_file_system(&layer.media_type) {
            let media_type = layer.media_type.clone();
            return Err(LayerError::NotAFileSystem { layer: Box::new(layer.digest), media_type });
        }
        let mut input = buffered(Compressed {
            inner: input,
            hash: Hash::new(layer.digest.algorithm()),
            read: 0,
            most: layer.size,
            failed: None,
        });
        let compression = start(&mut input).map(Compression::of).unwrap_or(Compression::None);
        let growth = Growth { ratio: budget.ratio, grace: budget.grace };
        let algorithm = layer.diff_id.unwrap_or(layer.digest).algorithm();
        let content = Content {
            inner: Inflated::new(input, compression, growth),
            hash: Hash::new(algorithm),
            read: 0,
            left: budget.bytes,
        };
        let mut opened = Self { layer, budget, tarball: Tarball::open_ended(content), numbered: 0 };
        match opened.compressed().failed.take() {
            Some(source) => Err(LayerError::Read { layer: Box::new(layer.digest), source }),
            None => Ok(opened),
        }
    }

    /// The next entry with its number in the layer, behind what is left of the current one; `None` at the end.
    ///
    /// # Errors
    /// When the layer cannot be read, is damaged, or has what no layer may have.
    pub fn next_entry(&mut self) -> Result<Option<(u64, Entry)>, LayerError> {
        let read = match self.tarball.next() {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let Some(left) = self.budget.entries.checked_sub(1) else {
            return Err(self.too_much("entries", MAX_ENTRIES));
        };
        self.budget.entries = left;
        let name = String::from_utf8_lossy(&read.name).into_owned();
        let entry = Entry::new(read).map_err(|source| LayerError::Entry {
            layer: Box::new(self.layer.digest),
            entry: name,
            source,
        })?;
        self.numbered += 1;
        Ok(Some((self.numbered, entry)))
    }

    /// Reads bytes of the current entry; 0 at its end.
    ///
    /// # Errors
    /// As [`Layer::next_entry`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        self.tarball.read(buffer).map_err(|error| self.failed(error))
    }

    /// Reads what is left, and checks that the layer is the one that was meant. Nothing that was read of it counts before
    /// that.
    ///
    /// # Errors
    /// When it is another one, or cannot be read.
    pub fn finish(mut self) -> Result<u64, LayerError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.tarball.input().read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let entry = self.tarball.at().to_owned();
                    return Err(self.failed(TarError::Read { entry, source }));
                }
            }
        }
        self.check_compressed()?;
        let content = self.tarball.input();
        let (found, read) = (content.hash.clone().finish(), content.read);
        self.budget.bytes = content.left;
        match self.layer.diff_id {
            Some(expected) if expected != found => Err(LayerError::WrongContent {
                layer: Box::new(self.layer.digest),
                found: Box::new(found),
                expected: Box::new(expected),
            }),
            _ => Ok(read),
        }
    }

    fn compressed(&mut self) -> &mut Compressed<R> {
        self.tarball.input().inner.input()
    }

    /// Reads what is left of the compressed bytes, and checks them.
    fn check_compressed(&mut self) -> Result<(), LayerError> {
        let (digest, size) = (Box::new(self.layer.digest), self.layer.size);
        let rest = io::copy(self.compressed(), &mut io::sink());
        let compressed = self.compressed();
        match (compressed.failed.take(), rest) {
            (Some(source), _) | (None, Err(source)) => Err(LayerError::Read { layer: digest, source }),
            (None, Ok(_)) if compressed.read != size => {
                Err(LayerError::WrongLength { layer: digest, found: compressed.read, announced: size })
            }
            (None, Ok(_)) => {
                let found = Box::new(compressed.hash.clone().finish());
                if found == digest { Ok(()) } else { Err(LayerError::WrongDigest { layer: digest, found }) }
            }
        }
    }

    /// What an error means. Of what is damaged it is told that rather than how that showed.
    fn failed(&mut self, error: TarError) -> LayerError {
        let layer = Box::new(self.layer.digest);
        // What is meant to do harm is not read any further.
        match &error {
            TarError::Read { source, .. } if RatioExceeded::is_told_by(source) => {
                return LayerError::Ratio { layer, limit: self.budget.ratio };
            }
            TarError::Read { source, .. } if source.get_ref().is_some_and(|it| it.is::<TooManyBytes>()) => {
                return self.too_much("decompressed bytes", MAX_BYTES);
            }
            _ => {}
        }
        if let Err(error) = self.check_compressed() {
            return error;
        }
        match error {
            TarError::Truncated { entry } => {
                LayerError::Archive { layer, entry, why: "it ends in the middle".to_owned() }
            }
            TarError::Damaged { entry, why } => LayerError::Archive { layer, entry, why: why.to_owned() },
            TarError::TooLarge { entry, size, limit } => {
                let why = format!("a name or attributes of {size} bytes, at most {limit} are taken");
                LayerError::Archive { layer, entry, why }
            }
            TarError::Read { entry, source } => LayerError::Compression { layer, entry, source },
        }
    }

    fn too_much(&self, what: &'static str, limit: u64) -> LayerError {
        LayerError::TooMuch { layer: Box::new(self.layer.digest), what, limit }
    }
}

/// Whether a layer of this type is an archive of files, compressed in whatever way. What a descriptor leaves open is taken
/// for one.
fn is_file_system(media_type: &str) -> bool {
    let plain =
        ["+gzip", ".gzip", "+zstd", ".zstd"].iter().find_map(|ending| media_type.strip_suffix(ending));
    matches!(
        plain.unwrap_or(media_type),
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    )
}

/// A digest in the making.
#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        let of = |algorithm, raw: &[u8]| {
            // The algorithm is the one whose output this is.
            Digest::from_bytes(algorithm, raw).unwrap_or_else(|| Digest::of(algorithm, &[]))
        };
        match self {
            Self::Sha256(hash) => of(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => of(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

/// The bytes as registries have them. Whoever decompresses them wraps errors or makes others of them, so the first one is
/// kept.
struct Compressed<R> {
    inner: R,
    hash: Hash,
    read: u64,
    /// How long they are said to be; of what is longer one byte is read.
    most: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Compressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Err(io::Error::other("it could not be read before"));
        }
        let most = (self.most.saturating_sub(self.read).max(1)).min(buffer.len() as u64) as usize;
        if self.read > self.most {
            return Ok(0);
        }
        match self.inner.read(&mut buffer[..most]) {
            Ok(n) => {
                self.read += n as u64;
                self.hash.update(&buffer[..n]);
                // What is longer than it may be is not passed on.
                Ok(if self.read > self.most { 0 } else { n })
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::other(error.to_string());
                self.failed = Some(error);
                Err(again)
            }
        }
    }
}

/// The decompressed bytes.
struct Content<R> {
    inner: R,
    hash: Hash,
    read: u64,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more bytes than an image may have")]
struct TooManyBytes;

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(TooManyBytes))?;
        self.read += n as u64;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}
