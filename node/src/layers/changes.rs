//! What is different in two trees of files. Pure.

use serde::{Deserialize, Serialize};

use super::tree::{InodeId, Kind, Tree};

/// How a file is, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// `file`, `folder`, `link`, `char-device`, `block-device` or `pipe`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The permissions in octal digits, such as `0755`.
    pub mode: String,
    /// The number of the user that owns it.
    pub owner: u32,
    /// The number of the group that owns it.
    pub group: u32,
    /// Of a file, how many bytes it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Of a link what it points at, and of a device its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What of a file may be different. When it was changed last is not looked at: builders set that as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// It is something else.
    Type,
    /// What is in it.
    Content,
    /// What a link points at, or the numbers of a device.
    Target,
    /// Its permissions.
    Mode,
    /// The user or group that owns it.
    Owner,
    /// Its extended attributes.
    Attributes,
}

/// A path at which two trees are different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where, with a slash in front; what is not UTF-8 in it is replaced.
    pub path: String,
    /// How it was; `None` if nothing was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<FileState>,
    /// How it is; `None` if nothing is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<FileState>,
    /// What of it is different, if something is there in both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Aspect>,
}

/// All paths at which two trees are different, in the order of names, a folder before what is in it.
pub fn compare(before: &Tree, after: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut path = Vec::new();
    both(before, after, Tree::ROOT, Tree::ROOT, &mut path, &mut changes);
    changes
}

/// As deep as the trees are, which is bounded.
fn both(
    before: &Tree,
    after: &Tree,
    old: InodeId,
    new: InodeId,
    path: &mut Vec<u8>,
    changes: &mut Vec<Change>,
) {
    let changed = aspects(before, after, old, new);
    if !changed.is_empty() {
        let (before, after) = (Some(state(before, old)), Some(state(after, new)));
        changes.push(Change { path: shown(path), before, after, changed });
    }
    let (mut olds, mut news) = (before.children(old).peekable(), after.children(new).peekable());
    loop {
        let next = match (olds.peek(), news.peek()) {
            (None, None) => return,
            (Some((name, _)), None) | (None, Some((name, _))) => *name,
            (Some((old, _)), Some((new, _))) => *(old).min(new),
        };
        let old = olds.next_if(|(name, _)| *name == next).map(|(_, inode)| inode);
        let new = news.next_if(|(name, _)| *name == next).map(|(_, inode)| inode);
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(next);
        match (old, new) {
            (Some(old), Some(new)) => both(before, after, old, new, path, changes),
            (Some(old), None) => one(before, old, path, changes, |state| (Some(state), None)),
            (None, Some(new)) => one(after, new, path, changes, |state| (None, Some(state))),
            (None, None) => {}
        }
        path.truncate(length);
    }
}

/// What one of the trees alone has.
fn one(
    tree: &Tree,
    id: InodeId,
    path: &mut Vec<u8>,
    changes: &mut Vec<Change>,
    side: fn(FileState) -> (Option<FileState>, Option<FileState>),
) {
    let (before, after) = side(state(tree, id));
    changes.push(Change { path: shown(path), before, after, changed: Vec::new() });
    for (name, child) in tree.children(id) {
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(name);
        one(tree, child, path, changes, side);
        path.truncate(length);
    }
}

fn aspects(before: &Tree, after: &Tree, old: InodeId, new: InodeId) -> Vec<Aspect> {
    let (old, new) = (before.inode(old), after.inode(new));
    let kind = match (&old.kind, &new.kind) {
        (Kind::Folder, Kind::Folder) | (Kind::Pipe, Kind::Pipe) => None,
        (Kind::File { size, place, sha256 }, Kind::File { size: now, place: there, sha256: hash }) => {
            // Without hashes what does not come from the same place counts as different.
            let same = size == now
                && match (sha256, hash) {
                    (Some(old), Some(new)) => old == new,
                    _ => place == there,
                };
            (!same).then_some(Aspect::Content)
        }
        (Kind::Symlink(old), Kind::Symlink(new)) => (old != new).then_some(Aspect::Target),
        (Kind::CharDevice(..), Kind::CharDevice(..)) | (Kind::BlockDevice(..), Kind::BlockDevice(..)) => {
            (old.kind != new.kind).then_some(Aspect::Target)
        }
        _ => Some(Aspect::Type),
    };
    let (was, is) = (&old.attributes, &new.attributes);
    let mode = (was.mode != is.mode).then_some(Aspect::Mode);
    let owner = ((was.owner, was.group) != (is.owner, is.group)).then_some(Aspect::Owner);
    let attributes = (was.xattrs != is.xattrs).then_some(Aspect::Attributes);
    // Permissions of a link mean nothing, and builders write what they like.
    let mode = mode.filter(|_| !matches!((&old.kind, &new.kind), (Kind::Symlink(_), Kind::Symlink(_))));
    [kind, mode, owner, attributes].into_iter().flatten().collect()
}

fn state(tree: &Tree, id: InodeId) -> FileState {
    let inode = tree.inode(id);
    let (kind, size, target) = match &inode.kind {
        Kind::Folder => ("folder", None, None),
        Kind::File { size, .. } => ("file", Some(*size), None),
        Kind::Symlink(target) => ("link", None, Some(String::from_utf8_lossy(target).into_owned())),
        Kind::CharDevice(major, minor) => ("char-device", None, Some(format!("{major}:{minor}"))),
        Kind::BlockDevice(major, minor) => ("block-device", None, Some(format!("{major}:{minor}"))),
        Kind::Pipe => ("pipe", None, None),
    };
    let attributes = &inode.attributes;
    FileState {
        kind: kind.to_owned(),
        mode: format!("{:04o}", attributes.mode),
        owner: attributes.owner,
        group: attributes.group,
        size,
        target,
    }
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}
