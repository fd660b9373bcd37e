//! What a run ends with: a table, and for each scenario a file for machines and a drawing.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::beside::Beside;
use super::links::Bytes;
use super::plot::Plot;
use super::round::{Outcome, Round};
use crate::table::{Goal, Table, median};

const HEAD: [&str; 13] = [
    "scenario", "nodes", "MB", "bound s", "median s", "last s", "median/b", "last/b", "uplink/F", "blobs/F",
    "faster", "CPU %", "",
];

/// The rows of all scenarios.
pub(crate) struct Report {
    rows: Vec<[String; 13]>,
}

/// The figures of a round that goals are about.
pub(crate) struct Figures {
    /// Seconds of the median node, without slow ones.
    pub(crate) median: f64,
    /// Seconds of the last node, without slow ones; endless if one was never done.
    pub(crate) last: f64,
    /// The same, over the bound of the node's site.
    pub(crate) median_over: f64,
    /// The same, over the bound of the node's site.
    pub(crate) last_over: f64,
    /// All bytes over the uplinks, over those of the image at each site.
    pub(crate) uplinks: f64,
    /// Bytes of blobs that the origin sent, over those of the image at each site.
    pub(crate) blobs: f64,
    /// How many nodes were done.
    pub(crate) done: usize,
}

impl Figures {
    /// Those of a round.
    pub(crate) fn of(outcome: &Outcome, round: &Round) -> Self {
        let scenario = &outcome.scenario;
        let (mut seconds, mut over) = (Vec::new(), Vec::new());
        for ((node, pulled), bound) in scenario.pullers().zip(&round.pulled).zip(&outcome.bounds) {
            if !scenario.is_slow(node) {
                seconds.push(pulled.seconds.unwrap_or(f64::INFINITY));
                over.push(pulled.seconds.unwrap_or(f64::INFINITY) / bound);
            }
        }
        let copies = (scenario.bytes() * scenario.uplinks.len() as u64) as f64;
        let total: Bytes = round.uplinks.iter().copied().sum();
        let last = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        Self {
            last: last(&seconds),
            last_over: last(&over),
            median: median(seconds),
            median_over: median(over),
            uplinks: total.total() as f64 / copies,
            blobs: round.served as f64 / copies,
            done: round.pulled.iter().filter(|pulled| pulled.seconds.is_some()).count(),
        }
    }
}

/// The round whose last node is the median of all rounds' last nodes.
fn typical(outcome: &Outcome) -> Option<(&Round, Figures)> {
    let mut rounds: Vec<(&Round, Figures)> =
        outcome.rounds.iter().map(|round| (round, Figures::of(outcome, round))).collect();
    rounds.sort_by(|a, b| a.1.last.total_cmp(&b.1.last));
    let middle = rounds.len().saturating_sub(1) / 2;
    (middle < rounds.len()).then(|| rounds.swap_remove(middle))
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a scenario; its goals go to the table of goals, its file and its drawing to the folder.
    pub(crate) fn add(&mut self, outcome: &Outcome, goals: &mut Table, folder: &Path) -> Result<()> {
        let scenario = &outcome.scenario;
        let (name, bytes) = (scenario.name, scenario.bytes() as f64);
        let bound = outcome.bounds.iter().copied().fold(0.0, f64::max);
        let nodes = scenario.pullers().count();
        if let Some((round, figures)) = typical(outcome) {
            let faster = outcome.alone.as_ref().map(|alone| alone.last / figures.last);
            let mut note = match scenario.rounds {
                1 => String::new(),
                rounds => format!("the middle one of {rounds} rounds"),
            };
            if figures.done < nodes {
                note = format!("ONLY {} OF {nodes} DONE", figures.done);
            }
            self.rows.push([
                format!("{name} {}{}", scenario.about, scaled(scenario.scale)),
                nodes.to_string(),
                short(bytes / 1e6),
                short(bound),
                short(figures.median),
                short(figures.last),
                format!("{:.3}", figures.median_over),
                format!("{:.3}", figures.last_over),
                format!("{:.3}", figures.uplinks),
                format!("{:.3}", figures.blobs),
                faster.map_or(String::new(), short),
                format!("{:.0} ({:.0})", round.cpu, round.calm),
                note,
            ]);
            let wanted = &scenario.goals;
            let mut goal = |what: &str, value: Option<f64>, goal: Option<Goal>| {
                if let (Some(value), Some(goal)) = (value, goal) {
                    goals.figure(&format!("{name} {}: {what}", scenario.about), value, "", goal);
                }
            };
            goal("median node over the bound", Some(figures.median_over), wanted.median.map(Goal::AtMost));
            goal("last node over the bound", Some(figures.last_over), wanted.last.map(Goal::AtMost));
            goal(
                "bytes of blobs over the uplink, over F",
                Some(figures.blobs),
                wanted.blobs.map(Goal::AtMost),
            );
            goal("times faster than each by itself", faster, wanted.faster.map(Goal::AtLeast));
        }
        let server = if scenario.seeded { "from the seeder's docker-registry" } else { "each by itself" };
        for (way, beside) in
            [(server, &outcome.alone), ("through a docker-registry as cache", &outcome.cache)]
        {
            if let Some(beside) = beside {
                self.rows.push(beside_row(
                    &format!("{name} {way}"),
                    (nodes, scenario.uplinks.len()),
                    bytes,
                    bound,
                    beside,
                ));
            }
        }
        fs::create_dir_all(folder).with_context(|| format!("folder {}", folder.display()))?;
        let write = |end: &str, text: String| {
            let path = folder.join(format!("swarm-{name}.{end}"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            eprintln!("  {}", path.display());
            anyhow::Ok(())
        };
        write("json", format!("{:#}\n", machine(outcome)))?;
        write("svg", plot(outcome, bound).svg())
    }

    /// The table.
    pub(crate) fn text(&self) -> String {
        let head = HEAD.map(str::to_owned);
        let rows = || std::iter::once(&head).chain(&self.rows);
        let mut text = String::new();
        for row in rows() {
            for (column, cell) in row.iter().enumerate() {
                let wide = rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
                // Writing to a string does not fail.
                let _ = if column == 0 || column + 1 == row.len() {
                    write!(text, "{cell:wide$}  ")
                } else {
                    write!(text, "{cell:>wide$}  ")
                };
            }
            text = text.trim_end().to_owned() + "\n";
        }
        text + "\nF: bytes of the image at each site. CPU: of all cores, in brackets before the pull began. uplink: all bytes \
                both ways,\nheaders included. blobs: what the origin sent of them. * scaled from when 95 % of a smaller image were \
                through: time is\nlinear in the bytes, but for stragglers.\n"
    }
}

fn beside_row(
    what: &str,
    (nodes, sites): (usize, usize),
    bytes: f64,
    bound: f64,
    beside: &Beside,
) -> [String; 13] {
    let star = if beside.small { "*" } else { "" };
    let note = if beside.small {
        format!("{:.1} s for {} kB", beside.measured, short(beside.bytes as f64 / 1e3))
    } else {
        String::new()
    };
    let empty = String::new;
    [
        what.to_owned(),
        nodes.to_string(),
        short(bytes / 1e6),
        short(bound),
        empty(),
        short(beside.last) + star,
        empty(),
        format!("{:.2}", beside.last / bound),
        format!("{:.3}", beside.uplinks.total() as f64 / (beside.bytes * sites as u64) as f64),
        empty(),
        empty(),
        empty(),
        note,
    ]
}

/// What to say of rates that are not those of the scenario.
fn scaled(scale: f64) -> String {
    if scale == 1.0 { String::new() } else { format!(", rates / {scale}") }
}

/// A number with about four digits.
fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn plot(outcome: &Outcome, bound: f64) -> Plot {
    let scenario = &outcome.scenario;
    let runs = outcome.rounds.iter().enumerate().map(|(number, round)| {
        let name = if outcome.rounds.len() == 1 {
            "wherry".to_owned()
        } else {
            format!("wherry, round {}", number + 1)
        };
        (name, round.pulled.iter().filter_map(|pulled| pulled.seconds).collect())
    });
    let mut beside = Vec::new();
    for (who, measured) in [("each by itself", &outcome.alone), ("through a cache", &outcome.cache)] {
        beside.extend(measured.as_ref().map(|measured| format!("{who}: {} s", short(measured.last))));
    }
    let nodes = scenario.pullers().count();
    let mut subtitle = format!(
        "{nodes} nodes, {} MB in {} layers",
        short(scenario.bytes() as f64 / 1e6),
        scenario.layers.len()
    );
    if !beside.is_empty() {
        subtitle += &format!(". {}", beside.join("; "));
    }
    Plot {
        title: format!("{}: {}", scenario.name, scenario.about),
        subtitle,
        runs: runs.collect(),
        nodes,
        bound,
    }
}

fn machine(outcome: &Outcome) -> Value {
    let scenario = &outcome.scenario;
    let beside = |beside: &Option<Beside>| {
        beside.as_ref().map(|beside| {
            json!({
                "last_seconds": beside.last, "measured_seconds": beside.measured, "measured_bytes": beside.bytes,
                "uplink_bytes": bytes(beside.uplinks),
            })
        })
    };
    let rounds: Vec<Value> = outcome.rounds.iter().map(|round| machine_round(outcome, round)).collect();
    json!({
        "scenario": scenario.name,
        "about": scenario.about,
        "nodes_per_site": scenario.nodes,
        "sites": scenario.uplinks.len(),
        "slow_nodes": scenario.slow,
        "layers": scenario.layers,
        "rates_divided_by": scenario.scale,
        "port_bits_per_second": scenario.port,
        "uplink_bits_per_second_at_start": scenario.uplinks.iter().map(|uplink| uplink.at(0.0)).collect::<Vec<_>>(),
        "goodput_of_port": outcome.goodput.port,
        "goodput_of_port_both_ways": outcome.goodput.port_both_ways,
        "goodput_of_uplinks": outcome.goodput.uplinks,
        "round_trip_seconds": outcome.goodput.round_trip,
        "each_by_itself": beside(&outcome.alone),
        "through_a_cache": beside(&outcome.cache),
        "rounds": rounds,
    })
}

fn machine_round(outcome: &Outcome, round: &Round) -> Value {
    let scenario = &outcome.scenario;
    let figures = Figures::of(outcome, round);
    let nodes = scenario.pullers().zip(&round.pulled).zip(&outcome.bounds).map(|((node, pulled), bound)| {
        json!({
            "node": node, "site": node / scenario.nodes, "slow": scenario.is_slow(node), "seconds": pulled.seconds,
            "bound_seconds": bound, "failures": pulled.failures, "last_failure": pulled.last_failure,
        })
    });
    let kills =
        round.kills.iter().map(|(time, node, aimed)| json!({"seconds": time, "node": node, "aimed": aimed}));
    json!({
        "done": figures.done,
        "median_seconds": figures.median,
        "last_seconds": figures.last,
        "median_over_bound": figures.median_over,
        "last_over_bound": figures.last_over,
        "uplink_over_image": figures.uplinks,
        "blobs_over_image": figures.blobs,
        "uplink_bytes": round.uplinks.iter().map(|site| bytes(*site)).collect::<Vec<_>>(),
        "blob_bytes_served_by_origin": round.served,
        "bytes_that_nodes_took_from_origin": round.taken,
        "cpu_percent": round.cpu,
        "cpu_percent_before": round.calm,
        "cpu_seconds_of_nodes": round.used.cpu,
        "largest_resident_bytes": round.used.resident,
        "least_peers": round.peers,
        "kills": kills.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "uplinks_over_time": round.noted,
    })
}

fn bytes(bytes: Bytes) -> Value {
    json!({"down": bytes.down, "up": bytes.up})
}

/// The folder for files and drawings: beside the programs of this build.
pub(crate) fn folder() -> Result<PathBuf> {
    let me = std::env::current_exe().context("this program's own path")?;
    Ok(me.ancestors().nth(2).context("a program in a target folder")?.join("bench"))
}
