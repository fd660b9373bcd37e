//! What names mean, and what belongs to which repository: with lying neighbours, and with origins that come and go.
//!
//! The origin is a real registry server (the gateway's own) over real HTTP; neighbours say what a test lets them say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use images_support::*;
use tokio::net::TcpListener;
use wherry_gateway::Reference;
use wherry_gateway::server::{Ask, BlobReader as _, Content, RefusalKind, Source};
use wherry_node::images::{How, ImageError, Pulled, parse_platform};
use wherry_node::transfer::{Fetched, Route};
use wherry_proto::{Digest, LeadRefusal, TagRecord};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_far_ahead_of_the_clock_serves_only_without_the_origin_and_is_never_kept() {
    let lab = Lab::new().await;
    let (honest, liars) = (lab.image("honest"), lab.image("liars"));
    lab.origin.tag("app", "1", &honest);
    let reference = lab.reference("app:1");
    let node = lab.node();
    node.put(&liars);
    for sequence in [NOW + 2 * DAY, u64::MAX] {
        node.site.says(record(&reference, &liars, sequence, NOW + 2 * DAY));
    }

    let resolved = node.images.manifest(&reference).await.unwrap();
    assert_eq!((resolved.manifest.digest(), resolved.source), (&honest.digest, Source::Origin));
    assert_eq!(node.images.vouch(&reference).unwrap().digest, honest.digest);

    // A node whose own clock stands still in the past needs its site all the same.
    let slow = lab.node();
    slow.put(&liars);
    slow.site.says(record(&reference, &liars, NOW + 2 * DAY, NOW + 2 * DAY));
    lab.origin.stop();
    assert_eq!(slow.images.manifest(&reference).await.unwrap().manifest.digest(), &liars.digest);
    assert_eq!(slow.images.vouch(&reference), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sites_newer_answer_within_the_bound_wins() {
    let lab = Lab::new().await;
    let (old, new) = (lab.image("old"), lab.image("new"));
    let reference = lab.reference("app:1");
    let node = lab.node();
    node.put(&old);
    node.put(&new);
    lab.origin.stop();
    node.site.says(record(&reference, &old, NOW - 10, NOW));
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest.digest(), &old.digest);
    node.site.says(record(&reference, &new, NOW + DAY, NOW));
    lab.clock_to(NOW + 100);
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest.digest(), &new.digest);
    assert_eq!(node.images.vouch(&reference).unwrap().sequence, NOW + DAY);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_a_clock_that_is_ahead_is_of_unknown_age_and_expired() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let reference = lab.reference("app:1");
    let (node, own) = (lab.node(), lab.node());
    node.put(&image);
    node.site.says(record(&reference, &image, NOW, NOW + DAY));
    // Once it was this node's own clock.
    lab.clock_to(NOW + DAY);
    own.images.manifest(&reference).await.unwrap();
    lab.clock_to(NOW);
    for node in [&node, &own] {
        let before = lab.origin.asked.load(Ordering::Relaxed);
        let resolved = node.images.manifest(&reference).await.unwrap();
        assert_eq!(resolved.age, Some(Duration::ZERO));
        assert_eq!(lab.origin.asked.load(Ordering::Relaxed), before + 1);
        // What the origin has said counts for its time.
        node.images.manifest(&reference).await.unwrap();
        assert_eq!(lab.origin.asked.load(Ordering::Relaxed), before + 1);
        assert_eq!(node.images.vouch(&reference).unwrap().time, NOW);
    }
    // Without the origin it serves, and is not fresh either when the time comes that it spoke of.
    let late = lab.node();
    late.put(&image);
    late.site.says(record(&reference, &image, NOW, NOW + DAY));
    lab.origin.stop();
    assert_eq!(late.images.manifest(&reference).await.unwrap().age, None);
    late.site.falls_silent();
    lab.clock_to(NOW + DAY);
    assert_eq!(late.images.manifest(&reference).await.unwrap().age, None);
}

fn says_of(reference: &Reference, digest: Digest, size: u64, media_type: &str) -> TagRecord {
    let image = Image { digest, media_type: media_type.to_owned(), bytes: Bytes::new(), blobs: Vec::new() };
    record_of(reference, &image, size)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_length_hides_no_true_one_and_is_not_remembered() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.add("app", &image);
    let (layer, bytes) = image.blobs[1].clone();
    let reference = lab.reference(&format!("app@{layer}"));
    let (host, repository) = (reference.host(), reference.repository());
    for sizes in [vec![1], vec![1, bytes.len() as u64], vec![bytes.len() as u64 + 1, 1 << 40]] {
        let node = lab.node();
        for size in sizes {
            node.site.says(says_of(&reference, layer, size, "text/plain"));
        }
        let handle = node.images.blob(host, repository, layer).await.unwrap();
        assert_eq!(handle.size(), bytes.len() as u64);
        let fetched = handle.fetch().await.unwrap();
        if let Fetched::Arriving(transfer) = fetched {
            transfer.wait().await.unwrap();
        }
        let known = || node.images.records().grant(host, repository, &layer).unwrap();
        until(|| known().is_some()).await;
        assert_eq!(known().unwrap().size, bytes.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_nobody_proves_takes_no_room_and_pushes_nothing_out_of_the_store() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let blob = Bytes::from("true".repeat(100_000));
    let digest = Digest::sha256(&blob);
    let invented = Bytes::from("false".repeat(500_000));
    let reference = lab.reference(&format!("app@{digest}"));
    let (host, repository) = (reference.host(), reference.repository());
    let node = lab.node_with(Some(3 << 20));
    let kept: Vec<_> = (0..5).map(|seed| lab.image(&seed.to_string())).collect();
    kept.iter().for_each(|image| node.put(image));
    let before = node.store.usage();
    for said in [&invented, &blob] {
        node.site.says(says_of(&reference, digest, said.len() as u64, "text/plain"));
    }
    node.peers.hold(digest, &invented);

    let refused = node.images.blob(host, repository, digest).await.err().unwrap();
    assert_eq!(refused.into_refusal(true).kind, RefusalKind::Unavailable);
    let after = node.store.usage();
    assert_eq!((after.used, after.blobs, after.partials), (before.used, before.blobs, 0));

    node.peers.hold(digest, &blob);
    let handle = node.images.blob(host, repository, digest).await.unwrap();
    assert_eq!(handle.size(), blob.len() as u64);
    let Fetched::Arriving(transfer) = handle.fetch().await.unwrap() else { panic!("it was not here") };
    transfer.wait().await.unwrap();
    assert!(node.store.holds(&digest) && kept.iter().all(|image| node.store.holds(&image.layer())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_as_long_as_neighbours_say_pushes_nothing_out_of_the_store() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let image = lab.image("app");
    let invented = Image { bytes: Bytes::from("false".repeat(500_000)), ..image.clone() };
    let tag = lab.reference("app:1");
    let by_digest = lab.reference(&format!("app@{}", image.digest));
    for reference in [tag, by_digest] {
        let node = lab.node_with(Some(3 << 20));
        let kept: Vec<_> = (0..100).map(|seed| lab.image(&seed.to_string().repeat(10))).collect();
        kept.iter().for_each(|image| node.put(image));
        let before = node.store.usage();
        node.site.says(record(&reference, &invented, NOW, NOW));
        node.peers.hold(image.digest, &invented.bytes);
        node.images.manifest(&reference).await.unwrap_err();
        let after = node.store.usage();
        assert_eq!((after.used, after.blobs, after.partials), (before.used, before.blobs, 0));
        // Whoever holds it proves how long it is.
        node.peers.hold(image.digest, &image.bytes);
        assert_eq!(node.images.manifest(&reference).await.unwrap().manifest, image.parsed());
        assert_eq!(node.store.usage().blobs, before.blobs + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_blob_belongs_to_is_remembered_once_however_many_ask_for_it() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let blob = Bytes::from("blob".repeat(100_000));
    let digest = Digest::sha256(&blob);
    let reference = lab.reference(&format!("app@{digest}"));
    let (host, repository) = (reference.host(), reference.repository());
    let node = lab.node();
    node.site.says(says_of(&reference, digest, blob.len() as u64, "text/plain"));
    node.peers.hold(digest, &blob);
    node.peers.giving.send_replace(false);
    let fetch = async || {
        let handle = node.images.blob(host, repository, digest).await.unwrap();
        assert!(matches!(handle.fetch().await.unwrap(), Fetched::Arriving(_)));
    };
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    fetch().await;
    let before = tasks();
    for _ in 0..50 {
        fetch().await;
    }
    // A few of the transfer's own come and go.
    assert!(tasks() < before + 10, "{} more tasks", tasks() - before);
    node.peers.giving.send_replace(true);
    until(|| node.images.records().grant(host, repository, &digest).unwrap().is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_false_word_about_a_manifest_hides_no_true_one() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let image = lab.image("app");
    let reference = lab.reference(&format!("app@{}", image.digest));
    let node = lab.node();
    node.put(&image);
    node.site.says(says_of(&reference, image.digest, 5, "application/vnd.oci.image.index.v1+json"));
    node.site.says(says_of(&reference, image.digest, image.bytes.len() as u64, OCI_MANIFEST));
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest, image.parsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_media_type_hides_nothing_and_is_not_passed_on() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let image = lab.image("app");
    let (tag, by_digest) = (lab.reference("app:1"), lab.reference(&format!("app@{}", image.digest)));
    let (host, repository) = (tag.host(), tag.repository());
    let size = image.bytes.len() as u64;
    for media_type in [OCI_INDEX, "text/plain", "application/vnd.oci.image.layer.v1.tar"] {
        let false_word = Image { media_type: media_type.to_owned(), ..image.clone() };
        let by_tag = lab.node();
        by_tag.put(&image);
        by_tag.site.says(record(&tag, &false_word, NOW, NOW));
        assert_eq!(by_tag.images.manifest(&tag).await.unwrap().manifest, image.parsed());
        assert_eq!(by_tag.images.local_images(Some).await.unwrap().len(), 1);

        // Whoever asks for it as a blob first has the same manifest afterwards.
        for as_blob in [false, true] {
            let node = lab.node();
            node.peers.hold(image.digest, &image.bytes);
            node.site.says(says_of(&by_digest, image.digest, size, media_type));
            if as_blob {
                let handle = node.images.blob(host, repository, image.digest).await.unwrap();
                if let Fetched::Arriving(transfer) = handle.fetch().await.unwrap() {
                    transfer.wait().await.unwrap();
                }
                until(|| node.images.vouch(&by_digest).is_some()).await;
                assert_eq!(node.images.vouch(&by_digest).unwrap().media_type.as_str(), "");
            }
            assert_eq!(node.images.manifest(&by_digest).await.unwrap().manifest, image.parsed());
            assert_eq!(node.images.vouch(&by_digest).unwrap().media_type.as_str(), OCI_MANIFEST);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_of_a_layer_is_no_manifest_and_is_answered_with_404() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let node = lab.node();
    let layer = lab.reference(&format!("app@{}", image.layer()));
    let refused = async || node.images.manifest(&layer).await.unwrap_err().into_refusal(false).kind;
    assert_eq!(refused().await, RefusalKind::ManifestUnknown);
    node.images.manifest(&lab.reference("app:1")).await.unwrap();
    assert_eq!(refused().await, RefusalKind::ManifestUnknown);
    node.put(&image);
    assert_eq!(refused().await, RefusalKind::ManifestUnknown);
    // One that nobody has told the type of, and too long for a manifest.
    let long = vec![7; 5 << 20];
    let digest = Digest::sha256(&long);
    node.store.put(&digest, &long).unwrap();
    let reference = lab.reference(&format!("app@{digest}"));
    node.site.says(says_of(&reference, digest, long.len() as u64, ""));
    let error = node.images.manifest(&reference).await.unwrap_err();
    assert_eq!(error.into_refusal(false).kind, RefusalKind::ManifestUnknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_opens_nothing_in_a_repository_that_it_is_not_known_to_belong_to() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let node = lab.node();
    node.put(&image);
    node.images.manifest(&lab.reference("app:1")).await.unwrap();
    let other = lab.reference(&format!("other@{}", image.layer()));
    let refused = node.images.blob(other.host(), other.repository(), image.layer()).await;
    assert_eq!(refused.err().unwrap().into_refusal(true).kind, RefusalKind::BlobUnknown);
    let manifest = lab.reference(&format!("other@{}", image.digest));
    let refused = node.images.manifest(&manifest).await.unwrap_err();
    assert_eq!(refused.into_refusal(false).kind, RefusalKind::ManifestUnknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_of_an_index_needs_belongs_to_the_repository_without_the_origin() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    let index = lab.index(&[(&image, "linux/amd64")]);
    lab.origin.tag("app", "1", &index);
    lab.origin.add("app", &image);
    for stored_before in [false, true] {
        let node = lab.node();
        if stored_before {
            node.put(&image);
        }
        node.images.manifest(&lab.reference("app:1")).await.unwrap();
        node.images.manifest(&lab.reference(&format!("app@{}", image.digest))).await.unwrap();
        for (digest, bytes) in &image.blobs {
            let reference = lab.reference("app:1");
            let grant = node.images.records().grant(reference.host(), reference.repository(), digest);
            assert_eq!(grant.unwrap().unwrap().size, bytes.len() as u64);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_no_confirmation_by_the_origin_here_or_at_a_neighbour() {
    let lab = Lab::new().await;
    let (imported, published) = (lab.image("imported"), lab.image("published"));
    lab.origin.tag("app", "1", &published);
    let reference = lab.reference("app:1");
    let (importer, neighbour) = (lab.node(), lab.node());
    importer.put(&imported);
    neighbour.put(&imported);
    importer.images.set_tag(&reference, &imported.parsed()).await.unwrap();
    neighbour.site.says(importer.images.vouch(&reference).unwrap());
    for node in [&neighbour, &importer] {
        let resolved = node.images.manifest(&reference).await.unwrap();
        assert_eq!((resolved.manifest.digest(), resolved.source), (&published.digest, Source::Origin));
    }
    // Without the origin the import serves, and nothing is said of its age.
    lab.origin.stop();
    let alone = lab.node();
    alone.put(&imported);
    alone.images.set_tag(&reference, &imported.parsed()).await.unwrap();
    let resolved = alone.images.manifest(&reference).await.unwrap();
    assert_eq!((resolved.manifest.digest(), resolved.age), (&imported.digest, None));
    assert_eq!(alone.images.local_images(Some).await.unwrap()[0].since, Some(NOW));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_by_a_node_whose_time_is_over_is_vouched_for_by_those_that_remain() {
    let lab = Lab::new().await;
    lab.origin.stop();
    let image = lab.image("app");
    let reference = lab.reference("app:1");
    let node = lab.node();
    node.put(&image);
    node.site.says(record_until(&reference, &image, NOW + 10));
    node.images.manifest(&reference).await.unwrap();
    let before = node.images.vouch(&reference).unwrap();
    lab.clock_to(NOW + 10);
    let after = node.images.vouch(&reference).unwrap();
    assert_ne!(before.signer(), after.signer());
    assert_eq!((before.digest, before.sequence, before.time), (after.digest, after.sequence, after.time));
    after.check(&network(), NOW + 10, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_an_image_that_has_made_room_but_what_is_known_to_be_of_it() {
    let lab = Lab::new().await;
    // Each takes three blocks of the disk, and what is on its way one more.
    let node = lab.node_with(Some(7 * 4096));
    for seed in ["aaaa", "bbbb", "cccc"] {
        let (tag, image) = (lab.reference(&format!("{seed}:1")), lab.image(seed));
        lab.origin.tag(seed, "1", &image);
        node.images.pull(&tag, &How::default(), &Nobody).await.unwrap();
        let here: Vec<Digest> = node.store.blobs().map(|(digest, _)| digest).collect();
        let users = node.images.users_of(here.iter().copied().collect()).await.unwrap();
        assert_eq!(here.iter().filter(|blob| !users.contains_key(blob)).count(), 0);
        assert!(image.blobs.iter().all(|(blob, _)| here.contains(blob)), "it is whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_whole_images_is_right_as_soon_as_something_has_come_or_left() {
    let lab = Lab::new().await;
    let (tag, image) = (lab.reference("app:1"), lab.image("app"));
    lab.origin.tag("app", "1", &image);
    let node = lab.node();
    for _ in 0..3 {
        assert_eq!(node.images.whole_images().await, 0);
        node.images.pull(&tag, &How::default(), &Nobody).await.unwrap();
        assert_eq!(node.images.whole_images().await, 1);
        node.store.remove(&image.layer()).unwrap();
        assert_eq!(node.images.whole_images().await, 0);
        node.put(&image);
        assert_eq!(node.images.whole_images().await, 1);
        node.images.set_tag(&lab.reference("copy:1"), &image.parsed()).await.unwrap();
        assert_eq!(node.images.whole_images().await, 2);
        node.images.forget(&lab.reference("copy:1").into()).await.unwrap();
        assert_eq!(node.images.whole_images().await, 1);
        node.store.remove(&image.digest).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_for_another_platform_brings_that_one_and_nothing_else() {
    let lab = Lab::new().await;
    let (intel, arm) = (lab.image("intel"), lab.image("arm"));
    let index = lab.index(&[(&intel, "linux/amd64"), (&arm, "linux/arm/v6")]);
    lab.origin.tag("app", "1", &index);
    lab.origin.add("app", &intel);
    lab.origin.add("app", &arm);
    let (node, reference) = (lab.node(), lab.reference("app:1"));
    let pull = |platform| pull_for(&node, &reference, platform);
    assert_eq!(pull("linux/arm/v7").await.unwrap().digest, index.digest);
    // Nodes that might have held its manifest were asked before the origin: nothing is left of that.
    assert_eq!(node.store.usage().partials, 0);
    assert!(node.store.holds(&arm.layer()) && !node.store.holds(&intel.layer()));
    assert_eq!(node.images.whole_images().await, 1);

    let error = pull("linux/s390x").await.unwrap_err().to_string();
    assert!(error.contains("linux/amd64, linux/arm/v6") && error.contains("--platform"), "{error}");
    let wanted = |platform: &str| Some(parse_platform(platform).unwrap());
    let local = async |platform: &str| {
        node.images
            .local_image(&reference, wanted(platform).as_ref())
            .await
            .map(|image| image.map(|i| i.image))
    };
    assert_eq!(local("linux/arm").await.unwrap(), Some(arm.parsed()));
    assert_eq!(local("linux/amd64").await.unwrap(), None);
    assert!(local("linux/s390x").await.unwrap_err().to_string().contains("linux/arm/v6"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_one_platform_is_not_pulled_for_another() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let (node, reference) = (lab.node(), lab.reference("app:1"));
    let pull = |platform| pull_for(&node, &reference, platform);
    let error = pull("linux/arm64").await.unwrap_err().to_string();
    assert!(error.contains("for linux/amd64"), "{error}");
    assert!(!node.store.holds(&image.layer()));
    pull("linux/amd64").await.unwrap();
    assert!(node.store.holds(&image.layer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tags_of_a_repository_are_those_of_the_whole_site() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    let node = lab.node();
    let ask = || Ask {
        client: "127.0.0.1:1".parse().unwrap(),
        credential: None,
        origin: Some(lab.host.clone()),
        repository: "app".parse().unwrap(),
        is_mirror: false,
    };
    let refused = Content::tags(&node.images, ask()).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::NameUnknown);
    for own in ["b", "c"] {
        node.images.set_tag(&lab.reference(&format!("app:{own}")), &image.parsed()).await.unwrap();
    }
    assert_eq!(Content::tags(&node.images, ask()).await.unwrap(), ["b", "c"]);
    for theirs in ["app:a", "app:c", "app2:x"] {
        node.site.says(record(&lab.reference(theirs), &image, NOW, NOW));
    }
    assert_eq!(Content::tags(&node.images, ask()).await.unwrap(), ["a", "b", "c"]);
}

fn route(lab: &Lab, repository: &str) -> Route {
    Route { host: lab.host.clone(), repository: repository.parse().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_node_a_blob_is_read_only_if_the_origin_has_it_and_of_the_length_that_is_asked_for() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let (digest, size) = (image.layer(), image.blobs[1].1.len() as u64);
    let node = lab.node();
    let may = async |repository: &str, digest, size| {
        node.images.may_read_for_others(&route(&lab, repository), digest, size).await
    };
    assert_eq!(may("app", digest, size).await, Ok(()));
    assert_eq!(may("app", digest, 60 << 30).await, Err(LeadRefusal::NoRoute));
    assert_eq!(may("app", Digest::sha256(b"invented"), size).await, Err(LeadRefusal::NoRoute));
    assert_eq!(may(FORBIDDEN, digest, size).await, Err(LeadRefusal::NoCredentials));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_for_which_a_node_has_credentials_is_asked_nothing_for_others() {
    let lab = Lab::new().await;
    let image = lab.image("app");
    lab.origin.tag("app", "1", &image);
    let reference = lab.reference("app:1");
    let node = lab.node_with_credentials();
    let (digest, size) = (image.layer(), image.blobs[1].1.len() as u64);
    let refused = node.images.may_read_for_others(&route(&lab, "app"), digest, size).await;
    assert_eq!(refused, Err(LeadRefusal::NotForYou));
    assert_eq!(node.images.resolve_for(&reference).await, None);
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), 0);
    // It asks for itself.
    node.images.manifest(&reference).await.unwrap();
    assert_eq!(lab.node().images.resolve_for(&reference).await.unwrap().record.digest, image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_member_sends_a_node_to_an_origin_that_it_does_not_know() {
    let lab = Lab::new().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = Lab::at(elsewhere.local_addr().unwrap().to_string().parse().unwrap());
    let dialled = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let dialled = dialled.clone();
        async move {
            while elsewhere.accept().await.is_ok() {
                dialled.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let (node, image) = (lab.node(), lab.image("app"));
    let asked = async |repository: &str| {
        let refused = node.images.may_read_for_others(&route(&other, repository), image.layer(), 1).await;
        assert_eq!(refused, Err(LeadRefusal::NoRoute));
        dialled.load(Ordering::Relaxed)
    };
    assert_eq!(asked("app").await, 0);
    // Once the node has used it, it is dialled, for that repository alone.
    node.images.set_tag(&other.reference("app:1"), &image.parsed()).await.unwrap();
    assert_eq!(asked("other").await, 0);
    assert!(asked("app").await > 0);
}

async fn pull_for(node: &Node, reference: &Reference, platform: &str) -> Result<Pulled, ImageError> {
    let how = How { platform: Some(parse_platform(platform).unwrap()), ..How::default() };
    node.images.pull(reference, &how, &Nobody).await
}
