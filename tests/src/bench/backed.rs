//! Free memory that a hypervisor does not take back while something is measured.
//!
//! A virtual machine may report its free memory to its host, which takes it. The next to use it then waits for the host
//! page by page: seconds a GiB, which have nothing to do with who is measured. Where that can be switched off, it is
//! until the benchmarks are over.

use std::fs;

const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// An order that no free block has, so that none is reported.
const NEVER: &str = "11";

/// How many bytes are made to be there at most.
const BACKED: u64 = 5 << 30;

/// Reports no free memory until it is dropped.
pub(crate) struct Backed {
    before: Option<String>,
}

impl Backed {
    /// Switches reporting off, if there is any, and touches memory once, so that the host gives it.
    pub(crate) fn new() -> Self {
        let before = fs::read_to_string(ORDER).ok().filter(|_| fs::write(ORDER, NEVER).is_ok());
        if before.is_some() {
            drop(std::hint::black_box(vec![1_u8; BACKED.min(available() / 2) as usize]));
        }
        Self { before }
    }
}

impl Drop for Backed {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(ORDER, before)
        {
            eprintln!("{ORDER} is {NEVER} now and was {}: {error}", before.trim());
        }
    }
}

/// Bytes of memory that can be had without swapping; none if the kernel does not say.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}
