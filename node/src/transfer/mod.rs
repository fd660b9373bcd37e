//! One blob from many sources.

pub mod planner;
