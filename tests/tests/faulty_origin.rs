//! Origins that lie, lose bytes or refuse: the image ends up right, or the error says what is wrong.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, OCI_MANIFEST, blob_is_right, push_image};
use wherry_tests::clients::Skopeo;
use wherry_tests::http::{Request, get};
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::{output, run};
use wherry_tests::registry::{self, PASSWORD, Registry, USER};
use wherry_tests::relay::{Fault, Relay};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

const LAYER: u64 = 8 << 20;

struct Site {
    node: Wherry,
    relay: Relay,
    image: Image,
    _origin: Registry,
    lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 5, &[LAYER, 100_000])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    Ok(Site { node, relay, image, _origin: origin, lab })
}

impl Site {
    fn fault(&self, fault: Fault) {
        self.relay.fault(self.image.layers[0].digest, fault);
    }

    fn reference(&self) -> String {
        self.image.reference(self.relay.host())
    }

    fn pull_ends_right(&self) -> Result<()> {
        self.node.run(&["pull", &self.reference()])?;
        for blob in self.image.blobs() {
            ensure!(blob_is_right(self.node.gateway()?, "lab/noise", &blob)?, "{blob:?} is wrong");
        }
        Ok(())
    }

    /// The pull fails in words, no client gets the layer, and all is well once the origin is.
    fn pull_fails_and_leaves_nothing(&self) -> Result<String> {
        let said = self.node.fails(&["pull", "--wait", "0s", &self.reference()])?;
        let layer = self.image.layers[0].digest;
        let mut served =
            Request::new(self.node.gateway()?, "GET", &format!("/v2/lab/noise/blobs/{layer}")).open()?;
        let mut body = Vec::new();
        let whole = served.status == 200 && served.read_to_end(&mut body).is_ok();
        ensure!(!whole, "a wrong blob of {} bytes was served as whole", body.len());
        let whole = self.node.whole_images()?;
        ensure!(whole.is_empty(), "an image without its layers is listed as whole: {whole:?}");
        wait_until("the node has given up on the layer", SOON, || {
            let status = self.node.json(&["status"])?;
            Ok(status["transfers"].as_array().is_some_and(Vec::is_empty))
        })?;
        self.relay.heal();
        self.pull_ends_right().context("after the origin was healed")?;
        Ok(said)
    }
}

#[test]
fn wrong_bytes_of_the_right_length_fail_the_pull_and_are_blamed_on_the_origin() -> Result<()> {
    for at in [0, 1_000_000, LAYER - 1] {
        let site = site()?;
        site.fault(Fault::WrongByte(at));
        let said = site.pull_fails_and_leaves_nothing()?;
        let layer = site.image.layers[0].digest;
        assert!(said.contains(&layer.short()), "should name the blob: {said}");
        assert!(said.contains(&site.relay.host()), "should name the origin: {said}");
    }
    Ok(())
}

#[test]
fn wrong_bytes_from_the_origin_do_no_harm_where_a_peer_has_the_right_ones() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 6, &[LAYER])?;
    let relay = Relay::start(origin.addr())?;
    let network = Network::new(&lab)?;
    let a = network.member(&lab, "a", Options::origin(relay.host()), &[])?;
    a.run(&["pull", &image.reference(relay.host())])?;
    relay.fault(image.layers[0].digest, Fault::WrongByte(LAYER / 2));
    let b = network.member(&lab, "b", Options::origin(relay.host()), &[&a])?;
    b.run(&["pull", &image.reference(relay.host())])?;
    assert!(blob_is_right(b.gateway()?, "lab/noise", &image.layers[0])?);
    Ok(())
}

#[test]
fn an_origin_that_ignores_or_falsifies_ranges_still_gives_the_right_image() -> Result<()> {
    for fault in [Fault::IgnoresRange, Fault::WrongRange] {
        let mut site = site()?;
        site.fault(fault.clone());
        // Half of it arrives, the power goes, and the rest is asked for with a Range.
        site.relay.gate_at(LAYER / 2);
        let mut pull = site.node.command()?;
        pull.args(["pull", &site.reference()]);
        let pull = std::thread::spawn(move || output(&mut pull));
        wait_until("the gate is reached", SOON, || Ok(site.relay.sent_total() >= LAYER / 2))?;
        site.node.kill()?;
        pull.join().ok().context("the pull")??;
        site.relay.open_gate();
        site.node.up()?;
        site.pull_ends_right().with_context(|| format!("{fault:?}"))?;
    }
    Ok(())
}

#[test]
fn too_few_or_too_many_bytes_fail_the_pull_with_both_lengths() -> Result<()> {
    for (fault, length) in
        [(Fault::TooFew(1), LAYER - 1), (Fault::TooMany(1), LAYER + 1), (Fault::TooMany(LAYER), 2 * LAYER)]
    {
        let site = site()?;
        site.fault(fault.clone());
        let said = site.pull_fails_and_leaves_nothing().with_context(|| format!("{fault:?}"))?;
        let named = |length: u64| said.contains(&length.to_string());
        assert!(named(LAYER) && named(length), "{fault:?}: should name both lengths: {said}");
    }
    Ok(())
}

#[test]
fn answers_that_end_early_are_gone_on_with_where_they_ended() -> Result<()> {
    let site = site()?;
    site.fault(Fault::EndsEarly(3_000_000));
    site.pull_ends_right()?;
    let sent = site.relay.sent(&site.image.layers[0].digest);
    assert!(sent < LAYER + LAYER / 4, "{sent} bytes were sent for a layer of {LAYER}");
    let ranges = site.relay.asked().iter().filter(|asked| asked.range.is_some()).count();
    assert!(ranges >= 2, "three answers of 3 MB make 8 MiB, so there are two ranges at least: {ranges}");
    Ok(())
}

#[test]
fn a_client_never_takes_a_poisoned_blob_for_whole() -> Result<()> {
    let site = site()?;
    site.fault(Fault::WrongByte(LAYER / 2));
    let skopeo = Skopeo::new(&site.lab, "skopeo")?;
    let reference = site.image.reference(site.node.gateway()?);
    assert!(skopeo.pull(&reference, "poisoned").is_err());
    let path = format!("/v2/lab/noise/blobs/{}", site.image.layers[0].digest);
    let mut download = Request::new(site.node.gateway()?, "GET", &path).open()?;
    let mut body = Vec::new();
    let read = download.read_to_end(&mut body);
    assert!(download.status >= 400 || read.is_err(), "status {} and {} bytes", download.status, body.len());
    // Whoever joins a transfer that is at wrong bytes is cut off like all the others.
    wait_until("the node has given up on the layer", SOON, || {
        let status = site.node.json(&["status"])?;
        Ok(status["transfers"].as_array().is_some_and(Vec::is_empty))
    })?;
    site.relay.heal();
    skopeo.pull(&reference, "healed")?.check(&site.image)
}

#[test]
fn an_origin_that_refuses_or_cannot_be_reached_is_named() -> Result<()> {
    let site = site()?;
    site.fault(Fault::Refuses(503));
    let said = site.pull_fails_and_leaves_nothing()?;
    assert!(said.contains("503") && said.contains(&site.relay.host()), "{said}");
    // A port of loopback where nobody listens.
    let gone = { Relay::start(site.relay.addr())?.host() };
    let said = site.node.fails(&["pull", &format!("{gone}/lab/noise:1")])?;
    assert!(said.contains(&gone), "{said}");
    let unknown = site.node.fails(&["pull", &format!("{}/lab/no-such:1", site.relay.host())])?;
    assert!(unknown.contains("lab/no-such"), "{unknown}");
    let answer = get(site.node.gateway()?, "/v2/lab/no-such/manifests/1")?;
    assert_eq!((answer.status, answer.error_code().as_deref()), (404, Some("MANIFEST_UNKNOWN")));
    Ok(())
}

#[test]
fn a_client_of_a_gateway_whose_origin_is_gone_gets_an_error_before_any_body() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 7, &[1000])?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    origin.stop()?;
    let paths = [
        "/v2/lab/noise/manifests/1".to_owned(),
        format!("/v2/lab/noise/manifests/{}", image.manifest),
        format!("/v2/lab/noise/blobs/{}", image.layers[0].digest),
    ];
    for path in paths {
        let answer = get(node.gateway()?, &path)?;
        assert!([404, 502, 503, 504].contains(&answer.status), "{path}: {}", answer.status);
        assert!(answer.error_code().is_some(), "{path}: {}", answer.text());
    }
    origin.restart()?;
    // A node does not ask an origin that was gone all the time; it has to notice soon that it is back.
    wait_until("the origin is asked again", SOON, || {
        let mut pull = node.command()?;
        Ok(output(pull.args(["pull", &image.reference(origin.host())]))?.status.success())
    })
}

#[test]
fn an_origin_that_is_back_is_asked_again_soon_however_often_its_tags_were_wanted_meanwhile() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let old = push_image(origin.addr(), "lab/noise", "1", 70, &[1000])?;
    let options = Options::origin(origin.host()).with("--tag-ttl").with("1s");
    let node = Wherry::start(&lab, "node", options)?;
    let ask = || {
        let answer = get(node.gateway()?, "/v2/lab/noise/manifests/1")?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(Digest::sha256(&answer.body))
    };
    assert_eq!(ask()?, old.manifest);
    origin.stop()?;
    let start = Instant::now();
    // Past the tag's time to live, and a while of refused connections.
    wait_until("the origin was away for some seconds", SOON, || {
        ensure!(ask()? == old.manifest, "the site's newest answer serves");
        Ok(start.elapsed() > Duration::from_secs(3))
    })?;
    origin.restart()?;
    let new = push_image(origin.addr(), "lab/noise", "1", 71, &[1000])?;
    wait_until("the tag's new meaning is seen", SOON, || Ok(ask()? == new.manifest))
}

#[test]
fn manifests_that_no_careful_registry_takes_are_refused() -> Result<()> {
    let site = site()?;
    let good = String::from_utf8(site.image.manifest_bytes.clone())?;
    let huge = good.replacen('{', &format!("{{\"padding\":\"{}\",", "x".repeat(5 << 20)), 1);
    let both = good.replacen('{', "{\"manifests\":[],", 1);
    let twice = good.replacen('{', "{\"layers\":[],", 1);
    let negative = good.replace("\"size\":100000", "\"size\":-1");
    let escape = good.replace(&site.image.layers[1].digest.to_string(), "sha256:../../../../etc/passwd");
    let cases = [
        ("huge", huge.as_str()),
        ("both", &both),
        ("twice", &twice),
        ("negative", &negative),
        ("escape", &escape),
        ("empty", ""),
        ("text", "not json"),
        ("array", "[]"),
        ("deep", &"[".repeat(100_000)),
    ];
    for (tag, manifest) in cases {
        site.relay.replace(&format!("/v2/lab/noise/manifests/{tag}"), OCI_MANIFEST, manifest.as_bytes());
        let said = site.node.fails(&["pull", &format!("{}/lab/noise:{tag}", site.relay.host())])?;
        assert!(!said.trim().is_empty(), "{tag}");
        let answer = get(site.node.gateway()?, &format!("/v2/lab/noise/manifests/{tag}"))?;
        assert!(answer.status >= 400, "{tag} was served with {}", answer.status);
        assert!(answer.error_code().is_some(), "{tag}: {}", answer.text());
    }
    // By digest, the bytes must have it.
    let path = format!("/v2/lab/noise/manifests/{}", site.image.manifest);
    site.relay.replace(&path, OCI_MANIFEST, both.as_bytes());
    assert!(get(site.node.gateway()?, &path)?.status >= 400);
    site.pull_ends_right()
}

#[test]
fn an_origin_with_a_password_is_read_with_the_credentials_of_the_docker_file() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let options = registry::Options { password: true, ..registry::Options::default() };
    let origin = Registry::start(&lab, "origin", options)?;
    let open = images.origin(&lab, "open")?;
    let mut login = Skopeo::new(&lab, "skopeo")?.command();
    login.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    login.args(["--dest-creds", &format!("{USER}:{PASSWORD}")]);
    login.arg(format!("docker://{}", images.second.reference(open.host())));
    run(login.arg(format!("docker://{}", images.second.reference(origin.host()))))?;

    let stranger = Wherry::start(&lab, "stranger", Options::origin(origin.host()))?;
    let reference = images.second.reference(origin.host());
    let said = stranger.fails(&["pull", &reference])?;
    assert!(said.contains(&origin.host()), "{said}");

    let docker = lab.folder("docker-config")?;
    // "skipper:thin-link"
    let auths = serde_json::json!({"auths": {origin.host(): {"auth": "c2tpcHBlcjp0aGluLWxpbms="}}});
    std::fs::write(docker.join("config.json"), auths.to_string())?;
    let mut options = Options::origin(origin.host());
    options.environment.push(("DOCKER_CONFIG".into(), docker.display().to_string()));
    let member = Wherry::start(&lab, "member", options)?;
    member.run(&["pull", &reference])?;
    let pulled =
        Skopeo::new(&lab, "skopeo-2")?.pull(&images.second.reference(member.gateway()?), "pulled")?;
    pulled.check(&images.second)?;
    let log = member.log()?;
    assert!(
        !log.contains(PASSWORD) && !log.contains("c2tpcHBlcjp0aGluLWxpbms="),
        "the password is in the log"
    );
    Ok(())
}
