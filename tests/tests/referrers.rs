//! What is about an image, such as its signature: found at the site, and at registries with and without lists of it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn put(to: SocketAddr, repository: &str, target: &str, media_type: &str, manifest: &Value) -> Result<Digest> {
    let (path, text) = (format!("/v2/{repository}/manifests/{target}"), manifest.to_string());
    let request = Request::new(to, "PUT", &path).header("Content-Type", media_type);
    let answer = request.body(text.len() as u64, &mut text.as_bytes()).send_and_read()?;
    ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
    Ok(Digest::sha256(text.as_bytes()))
}

/// A manifest that is about an image, and consists of what that has.
fn about(image: &Image) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.signature",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": image.config.digest, "size": image.config.size },
        "layers": [],
        "subject": { "mediaType": MANIFEST, "digest": image.manifest, "size": image.manifest_bytes.len() },
        "annotations": { "by": "the harbour master" },
    })
}

fn listed(from: SocketAddr, repository: &str, image: &Image) -> Result<Vec<String>> {
    let answer = get(from, &format!("/v2/{repository}/referrers/{}", image.manifest))?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let list: Value = serde_json::from_str(&answer.text())?;
    let entries = list["manifests"].as_array().into_iter().flatten();
    Ok(entries.filter_map(|entry| Some(entry["digest"].as_str()?.to_owned())).collect())
}

#[test]
fn what_an_origin_lists_about_an_image_is_listed_here_and_stays_when_it_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Wherry::start(&lab, "origin", Options::default())?;
    let image = push_image(origin.gateway()?, "site.wherry/team/app", "1", 21, &[1 << 20])?;
    let host = origin.gateway()?;
    let signature = put(host, "site.wherry/team/app", "signed", MANIFEST, &about(&image))?;
    let setting = format!("{host} insecure=true alias=far");
    let node = Wherry::start(&lab, "node", Options::default().with("--origin").with(setting))?;
    let gateway = node.gateway()?;
    assert_eq!(listed(gateway, "far/site.wherry/team/app", &image)?, [signature.to_string()]);
    origin.kill()?;
    assert_eq!(listed(gateway, "far/site.wherry/team/app", &image)?, [signature.to_string()]);
    Ok(())
}

#[test]
fn where_a_registry_has_no_such_lists_the_index_counts_that_clients_keep_there() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "team/app", "1", 22, &[1 << 20])?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()).with("--tag-ttl").with("0s"))?;
    ensure!(listed(node.gateway()?, "team/app", &image)?.is_empty());
    let about = about(&image);
    let signature = put(origin.addr(), "team/app", "signed", MANIFEST, &about)?;
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": MANIFEST, "digest": signature, "size": about.to_string().len(),
        "artifactType": "application/vnd.example.signature",
    }] });
    put(origin.addr(), "team/app", &image.manifest.to_string().replace(':', "-"), INDEX, &index)?;
    assert_eq!(listed(node.gateway()?, "team/app", &image)?, [signature.to_string()]);
    Ok(())
}

#[test]
fn a_signature_that_has_come_to_another_machine_is_listed_there_too() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let first = network.member(&lab, "first", Options::default(), &[])?;
    let second = network.member(&lab, "second", Options::default(), &[&first])?;
    let image = push_image(first.gateway()?, "site.wherry/team/app", "1", 23, &[1 << 20])?;
    let signature = put(first.gateway()?, "site.wherry/team/app", "signed", MANIFEST, &about(&image))?;
    let path = "/v2/site.wherry/team/app/manifests/signed";
    ensure!(get(second.gateway()?, path)?.status == 200);
    assert_eq!(listed(second.gateway()?, "site.wherry/team/app", &image)?, [signature.to_string()]);
    Ok(())
}
