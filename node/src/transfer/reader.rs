//! Reading a blob while it arrives, in order, linked chunk by linked chunk.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use tokio::sync::watch;
use wherry_gateway::server::Break;
use wherry_proto::{ChunkIndex, End, Link};

use super::planner::Event;
use super::run::Happening;
use super::{InUse, Transfer, TransferError};

/// How long a reader waits for the next chunk before its client is sent away to come back later. Registry clients
/// lose patience with a silent body after one to five minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest piece that a reader gets at once, in bytes: what each client that reads slowly holds in memory.
const PIECE: u64 = 64 << 10;

struct Reader {
    transfer: Arc<Transfer>,
    _in_use: InUse,
    id: u64,
    at: u64,
    end: u64,
    // What the last chunk led to: the next one must start there.
    reached: Option<End>,
    voids: u32,
    changes: watch::Receiver<u64>,
    told: Option<ChunkIndex>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // If the queue is full the planner keeps a reader that is gone, which costs it some order and no more.
        let _ = self.transfer.events.try_send(Happening::Event(Event::ReaderGone(self.id)));
    }
}

/// The bytes of a range, as they arrive.
pub(super) fn read(transfer: Arc<Transfer>, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Break>> {
    let reader = Reader {
        _in_use: transfer.begin_to_read(),
        id: transfer.next_reader(),
        at: range.start,
        end: range.end,
        reached: None,
        voids: transfer.view.voids(),
        changes: transfer.view.watch(),
        told: None,
        transfer,
    };
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        if reader.at >= reader.end {
            return None;
        }
        match reader.next().await {
            Ok(bytes) => Some((Ok(bytes), Some(reader))),
            Err(why) => Some((Err(why), None)),
        }
    })
}

impl Reader {
    async fn next(&mut self) -> Result<Bytes, Break> {
        let map = self.transfer.map;
        let Some(index) = map.at(self.at) else { return Err(Break::Stalled) };
        self.tell(index);
        let waited = tokio::time::timeout(PATIENCE, self.wait(index)).await;
        match waited {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(why),
            Err(_) => return Err(Break::Stalled),
        }
        let chunk_end = map.offset(index) + u64::from(map.len(index));
        let (from, to) = (self.at, chunk_end.min(self.end).min(self.at + PIECE));
        let transfer = self.transfer.clone();
        let read = move || {
            let mut bytes = vec![0; (to - from) as usize];
            // The same link before and after: nobody has replaced the chunk meanwhile.
            let before = transfer.partial.link(index);
            transfer.partial.read_at(from, &mut bytes)?;
            let after = transfer.partial.link(index);
            Ok::<_, std::io::Error>((before.filter(|link| Some(*link) == after), bytes))
        };
        let (link, bytes) = match tokio::task::spawn_blocking(read).await {
            Ok(Ok((Some(link), bytes))) => (link, bytes),
            _ => return Err(Break::Stalled),
        };
        if !self.goes_on(link) || self.transfer.view.voids() != self.voids {
            return Err(Break::Poisoned);
        }
        self.reached = Some(link.to);
        self.at = to;
        Ok(bytes.into())
    }

    /// Whether a chunk continues what was given to the client before.
    fn goes_on(&self, link: Link) -> bool {
        match self.reached {
            // Another part of the same chunk, or the chunk behind it.
            Some(reached) => reached == End::State(link.from) || reached == link.to,
            None => true,
        }
    }

    /// Says what is needed next. If the queue is full the chunk comes in its turn, and the next one is told of.
    fn tell(&mut self, index: ChunkIndex) {
        if self.told != Some(index) && !self.transfer.view.has(index) {
            self.told = Some(index);
            let _ = self.transfer.events.try_send(Happening::Event(Event::Reading(self.id, index)));
        }
    }

    async fn wait(&mut self, index: ChunkIndex) -> Result<(), Break> {
        loop {
            self.changes.borrow_and_update();
            let view = &self.transfer.view;
            if view.voids() != self.voids && self.reached.is_some() {
                return Err(Break::Poisoned);
            }
            self.voids = view.voids();
            if view.has(index) {
                return Ok(());
            }
            match view.outcome() {
                Some(Ok(_)) => return Ok(()),
                Some(Err(TransferError::OriginWrong { .. })) if self.reached.is_some() => {
                    return Err(Break::Poisoned);
                }
                Some(Err(_)) => return Err(Break::Stalled),
                None => {}
            }
            // It may hold for days: whoever comes back is told so.
            if self.transfer.held_up().is_some() {
                return Err(Break::Stalled);
            }
            if self.changes.changed().await.is_err() {
                return Err(Break::Stalled);
            }
        }
    }
}
