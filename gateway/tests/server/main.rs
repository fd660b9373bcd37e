//! The gateway's server as its clients meet it: over TCP, byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bounds;
mod client;
mod content;
mod endings;
mod reading;
mod routes;
