//! `wherry setup` for a gateway that speaks TLS: real runtimes pull through it, trusting what they are given and no more.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::Value;
use wherry_tests::certificates::Certificate;
use wherry_tests::clients::{Containerd, Docker, Podman, Skopeo};
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::process::{describe, output, run, tool};
use wherry_tests::registry::Registry;
use wherry_tests::system::command_seeing;

/// An address that is not loopback, where docker would take any certificate.
const ADDRESS: &str = "192.0.2.1";

/// A system without any configuration, and a node whose gateway speaks TLS.
struct Site {
    node: Wherry,
    root: PathBuf,
    certificate: Certificate,
    images: Images,
    origin: Registry,
    lab: Lab,
    _wire: Alone,
}

fn site() -> Result<Site> {
    let wire = Alone::enter()?;
    run(tool("ip", Duration::from_secs(10)).args(["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]))?;
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let certificate = Certificate::by_an_authority(&lab.folder("tls")?, ADDRESS)?;
    let flags = [
        ("--gateway", format!("{ADDRESS}:0")),
        ("--gateway-certificate", certificate.certificate.display().to_string()),
        ("--gateway-key", certificate.key.display().to_string()),
        ("--push", "anyone".to_owned()),
    ];
    let options = Options::origin(origin.host());
    let options = flags.into_iter().fold(options, |options, (flag, value)| options.with(flag).with(value));
    let node = Wherry::start(&lab, "node", options)?;
    let root = lab.folder("system")?;
    Ok(Site { node, root, certificate, images, origin, lab, _wire: wire })
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

impl Site {
    fn url(&self) -> Result<String> {
        Ok(format!("https://{}", self.node.gateway()?))
    }

    fn setup(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = command(self.lab.path())?;
        command.arg("setup").args(arguments).arg("--root").arg(&self.root).arg("--gateway").arg(self.url()?);
        Ok(command)
    }

    /// By an administrator who keeps new files to himself.
    fn trusting(&self, arguments: &[&str]) -> Result<String> {
        let before = umask(Mode::from_raw_mode(0o077));
        let said = run(self.setup(arguments)?.arg("--ca").arg(&self.certificate.authority));
        umask(before);
        said
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Gives the site the teaching image as its own.
    fn push(&self, name: &str) -> Result<()> {
        let mut copy = Skopeo::new(&self.lab, "skopeo")?.command();
        copy.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-cert-dir"]);
        copy.arg(&self.certificate.trusted);
        copy.arg(format!("docker://{}/library/teaching:1", self.origin.host()));
        run(copy.arg(format!("docker://{}/{name}", self.node.gateway()?))).map(drop)
    }

    /// What doctor says is wrong.
    fn wrong(&self, runtime: &str) -> Result<Vec<String>> {
        let mut doctor = self.node.command()?;
        let answer = output(doctor.args(["doctor", runtime, "--json", "--root"]).arg(&self.root))?;
        let said = describe(&doctor, &answer);
        let told: Value = serde_json::from_slice(&answer.stdout).context(said.clone())?;
        let wrong = told["checks"].as_array().context(said)?.iter().filter(|it| it["verdict"] == "wrong");
        Ok(wrong.map(|it| format!("{}: {}; {}", it["about"], it["says"], it["hint"])).collect())
    }
}

#[test]
fn a_gateway_that_speaks_tls_is_set_up_for_each_runtime_with_its_authority_and_undone() -> Result<()> {
    let site = site()?;
    let host = site.node.gateway()?;
    for (runtime, certs) in [
        ("docker", format!("/etc/docker/certs.d/{host}")),
        ("containerd", "/etc/containerd/certs.d/_default".to_owned()),
        ("podman", format!("/etc/containers/certs.d/{host}")),
        ("crio", format!("/etc/containers/certs.d/{host}")),
        ("k3s", "/etc/rancher/k3s".to_owned()),
    ] {
        // containerd takes what ends in .crt for authorities of every registry where its hosts.toml is missing.
        let name = if runtime == "containerd" { "wherry-ca.pem" } else { "wherry.crt" };
        let authority = site.path(&format!("{certs}/{name}"));
        let shown = run(site.setup(&[runtime, "--dry-run"])?.arg("--ca").arg(&site.certificate.authority))?;
        ensure!(shown.contains("BEGIN CERTIFICATE") && shown.contains(name), "{runtime}: {shown}");
        ensure!(!authority.exists(), "a dry run has changed something");

        let said = refused(&mut site.setup(&[runtime])?, 1)?;
        ensure!(
            said.contains("no authority that is known") && said.contains("--ca FILE"),
            "{runtime}: {said}"
        );
        site.trusting(&[runtime])?;
        let text = fs::read_to_string(&authority)?;
        ensure!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE KEY"), "{runtime}: {text}");
        // Once given, it need not be given again, nor need the scheme.
        let again = run(&mut site.setup(&[runtime])?)?;
        ensure!(again.contains("nothing to change"), "{runtime}: {again}");
        let mut bare = command(site.lab.path())?;
        bare.args(["setup", runtime, "--root"]).arg(&site.root).args(["--gateway", &host.to_string()]);
        let again = run(&mut bare)?;
        ensure!(again.contains("nothing to change"), "{runtime}: {again}");
        // Rootless podman and others have to read it.
        ensure!(mode(&authority)? == 0o644 && mode(&site.path(&certs))? == 0o755, "{runtime}: {authority:?}");
        if runtime != "crio" {
            // CRI-O and k3s do not run here.
            let wrong = site.wrong(runtime)?;
            ensure!(wrong.is_empty(), "{runtime}: {wrong:?}");
        }
        run(&mut site.setup(&[runtime, "--undo"])?)?;
        ensure!(!authority.exists() && fs::read_dir(site.path(&certs)).is_err() == (runtime != "k3s"));
        let nothing = run(&mut site.setup(&[runtime, "--undo"])?)?;
        ensure!(nothing.contains("nothing to undo"), "{runtime}: {nothing}");
    }
    Ok(())
}

#[test]
fn docker_containerd_and_podman_pull_through_a_gateway_that_speaks_tls() -> Result<()> {
    let site = site()?;
    let id = site.images.teaching.config.digest.to_string();
    let image = "site.wherry/lab/teaching:1";
    site.push(image)?;
    let registry = ["--registry", "site.wherry"];
    let refused = |runtime| refused(site.setup(&[runtime])?.args(registry), 1).map(drop);
    refused("docker")?;
    let docker = Docker::start_seeing(&site.lab, "docker", &site.root, ADDRESS)?;
    ensure!(docker.pull("teaching:1").is_err(), "docker trusts whoever it is");
    let wrong = site.wrong("docker")?;
    ensure!(wrong.iter().any(|it| it.contains("does not trust") && it.contains("--ca FILE")), "{wrong:?}");
    site.trusting(&["docker"])?;
    docker.pull("teaching:1")?;
    ensure!(docker.digests("teaching:1")?.0 == id);
    let by_name = format!("{}/{image}", site.node.gateway()?);
    docker.pull(&by_name)?;
    ensure!(docker.digests(&by_name)?.0 == id);

    refused("containerd")?;
    let containerd = Containerd::start(&site.lab, "containerd")?;
    let certs = site.path("/etc/containerd/certs.d");
    ensure!(containerd.pull_by(&certs, image).is_err(), "containerd trusts whoever it is");
    let wrong = site.wrong("containerd")?;
    ensure!(wrong.len() == 1 && wrong[0].contains("does not trust"), "{wrong:?}");
    site.trusting(&["containerd"])?;
    containerd.pull_by(&certs, image)?;
    ensure!(containerd.digest(image)? == site.images.teaching.manifest);

    // podman looks where docker does, too.
    run(&mut site.setup(&["docker", "--undo"])?)?;
    refused("podman")?;
    fs::copy("/etc/containers/policy.json", site.path("/etc/containers/policy.json"))?;
    let podman = Podman::new(&site.lab, "podman")?;
    let pull = || -> Result<String> {
        let mut pull = podman.command();
        pull.args(["pull", "--quiet", image]);
        run(&mut command_seeing(&site.root, &["/etc/containers"], &pull)?)
    };
    ensure!(pull().is_err(), "podman trusts whoever it is");
    let wrong = site.wrong("podman")?;
    ensure!(wrong.iter().any(|it| it.contains("does not trust")), "{wrong:?}");
    site.trusting(&["podman", registry[0], registry[1]])?;
    ensure!(id.ends_with(pull()?.trim()));
    Ok(())
}

#[test]
fn a_name_that_is_not_in_the_certificate_is_said_and_a_switch_to_tls_leaves_nothing_of_plain_http()
-> Result<()> {
    let site = site()?;
    let other = "192.0.2.2";
    run(tool("ip", Duration::from_secs(10)).args(["addr", "add", &format!("{other}/32"), "dev", "lo"]))?;
    let at = |gateway: &str, more: &[&str]| -> Result<Command> {
        let mut setup = command(site.lab.path())?;
        setup.args(["setup", "docker", "--root"]).arg(&site.root).args(["--gateway", gateway]).args(more);
        Ok(setup)
    };
    let host = site.node.gateway()?.to_string();
    let said = refused(&mut at(&format!("http://{host}"), &[])?, 1)?;
    ensure!(said.contains("speaks TLS") && said.contains(&format!("--gateway https://{host}")), "{said}");
    let ca = site.certificate.authority.display().to_string();
    let said = refused(&mut at(&format!("http://{host}"), &["--ca", &ca])?, 2)?;
    ensure!(said.contains("--gateway https://"), "{said}");
    let options = [
        ("--gateway", format!("{other}:0")),
        ("--gateway-certificate", site.certificate.certificate.display().to_string()),
        ("--gateway-key", site.certificate.key.display().to_string()),
    ];
    let options =
        options.into_iter().fold(Options::default(), |options, (flag, value)| options.with(flag).with(value));
    let misnamed = Wherry::start(&site.lab, "misnamed", options)?;
    let url = format!("https://{}", misnamed.gateway()?);
    let said = refused(&mut at(&url, &["--ca", &ca])?, 1)?;
    ensure!(said.contains("is for another name") && said.contains("https://NAME:PORT"), "{said}");
    ensure!(said.contains(ADDRESS), "{said}");
    run(&mut at(&url, &["--undo"])?)?;
    run(&mut at(&format!("https://{host}"), &["--ca", &ca])?)?;
    let daemon = fs::read_to_string(site.path("/etc/docker/daemon.json"))?;
    ensure!(daemon.contains("https://") && !daemon.contains("http://"), "{daemon}");
    // The settings of the node say it too.
    let mut bare = command(site.lab.path())?;
    bare.args(["setup", "docker", "--root"]).arg(&site.root).env("WHERRY_GATEWAY", &host);
    bare.env("WHERRY_GATEWAY_CERTIFICATE", &site.certificate.certificate);
    let said = run(bare.env("WHERRY_GATEWAY_KEY", &site.certificate.key))?;
    ensure!(said.contains("nothing to change"), "{said}");
    Ok(())
}
