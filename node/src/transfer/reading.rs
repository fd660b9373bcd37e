//! Reading an origin in order: connections are taken up again where they broke, chunks are cut and hashed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use wherry_proto::{ChunkIndex, ChunkMap, Digest, End, State};

use super::Parts;
use super::run::{Happening, Held, OriginStep, hash};
use super::sources::{OriginBlob, OriginFailure, Route};

/// How often a reading is taken up again within one chunk before the origin counts as out of reach.
const RESUMES: u32 = 5;

/// How long one chunk may take, however its bytes trickle: 512 KiB at 7 kbit/s.
const CHUNK_TIME: Duration = Duration::from_secs(600);

/// How long before the first resumption; it doubles with each.
const RESUME_PAUSE: Duration = Duration::from_millis(250);

/// One reading of an origin.
pub(super) struct Reading {
    pub(super) parts: Arc<Parts>,
    pub(super) digest: Digest,
    pub(super) map: ChunkMap,
    pub(super) route: Route,
    pub(super) number: u64,
    pub(super) events: mpsc::Sender<Happening>,
}

/// Reads the chunks `from` to `to`, the first of which starts in `state`.
pub(super) async fn read(reading: Reading, from: ChunkIndex, state: State, to: ChunkIndex) {
    let why = reading.run(from, state, to).await.err();
    let _ = reading.events.send(Happening::Origin(reading.number, OriginStep::Ended(why))).await;
}

/// What an origin gave is not what it should be: asking again is of no use.
const fn wrong(message: String) -> OriginFailure {
    OriginFailure { message, retry: false, away: false }
}

impl Reading {
    async fn run(&self, from: ChunkIndex, state: State, to: ChunkIndex) -> Result<(), OriginFailure> {
        let map = self.map;
        let end = map.offset(to) + u64::from(map.len(to));
        let (mut index, mut state) = (from, state);
        let mut source = Cursor {
            reading: self,
            at: map.offset(from),
            end,
            open: None,
            spare: Bytes::new(),
            failures: 0,
            patience: CHUNK_TIME,
        };
        // Others of this node may have used up the rate.
        self.parts.limits.taken(0).await;
        loop {
            let len = map.len(index);
            let Some(share) = self.parts.share(len).await else { return Ok(()) };
            (source.failures, source.patience) = (0, CHUNK_TIME);
            let bytes = source.take(len as usize).await?;
            let (links, bytes) = hash(map, index, vec![state], bytes).await.map_err(wrong)?;
            let Some(link) = links.first().copied() else { return Ok(()) };
            let step = OriginStep::Chunk(index, link, Held { bytes, _share: share });
            if self.events.send(Happening::Origin(self.number, step)).await.is_err() {
                return Ok(());
            }
            match (link.to, map.next(index)) {
                (End::State(next_state), Some(next)) if index < to => (index, state) = (next, next_state),
                _ => return source.expect_end().await,
            }
        }
    }

    async fn connect(&self, at: u64) -> Result<OriginBlob, OriginFailure> {
        let (route, size) = (&self.route, self.map.size());
        let open = self.parts.origins.open(route, self.digest, at).await?;
        match open.total {
            Some(total) if total != size => {
                let message =
                    format!("{route} has {total} bytes under {}, but {size} were announced", self.digest);
                self.parts.origins.doubt(route, &self.digest);
                Err(wrong(message))
            }
            _ => Ok(open),
        }
    }
}

/// A place in the blob, and the connection that bytes come from.
struct Cursor<'a> {
    reading: &'a Reading,
    at: u64,
    end: u64,
    open: Option<OriginBlob>,
    // What came in one piece with the bytes before it.
    spare: Bytes,
    // How often it was taken up again in this chunk.
    failures: u32,
    // How much of CHUNK_TIME is left: what limits have this node wait does not count.
    patience: Duration,
}

impl Cursor<'_> {
    /// The next `len` bytes, whatever it takes in resumptions.
    async fn take(&mut self, len: usize) -> Result<Bytes, OriginFailure> {
        if self.spare.len() >= len {
            self.at += len as u64;
            return Ok(self.spare.split_to(len));
        }
        let mut out = BytesMut::with_capacity(len);
        let spare = std::mem::take(&mut self.spare);
        out.extend_from_slice(&spare);
        self.at += spare.len() as u64;
        while out.len() < len {
            let asked = Instant::now();
            let mut piece =
                timeout_at(asked + self.patience, self.next_piece()).await.map_err(|_| OriginFailure {
                    message: format!("it sent less than {len} bytes in {} s", CHUNK_TIME.as_secs()),
                    retry: false,
                    away: true,
                })??;
            self.patience = self.patience.saturating_sub(asked.elapsed());
            self.reading.parts.limits.taken(piece.len() as u64).await;
            let fits = piece.len().min(len - out.len());
            out.extend_from_slice(&piece.split_to(fits));
            self.at += fits as u64;
            self.spare = piece;
        }
        Ok(out.freeze())
    }

    /// A piece of at least one byte from where the cursor stands.
    async fn next_piece(&mut self) -> Result<Bytes, OriginFailure> {
        loop {
            let failure = match &mut self.open {
                Some(open) => match open.bytes.next().await {
                    Some(Ok(piece)) if piece.is_empty() => continue,
                    Some(Ok(piece)) => return Ok(piece),
                    Some(Err(failure)) => failure,
                    None => OriginFailure {
                        message: format!("it ended after {} bytes instead of {}", self.at, self.end),
                        retry: true,
                        away: false,
                    },
                },
                None => match self.reading.connect(self.at).await {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(failure) => failure,
                },
            };
            self.open = None;
            self.failures += 1;
            if !failure.retry || self.failures > RESUMES {
                return Err(failure);
            }
            debug!(blob = %self.reading.digest.short(), at = self.at, %failure, "taking up the reading again");
            tokio::time::sleep(RESUME_PAUSE * 2_u32.pow(self.failures - 1)).await;
        }
    }

    /// More bytes than the blob has are an error, unless the reading ends before the blob does.
    async fn expect_end(&mut self) -> Result<(), OriginFailure> {
        if self.end < self.reading.map.size() {
            return Ok(());
        }
        let more = match &mut self.open {
            _ if !self.spare.is_empty() => true,
            Some(open) => matches!(open.bytes.next().await, Some(Ok(piece)) if !piece.is_empty()),
            None => false,
        };
        match more {
            true => Err(wrong(format!("it sends more than the {} bytes of the blob", self.end))),
            false => Ok(()),
        }
    }
}
