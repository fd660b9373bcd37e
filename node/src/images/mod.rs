//! What a reference names: manifests, layers, and what they say.

pub mod inspect;
