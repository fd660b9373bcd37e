//! Small questions: one long-lived stream to each neighbour, on which they are pipelined, and one from it.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream;
use futures::{AsyncRead, AsyncWrite, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use wherry_proto::{
    Answer, Ask, BlobName, Digest, Holding, Lead, LeadRefusal, List, MAX_TAG_PAGE, NodeId, Question, Reply,
    Resolution, Role, TagPage,
};

use super::actor::Command;
use super::codec::{WireError, read_within, write_within};
use super::errands::{Errand, Errands};
use super::holdings::Holdings;
use super::leading::{LEAD_TIME, RESOLVE_TIME};
use super::neighbours::{LinkClass, Neighbours};

/// How many questions to one neighbour may be under way; further ones go unanswered.
pub const MAX_ASKED: usize = 256;

/// How long a link is quiet before a neighbour of the site is asked whether it is there: one whose machine has lost its power
/// counts as gone after this and [`REPLY_TIME`]. Sooner is dearer, since each asks all others.
pub const PING_TIME: Duration = Duration::from_secs(30);

/// The same for one at another site: what is asked by each of a site about each of another goes over links that may be thin and paid
/// by the byte, and whoever is asked for something there is waited for by few, and not for long. Short enough for the address
/// translators on the way, which forget a TCP connection that has been quiet for five minutes or longer.
pub const FAR_PING_TIME: Duration = Duration::from_secs(120);

/// How long a neighbour may take to say that it is there before it counts as gone.
pub const REPLY_TIME: Duration = Duration::from_secs(10);

/// How long an asking neighbour may be quiet: it pings more often than that.
pub(super) const ASKER_IDLE: Duration = Duration::from_secs(2 * FAR_PING_TIME.as_secs() + 60);

/// A question, and where its answer goes. No answer comes if the neighbour goes away first.
pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// How long a neighbour may be quiet.
#[derive(Clone, Copy)]
pub(super) struct Quiet {
    /// Until it is asked whether it is there.
    ping: Duration,
    /// While an answer is due, which comes sooner even where it has to be had of an origin.
    owing: Duration,
}

impl Quiet {
    pub(super) const fn of(class: LinkClass) -> Self {
        let ping = match class {
            LinkClass::Lan => PING_TIME,
            LinkClass::Wan => FAR_PING_TIME,
        };
        Self { ping, owing: Duration::from_secs(PING_TIME.as_secs() + REPLY_TIME.as_secs()) }
    }
}

/// Who waits for an answer, and since when.
type Waiting = Mutex<HashMap<u32, (oneshot::Sender<Answer>, Instant)>>;

/// Puts questions to a neighbour over a stream until it fails or the neighbour is quiet for too long. Says which.
pub(super) async fn ask<S>(stream: S, questions: &mut mpsc::Receiver<Asking>, quiet: Quiet) -> WireError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream.compat());
    let waiting = Waiting::default();
    let read = async {
        loop {
            // There is always a reply due: to a ping at least.
            let mut reply = pin!(read_within::<Reply>(&mut reader, quiet.ping + REPLY_TIME));
            let reply = loop {
                match timeout(quiet.owing, &mut reply).await {
                    Ok(reply) => break reply,
                    Err(_) if waits_since(&waiting, quiet.owing) => {
                        break Err(WireError::Silent(quiet.owing));
                    }
                    Err(_) => {}
                }
            };
            match reply {
                Ok(reply) => {
                    let asker = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
                    if let Some((asker, _)) = asker {
                        let _ = asker.send(reply.answer);
                    }
                }
                Err(why) => return why,
            }
        }
    };
    let write = async {
        for id in 0.. {
            let question = match timeout(quiet.ping, questions.recv()).await {
                Ok(Some(Asking { question, reply })) => {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    if waiting.len() >= MAX_ASKED {
                        waiting.retain(|_, (asker, _)| !asker.is_closed());
                    }
                    if waiting.len() >= MAX_ASKED {
                        continue;
                    }
                    waiting.insert(id, (reply, Instant::now()));
                    question
                }
                Ok(None) => break,
                Err(_) => Question::Ping,
            };
            if let Err(why) = write_within(&mut writer, &Ask { id, question }, REPLY_TIME).await {
                return why;
            }
        }
        WireError::Io(io::ErrorKind::BrokenPipe.into())
    };
    let why = tokio::select! {
        // A stream that has ended takes no further question with it.
        biased;
        why = read => why,
        why = write => why,
    };
    // To one who does not answer there is nothing to say.
    if !matches!(why, WireError::Silent(_)) {
        let _ = timeout(REPLY_TIME, writer.shutdown()).await;
    }
    why
}

/// Whether an answer is due since so long.
fn waits_since(waiting: &Waiting, long: Duration) -> bool {
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.values().any(|(_, since)| since.elapsed() >= long)
}

/// How many questions of one neighbour are being answered at a time; the next is read when one of them is.
const MAX_ANSWERING: usize = 32;

/// How many of the [`Errands`] may be one neighbour's. Fewer than [`MAX_ANSWERING`], so that those who wait for an origin hold up no
/// other question, and fewer than all, so that nobody takes the place of everybody.
const MAX_ERRANDS_FOR_ONE: usize = 16;

/// What all questions are answered with. Clones share it.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) holdings: Arc<dyn Holdings>,
    pub(super) errands: Arc<Errands>,
    pub(super) neighbours: Arc<Neighbours>,
    // Of the event loop, where records are kept.
    pub(super) commands: mpsc::WeakSender<Command>,
}

/// Answers a neighbour's questions until the stream ends. Says why it did.
pub(super) async fn answer<S>(stream: S, asker: NodeId, answerer: Answerer) -> WireError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream.compat());
    let (asked, questions) = mpsc::channel::<Ask>(1);
    let read = async move {
        loop {
            match read_within::<Ask>(&mut reader, ASKER_IDLE).await {
                Ok(ask) => {
                    if asked.send(ask).await.is_err() {
                        return WireError::Io(io::ErrorKind::BrokenPipe.into());
                    }
                }
                Err(why) => return why,
            }
        }
    };
    let questions =
        stream::unfold(questions, |mut questions| async { Some((questions.recv().await?, questions)) });
    let own_errands = Semaphore::new(MAX_ERRANDS_FOR_ONE);
    let Answerer { holdings, errands, neighbours, commands } = answerer;
    let answers = questions.map(|Ask { id, question }| {
        let (holdings, own_errands, errands) = (Arc::clone(&holdings), &own_errands, &errands);
        let commands = &commands;
        if matches!(question, Question::Want(_) | Question::Tag(_) | Question::Resolve(_)) {
            neighbours.seeks(&asker);
        }
        async move {
            let answer = match question {
                Question::Ping => Ok(Answer::Pong),
                Question::Resolve(_) | Question::Lead { .. } => {
                    let own = own_errands.try_acquire().ok();
                    match own.and_then(|own| Some((own, errands.begin(&question)?))) {
                        Some((_own, errand)) => Ok(run_errand(&*holdings, asker, &errand).await),
                        None => Ok(decline(&question)),
                    }
                }
                Question::Provide(provide) => {
                    // It is gone where the node shuts down.
                    if let Some(commands) = commands.upgrade() {
                        let keep = Command::Keep(asker, Box::new(provide));
                        let _ = commands.send(keep).await;
                    }
                    Ok(Answer::Provided)
                }
                _ => tokio::task::spawn_blocking(move || look_up(&*holdings, asker, &question)).await,
            };
            answer.map(|answer| Reply { id, answer })
        }
    });
    let mut answers = pin!(answers.buffer_unordered(MAX_ANSWERING));
    let write = async {
        while let Some(reply) = answers.next().await {
            let written = match reply {
                Ok(reply) => write_within(&mut writer, &reply, REPLY_TIME).await,
                Err(error) => Err(WireError::Io(io::Error::other(error))),
            };
            if let Err(why) = written {
                return why;
            }
        }
        WireError::Io(io::ErrorKind::BrokenPipe.into())
    };
    let (mut read, mut write) = (pin!(read), pin!(write));
    tokio::select! {
        // What was asked before the end is answered.
        why = &mut read => {
            write.await;
            why
        }
        why = &mut write => why,
    }
}

/// Answers a question that an origin has to be asked about, within the time that the asker waits.
async fn run_errand(holdings: &dyn Holdings, asker: NodeId, errand: &Errand<'_>) -> Answer {
    let answered = match errand.question() {
        Question::Resolve(reference) => {
            let resolved = timeout(RESOLVE_TIME, holdings.resolve(asker, reference)).await;
            resolved.map(|resolution| {
                Answer::Resolved(resolution.map(|Resolution { record, manifest }| {
                    let manifest = manifest.filter(|manifest| errand.may_tell(manifest.len()));
                    holdings.told(manifest.as_ref().map_or(0, |manifest| manifest.len()));
                    Resolution { record, manifest }
                }))
            })
        }
        Question::Lead { blob, origin, repository } => {
            let lead = holdings.lead(asker, *blob, origin, repository);
            timeout(LEAD_TIME, lead).await.map(Answer::Lead)
        }
        question => return decline(question),
    };
    answered.unwrap_or_else(|_| decline(errand.question()))
}

/// The answer of a node that asks no origin now.
fn decline(question: &Question) -> Answer {
    match question {
        Question::Lead { .. } => Answer::Lead(Lead::Refuse(LeadRefusal::Budget)),
        _ => Answer::Resolved(None),
    }
}

fn look_up(holdings: &dyn Holdings, asker: NodeId, question: &Question) -> Answer {
    let gives = holdings.gives_to(&asker);
    let holding = |digest: &Digest| {
        if !gives {
            return Holding::No;
        }
        let held = holdings.held(digest).map(|size| Holding::Held { size });
        let arriving = || {
            let size = holdings.arriving_size(digest)?;
            let arriving = holdings.arriving(&BlobName { digest: *digest, size })?;
            // Whoever asks wants it too. Where a whole site begins at once it may take seconds until that one is connected
            // and follows, and until then who is to lead would not be known to either.
            arriving.followed(asker);
            match arriving.role() {
                Role::Held => holdings.held(digest).map(|size| Holding::Held { size }),
                Role::Gone => None,
                role => Some(Holding::Arriving { size, role }),
            }
        };
        held.or_else(arriving).unwrap_or(Holding::No)
    };
    match question {
        Question::Ping => Answer::Pong,
        Question::Want(digests) => Answer::Want(List::first_of(digests.iter().map(holding))),
        Question::Tag(reference) => Answer::Tag(holdings.tag(reference)),
        Question::Tags { origin, repository, after } => {
            // One more than fits tells whether there are more.
            let found = holdings.tags(origin, repository, after.as_deref(), MAX_TAG_PAGE + 1);
            let more = found.len() > MAX_TAG_PAGE;
            let names = found.into_iter().filter_map(|name| name.try_into().ok());
            Answer::Tags(TagPage { names: List::first_of(names), more })
        }
        Question::Wan(word) => Answer::Wan(holdings.wan(asker, word)),
        Question::Preload(image) => Answer::Preload(holdings.preload(asker, image)),
        Question::Preloading(image) => Answer::Preloading(holdings.preloading(image)),
        Question::Moved(record) => Answer::Moved(holdings.moved(asker, record)),
        Question::Resolve(_) | Question::Lead { .. } | Question::Provide(_) => decline(question),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use tokio_util::compat::TokioAsyncReadCompatExt as _;
    use wherry_proto::{MAX_WANT, SecretKey, StateChain, TagRecord, encode_frame};

    use super::super::errands::MAX_ERRANDS;
    use super::super::holdings::ReadAt;
    use super::*;

    /// Answers by these, for a node that has no neighbours.
    fn answerer(holdings: Arc<dyn Holdings>, errands: Arc<Errands>) -> Answerer {
        let commands = mpsc::channel(1).0.downgrade();
        Answerer { holdings, errands, neighbours: Arc::new(Neighbours::new()), commands }
    }

    /// Holds nothing, and counts how many ask at a time.
    #[derive(Default)]
    struct Counting {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Holdings for Counting {
        fn held(&self, _: &Digest) -> Option<u64> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            self.now.fetch_sub(1, Ordering::SeqCst);
            None
        }

        fn chain(&self, _: &Digest) -> Option<StateChain> {
            None
        }

        fn open(&self, _: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
            Ok(None)
        }

        fn tag(&self, _: &str) -> Option<TagRecord> {
            None
        }
    }

    /// Asked nothing, it would be asked whether it is there after a minute.
    const QUIET: Quiet = Quiet { ping: Duration::from_secs(60), owing: Duration::from_millis(50) };

    #[tokio::test]
    async fn a_neighbour_that_owes_an_answer_is_gone_long_before_one_that_is_asked_nothing() {
        let (ours, _theirs) = tokio::io::duplex(64 << 10);
        let (asks, mut questions) = mpsc::channel(1);
        let mut asking = pin!(ask(ours.compat(), &mut questions, QUIET));
        assert!(timeout(4 * QUIET.owing, &mut asking).await.is_err(), "nothing is due");
        let (reply, answer) = oneshot::channel();
        asks.try_send(Asking { question: Question::Ping, reply }).ok().unwrap();
        let why = timeout(QUIET.ping / 2, asking).await.expect("an answer is due");
        assert!(matches!(why, WireError::Silent(_)), "{why}");
        assert!(answer.await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_questions_is_answered_few_at_a_time_and_no_faster_than_the_answers_are_read() {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let counting = Arc::new(Counting::default());
        let asker = SecretKey::from_seed([2; 32]).node();
        tokio::spawn(answer(ours.compat(), asker, answerer(counting.clone(), Arc::default())));
        let question = |id| {
            let digests = List::first_of((0..MAX_WANT).map(|n| Digest::sha256(&[n as u8])));
            encode_frame(&Ask { id, question: Question::Want(digests) }).unwrap()
        };
        let flood = async {
            for id in 0.. {
                theirs.write_all(&question(id)).await.unwrap();
            }
        };
        assert!(timeout(Duration::from_secs(2), flood).await.is_err(), "taken without end");
        assert!(counting.most.load(Ordering::SeqCst) <= MAX_ANSWERING);
        let mut answered = HashSet::new();
        for _ in 0..100 {
            let reply = read_within::<Reply>(&mut theirs, REPLY_TIME).await.unwrap();
            assert!(answered.insert(reply.id));
        }
    }

    /// Its origin never answers.
    struct Unanswered;

    impl Holdings for Unanswered {
        fn held(&self, _: &Digest) -> Option<u64> {
            None
        }

        fn chain(&self, _: &Digest) -> Option<StateChain> {
            None
        }

        fn open(&self, _: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
            Ok(None)
        }

        fn resolve<'a>(&'a self, _: NodeId, _: &'a str) -> BoxFuture<'a, Option<Resolution>> {
            pending().boxed()
        }

        fn tag(&self, _: &str) -> Option<TagRecord> {
            None
        }
    }

    /// The ids of the answers to so many questions for an origin and one that needs none, in the order in which they come
    /// at once.
    async fn asks_for_the_origin(
        errands: &Arc<Errands>,
        many: u32,
        tag: impl Fn(u32) -> u32,
    ) -> (Vec<u32>, impl Sized) {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let asker = SecretKey::from_seed([2; 32]).node();
        tokio::spawn(answer(ours.compat(), asker, answerer(Arc::new(Unanswered), Arc::clone(errands))));
        for id in 0..many {
            let reference = format!("r.example/a:{}", tag(id)).parse().unwrap();
            let ask = Ask { id, question: Question::Resolve(reference) };
            theirs.write_all(&encode_frame(&ask).unwrap()).await.unwrap();
        }
        let other = Ask { id: many, question: Question::Tag("r.example/a:1".parse().unwrap()) };
        theirs.write_all(&encode_frame(&other).unwrap()).await.unwrap();
        let mut answered = Vec::new();
        while answered.last() != Some(&many) {
            answered.push(read_within::<Reply>(&mut theirs, Duration::from_secs(2)).await.unwrap().id);
        }
        (answered, theirs)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn questions_that_wait_for_an_origin_hold_up_no_other_and_beyond_their_bounds_are_declined_at_once()
    {
        let errands = Arc::<Errands>::default();
        let own = MAX_ERRANDS_FOR_ONE as u32;
        let (answered, _first) = asks_for_the_origin(&errands, own + 2, |id| id).await;
        assert_eq!(answered, [own, own + 1, own + 2]);
        let (answered, _second) = asks_for_the_origin(&errands, own, |id| 100 + id).await;
        assert_eq!(answered, [own]);
        // All of them together.
        let (answered, _third) = asks_for_the_origin(&errands, 1, |id| 200 + id).await;
        assert_eq!(answered, [0, 1]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_whole_site_asks_takes_one_place_among_those_that_wait_for_an_origin() {
        let errands = Arc::<Errands>::default();
        let mut askers = Vec::new();
        for _ in 0..=MAX_ERRANDS {
            let (answered, asker) = asks_for_the_origin(&errands, 1, |_| 1).await;
            assert_eq!(answered, [1], "none is declined");
            askers.push(asker);
        }
        assert_eq!(errands.count(), 1);
        drop(askers);
        let empty = async {
            while errands.count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), empty).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_origin_is_waited_for_no_longer_than_the_asker_waits() {
        let errands = Arc::<Errands>::default();
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let asker = SecretKey::from_seed([2; 32]).node();
        tokio::spawn(answer(ours.compat(), asker, answerer(Arc::new(Unanswered), Arc::clone(&errands))));
        let ask = Ask { id: 0, question: Question::Resolve("r.example/a:1".parse().unwrap()) };
        theirs.write_all(&encode_frame(&ask).unwrap()).await.unwrap();
        let began = tokio::time::Instant::now();
        let reply = read_within::<Reply>(&mut theirs, RESOLVE_TIME * 2).await.unwrap();
        assert_eq!((reply.id, reply.answer), (0, Answer::Resolved(None)));
        assert!(began.elapsed() <= RESOLVE_TIME + Duration::from_secs(1));
        assert_eq!(errands.count(), 0);
    }

    /// Holds everything, and gives it to one peer alone.
    struct GivesTo(NodeId);

    impl Holdings for GivesTo {
        fn held(&self, _: &Digest) -> Option<u64> {
            Some(5)
        }

        fn chain(&self, _: &Digest) -> Option<StateChain> {
            None
        }

        fn open(&self, _: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
            Ok(None)
        }

        fn gives_to(&self, node: &NodeId) -> bool {
            *node == self.0
        }

        fn tag(&self, _: &str) -> Option<TagRecord> {
            None
        }
    }

    #[tokio::test]
    async fn whoever_is_given_nothing_now_is_told_of_nothing() {
        let node = |seed| SecretKey::from_seed([seed; 32]).node();
        for (asker, expected) in [(node(2), Holding::Held { size: 5 }), (node(3), Holding::No)] {
            let (ours, mut theirs) = tokio::io::duplex(64 << 10);
            tokio::spawn(answer(ours.compat(), asker, answerer(Arc::new(GivesTo(node(2))), Arc::default())));
            let question = Question::Want(List::first_of([Digest::sha256(b"any")]));
            theirs.write_all(&encode_frame(&Ask { id: 1, question }).unwrap()).await.unwrap();
            let reply = read_within::<Reply>(&mut theirs, REPLY_TIME).await.unwrap();
            assert_eq!(reply.answer, Answer::Want(List::first_of([expected])));
        }
    }
}
