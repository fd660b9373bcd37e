//! What looking at all images promises of memory: it does not grow with their number. Alone in its process, since it looks
//! at the process's memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use bytes::Bytes;
use images_support::*;
use wherry_proto::Digest;

/// How many images there are, and how long the manifest of each is.
const IMAGES: usize = 60;
const MANIFEST: usize = 3 << 20;

/// A few manifests, the store's index; far below all manifests together.
const MOST: u64 = 48 << 20;

/// The most memory that the process has had resident, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_counted_and_listed_with_the_manifests_of_one_at_a_time() {
    let lab = Lab::new().await;
    let node = lab.node();
    for number in 0..IMAGES {
        let mut image = lab.image(&number.to_string());
        let mut document: serde_json::Value = serde_json::from_slice(&image.bytes).unwrap();
        document["annotations"] = serde_json::json!({ "long": "x".repeat(MANIFEST) });
        image.bytes = Bytes::from(document.to_string());
        image.digest = Digest::sha256(&image.bytes);
        node.put(&image);
        let reference = lab.reference(&format!("app:{number}"));
        node.images.set_tag(&reference, &image.parsed()).await.unwrap();
    }
    let before = peak();
    assert_eq!(node.images.whole_images().await, IMAGES);
    let sizes = node.images.local_images(|image| Some(image.size())).await.unwrap();
    assert_eq!(sizes.len(), IMAGES);
    let grown = peak() - before;
    assert!(grown < MOST, "{} MiB", grown >> 20);
}
