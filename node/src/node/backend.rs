//! What the control socket and the status pages ask of a node.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::DuplexStream;
use tokio_util::io::SyncIoBridge;
use tracing::info;
use wherry_gateway::origin::OriginError;
use wherry_gateway::server::RefusalKind;
use wherry_gateway::{Descriptor, Manifest, Platform, Reference};
use wherry_proto::{Digest, TagRecord};

use super::pulls::Job;
use super::{Node, now};
use crate::bundle::{self, ExportError, ExportImage};
use crate::control::api::{
    ApiError, BlobRequest, CancelRequest, CancelState, CancelSummary, CancelledBlob, CheckEvent,
    CheckRequest, CheckSummary, ErrorCode, ImageDetails, ImageSummary, ImportEvent, ImportSummary,
    ImportedImage, InspectRequest, PeerInfo, PinRequest, PinSummary, PreloadEvent, PreloadRequest,
    PreloadSummary, PublishEvent, PublishRequest, PublishSummary, PullEvent, PullRequest, PullSummary,
    RemoveRequest, RemoveSummary, WanRequest, WanSummary, WhyImage,
};
use crate::control::{Archive, Backend, Events};
use crate::images::{
    Away, How, ImageError, ImageName, MAX_WAIT, PullEvents, Pulled, STUCK, Unasked, Wanted, parse_platform,
};
use crate::limits::{Limited, Limits, WanStatus, tell_all};
use crate::status::{
    Addresses, MAX_TRANSFERS, NodeStatus, RefusedNode, Report, State, StoreStatus, TransferStatus,
    UnreachedAddress,
};
use crate::swarm::{Refusal, Unreached};
use crate::transfer::{Progress, Transfer, Why};

impl Report for Node {
    fn state(&self) -> State {
        if self.stopping.load(Ordering::Relaxed) { State::Stopping } else { State::Ready }
    }

    async fn status(&self) -> NodeStatus {
        let usage = self.store.usage();
        let transfers = self.transfers.running();
        let images = self.images.whole_images().await;
        let joined = self.joined().await;
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            peer_id: self.key.node(),
            network: self.certificate.network,
            site: self.site.clone(),
            default_origin: self.images.default_origin().to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            addresses: Addresses { bootstrap: (self.listening)(), ..self.addresses.clone() },
            store: StoreStatus {
                blobs: usage.blobs as u64,
                partial_blobs: usage.partials as u64,
                bytes: usage.on_disk,
                budget: usage.budget,
                free: usage.free,
            },
            images,
            peers: self.swarm.neighbours().len(),
            refused: self.swarm.refusals().into_iter().map(refused).collect(),
            unreached: self.swarm.unreached().into_iter().map(unreached).collect(),
            joined,
            transfers: self.transfer_status(transfers).await,
            damaged: self.damage_status().await,
            wan: self.limits.status(),
            remaining: self.images.remaining(),
            left_alone: self.images.left_alone(),
            traffic: self.metrics.traffic(),
            errors: self.metrics.errors(),
        }
    }
}

pub(super) fn platform(text: Option<&str>) -> Result<Option<Platform>, ApiError> {
    let platform = text.map(parse_platform).transpose();
    platform.map_err(|why| ApiError::new(ErrorCode::BadRequest, why))
}

pub(super) fn image_error(error: ImageError) -> ApiError {
    let cause = match &error {
        ImageError::Moved { source, .. } => source,
        error => error,
    };
    let advice = match cause {
        ImageError::Unknown { origin, .. } if matches!(**origin, OriginError::Unauthorized { .. }) => Some(
            "this node needs credentials there: 'podman login', or user and password_file of that origin",
        ),
        ImageError::Unknown { origin, .. } if matches!(**origin, OriginError::NotFound { .. }) => {
            Some("check the name and the tag")
        }
        ImageError::Unknown { .. } => {
            Some("check the name, and 'wherry peers' and the network if the registry should be in reach")
        }
        ImageError::Transfer { .. } => Some("what has arrived is kept: pull again to go on"),
        ImageError::NotPublished { origin, .. } => match &**origin {
            OriginError::Unauthorized { .. } => Some(
                "this node needs credentials there that may push: 'podman login', or user and password_file of the origin",
            ),
            _ => Some("what the registry has of it stays there: publish again to send the rest"),
        },
        _ => None,
    };
    let refusal = error.into_refusal(false);
    let code = match refusal.kind {
        RefusalKind::ManifestUnknown | RefusalKind::BlobUnknown | RefusalKind::NameUnknown => {
            ErrorCode::NotFound
        }
        RefusalKind::Denied | RefusalKind::Unauthorized => ErrorCode::Denied,
        RefusalKind::NoSpace => ErrorCode::NoSpace,
        RefusalKind::Internal => ErrorCode::Internal,
        _ => ErrorCode::Unavailable,
    };
    let told = ApiError::new(code, refusal.message);
    match advice {
        Some(advice) if code != ErrorCode::NoSpace => told.hint(advice),
        _ => told,
    }
}

pub(super) fn stopping<E>(_: E) -> ApiError {
    ApiError::new(ErrorCode::Stopping, "the node is shutting down")
}

/// What there is to say of a pull that has ended well, of which `present` bytes were here before.
pub(super) fn pull_summary(
    reference: &Reference,
    pulled: Pulled,
    begun: Instant,
    present: u64,
) -> PullSummary {
    PullSummary {
        reference: reference.to_string(),
        digest: pulled.digest,
        seconds: begun.elapsed().as_secs_f64(),
        from_peers: pulled.from_peers,
        from_origin: pulled.from_origin,
        present,
        asked: reference.target().tag().is_some() && pulled.unasked.is_none(),
        settled: pulled.unasked.as_ref().is_some_and(Unasked::is_settled),
        unasked: pulled.unasked.map(|why| why.to_string()),
        tag_age_seconds: pulled.age.map(|age| age.as_secs()),
    }
}

/// Tells the client of a pull how it goes.
struct Teller {
    job: Arc<Job>,
    events: Events<PullEvent>,
    present: AtomicU64,
    limits: Limits,
    // The limit that was told of last.
    told: Mutex<Option<(Limited, Instant)>>,
}

impl PullEvents for Teller {
    fn resolved(&self, manifest: &Manifest) {
        let blobs: Vec<&Descriptor> =
            manifest.image().map(|image| image.blobs().collect()).unwrap_or_default();
        self.job.resolved(blobs.iter().map(|blob| blob.digest).collect());
        self.events.tell_if_free(PullEvent::Resolved {
            reference: self.job.reference().to_string(),
            digest: *manifest.digest(),
            blobs: blobs.len(),
            bytes: blobs.iter().map(|blob| blob.size).sum(),
        });
    }

    fn started(&self, blob: &Descriptor, whole: bool, here: u64) {
        self.present.fetch_add(here, Ordering::Relaxed);
        let (digest, size) = (blob.digest, blob.size);
        self.events.tell_if_free(PullEvent::LayerStarted { digest, size, present: whole, here });
    }

    fn progress(&self, blob: &Digest, progress: Progress) {
        let Progress { linked, from_peers, from_origin, .. } = progress;
        let digest = *blob;
        self.events.tell_if_free(PullEvent::Progress { digest, bytes: linked, from_peers, from_origin });
    }

    fn waits(&self, limited: &Limited) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Now and then again: it may have gone on meanwhile, or what was told may have been lost.
        if !told.is_some_and(|(before, when)| before == *limited && when.elapsed() < STUCK) {
            *told = Some((*limited, Instant::now()));
            let why = self.limits.explain(limited);
            self.events.tell_if_free(PullEvent::Waiting { limited: *limited, why });
        }
    }

    fn away(&self, blob: &Digest, away: &Away) {
        self.events.tell_if_free(PullEvent::Away { digest: *blob, away: away.clone() });
    }

    fn stuck(&self, blob: &Digest, why: &Why) {
        let (waits_for, origin) = (why.waits_for, why.origin.clone());
        self.events.tell_if_free(PullEvent::Stuck { digest: *blob, waits_for, origin });
    }

    fn done(&self, blob: &Digest, here: bool, progress: Progress) {
        if !here {
            let Progress { from_peers, from_origin, .. } = progress;
            self.events.tell_if_free(PullEvent::LayerDone { digest: *blob, from_peers, from_origin });
        }
    }
}

/// Tells the client of an import which blobs come.
struct ImportTeller(Events<ImportEvent>);

impl bundle::Progress for ImportTeller {
    fn verified(&mut self, digest: &Digest, size: u64, new: bool) {
        self.0.tell_if_free(ImportEvent::Blob { digest: *digest, size, present: !new });
    }
}

impl Backend for Node {
    async fn pull(&self, request: PullRequest, events: Events<PullEvent>) -> Result<PullSummary, ApiError> {
        let reference = self.to_pull(&request.reference).await?;
        let platform = platform(request.platform.as_deref())?;
        let wait = request.wait_seconds.map(Duration::from_secs);
        if wait.is_some_and(|wait| wait > MAX_WAIT) {
            let most = MAX_WAIT.as_secs();
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("wait_seconds is {most} at most, a week"),
            ));
        }
        let how = How { platform: platform.clone(), refresh: request.refresh, wait };
        let job = self.pulls.begin(reference, platform)?;
        let (pins, images) = (self.pins.clone(), self.images.clone());
        let (pull, limits) = (job.clone(), self.limits.clone());
        let work = async move {
            let begun = Instant::now();
            let teller = Teller {
                job: pull.clone(),
                events,
                present: AtomicU64::new(0),
                limits,
                told: Mutex::default(),
            };
            let reference = pull.reference();
            let pulled = images.pull(reference, &how, &teller).await.map_err(image_error)?;
            pins.pin_anew(reference).await?;
            Ok(pull_summary(reference, pulled, begun, teller.present.load(Ordering::Relaxed)))
        };
        self.pulls.run(job, work).await
    }

    async fn cancel(&self, request: CancelRequest) -> Result<CancelSummary, ApiError> {
        let references = self.references(&request.reference).await?;
        let (mut pulls, mut blobs) = (Vec::new(), HashSet::new());
        for reference in &references {
            pulls.extend(self.pulls.stop(reference).await);
            // What a runtime wanted goes on without any pull.
            let local = self.images.local_image(reference, None).await.map_err(image_error)?;
            if let Some(image) = local.as_ref().and_then(|local| local.image.image()) {
                blobs.extend(image.blobs().map(|blob| blob.digest));
            }
        }
        blobs.extend(pulls.iter().flat_map(|pull| pull.blobs()).copied());
        // Of several names the one by which it was pulled.
        let pulled = pulls.first().map(|pull| pull.reference());
        let name =
            pulled.or(references.first()).map_or_else(|| request.reference.clone(), Reference::to_string);
        let wanted = self.pulls.wanted();
        let on_their_way = self.transfers.running().into_iter().filter(|it| blobs.contains(&it.digest()));
        let asked: Vec<_> = on_their_way
            .map(|transfer| {
                let state = match wanted.contains(&transfer.digest()) {
                    true => CancelState::Pulled,
                    false if transfer.cancel() > 0 => CancelState::Read,
                    false => CancelState::Stopped,
                };
                (transfer, state)
            })
            .collect();
        let mut cancelled = Vec::new();
        for (transfer, state) in asked {
            // One that was about to be whole is.
            if state == CancelState::Stopped && transfer.wait().await.is_ok() {
                continue;
            }
            let (digest, size) = (transfer.digest(), transfer.size());
            let bytes = transfer.progress().linked.max(transfer.before());
            cancelled.push(CancelledBlob { digest, size, bytes, state });
        }
        if pulls.is_empty() && cancelled.is_empty() {
            let message = format!("nothing of {name} is on its way");
            return Err(ApiError::new(ErrorCode::NotFound, message).hint("'wherry status' shows what is"));
        }
        Ok(CancelSummary { reference: name, pulls: pulls.len(), blobs: cancelled })
    }

    async fn preload(
        &self,
        request: PreloadRequest,
        events: Events<PreloadEvent>,
    ) -> Result<PreloadSummary, ApiError> {
        self.preload_images(request, events).await
    }

    async fn check(
        &self,
        request: CheckRequest,
        events: Events<CheckEvent>,
    ) -> Result<CheckSummary, ApiError> {
        self.check_blobs(request, events).await
    }

    async fn images(&self) -> Result<Vec<ImageSummary>, ApiError> {
        self.list_images().await
    }

    async fn publish(
        &self,
        request: PublishRequest,
        events: Events<PublishEvent>,
    ) -> Result<PublishSummary, ApiError> {
        self.publish_image(request, events).await
    }

    async fn inspect(&self, request: InspectRequest) -> Result<ImageDetails, ApiError> {
        self.inspect_image(request).await
    }

    async fn why(&self, request: InspectRequest) -> Result<WhyImage, ApiError> {
        self.why_image(request).await
    }

    async fn remove(&self, request: RemoveRequest) -> Result<RemoveSummary, ApiError> {
        self.remove_images(request).await
    }

    async fn pin(&self, request: PinRequest) -> Result<PinSummary, ApiError> {
        match request.pinned {
            true => self.pin_image(&request.reference).await,
            false => self.unpin_image(&request.reference).await,
        }
    }

    async fn import(
        &self,
        name: Option<String>,
        archive: Archive,
        events: Events<ImportEvent>,
    ) -> Result<ImportSummary, ApiError> {
        let name = name.map(|name| self.parse_tag(&name)).transpose()?;
        let store = self.store.clone();
        let mut teller = ImportTeller(events);
        let reader = SyncIoBridge::new(archive);
        let one = name.is_some();
        let work = move || match one {
            true => bundle::import_one(&store, reader, &mut teller),
            false => bundle::import(&store, reader, &mut teller),
        };
        let imported = tokio::task::spawn_blocking(work).await.map_err(stopping)?;
        let imported = imported.map_err(|error| {
            let code = if error.is_no_space() { ErrorCode::NoSpace } else { ErrorCode::BadRequest };
            ApiError::new(code, error.to_string())
        })?;
        let mut moved = Vec::new();
        let named = self.name_imported(name, &imported.images, &mut moved).await;
        // All at once, and while nobody waits for a turn; what has come of a part as well.
        self.images.tell_site(moved).await;
        Ok(ImportSummary { images: named? })
    }

    async fn exported(&self, reference: &str) -> Result<String, ApiError> {
        Ok(self.find(reference, None).await?.name.to_string())
    }

    async fn export(&self, reference: &str, out: DuplexStream) -> Result<(), ApiError> {
        let local = self.find(reference, None).await?;
        let name = local.name.to_string();
        if !local.whole {
            let message = format!("not all of {name} is here");
            let error = ApiError::new(ErrorCode::NotFound, message).hint(format!(
                "'wherry inspect {name}' shows what is missing, 'wherry pull {name}' brings it"
            ));
            return Err(self.with_moved(&local.name, error).await);
        }
        let has_tag = matches!(&local.name, ImageName::Reference(it) if it.target().tag().is_some());
        // A digest that was asked for may be one of an index that bears the name.
        let is_named = has_tag && matches!(self.wanted(reference).await?, Wanted::Named(_));
        let names = if is_named { vec![name.clone()] } else { Vec::new() };
        let image = ExportImage { names, manifest: *local.top.digest() };
        let store = self.store.clone();
        let writer = SyncIoBridge::new(out);
        let work = move || bundle::export(&store, &[image], writer);
        let exported = tokio::task::spawn_blocking(work).await.map_err(stopping)?;
        exported.map_err(|error| {
            let told = ApiError::new(ErrorCode::Internal, error.to_string());
            match error {
                ExportError::Damaged(_) => {
                    told.hint(format!("'wherry pull {name}' brings it again; export then once more"))
                }
                _ => told,
            }
        })
    }

    async fn blob(&self, request: BlobRequest, out: DuplexStream) -> Result<(), ApiError> {
        self.give_blob(request, out).await
    }

    async fn peers(&self) -> Result<Vec<PeerInfo>, ApiError> {
        let info = |neighbour: crate::swarm::Neighbour| PeerInfo {
            peer_id: neighbour.node,
            site: neighbour.site,
            address: neighbour.address,
            connected_seconds: now().saturating_sub(neighbour.since),
        };
        Ok(self.swarm.neighbours().into_iter().map(info).collect())
    }

    async fn wan(&self) -> Result<WanStatus, ApiError> {
        Ok(self.limits.status())
    }

    async fn pause(&self, request: WanRequest) -> Result<WanSummary, ApiError> {
        let limits = self.limits.clone();
        let paused = tokio::task::spawn_blocking(move || limits.pause(request.paused)).await;
        let written = paused.map_err(stopping)?;
        // It holds whether it is written down or not.
        let (neighbours, agree) = tell_all(&self.limits, &self.swarm).await;
        written.map_err(|error| {
            let message = format!(
                "this node cannot write down whether the site pauses, and may forget it when it ends: {error}"
            );
            ApiError::new(ErrorCode::Internal, message).hint(format!(
                "it holds until then, and {agree} of {neighbours} neighbours know of it: mend the data folder"
            ))
        })?;
        info!(
            paused = request.paused,
            neighbours, agree, "the site's links to the outside were told to rest or go on"
        );
        Ok(WanSummary { site: self.site.clone(), neighbours, agree, status: self.limits.status() })
    }
}

impl Node {
    /// The blobs on their way, each with the images that are wanted.
    async fn transfer_status(&self, transfers: Vec<Arc<Transfer>>) -> Vec<TransferStatus> {
        let listed = || transfers.iter().take(MAX_TRANSFERS);
        let mut images = self.pulls.images();
        // What a runtime wants has no pull.
        let others: HashSet<Digest> = listed()
            .map(|transfer| transfer.digest())
            .filter(|digest| !images.contains_key(digest))
            .collect();
        let users = self.recent_users(others).await;
        images.extend(users.into_iter().filter(|(_, names)| !names.is_empty()));
        listed()
            .map(|transfer| {
                let progress = transfer.progress();
                let names = images.get(&transfer.digest());
                TransferStatus {
                    digest: transfer.digest(),
                    images: names.map(|names| names.iter().cloned().collect()).unwrap_or_default(),
                    size: transfer.size(),
                    bytes: progress.linked,
                    from_peers: progress.from_peers,
                    from_origin: progress.from_origin,
                    sources: progress.sources,
                }
            })
            .collect()
    }

    /// Gives imported images their names, or all of them the one that was asked for, and pins them. What tags have moved is
    /// added to `moved`, also where an error comes of it in the end.
    async fn name_imported(
        &self,
        name: Option<Reference>,
        imported: &[bundle::ImportedImage],
        moved: &mut Vec<TagRecord>,
    ) -> Result<Vec<ImportedImage>, ApiError> {
        let mut images = Vec::new();
        for image in imported {
            let manifest = self.images.stored_manifest(image.digest, Some(&image.media_type)).await;
            let manifest = manifest.map_err(image_error)?.ok_or_else(|| {
                ApiError::new(
                    ErrorCode::Internal,
                    format!("the manifest {} has left the store", image.digest),
                )
            })?;
            let references: Vec<Reference> = match &name {
                Some(name) => vec![name.clone()],
                None => {
                    let names = image.names.iter().filter(|name| !is_bare_tag(name));
                    names.filter_map(|name| self.parse(name).ok()).collect()
                }
            };
            let mut names: Vec<ImageName> = references.into_iter().map(ImageName::from).collect();
            if names.is_empty() {
                names.push(ImageName::Unnamed(image.digest));
            }
            for name in names {
                // Imported images stay: nothing could bring them back once they were evicted. Before it has the name, so
                // that whoever removes the image by it also removes the pins.
                let turn = self.pins.turn().await;
                if let ImageName::Reference(reference) = &name {
                    self.images.may_mean(reference, &image.digest).await.map_err(image_error)?;
                }
                turn.pin_blobs(&name, &image.digest, image.blobs.clone()).await?;
                let reference = match &name {
                    ImageName::Reference(reference) => {
                        moved.extend(self.images.set_tag(reference, &manifest).await.map_err(image_error)?);
                        Some(reference.to_string())
                    }
                    ImageName::Unnamed(_) => {
                        self.images.keep_image(name.clone(), &manifest).await.map_err(image_error)?;
                        None
                    }
                };
                drop(turn);
                let tag = image.names.iter().find(|name| reference.is_none() && is_bare_tag(name)).cloned();
                images.push(ImportedImage { reference, tag, digest: image.digest, size: image.size });
            }
            for digest in &image.blobs {
                self.swarm.announce(*digest).await;
            }
        }
        Ok(images)
    }
}

/// Whether what an archive calls an image is no more than a tag, as skopeo writes it into an OCI layout: as a name it would
/// mean a repository that is called like the tag.
fn is_bare_tag(name: &str) -> bool {
    !name.contains(['/', ':', '@'])
}

fn unreached(address: Unreached) -> UnreachedAddress {
    let Unreached { address, why, since } = address;
    UnreachedAddress { address, why, since }
}

fn refused(refusal: Refusal) -> RefusedNode {
    let Refusal { node, address, why, advice, at } = refusal;
    RefusedNode { peer_id: node, address, why, hint: advice, seconds_ago: now().saturating_sub(at) }
}
