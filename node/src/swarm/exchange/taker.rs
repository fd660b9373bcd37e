//! The reading half of the taking side.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf};
use tokio::time::{Instant, sleep_until, timeout};
use wherry_proto::{MAX_CHAIN_LEN, MAX_CHUNK_LEN, PREFIX_LEN, Response, Role, Update, decode_payload};

use super::ExchangeError;
use super::buffers::{Buffer, Buffers};
use super::client::{Part, Shared, Taken, Waiting};
use super::downlink::Silence;
use super::inflow::Inflow;
use crate::swarm::codec::{WireError, read_after_prefix};

/// How often it is looked whether a peer whose patience is over is still excused.
const LOOK_TIME: Duration = Duration::from_millis(500);

/// How many bytes must come after the first to tell how fast they do: fewer may have come in the same packet.
const MEASURED: usize = 8 << 10;

pub(super) struct Taker<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) reader: ReadHalf<S>,
    pub(super) buffers: Buffers,
    pub(super) inflow: Inflow,
}

impl<S: AsyncRead + AsyncWrite> Taker<S> {
    /// Takes responses until the connection ends.
    pub(super) async fn run(mut self) -> ExchangeError {
        loop {
            if let Err(why) = self.response().await {
                return why;
            }
            self.shared.pending().quiet_since = Instant::now();
        }
    }

    fn io(&self, error: &std::io::Error) -> ExchangeError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.shared.gone("the peer closed it"),
            _ => self.shared.gone(&error.to_string()),
        }
    }

    /// Waits for the first bytes of a response: in peace while none is owed, with little patience otherwise.
    async fn prefix(&mut self) -> Result<[u8; PREFIX_LEN], ExchangeError> {
        let mut prefix = [0; PREFIX_LEN];
        let mut filled = 0;
        let patience = self.shared.patience;
        // Since when something is owed, and whether it is this node's link that nothing comes.
        let mut owed: Option<(Instant, Silence)> = None;
        let mut excused = None;
        while filled < PREFIX_LEN {
            let deadline = self.shared.pending().deadline(&patience);
            match deadline {
                Some((until, true)) if owed.as_ref().is_none_or(|(before, _)| *before != until) => {
                    (owed, excused) = (Some((until, self.shared.downlink.wait())), None);
                }
                Some((_, true)) => {}
                _ => (owed, excused) = (None, None),
            }
            let over = async {
                match deadline {
                    Some((until, _)) => sleep_until(excused.unwrap_or(until)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = self.reader.read(&mut prefix[filled..]) => match read {
                    Ok(0) => return Err(self.shared.gone("the peer closed it")),
                    Ok(some) => filled += some,
                    Err(error) => return Err(self.io(&error)),
                },
                () = self.shared.asked.notified() => {}
                () = over => {
                    // Requests may have come and gone meanwhile: what counts is what is owed now.
                    match self.shared.pending().deadline(&patience) {
                        Some((until, is_owed)) if until <= Instant::now() => {
                            if !is_owed {
                                return Err(self.shared.gone("it was idle"));
                            }
                            let is_excused = |(of, silence): &(Instant, Silence)| {
                                *of == until && silence.is_excused()
                            };
                            if !owed.as_ref().is_some_and(is_excused) {
                                return Err(ExchangeError::Silent(self.shared.node));
                            }
                            excused = Some(Instant::now() + LOOK_TIME);
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(prefix)
    }

    async fn response(&mut self) -> Result<(), ExchangeError> {
        let prefix = self.prefix().await?;
        let reading = read_after_prefix::<Response>(&mut self.reader, prefix);
        let payload = match patiently(&self.shared, reading).await? {
            Ok(payload) => payload,
            Err(WireError::Io(error)) => return Err(self.io(&error)),
            Err(error) => return Err(self.shared.protocol(&error.to_string())),
        };
        let node = self.shared.node;
        let response = decode_payload(&payload).map_err(|error| self.shared.protocol(&error.to_string()))?;
        match response {
            Response::Chunk { id, len } => self.chunk(id, len).await,
            Response::Chain { id, claim, len } => {
                let fits = |part: &Part| match part {
                    Part::Chain { blob, len: expected, known, spares } => {
                        let known = *known == Some(claim.states);
                        (len == *expected || (len == 0 && (known || *spares)))
                            && claim.signer == node
                            && (claim.digest, claim.size) == (blob.digest, blob.size)
                    }
                    _ => false,
                };
                let waiting = self.states_for(id, len, fits)?;
                self.states(waiting, len, |states| Taken::Chain(Box::new(claim), states)).await
            }
            Response::States { id, claim, certificate, len } => {
                let fits = |part: &Part| match part {
                    Part::States { blob, attempt, from } => {
                        claim.stream() == *attempt
                            && (claim.digest, claim.size) == (blob.digest, blob.size)
                            && claim.states_len(*from) == Ok(len as usize)
                    }
                    _ => false,
                };
                let waiting = self.states_for(id, len, fits)?;
                let taken = |states| Taken::States(Box::new((claim, certificate)), states);
                self.states(waiting, len, taken).await
            }
            Response::ClaimedStates { id, len } => {
                let fits = |part: &Part| matches!(part, Part::Claimed { len: expected } if len == *expected);
                let waiting = self.states_for(id, len, fits)?;
                self.states(waiting, len, Taken::Claimed).await
            }
            Response::Update { id, update } => self.update(id, &update),
            Response::Busy { id } => {
                self.shared.busy.send_replace(true);
                self.refused(id, ExchangeError::Busy(node))
            }
            Response::NotHeld { id } => self.refused(id, ExchangeError::NotHeld(node)),
            Response::NotHere { id } => self.refused(id, ExchangeError::NotHere(node)),
            Response::Elsewhere { id } => self.refused(id, ExchangeError::Elsewhere(node)),
            Response::Refused { id, reason } => self.refused(id, ExchangeError::Refused { node, reason }),
            Response::Free => {
                self.shared.busy.send_replace(false);
                Ok(())
            }
        }
    }

    /// Who waits for this response; `None` if the request was cancelled.
    fn claim(&self, id: u32) -> Result<Option<Waiting>, ExchangeError> {
        let mut pending = self.shared.pending();
        if let Some(waiting) = pending.waiting.remove(&id) {
            return Ok(Some(waiting));
        }
        if pending.cancelled == 0 {
            drop(pending);
            return Err(self.shared.protocol("a response came that nobody asked for"));
        }
        pending.cancelled -= 1;
        Ok(None)
    }

    fn refused(&self, id: u32, why: ExchangeError) -> Result<(), ExchangeError> {
        if matches!(why, ExchangeError::Refused { .. }) && self.shared.refused_to_tell(id) {
            tracing::debug!(%why, "a blob cannot be followed");
            return Ok(());
        }
        if let Some(waiting) = self.claim(id)? {
            let _ = waiting.answer.send(Err(why));
        }
        Ok(())
    }

    fn update(&self, id: u32, update: &Update) -> Result<(), ExchangeError> {
        let inbox = {
            let mut pending = self.shared.pending();
            if update.role == Role::Gone {
                pending.followed.remove(&id)
            } else {
                pending.followed.get(&id).cloned()
            }
        };
        match inbox {
            Some(inbox) => inbox.put(update).map_err(|reason| self.shared.protocol(reason)),
            None => self.shared.told_in_vain(id),
        }
    }

    async fn chunk(&mut self, id: u32, len: u32) -> Result<(), ExchangeError> {
        let waiting = self.claim(id)?;
        let bound = match &waiting {
            Some(Waiting { part: Part::Chunk { len: expected, .. }, .. }) => len == *expected,
            Some(_) => false,
            None => len <= MAX_CHUNK_LEN,
        };
        if !bound {
            return Err(self.wrong(waiting, "a chunk of another length or for another request came"));
        }
        let Some(Waiting { part: Part::Chunk { mut progress, .. }, answer }) = waiting else {
            return self.body(len, &mut |_| {}).await.map(drop);
        };
        match self.body(len, &mut *progress).await {
            Ok(buffer) => {
                let _ = answer.send(Ok(Taken::Chunk(Bytes::from_owner(buffer))));
                Ok(())
            }
            Err(why) => {
                let _ = answer.send(Err(why.clone()));
                Err(why)
            }
        }
    }

    /// Who waits for a claim and the states behind it, if they fit what was asked for.
    fn states_for(
        &self,
        id: u32,
        len: u32,
        fits: impl FnOnce(&Part) -> bool,
    ) -> Result<Option<Waiting>, ExchangeError> {
        let waiting = self.claim(id)?;
        let does = waiting.as_ref().map_or(len <= MAX_CHAIN_LEN, |waiting| fits(&waiting.part));
        if !does {
            let reason = "a claim on another blob, by another node or of another length came";
            return Err(self.wrong(waiting, reason));
        }
        Ok(waiting)
    }

    async fn states(
        &mut self,
        waiting: Option<Waiting>,
        len: u32,
        taken: impl FnOnce(Vec<u8>) -> Taken,
    ) -> Result<(), ExchangeError> {
        let body = self.body(len, &mut |_| {}).await;
        let Some(Waiting { answer, .. }) = waiting else { return body.map(drop) };
        match body {
            Ok(buffer) => {
                let _ = answer.send(Ok(taken(buffer.as_ref().to_vec())));
                Ok(())
            }
            Err(why) => {
                let _ = answer.send(Err(why.clone()));
                Err(why)
            }
        }
    }

    fn wrong(&self, waiting: Option<Waiting>, reason: &str) -> ExchangeError {
        let why = self.shared.protocol(reason);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(Err(why.clone()));
        }
        why
    }

    /// Reads raw bytes straight into a buffer of the pool.
    async fn body(
        &mut self,
        len: u32,
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Buffer, ExchangeError> {
        let len = len as usize;
        let mut buffer = self.buffers.take(len);
        buffer.bytes.clear();
        // How much had come when its first bytes had, and when that was.
        let mut begun = None;
        while buffer.bytes.len() < len {
            let rest = len - buffer.bytes.len();
            let mut room = (&mut buffer.bytes).limit(rest);
            match patiently(&self.shared, self.reader.read_buf(&mut room)).await? {
                Ok(0) => return Err(self.shared.gone("the peer closed it in the middle of a chunk")),
                Ok(some) => {
                    self.shared.downlink.received(some);
                    progress(some);
                    begun.get_or_insert_with(|| (some, Instant::now()));
                }
                Err(error) => return Err(self.io(&error)),
            }
        }
        if let Some((before, since)) = begun
            && len - before >= MEASURED
        {
            self.inflow.came(len - before, since.elapsed());
        }
        Ok(buffer)
    }
}

/// Reads what a peer owes, with little patience unless it is this node's link that lets it wait.
async fn patiently<T>(shared: &Shared, reading: impl Future<Output = T>) -> Result<T, ExchangeError> {
    let silence = shared.downlink.wait();
    let mut reading = std::pin::pin!(reading);
    let mut patience = shared.patience.silence;
    loop {
        match timeout(patience, reading.as_mut()).await {
            Ok(read) => return Ok(read),
            Err(_) if silence.is_excused() => patience = LOOK_TIME,
            Err(_) => return Err(ExchangeError::Silent(shared.node)),
        }
    }
}
