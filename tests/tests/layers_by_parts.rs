//! Layers that are made to be had in parts (zstd:chunked): podman asks the gateway for the parts that it lacks, and for no more.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use wherry_tests::blobs::{Image, Noise};
use wherry_tests::clients::Podman;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::Options;
use wherry_tests::process::run;
use wherry_tests::relay::Relay;

/// The files of an image, each of as many bytes of noise.
const FILES: usize = 12;
const FILE: u64 = 700_000;

/// Every third file has other bytes in each version of the image.
fn write(context: &Path, version: u64) -> Result<()> {
    for file in 0..FILES {
        let seed = 1000 * file as u64 + if file % 3 == 1 { version } else { 0 };
        let mut bytes = Vec::new();
        Noise::new(seed, FILE).read_to_end(&mut bytes)?;
        fs::write(context.join(format!("file-{file:02}")), bytes)?;
    }
    Ok(fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY file-* /\n")?)
}

#[test]
fn podman_gets_of_a_new_version_the_parts_that_have_changed_in_one_request() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let first = network.member(&lab, "first", Options::default(), &[])?;
    // The second has nothing of it when it is asked for parts.
    let second = network.member(&lab, "second", Options::default(), &[&first])?;
    let (builder, podman) = (Podman::new(&lab, "builder")?, Podman::by_parts(&lab, "podman")?);
    let context = lab.folder("context")?;
    let between = Relay::start(second.gateway()?)?;
    let mut asked = 0;
    for version in 1..=2 {
        write(&context, version)?;
        builder.build("localhost/parts:1", &context)?;
        let name = format!("site.wherry/lab/parts:{version}");
        let mut push = builder.command();
        push.args(["push", "--quiet", "--tls-verify=false", "--compression-format", "zstd:chunked"]);
        run(push.args(["localhost/parts:1", &format!("{}/{name}", first.gateway()?)]))?;
        let image = Image::read(first.gateway()?, "site.wherry/lab/parts", &version.to_string())?;
        let layer = *image.layers.first().context("no layer")?;
        ensure!(layer.size > FILES as u64 * FILE, "{layer:?}");

        let reference = format!("{}/{name}", between.host());
        podman.pull(&reference)?;
        ensure!(podman.digest(&reference)? == image.manifest.to_string(), "version {version}");
        let all = between.asked();
        let of_it = all.iter().skip(asked).filter(|it| it.path.contains(&layer.digest.to_string()));
        let ranges: Vec<String> = of_it.map(|it| it.range.clone().unwrap_or_default()).collect();
        asked = all.len();
        // First the list of the parts, which lies at the end, and then all that are wanted.
        ensure!(ranges.len() == 2, "version {version}: {ranges:?}");
        let sent = between.sent(&layer.digest);
        if version == 1 {
            ensure!(sent > FILES as u64 * FILE, "{sent} bytes of {layer:?}");
        } else {
            let changed = FILES as u64 / 3 * FILE;
            ensure!(ranges[1].matches(',').count() + 1 == FILES / 3, "{ranges:?}");
            ensure!((changed..changed + 200_000).contains(&sent), "{sent} bytes, {changed} had changed");
        }
    }
    // What podman has put together is what was pushed: every file of it.
    let mut mount = podman.command();
    let reference = format!("{}/site.wherry/lab/parts:2", between.host());
    let root = run(mount.args(["image", "mount", &reference]))?;
    for file in 0..FILES {
        let name = format!("file-{file:02}");
        let here = fs::read(Path::new(root.trim()).join(&name)).with_context(|| name.clone())?;
        ensure!(here == fs::read(context.join(&name))?, "{name} is another");
    }
    Ok(())
}
