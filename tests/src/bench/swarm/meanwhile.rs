//! What happens to links and nodes while clients pull, and what is noted of it.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use wherry_tests::registry::Registry;

use super::churn::Killer;
use super::herd::Meanwhile;
use super::links::{Bytes, Links};
use super::nodes::{Nodes, Used};
use super::rates::Rate;

/// How often the uplinks' counters are noted, in seconds.
const NOTE_EVERY: f64 = 0.5;

/// The links of a run, whose rates change as they should.
pub(crate) struct Course<'a> {
    links: &'a Links,
    uplinks: &'a [Rate],
    set: Vec<f64>,
    begin: Vec<Bytes>,
    noted: Vec<(f64, Vec<Bytes>)>,
}

impl<'a> Course<'a> {
    /// Sets every uplink to what it begins with.
    pub(crate) fn begin(links: &'a Links, uplinks: &'a [Rate]) -> Result<Self> {
        let mut course = Self { links, uplinks, set: Vec::new(), begin: links.uplinks()?, noted: Vec::new() };
        for (site, uplink) in uplinks.iter().enumerate() {
            links.set_uplink(site, uplink.at(0.0))?;
            course.set.push(uplink.at(0.0));
        }
        Ok(course)
    }

    fn tick(&mut self, now: f64) -> Result<()> {
        for (site, uplink) in self.uplinks.iter().enumerate() {
            let rate = uplink.at(now);
            if rate != self.set[site] {
                self.links.set_uplink(site, rate)?;
                self.set[site] = rate;
            }
        }
        if now >= self.noted.len() as f64 * NOTE_EVERY {
            self.noted.push((now, self.carried()?));
        }
        Ok(())
    }

    /// What went over each uplink since the beginning.
    pub(crate) fn carried(&self) -> Result<Vec<Bytes>> {
        Ok(self.links.uplinks()?.into_iter().zip(&self.begin).map(|(now, then)| now.since(*then)).collect())
    }

    /// By when this share of all that went towards a site was through, in seconds.
    pub(crate) fn through(&self, site: usize, share: f64) -> Result<f64> {
        let all = self.carried()?[site].down as f64;
        let noted = self.noted.iter().find(|(_, bytes)| bytes[site].down as f64 >= all * share);
        Ok(noted.or(self.noted.last()).map_or(0.0, |(time, _)| *time))
    }

    /// What went towards each site by when.
    pub(crate) fn noted(&self) -> Value {
        let note = |(time, bytes): &(f64, Vec<Bytes>)| json!({"seconds": time, "down": bytes.iter().map(|bytes| bytes.down).collect::<Vec<_>>()});
        self.noted.iter().map(note).collect()
    }
}

/// Clients that pull from registries.
pub(crate) struct FromRegistries<'a, 'l> {
    pub(crate) course: Course<'l>,
    pub(crate) registries: Vec<&'a mut Registry>,
}

impl Meanwhile for FromRegistries<'_, '_> {
    fn tick(&mut self, now: Duration) -> Result<()> {
        self.course.tick(now.as_secs_f64())
    }

    fn abandon(&mut self) {
        for registry in &mut self.registries {
            if let Err(error) = registry.stop() {
                eprintln!("{error:#}");
            }
        }
    }
}

/// Clients that pull from nodes, some of which may be killed.
pub(crate) struct FromNodes<'a, 'l> {
    pub(crate) course: Course<'l>,
    pub(crate) nodes: &'a mut Nodes<'l>,
    pub(crate) killer: Killer,
    /// What nodes had used and taken from the origin when time was up.
    pub(crate) ended: Option<(Used, u64)>,
}

impl Meanwhile for FromNodes<'_, '_> {
    fn tick(&mut self, now: Duration) -> Result<()> {
        self.course.tick(now.as_secs_f64())?;
        self.killer.tick(now.as_secs_f64(), self.nodes)
    }

    fn abandon(&mut self) {
        self.ended = Some((self.nodes.used().unwrap_or_default(), self.nodes.all_taken_from_origin()));
        self.nodes.kill_all();
    }
}
