//! Which chunk is asked of which peer next.
//!
//! While nodes trade, the rarest chunk goes first and ties are broken at random, so that all of them always have
//! something to give (`rarest first`, Cohen 2003). Where peers hold the blob and nobody trades, chunks come in the order
//! in which clients read them, which is kind to disks.

use std::time::Duration;

use wherry_proto::{ChunkIndex, ChunkSet, NodeId, State};

use super::peer::Peer;
use super::{
    Allowance, Asked, Effect, IN_FLIGHT, LEAST_WINDOW, Lack, Needs, Planner, Source, USUAL_ROOM, scrambled,
};
use crate::swarm::LinkClass;

/// How many wanted chunks are weighed against each other for one request, so that the largest blob costs no more.
const SCAN: usize = 1024;

/// How long a peer that said it was busy is left alone where chunks take little time.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// How long it is on the slowest links: one that forgets to say that it has a slot free is asked again all the same.
const MOST_BUSY_PAUSE: Duration = Duration::from_secs(10);

impl Planner {
    /// Whether chunks are taken from a peer now.
    pub(super) fn is_source(&self, peer: &Peer) -> bool {
        match peer.class {
            LinkClass::Lan => true,
            // Bytes from there are dear: the one who leads takes them.
            LinkClass::Wan => self.leads(),
        }
    }

    /// Whether somebody holds the blob from whom chunks may be taken.
    pub(super) fn has_holder(&self) -> bool {
        self.peers.values().any(|peer| peer.is_claimed() && self.is_source(peer))
    }

    fn trades(&self) -> bool {
        self.peers.values().any(Peer::trades)
    }

    /// Whether so many peers have something to give to each other that each need be asked for one chunk, and the next one when
    /// that comes, to keep all links busy. Whoever took more then would leave less to others, and wait in lines instead.
    pub fn is_crowd(&self) -> bool {
        let gives =
            |peer: &&Peer| peer.class == LinkClass::Lan && (peer.is_claimed() || !peer.here.is_empty());
        self.trades() && self.peers.values().filter(gives).count() >= LEAST_WINDOW
    }

    /// Whether a peer has a chunk and has not refused it of late.
    pub(super) fn is_to_be_had(&self, index: ChunkIndex) -> bool {
        self.peers.values().any(|peer| self.is_source(peer) && peer.gives(index, self.ticks))
    }

    /// Where nodes trade, the plan asks for no more than this until it is told anew.
    pub fn may_ask(&mut self, allowed: Allowance) {
        self.allowed = Some(allowed);
        // What held it up before does so no more, whether it comes to ask this time or not.
        self.lack = None;
    }

    /// What is asked of nodes that trade, and what the plan lacks to ask for more.
    pub fn needs(&self) -> Needs {
        if !self.is_crowd() {
            return Needs::default();
        }
        let is_engaged = |peer: &Peer| peer.class == LinkClass::Lan && (peer.asked > 0 || peer.busy);
        let engaged = self.peers.iter().filter(|(_, peer)| is_engaged(peer)).map(|(node, _)| *node).collect();
        Needs { asked: self.engaged_near(), pace: self.pace, engaged, lack: self.lack }
    }

    /// How long a peer that said it was busy is left alone at most. It says itself when it has a slot free, and these are taken
    /// for several times as long as a chunk takes: whoever asked much sooner would be sent away again, for two messages each time.
    pub fn busy_pause(&self) -> Duration {
        self.quickest().map_or(BUSY_PAUSE, |pace| (4 * pace).clamp(BUSY_PAUSE, MOST_BUSY_PAUSE))
    }

    /// How many nodes of this site are asked for chunks.
    fn engaged_near(&self) -> usize {
        self.peers.values().filter(|peer| peer.class == LinkClass::Lan && peer.asked > 0).count()
    }

    pub(super) fn ask_peers(&mut self) {
        let chunk_len = u64::from(self.ledger.map().chunk_len());
        let crowd = self.is_crowd();
        self.lack = None;
        loop {
            let asked = self.peers.values().map(|peer| peer.asked).sum::<usize>();
            let is_full = match (crowd, &self.allowed) {
                (false, _) => asked >= self.window.get(),
                (true, Some(allowed)) => allowed.room == 0,
                (true, None) => self.engaged_near() >= USUAL_ROOM,
            };
            let waiting = (asked + self.keeping.len()) as u64;
            if waiting > 0 && (waiting + 1) * chunk_len > IN_FLIGHT {
                return;
            }
            if is_full && !crowd {
                return;
            }
            if crowd && let Some((node, index, for_reader)) = self.pick_to_keep_a_slot() {
                self.ask_linked(node, index, for_reader);
                continue;
            }
            let able = self.peers.iter().filter(|(_, peer)| peer.is_ready() && self.is_source(peer));
            let (near, far): (Vec<_>, Vec<_>) = able.partition(|(_, peer)| peer.class == LinkClass::Lan);
            let near = near.into_iter().filter(|(_, peer)| !crowd || peer.asked == 0);
            let engaged = self.allowed.as_ref().filter(|_| crowd).map(|allowed| &allowed.engaged);
            let (engaged, near): (Vec<_>, Vec<_>) =
                near.partition(|(node, _)| engaged.is_some_and(|engaged| engaged.contains(*node)));
            self.lack = match is_full {
                true => (!near.is_empty()).then_some(Lack::Room),
                false => (!engaged.is_empty()).then_some(Lack::Node),
            };
            // Another site is one long link, whose pipeline is to be kept full.
            let chosen = if is_full { [far, Vec::new()] } else { [near, far] };
            let ready: Vec<NodeId> = chosen.into_iter().flatten().map(|(node, _)| *node).collect();
            if ready.is_empty() {
                return;
            }
            let picked = if self.trades() { self.pick_trading(&ready) } else { self.pick_in_order(&ready) };
            let Some((node, index, for_reader)) = picked else { return };
            if let Some(allowed) = &mut self.allowed
                && self.peers.get(&node).is_some_and(|peer| peer.class == LinkClass::Lan)
            {
                allowed.room = allowed.room.saturating_sub(1);
            }
            self.ask_linked(node, index, for_reader);
        }
    }

    /// Asks for a chunk whose states are known.
    fn ask_linked(&mut self, node: NodeId, index: ChunkIndex, for_reader: bool) {
        let starts = self.ledger.expected(index).map(|link| link.from).into_iter().collect();
        self.ask(node, index, starts, for_reader);
    }

    /// The next chunk of a peer that is sending one, and goes on with this node if that is asked for by then. Who takes from
    /// whom so changes seldom: words are saved, and since each takes from as many as it gives to, all links are full.
    fn pick_to_keep_a_slot(&mut self) -> Option<(NodeId, ChunkIndex, bool)> {
        let sends = |peer: &Peer| peer.class == LinkClass::Lan && peer.has_slot_to_keep();
        let ready: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| sends(peer)).map(|(node, _)| *node).collect();
        if ready.is_empty() { None } else { self.pick_trading(&ready) }
    }

    /// The last chunk first, since it proves the length; then what clients need next; then in order.
    fn pick_in_order(&mut self, ready: &[NodeId]) -> Option<(NodeId, ChunkIndex, bool)> {
        let map = self.ledger.map();
        let readers = self.readers.values().filter_map(|at| self.taken.first_missing(*at));
        let last = (!self.taken.contains(map.last())).then(|| map.last());
        let wanted = [last, readers.min(), self.taken.first_missing(map.first())];
        for index in wanted.into_iter().flatten() {
            if let Some(node) = self.giver(ready, index) {
                return Some((node, index, false));
            }
        }
        None
    }

    fn pick_trading(&mut self, ready: &[NodeId]) -> Option<(NodeId, ChunkIndex, bool)> {
        // One of the requests under way is for whoever reads here; were all of them, all nodes would want the same.
        if !self.asked.values().any(|asked| asked.for_reader) {
            let next = self.readers.values().filter_map(|at| self.taken.first_missing(*at)).min();
            if let Some(index) = next
                && let Some(node) = self.giver(ready, index)
            {
                return Some((node, index, true));
            }
        }
        let mut lots = self.random();
        let map = self.ledger.map();
        let start = map.index(lots as u32 % map.count()).unwrap_or(map.first());
        // Looked up once: there are as many chunks to weigh as the blob has.
        let able: Vec<&Peer> = ready.iter().filter_map(|node| self.peers.get(node)).collect();
        let all: Vec<&Peer> = self.peers.values().filter(|peer| self.is_source(peer)).collect();
        // Mostly there is nothing to be had at the moment: that is seen from whole sets, not chunk by chunk.
        let mut wanted = ChunkSet::empty(map);
        able.iter().filter(|peer| !peer.holds()).for_each(|peer| wanted.add(&peer.here));
        let wanted = wanted.without(&self.taken);
        let all_are_to_be_had = able.iter().any(|peer| peer.is_claimed());
        let next_from = |from| match all_are_to_be_had {
            true => self.taken.first_missing(from),
            false => wanted.first_from(from),
        };
        let mut best: Option<(usize, ChunkIndex)> = None;
        let mut alike = 0;
        let mut at = next_from(start).or_else(|| next_from(map.first()));
        let first = at;
        for _ in 0..SCAN {
            let Some(index) = at else { break };
            if able.iter().any(|peer| peer.gives(index, self.ticks)) && self.ledger.expected(index).is_some()
            {
                let copies = all.iter().filter(|peer| peer.has(index)).count();
                let fewest = best.map_or(usize::MAX, |(fewest, _)| fewest);
                alike = if copies < fewest { 1 } else { alike + u64::from(copies == fewest) };
                lots = scrambled(lots);
                // The n-th of those that are equally rare takes the place of the one before with a chance of one in n. Were it the
                // first after `start`, that would be the first of the blob for most nodes while only its beginning exists, and
                // nobody would have anything to give to others.
                if copies < fewest || (copies == fewest && lots.is_multiple_of(alike)) {
                    best = Some((copies, index));
                }
            }
            at = map.next(index).and_then(next_from);
            at = at.or_else(|| next_from(map.first()));
            if at == first {
                break;
            }
        }
        self.random = lots;
        let (_, index) = best?;
        Some((self.giver(ready, index)?, index, false))
    }

    fn gives(&self, node: &NodeId, index: ChunkIndex) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.gives(index, self.ticks))
    }

    /// Of those who give a chunk, the one of two at random that has less to do: always to take the best would make
    /// everybody ask the same one (Mitzenmacher, 2001).
    fn giver(&mut self, ready: &[NodeId], index: ChunkIndex) -> Option<NodeId> {
        self.ledger.expected(index)?;
        let mut able: Vec<NodeId> = ready.iter().filter(|node| self.gives(node, index)).copied().collect();
        let is_near = |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.class == LinkClass::Lan);
        if able.iter().any(is_near) {
            able.retain(is_near);
        }
        let one = *able.get(self.random() as usize % able.len().max(1))?;
        let two = *able.get(self.random() as usize % able.len().max(1))?;
        let burden = |node: &NodeId| self.peers.get(node).map(Peer::burden);
        Some(if burden(&two) < burden(&one) { two } else { one })
    }

    pub(super) fn ask(&mut self, node: NodeId, index: ChunkIndex, starts: Vec<State>, for_reader: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.asked += 1;
        }
        let expected = self.ledger.expected(index);
        let source = Source::Peer(node);
        let held = self.peers.get(&node).is_some_and(Peer::holds);
        self.asked.insert(index, Asked { source, expected, held, for_reader, since: self.ticks });
        self.taken.insert(index);
        self.effects.push(Effect::Fetch(node, index, starts));
    }

    /// Takes a chunk away from a peer that lets it wait far longer than its chunks usually take, when another can give
    /// it: the last chunks of a source that has stalled are what a swarm waits for in the end.
    pub(super) fn hedge(&mut self) {
        let ready: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_ready() && self.is_source(peer))
            .map(|(node, _)| *node)
            .collect();
        let late: Vec<(ChunkIndex, NodeId)> = self
            .asked
            .iter()
            .filter_map(|(index, asked)| match asked.source {
                Source::Peer(node) if self.is_late(&node, asked.since) => Some((*index, node)),
                _ => None,
            })
            .collect();
        let disputed = self.ledger.dispute().map(|(index, _)| index);
        for (index, node) in late {
            // Only whoever has signed either side can decide it, and is asked with both starts.
            if Some(index) == disputed {
                continue;
            }
            let others: Vec<_> = ready.iter().filter(|other| **other != node).copied().collect();
            let Some(other) = self.giver(&others, index) else { continue };
            let waited = self.asked.get(&index).map_or(0, |asked| self.ticks - asked.since);
            self.release(Source::Peer(node), index);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.is_slower_than(super::TICK * waited as u32);
                peer.refuses(index, self.ticks);
            }
            self.effects.push(Effect::Cancel(node, index));
            self.ask_linked(other, index, false);
        }
    }

    fn is_late(&self, node: &NodeId, since: u64) -> bool {
        const LATE: u64 = 4;
        // Longer than a peer may be silent on a link that is not thin: before anything has come, slow is told from mute by
        // the exchange.
        const LATE_AT_FIRST: u64 = 16;
        let pace = self.peers.get(node).and_then(|peer| peer.pace);
        let patience =
            pace.map_or(LATE_AT_FIRST, |pace| LATE + 4 * (pace.as_millis() / super::TICK.as_millis()) as u64);
        self.ticks - since >= patience
    }
}
