//! What the store promises a node that is killed: nothing that a method had returned from is lost, and nothing
//! that is wrong is there.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use wherry_node::store::{Store, StoreSettings};
use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest, StateChain};

const DIR: &str = "WHERRY_TEST_KILL_DIR";
const SIZE: usize = 3 << 20;

fn big() -> (Vec<u8>, StateChain) {
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i as u8) ^ (i >> 8) as u8 ^ (i >> 16) as u8).collect();
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(SIZE as u64).unwrap());
    builder.update(&bytes).unwrap();
    let chain = builder.finish().unwrap();
    (bytes, chain)
}

fn small(number: u32) -> Vec<u8> {
    format!("small blob {number}").repeat(500).into_bytes()
}

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

/// Not a test of its own: the process that is killed. It says each thing that it has done.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = open(Path::new(&dir));
    let (bytes, chain) = big();
    let map = chain.map();
    let partial = store.partial(&chain.digest(), map).unwrap();
    let done = partial.links();
    let first_small = (store.usage().blobs) as u32;
    // Chunks far apart, as they come from several peers.
    for step in 0..map.count() {
        let index = map.index(step * 29 % map.count()).unwrap();
        let offset = map.offset(index) as usize;
        if done[index.get() as usize].is_some() {
            continue;
        }
        let chunk = &bytes[offset..][..map.len(index) as usize];
        wait_for_leave();
        partial.write(index, chunk, chain.link(index)).unwrap();
        println!("\nchunk {index}");
        if step % 3 == 0 {
            let blob = small(first_small + step / 3);
            wait_for_leave();
            store.put(&Digest::sha256(&blob), &blob).unwrap();
            println!("\nsmall {}", first_small + step / 3);
        }
    }
    println!("\nend");
    std::thread::park();
}

/// One byte of standard input for each step, so that the child is never further than it is meant to be.
fn wait_for_leave() {
    if std::io::stdin().read(&mut [0]).unwrap() == 0 {
        std::thread::park();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL on Unix.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs the child until it has said `lines` things, and kills it in the middle of the next; what it said, also
/// while it died.
fn run_and_kill(dir: &Path, lines: usize) -> Vec<String> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    child.0.stdin.as_ref().unwrap().write_all(&vec![0; lines + 1]).unwrap();
    let mut output = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let interesting = |line: &String| ["chunk ", "small ", "end"].iter().any(|start| line.starts_with(start));
    let mut said: Vec<String> = output.by_ref().filter(interesting).take(lines).collect();
    drop(child);
    said.extend(output.filter(interesting));
    said
}

#[test]
fn a_node_that_is_killed_at_any_point_loses_nothing_it_had_said_was_stored() {
    let (bytes, chain) = big();
    let map = chain.map();
    let dir = tempfile::tempdir().unwrap();
    let mut chunks = std::collections::BTreeSet::new();
    let mut smalls = std::collections::BTreeSet::new();
    let mut kills = 0;
    loop {
        let said = run_and_kill(dir.path(), 1 + kills * 5 % 13);
        kills += 1;
        let ended = said.iter().any(|line| line == "end");
        for line in said {
            match line.split_once(' ') {
                Some(("chunk", number)) => drop(chunks.insert(number.parse::<u32>().unwrap())),
                Some(("small", number)) => drop(smalls.insert(number.parse::<u32>().unwrap())),
                _ => {}
            }
        }
        let store = open(dir.path());
        for &number in &smalls {
            let blob = small(number);
            assert_eq!(store.get(&Digest::sha256(&blob)).unwrap().read(1 << 20).unwrap(), blob);
        }
        for (digest, _) in store.blobs() {
            assert!(store.verify(&digest).unwrap());
        }
        let partial = store.partial(&chain.digest(), map).unwrap();
        let links = partial.links();
        for &number in &chunks {
            let index = map.index(number).unwrap();
            assert_eq!(links[number as usize], Some(chain.link(index)), "chunk {number} after {kills} kills");
        }
        if ended {
            // A chunk may be stored and its word lost with the child, so what was said need not be all.
            assert!(links.iter().all(Option::is_some));
            let held = partial.finish().unwrap();
            assert_eq!(held.read(1 << 30).unwrap(), bytes);
            break;
        }
        assert!(kills < 200, "the child makes no progress");
    }
    assert!(kills > 10, "{kills} kills are too few to mean anything");
}
