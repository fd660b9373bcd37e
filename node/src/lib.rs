//! One machine of a wherry network: store, swarm, transfer, images, and what the `wherry` command is made of.

pub mod config;
mod http;
pub mod images;
pub mod status;
pub mod store;
pub mod transfer;
