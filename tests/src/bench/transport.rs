//! What it costs to carry bytes and nothing else: the bulk plane beside a libp2p stream with Noise.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Lines, Write as _, copy};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wherry_tests::blobs::Noise;
use wherry_tests::lab::Lab;
use wherry_tests::process::{Process, usage};

use super::exchange::Way;
use super::plain::{GIB, TURNS, settle};
use super::table::{Goal, Table, median};

/// The other side of the comparison, built apart from everything else so that wherry is built without Noise.
const NOISE: &str = "wherry-noise";

/// How long a giver may take to be ready.
const LIMIT: Duration = Duration::from_secs(120);

/// One measurement.
#[derive(Clone, Copy)]
struct Turn {
    /// Million bytes a second.
    rate: f64,
    /// CPU seconds of the giving process.
    giver: f64,
    /// CPU seconds of the taking process.
    taker: f64,
}

impl Turn {
    fn both(&self) -> f64 {
        self.giver + self.taker
    }
}

/// A giver and a taker that are connected.
struct Pair {
    giver: Process,
    taker: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Pair {
    /// Starts `program` twice: as giver, and as taker of what the giver says of itself.
    fn start(lab: &Lab, name: &str, program: &Path, give: &[&str], take: &[&str]) -> Result<Self> {
        let name = format!("{name}-give");
        let mut giver = Process::start(&name, &lab.logs(), Signal::KILL, program, |command| {
            command.args(give);
        })?;
        let offer = giver.wait_for_output("where it listens", LIMIT, |text| {
            let line = text.split_inclusive('\n').find_map(|line| line.strip_prefix("listens "))?;
            Some(line.strip_suffix('\n')?.to_owned())
        })?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(take).args(offer.split(' '));
        let mut taker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let says = BufReader::new(taker.stdout.take().context("the taker's output")?).lines();
        let mut pair = Self { giver, taker, says };
        ensure!(pair.line()? == "ready", "the taker of {name} is not ready");
        Ok(pair)
    }

    /// What the taker says next; it limits by itself how long that may take.
    fn line(&mut self) -> Result<String> {
        Ok(self.says.next().context("the taker ended")??)
    }

    /// Carries the file once.
    fn carry(&mut self) -> Result<Turn> {
        let cpu = |pair: &Self| anyhow::Ok((pair.giver.usage()?.cpu, usage(pair.taker.id())?.cpu));
        let before = cpu(self)?;
        let start = Instant::now();
        self.taker.stdin.as_mut().context("the taker's input")?.write_all(b"\n")?;
        let bytes: u64 = self.line()?.parse()?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(bytes == GIB, "{bytes} bytes came instead of {GIB}");
        let after = cpu(self)?;
        Ok(Turn { rate: GIB as f64 / 1e6 / seconds, giver: after.0 - before.0, taker: after.1 - before.1 })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.taker.kill();
        let _ = self.taker.wait();
    }
}

/// The program beside this one that speaks libp2p with Noise.
fn noise() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(NOISE);
    ensure!(path.is_file(), "{} is missing: `tests/run --bench transport` builds it", path.display());
    Ok(path)
}

/// Whether the processor has instructions for AES, without which there is no goal.
fn has_aes() -> Result<bool> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let mut lines = text.lines().filter(|line| line.starts_with("flags") || line.starts_with("Features"));
    Ok(lines.any(|line| line.split_whitespace().any(|flag| flag == "aes")))
}

/// One GiB from page cache to memory, all ways taking turns.
pub(crate) fn one_gib(table: &mut Table) -> Result<()> {
    let noise = noise()?;
    let lab = Lab::new()?;
    let source = lab.path().join("source");
    copy(&mut Noise::new(78, GIB), &mut File::create(&source)?)?;
    settle();
    let file = source.to_str().context("the lab's path is no text")?;
    let me = std::env::current_exe()?;
    let exchange = |way: Way| {
        let name = way.name();
        Pair::start(&lab, name, &me, &["exchange-give", name, file], &["exchange-take", name])
    };
    let mut pairs = [
        exchange(Way::Bulk)?,
        exchange(Way::Stream)?,
        Pair::start(&lab, "noise", &noise, &["give", file], &["take"])?,
    ];
    // The first time fills buffers and windows that stay.
    for pair in &mut pairs {
        pair.carry()?;
    }
    let mut turns = [const { Vec::new() }; 3];
    for _ in 0..TURNS {
        for (turns, pair) in turns.iter_mut().zip(&mut pairs) {
            turns.push(pair.carry()?);
        }
    }
    let [bulk, stream, noise] = &turns;
    let of = |turns: &[Turn], what: fn(&Turn) -> f64| median(turns.iter().map(what).collect());
    let goal = if has_aes()? { Goal::AtLeast(2.5) } else { Goal::None };
    let mut cpu = |what, ours: &[Turn], part, goal| {
        table.times_less(what, of(ours, part), of(noise, part), "s/GiB", goal);
    };
    cpu("transport CPU of both ends: times less than a libp2p stream with Noise", bulk, Turn::both, goal);
    cpu("  of the giver", bulk, |turn| turn.giver, Goal::None);
    cpu("  of the taker", bulk, |turn| turn.taker, Goal::None);
    cpu(
        "  of both ends where no bulk plane is reached: by a libp2p stream with TLS",
        stream,
        Turn::both,
        Goal::None,
    );
    let rate = |turn: &Turn| turn.rate;
    table.beside("  rate", of(bulk, rate), of(noise, rate), "MB/s", Goal::None);
    Ok(())
}
