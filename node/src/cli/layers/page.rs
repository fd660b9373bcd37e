//! What layers do, for people.

use super::LayerPage;
use crate::cli::output::{count, harmless};
use crate::config::units::show_size;
use crate::layers::{Aspect, Change, FileState};

/// What a layer does to those below it.
pub(super) fn layer(page: &LayerPage) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| out += &format!("{name:<11} {}\n", harmless(value));
    line("image", &page.reference);
    line("layer", &format!("{} of {}", page.number, page.of));
    line("digest", &format!("{} {} {}", page.digest, show_size(page.size), page.media_type));
    if let Some(diff_id) = &page.diff_id {
        line("content", &diff_id.to_string());
    }
    if let Some(instruction) = &page.instruction {
        line("made by", instruction);
    }
    let (added, changed, removed) = (page.added.len(), page.changed.len(), page.removed.len());
    line("does", &format!("{added} added, {changed} changed, {removed} removed"));
    out.push('\n');
    for change in page.added.iter().chain(&page.changed).chain(&page.removed) {
        out += &row(change);
    }
    if !page.whiteouts.is_empty() {
        out += "\nwhiteouts\n";
    }
    for whiteout in &page.whiteouts {
        let hides = match whiteout.hides {
            0 => "hides nothing: no layer below has it".to_owned(),
            hides => format!("hides {}", count(hides, "file")),
        };
        let all = if whiteout.opaque { ", all that layers below have in it" } else { "" };
        out += &format!("  {}  {hides}{all}\n", harmless(&whiteout.path));
    }
    out
}

/// A path and what is different there: added, changed or removed.
pub(super) fn row(change: &Change) -> String {
    let letter = match (&change.before, &change.after) {
        (None, _) => 'A',
        (_, None) => 'R',
        _ => 'C',
    };
    let Some(state) = change.after.as_ref().or(change.before.as_ref()) else { return String::new() };
    let owner = format!("{}:{}", state.owner, state.group);
    let size = state.size.map(show_size).unwrap_or_default();
    let target = state.target.as_ref().map(|it| format!(" -> {it}")).unwrap_or_default();
    let changed = match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("  ({})", aspects(&change.changed, before, after)),
        _ => String::new(),
    };
    let line = format!(
        "{letter} {:<12} {} {owner:<9} {size:>10}  {}{target}{changed}",
        state.kind, state.mode, change.path
    );
    harmless(&line) + "\n"
}

fn aspects(changed: &[Aspect], before: &FileState, after: &FileState) -> String {
    let size = |state: &FileState| state.size.map(show_size).unwrap_or_default();
    let target = |state: &FileState| state.target.clone().unwrap_or_default();
    let told = changed.iter().map(|aspect| match aspect {
        Aspect::Type => format!("was a {}", before.kind),
        Aspect::Content if before.size == after.size => "content".to_owned(),
        Aspect::Content => format!("content, was {}", size(before)),
        Aspect::Target => format!("was {}", target(before)),
        Aspect::Mode => format!("mode, was {}", before.mode),
        Aspect::Owner => format!("owner, was {}:{}", before.owner, before.group),
        Aspect::Attributes => "extended attributes".to_owned(),
    });
    told.collect::<Vec<_>>().join("; ")
}
