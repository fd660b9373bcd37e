//! The images of a docker-archive, which has no manifests: one is made from configuration and layers, always
//! the same for the same image.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha512};
use wherry_proto::{Algorithm, Digest};

use super::document::{Config, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, DockerImage};
use super::import::{ImportedImage, Intake, json};
use super::name::{self, Name};
use super::{ImportError, resolve};
use crate::store::StoredBlob;

/// How many times larger than its compressed form a layer may be.
const MAX_RATIO: u64 = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Makes a manifest for each image in `manifest.json`.
pub(super) fn images(
    intake: &mut Intake<'_>,
    entries: &[DockerImage],
) -> Result<Vec<ImportedImage>, ImportError> {
    let mut images: Vec<ImportedImage> = Vec::new();
    for entry in entries {
        let names = resolve::tags(entry)?;
        let image = image(intake, entry, names)?;
        match images.iter_mut().find(|known| known.digest == image.digest) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    Ok(images)
}

fn image(
    intake: &mut Intake<'_>,
    entry: &DockerImage,
    names: Vec<String>,
) -> Result<ImportedImage, ImportError> {
    let missing = |what: &str| ImportError::Missing { what: what.to_owned(), by: "manifest.json".to_owned() };
    let config = match name::parse(name::normal(&entry.config)) {
        Some(Name::Config(digest) | Name::Blob(digest)) => digest,
        _ => return Err(missing(&entry.config)),
    };
    let config_blob = intake.blob(&config).ok_or_else(|| missing(&entry.config))?;
    let parsed: Config =
        serde_json::from_slice(&intake.document(&config)?).map_err(|error| json(&entry.config, &error))?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != entry.layers.len() {
        let why = format!("it has {} layers, its configuration {}", entry.layers.len(), diff_ids.len());
        return Err(ImportError::Json { entry: entry.config.clone(), why });
    }
    let mut blobs = vec![config];
    let mut size = config_blob.size();
    let mut layers = Vec::new();
    for (path, diff_id) in entry.layers.iter().zip(&diff_ids) {
        let digest = intake.layer(path).ok_or_else(|| missing(path))?;
        let blob = intake.blob(&digest).ok_or_else(|| missing(path))?;
        let media_type = check(&blob, diff_id, path)?;
        layers.push(descriptor(media_type, &blob));
        if !blobs.contains(&digest) {
            blobs.push(digest);
            size += blob.size();
        }
    }
    let manifest = MadeManifest {
        schema_version: 2,
        media_type: DOCKER_MANIFEST,
        config: descriptor(DOCKER_CONFIG.to_owned(), &config_blob),
        layers,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| json("manifest.json", &error))?;
    let digest = intake.add(&bytes)?;
    blobs.insert(0, digest);
    Ok(ImportedImage { names, digest, media_type: DOCKER_MANIFEST.to_owned(), blobs, size })
}

fn descriptor(media_type: String, blob: &StoredBlob) -> Descriptor {
    Descriptor { media_type, digest: blob.digest(), size: blob.size(), annotations: None, platform: None }
}

/// Checks a layer against the digest that the configuration has of its uncompressed bytes; its media type.
/// What is compressed with zstd is taken on its word: whoever unpacks it checks it.
fn check(blob: &StoredBlob, diff_id: &Digest, entry: &str) -> Result<String, ImportError> {
    let failed = |source| ImportError::Read { entry: entry.to_owned(), source };
    let mut file = blob.open().map_err(failed)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(failed)?;
    let (suffix, found) = match magic[..] {
        [0x28, 0xb5, 0x2f, 0xfd] => return Ok(format!("{DOCKER_LAYER}.zstd")),
        [0x1f, 0x8b, ..] => {
            let file = blob.open().map_err(failed)?;
            let plain = MultiGzDecoder::new(BufReader::new(file));
            // Beyond the bound the digest comes out wrong, and that is the error.
            let plain = plain.take(blob.size().saturating_mul(MAX_RATIO));
            (".gzip", hash(diff_id.algorithm(), plain).map_err(failed)?)
        }
        _ if blob.digest().algorithm() == diff_id.algorithm() => ("", blob.digest()),
        _ => ("", hash(diff_id.algorithm(), blob.open().map_err(failed)?).map_err(failed)?),
    };
    if found != *diff_id {
        return Err(ImportError::WrongDigest { entry: entry.to_owned(), found: Box::new(found) });
    }
    Ok(format!("{DOCKER_LAYER}{suffix}"))
}

fn hash(algorithm: Algorithm, mut reader: impl Read) -> io::Result<Digest> {
    let mut buffer = vec![0; 64 << 10];
    let (mut short, mut long) = (Sha256::new(), Sha512::new());
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if algorithm == Algorithm::Sha256 => short.update(&buffer[..n]),
            Ok(n) => long.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let raw =
        if algorithm == Algorithm::Sha256 { short.finalize().to_vec() } else { long.finalize().to_vec() };
    Digest::from_bytes(algorithm, &raw).ok_or_else(|| io::Error::other("a digest of a wrong length"))
}
