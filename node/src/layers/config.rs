//! What an image's configuration says of its layers, and of the container that it is for.

use std::collections::BTreeMap;

use serde::Deserialize;
use wherry_gateway::json_fault;
use wherry_proto::Digest;

use super::image::ImageLayer;
use crate::images::inspect::Words;

/// Why a configuration is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error(
        "the image's configuration cannot be read: {0}; this may be an artifact that is no container image"
    )]
    Unreadable(String),
    /// It has other bytes than its digest's.
    #[error("the bytes of the image's configuration {expected} have the digest {found}: they were damaged")]
    WrongDigest {
        /// The digest that the manifest has.
        expected: Box<Digest>,
        /// The one that they have.
        found: Box<Digest>,
    },
    /// It names more or fewer layers than the manifest.
    #[error(
        "the image's configuration names {named} layers and its manifest {there}: the image contradicts itself, whoever built it has to build it again"
    )]
    Layers {
        /// How many the configuration names.
        named: usize,
        /// How many there are.
        there: usize,
    },
}

/// The parts of a configuration that matter here. What is not said is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The digests of what the layers decompress to, the base first.
    pub diff_ids: Vec<Digest>,
    /// The operating system.
    pub os: String,
    /// The processor.
    pub architecture: String,
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program itself.
    pub cmd: Vec<String>,
    /// The environment, each as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory.
    pub working_dir: String,
    /// User and group.
    pub user: String,
    /// What its maker noted.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop.
    pub stop_signal: String,
}

#[derive(Deserialize)]
struct Document {
    os: Option<String>,
    architecture: Option<String>,
    rootfs: Option<RootFs>,
    config: Option<Run>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

// Docker writes null for whatever is empty, hence all these options.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

impl ImageConfig {
    /// Reads a configuration, whose digest must be this one.
    ///
    /// # Errors
    /// When it has another digest, or is none.
    pub fn parse(bytes: &[u8], digest: &Digest) -> Result<Self, ConfigError> {
        let found = Digest::of(digest.algorithm(), bytes);
        if found != *digest {
            let (expected, found) = (Box::new(*digest), Box::new(found));
            return Err(ConfigError::WrongDigest { expected, found });
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Unreadable(json_fault(&error)))?;
        let run = document.config.unwrap_or_default();
        Ok(Self {
            diff_ids: document.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default(),
            os: document.os.unwrap_or_default(),
            architecture: document.architecture.unwrap_or_default(),
            entrypoint: run.entrypoint.map(Vec::from).unwrap_or_default(),
            cmd: run.cmd.map(Vec::from).unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
        })
    }

    /// Tells layers what they decompress to.
    ///
    /// # Errors
    /// When there are more or fewer of them than the configuration names.
    pub fn tell(&self, layers: &mut [ImageLayer]) -> Result<(), ConfigError> {
        if self.diff_ids.len() != layers.len() {
            return Err(ConfigError::Layers { named: self.diff_ids.len(), there: layers.len() });
        }
        for (layer, diff_id) in layers.iter_mut().zip(&self.diff_ids) {
            layer.diff_id = Some(*diff_id);
        }
        Ok(())
    }
}
