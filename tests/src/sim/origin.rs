//! The origin behind a site's uplink: who reads it, and what it gives.

use std::time::Duration;

use wherry_node::transfer::planner::{Event, Source};
use wherry_proto::ChunkIndex;

use super::blob::TRUE;
use super::clock::nanos;
use super::message::BlobNo;
use super::node::OriginFlow;
use super::world::{Carries, Happening, World};

impl World {
    pub(super) fn read_origin(
        &mut self,
        node: usize,
        blob: BlobNo,
        index: ChunkIndex,
        state: wherry_proto::State,
        last: ChunkIndex,
    ) {
        self.stop_origin(node, blob);
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.reading += 1;
        transfer.origin = Some(OriginFlow { index, state, last, flow: None });
        let (run, reading) = (transfer.run, transfer.reading);
        // A request that opens a connection.
        let delay = 3 * nanos(self.setup.far_rtt);
        self.clock.after(delay, Happening::OriginBegins { node, blob, run, reading });
        self.report.readings += 1;
    }

    pub(super) fn stop_origin(&mut self, node: usize, blob: BlobNo) {
        let (now, domain) = (self.clock.now(), self.domain(node));
        let map = self.blobs[blob].map();
        let overhead = 1.0 + self.setup.overhead;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.reading += 1;
        if let Some(OriginFlow { index, flow: Some(flow), .. }) = transfer.origin.take() {
            let left = self.links[domain].fluid.end(now, flow) / overhead;
            let sent = (f64::from(map.len(index)) - left).max(0.0) as u64;
            self.count_origin(node, sent);
        }
    }

    fn count_origin(&mut self, node: usize, bytes: u64) {
        self.nodes[node].tally.origin_bytes += bytes;
        let site = self.nodes[node].setup.site;
        self.report.uplinks[site] += bytes;
    }

    pub(super) fn origin_goes_on(&mut self, node: usize, blob: BlobNo, reading: u64) {
        let now = self.clock.now();
        let (domain, site, down) = (self.domain(node), self.nodes[node].setup.site, self.nodes[node].down);
        let uplink = self.uplinks[site].1;
        let map = self.blobs[blob].map();
        let overhead = 1.0 + self.setup.overhead;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        if transfer.reading != reading {
            return;
        }
        let Some(origin) = &mut transfer.origin else { return };
        let bytes = f64::from(map.len(origin.index)) * overhead;
        let what = Carries::Origin { node, blob, reading };
        origin.flow = Some(self.links[domain].fluid.begin(now, bytes, &[uplink, down], what));
    }

    pub(super) fn origin_gave(&mut self, node: usize, blob: BlobNo, reading: u64) {
        let map = self.blobs[blob].map();
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        if transfer.reading != reading {
            return;
        }
        let Some(origin) = &mut transfer.origin else { return };
        let (index, state, last) = (origin.index, origin.state, origin.last);
        origin.flow = None;
        let link = self.blobs[blob].link(index, state, TRUE);
        let next = map.next(index).filter(|next| *next <= last);
        match (link.to, next) {
            (wherry_proto::End::State(state), Some(next)) => (origin.index, origin.state) = (next, state),
            _ => transfer.origin = None,
        }
        let ended = next.is_none();
        transfer.arriving.insert((Source::Origin, index), TRUE);
        self.count_origin(node, u64::from(map.len(index)));
        if !ended {
            self.origin_goes_on(node, blob, reading);
        }
        self.apply(node, blob, Event::Arrived(Source::Origin, index, vec![link], Duration::ZERO));
        if ended && self.nodes[node].transfer(blob).is_some_and(|transfer| transfer.reading == reading) {
            self.apply(node, blob, Event::OriginEnded(None));
        }
    }
}
