//! wherry from outside: what the end-to-end tests and benchmarks stand on.
//!
//! Nothing here is a mock. Origins are Debian's docker-registry, clients are docker, containerd, podman, buildah and skopeo,
//! nodes are `wherry` processes, images hold a real Debian. Everything listens on loopback with ports that the kernel chose, lives
//! in a [`lab::Lab`] and goes with it.

pub mod access;
pub mod blobs;
pub mod certificates;
pub mod clients;
pub mod http;
pub mod images;
pub mod lab;
pub mod liar;
pub mod netns;
pub mod network;
pub mod node;
pub mod process;
pub mod registry;
pub mod relay;
pub mod sim;
pub mod system;
pub mod wait;
