//! Who may read what: private repositories of registries, and the gateway's own users.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wherry_tests::blobs::push_image;
use wherry_tests::certificates::Certificate;
use wherry_tests::clients::{Docker, Podman, Skopeo};
use wherry_tests::http::{Request, get};
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::process::{output, run, tool};
use wherry_tests::registry::{self, HTPASSWD, PASSWORD, Registry, USER};
use wherry_tests::wait::wait_until;

/// How long a word that no longer counts is waited for.
const SOON: Duration = Duration::from_secs(20);

/// The same images behind a password.
fn closed(lab: &Lab, open: &Registry) -> Result<Registry> {
    let shared_storage = Some(open.storage().to_owned());
    let options = registry::Options { shared_storage, password: true, ..registry::Options::default() };
    Registry::start(lab, "closed", options)
}

/// A node that logs in to a registry with a password from a file.
fn with_login(lab: &Lab, origin: &Registry, more: &str) -> Result<Options> {
    let secret = lab.file(&format!("password-{}", more.len()), format!("{PASSWORD}\n"))?;
    let setting = format!("{} user={USER} password_file={} {more}", origin.host(), secret.display());
    Ok(Options::origin(origin.host()).with("--origin").with(setting.trim()))
}

/// What a client says that is refused.
fn fails(command: &mut Command) -> Result<String> {
    let answer = output(command)?;
    ensure!(!answer.status.success(), "{command:?} was not refused");
    Ok(String::from_utf8_lossy(&answer.stderr).into_owned())
}

fn reads(skopeo: &Skopeo, image: &str, more: &[&str]) -> Command {
    let mut command = skopeo.command();
    command.args(["inspect", "--raw"]).args(more).arg(format!("docker://{image}"));
    command
}

#[test]
fn a_private_repository_is_for_those_whom_its_registry_lets_read_whichever_client_they_use() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let open = images.origin(&lab, "open")?;
    let origin = closed(&lab, &open)?;
    let node = Wherry::start(&lab, "node", with_login(&lab, &origin, "access=verify")?)?;
    let name = format!("{}/{}", node.gateway()?, images.teaching.name());
    let login = ["login", "--username", USER, "--password", PASSWORD, &node.gateway()?.to_string()];

    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let said = fails(&mut reads(&skopeo, &name, &["--tls-verify=false"]))?;
    ensure!(said.contains("is not for everybody") || said.contains("unauthorized"), "{said}");
    let wrong = fails(&mut reads(&skopeo, &name, &["--tls-verify=false", "--creds", "skipper:wrong"]))?;
    ensure!(wrong.contains("does not let you read") || wrong.contains("denied"), "{wrong}");
    let right = format!("{USER}:{PASSWORD}");
    run(&mut reads(&skopeo, &name, &["--tls-verify=false", "--creds", &right]))?;

    let podman = Podman::new(&lab, "podman")?;
    podman.pull(&name).err().context("podman pulled without a login")?;
    run(podman.command().args([&login[..1], &["--tls-verify=false"], &login[1..]].concat()))?;
    podman.pull(&name)?;

    let docker = Docker::start(&lab, "docker", &[])?;
    docker.pull(&name).err().context("docker pulled without a login")?;
    run(docker.command().args(login))?;
    docker.pull(&name)?;

    // By a digest that is here as little as by a tag, and no blob either.
    let layer = images.teaching.layers[0].digest;
    let by_digest =
        get(node.gateway()?, &format!("/v2/{}/manifests/{}", "teaching", images.teaching.manifest))?;
    let blob = get(node.gateway()?, &format!("/v2/{}/blobs/{layer}", "teaching"))?;
    assert_eq!((by_digest.status, blob.status), (401, 401), "{} {}", by_digest.text(), blob.text());
    // Nor by way of a repository that everybody may push to.
    let from = format!("{}/teaching", origin.host()).replace(':', "%3A");
    let mount = format!("/v2/site.wherry/mine/blobs/uploads/?mount={layer}&from={from}");
    let mounted = Request::new(node.gateway()?, "POST", &mount).send_and_read()?;
    assert_eq!(mounted.status, 202, "{}", mounted.text());
    Ok(())
}

#[test]
fn while_a_registry_is_out_of_reach_nobody_new_reads_what_is_private_but_for_the_grace_that_is_set()
-> Result<()> {
    let lab = Lab::new()?;
    let open = Registry::start(&lab, "open", registry::Options::default())?;
    let image = push_image(open.addr(), "team/app", "1", 11, &[1 << 20])?;
    let mut origin = closed(&lab, &open)?;
    let short = Wherry::start(&lab, "short", with_login(&lab, &origin, "access=verify verify_ttl=1s")?)?;
    let long =
        Wherry::start(&lab, "long", with_login(&lab, &origin, "access=verify verify_ttl=1s grace=1h")?)?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let right = format!("{USER}:{PASSWORD}");
    let read = |node: &Wherry| -> Result<_> {
        let name = image.reference(node.gateway()?);
        Ok(reads(&skopeo, &name, &["--tls-verify=false", "--creds", &right]))
    };
    for node in [&short, &long] {
        run(&mut read(node)?)?;
    }
    origin.stop()?;
    let mut said = String::new();
    wait_until("the word of the registry counts no more", SOON, || {
        let answer = output(&mut read(&short)?)?;
        said = String::from_utf8_lossy(&answer.stderr).into_owned();
        Ok(!answer.status.success())
    })?;
    ensure!(said.contains("503"), "{said}");
    // skopeo does not show what the gateway says of it.
    let basic = format!("Basic {}", STANDARD.encode(&right));
    let path = "/v2/team/app/manifests/1";
    let answer =
        Request::new(short.gateway()?, "GET", path).header("authorization", basic).send_and_read()?;
    ensure!(answer.text().contains("cannot be checked"), "{}", answer.text());
    run(&mut read(&long)?)?;
    let other = image.reference(long.gateway()?);
    fails(&mut reads(&skopeo, &other, &["--tls-verify=false", "--creds", "somebody:else"]))?;
    Ok(())
}

#[test]
fn a_node_with_credentials_that_are_for_members_brings_an_image_to_one_that_has_none() -> Result<()> {
    let lab = Lab::new()?;
    let open = Registry::start(&lab, "open", registry::Options::default())?;
    let image = push_image(open.addr(), "team/app", "1", 12, &[1 << 20])?;
    let origin = closed(&lab, &open)?;
    let network = Network::new(&lab)?;
    let first = network.member(&lab, "first", with_login(&lab, &origin, "access=members")?, &[])?;
    let second = network.member(&lab, "second", Options::origin(origin.host()), &[&first])?;
    let pulled = second.json(&["pull", &image.reference(origin.host())])?;
    assert_eq!(pulled["digest"], image.manifest.to_string(), "{pulled}");
    Ok(())
}

#[test]
fn other_machines_reach_a_gateway_over_tls_as_users_with_rights() -> Result<()> {
    let wire = Alone::enter()?;
    let lab = Lab::new()?;
    let address = "192.0.2.1";
    run(tool("ip", Duration::from_secs(10)).args(["addr", "add", &format!("{address}/32"), "dev", "lo"]))?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "team/app", "1", 13, &[1 << 20])?;

    let listen = format!("{address}:0");
    let said = refused(command(&lab.folder("plain")?)?.args(["up", "--gateway", &listen]), 2)?;
    ensure!(said.contains("--gateway-plain") && said.contains("plain HTTP"), "{said}");

    let folder = lab.folder("tls")?;
    Certificate::of_its_own(&folder, address)?;
    let at = |name: &str| folder.join(name).display().to_string();
    fs::write(at("users"), HTPASSWD)?;
    fs::write(at("tokens"), format!("ci:{}\n", wherry_proto::Digest::sha256(b"t0ken").hex()))?;
    let options = [
        ("--gateway", listen),
        ("--gateway-certificate", at("gateway.crt")),
        ("--gateway-key", at("key.pem")),
        ("--users", at("users")),
        ("--tokens", at("tokens")),
        ("--rights", "ci=pull+push".to_owned()),
        ("--delete", "local".to_owned()),
    ];
    let options = options
        .into_iter()
        .fold(Options::origin(origin.host()), |options, (flag, value)| options.with(flag).with(value));
    let node = Wherry::start(&lab, "node", options)?;
    let gateway = node.gateway()?;
    let name = image.reference(gateway);
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let trusting = ["--cert-dir", &folder.display().to_string()].map(str::to_owned);
    let with = |more: &[&str]| {
        let all: Vec<&str> = trusting.iter().map(String::as_str).chain(more.iter().copied()).collect();
        reads(&skopeo, &name, &all)
    };
    let said = fails(&mut with(&["--no-creds"]))?;
    ensure!(said.contains("knows its users") || said.contains("unauthorized"), "{said}");
    fails(&mut with(&["--creds", "skipper:wrong"]))?;
    run(&mut with(&["--creds", &format!("{USER}:{PASSWORD}")]))?;
    // In the clear it says nothing.
    ensure!(get(gateway, "/v2/").is_err(), "a gateway with a certificate answers in the clear");

    let push = |credentials: &[&str]| {
        let mut command = skopeo.command();
        command.args(["copy", "--src-tls-verify=false", "--dest-cert-dir", &trusting[1]]).args(credentials);
        command.arg(format!("docker://{}", image.reference(origin.host())));
        command.arg(format!("docker://{gateway}/site.wherry/team/copy:1"));
        command
    };
    let said = fails(&mut push(&["--dest-creds", &format!("{USER}:{PASSWORD}")]))?;
    ensure!(said.contains("may not push") || said.contains("denied"), "{said}");

    // A token is for scripts, since clients send one only to whom has given it to them.
    let options = [
        ("--gateway", format!("{address}:0")),
        ("--tokens", at("tokens")),
        ("--rights", "*=none".to_owned()),
        ("--rights", "ci=pull+delete".to_owned()),
    ];
    let options = options
        .into_iter()
        .fold(Options::origin(origin.host()), |options, (flag, value)| options.with(flag).with(value));
    let node = Wherry::start(&lab, "plain-node", options.with("--gateway-plain"))?;
    let asks = |method, token: &str| {
        let request = Request::new(node.gateway()?, method, "/v2/team/app/manifests/1");
        Ok::<_, anyhow::Error>(
            request.header("authorization", format!("Bearer {token}")).send_and_read()?.status,
        )
    };
    assert_eq!((asks("GET", "t0ken")?, asks("GET", "other")?), (200, 401));
    // Nobody may remove anything at this node, whatever rights there are.
    assert_eq!(asks("DELETE", "t0ken")?, 405);
    drop(wire);
    Ok(())
}
