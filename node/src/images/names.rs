//! What people call an image that is here: its name, or the beginning of its digest.

use std::fmt;
use std::str::FromStr;

use wherry_gateway::{NameError, Names, Reference};
use wherry_proto::Digest;

/// How many hex digits of a digest are enough to mean an image, if no other one begins with them.
pub const LEAST_DIGITS: usize = 12;

/// What stands for the repository of an image that has none.
const NONE: &str = "<none>@";

/// The name by which a node knows an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageName {
    /// A tag, or a digest, in an origin's repository.
    Reference(Reference),
    /// It came without a name, so that its digest alone leads to it. Written `<none>@sha256:…`.
    Unnamed(Digest),
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => reference.fmt(f),
            Self::Unnamed(digest) => write!(f, "{NONE}{digest}"),
        }
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix(NONE) {
            Some(digest) => Ok(Self::Unnamed(digest.parse()?)),
            None => Ok(Self::Reference(text.parse()?)),
        }
    }
}

impl From<Reference> for ImageName {
    fn from(reference: Reference) -> Self {
        Self::Reference(reference)
    }
}

/// What may stand where a command wants an image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A name.
    Named(ImageName),
    /// A digest as it is written or its digits alone, or the beginning of either with at least [`LEAST_DIGITS`] digits.
    Digest(String),
    /// Digits that may be a digest or its beginning as well as the name of an image: what is here tells.
    Either(Reference, String),
}

impl Wanted {
    /// Reads what people write, by what `names` are short for.
    ///
    /// # Errors
    /// When it is neither a name nor a digest nor the beginning of one; whether it is hardly depends on `names`.
    pub fn parse_with(text: &str, names: &Names) -> Result<Self, NameError> {
        if text.starts_with(NONE) {
            return text.parse().map(Self::Named);
        }
        let Some((algorithm, hex)) = text.split_once(':').filter(|(name, _)| is_algorithm(name)) else {
            return match Reference::parse_with(text, names) {
                Ok(reference) if is_beginning(text, "sha512") => Ok(Self::Either(reference, text.to_owned())),
                Ok(reference) => Ok(Self::Named(reference.into())),
                Err(_) if is_beginning(text, "sha512") => Ok(Self::Digest(text.to_owned())),
                Err(error) => Err(error),
            };
        };
        match text.parse::<Digest>() {
            Ok(_) => Ok(Self::Digest(text.to_owned())),
            Err(_) if is_beginning(hex, algorithm) => Ok(Self::Digest(text.to_owned())),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_algorithm(name: &str) -> bool {
    matches!(name, "sha256" | "sha512")
}

/// Whether these can be the first digits of a digest, or all of them.
fn is_beginning(hex: &str, algorithm: &str) -> bool {
    (LEAST_DIGITS..=full_len(algorithm)).contains(&hex.len())
        && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn full_len(algorithm: &str) -> usize {
    if algorithm == "sha256" { 64 } else { 128 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn wanted(text: &str) -> Result<Wanted, NameError> {
        Wanted::parse_with(text, &Names::default())
    }

    #[test]
    fn a_digest_alone_is_a_digest_and_never_a_tag() {
        let full = format!("sha256:{HEX}");
        for text in [full.clone(), format!("sha256:{}", &HEX[..12]), format!("sha256:{}", &HEX[..40])] {
            assert_eq!(wanted(&text).unwrap(), Wanted::Digest(text.clone()));
            text.parse::<Reference>().unwrap_err();
        }
        let unnamed = Wanted::Named(ImageName::Unnamed(full.parse().unwrap()));
        assert_eq!(wanted(&format!("<none>@{full}")).unwrap(), unnamed);
        for text in ["sha256:1", "sha256:latest", &full[..full.len() - 53], "sha256:", &format!("{full}0")] {
            wanted(text).unwrap_err();
        }
        let named = Wanted::Named(format!("docker.io/library/app@{full}").parse().unwrap());
        assert_eq!(wanted(&format!("app@{full}")).unwrap(), named);
    }

    #[test]
    fn digits_alone_may_be_a_name_as_well_as_a_digest() {
        for length in [12, 40, 64] {
            let name = format!("docker.io/library/{}:latest", &HEX[..length]).parse().unwrap();
            assert_eq!(wanted(&HEX[..length]).unwrap(), Wanted::Either(name, HEX[..length].to_owned()));
        }
        // What is shorter, or is no digits alone, is a name.
        for text in [&HEX[..11], "deadbeefcafe:1", "deadbeefcafg", "a/deadbeefcafe"] {
            assert!(matches!(wanted(text).unwrap(), Wanted::Named(_)), "{text}");
        }
    }

    #[test]
    fn a_name_reads_back_as_it_is_written() {
        for text in [format!("<none>@sha256:{HEX}"), "r.example/a:1".to_owned()] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
    }
}
