//! Images of the site that are sent on to an origin.

use std::collections::HashSet;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};
use wherry_gateway::origin::{OriginError, Publisher};
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::pull::MAX_WHOLE;
use super::{How, ImageError, Images, PullEvents, WAIT, blocking};
use crate::config::units::show_age;

/// How many bytes are sent in one request: little is lost when a link fails, and the registry is asked seldom.
const PIECE: u64 = 4 << 20;

/// How many images are published at a time; further ones wait.
pub(super) const AT_ONCE: usize = 2;

/// How many blobs of an image are sent at a time.
const AT_A_TIME: usize = 2;

/// The pauses between attempts that came to nothing.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often it is told that the origin is waited for.
const SAID_EVERY: Duration = Duration::from_secs(15);

/// Is told how it goes.
pub trait PublishEvents: Send + Sync {
    /// So many bytes of a blob are there, and it has so many; it had been there before.
    fn blob(&self, digest: &Digest, sent: u64, size: u64, present: bool);
    /// The origin does not take it now, and is tried again.
    fn waits(&self, why: &str);
}

/// What has been published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Bytes of blobs that were sent.
    pub sent: u64,
    /// Bytes of blobs that were there already.
    pub present: u64,
}

impl Images {
    /// Sends an image with all that it leads to, for every platform, to an origin, where it has another name. What is missing
    /// here is brought first. What the origin has already is not sent, and what it has of a blob when the link fails counts.
    ///
    /// The site's limits hold for what is sent. `wait` says how long the origin is tried from the last byte on; if it is
    /// not said [`WAIT`], but not at all before the origin has answered anything.
    ///
    /// # Errors
    /// When it cannot be had, or the origin does not take it.
    pub async fn publish(
        &self,
        from: &Reference,
        to: &Reference,
        wait: Option<Duration>,
        pulling: &dyn PullEvents,
        events: &dyn PublishEvents,
    ) -> Result<Published, ImageError> {
        let _turn = self.0.publishing.acquire().await.map_err(|_| ImageError::Stopped)?;
        let pulled = Box::pin(self.pull_whole(from, &How::default(), pulling)).await?;
        // What the tag meant then, whatever it means by now.
        let from = &from.with_target(TagOrDigest::Digest(pulled.digest));
        let (top, manifests) = self.leads_to(from).await?;
        let publisher = self.0.parts.origins.publisher(to.host().clone(), to.repository().clone());
        let (begun, said) = (AtomicBool::new(false), Mutex::default());
        let sending = Sending { images: self, publisher: &publisher, to, wait, events, begun, said };
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for manifest in &manifests {
            let image = manifest.image().into_iter();
            let named = image.flat_map(|image| std::iter::once(&image.config).chain(&image.layers));
            blobs.extend(named.filter(|named| seen.insert(named.digest)).cloned());
        }
        // Sending may take hours, and nothing of it may make room meanwhile.
        let all =
            manifests.iter().map(|manifest| *manifest.digest()).chain(blobs.iter().map(|blob| blob.digest));
        let _claims: Vec<_> = all.filter_map(|digest| self.0.parts.store.claim(&digest)).collect();
        let work: Vec<_> = blobs.iter().map(|blob| sending.blob(blob).boxed()).collect();
        let sent: Vec<(u64, u64)> = stream::iter(work).buffered(AT_A_TIME).try_collect().await?;
        // What an index leads to has to be there before it.
        for manifest in manifests.iter().rev().filter(|manifest| manifest.digest() != top.digest()) {
            sending.manifest(&TagOrDigest::Digest(*manifest.digest()), manifest).await?;
        }
        sending.manifest(to.target(), &top).await?;
        let (sent, present) = sent.iter().fold((0, 0), |(sent, present), it| (sent + it.0, present + it.1));
        info!(image = %from, %to, digest = %top.digest(), sent, present, "an image was published");
        Ok(Published { digest: *top.digest(), sent, present })
    }

    /// The manifest of a reference, and with it all that it leads to: indexes before what they name.
    async fn leads_to(&self, reference: &Reference) -> Result<(Manifest, Vec<Manifest>), ImageError> {
        let top = self.manifest(reference).await?.manifest;
        let mut seen = HashSet::from([*top.digest()]);
        let mut all = vec![top.clone()];
        let mut next = 0;
        while let Some(manifest) = all.get(next).cloned() {
            next += 1;
            let ManifestContent::Index(index) = manifest.content() else { continue };
            for entry in index.manifests.iter().filter(|entry| seen.insert(entry.digest)) {
                if all.len() >= MAX_WHOLE {
                    return Err(ImageError::TooManyParts { what: reference.to_string(), most: MAX_WHOLE });
                }
                let part = reference.with_target(TagOrDigest::Digest(entry.digest));
                all.push(self.manifest(&part).await?.manifest);
            }
        }
        Ok((top, all))
    }
}

struct Sending<'a> {
    images: &'a Images,
    publisher: &'a Publisher,
    to: &'a Reference,
    wait: Option<Duration>,
    events: &'a dyn PublishEvents,
    // Whether the origin has answered anything.
    begun: AtomicBool,
    // When it was last told that it is waited for.
    said: Mutex<Option<Instant>>,
}

impl Sending<'_> {
    fn failed(&self, what: impl std::fmt::Display, origin: OriginError) -> ImageError {
        ImageError::NotPublished { what: what.to_string(), to: self.to.to_string(), origin: Box::new(origin) }
    }

    /// Whether an attempt that failed may be followed by another one, after a pause.
    async fn again(&self, error: &OriginError, moved: Instant, pause: &mut Duration) -> bool {
        let wait = match self.wait {
            Some(wait) => wait,
            None if self.begun.load(Ordering::Relaxed) => WAIT,
            None => Duration::ZERO,
        };
        if !error.is_unreachable() || moved.elapsed() >= wait {
            return false;
        }
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_none_or(|when| when.elapsed() >= SAID_EVERY) {
                *said = Some(Instant::now());
                let left = show_age(wait.saturating_sub(moved.elapsed()));
                self.events.waits(&format!("{error}; it is tried for {left} more"));
            }
        }
        let asked = match error {
            OriginError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        sleep(asked.unwrap_or(*pause).min(LONGEST_PAUSE)).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        true
    }

    async fn manifest(&self, target: &TagOrDigest, manifest: &Manifest) -> Result<(), ImageError> {
        let (moved, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            self.turn(manifest.size()).await;
            match self.publisher.manifest(target, manifest).await {
                Ok(()) => return Ok(()),
                Err(error) if self.again(&error, moved, &mut pause).await => {}
                Err(error) => return Err(self.failed(format_args!("manifest {}", manifest.digest()), error)),
            }
        }
    }

    /// Sends a blob, unless it is there: how many bytes were sent, and how many were there.
    async fn blob(&self, named: &Descriptor) -> Result<(u64, u64), ImageError> {
        let (digest, size) = (named.digest, named.size);
        let failed = |error| self.failed(format_args!("blob {digest}"), error);
        let (mut moved, mut pause) = (Instant::now(), FIRST_PAUSE);
        let (mut publishing, mut highest) = (None, 0);
        loop {
            let step = self.advance(named, &mut publishing).await?;
            if step.is_ok() {
                self.begun.store(true, Ordering::Relaxed);
            }
            let error = match step {
                Ok(Step::Present) => {
                    self.events.blob(&digest, size, size, true);
                    return Ok((0, size));
                }
                Ok(Step::Sent(at)) => {
                    // That it has begun anew is no progress.
                    if at > highest {
                        (moved, pause, highest) = (Instant::now(), FIRST_PAUSE, at);
                    }
                    self.events.blob(&digest, at, size, false);
                    continue;
                }
                Ok(Step::Done) => return Ok((size, 0)),
                Err(error) => error,
            };
            // An upload that has expired there, as while a limit said no here, is begun anew.
            let error = match error {
                OriginError::NotFound { host, what } if publishing.is_some() => {
                    publishing = None;
                    OriginError::Unreachable {
                        host,
                        what,
                        why: "it has forgotten what had arrived".to_owned(),
                    }
                }
                error => error,
            };
            if !self.again(&error, moved, &mut pause).await {
                return Err(failed(error));
            }
            let Some(begun) = &mut publishing else { continue };
            match self.publisher.reached(begun, &digest).await {
                Ok(()) => debug!(blob = %digest.short(), at = begun.at(), "publishing goes on"),
                Err(error) if error.is_unreachable() => {
                    debug!(%error, "how much has arrived is not known yet")
                }
                // It has forgotten it, or wants to hear no more of it: what has all arrived is there.
                Err(_) => publishing = None,
            }
        }
    }

    async fn advance(
        &self,
        named: &Descriptor,
        publishing: &mut Option<wherry_gateway::origin::Publishing>,
    ) -> Result<Result<Step, OriginError>, ImageError> {
        let Descriptor { digest, size, .. } = named;
        let Some(begun) = publishing else {
            match self.publisher.has_blob(digest).await {
                Ok(true) => return Ok(Ok(Step::Present)),
                Ok(false) => {}
                Err(error) => return Ok(Err(error)),
            }
            return Ok(self.publisher.begin(digest).await.map(|begun| {
                *publishing = Some(begun);
                Step::Sent(0)
            }));
        };
        if begun.at() < *size {
            let length = PIECE.max(begun.least()).min(size - begun.at());
            let bytes = self.read(digest, begun.at(), length).await?;
            self.turn(length).await;
            return Ok(self.publisher.send(begun, digest, bytes).await.map(|()| Step::Sent(begun.at())));
        }
        Ok(self.publisher.finish(begun, digest).await.map(|()| Step::Done))
    }

    /// Waits until bytes may leave the site.
    async fn turn(&self, bytes: u64) {
        let limits = self.images.0.parts.transfers.limits();
        let mut giving = limits.giving();
        // The sender lives as long as the limits do.
        while !limits.gives() && giving.changed().await.is_ok() {}
        sleep(limits.until_giving()).await;
        limits.gave(bytes);
    }

    async fn read(&self, digest: &Digest, at: u64, length: u64) -> Result<Bytes, ImageError> {
        let missing =
            || ImageError::Unreadable { digest: *digest, why: "it is not here any more".to_owned() };
        let blob = self.images.0.parts.store.get(digest).ok_or_else(missing)?;
        let (digest, blob) = (*digest, Arc::new(blob));
        blocking(move || {
            let read = || {
                use std::io::{Seek as _, SeekFrom};
                let mut file = blob.open()?;
                file.seek(SeekFrom::Start(at))?;
                let mut bytes = Vec::with_capacity(length as usize);
                file.take(length).read_to_end(&mut bytes)?;
                Ok::<_, std::io::Error>(bytes)
            };
            let bytes = read().map_err(|error| ImageError::Unreadable { digest, why: error.to_string() })?;
            if (bytes.len() as u64) < length {
                return Err(ImageError::Unreadable { digest, why: "it is shorter than recorded".to_owned() });
            }
            Ok(bytes.into())
        })
        .await
    }
}

enum Step {
    /// It was there before.
    Present,
    /// So much of it is there.
    Sent(u64),
    /// All of it is there.
    Done,
}
