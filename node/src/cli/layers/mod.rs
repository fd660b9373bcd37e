//! What is in layers: `wherry inspect --layer`, `wherry diff`, `wherry cat` and `wherry unpack`. Layers come from the node as
//! they are, and are decompressed here and never there.

pub(super) mod args;
mod diff;
mod page;
mod source;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use serde::Serialize;
use serde_json::json;
use wherry_proto::Digest;

use self::args::{CatArgs, LayerChoice, LookArgs, UnpackArgs};
use self::source::{Opened, Task, look};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{count, harmless, note, print, print_json};
use crate::config::units::show_size;
use crate::layers::unpack::{Caller, LeftOut, UnpackError, unpack as unpack_image};
use crate::layers::{Change, Image, Kind, compare};

pub(super) use self::diff::run as diff;

/// What a layer does to those below it.
#[derive(Debug, Serialize)]
struct LayerPage {
    reference: String,
    manifest: Digest,
    /// The base is 1.
    number: usize,
    of: usize,
    digest: Digest,
    media_type: String,
    size: u64,
    diff_id: Option<Digest>,
    instruction: Option<String>,
    added: Vec<Change>,
    changed: Vec<Change>,
    removed: Vec<Change>,
    whiteouts: Vec<Hidden>,
}

/// A whiteout.
#[derive(Debug, Serialize)]
struct Hidden {
    path: String,
    /// Whether it is about all that lower layers have in that folder.
    opaque: bool,
    /// How many files and folders it hides.
    hides: usize,
}

pub(super) async fn inspect(args: &LookArgs, environment: &Environment) -> Result<(), Failure> {
    let Some(choice) = &args.layer else { return super::inspect::run(&args.image, environment).await };
    let client = args.image.node.client(environment);
    let opened =
        Opened::new(&client, &args.image.node, &args.image.reference, args.image.platform.as_ref()).await?;
    let at = chosen(&opened, choice)?;
    opened.needs(at + 1)?;
    let layers = opened.layers.clone();
    let task = Task {
        name: "reading",
        bytes: opened.size(at + 1),
        interrupted: "the layers were not read to their end",
    };
    let (changes, whiteouts) = look(&client, &[&opened], environment, task, move |blobs| {
        let mut image = Image::new(layers);
        image.read_hashed(at, blobs)?;
        let below = image.tree().clone();
        let whiteouts = image.read_hashed(at + 1, blobs)?;
        Ok((compare(&below, image.tree()), whiteouts))
    })
    .await?;
    let (details, layer) = (&opened.details, &opened.details.layers[at]);
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        match (&change.before, &change.after) {
            (None, _) => added.push(change),
            (_, None) => removed.push(change),
            _ => changed.push(change),
        }
    }
    let whiteouts = whiteouts.into_iter().map(|it| Hidden {
        path: format!("/{}", String::from_utf8_lossy(&it.path)),
        opaque: it.opaque,
        hides: it.hidden,
    });
    let page = LayerPage {
        reference: details.reference.clone(),
        manifest: details.digest,
        number: at + 1,
        of: details.layers.len(),
        digest: layer.blob.digest,
        media_type: layer.blob.media_type.clone(),
        size: layer.blob.size,
        diff_id: opened.layers[at].diff_id,
        instruction: layer.instruction.clone(),
        added,
        changed,
        removed,
        whiteouts: whiteouts.collect(),
    };
    if args.image.node.json { print_json(&page) } else { print(&page::layer(&page)) }
}

/// Which layer is meant, counted from 0.
fn chosen(opened: &Opened, choice: &LayerChoice) -> Result<usize, Failure> {
    let (name, layers) = (&opened.details.reference, &opened.layers);
    let shown = format!("'wherry inspect {name}' lists them");
    match choice {
        LayerChoice::Number(number) if *number <= layers.len() => Ok(number - 1),
        LayerChoice::Number(number) => Err(Failure::with_hint(
            format!("{name} has no layer {number}: it has {}", count(layers.len(), "layer")),
            shown,
        )),
        LayerChoice::Digits(digits) => layers
            .iter()
            .position(|layer| layer.digest.hex().starts_with(digits.as_str()))
            .ok_or_else(|| Failure::with_hint(format!("{name} has no layer {digits}"), shown)),
    }
}

pub(super) async fn cat(args: &CatArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let opened = Opened::new(&client, &args.node, &args.file.reference, args.platform.as_ref()).await?;
    opened.needs(opened.layers.len())?;
    let (layers, name, path) =
        (opened.layers.clone(), opened.details.reference.clone(), args.file.path.clone());
    let bytes = opened.size(layers.len());
    let task = Task { name: "looking", bytes, interrupted: "the file was not found yet" };
    let (image, place) = look(&client, &[&opened], environment, task, move |blobs| {
        let mut image = Image::new(layers);
        image.read_names(blobs)?;
        let found = image.tree().find(path.as_bytes());
        let found = found.map_err(|error| Failure::new(format!("{name} has no file {path}: {error}")))?;
        let what = match image.tree().inode(found.inode).kind {
            Kind::File { place, .. } => return Ok((image, place)),
            Kind::Folder => "a folder",
            Kind::CharDevice(..) | Kind::BlockDevice(..) => "a device",
            Kind::Pipe => "a pipe",
            // Links are followed.
            Kind::Symlink(_) => "a link",
        };
        Err(Failure::new(format!("{path} of {name} is {what}, and only what is in files can be printed")))
    })
    .await?;
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // No bar between the lines of a file.
    let task = Task { name: "", bytes: 0, interrupted: "the file was not printed to its end" };
    look(&client, &[&opened], environment, task, move |blobs| Ok(image.copy(place, blobs, &mut out)?)).await
}

pub(super) async fn unpack(args: &UnpackArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let opened = Opened::new(&client, &args.node, &args.reference, args.platform.as_ref()).await?;
    opened.needs(opened.layers.len())?;
    let (layers, config, place) = (opened.layers.clone(), opened.config.clone(), args.place.clone());
    let caller =
        Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let task = Task {
        name: "unpacking",
        bytes: opened.size(layers.len()),
        interrupted: "the image was not unpacked, and nothing is left of it",
    };
    let unpacked = look(&client, &[&opened], environment, task, move |blobs| {
        Ok(unpack_image(Image::new(layers), &config, blobs, &place, caller)?)
    })
    .await?;
    if unpacked.no_program {
        note("note: the image names no program: the bundle runs /bin/sh");
    }
    if let Some(left_out) = left_out(&unpacked.left_out, caller) {
        note(&format!("note: {left_out}"));
    }
    let (details, place) = (&opened.details, args.place.display().to_string());
    if args.node.json {
        let LeftOut { owners, devices, attributes } = unpacked.left_out;
        return print_json(&json!({
            "reference": details.reference,
            "digest": details.digest,
            "bundle": place,
            "files": unpacked.files,
            "bytes": unpacked.bytes,
            "left_out": { "owners": owners, "devices": devices, "attributes": attributes },
        }));
    }
    print(&format!(
        "{} {} unpacked to {}: {} with {}\n",
        harmless(&details.reference),
        details.digest,
        harmless(&place),
        count(usize::try_from(unpacked.files).unwrap_or(usize::MAX), "file"),
        show_size(unpacked.bytes)
    ))
}

/// What there is to say of what was left out, if something was.
fn left_out(left_out: &LeftOut, caller: Caller) -> Option<String> {
    let number = |number: u64, what: &str| count(usize::try_from(number).unwrap_or(usize::MAX), what);
    let parts = [
        (left_out.owners, format!("{} did not get their owners", number(left_out.owners, "file"))),
        (left_out.devices, format!("{} left out", number(left_out.devices, "device"))),
        (
            left_out.attributes,
            format!(
                "{} not set, which this file system or user cannot",
                number(left_out.attributes, "extended attribute")
            ),
        ),
    ];
    let parts: Vec<String> =
        parts.into_iter().filter(|(number, _)| *number > 0).map(|(_, text)| text).collect();
    let why = if caller.uid == 0 { "" } else { "you are not root: " };
    (!parts.is_empty()).then(|| format!("{why}{}", parts.join(", ")))
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Layer(error) => error.into(),
            error => Self::new(error.to_string()),
        }
    }
}
