//! The image that the demo carries: an OCI layout whose layers hold the wherry binary.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;
use wherry_proto::Digest;

/// In how many layers the binary is cut.
const LAYERS: usize = 4;

/// The most of the binary that is carried, in bytes: builds with debug information are far larger than releases.
const MAX_BINARY: u64 = 48 << 20;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What was made, as the clients of the demo check it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The repository in its registry.
    pub(super) repository: &'static str,
    /// Its tag.
    pub(super) tag: &'static str,
    /// Its manifest.
    pub(super) digest: Digest,
    /// Manifest, configuration and layers, in bytes.
    pub(super) bytes: u64,
    /// How many layers it has.
    pub(super) layers: usize,
}

/// Writes an OCI layout to `path` that holds what `binary` gives, under this name of a registry.
pub(super) fn make(path: &Path, registry: &str, binary: impl Read) -> io::Result<Image> {
    let (repository, tag) = ("demo/wherry", "latest");
    let mut bytes = Vec::new();
    binary.take(MAX_BINARY).read_to_end(&mut bytes)?;
    let mut layers = Vec::new();
    for (number, part) in bytes.chunks(bytes.len().div_ceil(LAYERS).max(1)).enumerate() {
        layers.push(layer(&format!("usr/lib/wherry/wherry.{number}"), part)?);
    }
    let part = |number: usize| format!("/usr/lib/wherry/wherry.{number}");
    let history: Vec<_> = (0..layers.len())
        .map(|number| json!({ "created_by": format!("COPY wherry.{number} {} # buildkit", part(number)) }))
        .chain([json!({ "created_by": "ENTRYPOINT [\"/usr/bin/wherry\"]", "empty_layer": true })])
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let config = json!({
        "architecture": std::env::consts::ARCH,
        "os": "linux",
        "config": { "Entrypoint": ["/usr/bin/wherry"], "Labels": { "org.opencontainers.image.title": "wherry" } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = serde_json::to_vec(&config)?;
    let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|bytes| descriptor(LAYER, bytes)).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("{registry}/{repository}:{tag}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });

    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    put(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put(&mut archive, "index.json", &serde_json::to_vec(&index)?)?;
    for blob in [&manifest, &config].into_iter().chain(&layers) {
        put(&mut archive, &format!("blobs/sha256/{}", Digest::sha256(blob).hex()), blob)?;
    }
    archive.into_inner()?.flush()?;
    let lengths = [&manifest, &config].into_iter().chain(&layers).map(|blob| blob.len() as u64);
    Ok(Image {
        repository,
        tag,
        digest: Digest::sha256(&manifest),
        bytes: lengths.sum(),
        layers: layers.len(),
    })
}

fn layer(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(bytes.len() + 2048));
    put(&mut archive, name, bytes)?;
    archive.into_inner()
}

fn put(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, name, bytes)
}

#[cfg(test)]
mod tests {
    use wherry_gateway::{Descriptor, Manifest};

    use std::collections::HashMap;

    use super::*;
    use crate::images::inspect::{LayerState, inspect};

    #[test]
    fn the_layers_hold_the_binary_and_everything_has_the_digest_that_it_is_named_by() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        let binary: Vec<u8> = (0..100_003u32).map(|i| (i % 251) as u8).collect();
        let image = make(&path, "registry.example:5000", binary.as_slice()).unwrap();
        assert_eq!(image.layers, LAYERS);
        let mut blobs = HashMap::new();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(Digest::sha256(&bytes).hex(), hex);
                blobs.insert(format!("sha256:{hex}"), bytes);
            }
        }
        assert_eq!(blobs.values().map(|blob| blob.len() as u64).sum::<u64>(), image.bytes);
        let manifest = &blobs[&image.digest.to_string()];
        let parsed: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let blob = |descriptor: &serde_json::Value| &blobs[descriptor["digest"].as_str().unwrap()];
        let read = Manifest::parse(manifest.clone().into(), None).unwrap();
        let here = |layer: &Descriptor| (LayerState::Here, layer.size);
        let details = inspect("x", &read, blob(&parsed["config"]), &[], here).unwrap();
        assert!(details.history_fits);
        let mut whole = Vec::new();
        for layer in parsed["layers"].as_array().unwrap() {
            let mut archive = tar::Archive::new(blob(layer).as_slice());
            archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut whole).unwrap();
        }
        assert_eq!(whole, binary);
    }
}
