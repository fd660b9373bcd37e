//! What a tag means, by the policy `origin-first`.

use std::time::Duration;

use tracing::{info, warn};
use wherry_gateway::Reference;
use wherry_gateway::origin::OriginError;
use wherry_gateway::server::Source;
use wherry_proto::{TagMeaning, TagRecord};

use super::{ImageError, Images, Resolved, TagEntry};

/// How far another node's clock may be ahead before its times count for nothing, in seconds.
const CLOCK_SKEW: u64 = 30;

/// How far ahead of this node's clock a record's sequence may lie, in seconds. Honest sequences are at most a few
/// above the time at which they were signed, so one beyond this comes from a wrong clock or from a member that wants
/// its word to win for ever.
///
/// Such a record is neither kept nor passed on, never counts as confirmed, and the origin is asked before it. It is
/// the last resort all the same: it may be this node's clock that is wrong, as after a start without a battery, when
/// every record of the site lies ahead, and the site's newest answer must still be had without its origin. A
/// member that lies wins nothing by it that it could not have within the bound, and nothing that lasts: whoever
/// resolves next signs a number that is higher than all that were kept.
const MAX_AHEAD: u64 = 24 * 60 * 60;

/// How long an origin is waited for when the site knows an older answer: clients give up after 10 s.
const PATIENCE_WITH_ANSWER: Duration = Duration::from_secs(4);

/// How long an origin is waited for when it is the only hope.
const PATIENCE: Duration = Duration::from_secs(25);

impl Images {
    pub(super) async fn manifest_by_tag(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        let _turn = self.0.turns.take(reference.to_string()).await;
        let mut known = self.0.records.tag(reference)?;
        if let Some(entry) = &known
            && self.is_fresh(entry.confirmed)
            && let Some(resolved) = self.known_manifest(reference, entry, Source::Store).await?
        {
            return Ok(resolved);
        }
        let mut source = Source::Store;
        let mut ahead: Option<TagRecord> = None;
        for record in self.0.parts.site.records(reference).await {
            let newer = known.as_ref().is_none_or(|entry| record.supersedes(&entry.record));
            if newer && self.is_ahead(&record) {
                if ahead.as_ref().is_none_or(|other| record.supersedes(other)) {
                    ahead = Some(record);
                }
                continue;
            }
            let confirmed = record.time;
            let same = known.as_ref().is_some_and(|entry| entry.record.digest == record.digest);
            if newer || (same && self.is_fresh(confirmed)) {
                known = Some(self.0.records.set_tag(reference, TagEntry { record, confirmed })?);
                source = Source::Peer;
            }
        }
        if let Some(entry) = &known
            && source == Source::Peer
            && self.is_fresh(entry.confirmed)
            && let Some(resolved) = self.known_manifest(reference, entry, source).await?
        {
            return Ok(resolved);
        }
        let has_answer = known.is_some() || ahead.is_some();
        let mut error = match self.ask_origin(reference, known.as_ref(), has_answer).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => error,
        };
        if let Some(record) = ahead {
            warn!(
                %reference, signer = %record.signer(), sequence = record.sequence,
                "a tag record lies more than a day ahead of this node's clock: one of the two clocks is wrong. \
                 It serves while the origin does not answer, and is not kept"
            );
            let entry = TagEntry { record, confirmed: 0 };
            error = match self.known_instead(reference, &entry, Source::Peer, error).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => error,
            };
        }
        match known {
            Some(entry) => self.known_instead(reference, &entry, source, error).await,
            None => Err(error),
        }
    }

    fn is_ahead(&self, record: &TagRecord) -> bool {
        record.sequence > (self.0.parts.clock)().saturating_add(MAX_AHEAD)
    }

    /// The origin cannot say what the tag means now: the newest answer that the site knows.
    async fn known_instead(
        &self,
        reference: &Reference,
        entry: &TagEntry,
        source: Source,
        error: ImageError,
    ) -> Result<Resolved, ImageError> {
        match self.known_manifest(reference, entry, source).await? {
            Some(resolved) => {
                let age = resolved.age.map_or(0, |age| age.as_secs());
                info!(%reference, age, %error, "the origin does not answer: the site's newest answer serves");
                Ok(resolved)
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
            None => match self.manifest_from_peers(record.digest, record.size, media_type).await? {
                Some(manifest) => (manifest, Source::Peer),
                None => return Ok(None),
            },
        };
        self.learn(reference, &manifest).await?;
        let age = (self.0.parts.clock)().saturating_sub(entry.confirmed.max(record.time));
        Ok(Some(Resolved { manifest, source, age: Some(Duration::from_secs(age)) }))
    }

    async fn ask_origin(
        &self,
        reference: &Reference,
        known: Option<&TagEntry>,
        has_answer: bool,
    ) -> Result<Resolved, ImageError> {
        let (host, repository) = (reference.host(), reference.repository());
        let patience = if has_answer { PATIENCE_WITH_ANSWER } else { PATIENCE };
        let head = match self.is_down(host).filter(|_| has_answer) {
            Some(error) => Err(error),
            None => {
                let asked = self.0.parts.origins.head(host, repository, reference.target());
                let head = tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| {
                    Err(OriginError::Unreachable {
                        host: host.to_string(),
                        what: reference.target().to_string(),
                        why: format!("it gave no answer within {} s", patience.as_secs()),
                    })
                });
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
            let found = self.manifest_from_peers(record.digest, record.size, &record.media_type).await?;
            at_hand = found.map(|manifest| (manifest, Source::Peer));
        }
        let (manifest, source) = match at_hand {
            Some(found) => {
                self.learn(reference, &found.0).await?;
                found
            }
            None => (self.manifest_from_origin(reference).await?, Source::Origin),
        };
        let now = (self.0.parts.clock)();
        let record = self.sign(reference, &manifest, known.map(|entry| &entry.record), now);
        if let Some(record) = record {
            self.0.records.set_tag(reference, TagEntry { record, confirmed: now })?;
        }
        Ok(Resolved { manifest, source, age: Some(Duration::ZERO) })
    }

    /// Signs what a tag means now. `None` if it cannot be put into a record, which the reference's own bounds rule
    /// out.
    pub(super) fn sign(
        &self,
        reference: &Reference,
        manifest: &wherry_gateway::Manifest,
        known: Option<&TagRecord>,
        now: u64,
    ) -> Option<TagRecord> {
        let sequence = match known {
            Some(known) if known.digest == *manifest.digest() => known.sequence,
            // At least the time: a node that did not hear of the last record must not sign an older one's number.
            Some(known) => known.sequence.saturating_add(1).max(now),
            None => now,
        };
        let meaning = TagMeaning {
            reference: reference.to_string().parse().ok()?,
            digest: *manifest.digest(),
            media_type: manifest.media_type().parse().ok()?,
            size: manifest.size(),
            sequence,
            time: now,
        };
        Some(TagRecord::sign(&self.0.parts.key, &self.0.parts.certificate, meaning))
    }

    /// Gives a tag a meaning that comes from this site: an import or a push.
    pub async fn set_tag(
        &self,
        reference: &Reference,
        manifest: &wherry_gateway::Manifest,
    ) -> Result<(), ImageError> {
        let _turn = self.0.turns.take(reference.to_string()).await;
        let known = self.0.records.tag(reference)?;
        let now = (self.0.parts.clock)();
        if let Some(record) = self.sign(reference, manifest, known.as_ref().map(|entry| &entry.record), now) {
            self.0.records.set_tag(reference, TagEntry { record, confirmed: 0 })?;
        }
        self.learn(reference, manifest).await?;
        Ok(())
    }

    /// What a neighbour is told of a reference: what its tag means or, for a digest, that it belongs to the
    /// repository.
    pub fn vouch(&self, reference: &Reference) -> Option<TagRecord> {
        let Some(digest) = reference.target().digest() else {
            return self.0.records.tag(reference).ok()?.map(|entry| entry.record);
        };
        let grant = self.0.records.grant(reference.host(), reference.repository(), digest).ok()??;
        let meaning = TagMeaning {
            reference: reference.to_string().parse().ok()?,
            digest: *digest,
            media_type: grant.media_type.parse().ok()?,
            size: grant.size,
            sequence: 0,
            time: (self.0.parts.clock)(),
        };
        Some(TagRecord::sign(&self.0.parts.key, &self.0.parts.certificate, meaning))
    }

    fn is_fresh(&self, confirmed: u64) -> bool {
        let now = (self.0.parts.clock)();
        confirmed <= now + CLOCK_SKEW && now.saturating_sub(confirmed) < self.0.parts.tag_ttl.as_secs()
    }
}
