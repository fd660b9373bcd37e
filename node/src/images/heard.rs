//! What is known of a tag while it is found out what it means.

use tokio::time::{Instant, timeout_at};
use wherry_gateway::Reference;
use wherry_gateway::server::Source;
use wherry_proto::{Resolution, TagRecord, TagWord};

use super::{ImageError, Images, Resolved, TagEntry, TagPolicy, blocking};
use crate::swarm::LinkClass;

/// What is known of a tag before the origin is asked.
pub(super) struct Heard {
    pub(super) known: Option<TagEntry>,
    pub(super) source: Source,
    // The best of those that lie too far ahead of the clock.
    pub(super) ahead: Option<TagRecord>,
}

impl Heard {
    /// What the tag means, unless that was taken back.
    pub(super) fn meaning(&self) -> Option<&TagEntry> {
        self.known.as_ref().filter(|entry| entry.counts())
    }

    /// Nobody gives what was pushed: an origin is not asked instead, since what it has under this name is something else.
    pub(super) fn unless_lost(&self, reference: &Reference) -> Result<(), ImageError> {
        match self.meaning() {
            Some(entry) if entry.record.word == TagWord::Pushed => {
                Err(ImageError::Lost { what: reference.to_string(), digest: entry.record.digest })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn has_answer(&self) -> bool {
        self.meaning().is_some() || self.ahead.is_some()
    }

    /// What comes of this until then, or however late where there is nothing to serve instead. `None` if it is late.
    pub(super) async fn unless_late<T>(&self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        if self.has_answer() { timeout_at(until, work).await.ok() } else { Some(work.await) }
    }
}

impl Images {
    /// What a tag means that means this for good, whatever an origin would say.
    ///
    /// # Errors
    /// [`ImageError::Lost`] if it was pushed: an origin is not to be asked instead.
    pub(super) async fn held_fast(
        &self,
        reference: &Reference,
        heard: &Heard,
        for_all: bool,
    ) -> Result<Option<Resolved>, ImageError> {
        heard.unless_lost(reference)?;
        match heard.meaning().filter(|entry| self.is_frozen(reference, entry)) {
            Some(entry) => Ok(Some(self.frozen(reference, entry, for_all).await?)),
            None => Ok(None),
        }
    }

    pub(super) fn remembered(&self, reference: &Reference) -> Result<Heard, ImageError> {
        let known = self.0.records.tag_or_removed(reference)?;
        Ok(Heard { known, source: Source::Store, ahead: None })
    }

    /// What is known of a tag once all neighbours have been asked about it.
    pub(super) async fn ask_neighbours(&self, reference: &Reference) -> Result<Heard, ImageError> {
        let mut heard = self.remembered(reference)?;
        let said = |class| self.0.parts.site.records(reference, class);
        let (near, far) = tokio::join!(said(LinkClass::Lan), said(LinkClass::Wan));
        self.take_in(reference, near, LinkClass::Lan, &mut heard).await?;
        self.take_in(reference, far, LinkClass::Wan, &mut heard).await?;
        Ok(heard)
    }

    /// Takes in what all neighbours of a class say of a tag, until then where something is known already. Whether it means
    /// something else, or was confirmed, since; a move elsewhere is told here before anybody is answered.
    pub(super) async fn hear_all(
        &self,
        reference: &Reference,
        class: LinkClass,
        heard: &mut Heard,
        until: Instant,
    ) -> Result<bool, ImageError> {
        let asking = self.0.parts.site.records(reference, class);
        let said = heard.unless_late(until, asking).await.unwrap_or_default();
        self.take_in(reference, said, class, heard).await
    }

    async fn take_in(
        &self,
        reference: &Reference,
        said: Vec<TagRecord>,
        class: LinkClass,
        heard: &mut Heard,
    ) -> Result<bool, ImageError> {
        let before = heard.known.clone();
        for record in said {
            self.hear(reference, record, heard).await?;
        }
        if class == LinkClass::Wan
            && let (Some(before), Some(now)) = (&before, &heard.known)
            && (before.record.digest, before.record.word) != (now.record.digest, now.record.word)
        {
            self.tell_site([now.record.clone()]).await;
        }
        Ok(heard.known != before)
    }

    /// Whether a tag may move and no origin is asked about it, since it was pushed or its policy says so: of a move at another site
    /// this one hears from there alone.
    pub(super) fn asks_no_origin(&self, reference: &Reference, heard: &Heard) -> bool {
        let asks_none = |entry: &TagEntry| {
            entry.record.word == TagWord::Pushed
                || self.0.parts.tags.policy(reference) == TagPolicy::SiteFirst
        };
        heard.meaning().is_some_and(asks_none)
    }

    /// Takes in what a node says of a tag.
    async fn hear(
        &self,
        reference: &Reference,
        record: TagRecord,
        heard: &mut Heard,
    ) -> Result<(), ImageError> {
        let newer = heard.known.as_ref().is_none_or(|entry| record.supersedes(&entry.record));
        if heard.known.as_ref().is_some_and(|known| self.thaws(reference, known, &record)) {
            return Ok(());
        }
        if newer && self.is_ahead(&record) {
            if heard.ahead.as_ref().is_none_or(|other| record.supersedes(other)) {
                heard.ahead = Some(record);
            }
            return Ok(());
        }
        let confirmed = self.credible(record.time);
        let same = heard.known.as_ref().is_some_and(|entry| entry.record.digest == record.digest);
        if newer || (same && self.is_fresh(reference, confirmed)) {
            let entry = TagEntry { record, confirmed, since: (self.0.parts.clock)() };
            let (images, reference) = (self.clone(), reference.clone());
            let change = move || {
                let stays = |known: &TagEntry| images.thaws(&reference, known, &entry.record);
                images.change_tag(&reference, |known| (!known.is_some_and(stays)).then(|| entry.clone()))
            };
            heard.known = blocking(change).await?;
            heard.source = Source::Peer;
            self.is_news();
        }
        Ok(())
    }

    /// The same with the manifest, if it came too and is what the tag means as far as is known now.
    pub(super) async fn hear_with_manifest(
        &self,
        reference: &Reference,
        told: Resolution,
        heard: &mut Heard,
    ) -> Result<(), ImageError> {
        self.hear(reference, told.record.clone(), heard).await?;
        if heard.meaning().is_some_and(|known| known.record.digest == told.record.digest) {
            self.manifest_told(reference, &told).await;
        }
        Ok(())
    }
}

/// When an origin was asked, and what was known then.
pub(super) struct Asking {
    /// In seconds since the Unix epoch. What it says counts from then on: the answer may have been long on its way.
    pub(super) at: u64,
    /// The sequence of the record that was known.
    pub(super) before: Option<u64>,
}

impl Asking {
    /// Whether this was learned since.
    pub(super) fn is_before(&self, known: &TagEntry) -> bool {
        self.before.is_none_or(|before| known.record.sequence > before)
    }
}
