//! A tiny image, as the archives that tools make of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use wherry_node::bundle::{ExportImage, ImportError, Imported, export, import};
use wherry_node::store::{Store, StoreSettings};
use wherry_proto::Digest;

pub fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

pub fn take(store: &Store, archive: &[u8]) -> Result<Imported, ImportError> {
    import(store, archive, &mut ())
}

pub fn give(store: &Store, names: &[&str], manifest: Digest) -> Vec<u8> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let mut archive = Vec::new();
    export(store, &[ExportImage { names, manifest }], &mut archive).unwrap();
    archive
}

/// Everything in a store.
pub fn contents(store: &Store) -> BTreeMap<Digest, u64> {
    store.blobs().collect()
}

/// An entry of a test's archive.
pub enum Item {
    File(String, Vec<u8>),
    Folder(String),
    Symlink(String, String),
    Hard(String, String),
    Device(String),
}

pub fn file(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Item {
    Item::File(name.into(), bytes.into())
}

/// An archive as the items have it: names are written as they are, however bad.
pub fn archive(items: &[Item]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for item in items {
        let (name, kind, link, bytes): (_, _, &str, &[u8]) = match item {
            Item::File(name, bytes) => (name, EntryType::Regular, "", bytes),
            Item::Folder(name) => (name, EntryType::Directory, "", b""),
            Item::Symlink(name, to) => (name, EntryType::Symlink, to, b""),
            Item::Hard(name, to) => (name, EntryType::Link, to, b""),
            Item::Device(name) => (name, EntryType::Char, "", b""),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        if name.len() > 100 {
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongName);
            long.set_size(name.len() as u64);
            long.set_cksum();
            tar.append(&long, name.as_bytes()).unwrap();
        }
        let short = &name.as_bytes()[..name.len().min(100)];
        header.as_old_mut().name[..short.len()].copy_from_slice(short);
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image of one layer for a platform, and the documents that describe it.
pub struct Image {
    pub layer: Vec<u8>,
    pub packed: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    pub fn new(architecture: &str, text: &str) -> Self {
        let layer = archive(&[Item::Folder("etc/".into()), file("etc/motd", text)]);
        let packed = gzip(&layer);
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "test"}],
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::sha256(&packed), "size": packed.len(),
            }],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self { layer, packed, config, manifest }
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    pub fn blobs(&self) -> [&Vec<u8>; 3] {
        [&self.manifest, &self.config, &self.packed]
    }

    /// Its blobs as entries of a layout.
    pub fn items(&self) -> Vec<Item> {
        self.blobs().map(|bytes| file(blob_name(bytes), bytes.as_slice())).into()
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": OCI_MANIFEST, "digest": self.digest(), "size": self.manifest.len()})
    }

    /// A whole layout with this image under a tag.
    pub fn layout(&self, tag: &str) -> Vec<Item> {
        let mut descriptor = self.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let mut items = self.items();
        items.push(file("oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#));
        items.push(file("index.json", index(&[descriptor])));
        items
    }

    /// What docker save wrote before version 25.
    pub fn docker_archive(&self, tag: &str) -> Vec<Item> {
        let config = Digest::sha256(&self.config).hex();
        let id = Digest::sha256(b"any id").hex();
        let manifest = json!([{
            "Config": format!("{config}.json"), "RepoTags": [tag], "Layers": [format!("{id}/layer.tar")],
        }]);
        vec![
            Item::Folder(format!("{id}/")),
            file(format!("{id}/VERSION"), "1.0"),
            file(format!("{id}/json"), "{}"),
            file(format!("{id}/layer.tar"), self.layer.as_slice()),
            file(format!("{config}.json"), self.config.as_slice()),
            file("manifest.json", manifest.to_string()),
            file("repositories", "{}"),
        ]
    }
}

pub fn index(descriptors: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}).to_string().into_bytes()
}

pub fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::sha256(bytes).hex())
}

/// Unpacks an archive that holds files only.
pub fn unpack(archive: &[u8], to: &Path) {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = to.join(entry.path().unwrap());
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}
