//! Images that members have asked this node to bring to itself: ordinary pulls, which end with a pin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;
use tracing::info;
use wherry_gateway::{Descriptor, Manifest, Platform, Reference};
use wherry_proto::{Digest, NodeId, PreloadRefusal, PreloadState, Preloading, Text, WantedImage};

use super::backend::{image_error, pull_summary, stopping};
use super::pins::Pins;
use super::pulls::Pulls;
use crate::control::api::ErrorCode;
use crate::images::{Away, How, Images, PullEvents, parse_platform};
use crate::limits::{Limited, Limits};
use crate::transfer::Progress;

/// How many images are remembered that the node was asked for, those that are here included; of those the one that was
/// asked for first is forgotten when there are more.
pub const MAX_PRELOADS: usize = 64;

/// What stands for a platform where an image is wanted for all of them.
pub(super) const ALL_PLATFORMS: &str = "all";

/// How many of them are brought at a time; the others wait for their turn.
const AT_A_TIME: usize = 4;

/// All of them. Clones share them.
#[derive(Clone)]
pub(super) struct Preloads(Arc<Parts>);

struct Parts {
    pins: Pins,
    images: Images,
    pulls: Arc<Pulls>,
    limits: Limits,
    turns: Semaphore,
    asked: Mutex<Vec<Arc<Preload>>>,
}

struct Preload {
    image: WantedImage,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    // Of all its blobs; 0 until it is known what they are.
    bytes: u64,
    here: HashMap<Digest, u64>,
    waits: Option<Waits>,
    // Why it failed, if it did.
    ended: Option<Result<(), String>>,
}

/// What it waits for.
enum Waits {
    Limit(Limited),
    Origin(Away),
}

impl Preload {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        // No change of it can be left half done.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_under_way(&self) -> bool {
        self.lock().ended.is_none()
    }
}

impl PullEvents for Preload {
    fn resolved(&self, manifest: &Manifest) {
        self.lock().bytes = manifest.image().map_or(0, |image| image.blobs().map(|blob| blob.size).sum());
    }

    fn started(&self, blob: &Descriptor, _whole: bool, here: u64) {
        self.lock().here.insert(blob.digest, here);
    }

    fn progress(&self, blob: &Digest, progress: Progress) {
        let mut tally = self.lock();
        let before = tally.here.insert(*blob, progress.linked).unwrap_or(0);
        // An origin that was out of reach is so until something comes.
        if progress.linked > before || matches!(tally.waits, Some(Waits::Limit(_))) {
            tally.waits = None;
        }
    }

    fn waits(&self, limited: &Limited) {
        self.lock().waits = Some(Waits::Limit(*limited));
    }

    fn away(&self, _blob: &Digest, away: &Away) {
        self.lock().waits = Some(Waits::Origin(away.clone()));
    }

    fn done(&self, blob: &Digest, _here: bool, progress: Progress) {
        self.lock().here.insert(*blob, progress.linked);
    }
}

impl Preloads {
    pub(super) fn new(pins: Pins, images: Images, pulls: Arc<Pulls>, limits: Limits) -> Self {
        let (turns, asked) = (Semaphore::new(AT_A_TIME), Mutex::default());
        Self(Arc::new(Parts { pins, images, pulls, limits, turns, asked }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Preload>>> {
        // The list is whole between any two of its changes.
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to bring an image, on a task of its own; one that is under way goes on. Must run inside a runtime.
    pub(super) fn begin(&self, asker: &NodeId, image: &WantedImage) -> Result<(), PreloadRefusal> {
        let reference: Reference = image.reference.parse().map_err(|_| PreloadRefusal::Name)?;
        let is_whole = image.platform.as_ref().is_some_and(|text| text.as_str() == ALL_PLATFORMS);
        let platform =
            image.platform.as_ref().filter(|_| !is_whole).map(|text| parse_platform(text)).transpose();
        let platform: Option<Platform> = platform.map_err(|_| PreloadRefusal::Name)?;
        let mut asked = self.lock();
        if asked.iter().any(|known| known.image == *image && known.is_under_way()) {
            return Ok(());
        }
        asked.retain(|known| known.image != *image);
        if asked.len() >= MAX_PRELOADS {
            let oldest = asked.iter().position(|known| !known.is_under_way()).ok_or(PreloadRefusal::Busy)?;
            asked.remove(oldest);
        }
        let job = self.0.pulls.begin(reference.clone(), platform.clone()).map_err(|why| match why.code {
            ErrorCode::Stopping => PreloadRefusal::Stopping,
            _ => PreloadRefusal::Busy,
        })?;
        info!(image = %reference, peer = %asker, "asked to bring an image here and to pin it");
        let preload = Arc::new(Preload { image: image.clone(), tally: Mutex::default() });
        asked.push(preload.clone());
        drop(asked);
        let parts = self.0.clone();
        let (brought, work_parts) = (preload.clone(), parts.clone());
        let work = async move {
            let _turn = work_parts.turns.acquire().await.map_err(stopping)?;
            let begun = Instant::now();
            let how = How { platform, ..How::default() };
            let pulled = match is_whole {
                true => work_parts.images.pull_whole(&reference, &how, &*brought).await,
                false => work_parts.images.pull(&reference, &how, &*brought).await,
            };
            let pulled = pulled.map_err(image_error)?;
            match is_whole {
                true => work_parts.pins.turn().await.pin_pushed(&reference, &pulled.digest).await?,
                false => work_parts.pins.pin_pulled(&reference).await?,
            }
            let present = pulled.bytes.saturating_sub(pulled.from_peers + pulled.from_origin);
            Ok(pull_summary(&reference, pulled, begun, present))
        };
        // Ends with the pull, which ends with the node.
        tokio::spawn(async move {
            let ended = parts.pulls.run(job, work).await;
            let mut tally = preload.lock();
            if ended.is_ok() {
                tally.bytes = tally.here.values().sum();
            }
            tally.ended = Some(ended.map(drop).map_err(|why| why.message));
        });
        Ok(())
    }

    /// How an image comes; `None` if nobody has asked for it since the node has started.
    pub(super) fn look(&self, image: &WantedImage) -> Option<Preloading> {
        let preload = self.lock().iter().find(|known| known.image == *image).cloned()?;
        let tally = preload.lock();
        let state = match (&tally.ended, &tally.waits) {
            (Some(Ok(())), _) => PreloadState::Done,
            (Some(Err(why)), _) => PreloadState::Failed(Text::cut(why)),
            (None, Some(Waits::Limit(limited))) => {
                PreloadState::Waiting(Text::cut(&self.0.limits.explain(limited)))
            }
            (None, Some(Waits::Origin(away))) => PreloadState::Waiting(Text::cut(&away.to_string())),
            (None, None) => PreloadState::Running,
        };
        Some(Preloading { here: tally.here.values().sum(), bytes: tally.bytes, state })
    }
}
