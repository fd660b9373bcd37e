//! What happened, and whether it is what was promised.

use serde::Serialize;
use wherry_proto::Digest;

use super::image::Image;
use crate::cli::table::{Align, Table};
use crate::config::units::{show_seconds, show_size};

/// From how many copies on more than one is told to have left the cloud: a few chunks that were fetched twice are none.
const MORE_THAN_ONE: f64 = 1.2;

/// How a node got the image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// The number of the node, from 1.
    pub(super) node: usize,
    /// How long its client waited for the whole image.
    pub(super) seconds: f64,
    /// Bytes that it took from the cloud.
    pub(super) from_cloud: u64,
    /// Bytes that it took from other nodes.
    pub(super) from_peers: u64,
    /// Bytes that its client got.
    pub(super) bytes: u64,
    /// The digest of the manifest that its client got; everything that this names was checked by the client.
    pub(super) digest: Digest,
}

/// The whole demo.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    digest: Digest,
    bytes: u64,
    layers: usize,
    nodes: Vec<Row>,
    seconds: f64,
    /// Nodes up to this one pulled while the cloud was there.
    with_cloud: usize,
    /// What is not as promised.
    broken: Vec<String>,
}

impl Report {
    pub(super) fn new(image: &Image, with_cloud: usize, nodes: Vec<Row>, seconds: f64) -> Self {
        let broken = broken(image, with_cloud, &nodes);
        let (digest, bytes, layers) = (image.digest, image.bytes, image.layers);
        Self { digest, bytes, layers, nodes, seconds, with_cloud, broken }
    }

    /// Everything that is not as promised, if anything is.
    pub(super) fn broken(&self) -> Option<String> {
        (!self.broken.is_empty()).then(|| self.broken.join("; "))
    }

    pub(super) fn table(&self, colours: bool) -> String {
        let mut table = Table::new(&[
            ("NODE", Align::Left),
            ("CLOUD", Align::Left),
            ("TIME", Align::Right),
            ("FROM THE CLOUD", Align::Right),
            ("FROM PEERS", Align::Right),
            ("DIGEST", Align::Left),
        ]);
        for row in &self.nodes {
            let verdict = if row.digest == self.digest { "verified" } else { "WRONG" };
            table.row([
                row.node.to_string(),
                if row.node <= self.with_cloud { "up" } else { "gone" }.to_owned(),
                show_seconds(row.seconds),
                show_size(row.from_cloud),
                show_size(row.from_peers),
                format!("{} {verdict}", row.digest.short()),
            ]);
        }
        let head = format!("image {}: {} in {} layers\n\n", self.digest, show_size(self.bytes), self.layers);
        let verdict = match self.broken.is_empty() {
            true => paint("everything is as promised", "32", colours),
            false => paint("not everything is as promised", "31", colours),
        };
        format!("{head}{table}\n{}{verdict} ({} in all)\n", self.copies(), show_seconds(self.seconds))
    }

    /// How often the image came from the cloud, if that was more than once, and why.
    fn copies(&self) -> String {
        let copies =
            self.nodes.iter().map(|row| row.from_cloud).sum::<u64>() as f64 / self.bytes.max(1) as f64;
        if copies < MORE_THAN_ONE {
            return String::new();
        }
        let (first, last) = (self.with_cloud, self.with_cloud + 1);
        format!(
            "the image left the cloud {copies:.1} times: {first} nodes asked for it at the same moment, when no node of \
             the site\nhad it yet. Whoever asks later, as node {last} did, takes none of it from the cloud.\n\n"
        )
    }
}

fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// The promises, each against what was seen.
fn broken(image: &Image, with_cloud: usize, nodes: &[Row]) -> Vec<String> {
    let mut broken = Vec::new();
    if nodes.len() != with_cloud + 1 {
        broken.push(format!("{} of {} nodes got the image", nodes.len(), with_cloud + 1));
    }
    for row in nodes {
        let node = row.node;
        if row.digest != image.digest {
            broken.push(format!("node {node} served a manifest with the digest {}", row.digest));
        }
        if row.bytes != image.bytes {
            broken.push(format!("node {node} served {} of {} bytes", row.bytes, image.bytes));
        }
        if row.from_cloud + row.from_peers < image.bytes {
            broken.push(format!("node {node} cannot tell where it got all of the image from"));
        }
        if node > with_cloud && row.from_cloud > 0 {
            broken.push(format!("node {node} counts {} bytes from a cloud that is gone", row.from_cloud));
        }
    }
    if nodes.iter().all(|row| row.from_cloud == 0) {
        broken.push("no node counts any bytes from the cloud, where the image came from".to_owned());
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image { repository: "a", tag: "b", digest: Digest::sha256(b"m"), bytes: 1000, layers: 4 }
    }

    fn row(node: usize, from_cloud: u64, from_peers: u64) -> Row {
        Row { node, seconds: 1.25, from_cloud, from_peers, bytes: 1000, digest: image().digest }
    }

    fn good() -> Vec<Row> {
        vec![row(1, 1000, 0), row(2, 600, 400), row(3, 0, 1000), row(4, 0, 1000)]
    }

    fn report(change: impl FnOnce(&mut Vec<Row>)) -> Report {
        let mut rows = good();
        change(&mut rows);
        Report::new(&image(), 3, rows, 9.0)
    }

    #[test]
    fn a_demo_in_which_all_goes_well_says_so() {
        let report = report(|_| {});
        assert_eq!(report.broken(), None);
        let table = report.table(false);
        assert!(table.contains("everything is as promised (9.00 s in all)"), "{table}");
        assert!(table.contains("\n2     up     1.25 s           600 B       400 B  "), "{table}");
        assert!(table.contains("\n4     gone   1.25 s             0 B      1000 B  "), "{table}");
        assert!(table.contains("\nthe image left the cloud 1.6 times: 3 nodes asked"), "{table}");
    }

    #[test]
    fn nothing_is_explained_when_one_copy_left_the_cloud() {
        let table = report(|rows| {
            rows[0].from_cloud = 400;
            rows[1].from_cloud = 610;
        })
        .table(false);
        assert!(!table.contains("left the cloud"), "{table}");
    }

    #[test]
    fn every_broken_promise_is_named() {
        let broken = |change: fn(&mut Vec<Row>)| report(change).broken().unwrap();
        assert!(broken(|rows| rows.truncate(3)).contains("3 of 4 nodes"));
        assert!(broken(|rows| rows[1].digest = Digest::sha256(b"x")).contains("node 2 served a manifest"));
        assert!(broken(|rows| rows[2].bytes = 999).contains("node 3 served 999 of 1000"));
        assert!(broken(|rows| rows[3].from_cloud = 1).contains("node 4 counts 1 bytes from a cloud"));
        assert!(broken(|rows| rows[3].from_peers = 500).contains("node 4 cannot tell"));
        assert!(broken(|rows| rows.iter_mut().for_each(|row| row.from_cloud = 0)).contains("no node counts"));
        let table = report(|rows| rows[0].digest = Digest::sha256(b"x")).table(true);
        assert!(table.contains("WRONG") && table.contains("\u{1b}[31mnot everything"), "{table}");
    }
}
