//! `wherry inspect`.

use std::time::Duration;

use super::args::InspectArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{count, harmless, print, print_json};
use crate::config::units::{show_age, show_size};
use crate::control::api::InspectRequest;
use crate::images::TagDetails;
use crate::images::inspect::{ImageDetails, LayerState};

/// How much of an instruction is shown, in characters; `--json` has all of it.
const MAX_SHOWN: usize = 200;

pub(super) async fn run(args: &InspectArgs, environment: &Environment) -> Result<(), Failure> {
    let platform = args.platform.as_ref().map(ToString::to_string);
    let request = InspectRequest { reference: args.reference.clone(), platform };
    let details = args.node.client(environment).inspect(&request).await?;
    if args.node.json { print_json(&details) } else { print(&page(&details)) }
}

pub(super) fn page(image: &ImageDetails) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            out += &format!("{name:<11} {}\n", harmless(value));
        }
    };
    line("image", &image.reference);
    line("manifest", &format!("{} {}", image.digest, image.media_type));
    if let Some(tag) = &image.tag {
        line("tag", &tag_line(tag));
    }
    line("config", &format!("{} {}", image.config.digest, image.config.media_type));
    line("platform", &image.platform);
    line("created", image.created.as_deref().unwrap_or_default());
    let shared = match image.shared_size {
        0 => String::new(),
        bytes => format!(", of which {} are shared with other images here", show_size(bytes)),
    };
    line("size", &format!("{} in {}{shared}", show_size(image.size), count(image.layers.len(), "layer")));
    if image.layers.iter().any(|layer| layer.state != LayerState::Here) {
        let has = |state| image.layers.iter().any(|layer| layer.state == state);
        let rest = match (has(LayerState::Arriving), has(LayerState::Damaged)) {
            (true, _) => "it is on its way",
            (false, true) => "a layer was damaged: pull the image to bring what is wrong of it again",
            (false, false) => "pull the image to bring the rest",
        };
        line("here", &format!("{} of it; {rest}", show_size(image.here)));
    }
    let run = &image.run;
    line("entrypoint", &words(&run.entrypoint));
    line("command", &words(&run.cmd));
    line("user", &run.user);
    line("directory", &run.working_dir);
    line("ports", &run.ports.join(" "));
    line("volumes", &run.volumes.join(" "));
    line("stop signal", run.stop_signal.as_deref().unwrap_or_default());
    for variable in &run.env {
        line("env", variable);
    }
    for (name, value) in &run.labels {
        line("label", &format!("{name}={value}"));
    }

    out += "\nlayers, the base first\n";
    for (number, layer) in image.layers.iter().enumerate() {
        let kind = layer.blob.media_type.rsplit('.').next().unwrap_or_default();
        out += &format!(
            "{:>4}  {}  {:>10}  {}  {}\n",
            number + 1,
            layer.blob.digest,
            show_size(layer.blob.size),
            harmless(kind),
            match layer.state {
                LayerState::Here => "here".to_owned(),
                LayerState::Partly => format!("partly here, {}", show_size(layer.here)),
                LayerState::Arriving => format!("on its way, {} here", show_size(layer.here)),
                LayerState::Damaged => format!("damaged, {} of it still here", show_size(layer.here)),
                LayerState::Missing => "missing".to_owned(),
            }
        );
        if let Some(instruction) = &layer.instruction {
            out += &format!("      {}\n", shortened(instruction));
        }
        if !layer.shared_with.is_empty() {
            out += &format!("      shared with {}\n", harmless(&layer.shared_with.join(", ")));
        }
    }

    let metadata: Vec<_> = image.history.iter().filter(|step| step.layer.is_none()).collect();
    if !metadata.is_empty() {
        out += match image.history_fits {
            true => "\nsteps that made no layer\n",
            false => "\nsteps of a history that does not fit the layers\n",
        };
        for step in metadata {
            out += &format!("      {}\n", shortened(&step.instruction));
        }
    }
    out
}

fn tag_line(tag: &TagDetails) -> String {
    let said = match (tag.pushed, tag.age) {
        (true, _) => format!("pushed to this site by {}, policy {}", tag.by, tag.policy),
        (false, Some(age)) => {
            let age = show_age(Duration::from_secs(age));
            format!("its registry said so {age} ago to {}, policy {}", tag.by, tag.policy)
        }
        (false, None) => format!("no registry has said so; policy {}", tag.policy),
    };
    match &tag.moved {
        Some(digest) => format!("{said}; it means {digest} now"),
        None => said,
    }
}

fn shortened(instruction: &str) -> String {
    let text = harmless(instruction);
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A command as the list that it is, since blanks within a word would be lost otherwise.
fn words(list: &[String]) -> String {
    if list.is_empty() { String::new() } else { serde_json::Value::from(list.to_vec()).to_string() }
}
