//! Which image of an index runs where.

use wherry_gateway::manifest::Index;
use wherry_gateway::{Descriptor, Platform};

use super::ImageError;

/// The longest text that is looked at as a platform, in bytes.
const MAX_LEN: usize = 128;

/// The platform that this node runs on, in the words of Go.
pub fn this_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: variant.map(str::to_owned),
        os_version: None,
    }
}

/// Reads `OS/ARCH[/VARIANT]`, such as `linux/arm/v7`, with the names that processors also go by, such as `x86_64` and
/// `aarch64`.
///
/// # Errors
/// A text for people when it is not of this form.
pub fn parse_platform(text: &str) -> Result<Platform, String> {
    let wrong = || {
        let text: String = text.chars().take(MAX_LEN).collect();
        format!(
            "'{text}' is no platform: write it as OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64 or linux/arm/v7"
        )
    };
    let fine = |part: &&str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    let parts: Vec<String> = text.split('/').filter(fine).map(str::to_ascii_lowercase).collect();
    if text.len() > MAX_LEN || text.split('/').count() != parts.len() {
        return Err(wrong());
    }
    let (os, architecture, variant) = match parts.as_slice() {
        [os, architecture] => (os, architecture, None),
        [os, architecture, variant] => (os, architecture, Some(variant.as_str())),
        _ => return Err(wrong()),
    };
    let (architecture, meant) = match architecture.as_str() {
        "x86_64" | "x86-64" => ("amd64", None),
        "i386" | "i686" | "x86" => ("386", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        other => (other, None),
    };
    Ok(Platform {
        architecture: architecture.to_owned(),
        os: os.clone(),
        variant: variant.or(meant).map(str::to_owned),
        os_version: None,
    })
}

/// The entry of an index that runs on a platform: one of the same variant, else one that tells none, else the highest
/// variant below it, since processors run what was made for older ones. If no variant is asked for, one that tells none,
/// else the first.
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let platforms = manifests.iter().filter_map(|entry| Some((entry, entry.platform.as_ref()?)));
    let fitting = platforms.filter_map(|(entry, platform)| Some((entry, fitness(platform, wanted)?)));
    // Of those that fit equally, the first.
    fitting.min_by_key(|(_, fitness)| *fitness).map(|(entry, _)| entry)
}

/// Makes sure that an image which is alone, of which this is the configuration, runs on the platform that was asked for. One
/// whose configuration names no platform may run anywhere.
///
/// # Errors
/// When it is for another one, which the error names.
pub fn check(what: &dyn std::fmt::Display, config: &[u8], wanted: &Platform) -> Result<(), ImageError> {
    match serde_json::from_slice::<Platform>(config) {
        Ok(has) if !has.os.is_empty() && !runs(&has, wanted) => Err(ImageError::OtherPlatform {
            what: what.to_string(),
            wanted: wanted.to_string(),
            has: has.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Whether what is made for one platform runs on another.
fn runs(has: &Platform, wanted: &Platform) -> bool {
    fitness(has, wanted).is_some()
}

/// How well what is made for one platform runs on another, the lower the better; `None` if it does not.
fn fitness(has: &Platform, wanted: &Platform) -> Option<u32> {
    if has.os != wanted.os || has.architecture != wanted.architecture {
        return None;
    }
    match (has.variant.as_deref(), wanted.variant.as_deref()) {
        (has, wanted) if has == wanted => Some(0),
        (None, _) | (_, None) => Some(1),
        (Some(has), Some(wanted)) => number(wanted)?.checked_sub(number(has)?)?.checked_add(1),
    }
}

/// The number of a variant such as `v7`.
fn number(variant: &str) -> Option<u32> {
    variant.strip_prefix('v')?.parse().ok()
}

/// The same, with an error that lists what there is.
pub(super) fn chosen<'a>(
    what: &dyn std::fmt::Display,
    index: &'a Index,
    wanted: &Platform,
) -> Result<&'a Descriptor, ImageError> {
    choose(&index.manifests, wanted).ok_or_else(|| {
        let mut has: Vec<String> =
            index.manifests.iter().filter_map(|entry| Some(entry.platform.as_ref()?.to_string())).collect();
        // Attestations say that they run nowhere.
        has.retain(|platform| platform != "unknown/unknown");
        has.dedup();
        let has = if has.is_empty() { "none that it names".to_owned() } else { has.join(", ") };
        ImageError::NoPlatform { what: what.to_string(), wanted: wanted.to_string(), has }
    })
}

#[cfg(test)]
mod tests {
    use wherry_proto::Digest;

    use super::*;

    fn entries(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |platform: &&str| Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(platform.as_bytes()),
            size: 1,
            platform: Some(parse_platform(platform).unwrap()),
            urls: None,
            annotations: None,
        };
        platforms.iter().map(entry).collect()
    }

    fn chosen_of(platforms: &[&str], wanted: &str) -> Option<String> {
        let entries = entries(platforms);
        let found = choose(&entries, &parse_platform(wanted).unwrap())?;
        Some(found.platform.as_ref()?.to_string())
    }

    #[test]
    fn the_image_that_is_chosen_is_one_that_runs_there() {
        let all = ["linux/amd64", "linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "windows/amd64"];
        for (wanted, found) in [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/x86_64", Some("linux/amd64")),
            ("linux/arm/v7", Some("linux/arm/v7")),
            ("linux/arm/v6", Some("linux/arm/v5")),
            ("linux/arm", Some("linux/arm/v5")),
            ("linux/arm64", Some("linux/arm64/v8")),
            ("linux/aarch64/v8", Some("linux/arm64/v8")),
            ("windows/amd64", Some("windows/amd64")),
            ("linux/riscv64", None),
            ("freebsd/amd64", None),
        ] {
            assert_eq!(chosen_of(&all, wanted).as_deref(), found, "{wanted}");
        }
        assert_eq!(chosen_of(&["linux/arm/v7"], "linux/arm/v6"), None);
        assert_eq!(chosen_of(&["linux/arm64"], "linux/arm64/v8").as_deref(), Some("linux/arm64"));
    }

    #[test]
    fn an_image_that_is_alone_is_refused_for_another_platform_with_the_one_that_it_has() {
        let of = |config: &str, wanted: &str| {
            let checked = check(&"a:1", config.as_bytes(), &parse_platform(wanted).unwrap());
            checked.map_err(|error| error.to_string())
        };
        let arm = r#"{"os":"linux","architecture":"arm","variant":"v7","rootfs":{}}"#;
        assert_eq!(of(arm, "linux/arm/v7"), Ok(()));
        assert_eq!(of(arm, "linux/arm/v8"), Ok(()));
        for wanted in ["linux/amd64", "linux/arm/v6", "windows/arm/v7"] {
            let told = of(arm, wanted).unwrap_err();
            assert!(told.contains(wanted) && told.contains("linux/arm/v7"), "{told}");
        }
        for config in ["{}", "no configuration", r#"{"os":"","architecture":""}"#] {
            assert_eq!(of(config, "linux/amd64"), Ok(()), "{config}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused_with_an_example() {
        for bad in
            ["", "linux", "linux/", "/amd64", "linux//v7", "linux/arm/v7/x", "linux/a b", &"a/".repeat(99)]
        {
            assert!(parse_platform(bad).unwrap_err().contains("linux/arm/v7"), "{bad}");
        }
    }
}
