//! `wherry demo`: the whole promise in one command, on a machine with nothing but the binary.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use wherry_tests::lab::{Lab, wherry_bin};
use wherry_tests::node::command;
use wherry_tests::process::run;

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
