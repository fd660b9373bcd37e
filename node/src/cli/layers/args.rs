//! The arguments of the commands that look into layers.

use std::path::PathBuf;
use std::str::FromStr;

use wherry_gateway::Platform;

use crate::cli::args::{InspectArgs, NodeArgs, image};
use crate::images::{LEAST_DIGITS, parse_platform};

/// The highest number that is taken for that of a layer, in digits: with more they are those of a digest.
const MAX_NUMBER: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wherry inspect docker.io/library/debian:13\n  \
    wherry inspect --layer 2 docker.io/library/debian:13   what the second layer adds, changes and removes")]
pub(in crate::cli) struct LookArgs {
    #[command(flatten)]
    pub(in crate::cli) image: InspectArgs,
    /// List what this layer adds, changes and removes: its number, the base being 1, or its digest, of which 12 digits are
    /// enough
    #[arg(long, value_name = "N|DIGEST")]
    pub(in crate::cli) layer: Option<LayerChoice>,
}

/// Which layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum LayerChoice {
    /// By its number, the base being 1.
    Number(usize),
    /// By the first hex digits of its digest.
    Digits(String),
}

impl FromStr for LayerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.split_once(':').map_or(text, |(_, digits)| digits);
        if text.len() <= MAX_NUMBER
            && let Ok(number) = text.parse::<usize>()
            && number > 0
        {
            return Ok(Self::Number(number));
        }
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match is_hex && digits.len() >= LEAST_DIGITS {
            true => Ok(Self::Digits(digits.to_owned())),
            false => Err(format!(
                "a layer is meant by its number, the base being 1, or by {LEAST_DIGITS} digits of its digest or more"
            )),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wherry diff debian:12 debian:13\n\n\
    A is added, C changed and R removed from the first to the second. When a file was changed last is not looked at. Exit \
    status 0 also where they differ: --json has it for scripts.")]
pub(in crate::cli) struct DiffArgs {
    /// An image, by name or digest
    #[arg(value_name = "A", value_parser = image)]
    pub(in crate::cli) a: String,
    /// The one that it is compared with
    #[arg(value_name = "B", value_parser = image)]
    pub(in crate::cli) b: String,
    /// Of images for several platforms, those for this, such as linux/arm64 or linux/arm/v7 [default: the node's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(in crate::cli) platform: Option<Platform>,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wherry cat debian:12:/etc/os-release\n\n\
    Links are followed inside the image.")]
pub(in crate::cli) struct CatArgs {
    /// The image, by name or digest, and behind a colon the file's path from its root
    #[arg(value_name = "IMAGE:/PATH")]
    pub(in crate::cli) file: FileOf,
    /// Of an image for several platforms, the one for this, such as linux/arm64 or linux/arm/v7 [default: the node's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(in crate::cli) platform: Option<Platform>,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct FileOf {
    pub(in crate::cli) reference: String,
    /// From the root on, with a slash in front.
    pub(in crate::cli) path: String,
}

impl FromStr for FileOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // No name of an image has a slash behind a colon.
        let Some(colon) = text.find(":/") else {
            return Err("write it as IMAGE:/PATH, such as debian:12:/etc/os-release".to_owned());
        };
        let reference = image(&text[..colon]).map_err(|error| error.to_string())?;
        Ok(Self { reference, path: text[colon + 1..].to_owned() })
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    sudo wherry unpack debian:12 /srv/debian && sudo runc run --bundle /srv/debian NAME\n\n\
    DIR gets rootfs/ and config.json, once all layers have turned out to be right; of what fails or is interrupted \
    nothing is left. Only root can give files to their owners and make devices: others get a bundle that they can run \
    themselves, and are told what was left out. A DIR that was not there is closed to other users.")]
pub(in crate::cli) struct UnpackArgs {
    /// The image, by name or digest
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(in crate::cli) reference: String,
    /// Where the bundle is to be: an empty folder, or one that is not there
    #[arg(value_name = "DIR")]
    pub(in crate::cli) place: PathBuf,
    /// Of an image for several platforms, the one for this, such as linux/arm64 or linux/arm/v7 [default: the node's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(in crate::cli) platform: Option<Platform>,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_a_number_or_the_beginning_of_a_digest() {
        let choice = |text: &str| text.parse::<LayerChoice>();
        assert_eq!(choice("1"), Ok(LayerChoice::Number(1)));
        assert_eq!(choice("127"), Ok(LayerChoice::Number(127)));
        assert_eq!(choice("123456789012"), Ok(LayerChoice::Digits("123456789012".to_owned())));
        assert_eq!(choice("sha256:0123456789ab"), Ok(LayerChoice::Digits("0123456789ab".to_owned())));
        for wrong in ["0", "-1", "", "abc", "0123456789", "sha256:", "0123456789AB", "no-such-layer"] {
            assert!(choice(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_is_named_by_an_image_and_a_path_from_its_root() {
        let file = |text: &str| text.parse::<FileOf>().map(|it| (it.reference, it.path));
        let found = |reference: &str, path: &str| Ok((reference.to_owned(), path.to_owned()));
        assert_eq!(file("debian:12:/etc/os-release"), found("debian:12", "/etc/os-release"));
        assert_eq!(file("debian:/"), found("debian", "/"));
        assert_eq!(file("localhost:5000/a/b:1:/c:/d"), found("localhost:5000/a/b:1", "/c:/d"));
        assert_eq!(file("1849e2c0a7f3:/x"), found("1849e2c0a7f3", "/x"));
        for wrong in ["debian", "debian:12", "/etc/passwd", ":/x", "debian:etc", "UPPER:/x"] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }
}
