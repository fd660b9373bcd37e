//! `wherry diff`.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use wherry_proto::Digest;

use super::args::DiffArgs;
use super::page::row;
use super::source::{Opened, Task, look};
use crate::cli::environment::Environment;
use crate::cli::failure::Failure;
use crate::cli::output::{count, harmless, print, print_json};
use crate::config::units::show_size;
use crate::images::inspect::{ImageDetails, RunDetails};
use crate::layers::{Change, Image, compare};

/// How two images differ.
#[derive(Debug, Serialize)]
pub(super) struct Difference {
    a: Side,
    b: Side,
    layers: Layers,
    config: Vec<Setting>,
    added: Vec<Change>,
    changed: Vec<Change>,
    removed: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Side {
    reference: String,
    digest: Digest,
    platform: String,
}

/// Which layers whose are, each once.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Layers {
    shared: Vec<Part>,
    only_a: Vec<Part>,
    only_b: Vec<Part>,
    shared_bytes: u64,
    only_a_bytes: u64,
    only_b_bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Part {
    digest: Digest,
    size: u64,
}

/// Something of the configuration that is not the same.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    name: String,
    a: Option<String>,
    b: Option<String>,
}

pub(in crate::cli) async fn run(args: &DiffArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let a = Opened::new(&client, &args.node, &args.a, args.platform.as_ref()).await?;
    let b = Opened::new(&client, &args.node, &args.b, args.platform.as_ref()).await?;
    a.needs(a.layers.len())?;
    b.needs(b.layers.len())?;
    // What both begin with is read once.
    let common = a.layers.iter().zip(&b.layers).take_while(|(a, b)| a == b).count();
    let bytes = a.size(a.layers.len()) + b.size(b.layers.len()) - b.size(common);
    let (ours, theirs) = (a.layers.clone(), b.layers.clone());
    let task = Task { name: "reading", bytes, interrupted: "the layers were not read to their end" };
    let changes = look(&client, &[&a, &b], environment, task, move |blobs| {
        let (of_a, of_b) = (ours.len(), theirs.len());
        let mut before = Image::new(ours);
        before.read_hashed(common, blobs)?;
        let mut after = before.go_on_with(theirs);
        before.read_hashed(of_a, blobs)?;
        after.read_hashed(of_b, blobs)?;
        Ok(compare(before.tree(), after.tree()))
    })
    .await?;
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        match (&change.before, &change.after) {
            (None, _) => added.push(change),
            (_, None) => removed.push(change),
            _ => changed.push(change),
        }
    }
    let difference = Difference {
        a: side(&a.details),
        b: side(&b.details),
        layers: layers(&a.details, &b.details),
        config: settings(&a.details.run, &b.details.run),
        added,
        changed,
        removed,
    };
    if args.node.json { print_json(&difference) } else { print(&page(&difference)) }
}

fn side(details: &ImageDetails) -> Side {
    let ImageDetails { reference, digest, platform, .. } = details;
    Side { reference: reference.clone(), digest: *digest, platform: platform.clone() }
}

fn layers(a: &ImageDetails, b: &ImageDetails) -> Layers {
    let of = |details: &ImageDetails| -> HashSet<Digest> {
        details.layers.iter().map(|layer| layer.blob.digest).collect()
    };
    let (of_a, of_b, mut seen) = (of(a), of(b), HashSet::new());
    let mut found = Layers::default();
    for layer in a.layers.iter().chain(&b.layers).filter(|layer| seen.insert(layer.blob.digest)) {
        let (digest, size) = (layer.blob.digest, layer.blob.size);
        let (list, bytes) = match (of_a.contains(&digest), of_b.contains(&digest)) {
            (true, true) => (&mut found.shared, &mut found.shared_bytes),
            (true, false) => (&mut found.only_a, &mut found.only_a_bytes),
            _ => (&mut found.only_b, &mut found.only_b_bytes),
        };
        list.push(Part { digest, size });
        *bytes += size;
    }
    found
}

fn settings(a: &RunDetails, b: &RunDetails) -> Vec<Setting> {
    let words =
        |list: &[String]| (!list.is_empty()).then(|| serde_json::Value::from(list.to_vec()).to_string());
    let word = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut all = vec![
        ("entrypoint".to_owned(), words(&a.entrypoint), words(&b.entrypoint)),
        ("command".to_owned(), words(&a.cmd), words(&b.cmd)),
        ("user".to_owned(), word(&a.user), word(&b.user)),
        ("directory".to_owned(), word(&a.working_dir), word(&b.working_dir)),
        ("stop signal".to_owned(), a.stop_signal.clone(), b.stop_signal.clone()),
    ];
    fn name(variable: &str) -> &str {
        variable.split('=').next().unwrap_or_default()
    }
    let value = |env: &[String], wanted: &str| {
        let variable = env.iter().rev().find(|variable| name(variable) == wanted)?;
        Some(variable.split_once('=').map_or("", |(_, value)| value).to_owned())
    };
    let variables: BTreeSet<&str> = a.env.iter().chain(&b.env).map(|it| name(it)).collect();
    all.extend(variables.into_iter().map(|it| (format!("env {it}"), value(&a.env, it), value(&b.env, it))));
    let labels: BTreeSet<&String> = a.labels.keys().chain(b.labels.keys()).collect();
    let label = |run: &RunDetails, name: &String| run.labels.get(name).cloned();
    all.extend(labels.into_iter().map(|it| (format!("label {it}"), label(a, it), label(b, it))));
    let different = all.into_iter().filter(|(_, a, b)| a != b);
    different.map(|(name, a, b)| Setting { name, a, b }).collect()
}

fn page(difference: &Difference) -> String {
    let mut out = String::new();
    for (name, side) in [("a", &difference.a), ("b", &difference.b)] {
        let line = format!("{name}  {} {} {}", side.reference, side.digest, side.platform);
        out += &format!("{}\n", harmless(line.trim_end()));
    }
    let layers = &difference.layers;
    out += "\nlayers\n";
    for (whose, parts, bytes) in [
        ("in both", &layers.shared, layers.shared_bytes),
        ("only in a", &layers.only_a, layers.only_a_bytes),
        ("only in b", &layers.only_b, layers.only_b_bytes),
    ] {
        out += &format!("{whose:<9}  {} with {}\n", count(parts.len(), "layer"), show_size(bytes));
        for part in parts {
            out += &format!("           {} {:>10}\n", part.digest, show_size(part.size));
        }
    }
    if !difference.config.is_empty() {
        out += "\nconfiguration\n";
    }
    for setting in &difference.config {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let line = format!("{}: {} -> {}", setting.name, shown(&setting.a), shown(&setting.b));
        out += &format!("{}\n", harmless(&line));
    }
    let Difference { added, changed, removed, .. } = difference;
    out += &format!("\nfiles: {} added, {} changed, {} removed\n", added.len(), changed.len(), removed.len());
    for change in added.iter().chain(changed).chain(removed) {
        out += &row(change);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_compared_one_by_one() {
        let run = |env: &[&str], user: &str, label: &str| RunDetails {
            env: env.iter().map(|it| (*it).to_owned()).collect(),
            user: user.to_owned(),
            labels: [("by".to_owned(), label.to_owned())].into(),
            cmd: vec!["sh".to_owned(), "-c x".to_owned()],
            ..RunDetails::default()
        };
        let (a, b) = (run(&["A=1", "B=2", "C=="], "", "x"), run(&["B=3", "D=4", "C=="], "ann", "x"));
        let found = settings(&a, &b);
        let setting = |name: &str, a: Option<&str>, b: Option<&str>| Setting {
            name: name.to_owned(),
            a: a.map(str::to_owned),
            b: b.map(str::to_owned),
        };
        let expected = [
            setting("user", None, Some("ann")),
            setting("env A", Some("1"), None),
            setting("env B", Some("2"), Some("3")),
            setting("env D", None, Some("4")),
        ];
        assert_eq!(found, expected);
        assert_eq!(settings(&a, &a), []);
    }
}
