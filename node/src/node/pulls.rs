//! The pulls that commands have asked for. Each goes on when its client leaves, until it is done or somebody stops it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use wherry_gateway::{Platform, Reference};
use wherry_proto::Digest;

use super::backend::stopping;
use crate::control::api::{ApiError, ErrorCode, PullSummary};

/// How many pulls there may be at a time, those whose clients have left included.
pub const MAX_PULLS: usize = 64;

/// All pulls that are under way.
#[derive(Default)]
pub(super) struct Pulls {
    jobs: Mutex<Vec<Arc<Job>>>,
    is_ending: AtomicBool,
    tasks: TaskTracker,
}

/// One pull.
pub(super) struct Job {
    reference: Reference,
    platform: Option<Platform>,
    blobs: OnceLock<Vec<Digest>>,
    is_watched: AtomicBool,
    // Why it ends before it is done; set before `stop` is cancelled.
    why: OnceLock<ApiError>,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Job {
    pub(super) const fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(super) const fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// Remembers what it brings.
    pub(super) fn resolved(&self, blobs: Vec<Digest>) {
        // A reference becomes one manifest, and a pull has one.
        let _ = self.blobs.set(blobs);
    }

    /// What it brings, as far as that is known.
    pub(super) fn blobs(&self) -> &[Digest] {
        self.blobs.get().map_or(&[], Vec::as_slice)
    }

    fn end(&self, why: ApiError) {
        // Of two reasons the first counts.
        let _ = self.why.set(why);
        self.stop.cancel();
    }

    fn is_of(&self, reference: &Reference, platform: Option<&Platform>) -> bool {
        self.reference == *reference && self.platform.as_ref() == platform
    }
}

impl Pulls {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        // The list is whole between any two of its changes.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a pull. One of the same image whose client has left ends: what it has begun goes on for this one.
    ///
    /// # Errors
    /// When there are [`MAX_PULLS`] others, or the node is about to end.
    pub(super) fn begin(
        &self,
        reference: Reference,
        platform: Option<Platform>,
    ) -> Result<Arc<Job>, ApiError> {
        let mut jobs = self.lock();
        if self.is_ending.load(Ordering::Relaxed) {
            return Err(stopping(()));
        }
        jobs.retain(|job| {
            let stays = job.is_watched.load(Ordering::Relaxed) || !job.is_of(&reference, platform.as_ref());
            if !stays {
                job.end(ApiError::new(ErrorCode::Cancelled, "another pull of it goes on in its place"));
            }
            stays
        });
        if jobs.len() >= MAX_PULLS {
            let message = format!("{MAX_PULLS} pulls are under way already");
            return Err(ApiError::new(ErrorCode::Unavailable, message)
                .hint("pull again when some are done, or stop some with 'wherry cancel'"));
        }
        let job = Arc::new(Job {
            reference,
            platform,
            blobs: OnceLock::new(),
            is_watched: AtomicBool::new(true),
            why: OnceLock::new(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        jobs.push(job.clone());
        Ok(job)
    }

    /// Does the work of a pull in a task of its own, and returns its outcome. Dropped, it leaves the work to go on.
    pub(super) async fn run(
        self: &Arc<Self>,
        job: Arc<Job>,
        work: impl Future<Output = Result<PullSummary, ApiError>> + Send + 'static,
    ) -> Result<PullSummary, ApiError> {
        let (pulls, watched) = (self.clone(), Watched { pulls: self.clone(), job: job.clone() });
        let task = self.tasks.spawn(async move {
            info!(image = %job.reference, "a pull begins");
            let outcome = tokio::select! {
                biased;
                () = job.stop.cancelled() => {
                    Err(job.why.get().cloned().unwrap_or_else(|| stopping(())))
                }
                outcome = work => outcome,
            };
            pulls.lock().retain(|other| !Arc::ptr_eq(other, &job));
            log(&job.reference, &outcome);
            job.is_watched.store(false, Ordering::Relaxed);
            job.ended.cancel();
            outcome
        });
        let outcome = task.await.map_err(stopping)?;
        drop(watched);
        outcome
    }

    /// Stops all pulls of an image, for whatever platform, and returns them once they have ended.
    pub(super) async fn stop(&self, reference: &Reference) -> Vec<Arc<Job>> {
        let stopped: Vec<_> = self.lock().extract_if(.., |job| job.reference == *reference).collect();
        for job in &stopped {
            let message = format!("the pull of {reference} was stopped by 'wherry cancel'");
            job.end(
                ApiError::new(ErrorCode::Cancelled, message)
                    .hint("what has arrived is kept: pull again to go on"),
            );
        }
        for job in &stopped {
            job.ended.cancelled().await;
        }
        stopped
    }

    /// The pulls of an image, for whatever platform.
    pub(super) fn of(&self, reference: &Reference) -> Vec<Arc<Job>> {
        self.lock().iter().filter(|job| job.reference == *reference).cloned().collect()
    }

    /// Whether an image is being pulled.
    pub(super) fn has(&self, reference: &Reference) -> bool {
        self.lock().iter().any(|job| job.reference == *reference)
    }

    /// The blobs that pulls bring, each with the images that have it.
    pub(super) fn images(&self) -> HashMap<Digest, BTreeSet<String>> {
        let mut images: HashMap<Digest, BTreeSet<String>> = HashMap::new();
        for job in self.lock().iter() {
            for blob in job.blobs() {
                images.entry(*blob).or_default().insert(job.reference.to_string());
            }
        }
        images
    }

    /// The blobs that the pulls which are under way bring.
    pub(super) fn wanted(&self) -> HashSet<Digest> {
        self.lock().iter().flat_map(|job| job.blobs()).copied().collect()
    }

    /// The node is about to end: pulls whose clients leave now do not go on.
    pub(super) fn ending(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// Stops all pulls, since the node ends, and waits for them.
    pub(super) async fn close(&self) {
        for job in self.lock().drain(..) {
            job.end(stopping(()));
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// That somebody waits for a pull.
struct Watched {
    pulls: Arc<Pulls>,
    job: Arc<Job>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let was_watched = self.job.is_watched.swap(false, Ordering::Relaxed);
        if was_watched && !self.pulls.is_ending.load(Ordering::Relaxed) {
            info!(image = %self.job.reference, "the client of a pull has left; the pull goes on");
        }
    }
}

fn log(image: &Reference, outcome: &Result<PullSummary, ApiError>) {
    match outcome {
        Ok(pulled) => {
            let PullSummary { digest, seconds, from_peers, from_origin, present, .. } = pulled;
            info!(%image, %digest, seconds, from_peers, from_origin, present, "a pull is done");
        }
        Err(why) if matches!(why.code, ErrorCode::Cancelled | ErrorCode::Stopping) => {
            info!(%image, %why, "a pull ends before it is done");
        }
        Err(why) => warn!(%image, %why, "a pull failed"),
    }
}
