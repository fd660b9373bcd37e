//! The client of origins against real registries, and against servers that no registry should be like.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blobs;
mod child;
mod manifests;
mod mirrors;
mod redirects;
mod registry;
mod script;
mod secrets;
mod tls;
mod tokens;

use std::time::Duration;

use futures::StreamExt;
use wherry_gateway::origin::{BlobStream, OriginError, OriginSettings};
use wherry_gateway::{Host, Repository, TagOrDigest};

/// Settings for servers of this machine: plain HTTP, and little patience.
fn settings(insecure: &[&Host]) -> OriginSettings {
    let mut settings = OriginSettings::default();
    settings.insecure = insecure.iter().map(|host| (*host).clone()).collect();
    settings.connect_timeout = Duration::from_secs(5);
    settings.header_timeout = Duration::from_secs(5);
    settings.stall_timeout = Duration::from_secs(5);
    settings.first_retry = Duration::from_millis(10);
    settings
}

fn repository() -> Repository {
    "library/test".parse().unwrap()
}

fn tag(tag: &str) -> TagOrDigest {
    TagOrDigest::Tag(tag.parse().unwrap())
}

/// Everything that a stream gives, and how it ends.
async fn drain(mut stream: BlobStream) -> (Vec<u8>, Result<(), OriginError>) {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error is not the last item");
                return (bytes, Err(error));
            }
        }
    }
    (bytes, Ok(()))
}

/// Bytes of which no two parts are alike.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    out.truncate(len);
    out
}
