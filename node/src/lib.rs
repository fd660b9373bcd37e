//! One machine of a wherry network.

pub mod swarm;
