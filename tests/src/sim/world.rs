//! The world: virtual time, links, who lives, and the loop that lets things happen.

use std::collections::HashMap;
use std::time::Duration;

use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Event, Room, Scope, Source, TICK};
use wherry_proto::{Certificate, ChunkIndex, Link, NodeId, Roles, SecretKey};

use super::blob::{Blob, Content, TRUE};
use super::clock::{Clock, Time, nanos};
use super::fluid::Fluid;
use super::message::{BlobNo, Message, RequestId};
use super::node::{Carried, Giving, Node, Tally};
use super::random::Random;
use super::report::Report;
use super::setup::{Manner, Setup};

/// What happens at a time.
pub(super) enum Happening {
    Start(usize),
    Deliver {
        from: usize,
        to: usize,
        lives: (u32, u32),
        message: Message,
    },
    Flows(usize, u64),
    Tick {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    Push {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    Room {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    /// The first bytes of a chunk are there.
    Begun {
        node: usize,
        blob: BlobNo,
        peer: usize,
        request: RequestId,
    },
    Kept {
        node: usize,
        blob: BlobNo,
        run: u64,
        source: Source,
        index: ChunkIndex,
        link: Link,
        content: Content,
    },
    OriginBegins {
        node: usize,
        blob: BlobNo,
        run: u64,
        reading: u64,
    },
    // A request has had no answer for long.
    Silence {
        node: usize,
        blob: BlobNo,
        run: u64,
        request: RequestId,
    },
    // A peer that was busy may be asked again.
    Pause {
        node: usize,
        blob: BlobNo,
        run: u64,
        peer: usize,
        token: u64,
    },
    // It is noticed that a peer's life is over.
    Lost {
        node: usize,
        peer: usize,
        life: u32,
    },
    SitePatience {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    // The same for those who were asked what they do.
    RolePatience {
        node: usize,
        blob: BlobNo,
        asking: u64,
    },
    OtherSitesAsked {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    NetworkAsked {
        node: usize,
        blob: BlobNo,
        run: u64,
    },
    Met {
        node: usize,
        blob: BlobNo,
        peer: usize,
    },
    Kill {
        node: usize,
        back: Option<Duration>,
    },
    Churn(u32),
    Liar(usize),
    // A client asks once more.
    Again {
        node: usize,
        blob: BlobNo,
    },
}

/// What a flow carries.
pub(super) enum Carries {
    Chunk { giver: usize, taker: usize },
    Origin { node: usize, blob: BlobNo, reading: u64 },
}

/// Links that share flows: one for each site, or one for all if sites trade with each other.
pub(super) struct Links {
    pub(super) fluid: Fluid<Carries>,
    generation: u64,
}

/// A simulation that runs.
pub struct World {
    pub(super) setup: Setup,
    pub(super) clock: Clock<Happening>,
    pub(super) random: Random,
    pub(super) blobs: Vec<Blob>,
    pub(super) nodes: Vec<Node>,
    pub(super) ids: HashMap<NodeId, usize>,
    pub(super) links: Vec<Links>,
    // The port out of each site, and the one into it.
    pub(super) uplinks: Vec<(usize, usize)>,
    pub(super) numbers: u64,
    pub(super) report: Report,
    // How many nodes still want something.
    pub(super) open: usize,
    pub(super) events: u64,
    pub(super) trace: bool,
}

impl World {
    /// A world at its beginning.
    pub fn new(setup: Setup) -> Self {
        let mut random = Random::new(setup.seed);
        let blobs: Vec<Blob> = setup
            .blobs
            .iter()
            .enumerate()
            .map(|(n, size)| Blob::new(*size, setup.seed << 8 | n as u64))
            .collect();
        let domains = if setup.wide { 1 } else { setup.sites.len() };
        let mut links: Vec<Links> =
            (0..domains).map(|_| Links { fluid: Fluid::new(), generation: 0 }).collect();
        let uplinks = setup
            .sites
            .iter()
            .enumerate()
            .map(|(site, rate)| {
                let fluid = &mut links[site % domains].fluid;
                (fluid.port(*rate), fluid.port(*rate))
            })
            .collect();
        let operator = SecretKey::from_seed([7; 32]);
        let nodes: Vec<Node> = setup
            .nodes
            .iter()
            .map(|node| {
                let mut seed = [0; 32];
                seed.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_le_bytes()));
                let key = SecretKey::from_seed(seed);
                let fluid = &mut links[node.site % domains].fluid;
                let carried = |blob: &Blob| Carried {
                    held: node.holds && node.manner == Manner::Honest,
                    done: None,
                    failed: false,
                    transfer: None,
                    links: Vec::new(),
                    content: vec![
                        TRUE;
                        if node.manner == Manner::Honest { blob.map().count() as usize } else { 0 }
                    ],
                    last_attempt: 0,
                };
                Node {
                    id: key.node(),
                    certificate: Certificate::sign(&operator, key.node(), Roles::MEMBER, 0, u64::MAX),
                    key,
                    up: fluid.port(node.up),
                    down: fluid.port(node.down),
                    alive: false,
                    life: 0,
                    neighbours: Vec::new(),
                    banned: Default::default(),
                    blobs: blobs.iter().map(carried).collect(),
                    giving: Giving::default(),
                    room: Room::default(),
                    tally: Tally::default(),
                    deceived: Default::default(),
                    said: Default::default(),
                    owed: Default::default(),
                    setup: node.clone(),
                }
            })
            .collect();
        let ids = nodes.iter().enumerate().map(|(number, node)| (node.id, number)).collect();
        let wanting = nodes
            .iter()
            .filter(|node| node.setup.wants && node.setup.manner == Manner::Honest && !node.setup.holds);
        let open = wanting.count() * blobs.len();
        let report = Report::new(&setup);
        let trace = std::env::var_os("WHERRY_SIM_TRACE").is_some();
        let mut world = Self {
            clock: Clock::new(),
            random,
            blobs,
            nodes,
            ids,
            links,
            uplinks,
            numbers: 0,
            report,
            open,
            events: 0,
            trace,
            setup,
        };
        world.meet();
        for node in 0..world.nodes.len() {
            world.clock.at(nanos(world.setup.nodes[node].start), Happening::Start(node));
        }
        for (node, at, back) in world.setup.deaths.clone() {
            world.clock.at(nanos(at), Happening::Kill { node, back });
        }
        if let Some(churn) = world.setup.churn {
            world.clock.at(nanos(churn.period), Happening::Churn(1));
        }
        world
    }

    /// Who is connected with whom: everybody in a site with everybody, or each node with its two neighbours in each of some
    /// rings through all of them in random order, so that none has more than it may and all are connected somehow.
    fn meet(&mut self) {
        let mut sites = vec![Vec::new(); self.setup.sites.len()];
        for (number, node) in self.nodes.iter().enumerate() {
            sites[node.setup.site].push(number);
        }
        for mut site in sites {
            match self.setup.view {
                Some(view) if site.len() > view + 1 => {
                    for _ in 0..view / 2 {
                        self.random.shuffle(&mut site);
                        let next = site.iter().skip(1).chain(site.first());
                        for (one, two) in site.iter().zip(next) {
                            self.connect(*one, *two);
                        }
                    }
                    if view % 2 == 1 {
                        self.random.shuffle(&mut site);
                        for pair in site.chunks_exact(2) {
                            self.connect(pair[0], pair[1]);
                        }
                    }
                    for node in site {
                        let neighbours = &mut self.nodes[node].neighbours;
                        neighbours.sort_unstable();
                        neighbours.dedup();
                    }
                }
                _ => {
                    for node in &site {
                        let others = site.iter().copied().filter(|other| other != node);
                        self.nodes[*node].neighbours = others.collect();
                    }
                }
            }
        }
    }

    fn connect(&mut self, one: usize, two: usize) {
        self.nodes[one].neighbours.push(two);
        self.nodes[two].neighbours.push(one);
    }

    /// Lets things happen until all have what they want, or time is up.
    pub fn run(mut self) -> Report {
        let limit = nanos(self.setup.limit);
        while self.open > 0 && self.events < self.setup.most_events {
            self.share_links();
            let Some(due) = self.clock.next_time() else { break };
            if due > limit {
                break;
            }
            let Some(happening) = self.clock.next() else { break };
            self.events += 1;
            self.happens(happening);
        }
        self.finish()
    }

    /// Shares links anew where flows have begun or ended, once for each point of time.
    fn share_links(&mut self) {
        let now = self.clock.now();
        if self.clock.next_time() == Some(now) {
            return;
        }
        for domain in 0..self.links.len() {
            let links = &mut self.links[domain];
            if links.fluid.is_dirty() {
                links.generation += 1;
                if let Some(at) = links.fluid.share(now) {
                    let generation = links.generation;
                    self.clock.at(at, Happening::Flows(domain, generation));
                }
            }
        }
    }

    pub(super) fn domain(&self, node: usize) -> usize {
        self.nodes[node].setup.site % self.links.len()
    }

    pub(super) const fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn class(&self, one: usize, two: usize) -> LinkClass {
        if self.nodes[one].setup.site == self.nodes[two].setup.site { LinkClass::Lan } else { LinkClass::Wan }
    }

    pub(super) fn half_rtt(&self, one: usize, two: usize) -> Time {
        let rtt = match self.class(one, two) {
            LinkClass::Lan => self.setup.rtt,
            LinkClass::Wan => self.setup.far_rtt,
        };
        nanos(rtt) / 2
    }

    pub(super) fn refuses(&self, one: usize, two: usize) -> bool {
        self.nodes[one].banned.contains(&two) || self.nodes[two].banned.contains(&one)
    }

    /// Sends a message. What the giving side says stands behind the chunk that it is sending on the same connection.
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        if message.is_answer()
            && let Some(connection) = self.nodes[from].giving.connections.get_mut(&to)
            && connection.serving.is_some()
        {
            connection.behind.push(message);
            return;
        }
        self.send_now(from, to, message, 0);
    }

    pub(super) fn send_now(&mut self, from: usize, to: usize, message: Message, later: Time) {
        if !self.nodes[to].alive || self.refuses(from, to) {
            return;
        }
        if matches!(message, Message::Want(_) | Message::Found(..)) {
            self.report.searching += 1;
        }
        let tally = &mut self.nodes[from].tally;
        tally.messages += 1;
        tally.message_bytes += message.len();
        let lives = (self.nodes[from].life, self.nodes[to].life);
        // What is long takes its time on the link.
        let length = (message.len() as f64 / self.nodes[from].setup.up * 1e9) as Time;
        let delay = self.half_rtt(from, to) + self.queued(from, to) + length + later;
        // What is said later does not come sooner.
        let before = self.nodes[from].said.entry(to).or_default();
        let at = (self.clock.now() + delay).max(*before);
        let is_alone = at > *before;
        *before = at;
        let chunk = match &message {
            Message::Chunk { blob, index, .. } => u64::from(self.blobs[*blob].map().len(*index)),
            _ => 0,
        };
        let (there, back) = (message.on_link(is_alone) as f64, message.acknowledged(chunk) as f64);
        self.nodes[from].owed.0 += there;
        self.nodes[from].owed.1 += back;
        self.nodes[to].owed.0 += back;
        self.nodes[to].owed.1 += there;
        self.clock.at(at, Happening::Deliver { from, to, lives, message });
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Start(node) => self.start(node),
            Happening::Deliver { from, to, lives, message } => {
                let current = (self.nodes[from].life, self.nodes[to].life) == lives;
                if current && self.nodes[to].alive && !self.refuses(from, to) {
                    self.nodes[to].tally.received += 1;
                    self.deliver(from, to, message);
                }
            }
            Happening::Flows(domain, generation) => {
                if self.links[domain].generation == generation {
                    let now = self.clock.now();
                    for carried in self.links[domain].fluid.done(now) {
                        self.flowed(carried);
                    }
                    // None was done, for time is counted in whole nanoseconds: share again.
                    if !self.links[domain].fluid.is_dirty()
                        && let Some(at) = self.links[domain].fluid.share(now)
                    {
                        self.clock.at(at, Happening::Flows(domain, generation));
                    }
                }
            }
            Happening::Tick { node, blob, run } => {
                if self.runs(node, blob, run) {
                    self.apply(node, blob, Event::Tick);
                    self.clock.after(nanos(TICK), Happening::Tick { node, blob, run });
                }
            }
            Happening::Room { node, blob, run } => {
                if self.runs(node, blob, run) {
                    self.apply(node, blob, Event::Room);
                }
            }
            Happening::Begun { node, blob, peer, request } => self.begun(node, blob, peer, request),
            Happening::Push { node, blob, run } => {
                if self.runs(node, blob, run) {
                    let now = self.clock.now();
                    if let Some(transfer) = self.nodes[node].transfer(blob) {
                        transfer.push_due.take_if(|due| *due <= now);
                    }
                    self.push(node, blob);
                }
            }
            Happening::Kept { node, blob, run, source, index, link, content } => {
                if self.runs(node, blob, run) {
                    self.nodes[node].blobs[blob].content[index.get() as usize] = content;
                    self.apply(node, blob, Event::Kept(source, index, link));
                }
            }
            Happening::OriginBegins { node, blob, run, reading } => {
                if self.runs(node, blob, run) {
                    self.origin_goes_on(node, blob, reading);
                }
            }
            Happening::Silence { node, blob, run, request } => {
                if self.runs(node, blob, run) {
                    self.silence(node, blob, request);
                }
            }
            Happening::Pause { node, blob, run, peer, token } => {
                if self.runs(node, blob, run) {
                    self.pause_is_over(node, blob, peer, token);
                }
            }
            Happening::Lost { node, peer, life } => self.lost(node, peer, life),
            Happening::SitePatience { node, blob, run } => {
                if self.runs(node, blob, run) {
                    self.site_asked(node, blob);
                }
            }
            Happening::RolePatience { node, blob, asking } => self.roles_asked(node, blob, asking),
            Happening::OtherSitesAsked { node, blob, run } => {
                if self.runs(node, blob, run) {
                    self.apply(node, blob, Event::Searched(Scope::OtherSites));
                }
            }
            Happening::NetworkAsked { node, blob, run } => {
                if self.runs(node, blob, run) {
                    self.network_asked(node, blob);
                }
            }
            Happening::Met { node, blob, peer } => {
                let (id, class) = (self.nodes[peer].id, self.class(node, peer));
                self.apply(node, blob, Event::Met(id, class, None));
            }
            Happening::Kill { node, back } => self.kill(node, back),
            Happening::Churn(number) => self.churn(number),
            Happening::Liar(node) => self.liar_goes_on(node),
            Happening::Again { node, blob } => {
                let carried = &self.nodes[node].blobs[blob];
                if self.nodes[node].alive && !carried.held && carried.transfer.is_none() {
                    self.begin(node, blob);
                }
            }
        }
    }

    pub(super) fn runs(&self, node: usize, blob: BlobNo, run: u64) -> bool {
        self.nodes[node].blobs[blob].transfer.as_ref().is_some_and(|transfer| transfer.run == run)
    }

    fn flowed(&mut self, carried: Carries) {
        match carried {
            Carries::Chunk { giver, taker } => self.chunk_sent(giver, taker),
            Carries::Origin { node, blob, reading } => self.origin_gave(node, blob, reading),
        }
    }
}
