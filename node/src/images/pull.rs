//! All of an image, into the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tracing::info;
use wherry_gateway::manifest::Image;
use wherry_gateway::server::Source;
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Platform, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::away::{Away, Patience, WAIT, Waits};
use super::platform::{self, chosen, this_platform};
use super::{ImageError, ImageName, Images, MAX_CONFIG, Unasked, blocking};
use crate::limits::Limited;
use crate::store::{Claim, StoreError, StoredBlob};
use crate::transfer::{Fetched, Progress, Transfer, TransferError, Why};

/// How many blobs of one image are fetched side by side.
pub const PARALLEL: usize = 4;

/// After how long without a byte it is told what a blob waits for, and how often then.
pub const STUCK: Duration = Duration::from_secs(2);

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Who watches a pull.
pub trait PullEvents: Send + Sync {
    /// The reference means this manifest.
    fn resolved(&self, manifest: &Manifest);
    /// A blob is to be had; `whole` if it is in the store already, and else `here` bytes of it are.
    fn started(&self, blob: &Descriptor, whole: bool, here: u64);
    /// Some of a blob has arrived. What others had brought of it before this pull is in `linked` alone.
    fn progress(&self, blob: &Digest, progress: Progress);
    /// A limit is all that a blob waits for; told again and again.
    fn waits(&self, _limited: &Limited) {}
    /// A blob waits until its origin is in reach again; told again and again.
    fn away(&self, _blob: &Digest, _away: &Away) {}
    /// Nothing of a blob has come for [`STUCK`], and not for a limit; told again and again.
    fn stuck(&self, _blob: &Digest, _why: &Why) {}
    /// All of a blob is here and verified; `here` if it was before.
    fn done(&self, blob: &Digest, here: bool, progress: Progress);
}

/// How an image is to be brought.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// Of an index, the image for this platform; if none is named, for that of this node.
    pub platform: Option<Platform>,
    /// Whether the origin is asked what the tag means whatever it said a short time ago.
    pub refresh: bool,
    /// For how long the pull goes on trying while the origin is out of reach and nothing of a blob comes, at most
    /// [`MAX_WAIT`](super::MAX_WAIT). If it is not said [`WAIT`], but not at all before the origin or a peer has given it anything.
    pub wait: Option<Duration>,
}

/// How its blobs are to be brought.
#[derive(Debug)]
struct Wait {
    asked: Option<Duration>,
    // Whether anything has come of this pull.
    begun: AtomicBool,
}

impl Wait {
    fn patience(&self) -> Patience {
        Patience::new(self.asked.unwrap_or(WAIT), Instant::now())
    }

    fn came(&self, progress: Progress) {
        if progress.from_peers + progress.from_origin > 0 {
            self.begun.store(true, Ordering::Relaxed);
        }
    }

    fn is_worth_it(&self) -> bool {
        self.asked.is_some() || self.begun.load(Ordering::Relaxed)
    }
}

/// What a pull has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The manifest that the reference names: an index, or the image itself.
    pub digest: Digest,
    /// Bytes of the image's blobs, those that were here included.
    pub bytes: u64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Bytes that came from the origin.
    pub from_origin: u64,
    /// How long ago an origin confirmed what the tag means, as in [`Resolved::age`](super::Resolved::age).
    pub age: Option<Duration>,
    /// Why it was not asked now, as in [`Resolved::unasked`](super::Resolved::unasked).
    pub unasked: Option<Unasked>,
}

/// How many manifests of one image are brought at most.
pub(super) const MAX_WHOLE: usize = 1024;

impl Images {
    /// Brings all blobs of an image into the store. While the origin is out of reach it tries again and again; that bytes
    /// are wrong or not to be had is an error at once, and so is that nobody can say what the reference means.
    pub async fn pull(
        &self,
        reference: &Reference,
        how: &How,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        match self.pull_all(reference, how, events).await {
            Ok(pulled) => Ok(pulled),
            Err(error) => Err(self.with_moved(reference, error).await),
        }
    }

    /// The same of every manifest that the reference leads to, whatever it is for: more than 1,024 are an error.
    pub async fn pull_whole(
        &self,
        reference: &Reference,
        how: &How,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        let top = self.manifest(reference).await?;
        let (digest, age, unasked) = (*top.manifest.digest(), top.age, top.unasked);
        let mut whole = Pulled { digest, bytes: 0, from_peers: 0, from_origin: 0, age, unasked };
        let (mut seen, mut waiting) = (HashSet::from([digest]), vec![digest]);
        while let Some(digest) = waiting.pop() {
            let part = reference.with_target(TagOrDigest::Digest(digest));
            let manifest = self.manifest(&part).await?.manifest;
            if let ManifestContent::Index(index) = manifest.content() {
                let new =
                    index.manifests.iter().map(|entry| entry.digest).filter(|entry| seen.insert(*entry));
                waiting.extend(new);
                if seen.len() > MAX_WHOLE {
                    return Err(ImageError::TooManyParts { what: reference.to_string(), most: MAX_WHOLE });
                }
                continue;
            }
            // What is brought as a part has no name of its own.
            let wanted = if digest == whole.digest { reference.clone() } else { part };
            let name = ImageName::from(wanted.clone());
            let is_new = wanted != *reference && self.records().kept(&name)?.is_none();
            let pulled = self.pull(&wanted, how, events).await?;
            if is_new {
                let records = self.records().clone();
                blocking(move || Ok(records.forget(&name)?)).await?;
            }
            whole.bytes += pulled.bytes;
            whole.from_peers += pulled.from_peers;
            whole.from_origin += pulled.from_origin;
        }
        Ok(whole)
    }

    async fn pull_all(
        &self,
        reference: &Reference,
        how: &How,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        let platform = how.platform.as_ref();
        let resolved = match how.refresh {
            true => self.manifest_anew(reference).await?,
            false => self.manifest(reference).await?,
        };
        let begun = AtomicBool::new(resolved.source == Source::Origin);
        let wait = Wait { asked: how.wait, begun };
        let (top, age, unasked) = (resolved.manifest, resolved.age, resolved.unasked);
        let manifest = match top.content() {
            ManifestContent::Image(image) => {
                if let Some(wanted) = platform {
                    self.check_platform(reference, image, wanted, &wait, events).await?;
                }
                top.clone()
            }
            ManifestContent::Index(index) => {
                let ours = this_platform();
                let entry = chosen(reference, index, platform.unwrap_or(&ours))?;
                self.manifest(&reference.with_target(TagOrDigest::Digest(entry.digest))).await?.manifest
            }
        };
        events.resolved(&manifest);
        let blobs: Vec<Descriptor> = match manifest.image() {
            Some(image) => image.blobs().filter(|blob| !blob.is_foreign()).cloned().collect(),
            None => Vec::new(),
        };
        let size = blobs.iter().map(|blob| blob.size).sum();
        let is_whole = blobs.iter().all(|blob| self.0.parts.store.holds(&blob.digest));
        if !is_whole && let Some(budget) = self.0.parts.store.usage().budget.filter(|budget| size > *budget) {
            return Err(ImageError::LargerThanBudget { what: reference.to_string(), size, budget });
        }
        // What cannot be had whole is to cost nothing that is here.
        self.0.parts.store.would_fit(&blobs.iter().map(|blob| (blob.digest, blob.size)).collect())?;
        // Until all is here nothing may leave that is: other images that have it may be removed meanwhile.
        let mut claims = Vec::new();
        for manifest in [&top, &manifest] {
            claims.push(self.claim_manifest(reference, manifest).await?);
        }
        if reference.target().digest().is_some() {
            self.keep_image(reference.clone().into(), &top).await?;
        }
        let fetches: Vec<_> =
            blobs.iter().map(|blob| self.pull_blob(reference, blob, &wait, events).boxed()).collect();
        let mut running = stream::iter(fetches).buffer_unordered(PARALLEL);
        let (mut from_peers, mut from_origin) = (0, 0);
        while let Some(progress) = running.next().await {
            let (progress, claim) = progress?;
            claims.push(claim);
            from_peers += progress.from_peers;
            from_origin += progress.from_origin;
        }
        // Whoever is told that an image is here may cut the power now.
        let store = self.0.parts.store.clone();
        blocking(move || Ok(store.sync()?)).await?;
        Ok(Pulled { digest: *top.digest(), bytes: size, from_peers, from_origin, age, unasked })
    }

    /// The origin that a pull waits for to go on with a blob, if one does.
    pub fn away(&self, blob: &Digest) -> Option<Away> {
        self.0.away.get(blob)
    }

    fn claim(&self, digest: Digest) -> Result<Claim, ImageError> {
        let claim = self.0.parts.store.claim(&digest);
        claim.ok_or_else(|| StoreError::NotHeld(digest).into())
    }

    /// Claims a manifest that is at hand, whether it is still in the store or not. Where it had left, what it says of the
    /// repository may have been forgotten.
    async fn claim_manifest(&self, reference: &Reference, manifest: &Manifest) -> Result<Claim, ImageError> {
        let (images, kept) = (self.clone(), manifest.clone());
        let claim = blocking(move || {
            images.0.parts.store.put(kept.digest(), kept.raw())?;
            images.claim(*kept.digest())
        });
        let claim = claim.await?;
        self.learn(reference, manifest).await?;
        Ok(claim)
    }

    /// Makes sure, before anything large is fetched, that an image which is alone runs on the platform that was asked for.
    async fn check_platform(
        &self,
        reference: &Reference,
        image: &Image,
        wanted: &Platform,
        wait: &Wait,
        events: &dyn PullEvents,
    ) -> Result<(), ImageError> {
        let digest = image.config.digest;
        let tell = |happens: Happens<'_>| match happens {
            Happens::Waits(limited) => events.waits(&limited),
            Happens::Away(away) => events.away(&digest, away),
            _ => {}
        };
        let blob = self.bring(reference, digest, wait, tell).await?;
        let config = blocking(move || {
            blob.read(MAX_CONFIG).map_err(|error| ImageError::Unreadable { digest, why: error.to_string() })
        });
        let config = config.await?;
        platform::check(reference, &config, wanted)
    }

    async fn pull_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        wait: &Wait,
        events: &dyn PullEvents,
    ) -> Result<(Progress, Claim), ImageError> {
        let (digest, mut begun, mut last) = (blob.digest, false, Progress::default());
        let tell = |happens: Happens<'_>| match happens {
            Happens::Begins(here) if !std::mem::replace(&mut begun, true) => {
                events.started(blob, false, here);
            }
            Happens::Begins(_) => {}
            Happens::Comes(progress) => {
                last = progress;
                events.progress(&digest, progress);
            }
            Happens::Waits(limited) => events.waits(&limited),
            Happens::Away(away) => events.away(&digest, away),
            Happens::Stuck(why) => events.stuck(&digest, &why),
        };
        self.bring(reference, digest, wait, tell).await?;
        let claim = self.claim(digest)?;
        let progress = Progress { linked: blob.size, ..last };
        if !begun {
            events.started(blob, true, blob.size);
        }
        events.done(&digest, !begun, progress);
        Ok((progress, claim))
    }

    /// Brings one blob, however often its origin gets out of reach; once nothing of it has come for long enough that is an
    /// error.
    async fn bring(
        &self,
        reference: &Reference,
        digest: Digest,
        wait: &Wait,
        mut tell: impl FnMut(Happens<'_>),
    ) -> Result<StoredBlob, ImageError> {
        let handle = self.blob(reference.host(), reference.repository(), digest).await?;
        let waits = Waits { waiting: &self.0.away, blob: digest };
        let mut patience = wait.patience();
        // What transfers have brought that came to an end.
        let mut sum = Progress::default();
        let mut is_away = false;
        loop {
            // Looked at before it is asked for, so that none of what comes for this pull counts as having been here.
            let running = self.0.parts.transfers.get(digest, handle.size());
            let brought = running.map(|transfer| (transfer.progress(), transfer));
            let transfer = match handle.fetch().await? {
                Fetched::Stored(blob) => return Ok(blob),
                Fetched::Arriving(transfer) => transfer,
            };
            let brought = brought.filter(|(_, running)| Arc::ptr_eq(running, &transfer));
            let before = brought.map(|(progress, _)| progress).unwrap_or_default();
            let since = |progress: Progress| Progress {
                from_peers: sum.from_peers + progress.from_peers - before.from_peers,
                from_origin: sum.from_origin + progress.from_origin - before.from_origin,
                ..progress
            };
            let here = before.linked.max(transfer.before());
            // What is on the disk is not known to link when a transfer begins.
            let least = if is_away { here } else { 0 };
            patience.saw(here, Instant::now());
            tell(Happens::Begins(here));
            let arrived = watch(&transfer, |happens| {
                let happens = match happens {
                    Happens::Comes(progress) => {
                        if progress.linked > here {
                            waits.waiting.forget(&digest);
                        }
                        patience.saw(progress.linked, Instant::now());
                        let progress = since(progress);
                        wait.came(progress);
                        Happens::Comes(Progress { linked: progress.linked.max(least), ..progress })
                    }
                    happens => happens,
                };
                tell(happens);
            });
            let arrived = arrived.await;
            let progress = since(transfer.progress());
            patience.saw(progress.linked, Instant::now());
            wait.came(progress);
            let source = match arrived {
                Ok(blob) => {
                    tell(Happens::Comes(progress));
                    return Ok(blob);
                }
                Err(source) => source,
            };
            let pause = patience.pause(Instant::now(), rand::random()).filter(|_| wait.is_worth_it());
            let (TransferError::NoSource { away: Some(out_of_reach), .. }, Some((pause, left))) =
                (&source, pause)
            else {
                return Err(ImageError::Transfer { what: format!("blob {digest} of {reference}"), source });
            };
            let (origin, why) = out_of_reach.as_ref();
            if !std::mem::replace(&mut is_away, true) {
                info!(
                    image = %reference, blob = %digest.short(), %origin, why,
                    "an origin is out of reach: a pull waits for it"
                );
            }
            let away = Away { origin: origin.to_string(), why: why.clone(), seconds_left: left.as_secs() };
            tell(Happens::Away(&away));
            waits.waiting.set(digest, away);
            sum = progress;
            // A transfer that waits holds up nothing: it has ended, and the next begins with what it has brought.
            drop(transfer);
            tokio::time::sleep(pause).await;
        }
    }
}

/// What happens to a blob that somebody waits for.
enum Happens<'a> {
    /// It is on its way, and so many bytes of it were here before.
    Begins(u64),
    Comes(Progress),
    Waits(Limited),
    Away(&'a Away),
    Stuck(Why),
}

/// Waits for a transfer and tells now and then how it goes.
async fn watch(transfer: &Transfer, mut tell: impl FnMut(Happens<'_>)) -> Result<StoredBlob, TransferError> {
    let outcome = transfer.wait();
    tokio::pin!(outcome);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut linked, mut moved) = (transfer.progress().linked, Instant::now());
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome,
            _ = ticks.tick() => {}
        }
        if let Some(limited) = transfer.waits_for() {
            moved = Instant::now();
            tell(Happens::Waits(limited));
            continue;
        }
        let progress = transfer.progress();
        if progress.linked != linked {
            (linked, moved) = (progress.linked, Instant::now());
        }
        tell(Happens::Comes(progress));
        if moved.elapsed() >= STUCK {
            moved = Instant::now();
            tokio::select! {
                outcome = &mut outcome => return outcome,
                why = transfer.why() => why.into_iter().for_each(|why| tell(Happens::Stuck(why))),
            }
        }
    }
}
