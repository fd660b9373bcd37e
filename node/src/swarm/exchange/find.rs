//! What is asked for, and where it is.

use std::sync::Arc;

use wherry_proto::{
    Attempt, BlobName, ChunkIndex, ChunkMap, ChunkSet, Digest, HeldClaim, MAX_CHAIN_LEN, NetworkId, Refusal,
    Response, Role, SecretKey, encode_frame,
};

use super::writer::{Answer, Body};
use crate::swarm::arriving::Arriving;
use crate::swarm::holdings::{Holdings, ReadAt};

/// How many blobs a connection keeps open, so that a pipelined transfer does not open its blob for each chunk.
const MAX_OPEN: usize = 4;

/// Why a request is not answered with what it asked for.
pub(super) enum Unanswered {
    Busy,
    NotHeld,
    NotHere,
    Elsewhere,
    Refused(Refusal),
}

impl Unanswered {
    pub(super) fn response(self, id: u32) -> Response {
        match self {
            Self::Busy => Response::Busy { id },
            Self::NotHeld => Response::NotHeld { id },
            Self::NotHere => Response::NotHere { id },
            Self::Elsewhere => Response::Elsewhere { id },
            Self::Refused(reason) => Response::Refused { id, reason },
        }
    }
}

/// Where a blob is, for those who follow it.
pub(super) enum Whereabouts {
    Held,
    Arriving(Arc<dyn Arriving>),
    Nowhere,
}

impl Whereabouts {
    /// Finds a blob without opening it: what is followed may leave the store all the same. May block.
    pub(super) fn find(holdings: &dyn Holdings, blob: BlobName) -> Self {
        if holdings.held(&blob.digest) == Some(blob.size) {
            return Self::Held;
        }
        holdings.arriving(&blob).map_or(Self::Nowhere, Self::Arriving)
    }
}

/// Where the bytes of a blob are.
#[derive(Clone)]
pub(super) enum Source {
    Held(Arc<dyn ReadAt>),
    Arriving(Arc<dyn Arriving>),
}

impl Source {
    /// Finds a blob. May block.
    pub(super) fn find(holdings: &dyn Holdings, blob: BlobName) -> Result<Self, Unanswered> {
        let held = holdings.held(&blob.digest);
        if held == Some(blob.size) {
            let opened = holdings.open(&blob.digest).map_err(|error| {
                tracing::warn!(digest = %blob.digest, %error, "a blob that is held cannot be opened");
                Unanswered::Refused(Refusal::Unreadable)
            })?;
            return opened.map(Self::Held).ok_or(Unanswered::NotHeld);
        }
        match (holdings.arriving(&blob), held) {
            (Some(arriving), _) => Ok(Self::Arriving(arriving)),
            (None, Some(held)) => Err(Unanswered::Refused(Refusal::OtherSize { held })),
            (None, None) => Err(Unanswered::NotHeld),
        }
    }

    /// Whether a chunk may be given from here.
    pub(super) fn has(&self, index: ChunkIndex) -> bool {
        match self {
            Self::Held(_) => true,
            Self::Arriving(arriving) => arriving.has(index),
        }
    }

    /// The chunks that others of the site have from here, of which each is to go to one before it goes to a second; `None` if
    /// these are all.
    pub(super) fn first_hand(&self) -> Option<ChunkSet> {
        match self {
            Self::Held(_) => None,
            Self::Arriving(arriving) => Some(arriving.first_hand()),
        }
    }

    /// The answer that gives a chunk. Where that may have been lost it is read before.
    pub(super) async fn piece(
        self,
        id: u32,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
    ) -> Result<Answer, Unanswered> {
        let len = map.len(index);
        let offset = map.offset(index);
        let body = match self {
            Self::Arriving(arriving) if arriving.may_fail() => {
                let read = move || {
                    let mut bytes = vec![0; len as usize];
                    arriving.read_exact_at(&mut bytes, offset).map(|()| bytes)
                };
                let bytes = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.into()));
                Body::Ready(bytes.map_err(|error| {
                    tracing::debug!(%digest, chunk = index.get(), %error, "a chunk is not here after all");
                    Unanswered::NotHere
                })?)
            }
            Self::Arriving(arriving) => Body::Piece { digest, file: arriving, offset, len },
            Self::Held(file) => Body::Piece { digest, file, offset, len },
        };
        Ok(Answer { frame: frame(&Response::Chunk { id, len })?, body })
    }

    /// Whether it is what a new search would find.
    fn is_current(&self) -> bool {
        match self {
            Self::Held(file) => file.is_sound(),
            Self::Arriving(arriving) => !matches!(arriving.role(), Role::Held | Role::Gone),
        }
    }
}

/// The blobs that a connection has open, the last used one at the end.
#[derive(Default)]
pub(super) struct Open(Vec<(BlobName, Source)>);

impl Open {
    pub(super) fn get(&mut self, blob: BlobName) -> Option<Source> {
        let at = self.0.iter().position(|(name, _)| *name == blob)?;
        let (name, source) = self.0.remove(at);
        source.is_current().then(|| {
            self.0.push((name, source.clone()));
            source
        })
    }

    pub(super) fn add(&mut self, blob: BlobName, source: Source) {
        if self.0.len() >= MAX_OPEN {
            self.0.remove(0);
        }
        self.0.push((blob, source));
    }
}

/// Signs the claim on a blob that is held, with its states if they are to be given and the asker does not have them. May
/// block.
pub(super) fn held_chain(
    holdings: &dyn Holdings,
    key: &SecretKey,
    network: &NetworkId,
    id: u32,
    blob: BlobName,
    known: Option<Digest>,
    gives_states: bool,
) -> Result<Answer, Unanswered> {
    match holdings.held(&blob.digest) {
        None => return Err(Unanswered::NotHeld),
        Some(held) if held != blob.size => return Err(Unanswered::Refused(Refusal::OtherSize { held })),
        Some(_) => {}
    }
    let chain = holdings.chain(&blob.digest).ok_or(Unanswered::NotHeld)?;
    let claim = HeldClaim::sign(key, network, &chain);
    let states = if !gives_states || known == Some(claim.states) { Vec::new() } else { chain.to_bytes() };
    // At most MAX_CHAIN_LEN, since the chain's map is within its bounds.
    let len = states.len() as u32;
    Ok(Answer { frame: frame(&Response::Chain { id, claim, len })?, body: Body::Ready(states) })
}

/// What a leader signed of a blob that arrives here. May block.
pub(super) fn signed_states(
    holdings: &dyn Holdings,
    id: u32,
    blob: BlobName,
    attempt: Attempt,
    from: u32,
) -> Result<Answer, Unanswered> {
    let arriving = holdings.arriving(&blob).ok_or(Unanswered::NotHere)?;
    let (claim, certificate, states) = arriving.states(&attempt, from).ok_or(Unanswered::NotHere)?;
    let len = u32::try_from(states.len()).ok().filter(|len| *len <= MAX_CHAIN_LEN);
    let len = len.ok_or(Unanswered::NotHere)?;
    Ok(Answer { frame: frame(&Response::States { id, claim, certificate, len })?, body: Body::Ready(states) })
}

/// The states that a holder has claimed, where they are those that this node goes by. May block.
pub(super) fn claimed_states(
    holdings: &dyn Holdings,
    id: u32,
    blob: BlobName,
    states: Digest,
) -> Result<Answer, Unanswered> {
    let held = || holdings.chain(&blob.digest).filter(|chain| chain.map().size() == blob.size);
    let chain =
        holdings.arriving(&blob).and_then(|arriving| arriving.chain()).or_else(|| held().map(Arc::new));
    let bytes = chain.map(|chain| chain.to_bytes()).filter(|bytes| Digest::sha256(bytes) == states);
    let bytes = bytes.ok_or(Unanswered::NotHere)?;
    // At most MAX_CHAIN_LEN, since the chain's map is within its bounds.
    let len = bytes.len() as u32;
    Ok(Answer { frame: frame(&Response::ClaimedStates { id, len })?, body: Body::Ready(bytes) })
}

fn frame(response: &Response) -> Result<Vec<u8>, Unanswered> {
    encode_frame(response).map_err(|_| Unanswered::Refused(Refusal::Unreadable))
}
