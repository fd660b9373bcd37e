//! `wherry setup`: what it writes makes real runtimes use the gateway, and what an administrator wrote stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::clients::{Containerd, Docker, Podman};
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::process::run;

/// A system without any configuration, and a node that runs beside it.
struct Site {
    lab: Lab,
    node: Wherry,
    root: PathBuf,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let root = lab.folder("system")?;
    Ok(Site { lab, node, root })
}

impl Site {
    fn setup(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = command(self.lab.path())?;
        command.arg("setup").args(arguments).arg("--root").arg(&self.root);
        command.arg("--gateway").arg(self.node.gateway()?.to_string());
        Ok(command)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(fs::write(path, text)?)
    }

    /// Everything that is there, by path.
    fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) -> Result<()> {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => walk(&path, found)?,
                    false => found.push((path.clone(), fs::read_to_string(&path)?)),
                }
            }
            found.sort();
            Ok(())
        }
        let mut found = Vec::new();
        walk(&self.root, &mut found)?;
        Ok(found)
    }

    /// The image, pushed to the site under the name of a registry that nobody reaches.
    fn pushed(&self, registry: &str, seed: u64) -> Result<Image> {
        push_image(self.node.gateway()?, &format!("{registry}/lab/app"), "1", seed, &[100_000])
    }
}

#[test]
fn a_dry_run_shows_the_change_and_makes_none_and_an_undo_leaves_what_was_there() -> Result<()> {
    let site = site()?;
    site.write("/etc/docker/daemon.json", "{\n    \"log-level\": \"warn\",\n    \"ipv6\": false\n}\n")?;
    site.write("/etc/containerd/config.toml", "# ours\nversion = 2\n\n[debug]\n  level = \"warn\"\n")?;
    site.write("/etc/containers/registries.conf.d/10-ours.conf", "[[registry]]\nlocation = \"quay.io\"\n")?;
    let before = site.files()?;
    for runtime in ["docker", "containerd", "podman", "crio", "k3s"] {
        let said = run(&mut site.setup(&[runtime, "--dry-run"])?)?;
        ensure!(said.contains("+ ") && said.contains(&site.node.gateway()?.to_string()), "{runtime}: {said}");
        ensure!(site.files()? == before, "a dry run of {runtime} has changed something");
        run(&mut site.setup(&[runtime])?)?;
        let after = site.files()?;
        ensure!(after != before, "{runtime} was not set up");
        for (path, text) in &before {
            let now = fs::read_to_string(path)?;
            let lines: Vec<&str> = now.lines().map(|line| line.trim_end_matches(',')).collect();
            ensure!(
                text.lines().all(|line| lines.contains(&line.trim_end_matches(','))),
                "{runtime}: a line of {} is lost in:\n{now}",
                path.display()
            );
        }
        let again = run(&mut site.setup(&[runtime])?)?;
        ensure!(again.contains("nothing to change") && site.files()? == after, "{runtime}: {again}");
        run(&mut site.setup(&[runtime, "--undo"])?)?;
        ensure!(site.files()? == before, "an undo of {runtime} has left {:?}", site.files()?);
    }
    Ok(())
}

#[test]
fn a_file_that_is_somebody_elses_is_refused_with_what_to_put_into_it() -> Result<()> {
    let site = site()?;
    site.write("/etc/rancher/k3s/registries.yaml", "mirrors:\n  docker.io: {}\n")?;
    site.write("/etc/containers/registries.conf.d/50-wherry.conf", "# by hand\n")?;
    site.write("/etc/containerd/certs.d/_default/hosts.toml", "server = \"https://mirror.example\"\n")?;
    site.write("/etc/docker/daemon.json", "[]")?;
    let before = site.files()?;
    for (runtime, says) in [
        ("k3s", "mirrors:"),
        ("podman", "by hand"),
        ("containerd", "add the gateway"),
        ("docker", "no JSON object"),
    ] {
        let said = refused(&mut site.setup(&[runtime])?, 1)?;
        ensure!(said.contains(says), "{runtime}: {said}");
        ensure!(site.files()? == before, "{runtime}");
    }
    Ok(())
}

#[test]
fn docker_that_was_set_up_gets_images_of_docker_io_through_the_gateway() -> Result<()> {
    let (site, images) = (site()?, Images::get()?);
    let origin = images.origin(&site.lab, "origin")?;
    let node = Wherry::start(&site.lab, "with-origin", Options::origin(origin.host()))?;
    let mut setup = command(site.lab.path())?;
    setup.args(["setup", "docker", "--json", "--root"]).arg(&site.root);
    let said = run(setup.arg("--gateway").arg(node.gateway()?.to_string()))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(said["written"] == json!(true) && said["answers"] == json!(true), "{said}");
    let config = site.path("/etc/docker/daemon.json");
    let docker = Docker::start_with(&site.lab, "docker", &config)?;
    docker.pull("teaching:1")?;
    let (id, _) = docker.digests("teaching:1")?;
    ensure!(id == images.teaching.config.digest.to_string(), "{id}");
    Ok(())
}

#[test]
fn containerd_and_podman_that_were_set_up_get_images_of_any_registry_through_the_gateway() -> Result<()> {
    let site = site()?;
    let image = site.pushed("quay.io", 75)?;
    run(&mut site.setup(&["containerd"])?)?;
    let config = site.path("/etc/containerd/config.toml");
    let dumped = run(Command::new("containerd").arg("--config").arg(&config).args(["config", "dump"]))?;
    ensure!(dumped.contains("config_path = \"/etc/containerd/certs.d\""), "{dumped}");
    let containerd = Containerd::start(&site.lab, "containerd")?;
    let mut pull = containerd.ctr();
    pull.args(["content", "fetch", "--hosts-dir"]).arg(site.path("/etc/containerd/certs.d"));
    run(pull.arg("quay.io/lab/app:1"))?;
    ensure!(containerd.digest("quay.io/lab/app:1")? == image.manifest);

    run(&mut site.setup(&["podman", "--registry", "quay.io"])?)?;
    let podman = Podman::new(&site.lab, "podman")?;
    let mut pull = podman.command();
    pull.env("CONTAINERS_REGISTRIES_CONF", site.path("/etc/containers/registries.conf.d/50-wherry.conf"));
    // It cannot be unpacked, being noise: that all of it came is seen in what podman says of it.
    let mut copied = pull.args(["manifest", "inspect", "quay.io/lab/app:1"]).output()?;
    if !copied.status.success() {
        copied.stdout.extend(&copied.stderr);
    }
    let said = String::from_utf8_lossy(&copied.stdout);
    ensure!(said.contains(&image.layers[0].digest.to_string()), "{said}");
    Ok(())
}

#[test]
fn a_gateway_that_does_not_answer_is_said_after_everything_is_written() -> Result<()> {
    let site = site()?;
    let mut setup = command(site.lab.path())?;
    setup.args(["setup", "docker", "--gateway", "127.0.0.1:1", "--root"]).arg(&site.root);
    let said = refused(&mut setup, 1)?;
    ensure!(said.contains("does not answer") && said.contains("wherry up"), "{said}");
    ensure!(fs::read_to_string(site.path("/etc/docker/daemon.json"))?.contains("http://127.0.0.1:1"));
    Ok(())
}

#[test]
fn a_system_without_any_configuration_has_none_after_an_undo_and_can_be_set_up_again() -> Result<()> {
    let site = site()?;
    for runtime in ["docker", "containerd", "podman", "crio", "k3s"] {
        for _ in 0..2 {
            run(&mut site.setup(&[runtime])?)?;
            ensure!(!site.files()?.is_empty(), "{runtime}");
            run(&mut site.setup(&[runtime, "--undo"])?)?;
            ensure!(site.files()?.is_empty(), "{runtime} leaves {:?}", site.files()?);
        }
        ensure!(run(&mut site.setup(&[runtime, "--undo"])?)?.contains("nothing to undo"), "{runtime}");
    }
    Ok(())
}

#[test]
fn a_configuration_that_is_a_link_stays_one() -> Result<()> {
    let site = site()?;
    let before = "{\n  \"debug\": true\n}\n";
    site.write("/etc/docker/real.json", before)?;
    let link = site.path("/etc/docker/daemon.json");
    std::os::unix::fs::symlink(site.path("/etc/docker/real.json"), &link)?;
    run(&mut site.setup(&["docker"])?)?;
    ensure!(
        fs::symlink_metadata(&link)?.is_symlink() && fs::read_to_string(&link)?.contains("registry-mirrors")
    );
    run(&mut site.setup(&["docker", "--undo"])?)?;
    ensure!(fs::symlink_metadata(&link)?.is_symlink() && fs::read_to_string(&link)? == before);
    Ok(())
}
