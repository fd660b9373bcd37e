//! The book with a clock: those who take and give over links that lead out of the site ask here, and wait here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use wherry_proto::{Certificate, NodeId, PauseRecord, SecretKey, SiteName, TextError, WanWord};

use super::book::{Book, HeldTo, LimitSettings, Limited, Now, Spent, Way};
use super::keep::Keep;
use super::report::WanStatus;
use super::window::Moment;
use super::words::explain;
use crate::status::Metrics;
use crate::store::{Store, StoreError};

/// Gives the time, and what the clock on the wall shows.
pub type MomentClock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// By how much the sequence of a pause record may be ahead of this node's clock, in seconds: one that is farther ahead would
/// be hard to replace, and is not kept.
const MAX_AHEAD: u64 = 86_400;

/// What limits are made of.
pub struct LimitParts {
    /// What is limited.
    pub settings: LimitSettings,
    /// Signs pause records.
    pub key: SecretKey,
    /// What admits this node to its network.
    pub certificate: Certificate,
    /// The site that holds the limits together.
    pub site: String,
    /// Keeps what is to outlive a restart.
    pub store: Store,
    /// Counts what crosses.
    pub metrics: Metrics,
    /// The time.
    pub clock: MomentClock,
}

/// Why limits cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The index failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The site's name cannot be sent.
    #[error("the site's name is not usable: {0}")]
    Site(#[from] TextError),
    /// These limits belong to no node.
    #[error("this node has no site that could pause")]
    NoSite,
}

struct Voice {
    key: SecretKey,
    certificate: Certificate,
    site: SiteName,
}

impl Voice {
    fn sign(&self, paused: bool, sequence: u64, time: u64) -> PauseRecord {
        PauseRecord::sign(&self.key, &self.certificate, self.site.clone(), paused, sequence, time)
    }
}

/// The limits of a node. Clones share them. Nothing here waits for the disk, but for what says so.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    book: Mutex<Book>,
    clock: MomentClock,
    begun: Instant,
    limited: watch::Sender<Option<Limited>>,
    // Whether anything may leave the site.
    gives: watch::Sender<bool>,
    // Those who ask peers at other sites for chunks, one after the other.
    line: tokio::sync::Mutex<()>,
    voice: Option<Voice>,
    keep: Option<Keep>,
    metrics: Metrics,
    stirred: Notify,
    // That the neighbours are to be told at once.
    news: AtomicBool,
    // That the pause record in the book is not written down.
    unsaved_pause: AtomicBool,
    // What was spent when it was written down last.
    written: Mutex<Spent>,
    // Whoever writes the pause record holds it from reading the book on: an older record never replaces a newer one.
    pen: Mutex<()>,
}

impl Limits {
    /// Limits that say no to nothing, of a node that tells nobody.
    pub fn none(me: NodeId) -> Self {
        let book = Book::new(LimitSettings::default(), me, Spent::default(), None);
        Self::of(book, Arc::new(super::moment), None, None, Metrics::default())
    }

    /// Limits with what an earlier run left of them. Waits for the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn new(parts: LimitParts) -> Result<Self, LimitError> {
        let LimitParts { settings, key, certificate, site, store, metrics, clock } = parts;
        let voice = Voice { key, certificate, site: site.parse()? };
        let keep = Keep::open(&store)?;
        let network = voice.certificate.network;
        // A node may have moved to another site or network since. That the signer's certificate has expired meanwhile ends
        // no pause.
        let pause = keep.pause()?.filter(|record| record.check(&network, &site, 0, 0).is_ok());
        let book = Book::new(settings, voice.key.node(), keep.spent()?, pause);
        let limits = Self::of(book, clock, Some(voice), Some(keep), metrics);
        limits.settle();
        Ok(limits)
    }

    fn of(
        book: Book,
        clock: MomentClock,
        voice: Option<Voice>,
        keep: Option<Keep>,
        metrics: Metrics,
    ) -> Self {
        let written = book.spent().clone();
        Self(Arc::new(Inner {
            book: Mutex::new(book),
            clock,
            begun: Instant::now(),
            limited: watch::Sender::new(None),
            gives: watch::Sender::new(true),
            line: tokio::sync::Mutex::default(),
            voice,
            keep,
            metrics,
            stirred: Notify::new(),
            news: AtomicBool::new(false),
            unsaved_pause: AtomicBool::new(false),
            written: Mutex::new(written),
            pen: Mutex::default(),
        }))
    }

    fn now(&self) -> Now {
        let tick = u64::try_from(self.0.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { moment: (self.0.clock)(), tick }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // The book is whole between any two of its changes.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Spent> {
        // It is replaced as a whole.
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the book, and tells those who watch if it says something else now.
    fn with<T>(&self, work: impl FnOnce(&mut Book, Now) -> T) -> T {
        let now = self.now();
        let mut book = self.book();
        let was_active = book.is_active(now);
        let done = work(&mut book, now);
        let limited = book.limited(Way::Down, now);
        let gives = book.limited(Way::Up, now).is_none();
        self.0.gives.send_if_modified(|before| std::mem::replace(before, gives) != gives);
        let begins = !was_active && book.is_active(now);
        // Where nobody counts nobody has to know.
        let is_news = begins && book.counts();
        let is_other = self.0.limited.send_if_modified(|before| {
            let is_other = *before != limited;
            *before = limited;
            is_other
        });
        let is_urgent = book.is_urgent(&self.written());
        drop(book);
        if is_news {
            self.0.news.store(true, Ordering::Relaxed);
        }
        if begins || is_other || is_urgent {
            self.0.stirred.notify_one();
        }
        if is_other {
            match limited {
                Some(limited) => {
                    info!(why = self.explain(&limited), "nothing is taken from outside the site")
                }
                None => info!("bytes may come from outside the site again"),
            }
        }
        done
    }

    /// Time may have changed what the limits say.
    pub(super) fn settle(&self) {
        self.with(|_, _| {});
    }

    /// Why no bytes come into the site now; `None` if they may.
    pub fn limited(&self) -> Option<Limited> {
        self.with(|book, now| book.limited(Way::Down, now))
    }

    /// The same, and every change of it.
    pub fn watch(&self) -> watch::Receiver<Option<Limited>> {
        self.0.limited.subscribe()
    }

    /// What a limit means, in plain words.
    pub fn explain(&self, limited: &Limited) -> String {
        explain(limited, self.book().settings(), (self.0.clock)().offset)
    }

    /// For how long a limit will hold as far as is known: a minute, where that depends on people.
    pub fn wait(&self, limited: &Limited) -> Duration {
        let until = limited.until.map(|until| until.saturating_sub((self.0.clock)().utc));
        Duration::from_secs(until.unwrap_or(60))
    }

    /// How fast bytes may come into the site, in bytes a second, if that is limited.
    pub fn rate(&self) -> Option<u64> {
        self.book().settings().down
    }

    /// The rate that holds up what comes by way of this node, if that is what does.
    pub fn held_to(&self) -> Option<HeldTo> {
        let now = self.now();
        self.book().held_to(now)
    }

    /// Bytes have come over a link that leads out of the site, and are small enough that nobody waits.
    pub fn count(&self, bytes: u64) {
        self.0.metrics.wan_received.inc_by(bytes);
        self.with(|book, now| book.count(now, bytes));
    }

    /// Bytes have come over a link that leads out. Returns when the next may be taken.
    pub async fn taken(&self, bytes: u64) {
        self.paced(bytes).await;
        self.open().await;
    }

    /// Bytes have come over a link that leads out. Returns when the next may be taken by the rate alone.
    pub async fn paced(&self, bytes: u64) {
        self.0.metrics.wan_received.inc_by(bytes);
        let next = self.with(|book, now| {
            book.count(now, bytes);
            book.pass(Way::Down, now, bytes)
        });
        self.sleep_until(next).await;
    }

    /// Returns when so many bytes may be asked of a peer at another site; [`Limits::count`] is to be told once they are
    /// here.
    pub async fn turn(&self, bytes: u64) {
        let _first = self.0.line.lock().await;
        self.open().await;
        let next = self.with(|book, now| book.next(Way::Down, now));
        self.sleep_until(next).await;
        self.with(|book, now| book.pass(Way::Down, now, bytes));
    }

    /// Returns when no limit says no.
    pub async fn open(&self) {
        // The sender lives as long as this does.
        let _ = self.watch().wait_for(Option::is_none).await;
    }

    async fn sleep_until(&self, tick: u64) {
        // The timer would take up to a millisecond, and this is called for each piece of what comes.
        if tick <= self.now().tick {
            return;
        }
        sleep_until(self.0.begun + Duration::from_micros(tick)).await;
    }

    /// Whether anything may leave the site now.
    pub fn gives(&self) -> bool {
        self.with(|book, now| book.limited(Way::Up, now)).is_none()
    }

    /// What [`Limits::gives`] says, and every change of it.
    pub fn giving(&self) -> watch::Receiver<bool> {
        self.0.gives.subscribe()
    }

    /// How long it is until bytes may leave the site, by the rate.
    pub fn until_giving(&self) -> Duration {
        self.with(|book, now| Duration::from_micros(book.next(Way::Up, now) - now.tick))
    }

    /// Bytes leave the site.
    pub fn gave(&self, bytes: u64) {
        self.0.metrics.wan_sent.inc_by(bytes);
        self.with(|book, now| book.pass(Way::Up, now, bytes));
    }

    /// Has the site pause, or go on. Durable when it returns; the neighbours are for the caller to tell. Waits for the disk.
    ///
    /// # Errors
    /// When it cannot be written down; it holds until the next start all the same.
    pub fn pause(&self, paused: bool) -> Result<PauseRecord, LimitError> {
        let voice = self.0.voice.as_ref().ok_or(LimitError::NoSite)?;
        let record = self.with(|book, now| {
            let known = book.pause().map_or(0, |known| known.sequence);
            let utc = now.moment.utc;
            // At least the time: a node that did not hear of the last record must not sign an older one's number.
            let record = voice.sign(paused, known.saturating_add(1).max(utc), utc);
            book.adopt(record.clone());
            record
        });
        self.write_pause()?;
        Ok(record)
    }

    /// Writes down the newest pause record. What fails is tried again with the next save. Waits for the disk.
    fn write_pause(&self) -> Result<(), StoreError> {
        let Some(keep) = &self.0.keep else { return Ok(()) };
        // It guards nothing that could be left half-changed.
        let _pen = self.0.pen.lock().unwrap_or_else(PoisonError::into_inner);
        // First: what is adopted from here on raises it again.
        self.0.unsaved_pause.store(false, Ordering::SeqCst);
        let record = self.book().pause().cloned();
        let written = record.map_or(Ok(()), |record| keep.put_pause(&record));
        if written.is_err() {
            self.0.unsaved_pause.store(true, Ordering::SeqCst);
            self.0.stirred.notify_one();
        }
        written
    }

    /// What a neighbour of this site says, be it in a question or an answer. A new record of the site's pause is passed on.
    pub fn hear(&self, node: NodeId, word: &WanWord) {
        let record = word.pause.as_ref().filter(|record| self.believes(node, record));
        let is_news = self.with(|book, now| {
            book.hear(now, node, word);
            record.is_some_and(|record| book.adopt(record.clone()))
        });
        if is_news {
            self.0.unsaved_pause.store(true, Ordering::SeqCst);
            self.tell_news();
        }
    }

    fn believes(&self, node: NodeId, record: &PauseRecord) -> bool {
        let Some(voice) = &self.0.voice else { return false };
        let now = (self.0.clock)().utc;
        if self.book().pause().is_some_and(|known| !record.supersedes(known)) {
            return false;
        }
        if record.sequence > now.saturating_add(MAX_AHEAD) {
            info!(peer = %node, "a pause record is far ahead of this node's clock and is passed over");
            return false;
        }
        let checked = record.check(&voice.certificate.network, voice.site.as_str(), now, 0);
        checked.inspect_err(|why| info!(peer = %node, %why, "a pause record is passed over")).is_ok()
    }

    /// A neighbour has gone.
    pub fn gone(&self, node: &NodeId) {
        self.with(|book, _| book.gone(node));
    }

    /// What this node tells its neighbours.
    pub fn word(&self) -> WanWord {
        let mut word = self.with(Book::word);
        // One whose signer's certificate has expired since is signed anew, so that others can check it.
        if let (Some(record), Some(voice)) = (&mut word.pause, &self.0.voice)
            && record.certificate.expires <= (self.0.clock)().utc
        {
            *record = voice.sign(record.paused, record.sequence, record.time);
        }
        word
    }

    /// What may be seen of it.
    pub fn status(&self) -> WanStatus {
        let limited = self.limited();
        let why = limited.map(|limited| self.explain(&limited));
        self.with(|book, now| {
            let (spent_here, spent) = book.spent_today(now);
            let LimitSettings { down, up, budget, windows } = book.settings().clone();
            WanStatus {
                limited,
                why,
                down,
                up,
                budget,
                windows: windows.iter().map(ToString::to_string).collect(),
                spent,
                spent_here,
                received: self.0.metrics.wan_received.get(),
                sent: self.0.metrics.wan_sent.get(),
                taking: if book.word(now).takes { book.sharers(Way::Down, now) } else { 0 },
            }
        })
    }

    /// Returns when the neighbours are to be told something at once, or the limits say something else.
    pub(super) async fn stirred(&self) {
        self.0.stirred.notified().await;
    }

    /// The neighbours are to be told at once.
    pub(super) fn tell_news(&self) {
        self.0.news.store(true, Ordering::Relaxed);
        self.0.stirred.notify_one();
    }

    /// Whether whoever said this knows at least what this node knows of the site's pause.
    pub(super) fn knows_no_more_than(&self, word: &WanWord) -> bool {
        let book = self.book();
        let theirs = word.pause.as_ref();
        book.pause().is_none_or(|own| theirs.is_some_and(|theirs| !own.supersedes(theirs)))
    }

    /// Whether there is something to be told at once; asked once for each.
    pub(super) fn take_news(&self) -> bool {
        self.0.news.swap(false, Ordering::Relaxed)
    }

    /// Whether the neighbours are told every second what this node does.
    pub(super) fn is_to_tell(&self) -> bool {
        self.with(|book, now| book.counts() && book.is_active(now))
    }

    /// How long it is until the limits may say something else without anything happening.
    pub(super) fn until_change(&self) -> Option<Duration> {
        self.with(|book, now| {
            let change = book.next_change(now)?;
            Some(Duration::from_secs(change.saturating_sub(now.moment.utc)))
        })
    }

    /// Whether what was spent is worth a write.
    pub(super) fn unsaved(&self) -> bool {
        self.0.unsaved_pause.load(Ordering::SeqCst) || self.book().is_worth_writing(&self.written())
    }

    /// Whether so much was spent since that it is to be written down at once.
    pub(super) fn is_urgent(&self) -> bool {
        self.book().is_urgent(&self.written())
    }

    /// Whether this node uses the links now, so that more may be spent.
    pub(super) fn is_active(&self) -> bool {
        self.with(|book, now| book.is_active(now))
    }

    /// Writes down what is to outlive a restart. Waits for the disk.
    pub(super) fn save(&self) {
        let (spent, is_worth, has_budget) = {
            let book = self.book();
            let is_worth = book.is_worth_writing(&Spent::default());
            (book.spent().clone(), is_worth, book.settings().budget.is_some())
        };
        // Also where it fails below: a disk that takes nothing is not asked time and again.
        self.written().clone_from(&spent);
        let Some(keep) = &self.0.keep else { return };
        let news = self.0.unsaved_pause.load(Ordering::SeqCst);
        let pause = if news { self.write_pause() } else { Ok(()) };
        let sums = if is_worth { keep.put_spent(&spent, has_budget) } else { Ok(()) };
        if let Err(error) = pause.and(sums) {
            warn!(%error, "what was spent and whether the site pauses is not written down");
        }
        debug!(day = spent.day, "what was spent is written down");
    }

    /// Writes down the last of it, since the node ends. Waits for the disk.
    pub fn close(&self) {
        self.save();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use futures::FutureExt as _;
    use wherry_proto::Roles;

    use super::*;
    use crate::store::StoreSettings;

    const NOW: u64 = 1_800_000_000;

    fn limits(store: &Store, seed: u8) -> Limits {
        let network = SecretKey::from_seed([9; 32]);
        let key = SecretKey::from_seed([seed; 32]);
        let certificate = Certificate::sign(&network, key.node(), Roles::MEMBER, 0, u64::MAX);
        Limits::new(LimitParts {
            settings: LimitSettings::default(),
            key,
            certificate,
            site: "here".to_owned(),
            store: store.clone(),
            metrics: Metrics::default(),
            clock: Arc::new(|| Moment { utc: NOW, offset: 0 }),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn where_nothing_is_limited_no_piece_waits_for_a_timer() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(&Store::open(dir.path(), StoreSettings::default()).unwrap(), 1);
        assert!(limits.taken(1000).now_or_never().is_some());
        assert!(limits.turn(1000).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_was_taken_in_today_outlives_a_restart_where_nothing_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let first = limits(&store, 1);
        assert!(!first.unsaved(), "a node that has taken in nothing writes nothing");
        first.taken(1000).await;
        first.count(24);
        assert!(first.is_active() && first.unsaved());
        first.save();
        assert!(!first.unsaved(), "it is written once");
        // What neighbours spend they say themselves.
        let (elsewhere, mut word) = (SecretKey::from_seed([2; 32]).node(), first.word());
        word.spent = 500;
        first.hear(elsewhere, &word);
        assert_eq!(first.status().spent, 1524);
        assert!(!first.unsaved());
        let status = limits(&store, 1).status();
        assert_eq!((status.spent_here, status.spent), (1024, 1024));
    }

    #[tokio::test]
    async fn however_commands_neighbours_and_saves_meet_the_newest_record_is_written_down() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let (ours, theirs) =
            (limits(&store, 1), limits(&Store::open(elsewhere.path(), StoreSettings::default()).unwrap(), 2));
        let is_over = AtomicBool::new(false);
        for round in 0..40 {
            is_over.store(false, Ordering::SeqCst);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        ours.save();
                    }
                });
                theirs.hear(ours.0.voice.as_ref().unwrap().key.node(), &ours.word());
                theirs.pause(true).unwrap();
                ours.hear(theirs.0.voice.as_ref().unwrap().key.node(), &theirs.word());
                if round % 2 == 0 {
                    ours.pause(false).unwrap();
                }
                is_over.store(true, Ordering::SeqCst);
            });
            // What the node does every some seconds, and when it ends.
            ours.save();
            let newest = ours.word().pause;
            assert_eq!(Keep::open(&store).unwrap().pause().unwrap(), newest, "round {round}");
        }
    }
}
