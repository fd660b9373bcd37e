//! `wherry demo`: the whole promise in one command, on a machine with nothing but the binary.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use wherry_tests::lab::{Lab, wherry_bin};
use wherry_tests::node::command;
use wherry_tests::process::{Process, run};
use wherry_tests::wait::wait_until;

/// How long a demo may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to begin or to end.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_demo_keeps_its_promises_and_leaves_no_trace() -> Result<()> {
    let lab = Lab::new()?;
    let home = lab.folder("home")?;
    let temporary = lab.folder("temporary")?;
    let start = Instant::now();
    let table = run(command(&home)?.arg("demo").env("TMPDIR", &temporary))?;
    assert!(start.elapsed() < Duration::from_secs(60), "the demo took {:?}", start.elapsed());
    let verified = table.lines().filter(|line| line.contains("yes") || line.contains("verified")).count();
    assert!(verified >= 4, "four nodes verify their digest:\n{table}");
    assert_eq!(fs::read_dir(&temporary)?.count(), 0, "temporary files are left");
    assert_eq!(fs::read_dir(&home)?.count(), 0, "something is left in the home folder");
    let left = processes_below(&temporary.display().to_string())?;
    assert!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

#[test]
fn nothing_of_a_demo_that_is_killed_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let (home, temporary) = (lab.folder("home")?, lab.folder("temporary")?);
    let folder = temporary.display().to_string();
    let mut demo = Process::start("demo", &lab.logs(), Signal::KILL, wherry_bin()?, |process| {
        process.args(["demo", "--keep"]).env("HOME", &home).env("TMPDIR", &temporary);
    })?;
    // The cloud is gone by then, and all nodes are there.
    demo.wait_for_output("how to look around", LIMIT, |said| said.contains("Look around").then_some(()))?;
    assert_eq!(processes_below(&folder)?.len(), 4);
    demo.kill()?;
    wait_until("its nodes have ended", SOON, || Ok(processes_below(&folder)?.is_empty()))?;

    // And earlier, when it is the cloud alone.
    let mut demo = Process::start("early", &lab.logs(), Signal::KILL, wherry_bin()?, |process| {
        process.args(["demo"]).env("HOME", &home).env("TMPDIR", &temporary);
    })?;
    wait_until("the cloud runs", SOON, || Ok(!processes_below(&folder)?.is_empty()))?;
    demo.kill()?;
    wait_until("the cloud has ended", SOON, || Ok(processes_below(&folder)?.is_empty()))
}

/// Command lines of running `wherry` processes that mention a folder.
fn processes_below(folder: &str) -> Result<Vec<String>> {
    let binary = wherry_bin()?.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with(&binary) && line.contains(folder) {
            found.push(line);
        }
    }
    Ok(found)
}
