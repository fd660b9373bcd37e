//! One machine of a wherry network: store, swarm, transfer, images, and what the `wherry` command is made of.

pub mod images;
pub mod store;
pub mod transfer;
