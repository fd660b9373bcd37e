//! The arguments of `wherry doctor`.

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::ValueEnum as _;
use wherry_gateway::{NameError, Reference};

use crate::cli::args::NodeArgs;
use crate::cli::failure::Failure;
use crate::cli::runtime::{Given, Runtime};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DoctorArgs {
    /// The runtime: docker, containerd, podman, crio or k3s [default: all that are installed]; or the image alone
    #[arg(value_name = "RUNTIME", value_parser = subject)]
    subject: Option<Subject>,
    /// The image whose pull does not go through wherry, as the runtime is given it
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Option<String>,
    /// Where the gateway is, HOST:PORT or, where it speaks TLS, https://HOST:PORT [default: as the node says, or 'wherry
    /// config']
    #[arg(long, value_name = "ADDR")]
    pub(super) gateway: Option<Given>,
    /// The system whose files are looked at
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) root: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

/// What the first word means.
#[derive(Clone, Debug)]
enum Subject {
    Runtime(Runtime),
    Image(String),
}

impl DoctorArgs {
    /// The runtime and the image that are meant, if any is named.
    pub(super) fn meant(&self) -> Result<(Option<Runtime>, Option<String>), Failure> {
        match (&self.subject, &self.image) {
            (None, image) => Ok((None, image.clone())),
            (Some(Subject::Runtime(runtime)), image) => Ok((Some(*runtime), image.clone())),
            (Some(Subject::Image(image)), None) => Ok((None, Some(image.clone()))),
            (Some(Subject::Image(word)), Some(_)) => Err(Failure::Usage(format!(
                "'{word}' is no runtime: docker, containerd, podman, crio or k3s comes before the image"
            ))),
        }
    }
}

fn subject(text: &str) -> Result<Subject, NameError> {
    match Runtime::from_str(text, false) {
        Ok(runtime) => Ok(Subject::Runtime(runtime)),
        Err(_) => image(text).map(Subject::Image),
    }
}

fn image(text: &str) -> Result<String, NameError> {
    Reference::from_str(text).map(|_| text.to_owned())
}
