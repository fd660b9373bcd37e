//! Telling the neighbours of the site, and keeping what is to outlive a restart. While nothing crosses the border this does
//! nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wherry_proto::{NodeId, WanWord};

use super::Limits;
use crate::swarm::{Client, LinkClass, Notice};

/// How often the neighbours are told what this node does while it uses the links.
const TELL_TIME: Duration = Duration::from_secs(1);

/// How long it is until a neighbour is told again that gave no answer, or does not know of the newest pause.
const AGAIN_TIME: Duration = Duration::from_secs(5);

/// How often what was spent is written down while that goes up: so much of it a power cut may lose. A good part of a budget is
/// written down at once.
const SAVE_TIME: Duration = Duration::from_secs(5);

/// How long the clock on the wall is trusted not to be set while hours or days are waited for.
const LOOK_TIME: Duration = Duration::from_secs(30);

/// Keeps a site's nodes of one mind about their limits.
pub struct Talk {
    limits: Limits,
    swarm: Client,
    notices: Receiver<Notice>,
}

impl Talk {
    /// Listens from now on, so that no neighbour is missed until it runs.
    pub fn new(limits: Limits, swarm: Client) -> Self {
        let notices = swarm.notices();
        Self { limits, swarm, notices }
    }

    /// Runs until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let Self { limits, swarm, mut notices } = self;
        let mut telling = Telling::new(limits.clone(), swarm.clone());
        let mut told = Instant::now();
        let mut saved_at = Instant::now();
        let mut greet = neighbours(&swarm);
        loop {
            for node in greet.drain(..) {
                telling.tell(node);
            }
            limits.settle();
            let now = Instant::now();
            if limits.take_news() || (limits.is_to_tell() && now >= told + TELL_TIME) {
                told = now;
                for node in neighbours(&swarm) {
                    telling.tell(node);
                }
            }
            if limits.is_urgent() || (limits.unsaved() && now >= saved_at + SAVE_TIME) {
                let limits = limits.clone();
                // Without a task the node is shutting down, and writes it in the end.
                let _ = tokio::task::spawn_blocking(move || limits.save()).await;
                saved_at = Instant::now();
            }
            telling.tell_those_behind(now);
            let next_tell = limits.is_to_tell().then_some(told + TELL_TIME);
            let next_save = match limits.unsaved() {
                true => Some(saved_at + SAVE_TIME),
                // Where nobody is told nothing else looks again while more is spent.
                false => limits.is_active().then_some(now + SAVE_TIME),
            };
            let change =
                limits.until_change().map(|wait| now + wait.clamp(Duration::from_millis(50), LOOK_TIME));
            let again = telling.next_again();
            let next = next_tell.into_iter().chain(next_save).chain(again).chain(change).min();
            let woken = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                notice = notices.recv() => match notice {
                    Ok(Notice::Connected(neighbour)) if neighbour.class == LinkClass::Lan => {
                        greet.push(neighbour.node);
                    }
                    Ok(Notice::Connected(_)) => {}
                    Ok(Notice::Disconnected(node)) => {
                        limits.gone(&node);
                        telling.behind.remove(&node);
                    }
                    Err(RecvError::Lagged(_)) => greet = neighbours(&swarm),
                    Err(RecvError::Closed) => return,
                },
                () = telling.answered() => {}
                () = limits.stirred() => {}
                () = woken => {}
            }
        }
    }
}

fn neighbours(swarm: &Client) -> Vec<NodeId> {
    let near = swarm.neighbours().into_iter().filter(|neighbour| neighbour.class == LinkClass::Lan);
    near.map(|neighbour| neighbour.node).collect()
}

/// Words that are on their way: to each neighbour one at a time, and after it at most one more.
struct Telling {
    limits: Limits,
    swarm: Client,
    under_way: FuturesUnordered<BoxFuture<'static, (NodeId, Option<WanWord>)>>,
    told: BTreeSet<NodeId>,
    again: BTreeSet<NodeId>,
    // Neighbours that may not know what they are to know, and when they are told once more.
    behind: BTreeMap<NodeId, Instant>,
}

impl Telling {
    fn new(limits: Limits, swarm: Client) -> Self {
        Self {
            limits,
            swarm,
            under_way: FuturesUnordered::new(),
            told: BTreeSet::new(),
            again: BTreeSet::new(),
            behind: BTreeMap::new(),
        }
    }

    fn tell(&mut self, node: NodeId) {
        if !self.told.insert(node) {
            self.again.insert(node);
            return;
        }
        let (swarm, word) = (self.swarm.clone(), self.limits.word());
        self.under_way.push(async move { (node, swarm.wan(node, word).await) }.boxed());
    }

    fn tell_those_behind(&mut self, now: Instant) {
        let due: Vec<NodeId> =
            self.behind.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in due {
            self.behind.remove(&node);
            // One that has gone is greeted when it comes back.
            if self.swarm.class(&node) == Some(LinkClass::Lan) {
                self.tell(node);
            }
        }
    }

    fn next_again(&self) -> Option<Instant> {
        self.behind.values().min().copied()
    }

    /// Takes in an answer; waits for ever while none is due.
    async fn answered(&mut self) {
        let Some((node, word)) = self.under_way.next().await else { return std::future::pending().await };
        if let Some(word) = &word {
            self.limits.hear(node, word);
        }
        self.told.remove(&node);
        if word.is_some_and(|word| self.limits.knows_no_more_than(&word)) {
            self.behind.remove(&node);
        } else {
            self.behind.insert(node, Instant::now() + AGAIN_TIME);
        }
        if self.again.remove(&node) {
            self.tell(node);
        }
    }
}

/// Tells all neighbours of the site at once; how many there are, and how many of them know of the newest record afterwards.
pub async fn tell_all(limits: &Limits, swarm: &Client) -> (usize, usize) {
    let word = limits.word();
    let nodes = neighbours(swarm);
    let asked = nodes.iter().map(|node| async { (*node, swarm.wan(*node, word.clone()).await) });
    let answers = futures::future::join_all(asked).await;
    let mut agree = 0;
    for (node, answer) in answers {
        let Some(answer) = answer else { continue };
        agree += usize::from(answer.pause == word.pause);
        limits.hear(node, &answer);
    }
    if agree < nodes.len() {
        // Whoever keeps telling them is to begin with that.
        limits.tell_news();
    }
    (nodes.len(), agree)
}
