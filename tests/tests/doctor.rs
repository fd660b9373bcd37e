//! `wherry doctor`: what it says of real runtimes is so, and what keeps a pull from going through wherry it finds.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wherry_tests::certificates::Certificate;
use wherry_tests::clients::{Containerd, Docker, Podman, Skopeo};
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::process::{describe, output, run};
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

/// The image that is at no registry that anybody reaches, and at the site.
const QUAY: &str = "quay.io/lab/teaching:1";

/// A system without any configuration, a node that runs beside it, and the registry that names without one mean.
struct Site {
    lab: Lab,
    origin: Registry,
    node: Wherry,
    root: PathBuf,
    images: Images,
    docker_host: Option<String>,
}

fn site() -> Result<Site> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    let root = lab.folder("system")?;
    Ok(Site { lab, origin, node, root, images, docker_host: None })
}

/// What doctor said.
#[derive(Debug)]
struct Told {
    checks: Vec<Value>,
}

impl Told {
    fn of(&self, verdict: &str) -> Vec<(&str, &str)> {
        let all = self.checks.iter().filter(|check| check["verdict"] == verdict);
        all.filter_map(|check| Some((check["about"].as_str()?, check["says"].as_str()?))).collect()
    }

    /// Nothing is wrong, and this is said to be right.
    fn is_fine(&self, says: &[&str]) -> Result<()> {
        ensure!(self.of("wrong").is_empty(), "{self:#?}");
        for text in says {
            ensure!(self.of("ok").iter().any(|(_, says)| says.contains(text)), "{text}: {self:#?}");
        }
        Ok(())
    }

    /// Exactly this is wrong.
    fn is_wrong(&self, about: &str, says: &str) -> Result<&str> {
        let wrong = self.of("wrong");
        ensure!(wrong.len() == 1 && wrong[0].0 == about && wrong[0].1.contains(says), "{says}: {self:#?}");
        let check = self.checks.iter().find(|check| check["verdict"] == "wrong");
        check.and_then(|check| check["hint"].as_str()).context("nothing to do about it")
    }
}

impl Site {
    fn gateway(&self) -> Result<SocketAddr> {
        self.node.gateway()
    }

    fn setup(&self, arguments: &[&str]) -> Result<()> {
        let mut setup = command(self.lab.path())?;
        setup.arg("setup").args(arguments).arg("--root").arg(&self.root);
        run(setup.arg("--gateway").arg(self.gateway()?.to_string())).map(drop)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, text)?;
        Ok(path)
    }

    /// What doctor says, with an exit status that fits.
    fn doctor(&self, arguments: &[&str]) -> Result<Told> {
        let mut doctor = self.node.command()?;
        doctor.arg("doctor").args(arguments).arg("--json").arg("--root").arg(&self.root);
        if let Some(host) = &self.docker_host {
            doctor.env("DOCKER_HOST", host);
        }
        let answer = output(&mut doctor)?;
        let said = describe(&doctor, &answer);
        let told: Value = serde_json::from_slice(&answer.stdout).context(said.clone())?;
        let told = Told { checks: told["checks"].as_array().context(said.clone())?.clone() };
        let status = i32::from(!told.of("wrong").is_empty());
        ensure!(answer.status.code() == Some(status), "should have ended with {status}: {said}");
        Ok(told)
    }

    /// Gives the site the teaching image under the name of a registry that nobody reaches.
    fn push(&self) -> Result<()> {
        let from = format!("docker://{}/library/teaching:1", self.origin.host());
        Skopeo::new(&self.lab, "skopeo")?.copy(&from, &format!("docker://{}/{QUAY}", self.gateway()?))
    }

    fn config(&self) -> String {
        self.images.teaching.config.digest.to_string()
    }
}

#[test]
fn docker_is_followed_from_no_configuration_to_a_pull_through_the_gateway() -> Result<()> {
    let mut site = site()?;
    site.push()?;
    let config = site.write("/etc/docker/daemon.json", "{}\n")?;
    let mut docker = Docker::start_with(&site.lab, "docker", &config)?;
    site.docker_host = Some(docker.host());
    let todo = site.doctor(&["docker"])?;
    let todo = todo.is_wrong("docker", "no registry-mirrors")?;
    ensure!(todo.contains("wherry setup docker") && todo.contains(&site.gateway()?.to_string()), "{todo}");

    site.setup(&["docker"])?;
    let todo = site.doctor(&["docker", "teaching:1"])?;
    ensure!(todo.is_wrong("docker", "docker runs without it")?.contains("reload docker"));

    docker.reload()?;
    wait_until("docker has read its configuration", Duration::from_secs(20), || {
        Ok(site.doctor(&["docker"])?.of("wrong").is_empty())
    })?;
    let told = site.doctor(&["docker", "teaching:1"])?;
    told.is_fine(&["among its registry-mirrors", "docker runs with it", "the gateway has teaching:1"])?;
    // docker's own store says of no image at which registry it is.
    ensure!(told.of("note").iter().any(|(_, says)| says.contains(&site.origin.host())), "{told:#?}");
    docker.pull("teaching:1")?;
    ensure!(docker.digests("teaching:1")?.0 == site.config());

    let todo = site.doctor(&["docker", QUAY])?;
    let by_name = format!("{}/{QUAY}", site.gateway()?);
    ensure!(todo.is_wrong("docker", "for images of docker.io alone")?.contains(&by_name), "{todo:#?}");
    site.doctor(&["docker", &by_name])?.is_fine(&["the gateway has", "the node has all of quay.io"])?;
    docker.pull(&by_name)?;
    ensure!(docker.digests(&by_name)?.0 == site.config());
    Ok(())
}

#[test]
fn containerd_is_followed_from_no_configuration_to_a_pull_through_the_gateway() -> Result<()> {
    let site = site()?;
    site.push()?;
    let root = site.lab.folder("containerd")?;
    let config = site.write("/etc/containerd/config.toml", &Containerd::settings(&root))?;
    let containerd = Containerd::start_with(&site.lab, "containerd", &root, &config)?;
    let told = site.doctor(&["containerd"])?;
    ensure!(told.is_wrong("containerd", "config_path")?.contains("wherry setup containerd"));

    site.setup(&["containerd"])?;
    let told = site.doctor(&["containerd", QUAY])?;
    ensure!(told.is_wrong("containerd", "was written after it began")?.contains("restart containerd"));
    drop(containerd);
    site.doctor(&["containerd"])?.is_fine(&["has the gateway first"])?;
    let containerd = Containerd::start_with(&site.lab, "containerd-2", &root, &config)?;
    let told = site.doctor(&["containerd", QUAY])?;
    told.is_fine(&["has the gateway first", "containerd runs", "the gateway has quay.io/lab/teaching:1"])?;
    let certs = site.path("/etc/containerd/certs.d");
    containerd.pull_by(&certs, QUAY)?;
    ensure!(containerd.digest(QUAY)? == site.images.teaching.manifest);

    site.write("/etc/containerd/certs.d/quay.io/hosts.toml", "server = \"https://quay.io\"\n")?;
    site.doctor(&["containerd", QUAY])?
        .is_wrong("containerd", "quay.io/hosts.toml does not have the gateway")?;
    ensure!(
        site.doctor(&["containerd"])?.of("note").iter().any(|(_, says)| says.contains("go their own way"))
    );
    Ok(())
}

#[test]
fn podman_is_followed_from_no_configuration_to_a_pull_through_the_gateway() -> Result<()> {
    let site = site()?;
    site.push()?;
    let told = site.doctor(&["podman", QUAY])?;
    ensure!(
        told.is_wrong("podman", "no file says that quay.io has a mirror")?.contains("wherry setup podman")
    );
    site.setup(&["podman"])?;
    site.doctor(&["podman"])?.is_fine(&["quay.io"])?;
    site.doctor(&["podman", QUAY])?
        .is_fine(&["a mirror of quay.io", "the gateway has quay.io/lab/teaching:1"])?;
    let podman = Podman::new(&site.lab, "podman")?;
    let file = site.path("/etc/containers/registries.conf.d/50-wherry.conf");
    let mut pull = podman.command();
    pull.env("CONTAINERS_REGISTRIES_CONF", &file).args(["pull", "--quiet", QUAY]);
    let id = run(&mut pull)?;
    ensure!(site.config().ends_with(id.trim()), "{id}");

    let other = site
        .write("/etc/containers/registries.conf.d/90-ours.conf", "[[registry]]\nlocation = \"quay.io\"\n")?;
    site.doctor(&["podman"])?
        .is_wrong("podman", "90-ours.conf says of quay.io what takes the gateway away")?;
    site.doctor(&["podman", QUAY])?.is_wrong("podman", "without the gateway")?;
    fs::write(&other, "[[registry]]\nlocation = \"quay.io/lab\"\nblocked = true\n")?;
    site.doctor(&["podman", QUAY])?.is_wrong("podman", "blocks quay.io/lab")?;
    Ok(())
}

#[test]
fn a_gateway_that_does_not_answer_or_is_something_else_is_told_apart() -> Result<()> {
    let mut site = site()?;
    site.setup(&["podman"])?;
    let gateway = site.gateway()?.to_string();
    let registry = Registry::start(&site.lab, "foreign", registry::Options::default())?;
    let foreign = registry.host();
    let point = |at: &str| -> Result<Told> {
        run(command(site.lab.path())?.args(["setup", "podman", "--undo", "--root"]).arg(&site.root))?;
        let mut setup = command(site.lab.path())?;
        setup.args(["setup", "podman", "--gateway", at, "--root"]).arg(&site.root);
        let said = refused(&mut setup, 1)?;
        ensure!(said.contains("does not answer"), "{said}");
        site.doctor(&["podman", "--gateway", at])
    };
    ensure!(point(&foreign)?.is_wrong("gateway", "another registry")?.contains("wherry up --gateway"));

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"SSH-2.0-lab\r\n");
        }
    });
    point(&address)?.is_wrong("gateway", "SSH-2.0-lab")?;

    site.node.stop()?;
    let told = site.doctor(&["podman", "--gateway", &gateway])?;
    let wrong = told.of("wrong");
    let has = |about: &str, text: &str| wrong.iter().any(|(it, says)| *it == about && says.contains(text));
    ensure!(has("node", "no node is running here") && has("gateway", "nothing answers"), "{told:#?}");
    Ok(())
}

#[test]
fn a_gateway_that_speaks_tls_is_wrong_where_plain_http_is_written() -> Result<()> {
    let lab = Lab::new()?;
    let certificate = Certificate::of_its_own(&lab.folder("tls")?, "127.0.0.1")?;
    let options = Options::default()
        .with("--gateway-certificate")
        .with(certificate.certificate.to_str().context("a name")?);
    let node = Wherry::start(
        &lab,
        "node",
        options.with("--gateway-key").with(certificate.key.to_str().context("a name")?),
    )?;
    let root = lab.folder("system")?;
    let mut setup = command(lab.path())?;
    setup.args(["setup", "containerd", "--root"]).arg(&root);
    let said = refused(setup.arg("--gateway").arg(format!("http://{}", node.gateway()?)), 1)?;
    ensure!(said.contains("TLS"), "{said}");
    let doctor = || -> Result<(Option<i32>, String)> {
        let answer = output(node.command()?.args(["doctor", "containerd", "--root"]).arg(&root))?;
        Ok((answer.status.code(), String::from_utf8_lossy(&answer.stdout).into_owned()))
    };
    let (status, said) = doctor()?;
    ensure!(status == Some(1) && said.contains("answers as wherry, over TLS"), "{said}");
    ensure!(
        said.contains("another scheme") && said.contains(&format!("https://{}", node.gateway()?)),
        "{said}"
    );
    let hosts = root.join("etc/containerd/certs.d/_default/hosts.toml");
    fs::write(&hosts, fs::read_to_string(&hosts)?.replace("http://", "https://"))?;
    let (status, said) = doctor()?;
    ensure!(status == Some(1) && said.contains("does not trust") && said.contains("--ca FILE"), "{said}");
    let mut setup = command(lab.path())?;
    setup.args(["setup", "containerd", "--root"]).arg(&root).arg("--ca").arg(&certificate.authority);
    run(setup.arg("--gateway").arg(format!("https://{}", node.gateway()?)))?;
    let (status, said) = doctor()?;
    ensure!(status == Some(0) && said.contains("has the gateway first"), "{said}");
    Ok(())
}

#[test]
fn what_the_gateway_refuses_is_told_in_its_own_words() -> Result<()> {
    let site = site()?;
    let image = "registry.invalid/lab/app:1";
    site.setup(&["podman", "--registry", "registry.invalid"])?;
    site.doctor(&["podman", image])?.is_wrong("podman", "503 registry.invalid/lab/app:1 cannot be had")?;
    site.node.run(&["wan", "pause"])?;
    let told = site.doctor(&["podman", image])?;
    let says = |verdict: &str, about: &str| {
        told.of(verdict).iter().any(|(it, says)| *it == about && says.contains("wherry wan resume"))
    };
    ensure!(says("note", "node") && says("wrong", "image"), "{told:#?}");
    Ok(())
}

#[test]
fn words_that_can_not_be_meant_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    for arguments in [&["debian", "debian"][..], &["dockerr", "debian"], &["Not/A/Name"], &["docker", "a b"]]
    {
        let said = refused(command(lab.path())?.arg("doctor").args(arguments), 2)?;
        ensure!(!said.is_empty(), "{arguments:?}");
    }
    Ok(())
}
