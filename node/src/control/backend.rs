//! What the server needs of a node.

use std::future::Future;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::api::{
    ApiError, BlobRequest, CancelRequest, CancelSummary, CheckEvent, CheckRequest, CheckSummary,
    ImageDetails, ImageSummary, ImportEvent, ImportSummary, InspectRequest, PeerInfo, PinRequest, PinSummary,
    PreloadEvent, PreloadRequest, PreloadSummary, PublishEvent, PublishRequest, PublishSummary, PullEvent,
    PullRequest, PullSummary, RemoveRequest, RemoveSummary, WanRequest, WanStatus, WanSummary, WhyImage,
};
use super::archive::Archive;
use crate::status::Report;

/// The node, as its control socket sees it.
///
/// A future is dropped when its client goes away and when the node stops, so what has to go on must run in a task of
/// its own.
pub trait Backend: Report {
    /// Brings a whole image here, and goes on with it when the client leaves. A [`PullEvent::LayerStarted`] comes before
    /// all others of its blob.
    fn pull(
        &self,
        request: PullRequest,
        events: Events<PullEvent>,
    ) -> impl Future<Output = Result<PullSummary, ApiError>> + Send;

    /// Stops all pulls of an image, and all else that brings its blobs here but what somebody else needs. What has
    /// arrived stays.
    fn cancel(&self, request: CancelRequest) -> impl Future<Output = Result<CancelSummary, ApiError>> + Send;

    /// Removes images, and those of their blobs that no other image has; nothing that is being fetched.
    fn remove(&self, request: RemoveRequest) -> impl Future<Output = Result<RemoveSummary, ApiError>> + Send;

    /// Has an image stay whatever the disk budget, or no longer.
    fn pin(&self, request: PinRequest) -> impl Future<Output = Result<PinSummary, ApiError>> + Send;

    /// Reads and hashes what is stored, and sets aside what is damaged.
    fn check(
        &self,
        request: CheckRequest,
        events: Events<CheckEvent>,
    ) -> impl Future<Output = Result<CheckSummary, ApiError>> + Send;

    /// All images that are here whole or in part, in any order.
    fn images(&self) -> impl Future<Output = Result<Vec<ImageSummary>, ApiError>> + Send;

    /// What is known about an image that is here.
    fn inspect(&self, request: InspectRequest)
    -> impl Future<Output = Result<ImageDetails, ApiError>> + Send;

    /// Takes the images of an OCI layout or docker-archive, which may be compressed with gzip. Nothing of a damaged
    /// archive may become an image. With a name the archive must have one image, and that gets it.
    fn import(
        &self,
        name: Option<String>,
        archive: Archive,
        events: Events<ImportEvent>,
    ) -> impl Future<Output = Result<ImportSummary, ApiError>> + Send;

    /// Has nodes bring images to themselves, until all are there or have failed. They go on when the client goes away.
    fn preload(
        &self,
        request: PreloadRequest,
        events: Events<PreloadEvent>,
    ) -> impl Future<Output = Result<PreloadSummary, ApiError>> + Send;

    /// Sends an image to a registry; ends when the client leaves.
    fn publish(
        &self,
        request: PublishRequest,
        events: Events<PublishEvent>,
    ) -> impl Future<Output = Result<PublishSummary, ApiError>> + Send;

    /// The whole name of an image that is to be exported.
    fn exported(&self, reference: &str) -> impl Future<Output = Result<String, ApiError>> + Send;

    /// Writes an image that is here as an archive. As long as nothing was written, an error is answered with its
    /// proper status; so check everything first.
    fn export(&self, reference: &str, out: DuplexStream)
    -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Writes the configuration or a layer of an image that is here. Errors are answered as in [`Backend::export`].
    fn blob(
        &self,
        request: BlobRequest,
        out: DuplexStream,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Why an image is not here yet, and when it will be.
    fn why(&self, request: InspectRequest) -> impl Future<Output = Result<WhyImage, ApiError>> + Send;

    /// All members that are connected, in any order.
    fn peers(&self) -> impl Future<Output = Result<Vec<PeerInfo>, ApiError>> + Send;

    /// The links that lead out of the site, and what limits them.
    fn wan(&self) -> impl Future<Output = Result<WanStatus, ApiError>> + Send;

    /// Has the whole site pause, or go on. It holds across restarts when this returns.
    fn pause(&self, request: WanRequest) -> impl Future<Output = Result<WanSummary, ApiError>> + Send;
}

/// Where to tell a client what happens. Clones tell the same client.
#[derive(Debug)]
pub struct Events<E>(mpsc::Sender<E>);

impl<E> Clone for Events<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E> Events<E> {
    pub(super) const fn new(sender: mpsc::Sender<E>) -> Self {
        Self(sender)
    }

    /// Tells it, and waits for a client that reads slowly. A client that is gone is no error.
    pub async fn tell(&self, event: E) {
        // The future that this runs in ends with the client.
        let _ = self.0.send(event).await;
    }

    /// Tells it unless the client is behind: for progress, of which the next report says more anyway.
    pub fn tell_if_free(&self, event: E) {
        let _ = self.0.try_send(event);
    }
}
