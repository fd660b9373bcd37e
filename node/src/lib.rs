//! One machine of a wherry network: store, swarm, transfer, images, and what the `wherry` command is made of.

pub mod bundle;
pub mod cli;
pub mod config;
pub mod control;
mod flights;
mod http;
pub mod identity;
pub mod images;
pub mod layers;
pub mod limits;
pub mod node;
mod seldom;
pub mod status;
pub mod store;
pub mod swarm;
mod tarball;
pub mod transfer;
mod turns;
