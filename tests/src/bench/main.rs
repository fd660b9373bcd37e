//! How fast and how small wherry is, beside what it is measured against, in one run and on one machine.
//!
//! Run by `tests/run --bench [NAME]`. Every figure is a median, and both sides of a comparison take turns, so that what
//! else the machine does hits both.

mod backed;
mod exchange;
mod idle;
mod load;
mod memory;
mod peer;
mod plain;
mod registry;
mod serve;
mod sim;
mod swarm;
mod table;
mod transport;

use anyhow::{Result, bail};
use wherry_tests::lab::wherry_bin;

use table::{Goal, Table};

const HELP: &str = "Usage: wherry-bench [NAME]…
       wherry-bench swarm [SCENARIO]… [OPTION]…

Benchmarks, all of the first ones if none is named:
  limits    what wherry is measured against, without wherry: plain TCP, docker-registry
  peer      1 GiB from one warm peer into the store, beside plain TCP + SHA-256 + write
  transport CPU a GiB from a peer's page cache into memory, beside a libp2p stream with Noise
  gateway   1 GiB from the gateway, beside docker-registry
  small     GETs of 10 KiB blobs over 32 connections, beside docker-registry
  push      a layer of 1 GiB to the gateway, beside docker-registry
  manifests GETs of manifests over 32 connections, beside docker-registry
  cold      the first byte of a layer that is not here yet, beside its origin
  skopeo    a stored image pulled by skopeo, beside docker-registry
  readers   resident memory with 256 clients that read slowly
  many      1,000 blobs of 10 KiB from one warm peer, and a manifest's first byte
  memory    resident memory while 4 GiB pass through
  idle      resident memory, CPU and traffic of nodes with nothing to do
  announce  traffic for each blob that a node tells the network of
  size      the binary
  sim       the swarm in a simulation: what S1, S1b, S2, S5 and S6 should come to, and 10 to 1,000 nodes;
            sim S1 S6/4: those alone, here S6 at a quarter of its rates
  sim-large the same for 10,000 nodes, for half an hour
  sim-site  one site of 100, 1,000 and 10,000 nodes in a simulation; sim-site 500: one of so many

Only when named, with scenarios and options of its own (wherry-bench swarm --help):
  swarm     many nodes in network namespaces, against the bound that their links leave

The environment variable WHERRY_BIN names the binary; measure a release build.";

const ALL: [&str; 14] = [
    "size",
    "idle",
    "announce",
    "gateway",
    "small",
    "push",
    "manifests",
    "cold",
    "skopeo",
    "readers",
    "transport",
    "peer",
    "many",
    "memory",
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // Other halves of measurements, which have to be processes of their own.
        ["plain-send", file] => return plain::send(file.as_ref()),
        ["plain-receive", addr, file] => return plain::receive(addr.parse()?, file.as_ref()),
        ["exchange-give", way, file] => return exchange::give(way, file.as_ref()),
        ["exchange-take", way, address, digest, size] => return exchange::take(way, address, digest, size),
        ["--help" | "-h"] => {
            println!("{HELP}");
            return Ok(());
        }
        ["swarm", "--help" | "-h"] => {
            println!("{}", swarm::HELP);
            return Ok(());
        }
        ["swarm", ref rest @ ..] => {
            let mut table = Table::new();
            swarm::run(rest, &mut table)?;
            return finish(&table);
        }
        ["sim", ref names @ ..] if names.iter().all(|name| sim::is_scenario(name)) && !names.is_empty() => {
            return sim::scenarios(names);
        }
        ["sim-site", ref counts @ ..] => return sim::sites(counts),
        _ => {}
    }
    let names = if words.is_empty() { ALL.to_vec() } else { words };
    let _backed = backed::Backed::new();
    let mut table = Table::new();
    for name in names {
        eprintln!("… {name}");
        match name {
            "limits" => {
                plain::limit(&mut table)?;
                serve::limits(&mut table)?;
            }
            "transport" => transport::one_gib(&mut table)?,
            "peer" => peer::one_gib(&mut table)?,
            "gateway" => serve::one_gib(&mut table)?,
            "small" => serve::small(&mut table)?,
            "push" => registry::push(&mut table)?,
            "manifests" => registry::manifests(&mut table)?,
            "cold" => registry::cold(&mut table)?,
            "skopeo" => registry::skopeo(&mut table)?,
            "readers" => registry::readers(&mut table)?,
            "many" => peer::many(&mut table)?,
            "memory" => memory::four_gib(&mut table)?,
            "idle" => idle::two_nodes(&mut table)?,
            "announce" => idle::announcements(&mut table)?,
            "size" => size(&mut table)?,
            "sim" => {
                sim::scenarios(&[])?;
                sim::networks(&[10, 100, 1_000], 2 << 30)?;
            }
            "sim-large" => sim::networks(&[10_000], 64 << 20)?,
            _ => bail!("there is no benchmark '{name}'\n\n{HELP}"),
        }
    }
    finish(&table)
}

fn finish(table: &Table) -> Result<()> {
    println!("{table}");
    if table.missed() {
        bail!("a goal was missed");
    }
    Ok(())
}

fn size(table: &mut Table) -> Result<()> {
    let bytes = std::fs::metadata(wherry_bin()?)?.len() as f64;
    table.figure("size of the binary", bytes / f64::from(1 << 20), "MiB", Goal::AtMost(25.0));
    Ok(())
}
