//! Images become one archive that every tool reads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, Write};

use serde::Serialize;
use tar::{Builder, EntryType, Header};
use wherry_proto::{Algorithm, Digest};

use super::ExportError;
use super::document::{
    Config, DOCKER_CONFIG, Descriptor, DockerImage, MAX_MANIFEST_LEN, Manifest, NAME, OCI_CONFIG, OCI_INDEX,
    Platform, REF_NAME,
};
use super::name::blob_path;
use crate::store::{Store, StoredBlob};

/// How deep indexes may be nested, and how many manifests an image may have.
const MAX_DEPTH: usize = 32;
const MAX_MANIFESTS: usize = 256;

/// An image to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportImage {
    /// Full references (`registry/repository:tag`), possibly none.
    pub names: Vec<String>,
    /// Its manifest or index.
    pub manifest: Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<Descriptor>,
}

/// What will be written. Holding the blobs keeps them from being evicted on the way.
#[derive(Default)]
struct Contents {
    blobs: BTreeMap<Digest, StoredBlob>,
    index: Vec<Descriptor>,
    docker: Vec<DockerImage>,
}

/// An image manifest that is held with all that it needs.
struct Platforms {
    found: Vec<(Option<Platform>, Descriptor, Vec<Descriptor>)>,
    seen: HashSet<Digest>,
}

/// Writes images as an OCI layout with docker's `manifest.json`. Of an index whatever is held whole is written; the
/// platform for `manifest.json` is this machine's, or else the first. The same images give the same bytes.
pub fn export(store: &Store, images: &[ExportImage], writer: impl Write) -> Result<(), ExportError> {
    if images.is_empty() {
        return Err(ExportError::Nothing);
    }
    let mut contents = Contents::default();
    for image in images {
        contents.add(store, image)?;
    }
    contents.write(writer)
}

impl Contents {
    fn add(&mut self, store: &Store, image: &ExportImage) -> Result<(), ExportError> {
        let mut platforms = Platforms { found: Vec::new(), seen: HashSet::new() };
        let by = image.names.first().map_or("the export", String::as_str);
        let media_type = self.visit(store, &mut platforms, &image.manifest, by, None, 0)?;
        let Some((_, config, layers)) = platforms.choose() else {
            let digest = Box::new(image.manifest);
            return Err(ExportError::Missing {
                digest,
                by: "its platforms' manifests and layers".to_owned(),
            });
        };
        let size = self.blobs.get(&image.manifest).map_or(0, StoredBlob::size);
        let plain =
            Descriptor { media_type, digest: image.manifest, size, annotations: None, platform: None };
        for name in &image.names {
            let mut annotations = BTreeMap::from([(NAME.to_owned(), name.clone())]);
            if let Some(tag) = tag(name) {
                annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            self.index.push(Descriptor { annotations: Some(annotations), ..plain.clone() });
        }
        if image.names.is_empty() {
            self.index.push(plain);
        }
        // Artifacts that are no images mean nothing to what reads manifest.json.
        if matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let tags: Vec<String> = image.names.iter().filter(|name| tag(name).is_some()).cloned().collect();
            let config = blob_path(&config.digest);
            let layers = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
            match self.docker.iter_mut().find(|known| known.config == config) {
                Some(known) => known.repo_tags.get_or_insert_default().extend(tags),
                None => self.docker.push(DockerImage { config, repo_tags: Some(tags), layers }),
            }
        }
        Ok(())
    }

    /// Takes in a manifest or index and all below that is held; its media type.
    fn visit(
        &mut self,
        store: &Store,
        platforms: &mut Platforms,
        digest: &Digest,
        by: &str,
        descriptor: Option<&Descriptor>,
        depth: usize,
    ) -> Result<String, ExportError> {
        platforms.seen.insert(*digest);
        let bad = |why: String| ExportError::Manifest { digest: Box::new(*digest), why };
        if depth > MAX_DEPTH || platforms.seen.len() > MAX_MANIFESTS {
            return Err(bad("manifests are nested too deep, or too many".to_owned()));
        }
        let missing = |digest: &Digest, by: String| ExportError::Missing { digest: Box::new(*digest), by };
        let blob = store.get(digest).ok_or_else(|| missing(digest, by.to_owned()))?;
        let bytes = blob.read(MAX_MANIFEST_LEN).map_err(|error| match blob.is_lost() {
            true => ExportError::Damaged(Box::new(*digest)),
            false => bad(error.to_string()),
        })?;
        let told = descriptor.map_or("", |descriptor| &descriptor.media_type);
        let manifest = Manifest::parse(&bytes, told).map_err(bad)?;
        let media_type = manifest.media_type().to_owned();
        match manifest {
            Manifest::Index { manifests, .. } => {
                for child in &manifests {
                    if platforms.seen.contains(&child.digest) {
                        continue;
                    }
                    match self.visit(store, platforms, &child.digest, by, Some(child), depth + 1) {
                        // A platform that is not held, or not whole, is left out.
                        Ok(_) | Err(ExportError::Missing { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Manifest::Image { config, layers, .. } => {
                let mut parts = HashMap::new();
                for part in layers.iter().chain([&config]) {
                    match store.get(&part.digest) {
                        Some(blob) => drop(parts.insert(part.digest, blob)),
                        None if part.is_foreign() => {}
                        None => return Err(missing(&part.digest, digest.to_string())),
                    }
                }
                let platform =
                    descriptor.and_then(|it| it.platform.clone()).or_else(|| platform(&parts, &config));
                self.blobs.extend(parts);
                platforms.found.push((platform, config, layers));
            }
        }
        self.blobs.insert(*digest, blob);
        Ok(media_type)
    }

    fn write(&self, writer: impl Write) -> Result<(), ExportError> {
        let mut tar = Builder::new(writer);
        let algorithms: BTreeSet<Algorithm> = self.blobs.keys().map(Digest::algorithm).collect();
        folder(&mut tar, "blobs/")?;
        for algorithm in algorithms {
            folder(&mut tar, &format!("blobs/{}/", algorithm.name()))?;
            for (digest, blob) in self.blobs.iter().filter(|(digest, _)| digest.algorithm() == algorithm) {
                let failed = |source| match blob.is_lost() {
                    true => ExportError::Damaged(Box::new(*digest)),
                    false => ExportError::Read { digest: Box::new(*digest), source },
                };
                let file = blob.checked_reader().map_err(failed)?;
                // Exactly as many bytes as the header says, or the archive is not one.
                let mut bytes = Exactly { left: blob.size(), inner: file, failed: None };
                let written = tar.append_data(&mut header(blob.size()), blob_path(digest), &mut bytes);
                if let Some(source) = bytes.failed {
                    return Err(failed(source));
                }
                written.map_err(ExportError::Write)?;
            }
        }
        let index = IndexFile { schema_version: 2, media_type: OCI_INDEX, manifests: self.index.clone() };
        file(&mut tar, "index.json", &json(&index)?)?;
        if !self.docker.is_empty() {
            file(&mut tar, "manifest.json", &json(&self.docker)?)?;
        }
        file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.into_inner().and_then(|mut writer| writer.flush()).map_err(ExportError::Write)
    }
}

impl Platforms {
    /// This machine's platform, or else the first.
    fn choose(&self) -> Option<&(Option<Platform>, Descriptor, Vec<Descriptor>)> {
        let here = Platform { architecture: architecture().to_owned(), os: "linux".to_owned() };
        self.found
            .iter()
            .find(|(platform, ..)| platform.as_ref() == Some(&here))
            .or_else(|| self.found.first())
    }
}

/// This machine's architecture in the words of the image specification.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The platform that a configuration tells.
fn platform(parts: &HashMap<Digest, StoredBlob>, config: &Descriptor) -> Option<Platform> {
    let bytes = parts.get(&config.digest)?.read(MAX_MANIFEST_LEN).ok()?;
    let config: Config = serde_json::from_slice(&bytes).ok()?;
    Some(Platform { architecture: config.architecture, os: config.os })
}

/// The tag of a reference, if it has one and no digest.
fn tag(name: &str) -> Option<&str> {
    let last = name.rsplit('/').next()?;
    let (_, tag) = last.split_once(':')?;
    (!name.contains('@') && !tag.is_empty()).then_some(tag)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(value).map_err(|error| ExportError::Write(error.into()))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn file(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes).map_err(ExportError::Write)
}

fn folder(tar: &mut Builder<impl Write>, name: &str) -> Result<(), ExportError> {
    let mut header = header(0);
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    tar.append_data(&mut header, name, io::empty()).map_err(ExportError::Write)
}

/// Gives a file's bytes, no more and no fewer than announced, and remembers whether reading failed.
struct Exactly<R> {
    inner: R,
    left: u64,
    failed: Option<io::Error>,
}

impl<R: io::Read> io::Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let result = match self.inner.read(&mut buffer[..most]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        match result {
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), "a blob could not be read");
                self.failed = Some(error);
                Err(again)
            }
        }
    }
}
