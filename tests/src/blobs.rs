//! Blobs and images of any size, made of reproducible noise and pushed to a registry over its own protocol.

use std::io::{BufReader, Read};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wherry_proto::{Algorithm, Digest};

use crate::http::{Answer, Request, get};

/// The media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The media type of the manifests that docker pushes.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The media type of the layers that the lab makes: noise compresses badly, so they are called plain tar.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A stream of noise that depends on its seed alone.
#[derive(Clone, Debug)]
pub struct Noise {
    state: u64,
    left: u64,
}

impl Noise {
    /// `length` bytes.
    pub fn new(seed: u64, length: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d, left: length }
    }

    /// The next eight bytes (splitmix64).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        // Whole words only, but for the end: then the stream does not depend on how it is read.
        let take = if most as u64 == self.left { most } else { most - most % 8 };
        if take == 0 && most > 0 {
            return Err(std::io::Error::other("noise is read eight bytes at a time at least"));
        }
        for part in into[..take].chunks_mut(8) {
            let word = self.next().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
        self.left -= take as u64;
        Ok(take)
    }
}

/// A blob in a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// An image in a registry.
#[derive(Clone, Debug)]
pub struct Image {
    /// The repository, without the registry.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The manifest as it came.
    pub manifest_bytes: Vec<u8>,
    /// The config.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Image {
    /// Reads what a registry says an image consists of.
    ///
    /// # Errors
    /// When there is no such image or its manifest is not a plain image manifest.
    pub fn read(registry: SocketAddr, repository: &str, tag: &str) -> Result<Self> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let accept = format!("{OCI_MANIFEST}, {DOCKER_MANIFEST}");
        let answer = Request::new(registry, "GET", &path).header("Accept", accept).send_and_read()?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        Self::from_manifest(repository, tag, answer.body).with_context(|| path)
    }

    fn from_manifest(repository: &str, tag: &str, manifest_bytes: Vec<u8>) -> Result<Self> {
        let manifest: Value = serde_json::from_slice(&manifest_bytes)?;
        let layers = manifest["layers"].as_array().context("a manifest without layers")?;
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            manifest: Digest::sha256(&manifest_bytes),
            config: blob_of(&manifest["config"])?,
            layers: layers.iter().map(blob_of).collect::<Result<_>>()?,
            manifest_bytes,
        })
    }

    /// `REPOSITORY:TAG`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// `HOST/REPOSITORY:TAG`.
    pub fn reference(&self, host: impl std::fmt::Display) -> String {
        format!("{host}/{}", self.name())
    }

    /// Config and layers, each digest once.
    pub fn blobs(&self) -> Vec<Blob> {
        let mut blobs = vec![self.config];
        for layer in &self.layers {
            if !blobs.contains(layer) {
                blobs.push(*layer);
            }
        }
        blobs
    }

    /// How many bytes its blobs have, the manifest left out.
    pub fn size(&self) -> u64 {
        self.blobs().iter().map(|blob| blob.size).sum()
    }
}

fn blob_of(descriptor: &Value) -> Result<Blob> {
    let digest = descriptor["digest"].as_str().context("a descriptor without digest")?.parse()?;
    Ok(Blob { digest, size: descriptor["size"].as_u64().context("a descriptor without size")? })
}

/// Pushes noise as one blob. Memory does not grow with its length.
fn push_noise(registry: SocketAddr, repository: &str, seed: u64, size: u64) -> Result<Blob> {
    let mut hash = Sha256::new();
    std::io::copy(&mut Noise::new(seed, size), &mut HashWriter(&mut hash))?;
    let digest = Digest::from_bytes(Algorithm::Sha256, &hash.finalize()).context("32 bytes of SHA-256")?;
    let blob = Blob { digest, size };
    push(registry, repository, blob, &mut Noise::new(seed, size))?;
    Ok(blob)
}

/// Pushes bytes as one blob.
fn push_bytes(registry: SocketAddr, repository: &str, bytes: &[u8]) -> Result<Blob> {
    let blob = Blob { digest: Digest::sha256(bytes), size: bytes.len() as u64 };
    push(registry, repository, blob, &mut &*bytes)?;
    Ok(blob)
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn push(registry: SocketAddr, repository: &str, blob: Blob, bytes: &mut dyn Read) -> Result<()> {
    let start =
        Request::new(registry, "POST", &format!("/v2/{repository}/blobs/uploads/")).send_and_read()?;
    expect(&start, 202)?;
    let location = start.header("Location").context("an upload without location")?;
    let path = location.find("/v2/").map_or(location, |at| &location[at..]);
    let glue = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{glue}digest={}", blob.digest);
    let put = Request::new(registry, "PUT", &path).header("Content-Type", "application/octet-stream");
    expect(&put.body(blob.size, bytes).send_and_read()?, 201)
}

fn expect(answer: &Answer, status: u16) -> Result<()> {
    ensure!(answer.status == status, "the registry answered {}: {}", answer.status, answer.text());
    Ok(())
}

/// Pushes a manifest under a tag and gives its digest.
fn push_manifest(
    registry: SocketAddr,
    repository: &str,
    tag: &str,
    media_type: &str,
    bytes: &[u8],
) -> Result<Digest> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let put = Request::new(registry, "PUT", &path).header("Content-Type", media_type);
    expect(&put.body(bytes.len() as u64, &mut &*bytes).send_and_read()?, 201)?;
    Ok(Digest::sha256(bytes))
}

/// Pushes an image with one layer of noise for each given length. Images of different seeds share no layer.
///
/// Runtimes cannot run it; everything that carries images can carry it.
///
/// # Errors
/// When the registry does not take it.
pub fn push_image(
    registry: SocketAddr,
    repository: &str,
    tag: &str,
    seed: u64,
    layer_sizes: &[u64],
) -> Result<Image> {
    let mut layers = Vec::new();
    for (i, &size) in layer_sizes.iter().enumerate() {
        layers.push(push_noise(registry, repository, (seed << 20) + i as u64, size)?);
    }
    push_image_of(registry, repository, tag, &layers)
}

/// Pushes an image that runtimes can unpack: each layer is an archive with one file of that many bytes of noise.
///
/// # Errors
/// When the registry does not take it.
pub fn push_archives(
    registry: SocketAddr,
    repository: &str,
    tag: &str,
    seed: u64,
    file_sizes: &[u64],
) -> Result<Image> {
    let mut layers = Vec::new();
    for (i, &size) in file_sizes.iter().enumerate() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        let noise = Noise::new((seed << 20) + i as u64, size);
        archive.append_data(&mut header, format!("noise-{i}"), BufReader::new(noise))?;
        layers.push(push_bytes(registry, repository, &archive.into_inner()?)?);
    }
    push_image_of(registry, repository, tag, &layers)
}

/// Pushes an image of layers that its repository has already.
fn push_image_of(registry: SocketAddr, repository: &str, tag: &str, layers: &[Blob]) -> Result<Image> {
    let ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": ids },
        "history": layers.iter().map(|_| json!({"created_by": "noise"})).collect::<Vec<_>>(),
    });
    let config = push_bytes(registry, repository, config.to_string().as_bytes())?;
    let descriptor =
        |media: &str, blob: &Blob| json!({"mediaType": media, "digest": blob.digest, "size": blob.size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
    })
    .to_string();
    push_manifest(registry, repository, tag, OCI_MANIFEST, manifest.as_bytes())?;
    Image::from_manifest(repository, tag, manifest.into_bytes())
}

/// Reads a whole blob and says whether its bytes have its digest.
///
/// # Errors
/// When it cannot be read.
pub fn blob_is_right(addr: SocketAddr, repository: &str, blob: &Blob) -> Result<bool> {
    let answer = get(addr, &format!("/v2/{repository}/blobs/{}", blob.digest))?;
    ensure!(answer.status == 200, "{}: {} {}", blob.digest, answer.status, answer.text());
    Ok(answer.body.len() as u64 == blob.size && Digest::sha256(&answer.body) == blob.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_depends_on_its_seed_and_not_on_how_it_is_read() -> Result<()> {
        let mut whole = Vec::new();
        Noise::new(7, 100_003).read_to_end(&mut whole)?;
        assert_eq!(whole.len(), 100_003);
        let mut parts = Vec::new();
        let mut noise = Noise::new(7, 100_003);
        let mut buffer = [0; 1234];
        loop {
            match noise.read(&mut buffer)? {
                0 => break,
                n => parts.extend_from_slice(&buffer[..n]),
            }
        }
        assert_eq!(whole, parts);
        let mut other = Vec::new();
        Noise::new(8, 100_003).read_to_end(&mut other)?;
        assert_ne!(whole, other);
        Ok(())
    }
}
