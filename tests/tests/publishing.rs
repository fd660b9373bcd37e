//! Images of the site that are sent on to registries.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::clients::{Podman, Skopeo};
use wherry_tests::http::Request;
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, PASSWORD, Registry, USER};

/// A link to a registry that fails once, when so many bytes have gone there.
struct Wire {
    addr: SocketAddr,
    carried: Arc<AtomicU64>,
    was_cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(registry: SocketAddr, fails_after: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let (carried, was_cut) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, cut) = (carried.clone(), was_cut.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(registry) else { continue };
                let (count, cut) = (count.clone(), cut.clone());
                let back = (server.try_clone(), client.try_clone());
                std::thread::spawn(move || {
                    let (Ok(mut server), Ok(mut client)) = back else { return };
                    let _ = std::io::copy(&mut server, &mut client);
                });
                std::thread::spawn(move || {
                    let (mut client, mut server) = (client, server);
                    let mut piece = [0; 64 << 10];
                    while let Ok(length @ 1..) = client.read(&mut piece) {
                        let total = count.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
                        let fails = total >= fails_after && !cut.swap(true, Ordering::Relaxed);
                        if fails || server.write_all(&piece[..length]).is_err() {
                            break;
                        }
                    }
                    for end in [&client, &server] {
                        let _ = end.shutdown(std::net::Shutdown::Both);
                    }
                });
            }
        });
        Ok(Self { addr, carried, was_cut })
    }
}

fn reaches(registry: &str) -> String {
    format!("{registry} insecure=true")
}

#[test]
fn what_was_pushed_to_the_site_is_published_to_a_registry_that_wants_a_login_and_runs_from_there()
-> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let options = registry::Options { password: true, ..registry::Options::default() };
    let registry = Registry::start(&lab, "registry", options)?;
    let secret = lab.file("password", format!("{PASSWORD}\n"))?;
    let login = format!("{} user={USER} password_file={}", reaches(&registry.host()), secret.display());
    let node = Wherry::start(&lab, "node", Options::default().with("--origin").with(login))?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let from = format!("docker://{}", images.teaching.reference(origin.host()));
    skopeo.copy(&from, &format!("docker://{}/site.wherry/team/app:1", node.gateway()?))?;

    let to = format!("{}/team/app:1", registry.host());
    let first = node.json(&["publish", "site.wherry/team/app:1", &to])?;
    ensure!(first["sent"].as_u64().context("no sent")? > 0 && first["present"] == 0, "{first}");
    // It is there now, so that nothing is sent again.
    let again = node.json(&["publish", "site.wherry/team/app:1", &to])?;
    ensure!(again["sent"] == 0 && again["present"] == first["sent"], "{again}");

    let podman = Podman::new(&lab, "podman")?;
    let credentials = format!("{USER}:{PASSWORD}");
    let mut pull = podman.command();
    wherry_tests::process::run(pull.args(["pull", "--tls-verify=false", "--creds", &credentials, &to]))?;
    ensure!(podman.run(&to, &[])?.trim() == GREETING);
    Ok(())
}

#[test]
fn an_image_that_was_pushed_under_a_registrys_name_is_published_under_it_with_all_its_platforms() -> Result<()>
{
    let lab = Lab::new()?;
    let registry = Registry::start(&lab, "registry", registry::Options::default())?;
    let options =
        Options::default().with("--origin").with(format!("{} alias=lab", reaches(&registry.host())));
    let node = Wherry::start(&lab, "node", options)?;
    let gateway = node.gateway()?;
    let one = push_image(gateway, "lab/team/app", "amd64", 1, &[1 << 20])?;
    let two = push_image(gateway, "lab/team/app", "arm64", 2, &[2 << 20])?;
    let entry = |image: &Image, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.manifest.to_string(),
            "size": image.manifest_bytes.len(), "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entries = [entry(&one, "amd64"), entry(&two, "arm64")];
    let index =
        serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }).to_string();
    let put = Request::new(gateway, "PUT", "/v2/lab/team/app/manifests/1").header("Content-Type", media_type);
    let put = put.body(index.len() as u64, &mut index.as_bytes()).send_and_read()?;
    ensure!(put.status == 201, "{}", put.text());
    let index = Digest::sha256(index.as_bytes()).to_string();
    let done = node.json(&["publish", "lab/team/app:1"])?;
    assert_eq!(done["digest"], index, "{done}");
    for image in [&one, &two] {
        for blob in image.blobs() {
            ensure!(wherry_tests::blobs::blob_is_right(registry.addr(), "team/app", &blob)?);
        }
    }
    let asked = Request::new(registry.addr(), "GET", "/v2/team/app/manifests/1").header("Accept", media_type);
    let answer = asked.send_and_read()?;
    assert_eq!(answer.header("docker-content-digest"), Some(index.as_str()));
    Ok(())
}

#[test]
fn a_link_that_fails_while_an_image_is_published_costs_little_and_a_registry_that_refuses_is_an_error()
-> Result<()> {
    let lab = Lab::new()?;
    let registry = Registry::start(&lab, "registry", registry::Options::default())?;
    let headquarters = Wherry::start(&lab, "headquarters", Options::default())?;
    // docker-registry wants all of a layer again that broke off in the middle of a piece.
    let links = [
        (Wire::to(headquarters.gateway()?, 10 << 20)?, "site.wherry/team/app:1", 8 << 20),
        (Wire::to(registry.addr(), 10 << 20)?, "team/app:1", 20 << 20),
    ];
    let closed = "127.0.0.1:1";
    let reached = links.iter().map(|(wire, ..)| wire.addr.to_string()).chain([closed.to_owned()]);
    let options =
        reached.fold(Options::default(), |options, host| options.with("--origin").with(reaches(&host)));
    let node = Wherry::start(&lab, "node", options)?;
    let size = 24 << 20;
    push_image(node.gateway()?, "site.wherry/team/app", "1", 3, &[size])?;
    for (wire, name, more) in &links {
        let to = format!("{}/{name}", wire.addr);
        let published = node.json(&["publish", "site.wherry/team/app:1", &to])?;
        ensure!(published["sent"].as_u64().context("no sent")? >= size, "{published}");
        let carried = wire.carried.load(Ordering::Relaxed);
        ensure!((size..size + more).contains(&carried), "{carried} bytes were sent to {to} for {size}");
        ensure!(wire.was_cut.load(Ordering::Relaxed), "the link to {to} never failed");
    }

    let failed = output(node.command()?.args([
        "publish",
        "--wait",
        "0s",
        "site.wherry/team/app:1",
        &format!("{closed}/team/app:1"),
    ]))?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(
        !failed.status.success() && said.contains("cannot be published") && said.contains(closed),
        "{said}"
    );
    let said = node.fails(&["publish", "site.wherry/team/app:1"])?;
    ensure!(said.contains("at this site itself"), "{said}");
    Ok(())
}
