//! Whom to dial, and when again: a plan without sockets or a clock of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::settings::{MAX_ADDRESSES, SwarmError};
use super::unreached::Unreached;

/// How long to wait after the first failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait while no neighbour is connected.
pub const LONELY_WAIT: Duration = Duration::from_secs(30);

/// The longest wait while there are neighbours: an address that never answers costs next to nothing.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// How many nodes that multicast DNS found are dialed at a time. Where a whole site comes up together all find each other in the
/// same moment: 64 handshakes at once share a link that may be thin, where each would take longer than it may, and the other
/// side takes in [`MAX_HANDSHAKES`](super::MAX_HANDSHAKES).
const LOCAL_AT_ONCE: usize = 8;

/// For how long a dial counts as one of these: a node that does not answer keeps the others waiting no longer.
const LOCAL_TIME: Duration = Duration::from_secs(2);

/// How many addresses are kept of one node that multicast DNS found.
const MAX_LOCAL_ADDRESSES: usize = 8;

/// Where an address comes from, which decides how long it is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Configured: tried for ever.
    Bootstrap,
    /// From an earlier run: tried while no neighbour is connected.
    Remembered,
    /// Found on the local network: tried until it is not there any more.
    Local,
}

#[derive(Debug)]
struct Target {
    source: Source,
    // Whom the address names, if it does.
    peer: Option<PeerId>,
    // Who answered there last, where it names nobody: a machine may be exchanged, or get another's address.
    met: Option<PeerId>,
    addresses: Vec<Multiaddr>,
    failures: u32,
    due: Instant,
    // Since when, if it is.
    dialing: Option<Instant>,
    // Which of those that are due is dialed first: were it the same for all nodes, all would dial one.
    lot: u32,
    // Whether it has been reached, or not, at least once.
    tried: bool,
    // What is told of a bootstrap address while it is not connected.
    unreached: Option<Unreached>,
    // Whether the log has said so, and why.
    said: bool,
}

impl Target {
    fn new(source: Source, peer: Option<PeerId>, address: Multiaddr, now: Instant) -> Self {
        let addresses = vec![address];
        Self {
            source,
            peer,
            met: None,
            addresses,
            failures: 0,
            due: now,
            dialing: None,
            lot: rand::random(),
            tried: false,
            unreached: None,
            said: false,
        }
    }

    fn leads_to(&self) -> Option<PeerId> {
        self.peer.or(self.met)
    }

    /// The addresses to try now. First those over TCP alone: that a process was killed its system tells there, and over
    /// QUIC nobody does.
    fn to_try(&self) -> Vec<Multiaddr> {
        let is_tcp = |address: &Multiaddr| address.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        let first: Vec<_> = self.addresses.iter().filter(|address| is_tcp(address)).cloned().collect();
        if self.failures > 0 || first.is_empty() { self.addresses.clone() } else { first }
    }
}

/// A node to dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dial {
    pub(super) peer: Option<PeerId>,
    pub(super) addresses: Vec<Multiaddr>,
    target: usize,
}

/// The plan.
pub(super) struct Discovery {
    targets: Vec<Option<Target>>,
    dialing: HashMap<ConnectionId, usize>,
}

/// Reads an address to join by, with the peer id at its end if it has one.
pub(super) fn parse(text: &str) -> Result<(Multiaddr, Option<PeerId>), SwarmError> {
    let bad = |reason: &str| SwarmError::Address { text: text.to_owned(), reason: reason.to_owned() };
    let mut address: Multiaddr =
        text.parse().map_err(|error: libp2p::multiaddr::Error| bad(&error.to_string()))?;
    let peer = match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            Some(peer)
        }
        _ => None,
    };
    let transport = address.iter().nth(1);
    if !matches!(transport, Some(Protocol::Tcp(_) | Protocol::Udp(_)))
        && !matches!(address.iter().next(), Some(Protocol::Dnsaddr(_)))
    {
        return Err(bad("it names neither TCP nor QUIC"));
    }
    Ok((address, peer))
}

impl Discovery {
    /// `time` is that of people, in seconds since the Unix epoch, as everywhere here.
    pub(super) fn new(
        bootstrap: &[String],
        remembered: &[String],
        now: Instant,
        time: u64,
    ) -> Result<Self, SwarmError> {
        let target = |(address, peer), source| Some(Target::new(source, peer, address, now));
        let mut targets = Vec::new();
        for text in bootstrap.iter().take(MAX_ADDRESSES) {
            let (address, peer) = parse(text)?;
            let why = "no answer yet".to_owned();
            let unreached = Some(Unreached { address: text.clone(), why, since: time });
            targets.push(Some(Target { unreached, ..Target::new(Source::Bootstrap, peer, address, now) }));
        }
        for text in remembered.iter().take(MAX_ADDRESSES) {
            // What an earlier run wrote down is no reason not to start.
            match parse(text) {
                Ok(parsed) => targets.push(target(parsed, Source::Remembered)),
                Err(error) => tracing::debug!(%error, "a remembered address is passed over"),
            }
        }
        Ok(Self { targets, dialing: HashMap::new() })
    }

    /// Multicast DNS has found an address of a node.
    pub(super) fn found(&mut self, peer: PeerId, address: Multiaddr, now: Instant) {
        let local = |target: &&mut Target| target.source == Source::Local && target.peer == Some(peer);
        if let Some(target) = self.targets.iter_mut().flatten().find(local) {
            if target.addresses.len() < MAX_LOCAL_ADDRESSES && !target.addresses.contains(&address) {
                target.addresses.push(address);
            }
            return;
        }
        if self.targets.iter().flatten().filter(|target| target.source == Source::Local).count()
            >= MAX_ADDRESSES
        {
            return;
        }
        let target = Target::new(Source::Local, Some(peer), address, now);
        match self.targets.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(target),
            None => self.targets.push(Some(target)),
        }
    }

    /// Multicast DNS does not see an address of a node any more.
    pub(super) fn lost(&mut self, peer: &PeerId, address: &Multiaddr) {
        for (at, place) in self.targets.iter_mut().enumerate() {
            let Some(target) = place else { continue };
            if target.source == Source::Local && target.peer == Some(*peer) {
                target.addresses.retain(|known| known != address);
                if target.addresses.is_empty() {
                    *place = None;
                    self.dialing.retain(|_, dialed| *dialed != at);
                }
            }
        }
    }

    /// Whether every address that the node started with has been tried, or needs not be.
    pub(super) fn is_settled(&self, connected: impl Fn(&PeerId) -> bool) -> bool {
        self.targets.iter().flatten().all(|target| {
            target.tried
                || target.source == Source::Local
                || target.leads_to().is_some_and(|peer| connected(&peer))
        })
    }

    /// Whom to dial now, and when to ask again.
    pub(super) fn due(
        &mut self,
        now: Instant,
        lonely: bool,
        connected: impl Fn(&PeerId) -> bool,
    ) -> (Vec<Dial>, Option<Instant>) {
        let local = self.targets.iter().flatten().filter(|target| target.source == Source::Local);
        // When each of the dials ends that count.
        let mut ends: Vec<Instant> =
            local.filter_map(|target| Some(target.dialing? + LOCAL_TIME)).filter(|end| now < *end).collect();
        let mut places = LOCAL_AT_ONCE.saturating_sub(ends.len());
        let mut all: Vec<(usize, &mut Target)> = self
            .targets
            .iter_mut()
            .enumerate()
            .filter_map(|(at, target)| Some((at, target.as_mut()?)))
            .collect();
        // Those who did not answer come last: they keep nobody from being dialed who was not dialed yet.
        all.sort_by_key(|(_, target)| {
            (target.source == Source::Local).then_some((target.failures, target.lot))
        });
        let mut dials = Vec::new();
        let mut next: Option<Instant> = None;
        for (at, target) in all {
            let wanted = target.source != Source::Remembered || lonely;
            let is_dialed = target.dialing.is_some();
            if is_dialed || !wanted || target.leads_to().is_some_and(|peer| connected(&peer)) {
                continue;
            }
            // Whoever is alone does not wait out what was planned in company.
            if lonely {
                target.due = target.due.min(now + LONELY_WAIT);
            }
            let is_local = target.source == Source::Local;
            let later = match target.due <= now {
                true if is_local && places == 0 => ends.iter().min().copied(),
                true => None,
                false => Some(target.due),
            };
            if later.is_some() {
                next = next.into_iter().chain(later).min();
                continue;
            }
            target.dialing = Some(now);
            if is_local {
                places -= 1;
                ends.push(now + LOCAL_TIME);
            }
            dials.push(Dial { peer: target.peer, addresses: target.to_try(), target: at });
        }
        (dials, next)
    }

    /// A dial has begun.
    pub(super) fn began(&mut self, dial: &Dial, connection: ConnectionId) {
        self.dialing.insert(connection, dial.target);
    }

    /// A dial did not even begin, and why not; `None` if the address is this node's own. Returns the same as
    /// [`Self::failed`].
    pub(super) fn refused(
        &mut self,
        dial: &Dial,
        why: Option<&str>,
        now: Instant,
        lonely: bool,
    ) -> Option<Unreached> {
        if why.is_none()
            && let Some(Some(target)) = self.targets.get_mut(dial.target)
        {
            target.unreached = None;
        }
        self.fail(dial.target, why.unwrap_or_default(), now, lonely)
    }

    /// A dial did not begin because another address of the same node is being tried: that tells nothing of this one.
    pub(super) fn deferred(&mut self, dial: &Dial, now: Instant) {
        if let Some(Some(target)) = self.targets.get_mut(dial.target) {
            target.dialing = None;
            target.tried = true;
            target.due = now + jittered(FIRST_WAIT);
        }
    }

    /// The bootstrap addresses that are not connected.
    pub(super) fn unreached(&self, connected: impl Fn(&PeerId) -> bool) -> Vec<Unreached> {
        let apart = self.targets.iter().flatten();
        let apart = apart.filter(|target| !target.leads_to().is_some_and(|peer| connected(&peer)));
        apart.filter_map(|target| target.unreached.clone()).collect()
    }

    /// An address is this node's own, as where all nodes have one list: there is nobody to reach.
    pub(super) fn is_own(&mut self, connection: ConnectionId) {
        if let Some(at) = self.dialing.get(&connection)
            && let Some(Some(target)) = self.targets.get_mut(*at)
        {
            target.unreached = None;
        }
    }

    /// A connection is there.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: PeerId) {
        if let Some(at) = self.dialing.remove(&connection)
            && let Some(Some(target)) = self.targets.get_mut(at)
        {
            target.met = Some(peer);
            target.tried = true;
            target.dialing = None;
            target.said = false;
        }
    }

    /// A connection could not be made, and why not. Returns what there is to say of a bootstrap address that was not said
    /// yet.
    pub(super) fn failed(
        &mut self,
        connection: ConnectionId,
        why: &str,
        now: Instant,
        lonely: bool,
    ) -> Option<Unreached> {
        let at = self.dialing.remove(&connection)?;
        self.fail(at, why, now, lonely)
    }

    fn fail(&mut self, at: usize, why: &str, now: Instant, lonely: bool) -> Option<Unreached> {
        self.wait(at, now, lonely);
        let target = self.targets.get_mut(at)?.as_mut()?;
        let unreached = target.unreached.as_mut()?;
        let is_news = !target.said || unreached.why != why;
        why.clone_into(&mut unreached.why);
        target.said = true;
        is_news.then(|| unreached.clone())
    }

    /// The last connection to a peer has ended: it is tried again soon.
    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant, time: u64) {
        for target in self.targets.iter_mut().flatten().filter(|target| target.leads_to() == Some(*peer)) {
            target.failures = 0;
            target.due = now + jittered(FIRST_WAIT);
            target.said = false;
            if let Some(unreached) = &mut target.unreached {
                "the connection has ended".clone_into(&mut unreached.why);
                unreached.since = time;
            }
        }
    }

    fn wait(&mut self, at: usize, now: Instant, lonely: bool) {
        let Some(Some(target)) = self.targets.get_mut(at) else { return };
        target.dialing = None;
        target.met = None;
        target.tried = true;
        let most = if lonely { LONELY_WAIT } else { LONGEST_WAIT };
        let wait = FIRST_WAIT.saturating_mul(1 << target.failures.min(16)).min(most);
        target.failures = target.failures.saturating_add(1);
        target.due = now + jittered(wait);
    }
}

/// A quarter more or less, so that a site that comes up together does not dial in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: &str = "/dns/cloud.example/tcp/4050";

    const WHY: &str = "refused";

    fn plan(bootstrap: &[&str], remembered: &[&str], now: Instant) -> Discovery {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Discovery::new(&owned(bootstrap), &owned(remembered), now, 0).unwrap()
    }

    /// Whom a node that is alone dials.
    fn plan_due(plan: &mut Discovery, now: Instant) -> Vec<Dial> {
        plan.due(now, true, |_| false).0
    }

    #[test]
    fn an_address_that_fails_is_tried_again_ever_later_but_for_ever() {
        let mut now = Instant::now();
        let mut plan = plan(&[FAR], &[], now);
        let mut waits = Vec::new();
        for attempt in 0..20 {
            let (dials, _) = plan.due(now, true, |_| false);
            assert_eq!(dials.len(), 1, "attempt {attempt}");
            let connection = ConnectionId::new_unchecked(attempt);
            plan.began(&dials[0], connection);
            assert!(plan.due(now, true, |_| false).0.is_empty(), "dialed twice at once");
            plan.failed(connection, WHY, now, true);
            let (_, next) = plan.due(now, true, |_| false);
            waits.push(next.unwrap() - now);
            now = next.unwrap();
        }
        assert!(waits[0] < Duration::from_secs(2) && waits[19] > LONELY_WAIT / 2, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONELY_WAIT.mul_f64(1.25)));
    }

    #[test]
    fn a_remembered_peer_is_dialed_only_by_a_node_that_is_alone() {
        let now = Instant::now();
        let mut plan = plan(&[], &[FAR], now);
        assert!(plan.due(now, false, |_| false).0.is_empty());
        assert_eq!(plan.due(now, true, |_| false).0.len(), 1);
    }

    #[test]
    fn whoever_is_connected_is_not_dialed_and_is_again_once_gone() {
        let now = Instant::now();
        let mut plan = plan(&[FAR], &[], now);
        let (dials, _) = plan.due(now, true, |_| false);
        let (connection, peer) = (ConnectionId::new_unchecked(1), PeerId::random());
        plan.began(&dials[0], connection);
        plan.connected(connection, peer);
        assert!(plan.due(now + LONGEST_WAIT, true, |known| *known == peer).0.is_empty());
        plan.disconnected(&peer, now, 0);
        let (dials, _) = plan.due(now + 2 * FIRST_WAIT, true, |_| false);
        // By its address alone: another node may have it now.
        assert_eq!(dials[0].peer, None);
        let connection = ConnectionId::new_unchecked(2);
        plan.began(&dials[0], connection);
        plan.failed(connection, WHY, now, true);
        let (_, next) = plan.due(now, true, |known| *known == peer);
        assert!(next.is_some(), "an address that failed waits for whom it led to before");
    }

    /// All of a site finds all of it in one moment when it comes up.
    #[test]
    fn of_many_that_are_found_at_once_a_few_are_dialed_at_a_time_and_those_who_do_not_answer_hold_up_nobody()
    {
        let mut now = Instant::now();
        let mut plan = plan(&[], &[], now);
        let found: Vec<PeerId> = (0..3 * LOCAL_AT_ONCE).map(|_| PeerId::random()).collect();
        for (n, peer) in found.iter().enumerate() {
            plan.found(*peer, format!("/ip4/192.0.2.{n}/tcp/1").parse().unwrap(), now);
        }
        let (first, _) = plan.due(now, true, |_| false);
        assert_eq!(first.len(), LOCAL_AT_ONCE);
        let (more, next) = plan.due(now, true, |_| false);
        assert_eq!((more, next), (Vec::new(), Some(now + LOCAL_TIME)));
        // One is reached, which makes place for one.
        let connection = ConnectionId::new_unchecked(1);
        plan.began(&first[0], connection);
        plan.connected(connection, first[0].peer.unwrap());
        let reached = |peer: &PeerId| Some(*peer) == first[0].peer;
        assert_eq!(plan.due(now, false, reached).0.len(), 1);
        // The others say nothing.
        now += LOCAL_TIME;
        assert_eq!(plan.due(now, false, reached).0.len(), LOCAL_AT_ONCE);
        now += LOCAL_TIME;
        assert_eq!(plan.due(now, false, reached).0.len(), LOCAL_AT_ONCE - 1);
    }

    #[test]
    fn a_plan_is_settled_once_each_address_was_tried() {
        let now = Instant::now();
        assert!(plan(&[], &[], now).is_settled(|_| false));
        let mut plan = plan(&[FAR, "/ip4/192.0.2.1/tcp/1"], &["/ip4/192.0.2.2/tcp/1"], now);
        let (dials, _) = plan.due(now, true, |_| false);
        assert_eq!(dials.len(), 3);
        for (attempt, dial) in dials.iter().enumerate() {
            assert!(!plan.is_settled(|_| false), "settled before address {attempt} was tried");
            let connection = ConnectionId::new_unchecked(attempt);
            plan.began(dial, connection);
            match attempt {
                0 => plan.connected(connection, PeerId::random()),
                _ => drop(plan.failed(connection, WHY, now, false)),
            }
        }
        assert!(plan.is_settled(|_| false));
    }

    #[test]
    fn an_address_that_names_a_peer_is_dialed_for_no_other() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut plan = plan(&[&format!("{FAR}/p2p/{peer}")], &[], now);
        for attempt in 0..3 {
            let later = now + attempt * LONGEST_WAIT;
            let (dials, _) = plan.due(later, true, |_| false);
            assert_eq!(dials[0].peer, Some(peer));
            plan.began(&dials[0], ConnectionId::new_unchecked(attempt as usize));
            plan.failed(ConnectionId::new_unchecked(attempt as usize), WHY, later, true);
        }
    }

    #[test]
    fn what_is_known_of_a_bootstrap_address_is_told_until_it_is_connected_and_said_once() {
        let now = Instant::now();
        let mut plan =
            Discovery::new(&[FAR.to_owned()], &["/ip4/192.0.2.2/tcp/1".to_owned()], now, 7).unwrap();
        let mut attempt = 0;
        let mut dial = |plan: &mut Discovery| {
            attempt += 1;
            let (dials, _) = plan.due(now + attempt * LONGEST_WAIT * 2, false, |_| false);
            let connection = ConnectionId::new_unchecked(attempt as usize);
            plan.began(&dials[0], connection);
            connection
        };
        let told = |why: &str, since| vec![Unreached { address: FAR.to_owned(), why: why.to_owned(), since }];
        assert_eq!(plan.unreached(|_| false), told("no answer yet", 7));
        let mut said = Vec::new();
        for why in ["refused", "refused", "no answer", "no answer"] {
            let connection = dial(&mut plan);
            said.push(plan.failed(connection, why, now, false).map(|news| news.why));
            assert_eq!(plan.unreached(|_| false), told(why, 7));
        }
        assert_eq!(said, [Some("refused".to_owned()), None, Some("no answer".to_owned()), None]);

        let (connection, peer) = (dial(&mut plan), PeerId::random());
        plan.connected(connection, peer);
        assert_eq!(plan.unreached(|it| *it == peer), []);
        plan.disconnected(&peer, now, 9);
        assert_eq!(plan.unreached(|_| false), told("the connection has ended", 9));
        let connection = dial(&mut plan);
        assert!(plan.failed(connection, "no answer", now, false).is_some(), "it was connected meanwhile");
        assert_eq!(plan.unreached(|_| false), told("no answer", 9));

        let connection = dial(&mut plan);
        plan.is_own(connection);
        assert_eq!(plan.failed(connection, "own", now, false), None);
        assert_eq!(plan.unreached(|_| false), []);
    }

    #[test]
    fn an_address_that_cannot_even_be_dialed_is_told_with_why_and_not_at_all_if_it_is_this_nodes_own() {
        let now = Instant::now();
        let mut plan = plan(&[FAR, "/ip4/192.0.2.1/tcp/1"], &[], now);
        let (dials, _) = plan.due(now, true, |_| false);
        assert_eq!(plan.refused(&dials[0], None, now, true), None);
        let said = plan.refused(&dials[1], Some("as many as it may"), now, true).unwrap();
        assert_eq!(plan.unreached(|_| false), std::slice::from_ref(&said));
        assert_eq!((&*said.address, &*said.why), ("/ip4/192.0.2.1/tcp/1", "as many as it may"));
        // Both are tried again: a machine may get another address.
        assert_eq!(plan.due(now + LONGEST_WAIT, true, |_| false).0.len(), 2);
    }

    #[test]
    fn an_address_that_waits_for_another_of_the_same_node_has_not_failed() {
        let now = Instant::now();
        let mut plan = plan(&[FAR], &[], now);
        let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(0));
        let dials = plan_due(&mut plan, now);
        plan.began(&dials[0], connection);
        plan.connected(connection, peer);
        plan.disconnected(&peer, now, 9);
        let mut later = now;
        for _ in 0..10 {
            later += 2 * FIRST_WAIT;
            let dials = plan_due(&mut plan, later);
            plan.deferred(&dials[0], later);
            assert_eq!(plan.unreached(|_| false)[0].why, "the connection has ended");
        }
        let (_, next) = plan.due(later, false, |_| false);
        assert!(next.unwrap() < later + 2 * FIRST_WAIT, "it waits as if it had failed");
    }

    #[test]
    fn a_node_that_was_found_nearby_is_tried_over_tcp_first_and_over_all_once_that_has_failed() {
        let now = Instant::now();
        let mut plan = plan(&[], &[], now);
        let (peer, near) = (PeerId::random(), "/ip4/192.0.2.1");
        let [quic, tcp] = [format!("{near}/udp/1/quic-v1"), format!("{near}/tcp/1")]
            .map(|text| text.parse::<Multiaddr>().unwrap());
        plan.found(peer, quic.clone(), now);
        plan.found(peer, tcp.clone(), now);
        let dials = plan_due(&mut plan, now);
        assert_eq!(dials[0].addresses, std::slice::from_ref(&tcp));
        let connection = ConnectionId::new_unchecked(0);
        plan.began(&dials[0], connection);
        plan.failed(connection, WHY, now, true);
        assert_eq!(plan_due(&mut plan, now + LONELY_WAIT)[0].addresses, [quic.clone(), tcp.clone()]);
        // Nothing is lost where there is QUIC alone.
        plan.found(PeerId::random(), quic.clone(), now);
        assert_eq!(plan_due(&mut plan, now)[0].addresses, [quic]);
    }

    #[test]
    fn what_multicast_dns_lost_is_not_dialed() {
        let now = Instant::now();
        let mut plan = plan(&[], &[], now);
        let (peer, address) = (PeerId::random(), "/ip4/192.0.2.1/tcp/1".parse::<Multiaddr>().unwrap());
        plan.found(peer, address.clone(), now);
        plan.found(peer, address.clone(), now);
        plan.lost(&peer, &address);
        assert!(plan.due(now, true, |_| false).0.is_empty());
    }

    #[test]
    fn an_address_that_cannot_be_dialed_is_an_error_that_shows_it() {
        for bad in ["", "cloud.example:4050", "/ip4/192.0.2.1", "/ip4/300.0.0.1/tcp/1"] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
        let peer = PeerId::random();
        assert_eq!(parse(&format!("{FAR}/p2p/{peer}")).unwrap(), (FAR.parse().unwrap(), Some(peer)));
    }
}
