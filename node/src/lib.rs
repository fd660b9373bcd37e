//! One machine of a wherry network: store, swarm, transfer, images, and what the `wherry` command is made of.

pub mod cli;
pub mod config;
pub mod control;
mod http;
pub mod identity;
pub mod images;
pub mod status;
pub mod store;
pub mod transfer;
