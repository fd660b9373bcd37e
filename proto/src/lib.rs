//! What wherry nodes say to each other: digests, chunks, state chains, messages and membership.
//!
//! This crate does no I/O and has no clock: bytes and times come in as arguments, so every part can be
//! driven by property tests, fuzzers and a simulation exactly as by the daemon.

mod chain;
mod chunk;
mod claim;
mod digest;
mod exchange;
mod frame;
#[doc(hidden)]
pub mod hostile;
mod identity;
mod ledger;
mod membership;
mod message;
mod prefix;
mod rank;
mod tag;
mod wan;

pub use chain::{
    ChainBuilder, End, Link, OpenChain, State, StateChain, WrongChainLength, WrongLength, WrongSize, link,
};
pub use chunk::{ChunkIndex, ChunkMap, ChunkSet, MAX_BLOB_LEN, MAX_CHUNK_LEN, TooLarge};
pub use claim::{Attempt, ClaimError, HeldClaim, SignedStates, StreamClaim};
pub use digest::{Algorithm, Digest, DigestError};
pub use exchange::{BlobName, MAX_CHAIN_LEN, MAX_RUNS, Refusal, Request, Response, Role, Run, Update};
pub use frame::{
    FrameError, List, Message, PREFIX_LEN, Text, TextError, decode_payload, encode_frame, encode_payload,
    payload_len,
};
pub use identity::{BadSignature, IdError, NetworkId, NodeId, SecretKey, Signature};
pub use ledger::{Claimed, Ledger, MAX_RIVALS, MAX_SIGNERS};
pub use membership::{
    CERTIFICATE_PREFIX, Certificate, CertificateError, CertificateTextError, MAX_CERTIFICATE_TEXT, Roles,
};
pub use message::{
    Answer, Ask, Hello, Holding, Lead, LeadRefusal, MAX_ADDRESS_LEN, MAX_MANIFEST_TOLD, MAX_PLATFORM_LEN,
    MAX_PROVIDER_ADDRESSES, MAX_SITE_LEN, MAX_TAG_PAGE, MAX_WANT, MAX_WHY_LEN, PROTOCOL_VERSION, Ports,
    PreloadRefusal, PreloadState, Preloading, Provide, Question, Reply, Resolution, SiteName, TagName,
    TagPage, Version, WantedImage,
};
pub use prefix::StatePrefix;
pub use rank::{lot, rank};
pub use tag::{
    MAX_MEDIA_TYPE_LEN, MAX_ORIGIN_LEN, MAX_REFERENCE_LEN, MAX_REPOSITORY_LEN, MAX_TAG_LEN, TagMeaning,
    TagRecord, TagRecordError, TagWord,
};
pub use wan::{PauseRecord, PauseRecordError, WanWord};
