//! Layers come from the node, and are looked into here: on a thread that may block, while this one shows how far it is.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};
use wherry_gateway::Platform;
use wherry_gateway::manifest::media_type;
use wherry_proto::Digest;

use crate::cli::args::NodeArgs;
use crate::cli::environment::Environment;
use crate::cli::failure::Failure;
use crate::cli::output::{are, note};
use crate::cli::progress::TICK;
use crate::cli::screen::Screen;
use crate::cli::stop::Stop;
use crate::cli::tally::{Speed, row};
use crate::config::units::show_size;
use crate::control::api::{BlobRequest, ImageDetails, InspectRequest};
use crate::control::{Carried, Client, ClientError};
use crate::images::MAX_CONFIG;
use crate::images::inspect::LayerState;
use crate::layers::{Blobs, CopyError, ImageConfig, ImageLayer, LayerError};

/// What takes no longer is not worth a bar.
const SHORT: Duration = Duration::from_secs(1);

/// How often plain lines tell of progress.
const EVERY: Duration = Duration::from_secs(5);

/// An image of the node that is to be looked into.
pub(super) struct Opened {
    pub(super) details: ImageDetails,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<ImageLayer>,
    /// The command that brings what is missing.
    pull: String,
}

impl Opened {
    /// Asks the node what the image is made of.
    pub(super) async fn new(
        client: &Client,
        node: &NodeArgs,
        reference: &str,
        platform: Option<&Platform>,
    ) -> Result<Self, Failure> {
        let platform = platform.map(ToString::to_string);
        let request = InspectRequest { reference: reference.to_owned(), platform: platform.clone() };
        let details = client.inspect(&request).await?;
        let digest = details.config.digest;
        let request = BlobRequest { reference: details.digest.to_string(), platform: None, digest };
        let mut carried = client.blob(&request).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = carried.next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_CONFIG {
                return Err(Failure::new(format!(
                    "the image's configuration has more than {MAX_CONFIG} bytes"
                )));
            }
        }
        let config = ImageConfig::parse(&bytes, &digest).map_err(|error| Failure::new(error.to_string()))?;
        let mut layers: Vec<ImageLayer> = details
            .layers
            .iter()
            .map(|layer| ImageLayer {
                digest: layer.blob.digest,
                size: layer.blob.size,
                media_type: layer.blob.media_type.clone(),
                diff_id: None,
            })
            .collect();
        config.tell(&mut layers).map_err(|error| Failure::new(error.to_string()))?;
        let option = platform.map(|platform| format!("--platform {platform} ")).unwrap_or_default();
        let pull = node.command("pull", &format!("{option}{}", details.reference));
        Ok(Self { details, config, layers, pull })
    }

    /// Makes sure that so many of its layers are here.
    pub(super) fn needs(&self, layers: usize) -> Result<(), Failure> {
        let missing = |layer: &&crate::images::inspect::LayerDetails| {
            // Of those that registries need not have the node says more.
            layer.state != LayerState::Here && !media_type::is_foreign(&layer.blob.media_type)
        };
        match self.details.layers.iter().take(layers).filter(missing).count() {
            0 => Ok(()),
            missing => Err(Failure::with_hint(
                format!(
                    "not all of {} is here: {} missing of {}",
                    self.details.reference,
                    are(missing, "layer"),
                    self.details.layers.len()
                ),
                format!("'{}' brings it", self.pull),
            )),
        }
    }

    /// How many bytes so many of its layers have.
    pub(super) fn size(&self, layers: usize) -> u64 {
        self.layers.iter().take(layers).map(|layer| layer.size).sum()
    }

    /// Says of each layer whose it is.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Digest, Digest)> + use<'_> {
        self.layers.iter().map(|layer| (layer.digest, self.details.digest))
    }
}

/// The layers of images of a node.
pub(super) struct NodeBlobs {
    client: Client,
    handle: Handle,
    /// By layer, the manifest of an image that has it.
    of: HashMap<Digest, Digest>,
    read: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl Blobs for NodeBlobs {
    fn open(&mut self, layer: &ImageLayer) -> io::Result<Box<dyn Read + '_>> {
        let image = self.of.get(&layer.digest).unwrap_or(&layer.digest);
        let request = BlobRequest { reference: image.to_string(), platform: None, digest: layer.digest };
        let carried = self.handle.block_on(self.client.blob(&request)).map_err(io::Error::other)?;
        Ok(Box::new(Piecewise { blobs: self, carried, piece: Bytes::new() }))
    }
}

struct Piecewise<'a> {
    blobs: &'a NodeBlobs,
    carried: Carried,
    piece: Bytes,
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Stopped;

impl Read for Piecewise<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.blobs.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other(Stopped));
        }
        while self.piece.is_empty() {
            match self.blobs.handle.block_on(self.carried.next()).map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        self.blobs.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What it is that is shown, and how much of it there is.
pub(super) struct Task {
    /// A word or two.
    pub(super) name: &'static str,
    /// Bytes of layers that will be read; nothing is shown if this is 0.
    pub(super) bytes: u64,
    /// What there is to say where it is interrupted.
    pub(super) interrupted: &'static str,
}

/// Looks into layers, and shows how far that has come if it takes long. Ctrl-C has the work end with an error, so that it
/// leaves nothing behind.
pub(super) async fn look<T: Send + 'static>(
    client: &Client,
    images: &[&Opened],
    environment: &Environment,
    task: Task,
    work: impl FnOnce(&mut NodeBlobs) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let mut stop = Stop::new()?;
    let (read, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut blobs = NodeBlobs {
        client: client.clone(),
        handle: Handle::current(),
        of: images.iter().flat_map(|image| image.sources()).collect(),
        read: Arc::clone(&read),
        stopped: Arc::clone(&stopped),
    };
    let mut working = tokio::task::spawn_blocking(move || work(&mut blobs));
    let mut show = Show::new(environment, task.name, task.bytes);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = None;
    let done = loop {
        tokio::select! {
            done = &mut working => break done,
            _ = ticks.tick() => show.tick(read.load(Ordering::Relaxed)),
            by = stop.asked() => {
                stopped.store(true, Ordering::Relaxed);
                status.get_or_insert(by);
            }
        }
    };
    show.finish();
    let done = done.map_err(|error| Failure::new(format!("the work broke off: {error}")))?;
    match (done, status) {
        (Err(_), Some(status)) => {
            Err(Failure::Interrupted { status, message: task.interrupted.to_owned(), hint: None })
        }
        (done, _) => done,
    }
}

/// How far the work has come.
struct Show {
    name: &'static str,
    bytes: u64,
    speed: Speed,
    begun: Instant,
    said: Instant,
    screen: Option<Screen>,
}

impl Show {
    fn new(environment: &Environment, name: &'static str, bytes: u64) -> Self {
        let now = Instant::now();
        let screen = environment.stderr_is_terminal.then(Screen::default);
        Self { name, bytes, speed: Speed::default(), begun: now, said: now, screen }
    }

    fn tick(&mut self, read: u64) {
        let (now, read) = (Instant::now(), read.min(self.bytes));
        self.speed.saw(read, now);
        if self.bytes == 0 || now.duration_since(self.begun) < SHORT {
            return;
        }
        match &mut self.screen {
            Some(screen) => {
                let pace = self.speed.at(now);
                screen.draw(&[], &[row(self.name, read, self.bytes, &pace, Screen::size().0)]);
            }
            None if now.duration_since(self.said) >= EVERY => {
                self.said = now;
                note(&format!("{}: {} of {}", self.name, show_size(read), show_size(self.bytes)));
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        if let Some(screen) = &mut self.screen {
            screen.draw(&[], &[]);
        }
    }
}

/// What went wrong with a layer; what the node says of it is told in the node's words.
impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        let hint = match &error {
            LayerError::WrongDigest { .. } => {
                "'wherry check' finds what the disk has damaged, and the next pull brings it again"
            }
            _ => "",
        };
        match error {
            LayerError::Read { layer, source } => match source.downcast::<ClientError>() {
                Ok(error) => error.into(),
                Err(source) => Self::new(LayerError::Read { layer, source }.to_string()),
            },
            error if hint.is_empty() => Self::new(error.to_string()),
            error => Self::with_hint(error.to_string(), hint),
        }
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Layer(error) => error.into(),
            CopyError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            error => Self::new(error.to_string()),
        }
    }
}
