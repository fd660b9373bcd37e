//! A node as a process.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::control::Client;
use crate::status::NodeStatus;

/// How long a node may take to be ready.
const START: Duration = Duration::from_secs(15);

/// How much of a log is shown when something failed, in lines.
const TAIL: usize = 15;

/// A node that runs.
#[derive(Debug)]
pub(super) struct Process {
    /// What it is called in the table.
    pub(super) name: String,
    /// Its data folder.
    pub(super) data: PathBuf,
    /// Where it is, as it said itself.
    pub(super) status: NodeStatus,
}

impl Process {
    /// Starts `wherry up` on this folder, with every port free and no setting from outside, and waits until it is
    /// ready. The process is added to `children` as soon as there is one, and killed when it is dropped there. On Linux it
    /// also ends when the demo is killed: with the thread that calls this, which is the demo's first and last.
    pub(super) async fn start(
        children: &mut Vec<Child>,
        program: &Path,
        name: &str,
        data: PathBuf,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(&data)?;
        let no_settings = data.join("empty.toml");
        File::create(&no_settings)?;
        let log = File::create(log(&data))?;
        let mut command = Command::new(program);
        command.arg("up").arg("--config").arg(&no_settings).arg("--data").arg(&data);
        for service in ["--gateway", "--status", "--peers", "--bulk"] {
            command.args([service, "127.0.0.1:0"]);
        }
        // Neither proxies nor credentials of this shell have a part in this.
        command.arg("--no-mdns").args(flags).env_clear().env("HOME", &data);
        if let Some(filter) = std::env::var_os("WHERRY_LOG") {
            command.env("WHERRY_LOG", filter);
        }
        // In a group of its own, so that Ctrl-C reaches the demo alone, which then ends all nodes in order.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).kill_on_drop(true);
        #[cfg(target_os = "linux")]
        end_with_this_process(&mut command);
        let mut child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        let said = child.stdout.take().context("no pipe from the node")?;
        children.push(child);
        let ready = async {
            let mut lines = BufReader::new(said).lines();
            while let Some(line) = lines.next_line().await? {
                if line == "ready" {
                    return Ok(());
                }
            }
            bail!("{name} ended before it was ready")
        };
        match timeout(START, ready).await {
            Ok(ready) => ready?,
            Err(_) => bail!("{name} was not ready after {} s", START.as_secs()),
        }
        let status = Client::new(data.join("control.sock")).status().await?;
        Ok(Self { name: name.to_owned(), data, status })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.status.addresses.control)
    }

    pub(super) fn gateway(&self) -> SocketAddr {
        self.status.addresses.gateway
    }
}

/// Has the kernel kill what is started when this process is gone, however that ends.
#[cfg(target_os = "linux")]
fn end_with_this_process(command: &mut Command) {
    use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

    let own = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may be gone already, and then nothing tells.
        if getppid().map(Pid::as_raw_nonzero) == Some(own.as_raw_nonzero()) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

fn log(data: &Path) -> PathBuf {
    data.join("log")
}

/// The end of a node's log.
pub(super) fn tail(data: &Path) -> String {
    let text = fs::read(log(data)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
