//! Makes what is slow to make, before tests run.

use std::time::Instant;

use wherry_tests::images::Images;

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let images = Images::get()?;
    for image in [&images.base, &images.teaching, &images.by_podman, &images.second] {
        let mib = image.size() as f64 / f64::from(1 << 20);
        println!("{:28} {} layers {mib:6.1} MiB  {}", image.name(), image.layers.len(), image.manifest);
    }
    println!("ready after {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}
