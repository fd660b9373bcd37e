//! The swarm in a simulation: many nodes in one thread and in virtual time, each with the very planner that a node runs.
//!
//! Simulated are links (shared max-min fair), round trips, upload slots, the messages of the exchange and their delays,
//! the origin behind each site's uplink, deaths, partial views, and nodes that lie. Not simulated are TCP's slow start
//! and loss, the processor, and bytes: see `blob.rs`.

mod asking;
mod blob;
mod clock;
mod fluid;
mod give;
mod liar;
mod lives;
mod message;
mod node;
mod origin;
mod queues;
mod random;
mod report;
mod setup;
mod siblings;
mod spread;
mod take;
mod world;

pub use queues::{LEAST_QUEUE, PORT_QUEUE};
pub use random::Random;
pub use report::{Most, Report};
pub use setup::{Churn, Exchange, Manner, NodeSetup, Setup, mbit};
pub use world::World;
