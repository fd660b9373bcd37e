//! The parts of index, manifest and docker's manifest.json that import and export look at.
//!
//! Documents are never written again from these: what is stored and passed on is always the bytes that came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wherry_gateway::json_fault;
use wherry_proto::Digest;

/// The largest manifest or index, in bytes: what registries and runtimes take.
pub(super) const MAX_MANIFEST_LEN: u64 = 4 << 20;

/// The largest `manifest.json` of a docker-archive, in bytes.
pub(super) const MAX_DOCKER_MANIFEST_LEN: u64 = 1 << 20;

/// Annotation with the full reference, as containerd and docker write it.
pub(super) const NAME: &str = "io.containerd.image.name";
/// Annotation with the tag or the full reference, as the image specification has it.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

impl Descriptor {
    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it is a layer that its maker forbids to pass on: archives may lack those.
    pub(super) fn is_foreign(&self) -> bool {
        self.media_type.contains(".foreign.") || self.media_type.contains(".nondistributable.")
    }
}

/// An index or a manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// What a document is, once it cannot be taken for two things at once.
#[derive(Debug, Clone)]
pub(super) enum Manifest {
    /// Refers to other manifests.
    Index { manifests: Vec<Descriptor>, media_type: String },
    /// Refers to a configuration and layers.
    Image { config: Descriptor, layers: Vec<Descriptor>, media_type: String },
}

impl Manifest {
    /// Reads an index or a manifest. `media_type` is what the descriptor said, empty if it said nothing.
    pub(super) fn parse(bytes: &[u8], media_type: &str) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(bytes).map_err(|error| json_fault(&error))?;
        if document.schema_version != 2 {
            return Err(format!("schema version {}, only 2 is taken", document.schema_version));
        }
        let own = document.media_type.as_deref().unwrap_or_default();
        if !own.is_empty() && !media_type.is_empty() && own != media_type {
            return Err(format!("it calls itself {own:.100}, its descriptor {media_type:.100}"));
        }
        let told = if own.is_empty() { media_type } else { own };
        let media_type = |default: &str| if told.is_empty() { default } else { told }.to_owned();
        match (document.manifests, document.config, document.layers) {
            (Some(manifests), None, None) if !matches!(told, OCI_MANIFEST | DOCKER_MANIFEST) => {
                Ok(Self::Index { manifests, media_type: media_type(OCI_INDEX) })
            }
            (None, Some(config), layers) if !matches!(told, OCI_INDEX | DOCKER_LIST) => Ok(Self::Image {
                config,
                layers: layers.unwrap_or_default(),
                media_type: media_type(OCI_MANIFEST),
            }),
            _ => {
                Err("it must have either manifests, or config and layers, as its media type says".to_owned())
            }
        }
    }

    pub(super) fn media_type(&self) -> &str {
        match self {
            Self::Index { media_type, .. } | Self::Image { media_type, .. } => media_type,
        }
    }
}

/// `oci-layout`
#[derive(Debug, Deserialize)]
pub(super) struct LayoutFile {
    #[serde(rename = "imageLayoutVersion")]
    pub(super) version: String,
}

/// One image in docker's `manifest.json`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Vec<String>,
}

/// What of an image configuration is needed to check an old archive, or to choose a platform.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<Digest>,
}
