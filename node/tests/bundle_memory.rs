//! What import and export promise of memory: it does not grow with the length of a blob. Alone in its process,
//! since it looks at the process's memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]
#![allow(dead_code, unreachable_pub, reason = "test binaries share the module and use parts of it")]

use std::io::{self, Read};

use serde_json::json;
use wherry_node::bundle::{ExportImage, export, import};
use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest};

mod bundle_support;
use bundle_support::*;

const LEN: u64 = 256 << 20;
/// Buffers, hashing states, the store's index; far below the blob.
const MOST: u64 = 24 << 20;

/// The most memory that the process has had resident, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn layer() -> impl Read {
    let pattern: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    struct Repeat(Vec<u8>, usize);
    impl Read for Repeat {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let from = &self.0[self.1..];
            let n = from.len().min(buffer.len());
            buffer[..n].copy_from_slice(&from[..n]);
            self.1 = (self.1 + n) % self.0.len();
            Ok(n)
        }
    }
    Repeat(pattern, 0).take(LEN)
}

#[test]
fn a_blob_of_any_length_passes_through_little_memory() {
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(LEN).unwrap());
    let mut buffer = vec![0; 64 << 10];
    let mut source = layer();
    loop {
        let n = source.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        builder.update(&buffer[..n]).unwrap();
    }
    let digest = builder.finish().unwrap().digest();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [digest]}}).to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "x", "digest": Digest::sha256(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "x", "digest": digest, "size": LEN}],
    })
    .to_string();
    let root = json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256(manifest.as_bytes()), "size": manifest.len()});
    let small = archive(&[
        file(blob_name(config.as_bytes()), config.as_bytes()),
        file(blob_name(manifest.as_bytes()), manifest.as_bytes()),
        file("index.json", index(&[root])),
    ]);
    let mut header = tar::Header::new_gnu();
    header.set_path(format!("blobs/sha256/{}", digest.hex())).unwrap();
    header.set_size(LEN);
    header.set_cksum();

    let before = peak();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stream = header.as_bytes().chain(layer()).chain(&small[..]);
    let imported = import(&store, stream, &mut ()).unwrap();
    assert_eq!(imported.images[0].blobs.len(), 3);
    let image = ExportImage { names: Vec::new(), manifest: imported.images[0].digest };
    export(&store, &[image], io::sink()).unwrap();
    let grown = peak() - before;
    assert!(grown < MOST, "{} MiB", grown >> 20);
}
