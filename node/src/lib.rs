//! One machine of a wherry network.

pub mod bundle;
pub mod store;
