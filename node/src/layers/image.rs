//! The layers of an image, one on the other.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use wherry_proto::Digest;

use super::layer::{Budget, Layer};
use super::tree::{Applied, Done, Kind, Place, Tree};
use super::{Entry, LayerError, TreeError};

/// How many bytes of a file are read at once.
const BUFFER: usize = 64 << 10;

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, as the manifest has it.
    pub size: u64,
    /// What it is, as the manifest has it.
    pub media_type: String,
    /// The digest of what it decompresses to, as the configuration has it.
    pub diff_id: Option<Digest>,
}

/// Where the bytes of layers come from.
pub trait Blobs {
    /// The bytes of a layer, as registries have them. They need not be checked.
    ///
    /// # Errors
    /// When they cannot be had.
    fn open(&mut self, layer: &ImageLayer) -> io::Result<Box<dyn Read + '_>>;
}

/// A whiteout of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whiteout {
    /// What it is about, without a slash in front.
    pub path: Vec<u8>,
    /// Whether it is about all that lower layers have in that folder.
    pub opaque: bool,
    /// How many files and folders it hid.
    pub hidden: usize,
}

/// The layers of an image, and as far as they have been read what they make.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<ImageLayer>,
    tree: Tree,
    done: usize,
    budget: Budget,
}

impl Image {
    /// The layers of an image, the base first.
    pub fn new(layers: Vec<ImageLayer>) -> Self {
        Self::with_budget(layers, Budget::default())
    }

    /// The same with other bounds.
    pub fn with_budget(layers: Vec<ImageLayer>, budget: Budget) -> Self {
        Self { layers, tree: Tree::new(), done: 0, budget }
    }

    /// The same image with other layers behind those that have been read.
    #[must_use]
    pub fn go_on_with(&self, layers: Vec<ImageLayer>) -> Self {
        Self { layers, ..self.clone() }
    }

    /// The layers, the base first.
    pub fn layers(&self) -> &[ImageLayer] {
        &self.layers
    }

    /// What the layers make that have been read.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Reads layers until so many of them have been read, and hashes what is in files, so that trees can be compared.
    ///
    /// # Errors
    /// When a layer is not right. The image is of no use then.
    pub fn read_hashed(&mut self, layers: usize, blobs: &mut dyn Blobs) -> Result<Vec<Whiteout>, LayerError> {
        let mut whiteouts = Vec::new();
        self.read(layers, blobs, |tree, layer, applied, _| {
            if let Done::Hid { path, opaque } = &applied.done {
                let hidden = applied.removed.iter().map(|it| count(tree, it.inode)).sum();
                whiteouts.push(Whiteout { path: path.clone(), opaque: *opaque, hidden });
            }
            if let Done::Made { inode, .. } = &applied.done
                && matches!(tree.inode(*inode).kind, Kind::File { .. })
            {
                let mut hash = Sha256::new();
                each_piece(layer, |piece| {
                    hash.update(piece);
                    Ok(())
                })?;
                tree.set_content(*inode, hash.finalize().into());
            }
            Ok::<_, LayerError>(())
        })?;
        Ok(whiteouts)
    }

    /// The same for all layers, without a look into files.
    ///
    /// # Errors
    /// As [`Image::read_hashed`].
    pub fn read_names(&mut self, blobs: &mut dyn Blobs) -> Result<(), LayerError> {
        self.read(self.layers.len(), blobs, |_, _, _, _| Ok(()))
    }

    /// Reads layers until so many of them have been read, and tells what each entry did while its content follows.
    pub(super) fn read<E: From<LayerError>>(
        &mut self,
        layers: usize,
        blobs: &mut dyn Blobs,
        mut each: impl FnMut(&mut Tree, &mut Layer<'_, Box<dyn Read + '_>>, &Applied, &Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        for layer in self.layers.iter().take(layers).skip(self.done) {
            let input = blobs
                .open(layer)
                .map_err(|source| LayerError::Read { layer: Box::new(layer.digest), source })?;
            let mut read = Layer::open(layer, input, &mut self.budget)?;
            self.tree.begin_layer();
            while let Some((number, entry)) = read.next_entry()? {
                let applied =
                    self.tree.apply(&entry, number).map_err(|source| refused(layer, &entry, source))?;
                each(&mut self.tree, &mut read, &applied, &entry)?;
            }
            read.finish()?;
            self.done += 1;
        }
        Ok(())
    }

    /// Writes the content of a file of the image.
    ///
    /// # Errors
    /// When the layer is not right, or `out` does not take it.
    pub fn copy(&self, place: Place, blobs: &mut dyn Blobs, out: &mut dyn Write) -> Result<(), CopyError> {
        let layer = &self.layers[place.layer];
        let input =
            blobs.open(layer).map_err(|source| LayerError::Read { layer: Box::new(layer.digest), source })?;
        // It has been counted before.
        let mut budget = Budget { ratio: self.budget.ratio, grace: self.budget.grace, ..Budget::default() };
        let mut read = Layer::open(layer, input, &mut budget)?;
        while let Some((number, _)) = read.next_entry()? {
            if number == place.entry {
                each_piece(&mut read, |piece| out.write_all(piece).map_err(CopyError::Write))?;
                out.flush().map_err(CopyError::Write)?;
                break;
            }
        }
        read.finish()?;
        Ok(())
    }
}

/// Why a file was not copied to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It could not be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// It could not be written.
    #[error("the file was not written to its end: {0}")]
    Write(io::Error),
}

fn refused(layer: &ImageLayer, entry: &Entry, source: TreeError) -> LayerError {
    LayerError::Entry { layer: Box::new(layer.digest), entry: entry.shown(), source }
}

/// Gives the content of the current entry piece by piece.
pub(super) fn each_piece<R: Read, E: From<LayerError>>(
    layer: &mut Layer<'_, R>,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match layer.read(&mut buffer)? {
            0 => return Ok(()),
            n => each(&buffer[..n])?,
        }
    }
}

/// How many files and folders there are, from one on.
fn count(tree: &Tree, id: super::InodeId) -> usize {
    1 + tree.children(id).map(|(_, child)| count(tree, child)).sum::<usize>()
}
