//! A network of one's own: a namespace whose loopback nobody else uses and that can be made as slow as a thin link.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{run, tool};

const LIMIT: Duration = Duration::from_secs(20);

/// What may leave at once in spite of the rate: more than the largest packet that loopback carries.
const BURST: &str = "256k";

/// A network namespace that this thread lives in, and all threads and processes that it starts from now on. It goes
/// with this value; the thread stays where it is, so make it in a test's own thread and only once.
pub struct Alone {
    name: String,
}

impl Alone {
    /// Moves this thread into a new namespace with nothing but loopback. Make it before anything that has a socket.
    ///
    /// # Errors
    /// Without root.
    pub fn enter() -> Result<Self> {
        let id = std::fs::read_link("/proc/thread-self")?;
        let name = format!("wherry-lab-{}", id.display().to_string().replace('/', "-"));
        run(tool("ip", LIMIT).args(["netns", "add", &name]))?;
        let alone = Self { name };
        run(tool("ip", LIMIT).args(["-n", &alone.name, "link", "set", "lo", "up"]))?;
        let namespace = File::open(format!("/var/run/netns/{}", alone.name))?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .context("enter a network namespace")?;
        Ok(alone)
    }

    /// From now on all of its traffic together is this fast, such as `100mbit`.
    ///
    /// # Errors
    /// Where the kernel cannot shape traffic.
    pub fn shape(&self, rate: &str) -> Result<()> {
        let mut command = tool("tc", LIMIT);
        command.args(["-n", &self.name, "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate]);
        run(command.args(["burst", BURST, "latency", "50ms"])).map(drop)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = run(tool("ip", LIMIT).args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}
