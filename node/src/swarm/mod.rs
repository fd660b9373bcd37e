//! The swarm: finding the other members of the network, asking them, and taking chunks from them.
//!
//! One task owns the libp2p swarm (`actor`); everybody else holds a [`Client`], which sends it commands. Every
//! connection passes `admission` before anything else happens on it. Chunks travel on the `bulk` plane, or
//! on a libp2p stream where that cannot be reached; the `exchange` is the same on both.
//!
//! Nothing outside this folder names libp2p.

mod actor;
mod admission;
mod aiming;
mod announcements;
mod announcing;
mod arriving;
mod ask;
mod backlog;
mod bans;
mod behaviour;
mod bulk;
mod client;
mod codec;
mod discovery;
mod errands;
mod exchange;
mod gate;
mod holdings;
mod identity;
mod leading;
mod muxer;
mod neighbours;
mod records;
mod refusals;
mod regions;
mod settings;
mod shares;
mod start;
mod streams;
mod tcp;
mod tls;
mod transport;
mod twins;
mod unreached;
mod wants;
mod windowed;

pub use admission::{ADMISSION_TIME, AdmissionError};
pub use announcements::{
    ANNOUNCE_AFTER, ANNOUNCERS, MAX_ANNOUNCED, MAX_ANNOUNCING, RENEWAL_TIME, announcers,
};
pub use arriving::Arriving;
pub use ask::{FAR_PING_TIME, MAX_ASKED, PING_TIME, REPLY_TIME};
pub use bans::{BAN_TIME, Ban, MAX_BANS};
pub use behaviour::{MAX_CONNECTIONS, RECORD_TIME};
pub use bulk::{
    BULK_HANDSHAKE_TIME, BulkError, MAX_BULK_CONNECTIONS, MAX_BULK_HANDSHAKES, MAX_BULK_PER_PEER,
};
pub use client::{
    Client, ConnectError, DIRECT_RETRY, MAX_PROVIDERS, MAX_REMEMBERED, MAX_SITE_TAGS, SETTLE_TIME,
};
pub use discovery::{LONELY_WAIT, LONGEST_WAIT};
pub use exchange::{
    Audience, CHAINS_AT_ONCE, Exchange, ExchangeError, Follow, IDLE_TIME, MAX_FOLLOWED, MAX_IN_FLIGHT,
    MOST_IN_A_ROW, News, REQUEST_LIMIT, SILENCE, SLOTS_PER_PEER, Telling, UPDATE_TIME, UPLOAD_SLOTS,
    has_long_chain,
};
pub use holdings::{Holdings, ReadAt};
pub use leading::{LEAD_TIME, RESOLVE_TIME, StatesError};
pub use neighbours::{LinkClass, Neighbour, Notice};
pub use refusals::{MAX_REFUSALS, REFUSED_TIME, Refusal};
pub use settings::{Clock, MAX_ADDRESSES, SwarmError, SwarmSettings};
pub use start::{Addresses, Swarm, start};
pub use streams::OpenError;
pub use transport::{CONNECT_TIME, MAX_HANDSHAKES};
pub use unreached::Unreached;
pub use wants::{Offer, WANT_TIME};
