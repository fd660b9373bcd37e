//! buildah builds on images that come through a gateway, and pushes to it what it has built.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use wherry_tests::access::Accesses as _;
use wherry_tests::blobs::Image;
use wherry_tests::clients::{Buildah, Podman, Skopeo};
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::Options;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn what_buildah_builds_on_an_image_of_the_cloud_and_pushes_is_pulled_and_run_elsewhere() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let network = Network::new(&lab)?;
    let mut first = network.member(&lab, "first", Options::origin(origin.host()), &[])?;
    let second = network.member(&lab, "second", Options::origin(origin.host()), &[&first])?;
    let gateway = first.gateway()?;
    let buildah = Buildah::new(&lab, "buildah")?;

    let container = buildah.from(&images.teaching.reference(gateway))?;
    let said = buildah.run(&container, &["python3", "/opt/app/app.py", "from", "buildah"])?;
    ensure!(said.trim() == "from buildah", "{said:?}");
    buildah.run(&container, &["touch", "/opt/app/touched"])?;
    buildah.commit(&container, "localhost/touched:1")?;
    buildah.push("localhost/touched:1", &format!("{gateway}/site.wherry/by/buildah:from"))?;

    // Another one, which has nothing yet, by a Dockerfile on what is only the site's, and with the cloud cut off.
    let log = {
        origin.stop()?;
        origin.accesses()?
    };
    for layer in &images.teaching.layers {
        ensure!((log.reads_of(&layer.digest), log.bytes_of(&layer.digest)) == (1, layer.size), "{layer:?}");
    }
    let context = lab.folder("context")?;
    let from = format!("{gateway}/site.wherry/by/buildah:from");
    fs::write(context.join("Dockerfile"), format!("FROM {from}\nRUN test -f touched && touch again\n"))?;
    let builder = Buildah::new(&lab, "builder")?;
    builder.build("localhost/built:1", &context)?;
    builder.push("localhost/built:1", &format!("{gateway}/site.wherry/by/buildah:bud"))?;

    wait_until("the second node has copies of both", SOON, || {
        let here = second.whole_images()?;
        Ok(["from", "bud"].iter().all(|tag| here.contains(&format!("site.wherry/by/buildah:{tag}"))))
    })?;
    let built = Image::read(gateway, "site.wherry/by/buildah", "bud")?;
    first.kill()?;
    let (podman, skopeo) = (Podman::new(&lab, "podman")?, Skopeo::new(&lab, "skopeo")?);
    let reference = built.reference(second.gateway()?);
    skopeo.pull(&reference, "built")?.check(&built)?;
    podman.pull(&reference)?;
    ensure!(podman.run(&reference, &[])?.trim() == GREETING);
    Ok(())
}
