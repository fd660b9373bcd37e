//! The images of an OCI layout.

use std::collections::HashSet;

use wherry_proto::Digest;

use super::ImportError;
use super::document::{Descriptor, DockerImage, Manifest, NAME, REF_NAME};
use super::import::{ImportedImage, Intake, wrong_length};
use super::name::{self, Name};

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 32;

/// How many manifests and indexes an archive may have.
const MAX_MANIFESTS: usize = 256;

/// How many images an archive may name.
const MAX_IMAGES: usize = 1024;

/// The longest name of an image, in bytes.
const MAX_NAME_LEN: usize = 512;

/// One image while its blobs are looked for.
struct Walk {
    by: String,
    seen: HashSet<Digest>,
    /// In the order in which they were found, each with the bytes that it has as a configuration or layer.
    blobs: Vec<(Digest, u64)>,
    configs: HashSet<Digest>,
    manifests: usize,
    platforms: usize,
}

/// Finds the images that `index.json` names, and all that they need.
pub(super) fn images(
    intake: &mut Intake<'_>,
    index: &[u8],
    docker: &[DockerImage],
) -> Result<Vec<ImportedImage>, ImportError> {
    let bad = |why| ImportError::Json { entry: "index.json".to_owned(), why };
    let Manifest::Index { manifests, .. } = Manifest::parse(index, "").map_err(bad)? else {
        return Err(bad("it is a manifest, not an index".to_owned()));
    };
    if manifests.len() > MAX_IMAGES {
        return Err(ImportError::TooMany { what: "images", limit: MAX_IMAGES });
    }
    let mut images: Vec<ImportedImage> = Vec::new();
    for descriptor in manifests {
        let names = names(&descriptor)?;
        if let Some(known) = images.iter_mut().find(|image| image.digest == descriptor.digest) {
            known
                .names
                .extend(names.into_iter().filter(|name| !known.names.contains(name)).collect::<Vec<_>>());
            continue;
        }
        let (image, configs) = image(intake, &descriptor, names)?;
        images.push(with_tags(image, &configs, docker)?);
    }
    if images.is_empty() { Err(ImportError::NoImage) } else { Ok(images) }
}

fn image(
    intake: &mut Intake<'_>,
    descriptor: &Descriptor,
    names: Vec<String>,
) -> Result<(ImportedImage, HashSet<Digest>), ImportError> {
    let mut walk = Walk {
        by: "index.json".to_owned(),
        seen: HashSet::new(),
        blobs: Vec::new(),
        configs: HashSet::new(),
        manifests: 0,
        platforms: 0,
    };
    let media_type = visit(intake, &mut walk, descriptor, 0)?;
    if walk.platforms == 0 {
        let what = "the manifest of at least one platform".to_owned();
        return Err(ImportError::Missing { what, by: descriptor.digest.to_string() });
    }
    let size = walk.blobs.iter().map(|(_, bytes)| bytes).sum();
    let blobs = walk.blobs.into_iter().map(|(digest, _)| digest).collect();
    let image = ImportedImage { names, digest: descriptor.digest, media_type, blobs, size };
    Ok((image, walk.configs))
}

/// Looks at a manifest or index and all below; its media type.
fn visit(
    intake: &mut Intake<'_>,
    walk: &mut Walk,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<String, ImportError> {
    if depth > MAX_DEPTH {
        return Err(ImportError::TooMany { what: "indexes inside one another", limit: MAX_DEPTH });
    }
    walk.manifests += 1;
    if walk.manifests > MAX_MANIFESTS {
        return Err(ImportError::TooMany { what: "manifests", limit: MAX_MANIFESTS });
    }
    let digest = descriptor.digest;
    need(intake, walk, descriptor, 0)?;
    let bytes = intake.document(&digest)?;
    let manifest = Manifest::parse(&bytes, &descriptor.media_type)
        .map_err(|why| ImportError::Json { entry: digest.to_string(), why })?;
    let media_type = manifest.media_type().to_owned();
    let by = std::mem::replace(&mut walk.by, digest.to_string());
    match manifest {
        Manifest::Index { manifests, .. } => {
            for child in manifests {
                // An archive need not have every platform.
                if intake.blob(&child.digest).is_none() || walk.seen.contains(&child.digest) {
                    continue;
                }
                let (blobs, platforms) = (walk.blobs.len(), walk.platforms);
                match visit(intake, walk, &child, depth + 1) {
                    // The store may have the manifest of a platform whose layers it never needed.
                    Err(ImportError::Missing { .. }) if !intake.brought(&child.digest) => {
                        for (digest, _) in walk.blobs.drain(blobs..) {
                            walk.seen.remove(&digest);
                        }
                        walk.platforms = platforms;
                        walk.by = digest.to_string();
                    }
                    other => drop(other?),
                }
            }
        }
        Manifest::Image { config, layers, .. } => {
            walk.platforms += 1;
            walk.configs.insert(config.digest);
            need(intake, walk, &config, config.size)?;
            for layer in &layers {
                if !(layer.is_foreign() && intake.blob(&layer.digest).is_none()) {
                    need(intake, walk, layer, layer.size)?;
                }
            }
        }
    }
    walk.by = by;
    Ok(media_type)
}

/// Checks that a blob is there, with the length that is said of it. `counts` are the bytes that it adds to the image's.
fn need(
    intake: &mut Intake<'_>,
    walk: &mut Walk,
    descriptor: &Descriptor,
    counts: u64,
) -> Result<(), ImportError> {
    let digest = descriptor.digest;
    let Some(blob) = intake.blob(&digest) else {
        return Err(ImportError::Missing { what: digest.to_string(), by: walk.by.clone() });
    };
    if blob.size() != descriptor.size {
        return Err(wrong_length(&digest, blob.size(), descriptor.size, &walk.by));
    }
    if walk.seen.insert(digest) {
        walk.blobs.push((digest, counts));
    }
    Ok(())
}

/// The names that a descriptor gives its image.
fn names(descriptor: &Descriptor) -> Result<Vec<String>, ImportError> {
    let full = descriptor.annotation(NAME);
    let short = descriptor.annotation(REF_NAME);
    // The tag of a name that is there in full says nothing new.
    let short = short.filter(|tag| !full.is_some_and(|full| full.ends_with(&format!(":{tag}"))));
    full.into_iter().chain(short).map(|name| check_name(name, "index.json")).collect()
}

/// Adds the names that docker's manifest has for an image without any.
fn with_tags(
    mut image: ImportedImage,
    configs: &HashSet<Digest>,
    docker: &[DockerImage],
) -> Result<ImportedImage, ImportError> {
    if image.names.is_empty() {
        for entry in docker {
            let config = match name::parse(name::normal(&entry.config)) {
                Some(Name::Blob(digest) | Name::Config(digest)) => digest,
                _ => continue,
            };
            if configs.contains(&config) {
                image.names.extend(tags(entry)?);
            }
        }
    }
    Ok(image)
}

/// The names in an entry of docker's manifest.
pub(super) fn tags(entry: &DockerImage) -> Result<Vec<String>, ImportError> {
    entry.repo_tags.iter().flatten().map(|name| check_name(name, "manifest.json")).collect()
}

fn check_name(name: &str, entry: &str) -> Result<String, ImportError> {
    if !name.is_empty() && name.len() <= MAX_NAME_LEN && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(name.to_owned());
    }
    let why = format!("{:?} cannot name an image", name.chars().take(80).collect::<String>());
    Err(ImportError::Json { entry: entry.to_owned(), why })
}
