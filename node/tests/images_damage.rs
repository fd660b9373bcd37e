//! What is known of an image whose manifests a disk has spoilt.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

mod images_support;

use std::collections::HashSet;

use images_support::*;
use wherry_gateway::Reference;
use wherry_node::images::{How, KnownImage};
use wherry_proto::Digest;

/// Another image with the same blobs.
fn twin(image: &Image) -> Image {
    let mut document: serde_json::Value = serde_json::from_slice(&image.bytes).unwrap();
    document["annotations"] = serde_json::json!({ "twin": "yes" });
    let bytes = bytes::Bytes::from(document.to_string());
    Image { digest: Digest::sha256(&bytes), bytes, ..image.clone() }
}

async fn known(node: &Node, tag: &Reference) -> KnownImage {
    node.images.known_image(&tag.clone().into()).await.unwrap().unwrap()
}

async fn astray(node: &Node, tag: &Reference) -> HashSet<Digest> {
    node.images.astray(&known(node, tag).await).await.unwrap().into_iter().collect()
}

async fn is_unread(node: &Node, tag: &Reference) -> bool {
    node.images.is_unread(&known(node, tag).await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_another_image_in_another_repository_may_need_nothing_is_astray() {
    let lab = Lab::new().await;
    let (image, node) = (lab.image("one"), lab.node());
    let twin = twin(&image);
    let [tag, other] = ["app:1", "copy:1"].map(|tag| lab.reference(tag));
    lab.origin.tag("app", "1", &image);
    lab.origin.tag("copy", "1", &twin);
    for tag in [&tag, &other] {
        node.images.pull(tag, &How::default(), &Nobody).await.unwrap();
    }
    assert!(!is_unread(&node, &tag).await && !is_unread(&node, &other).await);
    node.flip(&image.digest);
    node.flip(&twin.digest);
    for tag in [&tag, &other] {
        assert!(is_unread(&node, tag).await);
        assert_eq!(astray(&node, tag).await, HashSet::new());
    }

    // Once that one is gone nobody else needs them.
    node.images.forget(&other.into()).await.unwrap();
    node.store.remove_partials(&twin.digest);
    let blobs = image.blobs.iter().map(|(digest, _)| *digest).collect();
    assert_eq!(astray(&node, &tag).await, blobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_manifest_of_one_platform_named_is_astray_and_nothing_of_the_others() {
    let lab = Lab::new().await;
    let (amd, arm, node) = (lab.image("amd64"), lab.image("arm64"), lab.node());
    let index = lab.index(&[(&amd, "linux/amd64"), (&arm, "linux/arm64")]);
    let tag = lab.reference("app:1");
    for image in [&amd, &arm] {
        lab.origin.add("app", image);
    }
    lab.origin.tag("app", "1", &index);
    for platform in ["linux/amd64", "linux/arm64"] {
        let platform = wherry_node::images::parse_platform(platform).unwrap();
        node.images
            .pull(&tag, &How { platform: Some(platform.clone()), ..How::default() }, &Nobody)
            .await
            .unwrap();
    }
    // A layer tells nothing of what else there is.
    node.flip(&amd.layer());
    assert!(!node.store.verify(&amd.layer()).unwrap());
    assert!(!is_unread(&node, &tag).await);

    node.flip(&arm.digest);
    assert!(is_unread(&node, &tag).await);
    assert_eq!(astray(&node, &tag).await, arm.blobs.iter().map(|(digest, _)| *digest).collect());
}
