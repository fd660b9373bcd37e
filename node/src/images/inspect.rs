//! What an image is made of: its layers, the instruction that made each, and what it has in common with others.
//!
//! Pure: a manifest and the bytes of a configuration come in, [`ImageDetails`] come out. Both were written by
//! strangers, so anything that does not fit is left out rather than guessed, and no text is believed to be
//! free of control characters.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use wherry_gateway::{Descriptor, Manifest, json_fault};
use wherry_proto::Digest;

use super::TagDetails;

/// The longest instruction that is kept, in characters; what follows is cut off.
pub const MAX_INSTRUCTION: usize = 4096;

/// The most steps of a history that are kept.
pub const MAX_STEPS: usize = 1000;

/// Another image of the same store, for finding shared layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherImage {
    /// Its reference.
    pub reference: String,
    /// Its layers.
    pub layers: Vec<Digest>,
}

/// Everything that is known about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// What it was asked for as.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The media type of its manifest.
    pub media_type: String,
    /// What is known of its tag, if it was asked for by one.
    pub tag: Option<TagDetails>,
    /// Its configuration.
    pub config: BlobDetails,
    /// What it runs on, such as `linux/arm64/v8`.
    pub platform: String,
    /// When it was made, as its maker wrote it.
    pub created: Option<String>,
    /// Bytes of the configuration and all layers, each counted once.
    pub size: u64,
    /// Bytes of those layers that other images here have too.
    pub shared_size: u64,
    /// Bytes of the configuration and of layers that are here, each counted once.
    pub here: u64,
    /// The layers, the base first.
    pub layers: Vec<LayerDetails>,
    /// All steps that made the image, also those that made no layer.
    pub history: Vec<Step>,
    /// Whether the history fits the layers; if not, no instruction is said to have made a layer.
    pub history_fits: bool,
    /// What runs in a container.
    pub run: RunDetails,
}

/// A blob that an image refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobDetails {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes, as the manifest has it.
    pub size: u64,
    /// What it is.
    pub media_type: String,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDetails {
    /// The blob.
    #[serde(flatten)]
    pub blob: BlobDetails,
    /// Whether it is here.
    pub state: LayerState,
    /// Bytes of it that are here.
    pub here: u64,
    /// The instruction that made it, if the history tells.
    pub instruction: Option<String>,
    /// References of other images here that have it too.
    pub shared_with: Vec<String>,
}

/// Whether a layer is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// All of it, verified.
    Here,
    /// Some of it.
    Partly,
    /// Some of it, or nothing yet, and it is on its way.
    Arriving,
    /// At most some of it: it was here, and was set aside when it turned out to be damaged.
    Damaged,
    /// Nothing of it.
    Missing,
}

/// A step that made the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The instruction as it would stand in a Dockerfile, or what the history has instead.
    pub instruction: String,
    /// The layer that it made, counted from 0; `None` for a step that changed metadata alone.
    pub layer: Option<usize>,
    /// When it ran, as its maker wrote it.
    pub created: Option<String>,
}

/// What runs in a container of the image, unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDetails {
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
    /// Ports that it says it listens on, such as `8080/tcp`.
    pub ports: Vec<String>,
    /// Paths that it wants kept outside the container.
    pub volumes: Vec<String>,
    /// What its maker noted.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
}

/// Why an image cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It names several images.
    #[error("this is an index of images for several platforms: inspect one of them by its digest")]
    Index,
    /// The configuration is not that of an image.
    #[error(
        "the image's configuration cannot be read: {0}; this may be an artifact that is no container image"
    )]
    Config(String),
}

#[derive(Deserialize)]
struct Config {
    created: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    #[serde(default)]
    config: Option<Run>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

// Docker writes null for whatever is empty, hence all these options.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

/// Old builders write a single string where a list belongs.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Words {
    List(Vec<String>),
    One(String),
}

#[derive(Deserialize)]
struct History {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    #[serde(default)]
    empty_layer: Option<bool>,
}

/// Describes an image from its manifest and the bytes of its configuration, which must have been checked against their
/// digests already. An entry of `others` with the same reference is passed over. `here` tells of a layer how much of it
/// is here.
///
/// # Errors
/// When the configuration is not what it should be, or the manifest is that of an index.
pub fn inspect(
    reference: &str,
    manifest: &Manifest,
    config: &[u8],
    others: &[OtherImage],
    here: impl Fn(&Descriptor) -> (LayerState, u64),
) -> Result<ImageDetails, InspectError> {
    let image = manifest.image().ok_or(InspectError::Index)?;
    let config: Config =
        serde_json::from_slice(config).map_err(|error| InspectError::Config(json_fault(&error)))?;
    let history = config.history.unwrap_or_default();
    let makes_layer = |step: &History| !step.empty_layer.unwrap_or(false);
    let history_fits = history.iter().filter(|step| makes_layer(step)).count() == image.layers.len()
        && history.len() <= MAX_STEPS;

    let mut steps: Vec<Step> = history
        .iter()
        .take(MAX_STEPS)
        .map(|step| Step { instruction: instruction(step), layer: None, created: step.created.clone() })
        .collect();
    let instructions = if history_fits {
        let marks: Vec<bool> = history.iter().map(makes_layer).collect();
        attribute(&mut steps, &marks, image.layers.len())
    } else {
        vec![None; image.layers.len()]
    };

    let mut holders: HashMap<Digest, Vec<String>> = HashMap::new();
    for other in others.iter().filter(|other| other.reference != reference) {
        for layer in &other.layers {
            let names = holders.entry(*layer).or_default();
            if names.last() != Some(&other.reference) {
                names.push(other.reference.clone());
            }
        }
    }
    // The configuration is here, since it was read.
    let (mut size, mut shared_size, mut all_here) = (image.config.size, 0u64, image.config.size);
    let mut counted = std::collections::HashSet::from([image.config.digest]);
    let layers = image
        .layers
        .iter()
        .zip(instructions)
        .map(|(layer, instruction)| {
            let shared_with = holders.get(&layer.digest).cloned().unwrap_or_default();
            let (state, here) = here(layer);
            if counted.insert(layer.digest) {
                size = size.saturating_add(layer.size);
                all_here = all_here.saturating_add(here);
                if !shared_with.is_empty() {
                    shared_size = shared_size.saturating_add(layer.size);
                }
            }
            LayerDetails { blob: layer.into(), state, here, instruction, shared_with }
        })
        .collect();
    let platform = [config.os, config.architecture, config.variant];
    Ok(ImageDetails {
        reference: reference.to_owned(),
        digest: *manifest.digest(),
        media_type: manifest.media_type().to_owned(),
        tag: None,
        config: BlobDetails::from(&image.config),
        platform: platform
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("/"),
        created: config.created,
        size,
        shared_size,
        here: all_here,
        layers,
        history: steps,
        history_fits,
        run: config.config.unwrap_or_default().into(),
    })
}

/// Says of each layer which steps made it. `marks` tells which steps the history marks as having made one.
///
/// A builder that makes one layer of several steps marks the last of them, whatever that did; then those before it
/// that change files are what made the layer.
fn attribute(steps: &mut [Step], marks: &[bool], layers: usize) -> Vec<Option<String>> {
    let mut instructions = vec![None; layers];
    let (mut layer, mut since) = (0, 0);
    for marked in marks.iter().enumerate().filter(|(_, marked)| **marked).map(|(number, _)| number) {
        let group = &mut steps[since..=marked];
        let squashed = changes_metadata_only(&group[group.len() - 1].instruction)
            && group.iter().any(|step| changes_files(&step.instruction));
        let last = group.len() - 1;
        let mut made = Vec::new();
        for (number, step) in group.iter_mut().enumerate() {
            if if squashed { changes_files(&step.instruction) } else { number == last } {
                step.layer = Some(layer);
                made.push(step.instruction.as_str());
            }
        }
        if let Some(instruction) = instructions.get_mut(layer) {
            *instruction = Some(made.join("; "));
        }
        (layer, since) = (layer + 1, marked + 1);
    }
    instructions
}

fn keyword(instruction: &str) -> &str {
    instruction.split(' ').next().unwrap_or_default()
}

fn changes_files(instruction: &str) -> bool {
    matches!(keyword(instruction), "RUN" | "COPY" | "ADD")
}

fn changes_metadata_only(instruction: &str) -> bool {
    matches!(
        keyword(instruction),
        "ARG"
            | "CMD"
            | "ENTRYPOINT"
            | "ENV"
            | "EXPOSE"
            | "HEALTHCHECK"
            | "LABEL"
            | "MAINTAINER"
            | "ONBUILD"
            | "SHELL"
            | "STOPSIGNAL"
            | "USER"
            | "VOLUME"
    )
}

impl From<&Descriptor> for BlobDetails {
    fn from(descriptor: &Descriptor) -> Self {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        Self { digest: *digest, size: *size, media_type: media_type.clone() }
    }
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::List(list) => list,
            Words::One(word) => vec![word],
        }
    }
}

impl From<Run> for RunDetails {
    fn from(run: Run) -> Self {
        let names =
            |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
        Self {
            entrypoint: run.entrypoint.map(Vec::from).unwrap_or_default(),
            cmd: run.cmd.map(Vec::from).unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            ports: names(run.exposed_ports),
            volumes: names(run.volumes),
            labels: run.labels.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        }
    }
}

/// What a step of a history would look like in a Dockerfile.
fn instruction(step: &History) -> String {
    let raw = step.created_by.as_deref().unwrap_or_default();
    let text = raw.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.strip_suffix("# buildkit").unwrap_or(&text).trim_end();
    let shell = "/bin/sh -c ";
    let cleaned = if let Some(rest) = text.strip_prefix("/bin/sh -c #(nop)") {
        rest.trim().to_owned()
    } else if let Some(command) = text.strip_prefix(shell) {
        run(command)
    } else if let Some((_, command)) = split_arguments(text).and_then(|rest| rest.split_once(shell)) {
        run(command)
    } else if let Some(command) = text.strip_prefix("RUN ").and_then(|rest| rest.strip_prefix(shell)) {
        run(command)
    } else {
        text.to_owned()
    };
    let cleaned = match (cleaned.is_empty(), step.comment.as_deref().map(str::trim)) {
        (false, _) => cleaned,
        (true, Some(comment)) if !comment.is_empty() => format!("({comment})"),
        (true, _) => "(the history does not say)".to_owned(),
    };
    match cleaned.char_indices().nth(MAX_INSTRUCTION) {
        Some((end, _)) => format!("{}…", &cleaned[..end]),
        None => cleaned,
    }
}

fn run(command: &str) -> String {
    format!("RUN {}", command.trim())
}

/// What follows the build arguments of a step that has some: `|2 A=1 B=2 /bin/sh -c make`, with RUN before it or not.
fn split_arguments(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("RUN ").unwrap_or(text).strip_prefix('|')?;
    rest.starts_with(|c: char| c.is_ascii_digit()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &[u8] = include_bytes!("fixtures/buildah-manifest.json");
    const CONFIG: &[u8] = include_bytes!("fixtures/buildah-config.json");

    fn step(created_by: &str) -> String {
        instruction(&History {
            created: None,
            created_by: Some(created_by.to_owned()),
            comment: None,
            empty_layer: None,
        })
    }

    fn parsed(manifest: &[u8]) -> Manifest {
        Manifest::parse(manifest.to_vec().into(), None).unwrap()
    }

    fn details(manifest: &[u8], config: &str, others: &[OtherImage]) -> ImageDetails {
        let here = |layer: &Descriptor| (LayerState::Here, layer.size);
        inspect("docker.io/library/edge:1", &parsed(manifest), config.as_bytes(), others, here).unwrap()
    }

    fn buildah(others: &[OtherImage]) -> ImageDetails {
        details(MANIFEST, std::str::from_utf8(CONFIG).unwrap(), others)
    }

    fn manifest(layers: &[&[u8]]) -> String {
        let descriptor = |media_type: &str, bytes: &[u8]| serde_json::json!({ "mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len() });
        let layers: Vec<_> = layers.iter().map(|layer| descriptor("application/x-layer", layer)).collect();
        let config = descriptor("application/x-config", b"{}");
        serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string()
    }

    #[test]
    fn an_image_of_buildah_is_told_layer_by_layer() {
        let image = buildah(&[]);
        assert_eq!(image.platform, "linux/amd64");
        assert_eq!(image.layers.len(), 2);
        assert!(image.history_fits);
        assert!(
            image.layers[0].instruction.as_ref().unwrap().starts_with("COPY file:1fc05613"),
            "{image:#?}"
        );
        assert!(image.layers[1].instruction.as_ref().unwrap().ends_with(" in /srv/"));
        assert_eq!(image.history.len(), 12);
        assert_eq!(image.history[3].instruction, "WORKDIR /srv");
        let made: Vec<_> = image.history.iter().filter_map(|step| step.layer).collect();
        assert_eq!(made, [0, 1]);
        assert_eq!(image.size, 15_066 + 382 + image.config.size);
        assert_eq!(image.shared_size, 0);
        assert_eq!(image.run.entrypoint, ["/bin/sh"]);
        assert_eq!(image.run.cmd, ["-c", "echo   hello"]);
        assert_eq!(image.run.env, ["PATH=/bin", "MODE=edge"]);
        assert_eq!(image.run.ports, ["53/udp", "8080/tcp"]);
        assert_eq!(image.run.volumes, ["/data"]);
        assert_eq!(image.run.user, "1000:1000");
        assert_eq!(image.run.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(image.run.labels["maintainer"], "ada@example.org");
        let json = serde_json::to_string(&image).unwrap();
        assert_eq!(serde_json::from_str::<ImageDetails>(&json).unwrap(), image);
    }

    #[test]
    fn shared_layers_name_the_other_images_and_their_bytes() {
        let base = buildah(&[]).layers[0].blob.digest;
        let other = |reference: &str, layers: &[Digest]| OtherImage {
            reference: reference.to_owned(),
            layers: layers.to_vec(),
        };
        let others = [
            other("docker.io/library/edge:1", &[base]),
            other("a.example/x:1", &[base, base]),
            other("b.example/y:1", &[Digest::sha256(b"else"), base]),
        ];
        let image = buildah(&others);
        assert_eq!(image.layers[0].shared_with, ["a.example/x:1", "b.example/y:1"]);
        assert_eq!(image.layers[1].shared_with, Vec::<String>::new());
        assert_eq!(image.shared_size, 15_066);
    }

    #[test]
    fn a_layer_that_is_there_twice_counts_once() {
        let image = details(manifest(&[b"1234", b"56", b"1234"]).as_bytes(), "{}", &[]);
        assert_eq!((image.layers.len(), image.size), (3, 6 + image.config.size));
    }

    #[test]
    fn instructions_of_every_builder_read_like_a_dockerfile() {
        for (raw, clean) in [
            ("/bin/sh -c #(nop)  CMD [\"bash\"]", "CMD [\"bash\"]"),
            ("/bin/sh -c #(nop) ADD file:4eae in / ", "ADD file:4eae in /"),
            (
                "/bin/sh -c apt-get update     && apt-get\tinstall -y curl",
                "RUN apt-get update && apt-get install -y curl",
            ),
            ("RUN /bin/sh -c make install # buildkit", "RUN make install"),
            ("RUN |2 A=1 B=two words /bin/sh -c make # buildkit", "RUN make"),
            ("|1 A=1 /bin/sh -c make", "RUN make"),
            ("COPY . /app # buildkit", "COPY . /app"),
            ("ENTRYPOINT [\"/docker-entrypoint.sh\"]", "ENTRYPOINT [\"/docker-entrypoint.sh\"]"),
            ("# debian.sh --arch 'amd64' out/ 'trixie'", "# debian.sh --arch 'amd64' out/ 'trixie'"),
            ("bazel build ...", "bazel build ..."),
            ("", "(the history does not say)"),
        ] {
            assert_eq!(step(raw), clean);
        }
        let imported = History {
            created: None,
            created_by: None,
            comment: Some("Imported from -".to_owned()),
            empty_layer: None,
        };
        assert_eq!(instruction(&imported), "(Imported from -)");
        assert_eq!(step(&"é".repeat(5000)).chars().count(), MAX_INSTRUCTION + 1);
    }

    #[test]
    fn a_layer_of_several_steps_is_made_by_those_that_change_files() {
        let step = |text: &str, empty: bool| serde_json::json!({ "created_by": format!("/bin/sh -c #(nop) {text}"), "empty_layer": empty });
        let history = [
            step("ADD rootfs /", false),
            step("LABEL a=b", true),
            step("COPY a /", true),
            step("COPY b /", true),
            step("CMD [\"sh\"]", false),
        ];
        let config = serde_json::json!({ "history": history }).to_string();
        let image = details(manifest(&[b"1", b"2"]).as_bytes(), &config, &[]);
        let made: Vec<_> = image.layers.iter().map(|layer| layer.instruction.as_deref().unwrap()).collect();
        assert_eq!(made, ["ADD rootfs /", "COPY a /; COPY b /"]);
        let layers: Vec<_> = image.history.iter().map(|step| step.layer).collect();
        assert_eq!(layers, [Some(0), None, Some(1), Some(1), None]);
    }

    #[test]
    fn what_is_here_of_a_layer_is_told_and_counts_once_for_the_image() {
        let manifest = manifest(&[b"one", b"three", b"one"]);
        let here = |layer: &Descriptor| match layer.size {
            3 => (LayerState::Here, 3),
            _ => (LayerState::Partly, 2),
        };
        let image = inspect("x", &parsed(manifest.as_bytes()), b"{}", &[], here).unwrap();
        let states: Vec<_> = image.layers.iter().map(|layer| (layer.state, layer.here)).collect();
        let one = (LayerState::Here, 3);
        let expected =
            (vec![one, (LayerState::Partly, 2), one], 5 + image.config.size, 8 + image.config.size);
        assert_eq!((states, image.here, image.size), expected);
    }

    #[test]
    fn a_history_that_does_not_fit_blames_no_layer_on_the_wrong_instruction() {
        let two = manifest(&[b"1", b"2"]);
        for history in [
            r#"[{"created_by":"COPY a /"}]"#,
            r#"[{"created_by":"COPY a /"},{"created_by":"COPY b /"},{"created_by":"COPY c /"}]"#,
            r#"[{"created_by":"COPY a /","empty_layer":true},{"created_by":"COPY b /"}]"#,
        ] {
            let image = details(two.as_bytes(), &format!(r#"{{"history":{history}}}"#), &[]);
            assert!(!image.history_fits);
            assert!(image.layers.iter().all(|layer| layer.instruction.is_none()));
            assert!(image.history.iter().all(|step| step.layer.is_none()) && !image.history.is_empty());
        }
        let none = details(two.as_bytes(), "{}", &[]);
        assert!(!none.history_fits && none.history.is_empty());
    }

    #[test]
    fn nulls_of_docker_and_single_strings_of_old_builders_are_read() {
        let config = r#"{"os":"linux","architecture":"arm64","variant":"v8","history":null,"config":{"Env":null,
            "Cmd":null,"Entrypoint":"/app","Labels":null,"ExposedPorts":null,"Volumes":null,"StopSignal":""}}"#;
        let image = details(manifest(&[]).as_bytes(), config, &[]);
        assert_eq!(image.platform, "linux/arm64/v8");
        assert_eq!(image.run, RunDetails { entrypoint: vec!["/app".to_owned()], ..RunDetails::default() });
        assert_eq!(details(manifest(&[]).as_bytes(), r#"{"config":null}"#, &[]).run, RunDetails::default());
    }

    #[test]
    fn what_is_no_image_says_so() {
        let inspect = |manifest: &str, config: &str| {
            let here = |_: &Descriptor| (LayerState::Missing, 0);
            inspect("x", &parsed(manifest.as_bytes()), config.as_bytes(), &[], here).unwrap_err()
        };
        assert!(matches!(inspect(r#"{"manifests":[]}"#, "{}"), InspectError::Index));
        assert!(matches!(inspect(&manifest(&[]), "not json"), InspectError::Config(_)));
    }
}
