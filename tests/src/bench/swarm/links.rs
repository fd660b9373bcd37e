//! Sites of nodes: a namespace for each node, one for each site with its bridge and router, one for the cloud, and what
//! connects them, each link as fast as it is told.
//!
//! ```text
//! node: eth0 ──── port: bridge (site, which routes): uplink ──── site: cloud (which routes): origin ──── eth0: origin
//! ```
//! Ports and uplinks are shaped at both of their ends, where packets leave. The origin is a hop away from the uplinks: who
//! sends and shapes in one place learns of each packet that does not fit, as no server on the internet does.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use wherry_tests::netns::{Space, Spaces};
use wherry_tests::sim::{LEAST_QUEUE, PORT_QUEUE};

/// Where the origin can be reached from everywhere.
pub(crate) const ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

/// The cloud's side of the link to it.
const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

/// How many bytes a node lets wait for its own port until [`OWN_ORDER`] is set: a thousand packets.
const OWN_QUEUE: f64 = 1_514e3;

/// In which order packets leave a node, and how many wait: as with Linux unless it is told otherwise, which lets a thousand wait
/// and those of higher priority go first. Its TCP sees to it that there are few.
const OWN_ORDER: &str = "qdisc replace dev eth0 parent 1:1 pfifo_fast";

/// The longest that a packet waits at an uplink, in seconds: what modest routers hold.
const UPLINK_QUEUE: f64 = 0.25;

/// The least that may leave at once in spite of the rate, in bytes.
const LEAST_BURST: f64 = 6e3;

/// What may leave at once, in seconds of the rate.
const BURST: f64 = 0.001;

/// Up to this rate, in bits a second, packets are as long as they would be on a wire. Faster ones go by in bundles of up
/// to 64 KiB, since here two cores or so do the work of all machines.
pub(crate) const TRUE_PACKETS: f64 = 200e6;

/// How much of a connection's bytes the origin's kernel holds, in the words of `tcp_wmem`: more than an uplink's queue, and
/// little, since what it holds counts as sent also when the connection breaks.
const ORIGIN_BUFFERS: &str = "4096 16384 65536";

/// How TCP finds its pace: as every kernel can and lets a namespace choose. At round trips as short as these it does what
/// cubic does, which is the default of nearly all machines and not always allowed here.
const CONGESTION_CONTROL: &str = "reno";

/// How many nodes a site can have: its addresses are 250 to a block, and there are blocks enough.
pub(crate) const MAX_NODES: usize = 10_000;

/// What to build.
pub(crate) struct Plan {
    /// For each site the rates of its nodes' ports, in bits a second.
    pub(crate) sites: Vec<Vec<f64>>,
}

/// A machine at a site.
pub(crate) struct Machine {
    /// Where it lives.
    pub(crate) space: Space,
    /// Which site it is at.
    pub(crate) site: usize,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// The site's name of its port.
    port: String,
}

/// A site.
struct Site {
    space: Space,
    counters: Counters,
}

/// All of it; everything goes with this value.
pub(crate) struct Links {
    /// The nodes, site by site.
    pub(crate) nodes: Vec<Machine>,
    /// One more machine at each site, for a cache.
    pub(crate) caches: Vec<Machine>,
    /// Where the origin lives.
    pub(crate) origin: Space,
    cloud: Space,
    sites: Vec<Site>,
    _spaces: Spaces,
}

/// Bytes that went over an uplink, headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// Towards the site.
    pub(crate) down: u64,
    /// Away from it.
    pub(crate) up: u64,
}

impl Bytes {
    /// What was added since then.
    pub(crate) fn since(self, then: Self) -> Self {
        Self { down: self.down - then.down, up: self.up - then.up }
    }

    /// Both ways.
    pub(crate) fn total(self) -> u64 {
        self.down + self.up
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self { down: a.down + b.down, up: a.up + b.up })
    }
}

fn router(site: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, site as u8 + 1, 0, 1)
}

fn address(site: usize, machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, site as u8 + 1, 1 + (machine / 250) as u8, 1 + (machine % 250) as u8)
}

/// The hardware address of whoever has this address.
fn hardware(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

impl Links {
    /// Namespaces and links for a plan, not shaped yet.
    pub(crate) fn build(plan: &Plan) -> Result<Self> {
        let mut words = vec!["origin".to_owned(), "cloud".to_owned()];
        for (site, ports) in plan.sites.iter().enumerate() {
            words.push(format!("site{site}"));
            words.extend((0..=ports.len()).map(|node| format!("s{site}n{node}")));
        }
        let spaces = Spaces::new(&words)?;
        let mut free = spaces.all().iter().cloned();
        let mut next = || free.next().context("a namespace for each word");
        let (origin, cloud) = (next()?, next()?);
        cloud_links(&origin, &cloud)?;
        let (mut nodes, mut caches, mut sites) = (Vec::new(), Vec::new(), Vec::new());
        for (site, ports) in plan.sites.iter().enumerate() {
            let space = next()?;
            let machine = |number: usize, space: Space| Machine {
                space,
                site,
                address: address(site, number),
                port: format!("p{number}"),
            };
            let first = nodes.len();
            for number in 0..ports.len() {
                nodes.push(machine(number, next()?));
            }
            caches.push(machine(ports.len(), next()?));
            let members: Vec<&Machine> = nodes[first..].iter().chain(caches.last()).collect();
            site_links(site, &space, &members, &cloud)?;
            sites.push(Site { counters: Counters::open(&space)?, space });
        }
        Ok(Self { nodes, caches, origin, cloud, sites, _spaces: spaces })
    }

    /// Sets a machine's port to so many bits a second, both ways.
    pub(crate) fn set_port(&self, machine: &Machine, rate: f64) -> Result<()> {
        machine.space.ip(&[format!("link set eth0 gso_max_segs {}", bundle(rate))])?;
        let own = format!("qdisc replace dev eth0 root handle 1: {}", shape(rate, OWN_QUEUE));
        machine.space.tc(&[own, OWN_ORDER.into()])?;
        let shape = shape(rate, queue(rate, PORT_QUEUE));
        self.sites[machine.site].space.tc(&[format!("qdisc replace dev {} root {shape}", machine.port)])
    }

    /// Sets a site's uplink to so many bits a second, both ways.
    pub(crate) fn set_uplink(&self, site: usize, rate: f64) -> Result<()> {
        let shape = shape(rate, queue(rate, UPLINK_QUEUE));
        self.sites[site].space.tc(&[format!("qdisc replace dev uplink root {shape}")])?;
        self.cloud.tc(&[format!("qdisc replace dev site{site} root {shape}")])
    }

    /// Cuts every site off: whoever asks for something outside is told at once that there is no way.
    pub(crate) fn cut(&self) -> Result<()> {
        self.sites.iter().try_for_each(|site| site.space.ip(&["route del default".into()]))
    }

    /// Undoes [`Links::cut`].
    pub(crate) fn mend(&self) -> Result<()> {
        self.sites.iter().enumerate().try_for_each(|(number, site)| site.space.ip(&[way_out(number)]))
    }

    /// What went over each site's uplink so far.
    pub(crate) fn uplinks(&self) -> Result<Vec<Bytes>> {
        self.sites.iter().map(|site| site.counters.read()).collect()
    }
}

/// Connects the origin to the cloud.
fn cloud_links(origin: &Space, cloud: &Space) -> Result<()> {
    sysctl(origin)?;
    sysctl(cloud)?;
    origin.inside(|| set("ipv4/tcp_wmem", ORIGIN_BUFFERS))?;
    cloud.ip(&[
        "link set lo up".into(),
        format!("link add origin type veth peer name eth0 netns {}", origin.name()),
        "link set origin up".into(),
        format!("route add {ORIGIN}/32 dev origin"),
        format!("address add {CLOUD}/32 dev origin"),
    ])?;
    origin.ip(&[
        "link set lo up".into(),
        format!("address add {ORIGIN}/32 dev eth0"),
        "link set eth0 up".into(),
        "link set eth0 gso_max_segs 1".into(),
        format!("route add {CLOUD}/32 dev eth0"),
        format!("route add default via {CLOUD}"),
    ])
}

/// Connects a site's machines to its bridge, and its bridge to the cloud.
fn site_links(site: usize, space: &Space, members: &[&Machine], cloud: &Space) -> Result<()> {
    sysctl(space)?;
    let router = router(site);
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!(
            "link add bridge0 address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            hardware(router)
        ),
        format!("address add {router}/16 dev bridge0"),
        "link set bridge0 up".into(),
        format!("link add uplink type veth peer name site{site} netns {}", cloud.name()),
        format!("address add 192.168.{site}.2/30 dev uplink"),
        "link set uplink up".into(),
    ];
    for machine in members {
        let (port, mac) = (&machine.port, hardware(machine.address));
        lines.push(format!(
            "link add {port} type veth peer name eth0 address {mac} netns {}",
            machine.space.name()
        ));
        lines.push(format!("link set {port} master bridge0 up"));
        lines.push(known(machine.address, "bridge0"));
    }
    space.ip(&lines)?;
    cloud.ip(&[
        format!("address add 192.168.{site}.1/30 dev site{site}"),
        format!("link set site{site} up"),
        format!("route add 10.{}.0.0/16 via 192.168.{site}.2", site + 1),
    ])?;
    space.ip(&[way_out(site)])?;
    for machine in members {
        sysctl(&machine.space)?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("address add {}/16 dev eth0", machine.address),
            "link set eth0 up".into(),
            format!("route add default via {router}"),
            known(router, "eth0"),
        ];
        let others = members.iter().filter(|other| other.address != machine.address);
        lines.extend(others.map(|other| known(other.address, "eth0")));
        machine.space.ip(&lines)?;
    }
    Ok(())
}

/// A site's way to the cloud.
fn way_out(site: usize) -> String {
    format!("route replace default via 192.168.{site}.1")
}

/// A neighbour that nobody has to ask for: the kernel's table of those that were asked for is one for all namespaces, and
/// too short for what sixty-four machines with sixty-three neighbours each would have in their own.
fn known(address: Ipv4Addr, device: &str) -> String {
    format!("neigh add {address} lladdr {} dev {device} nud permanent", hardware(address))
}

/// What every namespace is set to.
fn sysctl(space: &Space) -> Result<()> {
    space.inside(|| {
        set("ipv4/ip_forward", "1")?;
        // Everybody is told that there is no way, not one a second.
        set("ipv4/icmp_ratelimit", "0")?;
        set("ipv4/tcp_congestion_control", CONGESTION_CONTROL)
    })
}

/// Sets one thing in this thread's namespace.
fn set(name: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/net/{name}"), value)
        .with_context(|| format!("set net/{name} to {value}"))
}

/// Packets in what TCP hands down at once.
fn bundle(rate: f64) -> u32 {
    if rate > TRUE_PACKETS { 65_535 } else { 1 }
}

/// A token bucket of so many bits a second before which so many bytes can wait, in the words of `tc`.
fn shape(rate: f64, queue: f64) -> String {
    let burst = (rate / 8.0 * BURST).max(if rate > TRUE_PACKETS { 128e3 } else { LEAST_BURST });
    format!("tbf rate {}bit burst {} limit {}", rate as u64, burst as u64, (burst + queue) as u64)
}

/// The bytes that wait for so many seconds at this rate, or the least that devices hold.
fn queue(rate: f64, seconds: f64) -> f64 {
    (rate / 8.0 * seconds).max(LEAST_QUEUE)
}

/// The counters of a site's uplink, which can be read from outside.
struct Counters(File);

impl Counters {
    fn open(space: &Space) -> Result<Self> {
        // An open file keeps on telling of the namespace that it was opened in.
        space.inside(|| Ok(Self(File::open("/proc/thread-self/net/dev").context("the interface counters")?)))
    }

    fn read(&self) -> Result<Bytes> {
        let mut text = vec![0; 64 << 10];
        let mut length = 0;
        loop {
            match self.0.read_at(&mut text[length..], length as u64).context("read the interface counters")? {
                0 => break,
                n => length += n,
            }
        }
        bytes_of("uplink", &String::from_utf8_lossy(&text[..length])).context("no counters of the uplink")
    }
}

/// What a table as /proc/net/dev has it says of an interface.
fn bytes_of(interface: &str, table: &str) -> Option<Bytes> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Bytes { down: fields.first()?.parse().ok()?, up: fields.get(8)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        let mut all: Vec<Ipv4Addr> =
            (0..4).flat_map(|site| (0..600).map(move |node| address(site, node))).collect();
        all.extend((0..4).map(router));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(hardware(address(0, 251)), "02:00:0a:01:02:02");
    }

    #[test]
    fn a_bucket_holds_a_packet_at_any_rate_and_little_more() {
        assert_eq!(shape(4e6, queue(4e6, 0.1)), "tbf rate 4000000bit burst 6000 limit 56000");
        assert_eq!(shape(1e6, queue(1e6, 0.025)), "tbf rate 1000000bit burst 6000 limit 38000");
        assert_eq!(shape(1e9, queue(1e9, 0.025)), "tbf rate 1000000000bit burst 128000 limit 3253000");
    }

    #[test]
    fn an_uplinks_counters_are_found_among_others() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo:  1 2 3 4 5 6 7 8 9 10\n  \
                     uplinks: 5 0 0 0 0 0 0 0 6 0\n    uplink: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n";
        assert_eq!(bytes_of("uplink", table), Some(Bytes { down: 100, up: 200 }));
        assert_eq!(bytes_of("down", table), None);
    }
}
