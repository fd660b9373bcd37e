//! What may be done with a node: HTTP over a Unix socket that only its user may open, for the command line.
//!
//! The node implements [`Backend`] and hands it to [`serve`]; the command line uses [`Client`]. What they say to each
//! other is in [`api`].

pub mod api;
mod archive;
mod backend;
mod client;
mod lines;
mod published;
mod refused;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use archive::Archive;
pub use backend::{Backend, Events};
pub use client::{Carried, Client, ClientError, Progress, Step};
pub use server::serve;
pub use socket::{BindError, Socket, bind};
