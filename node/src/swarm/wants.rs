//! Who has a blob: what is asked of one neighbour, and of all of them with what else is wanted in the same moment.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::timeout;
use wherry_proto::{Answer, Digest, Holding, List, MAX_WANT, NodeId, Question, Role};

use super::behaviour::MAX_CONNECTIONS;
use super::neighbours::Entry;

/// How long a neighbour may take to say whether it holds a blob before the search goes on without it.
pub const WANT_TIME: Duration = Duration::from_secs(2);

/// For how long a question to many waits for others, for each of them: a client asks for all layers of an image within
/// milliseconds, and where a site begins at once a question for each of them and each pair of nodes would fill slow links
/// for seconds. As long as it takes to ask them, or a few times that.
const COMPANY_TIME: Duration = Duration::from_micros(250);

/// The longest that it waits.
const MOST_COMPANY_TIME: Duration = Duration::from_millis(50);

/// Fewer are asked at once.
const MANY: usize = 8;

/// That a peer has a blob, or will have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The peer.
    pub node: NodeId,
    /// The blob's length in bytes, as the peer says.
    pub size: u64,
    /// What the peer has to do with the blob while that is still on its way to it, so that it can be followed there;
    /// `None` if the peer holds it.
    pub arriving: Option<Role>,
}

/// What a neighbour says of a blob; `None` if it neither has it nor will, or does not answer within [`WANT_TIME`].
pub(super) async fn offer(entry: Entry, digest: Digest) -> Option<Offer> {
    offers(&entry, &[digest]).await.into_iter().next().flatten()
}

/// What a neighbour says of up to [`MAX_WANT`] blobs, in the same order; fewer if it does not answer all in time.
async fn offers(entry: &Entry, digests: &[Digest]) -> Vec<Option<Offer>> {
    let question = Question::Want(List::first_of(digests.iter().copied()));
    let Ok(Some(Answer::Want(holdings))) = timeout(WANT_TIME, entry.ask(question)).await else {
        return Vec::new();
    };
    let node = entry.neighbour.node;
    let offer = |holding: &Holding| match *holding {
        Holding::Held { size } | Holding::Arriving { size, role: Role::Held } => {
            Some(Offer { node, size, arriving: None })
        }
        Holding::Arriving { role: Role::Gone, .. } | Holding::No => None,
        Holding::Arriving { size, role } => Some(Offer { node, size, arriving: Some(role) }),
    };
    holdings.iter().map(offer).collect()
}

/// What a neighbour says of blobs, in the same order; of fewer if it stops to answer in time.
pub(super) async fn all_offers(entry: &Entry, digests: &[Digest]) -> Vec<Option<Offer>> {
    let mut all = Vec::with_capacity(digests.len());
    for some in digests.chunks(MAX_WANT) {
        let offered = offers(entry, some).await;
        let is_mute = offered.len() < some.len();
        all.extend(offered);
        if is_mute {
            // Each further question would wait for as long.
            break;
        }
    }
    all
}

/// How long a question to so many neighbours waits for others.
pub(super) fn company_time(neighbours: usize) -> Duration {
    if neighbours < MANY {
        return Duration::ZERO;
    }
    (COMPANY_TIME * u32::try_from(neighbours).unwrap_or(u32::MAX)).min(MOST_COMPANY_TIME)
}

/// How many may wait to be asked together; the one that fills it is asked at once, with all of them.
const MOST_TOGETHER: usize = 8 * MAX_WANT;

/// What is wanted of all neighbours of a class and not asked yet. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Wants(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    wanted: Wanted,
    count: usize,
}

/// Those who want each blob. A neighbour makes each of them one offer at most.
type Wanted = BTreeMap<Digest, Vec<mpsc::Sender<Offer>>>;

/// When the one who wants something more is to see to it that all that waits is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Another one does.
    Others,
    /// After the time for company.
    Soon,
    /// Now.
    Now,
}

impl Wants {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more that is wanted. Offers come until all of them have answered.
    pub(super) fn add(&self, digest: Digest) -> (mpsc::Receiver<Offer>, Turn) {
        let (offers, offered) = mpsc::channel(MAX_CONNECTIONS as usize);
        let mut waiting = self.lock();
        waiting.wanted.entry(digest).or_default().push(offers);
        waiting.count += 1;
        let turn = match waiting.count {
            1 => Turn::Soon,
            MOST_TOGETHER.. => Turn::Now,
            _ => Turn::Others,
        };
        (offered, turn)
    }

    /// All that waits is asked of nobody.
    pub(super) fn give_up(&self) {
        *self.lock() = Waiting::default();
    }

    /// Asks these about all that is wanted by now.
    pub(super) async fn ask(&self, neighbours: Vec<Entry>) {
        let mut wanted = std::mem::take(&mut *self.lock()).wanted;
        // Whoever has found it elsewhere meanwhile wants it no more.
        wanted.retain(|_, offers| {
            offers.retain(|offers| !offers.is_closed());
            !offers.is_empty()
        });
        let mut wanted = wanted.into_iter().peekable();
        let mut questions = Vec::new();
        while wanted.peek().is_some() {
            questions.push(ask_together(&neighbours, wanted.by_ref().take(MAX_WANT).collect()));
        }
        join_all(questions).await;
    }
}

/// Puts one question to each neighbour, until all have answered or nobody wants to know any more.
async fn ask_together(neighbours: &[Entry], wanted: Vec<(Digest, Vec<mpsc::Sender<Offer>>)>) {
    let digests: Vec<Digest> = wanted.iter().map(|(digest, _)| *digest).collect();
    let mut answers: FuturesUnordered<_> = neighbours.iter().map(|entry| offers(entry, &digests)).collect();
    let mut given_up = pin!(join_all(wanted.iter().flat_map(|(_, all)| all).map(mpsc::Sender::closed)));
    loop {
        let offers = tokio::select! {
            answer = answers.next() => answer,
            _ = &mut given_up => None,
        };
        let Some(offers) = offers else { return };
        for ((_, all), offer) in wanted.iter().zip(offers) {
            let Some(offer) = offer else { continue };
            for one in all {
                // There is room for an offer of each; one that wants it no more is gone.
                let _ = one.try_send(offer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use wherry_proto::{Certificate, Ports, Roles, SecretKey};

    use super::super::ask::Asking;
    use super::super::identity::Host;
    use super::super::neighbours::{LinkClass, Neighbour};
    use super::*;

    fn digest(number: usize) -> Digest {
        Digest::sha256(&number.to_be_bytes())
    }

    /// A neighbour that holds these, and how many each question that it is asked names.
    fn neighbour(seed: u8, held: Vec<Digest>) -> (Entry, mpsc::Receiver<usize>) {
        let (key, operator) = (SecretKey::from_seed([seed; 32]), SecretKey::from_seed([0; 32]));
        let (asks, mut questions) = mpsc::channel::<Asking>(8);
        let (named, counts) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(Asking { question, reply }) = questions.recv().await {
                let Question::Want(digests) = question else { panic!("{question:?}") };
                named.try_send(digests.iter().count()).unwrap();
                let holding = |digest: &Digest| match held.contains(digest) {
                    true => Holding::Held { size: 5 },
                    false => Holding::No,
                };
                let _ = reply.send(Answer::Want(List::first_of(digests.iter().map(holding))));
            }
        });
        let neighbour = Neighbour {
            node: key.node(),
            site: String::new(),
            class: LinkClass::Lan,
            address: String::new(),
            since: 0,
        };
        let certificate = Certificate::sign(&operator, key.node(), Roles::MEMBER, 1, 1);
        let (host, ports) = (Host::Ip([192, 0, 2, 1].into()), Ports { tcp: 1, quic: 1, bulk: 1 });
        (Entry { neighbour, certificate, host, ports, asks, stop: CancellationToken::new() }, counts)
    }

    async fn all(mut offers: mpsc::Receiver<Offer>) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        while let Some(offer) = offers.recv().await {
            nodes.push(offer.node);
        }
        nodes
    }

    #[tokio::test]
    async fn what_is_wanted_in_the_same_moment_is_asked_together_and_everybody_hears_of_its_own() {
        let (one, mut asked_one) = neighbour(1, vec![digest(1)]);
        let (two, mut asked_two) = neighbour(2, vec![digest(1), digest(2)]);
        let nodes = [one.neighbour.node, two.neighbour.node];
        let wants = Wants::default();
        let (first, turn) = wants.add(digest(1));
        assert_eq!(turn, Turn::Soon);
        let others = [digest(2), digest(3), digest(1)].map(|digest| wants.add(digest));
        assert!(others.iter().all(|(_, turn)| *turn == Turn::Others));
        drop(wants.add(digest(4)));
        wants.ask(vec![one, two]).await;
        assert_eq!((asked_one.recv().await, asked_two.recv().await), (Some(3), Some(3)));
        assert!(asked_one.try_recv().is_err() && asked_two.try_recv().is_err());
        let [second, third, again] = others.map(|(offers, _)| offers);
        let mut found = all(first).await;
        found.sort_by_key(|node| nodes.iter().position(|known| known == node));
        assert_eq!(found, nodes);
        assert_eq!(all(second).await, nodes[1..]);
        assert_eq!(all(third).await, []);
        assert_eq!(all(again).await.len(), 2);
        assert_eq!(wants.add(digest(1)).1, Turn::Soon, "the next one begins anew");
    }

    #[tokio::test]
    async fn more_than_one_question_has_room_for_is_asked_in_several() {
        let count = MAX_WANT + 3;
        let (entry, mut asked) = neighbour(1, (0..count).map(digest).collect());
        let wants = Wants::default();
        let offers: Vec<_> = (0..count).map(|number| wants.add(digest(number)).0).collect();
        wants.ask(vec![entry]).await;
        let mut named = [asked.recv().await.unwrap(), asked.recv().await.unwrap()];
        named.sort_unstable();
        assert_eq!(named, [3, MAX_WANT]);
        for offers in offers {
            assert_eq!(all(offers).await.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_any_more_is_not_waited_for() {
        let (mut entry, _asked) = neighbour(1, Vec::new());
        // It never answers.
        let (asks, mut questions) = mpsc::channel(8);
        entry.asks = asks;
        let wants = Wants::default();
        let wanted = [wants.add(digest(1)).0, wants.add(digest(2)).0];
        let mut asking = pin!(wants.ask(vec![entry]));
        assert!(futures::poll!(&mut asking).is_pending());
        let asked = questions.recv().await.unwrap();
        drop(wanted);
        asking.await;
        assert!(asked.reply.is_closed());
    }

    #[tokio::test]
    async fn when_all_is_given_up_nobody_waits_and_the_next_one_begins_anew() {
        let wants = Wants::default();
        let (offers, _) = wants.add(digest(1));
        wants.give_up();
        assert_eq!(all(offers).await, []);
        assert_eq!(wants.add(digest(1)).1, Turn::Soon);
    }

    #[test]
    fn what_waits_has_a_bound_at_which_it_is_asked_at_once() {
        let wants = Wants::default();
        let turns: Vec<Turn> = (0..MOST_TOGETHER).map(|number| wants.add(digest(number)).1).collect();
        assert_eq!(turns.iter().position(|turn| *turn == Turn::Now), Some(MOST_TOGETHER - 1));
    }

    #[test]
    fn few_neighbours_are_asked_at_once_and_none_waits_for_long() {
        assert_eq!(company_time(MANY - 1), Duration::ZERO);
        assert!(!company_time(MANY).is_zero());
        assert_eq!(company_time(1_000_000), MOST_COMPANY_TIME);
    }
}
