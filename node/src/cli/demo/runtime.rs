//! What a container runtime does: a manifest by tag, then its configuration and layers, each checked.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use wherry_proto::{Algorithm, Digest};

/// The longest manifest, in bytes, as registries bound it.
const MAX_MANIFEST: usize = 4 << 20;

/// The longest body of an error that is repeated, in bytes.
const MAX_ERROR: usize = 4096;

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    size: u64,
}

/// What a runtime got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulled {
    /// The SHA-256 of the manifest's bytes.
    pub(super) manifest: Digest,
    /// Bytes of manifest, configuration and layers, all of which have the digests that they are named by.
    pub(super) bytes: u64,
    /// How long it took.
    pub(super) seconds: f64,
}

/// Pulls an image through a gateway.
pub(super) async fn pull(gateway: SocketAddr, repository: &str, tag: &str) -> anyhow::Result<Pulled> {
    let begun = Instant::now();
    let manifest = manifest(gateway, &format!("/v2/{repository}/manifests/{tag}")).await?;
    let digest = Digest::sha256(&manifest);
    let mut bytes = manifest.len() as u64;
    let manifest: Manifest = serde_json::from_slice(&manifest).context("the manifest makes no sense")?;
    // All layers at once, as runtimes do after the configuration.
    bytes += blob(gateway, repository, &manifest.config).await?;
    let layers = manifest.layers.iter().map(|layer| blob(gateway, repository, layer));
    bytes += futures::future::try_join_all(layers).await?.iter().sum::<u64>();
    Ok(Pulled { manifest: digest, bytes, seconds: begun.elapsed().as_secs_f64() })
}

async fn manifest(gateway: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let (answer, _connection) = get(gateway, path).await?;
    let named = answer.headers().get("docker-content-digest").cloned();
    let body = Limited::new(answer.into_body(), MAX_MANIFEST).collect().await;
    let bytes = body.map_err(|error| anyhow::anyhow!("{path}: {error}"))?.to_bytes();
    let named: Digest = named.context("the gateway does not say which digest it sends")?.to_str()?.parse()?;
    ensure!(named == Digest::sha256(&bytes), "the bytes of {path} do not have the digest {named}");
    Ok(bytes)
}

/// Reads a blob, hashes it, and returns its length.
async fn blob(gateway: SocketAddr, repository: &str, blob: &Descriptor) -> anyhow::Result<u64> {
    let path = format!("/v2/{repository}/blobs/{}", blob.digest);
    let (answer, _connection) = get(gateway, &path).await?;
    let mut body = answer.into_body();
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.with_context(|| format!("after {length} bytes of {path}"))?.into_data() {
            hash.update(&data);
            length += data.len() as u64;
        }
    }
    let found = Digest::from_bytes(Algorithm::Sha256, &hash.finalize());
    ensure!(length == blob.size, "{path} has {length} bytes instead of {}", blob.size);
    ensure!(found == Some(blob.digest), "the bytes of {path} do not have that digest");
    Ok(length)
}

async fn get(gateway: SocketAddr, path: &str) -> anyhow::Result<(Response<Incoming>, AbortOnDropHandle<()>)> {
    let stream = TcpStream::connect(gateway).await.with_context(|| format!("the gateway {gateway}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What went wrong is seen where the body is read.
        let _ = connection.await;
    }));
    let request = Request::builder()
        .uri(path)
        .header(HOST, gateway.to_string())
        .header(ACCEPT, "application/vnd.oci.image.manifest.v1+json, */*")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await.with_context(|| format!("no answer to {path}"))?;
    if answer.status() == StatusCode::OK {
        return Ok((answer, connection));
    }
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ERROR).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    bail!("the gateway {gateway} answers {status} to {path}: {}", body.trim())
}
