//! What the same machines do on the same links without wherry.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use wherry_tests::blobs::Image;
use wherry_tests::lab::Lab;
use wherry_tests::registry::{self, Registry};

use super::herd::{self, Client};
use super::links::{Bytes, Links, Machine};
use super::meanwhile::{Course, FromRegistries};
use super::scenario::Scenario;

/// How long such a measurement should take at most, in seconds; a smaller image stands in for one that takes longer.
const BUDGET: f64 = 75.0;

/// How much longer it may take than the links ask for.
const PATIENCE: f64 = 6.0;

/// The least that a layer has, so that requests do not cost more than what they ask for.
const LEAST_LAYER: u64 = 64 << 10;

/// The share of a smaller image's bytes whose time is scaled. The rest are stragglers that wait for lost packets while the
/// uplink has room; with a large image there would be no more of them.
const BULK: f64 = 0.95;

/// The port of registries on machines of a site.
const PORT: u16 = 5000;

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// When the last node was done, in seconds, for the image of the scenario.
    pub(crate) last: f64,
    /// When it was done with the image that was used.
    pub(crate) measured: f64,
    /// Bytes of that image.
    pub(crate) bytes: u64,
    /// Whether that was a smaller image than the scenario's.
    pub(crate) small: bool,
    /// What went over the uplinks for it.
    pub(crate) uplinks: Bytes,
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The origin, or the seeder's machine if there is one: every node by itself.
    Alone,
    /// A docker-registry at each site, as a pull-through cache of the origin.
    Cache,
}

/// Seconds that this way takes at least for an image of so many bytes.
fn estimate(scenario: &Scenario, way: Way, bytes: u64) -> f64 {
    let bits = (bytes * scenario.nodes as u64) as f64 * 8.0;
    let uplink = scenario.uplinks.iter().map(|uplink| uplink.time_for(bits)).fold(0.0, f64::max);
    match way {
        Way::Alone if scenario.seeded => bits / scenario.port,
        Way::Alone => uplink,
        // A cache that many ask at once for what it has not got asks the origin for all of them.
        Way::Cache => uplink.max(bits / scenario.port),
    }
}

/// The layers of an image that does not take too long.
fn layers(scenario: &Scenario, way: Way) -> Vec<u64> {
    let share = (BUDGET / estimate(scenario, way, scenario.bytes())).min(1.0);
    scenario
        .layers
        .iter()
        .map(|layer| ((*layer as f64 * share) as u64).max(LEAST_LAYER.min(*layer)))
        .collect()
}

/// The seconds for so many times what went through in so many: what the links carried meanwhile, times as much.
fn whole(scenario: &Scenario, site: usize, way: Way, measured: f64, times: f64) -> f64 {
    if way == Way::Alone && scenario.seeded {
        return measured * times;
    }
    let uplink = scenario.uplinks[site];
    uplink.time_for(uplink.carried(measured) * times)
}

/// Measures a way. `push` pushes an image with these layers to the origin.
pub(crate) fn measure(
    lab: &Lab,
    links: &Links,
    scenario: &Scenario,
    way: Way,
    origin: &mut Registry,
    push: impl FnOnce(&Registry, &[u64]) -> Result<Image>,
) -> Result<Beside> {
    let image = push(origin, &layers(scenario, way))?;
    let mut servers = Vec::new();
    match way {
        Way::Alone if scenario.seeded => {
            let storage = Some(origin.storage().to_owned());
            let options = registry::Options { shared_storage: storage, ..registry::Options::default() };
            servers.push(registry_on(lab, &links.nodes[0], "seeder", options)?);
        }
        Way::Alone => {}
        Way::Cache => {
            for (site, machine) in links.caches.iter().enumerate() {
                links.set_port(machine, scenario.port)?;
                let options =
                    registry::Options { cache_of: Some(origin.host()), ..registry::Options::default() };
                servers.push(registry_on(lab, machine, &format!("cache{site}"), options)?);
            }
        }
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(Registry::addr).collect();
    let server = |site: usize| addresses.get(site).copied().unwrap_or_else(|| origin.addr());
    let pullers: Vec<&Machine> = scenario.pullers().map(|node| &links.nodes[node]).collect();
    let clients: Vec<Client<'_>> =
        pullers.iter().map(|node| Client { space: &node.space, server: server(node.site) }).collect();
    let limit = Duration::from_secs_f64(estimate(scenario, way, image.size()) * PATIENCE + 60.0);
    let course = Course::begin(links, &scenario.uplinks)?;
    let mut registries: Vec<&mut Registry> = servers.iter_mut().collect();
    if way == Way::Alone && !scenario.seeded {
        registries.push(origin);
    }
    let mut meanwhile = FromRegistries { course, registries };
    let pulled = herd::pull(&clients, &image, limit, &mut meanwhile)?;
    let uplinks: Bytes = meanwhile.course.carried()?.into_iter().sum();
    let times = scenario.bytes() as f64 / image.layers.iter().map(|layer| layer.size).sum::<u64>() as f64;
    let small = times > 1.01;
    let (mut last, mut measured): (f64, f64) = (0.0, 0.0);
    for (pulled, machine) in pulled.iter().zip(&pullers) {
        ensure!(pulled.seconds.is_some(), "{way:?}: not all were done in time: {:?}", pulled.last_failure);
        measured = measured.max(pulled.seconds.unwrap_or_default());
        last = last.max(if small && !scenario.seeded {
            let through = meanwhile.course.through(machine.site, BULK)?;
            whole(scenario, machine.site, way, through, times / BULK)
        } else {
            pulled.seconds.unwrap_or_default() * times
        });
    }
    Ok(Beside { last, measured, bytes: image.size(), small, uplinks })
}

fn registry_on(lab: &Lab, machine: &Machine, name: &str, options: registry::Options) -> Result<Registry> {
    let listen = Some(SocketAddr::from((machine.address, PORT)));
    Registry::start(lab, name, registry::Options { listen, space: Some(machine.space.clone()), ..options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Scenario {
        Scenario::all().into_iter().find(|scenario| scenario.name == name).unwrap()
    }

    #[test]
    fn an_image_that_would_take_half_an_hour_is_replaced_by_one_that_takes_a_minute() {
        let herd = named("S1");
        assert_eq!(estimate(&herd, Way::Alone, herd.bytes()).round(), 2048.0);
        let small: u64 = layers(&herd, Way::Alone).iter().sum();
        assert!((60.0..90.0).contains(&estimate(&herd, Way::Alone, small)), "{small}");
        assert_eq!(layers(&named("S4"), Way::Alone), named("S4").layers);
    }

    #[test]
    fn time_is_linear_in_the_bytes_on_a_steady_link_and_follows_the_rates_of_a_changing_one() {
        assert!((whole(&named("S1"), 0, Way::Alone, 70.0, 30.0) - 2100.0).abs() < 1e-6);
        assert!((whole(&named("S2"), 0, Way::Alone, 70.0, 30.0) - 2100.0).abs() < 1e-6);
        let sites = named("S3");
        let time = whole(&sites, 1, Way::Alone, 30.0, 4.0);
        let uplink = sites.uplinks[1];
        assert!((uplink.carried(time) / uplink.carried(30.0) - 4.0).abs() < 1e-9);
    }
}
