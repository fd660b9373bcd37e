//! Blobs on their way from clients.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;
use wherry_gateway::server::{Refusal, RefusalKind, Sent};
use wherry_proto::{Algorithm, Digest};

use super::super::ImageError;
use crate::store::{Claim, Store, StoreError, Upload};
use crate::transfer::Route;

/// How many uploads there are at most, at work and left alone.
const MAX_UPLOADS: usize = 128;

/// How much is gathered before it is written, in bytes. Each upload that goes on has one such piece in memory while another is
/// written.
const PIECE: usize = 128 << 10;

/// How long an upload is kept that nobody goes on with, and a blob that no manifest names yet.
const LEFT_ALONE: Duration = Duration::from_secs(60 * 60);

/// How often it is looked for those.
const LOOK: Duration = Duration::from_secs(60);

/// How many blobs are kept that no manifest names yet; of further ones those go first that came first.
const MAX_LOOSE: usize = 4096;

/// How long a request waits for another one on the same upload to end: that of a client that has left ends by itself.
const TURN: Duration = Duration::from_secs(5);

/// All uploads of a node, and the blobs that came of them and that no manifest names yet.
#[derive(Clone)]
pub(in super::super) struct Uploads(Arc<Inner>);

struct Inner {
    open: Mutex<HashMap<String, Arc<Session>>>,
    loose: Mutex<HashMap<(Route, Digest), (Claim, Instant)>>,
    // Somebody looks for what was left alone.
    is_watched: Mutex<bool>,
}

/// One upload.
struct Session {
    route: Route,
    // What the requests have brought and is not written yet: it stays where one of them breaks off.
    turn: tokio::sync::Mutex<Unwritten>,
    // None once it has come to its end, or an error has left it in a state that nobody knows.
    upload: Mutex<Option<Upload>>,
    // How many bytes have come, written or not.
    came: AtomicU64,
    touched: Mutex<Instant>,
}

/// Bytes of an upload on their way to the disk, all of which count as come: if they cannot be written the upload is over.
#[derive(Default)]
struct Unwritten {
    gathered: Vec<u8>,
    writing: Option<JoinHandle<Result<(), Refusal>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(id: &str) -> Refusal {
    let message = format!("there is no upload {id} here, or not any more: begin it anew with POST");
    Refusal::new(RefusalKind::BlobUploadUnknown, message)
}

fn stopped<E>(_: E) -> Refusal {
    ImageError::Stopped.into_refusal(true)
}

fn failed(error: StoreError) -> Refusal {
    match error {
        StoreError::WrongDigest { expected, found } => Refusal::new(
            RefusalKind::DigestInvalid,
            format!(
                "what was sent has the digest {found}, not {expected}: nothing was stored; upload it anew"
            ),
        ),
        StoreError::TooLarge(too_large) => Refusal::new(RefusalKind::TooLong, too_large.to_string()),
        error => ImageError::from(error).into_refusal(true),
    }
}

impl Session {
    /// Writes a piece where the upload ends. Blocks. After an error it is no longer there.
    fn write(&self, piece: &[u8]) -> Result<(), Refusal> {
        let mut upload = lock(&self.upload);
        let written = match upload.as_mut() {
            Some(open) => open.write(piece),
            None => {
                return Err(Refusal::new(
                    RefusalKind::BlobUploadUnknown,
                    "the upload was given up meanwhile: begin it anew with POST",
                ));
            }
        };
        match written {
            Ok(()) => {
                *lock(&self.touched) = Instant::now();
                Ok(())
            }
            Err(error) => {
                *upload = None;
                Err(failed(error))
            }
        }
    }
}

impl Uploads {
    pub(in super::super) fn new() -> Self {
        Self(Arc::new(Inner {
            open: Mutex::default(),
            loose: Mutex::default(),
            is_watched: Mutex::new(false),
        }))
    }

    fn find(&self, route: &Route, id: &str) -> Result<Arc<Session>, Refusal> {
        // One of another repository is none.
        let session = lock(&self.0.open).get(id).filter(|session| session.route == *route).cloned();
        session.ok_or_else(|| unknown(id))
    }

    pub(super) async fn begin(
        &self,
        store: &Store,
        route: Route,
        algorithm: Algorithm,
    ) -> Result<String, Refusal> {
        let mut raw = [0; 16];
        getrandom::fill(&mut raw).map_err(|error| {
            Refusal::new(RefusalKind::Internal, format!("the system gives no random numbers: {error}"))
        })?;
        let id = raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let full = || {
            let message = format!("{MAX_UPLOADS} uploads are on their way here already: try again later");
            Refusal::new(RefusalKind::TooManyRequests, message)
        };
        if lock(&self.0.open).len() >= MAX_UPLOADS {
            return Err(full());
        }
        let store = store.clone();
        let upload = tokio::task::spawn_blocking(move || store.upload(algorithm)).await;
        let upload = upload.map_err(stopped)?.map_err(failed)?;
        let session = Session {
            route,
            turn: tokio::sync::Mutex::default(),
            upload: Mutex::new(Some(upload)),
            came: AtomicU64::new(0),
            touched: Mutex::new(Instant::now()),
        };
        {
            let mut open = lock(&self.0.open);
            if open.len() >= MAX_UPLOADS {
                return Err(full());
            }
            open.insert(id.clone(), Arc::new(session));
        }
        self.watch();
        Ok(id)
    }

    /// Adds bytes to an upload, as far as they come: how many it has now.
    pub(super) async fn append(&self, route: &Route, sent: Sent) -> Result<u64, Refusal> {
        let Sent { id, range, mut body } = sent;
        let session = self.find(route, &id)?;
        let turn = timeout(TURN, session.turn.lock()).await;
        let mut unwritten = turn.map_err(|_| {
            let message = "another request adds to this upload: let it end first";
            Refusal::new(RefusalKind::BlobUploadInvalid, message)
        })?;
        self.flush(&id, &session, &mut unwritten).await?;
        let at = session.came.load(Ordering::Acquire);
        if let Some((first, _)) = range
            && first != at
        {
            let message = format!("the upload has {at} bytes, and these are to be put at {first}");
            return Err(Refusal::new(RefusalKind::RangeInvalid, message));
        }
        let mut came = 0_u64;
        loop {
            match body.next().await {
                Some(Ok(piece)) => {
                    came += piece.len() as u64;
                    // Copied, since a short piece may keep a long buffer of its connection.
                    unwritten.gathered.extend_from_slice(&piece);
                    session.came.store(at + came, Ordering::Release);
                    if unwritten.gathered.len() >= PIECE {
                        self.write(&id, &session, &mut unwritten).await?;
                    }
                }
                None => break,
                Some(Err(why)) => {
                    self.flush(&id, &session, &mut unwritten).await?;
                    debug!(upload = id, %why, "an upload broke off; it can be gone on with");
                    return Err(Refusal::new(RefusalKind::SizeInvalid, why.to_string()));
                }
            }
        }
        self.flush(&id, &session, &mut unwritten).await?;
        match range {
            Some((_, announced)) if announced != came => {
                let message = format!("{announced} bytes were announced, and {came} came");
                Err(Refusal::new(RefusalKind::SizeInvalid, message))
            }
            _ => Ok(at + came),
        }
    }

    /// Begins to write what was gathered, once the piece before it is written.
    async fn write(
        &self,
        id: &str,
        session: &Arc<Session>,
        unwritten: &mut Unwritten,
    ) -> Result<(), Refusal> {
        self.written(id, &mut unwritten.writing).await?;
        let (session, piece) = (session.clone(), std::mem::take(&mut unwritten.gathered));
        unwritten.writing = Some(tokio::task::spawn_blocking(move || session.write(&piece)));
        Ok(())
    }

    /// Waits until all that has come is written.
    async fn flush(
        &self,
        id: &str,
        session: &Arc<Session>,
        unwritten: &mut Unwritten,
    ) -> Result<(), Refusal> {
        if !unwritten.gathered.is_empty() {
            self.write(id, session, unwritten).await?;
        }
        self.written(id, &mut unwritten.writing).await
    }

    /// Waits until a piece is written; if it could not be, the upload is over.
    async fn written(
        &self,
        id: &str,
        writing: &mut Option<JoinHandle<Result<(), Refusal>>>,
    ) -> Result<(), Refusal> {
        let Some(handle) = writing else { return Ok(()) };
        let written = handle.await;
        *writing = None;
        written.map_err(stopped)?.inspect_err(|_| _ = lock(&self.0.open).remove(id))
    }

    /// Makes a blob of an upload, which is over then, whatever comes of it.
    pub(super) async fn finish(&self, route: &Route, id: &str, digest: Digest) -> Result<Claim, Refusal> {
        let session = self.find(route, id)?;
        lock(&self.0.open).remove(id);
        let finishing = tokio::task::spawn_blocking(move || {
            let upload = lock(&session.upload).take();
            upload.map(|upload| upload.finish(&digest))
        });
        finishing.await.map_err(stopped)?.ok_or_else(|| unknown(id))?.map_err(failed)
    }

    pub(super) fn status(&self, route: &Route, id: &str) -> Result<u64, Refusal> {
        Ok(self.find(route, id)?.came.load(Ordering::Acquire))
    }

    pub(super) fn cancel(&self, route: &Route, id: &str) -> Result<(), Refusal> {
        let session = self.find(route, id)?;
        lock(&self.0.open).remove(id);
        // Removes a file, which is quick; a request that writes to it has it until then.
        drop(session);
        Ok(())
    }

    /// Keeps a blob until a manifest names it, or for [`LEFT_ALONE`].
    pub(super) fn hold(&self, route: &Route, blob: Claim) {
        {
            let mut loose = lock(&self.0.loose);
            if loose.len() >= MAX_LOOSE
                && let Some(oldest) =
                    loose.iter().min_by_key(|(_, (_, since))| *since).map(|(key, _)| key.clone())
            {
                loose.remove(&oldest);
            }
            loose.insert((route.clone(), blob.digest()), (blob, Instant::now()));
        }
        self.watch();
    }

    /// They are kept by other means from now on, or not at all.
    pub(super) fn release<'a>(&self, route: &Route, blobs: impl IntoIterator<Item = &'a Digest>) {
        let mut loose = lock(&self.0.loose);
        for digest in blobs {
            loose.remove(&(route.clone(), *digest));
        }
    }

    /// Has somebody look for what was left alone while there is anything.
    fn watch(&self) {
        if std::mem::replace(&mut *lock(&self.0.is_watched), true) {
            return;
        }
        let uploads: Weak<Inner> = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                sleep(LOOK).await;
                let Some(uploads) = uploads.upgrade() else { return };
                let swept = tokio::task::spawn_blocking(move || uploads.sweep()).await;
                if !matches!(swept, Ok(true)) {
                    return;
                }
            }
        });
    }
}

impl Inner {
    /// Gives up what was left alone; whether anything stays.
    fn sweep(&self) -> bool {
        let left: Vec<_> = {
            let mut open = lock(&self.open);
            let old = |session: &Arc<Session>| lock(&session.touched).elapsed() >= LEFT_ALONE;
            open.extract_if(|_, session| old(session)).collect()
        };
        for (id, session) in left {
            debug!(upload = id, repository = %session.route, "an upload that nobody went on with is given up");
        }
        lock(&self.loose).retain(|_, (_, since)| since.elapsed() < LEFT_ALONE);
        let mut is_watched = lock(&self.is_watched);
        *is_watched = !lock(&self.open).is_empty() || !lock(&self.loose).is_empty();
        *is_watched
    }
}
