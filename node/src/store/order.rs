//! In which order blobs make room: image by image, as far as it is known what the manifests that are here name.
//!
//! An image was last used when its manifest was, or a blob that it alone has; a blob that several images have when the last
//! of these was. Of one image the layers go, the smallest first, then its configuration, then its manifest: what tells what
//! is here, and what it belongs to, takes next to nothing, and goes when there is nothing left to tell of, and then at once.

use std::collections::{HashMap, HashSet};

use wherry_proto::Digest;

/// Of how many blobs in all it is known by which manifests they are named. What further manifests name makes room by its own
/// last use.
pub(super) const MAX_NAMED: usize = 1 << 17;

/// How many blobs one manifest may name for it to be taken in: more than images and indexes that anybody uses, and so few that
/// some that name as much as they can leave room for all others.
pub(super) const MAX_NAMED_BY_ONE: usize = 1 << 10;

/// What a manifest that is held names.
#[derive(Debug)]
pub(super) struct Named {
    /// A configuration, or manifests.
    pub(super) documents: Box<[Digest]>,
    /// Layers.
    pub(super) layers: Box<[Digest]>,
}

impl Named {
    pub(super) fn len(&self) -> usize {
        self.documents.len() + self.layers.len()
    }

    fn all(&self) -> impl Iterator<Item = &Digest> {
        self.documents.iter().chain(&self.layers)
    }
}

/// What there is to know of a held blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// When it was last used.
    pub(super) used: u64,
    /// Whether it may make room.
    pub(super) is_loose: bool,
    /// How many bytes that frees.
    pub(super) frees: u64,
}

/// What goes behind what, of equal age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Layer,
    Configuration,
    Manifest,
    Index,
}

/// When a blob goes: what sorts first goes first.
type Turn = (u64, Kind, u64);

/// The images that are held, as far as it is known what they name.
pub(super) struct Images<'a> {
    held: &'a HashMap<Digest, Held>,
    named: &'a HashMap<Digest, Named>,
    // Of what is named, by whom.
    by: HashMap<&'a Digest, Vec<&'a Digest>>,
    // All that any of them names as a document.
    documents: HashSet<&'a Digest>,
}

impl<'a> Images<'a> {
    pub(super) fn new(held: &'a HashMap<Digest, Held>, named: &'a HashMap<Digest, Named>) -> Self {
        let mut by: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
        for (manifest, names) in named {
            for part in names.all() {
                let by = by.entry(part).or_default();
                // It may name the same more than once.
                if by.last() != Some(&manifest) {
                    by.push(manifest);
                }
            }
        }
        let documents = named.values().flat_map(|names| names.documents.iter()).collect();
        Self { held, named, by, documents }
    }

    fn used(&self, digest: &Digest) -> u64 {
        self.held.get(digest).map_or(0, |held| held.used)
    }

    fn named_by(&self, digest: &Digest) -> &[&'a Digest] {
        self.by.get(digest).map_or(&[], Vec::as_slice)
    }

    /// When an image was last used, by its manifest: of one that an index names, also when that was.
    fn image_used(&self, manifest: &Digest) -> u64 {
        let indexes = self.named_by(manifest).iter().map(|index| self.used(index));
        let alone = self.named.get(manifest).into_iter().flat_map(|names| names.layers.iter());
        let alone = alone.filter(|layer| self.named_by(layer).iter().all(|it| *it == manifest));
        let alone = alone.map(|layer| self.used(layer));
        indexes.chain(alone).fold(self.used(manifest), u64::max)
    }

    /// Those that may make room, but what tells of blobs that are `coming`, in the order in which they go.
    pub(super) fn order(&self, coming: &HashSet<Digest>) -> Vec<Digest> {
        let images: HashMap<&Digest, u64> =
            self.named.keys().map(|manifest| (manifest, self.image_used(manifest))).collect();
        // Once for each: one that many images have is asked for by each of them.
        let of_images = |(layer, manifests): (&&'a Digest, &Vec<&Digest>)| {
            let images = manifests.iter().filter_map(|manifest| images.get(manifest));
            (*layer, images.fold(self.used(layer), |used, image| used.max(*image)))
        };
        let layers: HashMap<&Digest, u64> = self.by.iter().map(of_images).collect();
        let layer = |digest: &Digest| layers.get(digest).copied().unwrap_or_else(|| self.used(digest));
        // Never before any of its layers that is here.
        let mut tells: HashMap<&Digest, u64> = HashMap::new();
        for (manifest, names) in self.named {
            let here = names.layers.iter().filter(|it| self.held.contains_key(*it)).map(layer);
            let is_coming = names.all().any(|part| coming.contains(part));
            let own = if is_coming { u64::MAX } else { images[manifest] };
            tells.insert(manifest, here.fold(own, u64::max));
        }
        // Nor an index before what it names, be it an index itself.
        for _ in 0..2 {
            for (index, names) in self.named {
                let of_named = names.documents.iter().filter_map(|part| tells.get(part)).max().copied();
                if let (Some(of_named), Some(own)) = (of_named, tells.get_mut(index)) {
                    *own = of_named.max(*own);
                }
            }
        }
        let turn = |digest: &Digest, held: &Held| -> Turn {
            let kind = self.kind(digest);
            let age = match kind {
                Kind::Layer => layer(digest),
                Kind::Manifest | Kind::Index => tells[digest],
                Kind::Configuration => {
                    self.named_by(digest).iter().map(|manifest| tells[*manifest]).fold(held.used, u64::max)
                }
            };
            (age, kind, held.frees)
        };
        let loose = self.held.iter().filter(|(_, held)| held.is_loose);
        let mut order: Vec<(Turn, Digest)> =
            loose.map(|(digest, held)| (turn(digest, held), *digest)).collect();
        order.retain(|((age, kind, _), _)| *kind == Kind::Layer || *age < u64::MAX);
        order.sort_unstable();
        order.into_iter().map(|(_, digest)| digest).collect()
    }

    /// What has to stay so that a blob can stay, if all of these go: itself, and what tells of it. Nothing can where it only
    /// tells of others, and all of these go.
    pub(super) fn with_what_tells_of(&self, digest: &Digest, going: &HashSet<Digest>) -> Vec<Digest> {
        let stays = |part: &Digest| self.held.contains_key(part) && !going.contains(part);
        let tells = |manifest: &Digest| {
            let is_manifest = |part: &&Digest| self.named.contains_key(*part);
            self.named.get(manifest).is_some_and(|names| {
                let of_documents = names.documents.iter().filter(is_manifest).any(stays);
                of_documents || names.layers.iter().any(stays)
            })
        };
        let is_of_use = match self.kind(digest) {
            Kind::Layer => true,
            Kind::Manifest | Kind::Index => tells(digest),
            Kind::Configuration => self.named_by(digest).iter().any(|manifest| tells(manifest)),
        };
        if !is_of_use {
            return Vec::new();
        }
        let (mut together, mut looked_at) = (vec![*digest], HashSet::new());
        let mut manifests: Vec<&Digest> = self.named_by(digest).to_vec();
        while let Some(manifest) = manifests.pop() {
            if looked_at.insert(manifest) {
                let documents = self.named[manifest].documents.iter().filter(|it| going.contains(*it));
                together.extend(documents.filter(|it| self.kind(it) == Kind::Configuration));
                together.push(*manifest);
                manifests.extend(self.named_by(manifest));
            }
        }
        together.retain(|it| going.contains(it));
        together.sort_unstable();
        together.dedup();
        together
    }

    /// What tells of nothing any more once these go, but of blobs that are `coming`: it goes with them.
    pub(super) fn left_with_nothing(&self, going: &HashSet<Digest>, coming: &HashSet<Digest>) -> Vec<Digest> {
        let mut left: HashSet<Digest> = HashSet::new();
        let may_go = |digest: &Digest| {
            !going.contains(digest) && self.held.get(digest).is_some_and(|held| held.is_loose)
        };
        for (manifest, names) in self.named.iter().filter(|(manifest, _)| may_go(manifest)) {
            let layers = || names.layers.iter().filter(|layer| self.held.contains_key(*layer));
            let is_coming = || names.all().any(|part| coming.contains(part));
            if layers().next().is_some() && layers().all(|layer| going.contains(layer)) && !is_coming() {
                left.insert(*manifest);
            }
        }
        let goes = |left: &HashSet<Digest>, digest: &Digest| left.contains(digest) || going.contains(digest);
        let manifests: Vec<Digest> = left.iter().copied().collect();
        for manifest in &manifests {
            for document in self.named[manifest].documents.iter().filter(|document| may_go(document)) {
                if self.named_by(document).iter().all(|manifest| goes(&left, manifest)) {
                    left.insert(*document);
                }
            }
            for index in self.named_by(manifest).iter().filter(|index| may_go(index)) {
                let mut here = self.named[*index].documents.iter().filter(|it| self.held.contains_key(*it));
                if here.all(|document| goes(&left, document)) {
                    left.insert(**index);
                }
            }
        }
        left.into_iter().collect()
    }

    fn kind(&self, digest: &Digest) -> Kind {
        let is_manifest = |part: &Digest| self.named.contains_key(part);
        match self.named.get(digest) {
            Some(names) if names.documents.iter().any(is_manifest) => Kind::Index,
            Some(_) => Kind::Manifest,
            None if self.documents.contains(digest) => Kind::Configuration,
            None => Kind::Layer,
        }
    }
}
