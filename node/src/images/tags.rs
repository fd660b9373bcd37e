//! What a tag means, by its policy.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use wherry_gateway::origin::{ManifestHead, OriginError, describe};
use wherry_gateway::server::Source;
use wherry_gateway::{Host, Manifest, Reference, TagOrDigest};
use wherry_proto::{NodeId, TagMeaning, TagRecord, TagWord};

use super::heard::{Asking, Heard};
use super::{ImageError, Images, ImagesParts, Resolved, TagEntry, TagPolicy, Unasked, blocking};
use crate::config::units::show_age;
use crate::swarm::LinkClass;

/// How long all that is done about a tag may take when the site knows an answer that can serve instead: clients give up
/// after 10 s.
const ANSWER_TIME: Duration = Duration::from_secs(8);

/// How much of that may go by with asking; the rest is for peers to give the manifest that is known.
const ASKING_TIME: Duration = Duration::from_secs(6);

/// The same for whoever asks the origin for all of its site: it has answered before the others, who wait for
/// [`RESOLVE_TIME`](crate::swarm::RESOLVE_TIME), turn away.
const ASKING_TIME_FOR_ALL: Duration = Duration::from_secs(3);

/// How long an origin is waited for when the site knows an older answer, and nobody was asked before.
const PATIENCE_WITH_ANSWER: Duration = Duration::from_secs(4);

/// The same once the node that asks for all of its site did not come by a new answer: mostly this one will not either.
/// With [`RESOLVE_TIME`](crate::swarm::RESOLVE_TIME) less than [`ASKING_TIME`], so that it is known in the end that the
/// origin is out of reach.
const PATIENCE_AFTER_ANOTHER: Duration = Duration::from_millis(1500);

/// How long an origin is waited for when it is the only hope.
const PATIENCE: Duration = Duration::from_secs(25);

/// Of how many tags at once the site is told.
const TOLD_AT_ONCE: usize = 16;

/// What an origin said, without the rest.
pub(super) fn why(error: &ImageError) -> String {
    match error {
        ImageError::Unknown { origin, .. } => origin.to_string(),
        other => other.to_string(),
    }
}

fn silent(host: &Host, what: String, waited: Duration) -> OriginError {
    let why = format!("it gave no answer within {:.1} s", waited.as_secs_f32());
    OriginError::Unreachable { host: host.to_string(), what, why }
}

impl Resolved {
    /// After another node asked the origin for this one: what it says may be from a moment ago all the same.
    fn just_asked(self) -> Self {
        let is_new = self.age.is_some_and(|age| age <= ANSWER_TIME);
        Self { unasked: self.unasked.filter(|_| !is_new), ..self }
    }
}

impl Images {
    /// What a tag means as the first of the other nodes says that reaches the origin.
    pub(super) async fn tag_by_anybody(&self, reference: &Reference) -> Result<Option<Resolved>, ImageError> {
        let Some(told) = self.0.parts.site.resolve(reference, true).await else { return Ok(None) };
        let mut heard = self.remembered(reference)?;
        self.hear_with_manifest(reference, told, &mut heard).await?;
        let resolved = self.fresh(reference, &heard, Instant::now() + ANSWER_TIME).await?;
        Ok(resolved.map(Resolved::just_asked))
    }

    /// What the origin says now, asked by this node itself.
    pub(super) async fn tag_anew(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        // Somebody may have pushed it to another node.
        let known = self.ask_neighbours(reference).await?.known;
        let stays =
            |entry: &TagEntry| entry.record.word == TagWord::Pushed || self.is_frozen(reference, entry);
        if known.as_ref().is_some_and(stays) {
            return self.manifest_by_tag(reference, false).await;
        }
        let patience = if known.is_some() { PATIENCE_WITH_ANSWER } else { PATIENCE };
        // As if nothing were known, so that one that was out of reach a moment ago is asked too.
        self.ask_origin(reference, known.as_ref(), false, patience).await
    }

    /// `for_all`: as in [`Images::resolve_for`].
    pub(super) async fn manifest_by_tag(
        &self,
        reference: &Reference,
        for_all: bool,
    ) -> Result<Resolved, ImageError> {
        let began = Instant::now();
        let until = began + if for_all { ASKING_TIME_FOR_ALL } else { ASKING_TIME };
        let mut heard = self.remembered(reference)?;
        // A move that was told while this node was away, or not yet started, it has not heard of.
        let meetings = self.0.parts.site.meetings();
        let caught_up = self.0.caught_up.has(reference, meetings);
        if caught_up && let Some(resolved) = self.fresh(reference, &heard, until).await? {
            return Ok(resolved);
        }
        self.hear_all(reference, LinkClass::Lan, &mut heard, until).await?;
        let mut is_asked_afar = !caught_up && self.asks_no_origin(reference, &heard);
        if is_asked_afar {
            self.hear_all(reference, LinkClass::Wan, &mut heard, until).await?;
        }
        self.0.caught_up.add(reference, meetings);
        if (!caught_up || heard.source == Source::Peer)
            && let Some(resolved) = self.fresh(reference, &heard, until).await?
        {
            return Ok(resolved);
        }
        // Nobody here gives what it meant: elsewhere it may mean something else by now.
        if !is_asked_afar && self.asks_no_origin(reference, &heard) {
            is_asked_afar = true;
            let until = Instant::now() + (ANSWER_TIME - ASKING_TIME);
            if self.hear_all(reference, LinkClass::Wan, &mut heard, until).await?
                && let Some(resolved) = self.fresh(reference, &heard, until).await?
            {
                return Ok(resolved);
            }
        }
        if let Some(resolved) = self.held_fast(reference, &heard, for_all).await? {
            return Ok(resolved);
        }
        let mut patience = PATIENCE_WITH_ANSWER;
        // While the origin counts as out of reach here, the one before in rank was of no use a moment ago.
        let in_vain = heard.has_answer() && self.is_down(reference.host(), String::new()).is_some();
        if !for_all && !in_vain {
            patience = PATIENCE_AFTER_ANOTHER;
            let resolving = self.0.parts.site.resolve(reference, false);
            if let Some(Some(told)) = heard.unless_late(until, resolving).await {
                self.hear_with_manifest(reference, told, &mut heard).await?;
                if let Some(resolved) = self.fresh(reference, &heard, until).await? {
                    return Ok(resolved.just_asked());
                }
                if let Some(resolved) = self.held_fast(reference, &heard, for_all).await? {
                    return Ok(resolved);
                }
            }
        }
        // One node asks those at other sites, as it asks the origin: for all of its own.
        if !is_asked_afar && self.hear_all(reference, LinkClass::Wan, &mut heard, until).await? {
            if let Some(resolved) = self.fresh(reference, &heard, until).await? {
                return Ok(resolved);
            }
            if let Some(resolved) = self.held_fast(reference, &heard, for_all).await? {
                return Ok(resolved);
            }
        }
        let patience = match heard.has_answer() {
            true => patience.min(until.saturating_duration_since(Instant::now())),
            false => PATIENCE,
        };
        let asking = self.ask_origin(reference, heard.known.as_ref(), heard.has_answer(), patience);
        let mut error = match heard.unless_late(until, asking).await {
            Some(Ok(resolved)) => return Ok(resolved),
            Some(Err(error)) => error,
            None => {
                let what = describe(reference.repository(), reference.target());
                let origin = silent(reference.host(), what, began.elapsed());
                ImageError::Unknown { what: reference.to_string(), origin: Box::new(origin) }
            }
        };
        // What was learned while the origin was asked counts too.
        if let Some(now) = self.0.records.tag_or_removed(reference)?
            && heard.known.as_ref().is_none_or(|known| now.record.supersedes(&known.record))
        {
            (heard.known, heard.source) = (Some(now), Source::Store);
        }
        // Others may reach what this node does not. Where an answer is known, there is no time for it.
        if !for_all
            && !heard.has_answer()
            && let Some(told) = self.0.parts.site.resolve(reference, true).await
        {
            self.hear_with_manifest(reference, told, &mut heard).await?;
        }
        let until = (began + ANSWER_TIME).max(Instant::now() + (ANSWER_TIME - ASKING_TIME));
        if let Some(record) = heard.ahead.clone() {
            warn!(
                %reference, signer = %record.signer(), sequence = record.sequence,
                "a tag record lies more than a day ahead of this node's clock: one of the two clocks is wrong. \
                 It serves while the origin does not answer, and is not kept"
            );
            let entry = TagEntry { confirmed: self.credible(record.time), record, since: 0 };
            error = match self.known_instead(reference, &entry, Source::Peer, error, until).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => error,
            };
        }
        match heard.meaning() {
            Some(entry) => self.known_instead(reference, entry, heard.source, error, until).await,
            None => Err(error),
        }
    }

    /// The manifest of what is known of a tag, if an origin said so lately and it can be had until then.
    async fn fresh(
        &self,
        reference: &Reference,
        heard: &Heard,
        until: Instant,
    ) -> Result<Option<Resolved>, ImageError> {
        let Some(entry) = heard.meaning() else { return Ok(None) };
        let policy = self.0.parts.tags.policy(reference);
        let unasked = match entry.record.word {
            TagWord::Pushed => Unasked::Pushed,
            _ if policy != TagPolicy::OriginFirst => Unasked::Policy(policy),
            _ if self.is_fresh(reference, entry.confirmed) => Unasked::Lately,
            _ => return Ok(None),
        };
        let given = timeout_at(until, self.known_manifest(reference, entry, heard.source)).await;
        Ok(given.unwrap_or(Ok(None))?.map(|resolved| Resolved { unasked: Some(unasked), ..resolved }))
    }

    /// The origin cannot say what the tag means now: the newest answer that the site knows.
    async fn known_instead(
        &self,
        reference: &Reference,
        entry: &TagEntry,
        source: Source,
        error: ImageError,
        until: Instant,
    ) -> Result<Resolved, ImageError> {
        let given = timeout_at(until, self.known_manifest(reference, entry, source)).await;
        match given.unwrap_or(Ok(None))? {
            Some(resolved) => {
                let (age, error) = (resolved.age.map_or_else(|| "unknown".to_owned(), show_age), why(&error));
                info!(%reference, age, error, "the origin does not answer: the site's newest answer serves");
                Ok(Resolved { unasked: Some(Unasked::Silent(error)), ..resolved })
            }
            None => Err(error),
        }
    }

    /// The manifest that a tag is known to mean, from the store or from peers.
    async fn known_manifest(
        &self,
        reference: &Reference,
        entry: &TagEntry,
        source: Source,
    ) -> Result<Option<Resolved>, ImageError> {
        let record = &entry.record;
        let media_type = record.media_type.as_str();
        let (manifest, source) = match self.believed_manifest(record.digest, media_type).await? {
            Some(manifest) => (manifest, source),
            None => match self.manifest_from_peers(record.digest, media_type).await? {
                Some(manifest) => (manifest, Source::Peer),
                None => return Ok(None),
            },
        };
        self.learn(reference, &manifest).await?;
        let age = self.age(entry.confirmed);
        Ok(Some(Resolved { manifest, source, age, unasked: Some(Unasked::Lately) }))
    }

    /// What the origin says now, within so long. Asked once more where the site has learned of a move meanwhile: the
    /// answer may be from before that.
    async fn ask_origin(
        &self,
        reference: &Reference,
        known: Option<&TagEntry>,
        has_answer: bool,
        patience: Duration,
    ) -> Result<Resolved, ImageError> {
        let until = Instant::now() + patience;
        let entry = match self.ask_once(reference, known, has_answer, until).await? {
            Ok(resolved) => return Ok(resolved),
            Err(entry) => entry,
        };
        let TagEntry { record, confirmed, .. } =
            match self.ask_once(reference, Some(&entry), has_answer, until).await? {
                Ok(resolved) => return Ok(resolved),
                Err(entry) => entry,
            };
        // It moves faster than the origin answers: whoever told of it last has asked after this node.
        let target = TagOrDigest::Digest(record.digest);
        let by_digest = Reference::new(reference.host().clone(), reference.repository().clone(), target);
        let resolved = self.manifest_by_digest(&by_digest, record.digest, true).await?;
        let age = self.age(confirmed);
        Ok(Resolved { age, unasked: Some(Unasked::Lately), ..resolved }.just_asked())
    }

    /// What the origin says, or what the site has learned while it was asked.
    async fn ask_once(
        &self,
        reference: &Reference,
        known: Option<&TagEntry>,
        has_answer: bool,
        until: Instant,
    ) -> Result<Result<Resolved, TagEntry>, ImageError> {
        let (host, repository) = (reference.host(), reference.repository());
        let what = describe(repository, reference.target());
        let mut asking = self.asking(reference)?;
        let head = match self.is_down(host, what.clone()).filter(|_| has_answer) {
            Some(error) => Err(error),
            None => {
                let began = Instant::now();
                let asked = self.0.parts.origins.head(host, repository, reference.target());
                let head = timeout_at(until, asked).await;
                let head = head.unwrap_or_else(|_| Err(silent(host, what, began.elapsed())));
                let moves = |head: &ManifestHead| known.is_some_and(|it| it.record.digest != head.digest);
                let head = match head {
                    // A mirror may be behind its origin, and no tag moves backwards for that.
                    Ok(head) if head.mirrored && moves(&head) => {
                        let what = describe(repository, reference.target());
                        let asked = self.0.parts.origins.head_of_origin(host, repository, reference.target());
                        let head = timeout_at(until, asked).await;
                        head.unwrap_or_else(|_| Err(silent(host, what, began.elapsed())))
                    }
                    head => head,
                };
                // Only what was really answered counts, or asking often would keep an origin down.
                head.inspect_err(|origin| self.note_down(host, origin))
            }
        };
        let head = match head {
            Ok(head) => head,
            Err(origin) => {
                if matches!(origin, OriginError::Unauthorized { .. }) {
                    warn!(%reference, error = %origin, "the origin refuses this node");
                }
                return Err(ImageError::Unknown { what: reference.to_string(), origin: Box::new(origin) });
            }
        };
        // A HEAD is not counted by registries that limit pulls, and often the manifest is at hand already.
        let mut at_hand = None;
        if let Some(manifest) = self.stored_manifest(head.digest, Some(&head.media_type)).await? {
            at_hand = Some((manifest, Source::Store));
        } else if let Some(entry) = known
            && entry.record.digest == head.digest
        {
            let record = &entry.record;
            let found = self.manifest_from_peers(record.digest, &record.media_type).await?;
            at_hand = found.map(|manifest| (manifest, Source::Peer));
        }
        let (manifest, source) = match at_hand {
            Some(found) => {
                self.learn(reference, &found.0).await?;
                found
            }
            None => {
                // By its digest, since whoever is asked may say something else of the tag, and so may a mirror.
                let by_digest = reference.with_target(TagOrDigest::Digest(head.digest));
                match self.manifest_from_origin(&by_digest).await {
                    Err(ImageError::Unknown { origin, .. }) if !origin.is_unreachable() => {
                        // Some registries have it under its tag alone.
                        asking = self.asking(reference)?;
                        (self.manifest_from_origin(reference).await?, Source::Origin)
                    }
                    manifest => (manifest?, Source::Origin),
                }
            }
        };
        let (moved, overtaken) = self.change(reference, &manifest, Some(asking), TagWord::Resolved).await?;
        self.tell_site(moved).await;
        Ok(match overtaken {
            None => Ok(Resolved { manifest, source, age: Some(Duration::ZERO), unasked: None }),
            Some(entry) => Err(entry),
        })
    }

    fn asking(&self, reference: &Reference) -> Result<Asking, ImageError> {
        let known = self.0.records.tag_or_removed(reference)?;
        Ok(Asking { at: (self.0.parts.clock)(), before: known.map(|entry| entry.record.sequence) })
    }

    /// Signs and remembers what a tag means now, as an origin says that was asked so; `None` if none was. Returns what the
    /// site is to be told before anybody is answered, if the tag meant something else. Where another meaning has been learned
    /// since the origin was asked nothing changes, and that is returned instead.
    pub(super) async fn change(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        asking: Option<Asking>,
        word: TagWord,
    ) -> Result<(Option<TagRecord>, Option<TagEntry>), ImageError> {
        let (images, reference, manifest) = (self.clone(), reference.clone(), manifest.clone());
        let now = (self.0.parts.clock)();
        let (at, confirmed) = asking.as_ref().map_or((now, 0), |asking| (asking.at, asking.at));
        let changing = blocking(move || {
            let (mut before, mut overtaken) = (None, None);
            let entry = images.change_tag(&reference, |known| {
                before = known.filter(|it| it.counts()).map(|it| (it.record.digest, it.record.word));
                let newer = known.filter(|known| known.counts()).filter(|known| {
                    let is_another = known.record.digest != *manifest.digest();
                    if is_another && images.is_frozen(&reference, known) {
                        return true;
                    }
                    // What an origin has under the name of what was pushed is something else, whenever it was asked.
                    asking.as_ref().is_some_and(|asking| {
                        known.record.word == TagWord::Pushed || (is_another && asking.is_before(known))
                    })
                });
                overtaken = newer.cloned();
                if overtaken.is_some() {
                    return None;
                }
                let known = known.map(|entry| &entry.record);
                let record = images.sign(&reference, &manifest, known, at, confirmed, word);
                Some(TagEntry { record: record?, confirmed, since: now })
            })?;
            images.is_news();
            // What it means is no move where it was not known: nobody heard another meaning from here.
            let is_new = |now: &TagEntry| before.is_some_and(|it| it != (now.record.digest, now.record.word));
            // Others may know what it meant though this node did not.
            let moved = entry.filter(|now| word == TagWord::Pushed || is_new(now));
            Ok((moved.map(|entry| entry.record), overtaken))
        });
        changing.await
    }

    /// Tells the site what tags mean now. Before anybody is answered: once a client has seen what one means now, nobody at the
    /// site may say what it meant before, even if this node is gone.
    pub async fn tell_site(&self, moved: impl IntoIterator<Item = TagRecord>) {
        let told = moved.into_iter().map(|record| self.0.parts.site.moved(record));
        stream::iter(told).for_each_concurrent(TOLD_AT_ONCE, |told| told).await;
    }

    /// Takes in what a node of the site has just learned of a tag, if a member signed it that may resolve, and the tag is
    /// known here: who knows nothing of it says nothing old. Whether that is what is said here from now on, or something
    /// newer, or nothing. Reads the disk, and writes only where the record is newer than what is known.
    pub fn told(&self, asker: &NodeId, record: &TagRecord) -> Result<bool, ImageError> {
        let ImagesParts { certificate, clock, .. } = &self.0.parts;
        if let Err(why) = record.check(&certificate.network, clock(), 0) {
            if let Some(left_out) = self.0.seldom.say(asker) {
                info!(peer = %asker, reference = %record.reference, %why, left_out, "a tag record is passed over");
            }
            return Ok(false);
        }
        // One that is written in another way nobody would find.
        let reference = record.reference.parse::<Reference>().ok();
        let reference = reference.filter(|it| it.to_string() == record.reference.as_str());
        let Some(reference) = reference.filter(|it| it.target().tag().is_some() && !self.is_ahead(record))
        else {
            return Ok(false);
        };
        let known = self.0.records.tag_or_removed(&reference)?;
        let Some(known) = known.filter(|known| record.supersedes(&known.record)) else { return Ok(true) };
        if self.thaws(&reference, &known, record) {
            return Ok(false);
        }
        let entry =
            TagEntry { record: record.clone(), confirmed: self.credible(record.time), since: clock() };
        // It may have been forgotten meanwhile.
        let stays = |known: &&TagEntry| !self.thaws(&reference, known, record);
        self.change_tag(&reference, |known| known.filter(stays).map(|_| entry.clone()))?;
        if (record.digest, record.word) != (known.record.digest, known.record.word) {
            self.is_news();
        }
        Ok(true)
    }

    /// Changes what is known of a tag, as [`Records::change_tag`](super::Records::change_tag) does, and remembers what it
    /// meant before. Reads the disk.
    pub(super) fn change_tag(
        &self,
        reference: &Reference,
        change: impl FnMut(Option<&TagEntry>) -> Option<TagEntry>,
    ) -> Result<Option<TagEntry>, ImageError> {
        let (now, left) = self.0.records.change_tag(reference, self.latest(), change)?;
        if let Some(left) = left {
            self.0.records.add_before(reference, left, |digest| self.is_whole(reference, digest))?;
        }
        Ok(now)
    }

    /// Signs what a tag meant `at` a time, which an origin said at the `time`. `None` if it cannot be put into a record, which the reference's own bounds rule
    /// out.
    fn sign(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        known: Option<&TagRecord>,
        at: u64,
        time: u64,
        word: TagWord,
    ) -> Option<TagRecord> {
        let sequence = match known {
            Some(known) if known.digest == *manifest.digest() && known.word == word => known.sequence,
            // At least the time: a node that did not hear of the last record must not sign an older one's number.
            Some(known) => known.sequence.saturating_add(1).max(at),
            None => at,
        };
        let meaning = TagMeaning {
            reference: reference.to_string().parse().ok()?,
            digest: *manifest.digest(),
            media_type: manifest.media_type().parse().ok()?,
            size: manifest.size(),
            sequence,
            time,
            word,
        };
        Some(TagRecord::sign(&self.0.parts.key, &self.0.parts.certificate, meaning))
    }

    /// Gives a tag the meaning that an import says. No origin has confirmed it, so those who can reach one ask it all the
    /// same. What it returns is for [`Images::tell_site`].
    pub async fn set_tag(
        &self,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<Option<TagRecord>, ImageError> {
        self.learn(reference, manifest).await?;
        self.given(reference, self.change(reference, manifest, None, TagWord::Resolved).await?)
    }

    /// What a neighbour is told of a reference: what its tag means or, for a digest, that it belongs to the
    /// repository.
    pub fn vouch(&self, reference: &Reference) -> Option<TagRecord> {
        let Some(digest) = reference.target().digest() else {
            let known = self.0.records.tag_or_removed(reference).ok()?;
            return known.map(|entry| self.believable(entry.record));
        };
        let grant = self.0.records.grant(reference.host(), reference.repository(), digest).ok()??;
        let meaning = TagMeaning {
            reference: reference.to_string().parse().ok()?,
            digest: *digest,
            media_type: grant.media_type.parse().ok()?,
            size: grant.size,
            sequence: 0,
            time: 0,
            word: TagWord::Resolved,
        };
        Some(TagRecord::sign(&self.0.parts.key, &self.0.parts.certificate, meaning))
    }

    /// A record that others can check. One whose signer's certificate has expired since, as those of a long time
    /// without the operator have, is signed anew in this node's name, and so is one that this node signed before it
    /// joined the network. The sequence and the time stay what they are.
    fn believable(&self, record: TagRecord) -> TagRecord {
        let ImagesParts { key, certificate, clock, .. } = &self.0.parts;
        let own = record.signer() == key.node() && record.certificate != *certificate;
        if !own && clock() < record.certificate.expires {
            return record;
        }
        let TagRecord { reference, digest, media_type, size, sequence, time, word, .. } = record;
        let meaning = TagMeaning { reference, digest, media_type, size, sequence, time, word };
        TagRecord::sign(key, certificate, meaning)
    }
}
