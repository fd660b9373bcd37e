//! What is set for single registries, and when they are asked what tags mean.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::push_image;
use wherry_tests::clients::Skopeo;
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, PASSWORD, Registry, USER};

#[test]
fn any_number_of_registries_with_ports_are_named_by_clients_through_their_aliases() -> Result<()> {
    let lab = Lab::new()?;
    let registries = [
        Registry::start(&lab, "one", registry::Options::default())?,
        Registry::start(&lab, "two", registry::Options::default())?,
    ];
    let images = [
        push_image(registries[0].addr(), "team/app", "1", 1, &[1 << 20])?,
        push_image(registries[1].addr(), "team/app", "1", 2, &[1 << 20])?,
    ];
    let options =
        registries.iter().zip(["first", "second"]).fold(Options::default(), |options, (registry, alias)| {
            options.with("--origin").with(format!("{} insecure=true alias={alias}", registry.host()))
        });
    let node = Wherry::start(&lab, "node", options)?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    for (alias, image) in ["first", "second"].into_iter().zip(&images) {
        let name = format!("{}/{alias}/team/app:1", node.gateway()?);
        let given = fs::read(skopeo.pull(&name, alias)?.folder().join("manifest.json"))?;
        assert_eq!(Digest::sha256(&given), image.manifest);
        let pulled = node.json(&["pull", &format!("{alias}/team/app:1")])?;
        assert_eq!(pulled["digest"], image.manifest.to_string(), "{pulled}");
    }
    Ok(())
}

#[test]
fn a_mirror_and_a_password_in_a_file_serve_a_registry_that_is_set_in_the_configuration_file() -> Result<()> {
    let lab = Lab::new()?;
    let password = registry::Options { password: true, ..registry::Options::default() };
    let mut mirror = Registry::start(&lab, "mirror", registry::Options::default())?;
    let shared = registry::Options { shared_storage: Some(mirror.storage().to_owned()), ..password };
    let image = push_image(mirror.addr(), "team/app", "1", 3, &[1 << 20])?;
    let later = push_image(mirror.addr(), "team/app", "2", 4, &[1 << 20])?;
    let origin = Registry::start(&lab, "origin", shared)?;
    let folder = lab.folder("settings")?;
    let secret = folder.join("password");
    fs::write(&secret, format!("{PASSWORD}\n"))?;
    let file = folder.join("wherry.toml");
    let text = format!(
        "[origin.\"{}\"]\nmirror = [\"{}\"]\ninsecure = true\nuser = \"{USER}\"\npassword_file = \"{}\"\n\
         [origin.\"{}\"]\ninsecure = true\n",
        origin.host(),
        mirror.host(),
        secret.display(),
        mirror.host()
    );
    fs::write(&file, text)?;
    let mut options = Options::default();
    options.environment.push(("WHERRY_CONFIG".to_owned(), file.display().to_string()));
    let node = Wherry::start(&lab, "node", options)?;

    let first = node.json(&["pull", &image.reference(origin.host())])?;
    assert_eq!(first["digest"], image.manifest.to_string(), "{first}");
    assert_eq!(origin.accesses()?.len(), 0, "the origin was asked beside its mirror");
    mirror.stop()?;
    let second = node.json(&["pull", &later.reference(origin.host())])?;
    assert_eq!(second["digest"], later.manifest.to_string(), "{second}");
    Ok(())
}

#[test]
fn a_frozen_tag_means_what_it_meant_and_inspect_header_and_log_say_how_old_that_is() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let before = push_image(origin.addr(), "team/app", "v1", 5, &[1 << 20])?;
    let reference = before.reference(origin.host());
    let options = Options::origin(origin.host())
        .with("--tag-ttl")
        .with("0s")
        .with("--tag-policy")
        .with(format!("{}/team/*:v*=frozen", origin.host()));
    let node = Wherry::start(&lab, "node", options)?;
    node.json(&["pull", &reference])?;
    push_image(origin.addr(), "team/app", "v1", 6, &[1 << 20])?;

    let again = node.json(&["pull", "--refresh", &reference])?;
    assert_eq!(again["digest"], before.manifest.to_string(), "{again}");
    let said = again["unasked"].as_str().context("no reason")?;
    assert!(said.contains("tag policy frozen"), "{said}");

    let gateway = node.gateway()?;
    let answer = get(gateway, "/v2/team/app/manifests/v1")?;
    assert_eq!(answer.header("wherry-source"), Some("store"));
    answer.header("age").context("no age")?.parse::<u64>()?;
    let log = node.log()?;
    let line =
        log.lines().find(|line| line.contains("manifests/v1")).context("the request is not in the log")?;
    assert!(line.contains("source=\"store\"") && line.contains("age="), "{line}");
    let shown = output(node.command()?.args(["inspect", &reference]))?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("policy frozen") && shown.contains("said so"), "{shown}");

    // What is pushed under the name of what is frozen is refused, and nothing of it stays.
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let other = push_image(origin.addr(), "team/other", "1", 7, &[1 << 20])?;
    let from = format!("docker://{}", other.reference(origin.host()));
    let refused = skopeo.copy(&from, &format!("docker://{gateway}/team/app:v1"));
    let refused = format!("{:#}", refused.err().context("a frozen tag was pushed")?);
    assert!(refused.contains("frozen"), "{refused}");
    Ok(())
}

#[test]
fn status_names_registries_and_mirrors_that_are_left_alone_with_the_reason_and_until_when() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "team/app", "1", 8, &[1000])?;
    // It gives nobody anything for ten minutes.
    let busy = TcpListener::bind("127.0.0.1:0")?;
    let busy_host = busy.local_addr()?.to_string();
    std::thread::spawn(move || {
        for mut stream in busy.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let answer = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let options = Options::default()
        .with("--origin")
        .with(format!("{} insecure=true mirror=127.0.0.1:1/hub", origin.host()))
        .with("--insecure")
        .with(&busy_host);
    let node = Wherry::start(&lab, "node", options)?;
    ensure!(node.json(&["status"])?["left_alone"] == serde_json::json!([]));
    node.json(&["pull", &image.reference(origin.host())])?;
    node.fails(&["pull", &format!("{busy_host}/team/app:1")])?;

    let status = node.json(&["status"])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let all = status["left_alone"].as_array().context("no list")?;
    let of = |registry: &str| all.iter().find(|it| it["registry"] == registry).context(status.to_string());
    let (limited, mirror) = (of(&busy_host)?, of("127.0.0.1:1/hub")?);
    ensure!(all.len() == 2, "{status}");
    for (it, of, why, at_least, at_most) in [
        (limited, serde_json::Value::Null, "too often", 500, 600),
        (mirror, origin.host().into(), "cannot be reached", 1, 30),
    ] {
        ensure!(it["mirror_of"] == of && it["why"].as_str().is_some_and(|it| it.contains(why)), "{it}");
        let left = it["until"].as_u64().context("no time")?.saturating_sub(now);
        ensure!((at_least..=at_most).contains(&left), "{left} s: {it}");
    }
    let shown = node.run(&["status"])?;
    let line = |text: &str| shown.lines().any(|line| line.starts_with("left alone") && line.contains(text));
    ensure!(line(&format!("{busy_host} for ")) && line("127.0.0.1:1/hub, a mirror of "), "{shown}");
    Ok(())
}
