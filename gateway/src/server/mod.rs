//! The gateway: the registry API that container runtimes talk to.
//!
//! [`serve`] speaks HTTP/1.1 on a bound listener and asks a [`Content`] for everything that it answers.
//! Bytes of stored files go from the page cache to the socket without passing through this process;
//! bytes of blobs that are still arriving are passed on as the content yields them.

mod answer;
mod body;
mod caller;
mod change;
mod content;
mod incoming;
mod link;
mod listen;
mod log;
mod mapping;
mod pagecache;
mod parts;
mod push;
mod range;
mod refusal;
mod route;
mod tls;

pub use answer::GATEWAY_HEADER;
pub(crate) use caller::credential;
pub(crate) use change::parse_content_range;
pub use content::{
    Ask, BlobReader, Body, Break, Content, ManifestAnswer, Referrer, Source, StoredFile, Want,
};
pub use incoming::{Incoming, Interrupted};
pub use listen::{Drained, ServerOptions, serve};
pub use log::{Answered, Watcher};
pub use push::{Push, Put, Removal, Sent};
pub use range::{MAX_RANGES, Span, parse_range};
pub use refusal::{Refusal, RefusalKind};
pub(crate) use route::{Change, Route};
pub use tls::{ServerTls, TlsError};
