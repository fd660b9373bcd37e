//! Memory does not grow with what passes through.

use std::io::{Read as _, Write as _, sink};

use anyhow::{Result, ensure};
use wherry_tests::blobs::push_image;
use wherry_tests::http::Request;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};

use super::table::{Goal, Table};

const SIZE: u64 = 4 << 30;

const MIB: f64 = (1 << 20) as f64;

/// One blob of 4 GiB: from the origin to a node, from that to a peer, and from there to a client while it arrives.
pub(crate) fn four_gib(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "bench/huge", "1", 40, &[SIZE])?;
    let network = Network::new(&lab)?;
    let mut a = network.member(&lab, "a", Options::origin(origin.host()), &[])?;
    let mut b = network.member(&lab, "b", Options::origin(origin.host()), &[&a])?;
    a.process()?.reset_peak()?;
    a.run(&["pull", &image.reference(origin.host())])?;
    report(table, "resident peak of a node that takes 4 GiB from an origin", &mut a)?;

    a.process()?.reset_peak()?;
    b.process()?.reset_peak()?;
    let path = format!("/v2/bench/huge/manifests/{}", image.manifest);
    ensure!(Request::new(b.gateway()?, "GET", &path).send_and_read()?.status == 200, "the manifest");
    let path = format!("/v2/bench/huge/blobs/{}", image.layers[0].digest);
    let mut answer = Request::new(b.gateway()?, "GET", &path).open()?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = answer.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        total += n as u64;
        sink().write_all(&buffer[..n])?;
    }
    ensure!(total == SIZE, "{total} of {SIZE} bytes");
    report(table, "resident peak of a node that serves 4 GiB to a peer", &mut a)?;
    report(table, "resident peak of a node that streams 4 GiB from a peer to a client", &mut b)
}

fn report(table: &mut Table, what: &str, node: &mut Wherry) -> Result<()> {
    table.figure(what, node.process()?.usage()?.peak as f64 / MIB, "MiB", Goal::AtMost(64.0));
    Ok(())
}
