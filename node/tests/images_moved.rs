//! Tags that move, and what they meant before: with an origin that goes away, and neighbours that know more.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod images_support;

use std::sync::atomic::Ordering;

use images_support::*;
use tokio::runtime::Handle;
use wherry_gateway::server::{Ask, BlobReader as _, Content, Want};
use wherry_gateway::{Descriptor, Manifest, Reference};
use wherry_node::images::{How, ImageError, LocalImage, MAX_BEFORE, PullEvents, TagEntry};
use wherry_node::transfer::Progress;
use wherry_proto::Digest;

/// A node that has the image that a tag means, and another image that it does not mean yet.
struct Old {
    lab: Lab,
    node: Node,
    tag: Reference,
    old: Image,
    new: Image,
}

async fn old() -> Old {
    let lab = Lab::new().await;
    let (old, new) = (lab.image("old"), lab.image("new"));
    let tag = lab.reference("app:1");
    lab.origin.tag("app", "1", &old);
    let node = lab.node();
    node.images.pull(&tag, &How::default(), &Nobody).await.unwrap();
    Old { lab, node, tag, old, new }
}

async fn names(node: &Node) -> Vec<String> {
    node.images.local_images(|image: LocalImage| Some(image.name.to_string())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_a_tag_that_has_moved_to_what_cannot_be_had_names_what_it_meant_before() {
    let Old { lab, node, tag, old, new } = old().await;
    assert_eq!(names(&node).await, [tag.to_string()]);

    // As for a neighbour that wants to know what the tag means.
    lab.origin.tag("app", "1", &new);
    lab.clock_to(NOW + 100);
    assert_eq!(node.images.resolve_for(&tag).await.unwrap().record.digest, new.digest);
    lab.origin.stop();
    let by_digest = lab.reference(&format!("app@{}", old.digest)).to_string();

    let error = node.images.pull(&tag, &How::default(), &Nobody).await.unwrap_err();
    assert!(matches!(error, ImageError::Moved { .. }), "{error}");
    let said = error.to_string();
    for part in ["has moved", &new.digest.to_string(), &by_digest] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The tag means the new image all the same.
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
    assert_eq!(names(&node).await, [tag.to_string(), by_digest.clone()]);

    // A runtime that has got the manifest and asks for the blobs is told as well.
    let ask = Ask {
        origin: Some(lab.host.clone()),
        repository: "app".parse().unwrap(),
        client: "127.0.0.1:1".parse().unwrap(),
        credential: None,
        is_mirror: false,
    };
    let refusal = match Content::blob(&node.images, ask, new.layer(), Want::Get).await {
        Ok(handle) => handle.read(0..handle.size()).await.err(),
        Err(refusal) => Some(refusal),
    };
    let message = refusal.unwrap().message;
    assert!(message.contains(&by_digest), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_be_had_is_refused_with_what_there_is_instead() {
    let Old { lab, node, tag, old, new } = old().await;
    lab.origin.stop();
    lab.clock_to(NOW + 100);
    node.site.says(record(&tag, &new, NOW + 50, NOW + 50));

    let refusal = node.images.manifest(&tag).await.unwrap_err().into_refusal(false);
    let by_digest = lab.reference(&format!("app@{}", old.digest)).to_string();
    assert!(refusal.message.contains(&by_digest), "{}", refusal.message);
    assert!(refusal.retry_after.is_some(), "the origin may come back");
    // It can be had so, and what else was asked for says nothing of it.
    let reference = by_digest.parse().unwrap();
    assert_eq!(node.images.manifest(&reference).await.unwrap().manifest.digest(), &old.digest);
    let other = node.images.manifest(&lab.reference("app:2")).await.unwrap_err();
    assert!(!other.to_string().contains("moved"), "{other}");

    // Once it is not whole any more it is no help.
    node.store.remove(&old.layer()).unwrap();
    let error = node.images.manifest(&tag).await.unwrap_err();
    assert!(!error.to_string().contains("moved"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_again_and_again_is_remembered_by_its_last_meanings_and_those_that_are_whole() {
    let lab = Lab::new().await;
    let tag = lab.reference("app:1");
    let node = lab.node();
    let whole = lab.image("whole");
    lab.origin.tag("app", "1", &whole);
    node.images.pull(&tag, &How::default(), &Nobody).await.unwrap();
    // More often than is remembered, and of what comes nothing but the manifest is here.
    for round in 1..=2 * MAX_BEFORE as u64 {
        lab.origin.tag("app", "1", &lab.image(&format!("image {round}")));
        lab.clock_to(NOW + 100 * round);
        node.images.manifest(&tag).await.unwrap();
        assert!(node.images.records().before(&tag).unwrap().len() <= MAX_BEFORE);
    }
    let moved = node.images.moved(&tag).await.unwrap().unwrap();
    assert_eq!(moved.before.target().digest(), Some(&whole.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_tag_means_is_found_once_and_never_its_parts() {
    let lab = Lab::new().await;
    let (amd, arm) = (lab.image("amd64"), lab.image("arm64"));
    let index = lab.index(&[(&amd, "linux/amd64"), (&arm, "linux/arm64")]);
    let tag = lab.reference("app:1");
    for repository in ["app", "copy"] {
        lab.origin.add(repository, &amd);
        lab.origin.add(repository, &arm);
        lab.origin.tag(repository, "1", &index);
    }
    let node = lab.node();
    for tag in [&tag, &lab.reference("copy:1")] {
        for platform in ["linux/amd64", "linux/arm64"] {
            let platform = wherry_node::images::parse_platform(platform).unwrap();
            node.images
                .pull(tag, &How { platform: Some(platform.clone()), ..How::default() }, &Nobody)
                .await
                .unwrap();
        }
    }
    assert_eq!(names(&node).await.len(), 2, "the tags alone");
    let next = lab.image("next");
    for repository in ["app", "copy"] {
        lab.origin.tag(repository, "1", &next);
    }
    lab.clock_to(NOW + 100);
    node.images.manifest(&tag).await.unwrap();
    node.images.manifest(&lab.reference("copy:1")).await.unwrap();
    let by_digest = lab.reference(&format!("app@{}", index.digest)).to_string();
    assert_eq!(names(&node).await.last(), Some(&by_digest));
    assert_eq!(names(&node).await.len(), 3, "{:?}", names(&node).await);

    // Whole digests, digits alone and their beginnings lead to it, and to the image of each platform.
    for image in [&index, &amd, &arm] {
        let (whole, digits) = (image.digest.to_string(), image.digest.hex());
        for text in [&whole, &digits, &whole[..7 + 12], &digits[..12]] {
            let found = node.images.known_by_digest(text).await.unwrap();
            assert_eq!(found.len(), 1, "{text}");
            assert_eq!((found[0].digest(), found[0].name.to_string()), (image.digest, by_digest.clone()));
        }
    }
    let users = node.images.users_of([arm.layer()].into()).await.unwrap();
    assert_eq!(users[&arm.layer()].iter().collect::<Vec<_>>(), [&by_digest]);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_are_told_of_a_tag_when_it_means_something_else_and_of_nothing_more() {
    let Old { lab, node, tag, old, new } = old().await;
    assert_eq!(node.site.was_told(), [], "who learns what a tag means has said nothing else of it");
    for (image, time) in [(&new, NOW + 200), (&old, NOW + 400)] {
        lab.origin.tag("app", "1", image);
        lab.clock_to(time);
        node.images.manifest(&tag).await.unwrap();
        let told = node.site.was_told();
        let told: Vec<_> = told.iter().map(|record| (record.reference.as_str(), record.digest)).collect();
        assert_eq!(told, [(tag.to_string().as_str(), image.digest)]);
        // From memory, and confirmed anew.
        for after in [1, 100] {
            lab.clock_to(time + after);
            node.images.manifest(&tag).await.unwrap();
        }
        node.images.manifest(&lab.reference(&format!("app@{}", image.digest))).await.unwrap();
        assert_eq!(node.site.was_told(), []);
    }
    // What a neighbour says was told by whoever learned it.
    let newer = lab.image("newer");
    lab.clock_to(NOW + 600);
    node.put(&newer);
    node.site.says(record(&tag, &newer, NOW + 600, NOW + 600));
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &newer.digest);
    assert_eq!(node.site.was_told(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_neighbour_tells_of_a_tag_outlives_it_and_moves_no_tag_backwards() {
    let Old { lab, node, tag, old, new } = old().await;
    lab.origin.stop();
    let known = || node.images.records().tag(&tag).unwrap().unwrap().record;
    let (before, news) = (known(), node.images.news());
    let has_news = || news.has_changed().unwrap();
    // What is no newer changes nothing, and costs nothing.
    let changes = node.images.records().changes();
    for sequence in [before.sequence, before.sequence - 1] {
        assert!(node.told(&record(&tag, &old, sequence, NOW)));
    }
    assert_eq!((known(), node.images.records().changes(), has_news()), (before.clone(), changes, false));
    // Nor is it news that it means what it did.
    assert!(node.told(&record(&tag, &old, NOW + 1, NOW)));
    assert_eq!((known().sequence, has_news()), (NOW + 1, false));
    assert!(node.told(&record(&tag, &new, NOW + 2, NOW)));
    assert_eq!((known().digest, has_news()), (new.digest, true));
    // It knows better.
    assert!(node.told(&record(&tag, &old, NOW + 1, NOW)));
    // No clock is so wrong; nobody signed this; no tag.
    let mut forged = record(&tag, &old, NOW + 3, NOW);
    forged.digest = lab.image("forged").digest;
    let digest = lab.reference(&format!("app@{}", old.digest));
    for refused in [record(&tag, &old, NOW + 2 * DAY, NOW), forged, record(&digest, &old, NOW + 3, NOW)] {
        assert!(!node.told(&refused));
    }
    assert_eq!(known().digest, new.digest);
    node.put(&new);
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_a_tag_that_is_not_known_here_is_not_kept() {
    let Old { lab, node, new, .. } = old().await;
    let other = lab.reference("app:2");
    let changes = node.images.records().changes();
    assert!(node.told(&record(&other, &new, NOW + 1, NOW)));
    assert_eq!(node.images.records().tag(&other).unwrap(), None);
    assert_eq!(node.images.records().changes(), changes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_long_on_its_way_moves_no_tag_back_to_what_it_meant_before() {
    let Old { lab, node, tag, old, new } = old().await;
    node.site.was_told();
    lab.clock_to(NOW + 100);
    lab.origin.holding.send_replace(true);
    let asked = || lab.origin.asked.load(Ordering::Relaxed);
    let before = asked();
    let images = node.images.clone();
    let asking = tokio::spawn({
        let tag = tag.clone();
        async move { images.manifest(&tag).await }
    });
    until(|| asked() > before).await;

    lab.origin.tag("app", "1", &new);
    assert!(node.told(&record(&tag, &new, NOW + 101, NOW + 101)));
    lab.origin.holding.send_replace(false);
    assert_eq!(asking.await.unwrap().unwrap().manifest.digest(), &new.digest);
    let known = node.images.records().tag(&tag).unwrap().unwrap();
    assert_eq!((known.record.digest, known.record.sequence), (new.digest, NOW + 101));
    assert_eq!(node.site.was_told(), []);

    // That it has moved back is believed once the origin says so after that.
    lab.origin.tag("app", "1", &old);
    lab.clock_to(NOW + 300);
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &old.digest);
    assert_eq!(node.images.records().tag(&tag).unwrap().unwrap().record.digest, old.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_away_when_a_tag_moved_asks_the_site_once_before_it_says_what_the_tag_means() {
    let Old { lab, node, tag, old, new } = old().await;
    let asked = lab.origin.asked.load(Ordering::Relaxed);
    node.put(&new);
    // Nobody has come: what it has just learned serves.
    node.site.says(record(&tag, &new, NOW + 1, NOW + 1));
    assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &old.digest);
    node.site.meetings.fetch_add(1, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(node.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
        node.site.falls_silent();
    }

    // One that was started again.
    let again = lab.node();
    for image in [&old, &new] {
        again.put(image);
    }
    let record_of = |image, sequence| record(&tag, image, sequence, NOW);
    let entry = TagEntry { record: record_of(&old, NOW), confirmed: NOW, since: NOW };
    again.images.records().change_tag(&tag, NOW, |_| Some(entry.clone())).unwrap();
    again.site.says(record_of(&new, NOW + 1));
    assert_eq!(again.images.manifest(&tag).await.unwrap().manifest.digest(), &new.digest);
    // The origin was asked by none of them.
    assert_eq!(lab.origin.asked.load(Ordering::Relaxed), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_an_image_leaves_with_its_manifest_and_what_others_need_stays() {
    let lab = Lab::new().await;
    let (amd, arm, other) = (lab.image("amd64"), lab.image("arm64"), lab.image("other"));
    let index = lab.index(&[(&amd, "linux/amd64"), (&arm, "linux/arm64")]);
    for image in [&amd, &arm] {
        lab.origin.add("app", image);
    }
    lab.origin.tag("app", "1", &index);
    lab.origin.tag("app", "2", &other);
    let node = lab.node();
    let platform = wherry_node::images::parse_platform("linux/amd64").unwrap();
    node.images
        .pull(&lab.reference("app:1"), &How { platform: Some(platform.clone()), ..How::default() }, &Nobody)
        .await
        .unwrap();
    node.images.pull(&lab.reference("app:2"), &How::default(), &Nobody).await.unwrap();
    let grants = |digests: &[Digest]| {
        let app = lab.reference("app:1");
        let known = |digest| node.images.records().grant(app.host(), app.repository(), digest).unwrap();
        digests.iter().map(|digest| known(digest).is_some()).collect::<Vec<_>>()
    };
    let all = [index.digest, amd.digest, amd.layer(), arm.digest, other.digest, other.layer()];
    assert_eq!(grants(&all), [true; 6]);

    // The image of the platform goes, and the index still names it; what it named itself goes too.
    for blob in [amd.digest, amd.layer()] {
        node.store.remove(&blob).unwrap();
    }
    node.images.forget_left(Some([amd.digest].into())).await.unwrap();
    assert_eq!(grants(&all), [true, true, false, true, true, true]);
    // All of it is learned again by whoever wants it.
    node.images
        .pull(&lab.reference("app:1"), &How { platform: Some(platform.clone()), ..How::default() }, &Nobody)
        .await
        .unwrap();
    assert_eq!(grants(&all), [true; 6]);

    // Of what is here nothing is forgotten: its manifest may come again. Nor of what a tag means.
    node.store.remove(&index.digest).unwrap();
    node.store.remove(&other.digest).unwrap();
    node.images.forget_left(None).await.unwrap();
    assert_eq!(grants(&all), [true, true, true, false, true, true]);
    // Nor of what one has meant before, as long as it is remembered.
    lab.origin.tag("app", "2", &lab.image("next"));
    lab.clock_to(NOW + 100);
    node.images.manifest(&lab.reference("app:2")).await.unwrap();
    node.images.forget_left(None).await.unwrap();
    assert_eq!(grants(&all), [true, true, true, false, true, true]);
    for tag in ["app:1", "app:2"] {
        node.images.forget(&lab.reference(tag).into()).await.unwrap();
    }
    assert_eq!(grants(&all), [false, true, true, false, false, true]);
}

/// Its manifest leaves as soon as it has been resolved.
struct Leaving<'a>(&'a Node);

impl PullEvents for Leaving<'_> {
    fn resolved(&self, manifest: &Manifest) {
        let Leaving(node) = self;
        node.store.remove(manifest.digest()).unwrap();
        let left = node.images.forget_left(Some([*manifest.digest()].into()));
        tokio::task::block_in_place(|| Handle::current().block_on(left).unwrap());
    }
    fn started(&self, _: &Descriptor, _: bool, _: u64) {}
    fn progress(&self, _: &Digest, _: Progress) {}
    fn done(&self, _: &Digest, _: bool, _: Progress) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_manifest_leaves_meanwhile_has_all_of_it_known_in_the_end() {
    let lab = Lab::new().await;
    let (tag, image) = (lab.reference("app:1"), lab.image("app"));
    lab.origin.tag("app", "1", &image);
    let node = lab.node();
    node.images.pull(&tag, &How::default(), &Leaving(&node)).await.unwrap();
    assert!(node.store.holds(&image.digest));
    let grant = |digest| node.images.records().grant(tag.host(), tag.repository(), digest).unwrap();
    assert!(grant(&image.digest).is_some_and(|grant| grant.unfolded));
    assert!(
        image.blobs.iter().all(|(blob, _)| grant(blob).is_some_and(|grant| !grant.media_type.is_empty()))
    );
}
