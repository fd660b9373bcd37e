use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn descriptor(size: u64) -> Value {
    json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::sha256(b"x"), "size": size })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": { "mediaType": media_type::OCI_CONFIG, "digest": Digest::sha256(b"c"), "size": 1 },
        "layers": [descriptor(7)],
    })
}

fn bytes(value: &Value) -> Bytes {
    Bytes::from(serde_json::to_vec(value).unwrap())
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(bytes(value), None)
}

fn with(mut value: Value, key: &str, to: Value) -> Value {
    value[key] = to;
    value
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key);
    value
}

#[test]
fn an_image_is_read_and_its_bytes_are_kept() {
    let raw = Bytes::from(format!("  {}\n", image()));
    let manifest =
        Manifest::parse(raw.clone(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"))
            .unwrap();
    assert_eq!(manifest.raw(), &raw);
    assert_eq!(manifest.digest(), &Digest::sha256(&raw));
    assert_eq!(manifest.media_type(), media_type::OCI_MANIFEST);
    assert_eq!(manifest.size(), raw.len() as u64);
    let image = manifest.image().unwrap();
    assert_eq!((image.config.size, image.layers[0].size), (1, 7));
    assert_eq!(image.blobs().count(), 2);
}

#[test]
fn a_layer_that_stands_twice_is_one_blob() {
    let manifest = parse(&with(image(), "layers", json!([descriptor(7), descriptor(7)]))).unwrap();
    assert_eq!(manifest.image().unwrap().layers.len(), 2);
    assert_eq!(manifest.image().unwrap().blobs().count(), 2);
}

#[test]
fn an_index_keeps_its_platforms_and_foreign_layers_are_known() {
    let mut entry = descriptor(7);
    entry["platform"] = json!({ "architecture": "arm", "os": "linux", "variant": "v7", "os.version": "1" });
    entry["annotations"] = json!({ "Config": "free", "config": "free" });
    let manifest = parse(&json!({ "schemaVersion": 2, "manifests": [entry] })).unwrap();
    assert_eq!(manifest.media_type(), media_type::OCI_INDEX);
    let platform = manifest.index().unwrap().manifests[0].platform.clone().unwrap();
    assert_eq!(platform.to_string(), "linux/arm/v7");
    assert_eq!(platform.os_version.as_deref(), Some("1"));

    let mut foreign = descriptor(7);
    foreign["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    foreign["urls"] = Value::Null;
    let manifest = parse(&with(image(), "layers", json!([foreign]))).unwrap();
    assert!(manifest.image().unwrap().layers[0].is_foreign());
}

#[test]
fn the_content_type_decides_where_the_document_is_silent() {
    let silent = without(image(), "mediaType");
    let parsed =
        |content_type| Manifest::parse(bytes(&silent), content_type).unwrap().media_type().to_owned();
    assert_eq!(parsed(None), media_type::OCI_MANIFEST);
    assert_eq!(parsed(Some("application/json")), media_type::OCI_MANIFEST);
    assert_eq!(parsed(Some(media_type::DOCKER_MANIFEST)), media_type::DOCKER_MANIFEST);
}

#[test]
fn what_two_programs_would_read_differently_is_refused() {
    assert_eq!(parse(&with(image(), "manifests", json!([]))), Err(ManifestError::Ambiguous));
    assert_eq!(parse(&with(image(), "manifests", Value::Null)), Err(ManifestError::Ambiguous));
    assert_eq!(
        parse(&with(image(), "Layers", json!([]))),
        Err(ManifestError::AmbiguousKey("Layers".to_owned()))
    );
    let mismatch = Manifest::parse(bytes(&image()), Some(media_type::OCI_INDEX));
    assert!(matches!(mismatch, Err(ManifestError::MediaTypeMismatch { .. })), "{mismatch:?}");
    let mismatch = Manifest::parse(bytes(&image()), Some("application/json"));
    assert!(matches!(mismatch, Err(ManifestError::MediaTypeMismatch { .. })), "{mismatch:?}");

    let text = image().to_string();
    for twice in [
        text.replacen("{", "{\"layers\":[],", 1),
        text.replacen("\"size\":1", "\"size\":1,\"size\":2", 1),
        text.replacen("\"size\":1", "\"size\":1,\"annotations\":{\"a\":\"1\",\"a\":\"2\"}", 1),
        text.replacen("\"size\":1", "\"size\":1,\"unknown\":[{\"a\":1,\"a\":2}]", 1),
        text.replacen("\"size\":1", "\"size\":1,\"s\\u0069ze\":2", 1),
    ] {
        let error = Manifest::parse(Bytes::from(twice.clone()), None).unwrap_err();
        assert!(matches!(&error, ManifestError::Json(why) if why.contains("twice")), "{twice}: {error}");
    }
}

#[test]
fn sizes_and_counts_are_bounded() {
    for size in [json!(-1), json!(1.5), json!("7"), json!(u64::MAX), json!(1e30)] {
        let mut layer = descriptor(7);
        layer["size"] = size.clone();
        assert!(parse(&with(image(), "layers", json!([layer]))).is_err(), "{size}");
    }
    assert_eq!(
        parse(&with(image(), "layers", json!([descriptor(MAX_BLOB + 1)]))),
        Err(ManifestError::BlobTooLong(MAX_BLOB + 1))
    );
    let index = |entries| json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": vec![descriptor(1); entries] });
    assert!(parse(&index(MAX_INDEX_ENTRIES)).is_ok());
    assert_eq!(
        parse(&index(MAX_INDEX_ENTRIES + 1)),
        Err(ManifestError::TooManyEntries(MAX_INDEX_ENTRIES + 1))
    );

    let padded = |length: usize| {
        let mut text = image().to_string();
        text.push_str(&" ".repeat(length - text.len()));
        Manifest::parse(Bytes::from(text), None)
    };
    assert!(padded(MAX_MANIFEST).is_ok());
    assert_eq!(padded(MAX_MANIFEST + 1), Err(ManifestError::TooLong { size: MAX_MANIFEST as u64 + 1 }));
}

#[test]
fn what_is_no_manifest_says_what_it_lacks() {
    let schema1 = json!({ "schemaVersion": 1, "name": "x", "fsLayers": [] });
    assert!(matches!(parse(&schema1), Err(ManifestError::MediaType(_))));
    let signed =
        Manifest::parse(bytes(&schema1), Some("application/vnd.docker.distribution.manifest.v1+prettyjws"));
    assert!(matches!(signed, Err(ManifestError::MediaType(_))));
    assert!(matches!(
        parse(&without(image(), "config")),
        Err(ManifestError::Missing { missing: "config", .. })
    ));
    assert!(matches!(
        parse(&without(image(), "layers")),
        Err(ManifestError::Missing { missing: "layers", .. })
    ));
    let as_index = with(image(), "mediaType", json!(media_type::OCI_INDEX));
    assert!(matches!(parse(&as_index), Err(ManifestError::Missing { missing: "manifests", .. })));
    for garbage in ["", "{", "[]", "null", "{}x", "{\"config\":3}", "\u{feff}{}"] {
        assert!(Manifest::parse(Bytes::from(garbage), None).is_err(), "{garbage}");
    }
    for (other, is) in [("[]", "a list"), (" null", "null"), ("7", "a number"), ("\"x\"", "a string")] {
        let error = Manifest::parse(Bytes::from(other), None).unwrap_err();
        assert_eq!(error, ManifestError::NotAnObject(is));
        assert!(error.to_string().contains(&format!("is {is}, and a JSON object is expected")), "{error}");
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Manifest::parse(Bytes::from(deep), None).is_err());
}

#[test]
fn a_manifest_asked_for_by_digest_is_that_one() {
    let raw = bytes(&image());
    let right = Digest::of(wherry_proto::Algorithm::Sha512, &raw);
    assert_eq!(Manifest::parse_as(raw.clone(), None, &right).unwrap().digest(), &right);
    let wrong = Digest::sha256(b"other");
    assert!(matches!(Manifest::parse_as(raw, None, &wrong), Err(ManifestError::Digest { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_taken_without_harm(raw in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..400, flip in any::<u8>()) {
        crate::hostile::manifests(&raw);
        let mut text = image().to_string().into_bytes();
        let at = cut % text.len();
        text[at] ^= flip;
        crate::hostile::manifests(&text);
        text.truncate(at);
        prop_assert!(Manifest::parse(Bytes::from(text), None).is_err());
    }
}

#[test]
fn however_long_what_is_wrong_the_error_is_a_line() {
    let long = "é\"".repeat(1 << 18);
    let media_type = with(image(), "mediaType", json!(long));
    for (wrong, content_type) in [
        (json!(long), None),
        (with(image(), "layers", json!(long)), None),
        (with(image(), "config", json!({ (long.clone()): 1, "digest": long })), None),
        (media_type.clone(), None),
        (media_type, Some(media_type::OCI_INDEX)),
    ] {
        let error = Manifest::parse(bytes(&wrong), content_type).unwrap_err().to_string();
        assert!(error.len() < 1024, "{} bytes: {error:.400}", error.len());
    }
    let error = parse(&with(image(), "layers", json!(long))).unwrap_err().to_string();
    assert!(error.contains("… at line 1 column "), "{error}");
}
