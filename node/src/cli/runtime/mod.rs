//! Container runtimes and the files that say where their images come from: what `setup` writes and `doctor` judges.

mod address;
pub(super) mod containerd;
pub(super) mod docker;
mod files;
pub(super) mod k3s;
pub(super) mod podman;
pub(super) mod probe;
pub(super) mod trust;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub(super) use address::{Address, Given};
pub(super) use files::Files;

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Runtime {
    /// containerd, also under kubelets
    Containerd,
    /// docker, for images of docker.io
    Docker,
    /// podman, buildah and skopeo
    Podman,
    /// CRI-O
    Crio,
    /// k3s
    K3s,
}

impl Runtime {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Docker, Self::Containerd, Self::Podman, Self::Crio, Self::K3s];

    /// As it is named on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Crio => "crio",
            Self::K3s => "k3s",
        }
    }

    /// The program that pulls.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            other => other.name(),
        }
    }
}

/// Where a gateway is reached that listens on all addresses.
pub(super) fn reachable(gateway: SocketAddr) -> SocketAddr {
    match gateway.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), gateway.port()),
        false => gateway,
    }
}
