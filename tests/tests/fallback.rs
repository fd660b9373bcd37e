//! What clients do when the gateway cannot give: each is set up with the gateway first and a registry with the same image
//! second, and the gateway is brought into every state in which it has to refuse or to break off.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::access::Accesses as _;
use wherry_tests::blobs::{Blob, Image, push_archives};
use wherry_tests::clients::{Buildah, Containerd, Docker, Podman, Skopeo};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::run;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// The layers, of which all but the large one are soon here: it is the last, since some clients take one after the other.
const LAYERS: [u64; 3] = [300_000, 2 << 20, 12 << 20];

/// Which one is large.
const LARGE: usize = 2;

/// How much of it reaches the gateway before that breaks off.
const BEFORE: u64 = 4 << 20;

/// What is the matter with the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matter {
    /// It has never heard of the image, nor has its origin: 404.
    Unknown,
    /// Its origin is out of reach, and nothing is here: 503.
    OriginAway,
    /// The site's links to the outside rest: the manifest comes all the same, each layer is 503.
    Paused,
    /// Its origin dies in the middle of a layer.
    OriginDies,
    /// It is killed in the middle of a layer.
    GatewayDies,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The second registry gives the whole image.
    Whole,
    /// The second registry gives what the gateway has not given, and no more.
    Rest,
    /// The pull fails, and the second registry is asked for no layer.
    Fails,
}

/// Where a client finds the image.
struct Places {
    gateway: SocketAddr,
    second: SocketAddr,
    /// The registry that the gateway has for its default, as it is named.
    origin: String,
    image: Image,
}

/// Has a client pull the image in each state, and sees what comes of it. `prepare` gives what pulls, and tells the digest of the
/// manifest of what was pulled, which the client has checked with all that it names.
fn play<P>(
    expected: [(Matter, Outcome); 5],
    prepare: impl Fn(&Lab, &Places) -> Result<P> + Sync,
) -> Result<()>
where
    P: FnOnce() -> Result<Digest> + Send,
{
    for (matter, outcome) in expected {
        let seen = see(matter, &prepare).with_context(|| format!("{matter:?}"))?;
        ensure!(seen == outcome, "{matter:?}: {seen:?} and not {outcome:?}");
    }
    Ok(())
}

fn see<P>(matter: Matter, prepare: impl Fn(&Lab, &Places) -> Result<P>) -> Result<Outcome>
where
    P: FnOnce() -> Result<Digest> + Send,
{
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let second = Registry::start(&lab, "second", registry::Options::default())?;
    let image = push_archives(second.addr(), "library/app", "1", 91, &LAYERS)?;
    if matter != Matter::Unknown {
        push_archives(origin.addr(), "library/app", "1", 91, &LAYERS)?;
    }
    let relay = Relay::start(origin.addr())?;
    let mut node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    let before = second.accesses()?.len();
    let is_cut = matches!(matter, Matter::OriginDies | Matter::GatewayDies);
    match matter {
        Matter::Unknown => {}
        Matter::OriginAway => origin.stop()?,
        Matter::Paused => _ = node.run(&["wan", "pause"])?,
        Matter::OriginDies | Matter::GatewayDies => relay.hold_at(image.layers[LARGE].digest, BEFORE),
    }
    let places = Places {
        gateway: node.gateway()?,
        second: second.addr(),
        origin: relay.host(),
        image: image.clone(),
    };
    let pull = prepare(&lab, &places)?;
    let pulled = std::thread::scope(|scope| {
        let pulling = scope.spawn(pull);
        let broken = (|| -> Result<()> {
            if is_cut {
                wait_until(
                    "the client has the small layers, and the gateway a part of the large one",
                    SOON,
                    || {
                        ensure!(!pulling.is_finished(), "the pull has ended before");
                        let log = node.log()?;
                        let has = |layer: &Blob| {
                            let words = [layer.digest.to_string(), format!("bytes={} ", layer.size)];
                            log.lines().any(|line| words.iter().all(|word| line.contains(word)))
                        };
                        let large = image.layers[LARGE];
                        let mut small = image.layers.iter().filter(|layer| **layer != large);
                        Ok(relay.sent(&large.digest) >= BEFORE && small.all(has))
                    },
                )?;
            }
            match matter {
                Matter::OriginDies => {
                    origin.stop()?;
                    relay.cut();
                    relay.open_gate();
                }
                Matter::GatewayDies => node.kill()?,
                _ => {}
            }
            Ok(())
        })();
        let pulled = pulling.join().ok().context("the pull panicked")?;
        broken.with_context(|| format!("{pulled:?}"))?;
        Ok::<_, anyhow::Error>(pulled)
    })?;

    let log = second.accesses()?.split_off(before);
    let given: Vec<u64> = image.blobs().iter().map(|blob| log.bytes_of(&blob.digest)).collect();
    let is_whole = image
        .blobs()
        .iter()
        .all(|blob| (log.reads_of(&blob.digest), log.bytes_of(&blob.digest)) == (1, blob.size));
    let all: u64 = given.iter().sum();
    Ok(match pulled {
        Ok(digest) => {
            ensure!(digest == image.manifest, "{digest} was pulled, and not {}", image.manifest);
            if is_whole {
                Outcome::Whole
            } else {
                // What was on its way is gone on with where the gateway broke off, and nothing is asked for again.
                let in_part = |blob: &Blob| log.bytes_of(&blob.digest) < blob.size;
                let rest = image.layers[LARGE].size - BEFORE;
                ensure!(image.blobs().iter().all(in_part) && all >= rest, "{log:#?}");
                Outcome::Rest
            }
        }
        Err(why) => {
            ensure!(all == 0, "{all} bytes came from the second, and still {why:#}");
            ensure!(matter != Matter::Paused || format!("{why:#}").contains("503"), "{why:#}");
            Outcome::Fails
        }
    })
}

#[test]
fn containerd_goes_on_with_the_next_host_at_the_very_byte_where_the_gateway_broke_off() -> Result<()> {
    let outcomes = [
        (Matter::Unknown, Outcome::Whole),
        (Matter::OriginAway, Outcome::Whole),
        (Matter::Paused, Outcome::Whole),
        (Matter::OriginDies, Outcome::Rest),
        (Matter::GatewayDies, Outcome::Rest),
    ];
    play(outcomes, |lab, places| {
        let containerd = Containerd::start(lab, "containerd")?;
        containerd.mirrors(&places.origin, &[places.gateway, places.second])?;
        let name = places.image.reference(&places.origin);
        Ok(move || {
            containerd.pull(&name)?;
            containerd.digest(&name)
        })
    })
}

#[test]
fn docker_begins_anew_with_the_next_mirror_once_it_has_tried_the_gateway_as_often_as_it_may() -> Result<()> {
    let outcomes = [
        (Matter::Unknown, Outcome::Whole),
        (Matter::OriginAway, Outcome::Whole),
        (Matter::Paused, Outcome::Whole),
        (Matter::OriginDies, Outcome::Whole),
        (Matter::GatewayDies, Outcome::Whole),
    ];
    play(outcomes, |lab, places| {
        let mirrors = [places.gateway, places.second].map(|mirror| format!("http://{mirror}"));
        // It tries five times unless it is told otherwise, and rests longer before each, for 75 s in all.
        let config = serde_json::json!({ "registry-mirrors": mirrors, "max-download-attempts": 1 });
        let docker = Docker::start_with(lab, "docker", &lab.file("docker.json", config.to_string())?)?;
        let config = places.image.config.digest;
        Ok(move || {
            docker.pull("app:1")?;
            let (id, names) = docker.digests("app:1")?;
            ensure!(id == config.to_string(), "{id}");
            Ok(names.split_once('@').context("no digest")?.1.parse()?)
        })
    })
}

/// A registry that is out of reach, with the gateway and the second for its mirrors.
fn registries(places: &Places) -> String {
    let mut text =
        "[[registry]]\nprefix = \"lab.example\"\nlocation = \"127.0.0.1:1\"\ninsecure = true\n".to_owned();
    for mirror in [places.gateway, places.second] {
        text += &format!("[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n");
    }
    text
}

/// podman, buildah, skopeo and CRI-O have the same library for it.
const CHOSEN_AT_THE_MANIFEST: [(Matter, Outcome); 5] = [
    (Matter::Unknown, Outcome::Whole),
    (Matter::OriginAway, Outcome::Whole),
    (Matter::Paused, Outcome::Fails),
    (Matter::OriginDies, Outcome::Fails),
    (Matter::GatewayDies, Outcome::Fails),
];

#[test]
fn podman_takes_the_next_mirror_where_it_gets_no_manifest_and_stays_where_it_has_got_one() -> Result<()> {
    play(CHOSEN_AT_THE_MANIFEST, |lab, places| {
        let podman = Podman::new(lab, "podman")?;
        let configuration = lab.file("mirrors.conf", registries(places))?;
        let name = places.image.reference("lab.example");
        Ok(move || {
            let mut pull = podman.command();
            run(pull.env("CONTAINERS_REGISTRIES_CONF", configuration).args(["pull", "--quiet", &name]))?;
            Ok(podman.digest(&name)?.parse()?)
        })
    })
}

#[test]
fn buildah_takes_the_next_mirror_where_it_gets_no_manifest_and_stays_where_it_has_got_one() -> Result<()> {
    play(CHOSEN_AT_THE_MANIFEST, |lab, places| {
        let buildah = Buildah::new(lab, "buildah")?;
        buildah.registries(&registries(places))?;
        let name = places.image.reference("lab.example");
        Ok(move || {
            let container = buildah.from(&name)?;
            Ok(buildah.digest_of_base(&container)?.parse()?)
        })
    })
}

#[test]
fn skopeo_takes_the_next_mirror_where_it_gets_no_manifest_and_stays_where_it_has_got_one() -> Result<()> {
    play(CHOSEN_AT_THE_MANIFEST, |lab, places| {
        let skopeo = Skopeo::new(lab, "skopeo")?;
        let configuration = lab.file("mirrors.conf", registries(places))?;
        let image = places.image.clone();
        Ok(move || {
            let mut copy = skopeo.command();
            copy.arg("--registries-conf").arg(configuration);
            skopeo.pull_by(copy, &image.reference("lab.example"), "pulled")?.check(&image)?;
            Ok(image.manifest)
        })
    })
}
