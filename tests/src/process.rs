//! Processes that never outlive their test: killed and reaped on drop, with their output kept for failure messages.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::{wait_for, wait_until};

/// How long a killed process may take to be reaped.
const REAP: Duration = Duration::from_secs(20);

/// How many lines of each log a failing test prints.
const TAIL_LINES: usize = 40;

/// What a process has used up so far, as /proc tells.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory now, in bytes.
    pub resident: u64,
    /// The highest resident memory since the start or since [`Process::reset_peak`], in bytes.
    pub peak: u64,
    /// User and system time of all threads, in seconds.
    pub cpu: f64,
}

/// A server that runs for as long as this value lives.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` in a process group of its own. If the test dies without a chance to clean up, the
    /// kernel sends `at_death` (TERM or KILL) to the process; since that happens when the *thread* ends which called this,
    /// start processes from the thread that also keeps them.
    ///
    /// Output is appended to `<logs>/<name>.out` and `.err`, so that a restart keeps what was said before.
    ///
    /// # Errors
    /// When the logs cannot be opened or the program cannot be started.
    pub fn start(
        name: &str,
        logs: &Path,
        at_death: Signal,
        program: impl AsRef<OsStr>,
        set: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let stdout = logs.join(format!("{name}.out"));
        let stderr = logs.join(format!("{name}.err"));
        let open = |path: &PathBuf| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("log {}", path.display()))
        };
        let mut command = Command::new("setpriv");
        let signal = if at_death == Signal::TERM { "TERM" } else { "KILL" };
        command.args(["--pdeathsig", signal]).arg(program.as_ref());
        set(&mut command);
        command.stdin(Stdio::null()).stdout(open(&stdout)?).stderr(open(&stderr)?).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr, ended: None })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn raw_pid(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("process id 0")
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stdout)?).into_owned())
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned())
    }

    /// Both outputs, for a search for what was logged.
    pub fn output(&self) -> Result<String> {
        Ok(self.stdout()? + &self.stderr()?)
    }

    /// Waits until `find` sees what it looks for in either output.
    ///
    /// # Errors
    /// After `deadline`, or at once when the process has ended; both quote the end of its output.
    pub fn wait_for_output<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let title = format!("{} says {what}", self.name);
        let found = wait_for(&title, deadline, || {
            // The order matters: a process that ended has said all that it will say.
            let ended = self.poll()?;
            if let Some(found) = find(&self.output()?) {
                return Ok(Some(found));
            }
            match ended {
                Some(status) => bail!("{} ended with {status} before it said {what}", self.name),
                None => Ok(None),
            }
        });
        found.with_context(|| self.tail())
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.poll()?.is_none())
    }

    /// Sends a signal to the process alone; none is sent to one that has been reaped.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.poll()?.is_none() {
            kill_process(self.raw_pid()?, signal).with_context(|| format!("{signal:?} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let title = format!("{} ends", self.name);
        let status = wait_for(&title, deadline, || self.poll());
        status.with_context(|| self.tail())
    }

    /// Asks it to end, and takes what is left of its group if it does not within `grace`.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let ended = self.wait_exit(grace);
        self.kill()?;
        ended
    }

    /// Kills the whole group at once, as a power cut would, and reaps the process.
    pub fn kill(&mut self) -> Result<()> {
        let group = self.raw_pid()?;
        // Fails when nothing is left in the group, which is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
        wait_until(&format!("{} is reaped", self.name), REAP, || Ok(self.poll()?.is_some()))
    }

    /// What it uses now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.child.id())
    }

    /// Forgets the highest resident memory, so that [`Usage::peak`] counts from here.
    pub fn reset_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    /// The end of both outputs, for a failure message.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for path in [&self.stdout, &self.stderr] {
            let log = fs::read(path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            text += &format!("\n--- {} (last of {} lines)\n", path.display(), lines.len());
            text += &lines[from..].join("\n");
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} could not be killed: {error:#}", self.name);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// What the process with this id uses now.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let line = line.with_context(|| format!("no {key} in /proc/{pid}/status: has it ended?"))?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in brackets, which may hold anything; times are fields 14 and 15.
    let after_name = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    let cpu = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage { resident: kib("VmRSS:")?, peak: kib("VmHWM:")?, cpu })
}

/// A command that is killed when it takes longer than `limit`, or when the thread that runs it ends.
pub fn tool(program: impl AsRef<OsStr>, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &format!("{}", limit.as_secs_f64())]);
    command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
    command
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it cannot be run or fails; the text holds the command and both of its outputs.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", describe(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end with this for its standard input, and gives its standard output. For commands that print
/// little before they have read all of it.
///
/// # Errors
/// As [`run`].
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    // Dropped at once, which is the end of the input. A command that ends early says why in its own words.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{}", describe(command, &output));
    }
    written.with_context(|| format!("feed {command:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// Only when it cannot be run at all.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("run {command:?}"))
}

/// A command and what came of it, for a failure message.
pub fn describe(command: &Command, output: &Output) -> String {
    let late = if output.status.code() == Some(124) { " (it took longer than it may)" } else { "" };
    format!(
        "{command:?}: {}{late}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
