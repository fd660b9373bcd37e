//! Placeholder.

pub mod config;
mod http;
pub mod status;
