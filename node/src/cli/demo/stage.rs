//! Where the demo takes place: a temporary folder with the processes that use it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::image::{self, Image};
use super::process::{Process, tail};
use super::report::Row;
use super::runtime;
use crate::cli::network::now;
use crate::cli::output::note;
use crate::config::units::show_size;
use crate::control::Step;
use crate::identity;

/// The registry whose image the cloud has: one that nobody can reach, so that the cloud is the only source.
const REGISTRY: &str = "127.0.0.1:1";

/// How long a node may take to find the others.
const MEETING: Duration = Duration::from_secs(15);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// For how many days the demo's nodes are admitted.
const DAYS: u32 = 1;

/// Folder and processes. Dropped, it takes both with it.
pub(super) struct Stage {
    begun: Instant,
    program: PathBuf,
    cloud: Option<Process>,
    nodes: Vec<Process>,
    /// The processes of all of them, in the order of their starts: the cloud's is the first.
    children: Vec<Child>,
    /// Below everything else, so that it goes last.
    folder: TempDir,
}

impl Stage {
    pub(super) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("wherry-demo-").tempdir();
        Ok(Self {
            begun: Instant::now(),
            program: std::env::current_exe().context("this program does not know where it is")?,
            cloud: None,
            nodes: Vec::new(),
            children: Vec::new(),
            folder: folder.context("no temporary folder")?,
        })
    }

    /// Tells what happens next.
    pub(super) fn say(&self, what: &str) {
        note(&format!("{:6.2} s  {what}", self.seconds()));
    }

    /// Since the demo began.
    pub(super) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn archive(&self) -> PathBuf {
        self.folder.path().join("image.tar")
    }

    fn data(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("node-{number}"))
    }

    /// Makes the image of which all of this is about.
    pub(super) async fn make_image(&self) -> anyhow::Result<Image> {
        self.say("an image is made of this program");
        let (path, program) = (self.archive(), self.program.clone());
        let make = move || image::make(&path, REGISTRY, File::open(&program)?);
        let image = tokio::task::spawn_blocking(make).await?.context("the image cannot be made")?;
        self.say(&format!("it has {} in {} layers", show_size(image.bytes), image.layers));
        Ok(image)
    }

    /// Starts the cloud and puts the image into it.
    pub(super) async fn start_cloud(&mut self, image: &Image) -> anyhow::Result<()> {
        self.say("the cloud starts, and takes the image");
        let data = self.folder.path().join("cloud");
        let flags = ["--site", "cloud", "--default-origin", REGISTRY, "--insecure", REGISTRY];
        let cloud = Process::start(&mut self.children, &self.program, "the cloud", data, &flags).await?;
        let mut lines = cloud.client().import(None, tokio::fs::File::open(self.archive()).await?).await?;
        let summary = loop {
            if let Step::Done(summary) = lines.next().await? {
                break summary;
            }
        };
        self.cloud = Some(cloud);
        match summary.images.as_slice() {
            [only] if only.digest == image.digest => Ok(()),
            other => bail!("the cloud took something else than the image: {other:?}"),
        }
    }

    fn cloud_address(&self) -> anyhow::Result<String> {
        Ok(self.cloud.as_ref().context("there is no cloud")?.gateway().to_string())
    }

    async fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let origin = self.cloud_address()?;
        let flags = ["--site", "demo", "--default-origin", &origin, "--insecure", &origin];
        let (name, data) = (format!("node {number}"), self.data(number));
        let node = Process::start(&mut self.children, &self.program, &name, data, &flags).await?;
        self.nodes.push(node);
        Ok(())
    }

    /// Starts the first node of the site, which is the operator of its network.
    pub(super) async fn start_first_node(&mut self) -> anyhow::Result<()> {
        self.say("node 1 makes a network and starts");
        identity::init(&self.data(1), now(), DAYS)?;
        self.start(1).await
    }

    /// Has the first node's operator admit another one, starts it, and waits until it has found a neighbour.
    pub(super) async fn admit_and_start(&mut self, number: usize) -> anyhow::Result<()> {
        self.say(&format!("node {number} is admitted and starts"));
        let first = self.nodes.first().context("there is no first node")?;
        let bootstrap = first.status.addresses.bootstrap.iter().find(|address| address.contains("/tcp/"));
        let bootstrap = bootstrap.context("the first node does not say where it can be reached")?.clone();
        let (operator, data) = (first.data.clone(), self.data(number));
        let peer = identity::show(&data)?.node;
        let line = identity::admit(&operator, peer, now(), DAYS, vec![bootstrap])?;
        identity::join(&data, &line.to_string(), now(), false)?;
        self.start(number).await?;
        self.wait_for_neighbours(number).await
    }

    async fn wait_for_neighbours(&self, number: usize) -> anyhow::Result<()> {
        let client = self.node(number)?.client();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let met = async {
            loop {
                look.tick().await;
                if client.status().await?.peers > 0 {
                    return anyhow::Ok(());
                }
            }
        };
        match timeout(MEETING, met).await {
            Ok(met) => met,
            Err(_) => bail!("node {number} has found no other node after {} s", MEETING.as_secs()),
        }
    }

    fn node(&self, number: usize) -> anyhow::Result<&Process> {
        self.nodes.get(number - 1).with_context(|| format!("there is no node {number}"))
    }

    /// Pulls the image through a node's gateway as a container runtime does.
    pub(super) async fn pull(&self, number: usize, image: &Image) -> anyhow::Result<Row> {
        let node = self.node(number)?;
        let before = node.client().status().await?.traffic;
        let pulled = runtime::pull(node.gateway(), image.repository, image.tag)
            .await
            .with_context(|| format!("{} cannot give its client the image", node.name))?;
        let after = node.client().status().await?.traffic;
        let row = Row {
            node: number,
            seconds: pulled.seconds,
            from_cloud: after.from_origin - before.from_origin,
            from_peers: after.from_peers - before.from_peers,
            bytes: pulled.bytes,
            digest: pulled.manifest,
        };
        self.say(&format!(
            "node {number} has it: {} from the cloud, {} from peers",
            show_size(row.from_cloud),
            show_size(row.from_peers)
        ));
        Ok(row)
    }

    /// Kills the cloud, and makes sure that nobody answers in its place.
    pub(super) async fn kill_cloud(&mut self) -> anyhow::Result<()> {
        self.say("the cloud is killed");
        let address = self.cloud.as_ref().context("there is no cloud")?.gateway();
        self.children.first_mut().context("the cloud has no process")?.kill().await?;
        if TcpStream::connect(address).await.is_ok() {
            bail!("something still answers at {address}, where the cloud was");
        }
        Ok(())
    }

    /// How to look around.
    pub(super) fn tour(&self) -> String {
        let program = self.program.display();
        let mut text = "\nThe nodes go on until Ctrl-C. Look around:\n".to_owned();
        for node in &self.nodes {
            text += &format!("  {program} status --data {}\n", node.data.display());
        }
        text
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, data: &Path| {
            let tail = tail(data);
            if !tail.is_empty() {
                text += &format!("--- the end of the log of {name}\n{tail}\n");
            }
        };
        add("the cloud", &self.folder.path().join("cloud"));
        for number in 1..=self.nodes.len() + 1 {
            add(&format!("node {number}"), &self.data(number));
        }
        text
    }

    /// Ends all processes and removes the folder.
    pub(super) async fn clear(mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            // Waits until it is gone, too: what still runs could write into the folder.
            child.kill().await.context("a node cannot be killed")?;
        }
        let path = self.folder.path().to_owned();
        self.folder.close().with_context(|| format!("{} cannot be removed", path.display()))
    }
}
