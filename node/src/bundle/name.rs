//! The names that entries of an image archive may have.

use wherry_proto::{Algorithm, Digest};

/// What an entry is, told by its name. There is no other way into the store: a name that is none of these is an
/// error, and no name ever becomes a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// `oci-layout`
    Layout,
    /// `index.json`
    Index,
    /// `manifest.json`
    DockerManifest,
    /// `blobs/<algorithm>/<hex>`
    Blob(Digest),
    /// `<hex>.json` or `sha256:<hex>`: an image configuration, named by its digest.
    Config(Digest),
    /// `<hex>.tar`, `<hex>.tar.gz` or `<hex>/layer.tar`: a layer, named by anything.
    Layer,
    /// What old clients need and nobody reads: `repositories`, `<hex>/json`, `<hex>/VERSION`.
    Legacy,
    /// A folder of the above.
    Folder,
}

/// The name without what tar writers put around it.
pub(super) fn normal(name: &str) -> &str {
    let name = name.strip_prefix("./").unwrap_or(name);
    name.strip_suffix('/').unwrap_or(name)
}

/// Reads a name that went through [`normal`].
pub(super) fn parse(name: &str) -> Option<Name> {
    match name {
        "oci-layout" => return Some(Name::Layout),
        "index.json" => return Some(Name::Index),
        "manifest.json" => return Some(Name::DockerManifest),
        "repositories" => return Some(Name::Legacy),
        "" | "." | "blobs" | "blobs/sha256" | "blobs/sha512" => return Some(Name::Folder),
        _ => {}
    }
    if let Some(blob) = name.strip_prefix("blobs/") {
        let (algorithm, hex) = blob.split_once('/')?;
        return format!("{algorithm}:{hex}").parse().ok().map(Name::Blob);
    }
    if name.starts_with("sha256:") {
        return name.parse().ok().map(Name::Config);
    }
    let (hex, rest) = name.split_at_checked(2 * Algorithm::Sha256.output_len())?;
    let digest: Digest = format!("sha256:{hex}").parse().ok()?;
    match rest {
        ".json" => Some(Name::Config(digest)),
        ".tar" | ".tar.gz" | "/layer.tar" => Some(Name::Layer),
        "/json" | "/VERSION" => Some(Name::Legacy),
        "" => Some(Name::Folder),
        _ => None,
    }
}

/// The layer that a link of an old docker-archive stands for: `../<hex>/layer.tar` or `../<hex>.tar`.
pub(super) fn link_target(target: &str) -> Option<&str> {
    let target = target.strip_prefix("../")?;
    (parse(target)? == Name::Layer).then_some(target)
}

/// The path of a blob in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn fixed_names_are_known_and_all_others_are_not() {
        let empty = Digest::sha256(b"");
        let known = [
            ("./oci-layout", Name::Layout),
            ("index.json", Name::Index),
            ("./manifest.json", Name::DockerManifest),
            ("./", Name::Folder),
            ("blobs/sha256/", Name::Folder),
            (&format!("./blobs/sha256/{HEX}"), Name::Blob(empty)),
            (&format!("{HEX}.json"), Name::Config(empty)),
            (&format!("sha256:{HEX}"), Name::Config(empty)),
            (&format!("{HEX}.tar"), Name::Layer),
            (&format!("{HEX}.tar.gz"), Name::Layer),
            (&format!("{HEX}/layer.tar"), Name::Layer),
            (&format!("{HEX}/VERSION"), Name::Legacy),
            (&format!("{HEX}/"), Name::Folder),
        ];
        for (name, expected) in known {
            assert_eq!(parse(normal(name)), Some(expected), "{name}");
        }
        let unknown = [
            "/index.json",
            "../index.json",
            "blobs/../index.json",
            "blobs/sha256/../../x",
            "blobs/sha256/short",
            "blobs//sha256",
            ".//index.json",
            "././index.json",
            "etc/passwd",
            &format!("/blobs/sha256/{HEX}"),
            &format!("blobs/sha256/{}", HEX.to_uppercase()),
            &format!("blobs/sha256/{HEX}/x"),
            &format!("blobs/md5/{HEX}"),
            &format!("{HEX}/../../x"),
            &format!("{HEX}/layer.tar/x"),
            "ééééééééééééééééééééééééééééééééééé",
        ];
        for name in unknown {
            assert_eq!(parse(normal(name)), None, "{name}");
        }
        assert_eq!(link_target(&format!("../{HEX}/layer.tar")), Some(&*format!("{HEX}/layer.tar")));
        for target in ["../../etc/passwd", "/etc/passwd", "../index.json", &format!("{HEX}.tar")] {
            assert_eq!(link_target(target), None, "{target}");
        }
    }
}
