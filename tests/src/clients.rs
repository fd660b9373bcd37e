//! The container clients that the field uses, each with state of its own so that none sees the machine's.

mod buildah;
mod containerd;
mod cri;
mod docker;
mod podman;
mod skopeo;

pub use buildah::Buildah;
pub use containerd::Containerd;
pub use cri::CriImage;
pub use docker::Docker;
pub use podman::Podman;
pub use skopeo::Skopeo;

use std::time::Duration;

/// How long one pull, push or run may take.
pub const LIMIT: Duration = Duration::from_secs(180);
