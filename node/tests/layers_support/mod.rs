//! Layers that are made byte by byte, kept in memory, and what a disk has of them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{EntryType, Header};
use tempfile::{TempDir, tempdir};
use wherry_node::layers::unpack::{Caller, UnpackError, Unpacked, unpack};
use wherry_node::layers::{Blobs, Image, ImageConfig, ImageLayer};
use wherry_proto::Digest;

/// When everything was changed last that says nothing else, in seconds since 1970.
pub(crate) const MTIME: i64 = 1_500_000_000;

/// An archive in the making. Names go into it as they are, past the library's own care for paths.
#[derive(Clone, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn entry(
        mut self,
        kind: u8,
        name: &str,
        mode: u32,
        link: &str,
        content: &[u8],
        device: (u32, u32),
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        // Whoever runs the tests owns what is unpacked.
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(MTIME as u64);
        header.set_size(content.len() as u64);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        header.set_entry_type(EntryType::new(kind));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(b'0', name, mode, "", content, (0, 0))
    }

    pub(crate) fn zeros(self, name: &str, size: usize) -> Self {
        self.entry(b'0', name, 0o644, "", &vec![0; size], (0, 0))
    }

    pub(crate) fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name, mode, "", b"", (0, 0))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, 0o777, target, b"", (0, 0))
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, 0o644, target, b"", (0, 0))
    }

    pub(crate) fn device(self, name: &str, major: u32, minor: u32) -> Self {
        self.entry(b'3', name, 0o666, "", b"", (major, minor))
    }

    pub(crate) fn pipe(self, name: &str) -> Self {
        self.entry(b'6', name, 0o600, "", b"", (0, 0))
    }

    pub(crate) fn of_type(self, kind: u8, name: &str) -> Self {
        self.entry(kind, name, 0o644, "", b"", (0, 0))
    }

    /// Records for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(b'x', "pax", 0o644, "", &text, (0, 0))
    }

    /// A file with a name that GNU's tar writes before it.
    pub(crate) fn long_name(self, name: &str, content: &[u8]) -> Self {
        let named = self.entry(b'L', "././@LongLink", 0o644, "", format!("{name}\0").as_bytes(), (0, 0));
        named.file("short", 0o644, content)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Gives all headers of a damaged archive checksums that are right.
pub(crate) fn mend(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if block.starts_with(&[0; 8]) || &block[257..262] != b"ustar" {
            continue;
        }
        let mut header = Header::new_ustar();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// Layers, and their bytes by digest.
#[derive(Default)]
pub(crate) struct Memory {
    layers: Vec<ImageLayer>,
    blobs: HashMap<Digest, Vec<u8>>,
}

impl Memory {
    /// Layers as they come; how they are packed is seen.
    pub(crate) fn of(layers: &[Vec<u8>]) -> Self {
        let mut memory = Self::of_unknown(layers);
        for layer in &mut memory.layers {
            let packed = &memory.blobs[&layer.digest];
            let mut plain = Vec::new();
            match packed.as_slice() {
                [0x1f, 0x8b, ..] => {
                    drop(flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut plain))
                }
                [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).unwrap();
                    decoder.read_to_end(&mut plain).unwrap();
                }
                _ => plain.clone_from(packed),
            }
            layer.diff_id = Some(Digest::sha256(&plain));
        }
        memory
    }

    /// A layer, and what it decompresses to.
    pub(crate) fn of_layer(packed: &[u8], plain: &[u8]) -> Self {
        let mut memory = Self::of_unknown(&[packed.to_vec()]);
        memory.layers[0].diff_id = Some(Digest::sha256(plain));
        memory
    }

    /// Layers of which nobody says what they decompress to.
    pub(crate) fn of_unknown(layers: &[Vec<u8>]) -> Self {
        let mut memory = Self::default();
        for bytes in layers {
            let digest = Digest::sha256(bytes);
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
            memory.layers.push(ImageLayer { digest, size: bytes.len() as u64, media_type, diff_id: None });
            memory.blobs.insert(digest, bytes.clone());
        }
        memory
    }

    pub(crate) fn layers(&self) -> Vec<ImageLayer> {
        self.layers.clone()
    }

    pub(crate) fn image(&self) -> Image {
        Image::new(self.layers())
    }

    pub(crate) fn layer(&mut self, number: usize) -> &mut ImageLayer {
        &mut self.layers[number]
    }

    pub(crate) fn bytes(&mut self, number: usize) -> &mut Vec<u8> {
        self.blobs.get_mut(&self.layers[number].digest).unwrap()
    }

    pub(crate) fn forget(&mut self, number: usize) {
        self.blobs.remove(&self.layers[number].digest);
    }
}

impl Blobs for Memory {
    fn open(&mut self, layer: &ImageLayer) -> io::Result<Box<dyn Read + '_>> {
        let bytes = self.blobs.get(&layer.digest).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(bytes.as_slice()))
    }
}

/// Whoever runs the tests.
pub(crate) fn caller() -> Caller {
    Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

pub(crate) fn place(home: &TempDir) -> PathBuf {
    home.path().join("bundle")
}

/// Unpacks layers; the bundle is gone with the first of what is returned.
pub(crate) fn unpacked(layers: &[Vec<u8>]) -> (TempDir, PathBuf, Unpacked) {
    let (home, mut memory) = (tempdir().unwrap(), Memory::of(layers));
    let place = place(&home);
    let told = unpack(memory.image(), &ImageConfig::default(), &mut memory, &place, caller()).unwrap();
    (home, place, told)
}

/// Why layers are not unpacked. Nothing may be left of them.
pub(crate) fn unpacks_to_nothing(mut memory: Memory) -> UnpackError {
    let home = tempdir().unwrap();
    let unpacked = unpack(memory.image(), &ImageConfig::default(), &mut memory, &place(&home), caller());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    unpacked.unwrap_err()
}

/// All that is in a folder: `folder/`, or `file content`.
pub(crate) fn listed(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                found.push(format!("{name}/"));
                folders.push(path);
            } else {
                found.push(format!("{name} {}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
