//! Images that are pushed to a gateway belong to the site.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wherry_proto::{Algorithm, Digest};
use wherry_tests::blobs::{Image, Noise, OCI_MANIFEST, push_image};
use wherry_tests::clients::{Containerd, Docker, Podman, Skopeo};
use wherry_tests::http::{Answer, Request, get};
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// A node whose names without a registry are the site's own.
fn of_the_site() -> Options {
    Options::default().with("--default-origin").with("site.wherry").with("--delete").with("local")
}

fn send(
    gateway: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut request = Request::new(gateway, method, path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let mut bytes = body;
    request.body(body.len() as u64, &mut bytes).send_and_read()
}

/// Begins an upload: its path.
fn begin(gateway: SocketAddr, repository: &str) -> Result<String> {
    let answer = send(gateway, "POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"")?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.text());
    Ok(answer.header("location").context("no location")?.to_owned())
}

fn noise(seed: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Noise::new(seed, length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn what_docker_containerd_podman_and_skopeo_push_to_one_gateway_is_pulled_through_another_when_the_first_is_gone()
-> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let network = Network::new(&lab)?;
    let mut first = network.member(&lab, "first", of_the_site(), &[])?;
    let second = network.member(&lab, "second", of_the_site(), &[&first])?;
    let (docker, podman) = (Docker::start(&lab, "docker", &[])?, Podman::new(&lab, "podman")?);
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let mut origin = images.origin(&lab, "origin")?;
    let to = first.gateway()?;

    let teaching = images.teaching.reference(origin.host());
    docker.pull(&teaching)?;
    docker.push(&teaching, &format!("{to}/by/docker:1"))?;
    podman.pull(&teaching)?;
    podman.push(&teaching, &format!("{to}/by/podman:1"))?;
    let containerd = Containerd::start(&lab, "containerd")?;
    containerd.pull_by_name(&teaching)?;
    containerd.push(&teaching, &format!("{to}/by/containerd:1"))?;
    let from = format!("docker://{}", images.by_podman.reference(origin.host()));
    skopeo.copy(&from, &format!("docker://{to}/by/skopeo:1"))?;
    // skopeo takes the liberty of pushing other layers with the same content, if it has seen such.
    let by_skopeo = Image::read(to, "by/skopeo", "1")?;
    origin.stop()?;

    let names =
        ["by/docker", "by/containerd", "by/podman", "by/skopeo"].map(|name| format!("site.wherry/{name}:1"));
    wait_until("the second node has copies of all", SOON, || {
        let here = second.whole_images()?;
        Ok(names.iter().all(|name| here.contains(name)))
    })?;
    first.kill()?;

    let from = second.gateway()?;
    // What the clients have of it already is no proof.
    let (docker, podman) = (Docker::start(&lab, "docker-2", &[])?, Podman::new(&lab, "podman-2")?);
    docker.pull(&format!("{from}/by/docker:1"))?;
    ensure!(docker.run(&format!("{from}/by/docker:1"), &[])?.trim() == GREETING);
    podman.pull(&format!("{from}/by/podman:1"))?;
    ensure!(podman.run(&format!("{from}/by/podman:1"), &[])?.trim() == GREETING);
    // As a mirror of a registry that nobody can reach.
    let containerd = Containerd::start(&lab, "containerd-2")?;
    containerd.mirror("site.wherry", from, None)?;
    containerd.pull("site.wherry/by/containerd:1")?;
    ensure!(containerd.digest("site.wherry/by/containerd:1")? == images.teaching.manifest);
    skopeo.pull(&format!("{from}/by/skopeo:1"), "pulled")?.check(&by_skopeo)?;
    Ok(())
}

#[test]
fn a_pushed_tag_is_the_sites_until_it_is_removed_and_is_never_asked_of_the_origin_that_has_the_name()
-> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let theirs = push_image(origin.addr(), "lab/app", "1", 61, &[1 << 20])?;
    let network = Network::new(&lab)?;
    let options = || {
        let options = Options::origin(origin.host()).with("--tag-ttl").with("1ms");
        options.with("--delete").with("local")
    };
    let first = network.member(&lab, "first", options(), &[])?;
    let mut second = network.member(&lab, "second", options(), &[&first])?;
    let meaning =
        |node: &Wherry| -> Result<Vec<u8>> { Ok(get(node.gateway()?, "/v2/lab/app/manifests/1")?.body) };
    for node in [&first, &second] {
        ensure!(meaning(node)? == theirs.manifest_bytes, "the origin's image is not had");
    }

    let ours = push_image(first.gateway()?, "lab/app", "1", 62, &[3 << 20, 0, 70_000])?;
    let asked = origin.accesses()?.len();
    for node in [&first, &second] {
        ensure!(meaning(node)? == ours.manifest_bytes, "the pushed image is not had");
        let reference = ours.reference(origin.host());
        let pulled = node.json(&["pull", "--refresh", &reference])?;
        ensure!(pulled["digest"] == json!(ours.manifest.to_string()), "{pulled}");
    }
    let manifests = origin.accesses()?.into_iter().skip(asked).filter(|it| it.path.contains("/manifests/"));
    ensure!(manifests.count() == 0, "the origin was asked about a tag that is the site's");

    // It is so after a start as well, and with the cable cut.
    origin.stop()?;
    second.kill()?;
    second.up()?;
    ensure!(meaning(&second)? == ours.manifest_bytes, "a start has lost the pushed tag");
    origin.restart()?;

    let removed = send(first.gateway()?, "DELETE", "/v2/lab/app/manifests/1", &[], b"")?;
    ensure!(removed.status == 202, "{} {}", removed.status, removed.text());
    for node in [&first, &second] {
        wait_until("the origin's word counts again", SOON, || Ok(meaning(node)? == theirs.manifest_bytes))?;
    }
    let again = push_image(second.gateway()?, "lab/app", "1", 63, &[90_000])?;
    ensure!(meaning(&first)? == again.manifest_bytes, "what was pushed after a removal is not had");
    origin.stop()
}

#[test]
fn an_upload_that_broke_off_goes_on_from_what_has_come() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", of_the_site())?;
    let gateway = node.gateway()?;
    let blob = noise(64, 20 << 20)?;
    let location = begin(gateway, "lab/long")?;
    {
        let mut stream = TcpStream::connect(gateway)?;
        write!(stream, "PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", blob.len())?;
        stream.write_all(&blob[..9_000_001])?;
        // And the client is gone.
    }
    let mut had = 0;
    wait_until("what came is there", SOON, || {
        let status = get(gateway, &location)?;
        ensure!(status.status == 204, "{} {}", status.status, status.text());
        let range = status.header("range").context("no range")?;
        had = range.strip_prefix("0-").context("no range from 0")?.parse::<usize>()? + 1;
        Ok(had == 9_000_001)
    })?;
    let elsewhere = format!("{}-{}", had + 1, blob.len() - 1);
    let wrong = send(gateway, "PATCH", &location, &[("Content-Range", &elsewhere)], &blob[had + 1..])?;
    ensure!(wrong.status == 416 && wrong.header("range") == Some("0-9000000"), "{}", wrong.text());
    let rest = format!("{had}-{}", blob.len() - 1);
    let digest = Digest::sha256(&blob);
    let path = format!("{location}?digest={digest}");
    let done = send(gateway, "PUT", &path, &[("Content-Range", &rest)], &blob[had..])?;
    ensure!(done.status == 201, "{} {}", done.status, done.text());
    ensure!(get(gateway, done.header("location").context("no location")?)?.body == blob);
    Ok(())
}

#[test]
fn what_is_wrong_with_a_push_is_said_and_nothing_of_it_is_stored() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", of_the_site())?;
    let gateway = node.gateway()?;
    let bytes = noise(65, 300_000)?;
    let (right, wrong) = (Digest::sha256(&bytes), Digest::sha256(b"something else"));
    let refused = |answer: Answer, status: u16, code: &str, says: &str| -> Result<()> {
        let found = (answer.status, answer.error_code());
        ensure!(found == (status, Some(code.to_owned())), "{found:?}: {}", answer.text());
        ensure!(answer.text().contains(says), "{says:?} is not in {}", answer.text());
        Ok(())
    };

    let path = format!("{}?digest={wrong}", begin(gateway, "lab/bad")?);
    refused(send(gateway, "PUT", &path, &[], &bytes)?, 400, "DIGEST_INVALID", &right.to_string())?;
    // The upload is over, and neither digest is there.
    refused(send(gateway, "PUT", &path, &[], &bytes)?, 404, "BLOB_UPLOAD_UNKNOWN", "anew")?;
    for digest in [right, wrong] {
        refused(get(gateway, &format!("/v2/lab/bad/blobs/{digest}"))?, 404, "BLOB_UNKNOWN", "cannot be had")?;
    }
    // Another repository's upload is none of this one's.
    let location = begin(gateway, "lab/bad")?.replace("lab/bad", "lab/other");
    refused(send(gateway, "PATCH", &location, &[], &bytes)?, 404, "BLOB_UPLOAD_UNKNOWN", "anew")?;

    let manifest = |layer: &Digest, size: usize| {
        let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_string(), "size": size });
        let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": right.to_string(), "size": bytes.len() });
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer] })
            .to_string()
    };
    let put = |body: &str, media_type: &str| {
        send(gateway, "PUT", "/v2/lab/bad/manifests/1", &[("Content-Type", media_type)], body.as_bytes())
    };
    refused(
        put(&manifest(&right, bytes.len()), OCI_MANIFEST)?,
        400,
        "MANIFEST_BLOB_UNKNOWN",
        &right.to_string(),
    )?;
    let path = format!("{}?digest={right}", begin(gateway, "lab/bad")?);
    ensure!(send(gateway, "PUT", &path, &[], &bytes)?.status == 201);
    refused(put(&manifest(&wrong, 3), OCI_MANIFEST)?, 400, "MANIFEST_BLOB_UNKNOWN", &wrong.to_string())?;
    refused(put(&manifest(&right, 3), OCI_MANIFEST)?, 400, "MANIFEST_INVALID", "300000")?;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    refused(put(&manifest(&right, bytes.len()), docker)?, 400, "MANIFEST_INVALID", docker)?;
    let twice = manifest(&right, bytes.len()).replacen('{', "{\"layers\":[],", 1);
    refused(put(&twice, OCI_MANIFEST)?, 400, "MANIFEST_INVALID", "twice")?;
    refused(put(&" ".repeat((4 << 20) + 1), OCI_MANIFEST)?, 413, "SIZE_INVALID", "4194304")?;
    let other = format!("/v2/lab/bad/manifests/{wrong}");
    let sent = manifest(&right, bytes.len());
    refused(send(gateway, "PUT", &other, &[], sent.as_bytes())?, 400, "DIGEST_INVALID", &wrong.to_string())?;
    refused(get(gateway, "/v2/lab/bad/manifests/1")?, 404, "MANIFEST_UNKNOWN", "site.wherry/lab/bad:1")?;
    ensure!(put(&sent, OCI_MANIFEST)?.status == 201);
    ensure!(node.whole_images()?.contains(&"site.wherry/lab/bad:1".to_owned()));
    Ok(())
}

#[test]
fn whoever_may_not_push_or_remove_is_told_what_would_let_them() -> Result<()> {
    let lab = Lab::new()?;
    let options = Options::default().with("--push").with("nobody");
    let node = Wherry::start(&lab, "node", options)?;
    let gateway = node.gateway()?;
    for (method, path) in [
        ("POST", "/v2/lab/app/blobs/uploads/"),
        ("PUT", "/v2/lab/app/manifests/1"),
        ("PATCH", "/v2/lab/app/blobs/uploads/0a"),
    ] {
        let answer = send(gateway, method, path, &[], b"")?;
        ensure!(answer.status == 405 && answer.text().contains("--push local"), "{path}: {}", answer.text());
    }
    let answer = send(gateway, "DELETE", "/v2/lab/app/manifests/1", &[], b"")?;
    ensure!(answer.status == 405 && answer.text().contains("--delete local"), "{}", answer.text());
    Ok(())
}

#[test]
fn what_is_pushed_without_its_length_and_by_sha512_is_stored_as_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", of_the_site())?;
    let gateway = node.gateway()?;
    let bytes = noise(66, (8 << 20) + 77)?;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &bytes);
        let location = begin(gateway, "lab/stream")?;
        let mut stream = TcpStream::connect(gateway)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(
            stream,
            "PUT {location}?digest={digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        for piece in bytes.chunks(100_000) {
            write!(stream, "{:x}\r\n", piece.len())?;
            stream.write_all(piece)?;
            stream.write_all(b"\r\n")?;
        }
        stream.write_all(b"0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
        ensure!(get(gateway, &format!("/v2/lab/stream/blobs/{digest}"))?.body == bytes);
    }
    Ok(())
}

#[test]
fn what_is_pushed_needs_no_registry_in_reach_that_has_the_name() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let mut away = Registry::start(&lab, "away", registry::Options::default())?;
    let node = Wherry::start(&lab, "node", Options::origin(away.host()))?;
    away.stop()?;
    let to = node.gateway()?;
    let teaching = images.teaching.reference(origin.host());
    let (docker, podman) = (Docker::start(&lab, "docker", &[])?, Podman::new(&lab, "podman")?);
    let containerd = Containerd::start(&lab, "containerd")?;
    docker.pull(&teaching)?;
    docker.push(&teaching, &format!("{to}/lab/docker:1"))?;
    podman.pull(&teaching)?;
    podman.push(&teaching, &format!("{to}/lab/podman:1"))?;
    containerd.pull_by_name(&teaching)?;
    containerd.push(&teaching, &format!("{to}/lab/containerd:1"))?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    for name in ["docker", "podman", "containerd"] {
        let image = Image::read(to, &format!("lab/{name}"), "1")?;
        skopeo.pull(&image.reference(to), name)?.check(&image)?;
    }
    Ok(())
}

#[test]
fn a_tag_that_is_pushed_to_a_node_that_has_never_heard_of_it_means_that_at_the_whole_site() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let first = network.member(&lab, "first", of_the_site(), &[])?;
    let second = network.member(&lab, "second", of_the_site(), &[&first])?;
    let mut third = network.member(&lab, "third", of_the_site(), &[&first, &second])?;
    let path = "/v2/lab/app/manifests/1";
    let meaning = |node: &Wherry| -> Result<Vec<u8>> { Ok(get(node.gateway()?, path)?.body) };
    let old = push_image(first.gateway()?, "lab/app", "1", 67, &[1 << 20])?;
    // More than once, so that it answers from memory.
    for node in [&first, &second, &first, &second] {
        ensure!(meaning(node)? == old.manifest_bytes, "the first image is not had");
    }
    let new = push_image(third.gateway()?, "lab/app", "1", 68, &[2 << 20])?;
    for node in [&first, &second, &third] {
        ensure!(meaning(node)? == new.manifest_bytes, "the second image is not had");
    }
    let digest = new.layers[0].digest;
    wait_until("another node has the second image", SOON, || {
        let whole = |node: &Wherry| -> Result<bool> {
            let images = node.json(&["images"])?;
            let images = images.as_array().context("no list")?;
            Ok(images.iter().any(|it| it["digest"] == json!(new.manifest.to_string()) && it["whole"] == true))
        };
        Ok(whole(&first)? || whole(&second)?)
    })?;
    third.kill()?;
    for node in [&first, &second] {
        ensure!(meaning(node)? == new.manifest_bytes, "the second image is lost with the third node");
        let layer = get(node.gateway()?, &format!("/v2/lab/app/blobs/{digest}"))?;
        ensure!(Digest::sha256(&layer.body) == digest, "the layer is lost with the third node");
    }
    // Wherever it is removed, it is removed.
    third.up()?;
    let removed = send(third.gateway()?, "DELETE", path, &[], b"")?;
    ensure!(removed.status == 202, "{} {}", removed.status, removed.text());
    for node in [&first, &second, &third] {
        let answer = get(node.gateway()?, path)?;
        ensure!(answer.status == 404, "{} {}", answer.status, answer.text());
        let tags = get(node.gateway()?, "/v2/lab/app/tags/list")?;
        ensure!(tags.status == 404 || !tags.text().contains("\"1\""), "{}", tags.text());
    }
    Ok(())
}

#[test]
fn an_index_for_machines_that_the_site_does_not_have_survives_the_node_that_it_was_pushed_to() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let mut first = network.member(&lab, "first", of_the_site(), &[])?;
    let second = network.member(&lab, "second", of_the_site(), &[&first])?;
    let image = push_image(first.gateway()?, "lab/multi", "part", 69, &[1 << 20])?;
    let entry = json!({
        "mediaType": OCI_MANIFEST,
        "digest": image.manifest.to_string(),
        "size": image.manifest_bytes.len(),
        "platform": { "os": "linux", "architecture": "s390x" },
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [entry] }).to_string();
    let path = "/v2/lab/multi/manifests/all";
    let put = send(first.gateway()?, "PUT", path, &[("Content-Type", media_type)], index.as_bytes())?;
    ensure!(put.status == 201, "{} {}", put.status, put.text());
    // The part is kept by the index alone from now on.
    let removed = send(first.gateway()?, "DELETE", "/v2/lab/multi/manifests/part", &[], b"")?;
    ensure!(removed.status == 202, "{} {}", removed.status, removed.text());
    wait_until("the second node has it", SOON, || {
        let images = second.json(&["images"])?;
        let images = images.as_array().context("no list")?;
        Ok(images.iter().any(|it| it["reference"] == "site.wherry/lab/multi:all" && it["whole"] == true))
    })?;
    first.kill()?;
    let gateway = second.gateway()?;
    ensure!(get(gateway, path)?.body == index.as_bytes());
    let part = format!("/v2/lab/multi/manifests/{}", image.manifest);
    ensure!(get(gateway, &part)?.body == image.manifest_bytes);
    let digest = image.layers[0].digest;
    ensure!(Digest::sha256(&get(gateway, &format!("/v2/lab/multi/blobs/{digest}"))?.body) == digest);
    Ok(())
}

#[test]
fn an_image_that_was_lost_with_its_node_can_be_pushed_again_to_one_that_remembers_it() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let alone = || of_the_site().with("--copies").with("1");
    let mut first = network.member(&lab, "first", alone(), &[])?;
    let second = network.member(&lab, "second", alone(), &[&first])?;
    let image = push_image(first.gateway()?, "lab/lost", "1", 70, &[1 << 20])?;
    let path = "/v2/lab/lost/manifests/1";
    ensure!(get(second.gateway()?, path)?.body == image.manifest_bytes);
    first.kill()?;
    let layer = format!("/v2/lab/lost/blobs/{}", image.layers[0].digest);
    let asked = Request::new(second.gateway()?, "HEAD", &layer).send_and_read()?;
    ensure!(asked.status == 404, "HEAD says {} of a layer that nobody has", asked.status);
    push_image(second.gateway()?, "lab/lost", "1", 70, &[1 << 20])?;
    let digest = image.layers[0].digest;
    ensure!(Digest::sha256(&get(second.gateway()?, &layer)?.body) == digest);
    Ok(())
}

#[test]
fn where_something_is_that_was_pushed_is_said_in_the_clients_own_words() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let gateway = node.gateway()?;
    let bytes = noise(71, 1000)?;
    let digest = Digest::sha256(&bytes);
    for (repository, query) in [
        ("site.wherry/lab/app", ""),
        ("site.wherry/lab/manifests/app", ""),
        ("site.wherry/lab/blobs/app", ""),
        ("lab/app", "?ns=site.wherry"),
    ] {
        let begun = send(gateway, "POST", &format!("/v2/{repository}/blobs/uploads/{query}"), &[], b"")?;
        let location = begun.header("location").context("no location")?;
        ensure!(location.starts_with(&format!("/v2/{repository}/blobs/uploads/")), "{location}");
        let glue = if query.is_empty() { '?' } else { '&' };
        let done = send(gateway, "PUT", &format!("{location}{glue}digest={digest}"), &[], &bytes)?;
        ensure!(done.status == 201, "{repository}: {} {}", done.status, done.text());
        let location = done.header("location").context("no location")?;
        ensure!(get(gateway, location)?.body == bytes, "{repository}: {location}");
    }
    // docker names the other repository as it names all.
    let mount = format!("/v2/site.wherry/lab/other/blobs/uploads/?mount={digest}&from=site.wherry/lab/app");
    let mounted = send(gateway, "POST", &mount, &[], b"")?;
    ensure!(mounted.status == 201, "{} {}", mounted.status, mounted.text());
    let elsewhere =
        format!("/v2/site.wherry/lab/third/blobs/uploads/?mount={digest}&from=site.wherry/lab/nothing");
    ensure!(send(gateway, "POST", &elsewhere, &[], b"")?.status == 202);
    // And no web page pushes with the rights of whoever reads it.
    let begun = send(
        gateway,
        "POST",
        "/v2/site.wherry/lab/app/blobs/uploads/",
        &[("Origin", "http://x.example")],
        b"",
    )?;
    ensure!(begun.status == 403, "{} {}", begun.status, begun.text());
    Ok(())
}

#[test]
fn what_is_removed_by_its_digest_leaves_the_disk_and_a_part_of_an_image_is_not_removed_alone() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", of_the_site())?;
    let gateway = node.gateway()?;
    let image = push_image(gateway, "lab/gone", "1", 72, &[300_000])?;
    let layer = format!("/v2/lab/gone/blobs/{}", image.layers[0].digest);
    let refused = send(gateway, "DELETE", &layer, &[], b"")?;
    ensure!(refused.status == 403 && refused.text().contains("lab/gone:1"), "{}", refused.text());
    let digest = format!("/v2/lab/gone/manifests/{}", image.manifest);
    let removed = send(gateway, "DELETE", &digest, &[], b"")?;
    ensure!(removed.status == 202, "{} {}", removed.status, removed.text());
    for path in [&digest, &layer, "/v2/lab/gone/manifests/1"] {
        let answer = get(gateway, path)?;
        ensure!(
            answer.status == 404,
            "{path}: {} {:?} {}",
            answer.status,
            answer.header("content-length"),
            node.json(&["status"])?["store"]
        );
    }
    ensure!(node.json(&["images"])? == json!([]), "{}", node.json(&["images"])?);
    ensure!(node.json(&["status"])?["store"]["blobs"] == json!(0), "{}", node.json(&["status"])?);
    Ok(())
}
