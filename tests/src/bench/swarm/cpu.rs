//! How much of the machine a run took: with too little left, times say more about the machine than about the nodes.

use std::fs;

use anyhow::{Context as _, Result};

/// Time of all cores since the machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    busy: u64,
    total: u64,
}

impl Cpu {
    /// The machine's now.
    pub(crate) fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).context("no times in /proc/stat")
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> =
            line.split_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two already.
        let total: u64 = ticks.iter().take(8).sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Self { busy: total - idle, total })
    }

    /// The share of all cores that was busy since then, in percent.
    pub(crate) fn percent_since(self, then: Self) -> f64 {
        let total = self.total.saturating_sub(then.total).max(1);
        self.busy.saturating_sub(then.busy) as f64 / total as f64 * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_disk_is_not_work_and_a_stolen_core_is_not_idle() {
        let at = |text: &str| Cpu::parse(text).unwrap();
        let then = at("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n");
        let now = at("cpu  130 0 110 840 10 0 5 5 20 0\n");
        assert_eq!(now.percent_since(then), 50.0);
        assert_eq!(then.percent_since(then), 0.0);
    }
}
