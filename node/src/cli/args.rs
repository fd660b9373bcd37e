//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command as Clap, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use wherry_gateway::{NameError, Names, Platform, Reference};

use super::doctor::DoctorArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::layers::args::{CatArgs, DiffArgs, LookArgs, UnpackArgs};
use super::preload::PreloadArgs;
use super::publish::PublishArgs;
use super::setup::SetupArgs;
use crate::config::units::{parse_duration, show_duration};
use crate::config::{Flag, KEYS, Key, Sources, control_sockets};
use crate::control::Client;
use crate::identity::DEFAULT_DAYS;
use crate::images::MAX_WAIT;
use crate::images::{Wanted, parse_platform};

#[derive(Debug, Parser)]
#[command(
    name = "wherry",
    version,
    about = "Carries container images from registries to edge sites, and from machine to machine inside them",
    after_help = "Start here:\n  \
        wherry up                              a node with its gateway, ready for docker, podman and containerd\n  \
        wherry setup docker                    have docker, containerd, podman, crio or k3s use that gateway\n  \
        wherry pull docker.io/library/alpine   bring an image to this node\n  \
        wherry demo                            see a site of four nodes share an image, in a minute, on this machine\n\n\
        Exit status: 0 done, 1 what was asked for failed, 2 the command line or the configuration is wrong, 130 or 143 \
        it was interrupted by Ctrl-C or SIGTERM.\n\n\
        Under --json the last line of standard error is {\"error\": …, \"hint\": …} where a command fails; the hint may be \
        null."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a node and its gateway
    #[command(after_help = "Examples:\n  \
        wherry up\n      \
            everything in its default place; container runtimes use 127.0.0.1:5050 as a mirror\n  \
        wherry up --bootstrap /ip4/192.0.2.7/tcp/4050 --site harbour\n      \
            join the other nodes of a site, of which one is at 192.0.2.7\n  \
        wherry up --default-origin registry.local:5000 --insecure registry.local:5000\n      \
            requests that name no registry mean this one, which speaks plain HTTP\n  \
        wherry up --wan-down 4Mbit/s --wan-budget 2GiB --wan-window 22:00-06:00\n      \
            spare the site's thin link; set alike on all nodes, the site holds it as a whole\n\n\
        Each flag can be set by a variable (--disk-budget as WHERRY_DISK_BUDGET) or in the configuration \
        file (disk_budget = \"20GiB\"). Flags win over variables, and these over the file. Lists are arrays in the \
        file, commas in a variable, repeated flags.\n\n\
        SIGTERM or Ctrl-C lets clients finish what they are reading, for at most 10 seconds; a second one ends the \
        node at once.")]
    Up(Settings),
    /// Show the configuration that 'wherry up' would use, and where each value comes from
    #[command(after_help = "Examples:\n  \
        wherry config > wherry.toml   a file to start from, with every key explained\n  \
        WHERRY_SITE=harbour wherry config --json")]
    Config(ConfigArgs),
    /// Bring an image to this node, from its peers or from its registry
    #[command(after_help = "Examples:\n  \
        wherry pull alpine\n  \
        wherry pull registry.local:5000/edge/agent:1.4\n  \
        wherry pull ghcr.io/example/app@sha256:…\n  \
        wherry pull --platform linux/arm64 alpine   for another machine than this one\n  \
        wherry pull --refresh alpine                the registry is asked now, whatever it said a minute ago\n\n\
        Standard output gets the image's name and digest, or a JSON object; progress goes to standard error.\n\n\
        A registry that gets out of reach in the middle is tried again and again, and the pull goes on where it was. Wrong bytes, \
        and a name of which nobody can say what it means, are an error at once.\n\n\
        Ctrl-C leaves the pull to the node, which goes on with it: 'wherry cancel' stops it.")]
    Pull(PullArgs),
    /// Bring images to all nodes of the site before anyone asks, and pin them there
    #[command(after_help = "Examples:\n  \
        wherry preload debian:12 quay.io/org/app:1.0         to all nodes of the site that are connected\n  \
        wherry preload --nodes 4f9GtVbW,192.0.2.7:4050 app:1  to these; 'wherry peers' shows ids and addresses\n  \
        wherry preload --platform linux/arm64 debian:12      for other machines than these\n\n\
        Each node pulls for itself, so the link that leads out of the site carries one copy, within its limits. Ctrl-C leaves \
        that to the nodes, which go on. Exit status 1 means that some node has not got everything; the others have. With \
        --json each line is an object. Every member of the network may ask.")]
    Preload(PreloadArgs),
    /// Send an image of the site on to a registry, layer by layer that is not there yet
    #[command(after_help = "Examples:\n  \
        wherry publish site.wherry/team/app:1 registry.example/team/app:1\n  \
        wherry publish registry.example/team/app:1   what was pushed here under that name\n\n\
        It is sent for all its platforms, with this node's credentials for that registry, within the site's limits. Where the \
        link fails it goes on with what has arrived.")]
    Publish(PublishArgs),
    /// Stop fetching an image; what has arrived of it is kept for the next pull
    #[command(after_help = "Example:\n  wherry cancel docker.io/library/debian:13\n\n\
        Blobs that a client of the gateway reads at this moment, or that another image which is being pulled has too, \
        go on.")]
    Cancel(CancelArgs),
    /// List the images of this node, those of which only a part is here included
    #[command(
        after_help = "An image that no tag means is listed as REPOSITORY@DIGEST, and one that came without a name as \
        <none>@DIGEST. Wherever a command takes an IMAGE, what DIGEST shows will do.\n\n\
        NOTE says how much of an image is here that is not whole, and which tags meant it before they moved."
    )]
    Images(NodeArgs),
    /// Show what an image is made of: layers, what made each, and which other images here share them
    Inspect(LookArgs),
    /// Say how two images differ: by layer, in their configuration, and file by file
    Diff(DiffArgs),
    /// Print a file of an image
    Cat(CatArgs),
    /// Unpack an image into a bundle that runc, crun and other OCI runtimes run
    Unpack(UnpackArgs),
    /// Say why an image is not here yet: who fetches it, what it waits for, and when it will be here
    #[command(after_help = "Example:\n  wherry why docker.io/library/debian:13\n\n\
        Peers are named by the end of their peer ids, which finds them in the log and in 'wherry peers'. Of an image that \
        nobody pulls it says who has it.")]
    Why(InspectArgs),
    /// Remove images; what other images have too stays
    #[command(after_help = "Examples:\n  \
        wherry rm docker.io/library/debian:12\n  \
        wherry rm 1849e2c0a7f3   one that no name means, by its digest or the first 12 digits of it\n\n\
        An image that is being pulled is not removed: 'wherry cancel' stops that.")]
    Rm(ImagesArgs),
    /// Keep an image whatever the disk budget, and what its tag comes to mean; imported images are pinned from the start
    Pin(OneImageArgs),
    /// Let an image make room for others when the disk budget is used up
    Unpin(OneImageArgs),
    /// Read and hash what is stored, and set aside what the disk has damaged: the next pull brings that again
    #[command(after_help = "Examples:\n  \
        wherry check                              everything that this node has\n  \
        wherry check docker.io/library/debian:13  one image\n\n\
        Exit status 1 means that something was damaged. A node also checks by itself what it has served, now and then, \
        and what a client or a peer found to be wrong.")]
    Check(CheckArgs),
    /// Take images from an archive or an OCI layout, without any network
    #[command(after_help = "Examples:\n  \
        wherry import image.tar            what 'docker save', 'podman save' or 'wherry export' wrote\n  \
        wherry import layout/              the folder of an OCI layout\n  \
        docker save app | wherry import -\n  \
        wherry import --name edge/app:1 layout/   gives the one image in there this name\n\n\
        Without --name an image has the name that the archive gives it. Where that is no more than a tag, as 'skopeo copy … \
        oci:layout:1.0' writes it, the image has no name: it is listed as <none>@DIGEST, and --name gives it one.")]
    Import(ImportArgs),
    /// Write an image as an archive that wherry, docker, podman and skopeo read
    #[command(after_help = "Examples:\n  \
        wherry export docker.io/library/debian:13 -o debian.tar\n  \
        wherry export debian:13 | ssh edge wherry import -")]
    Export(ExportArgs),
    /// List the nodes that this one is connected to
    Peers(NodeArgs),
    /// Show what this node is doing
    Status(NodeArgs),
    /// Show or pause the links that lead out of this site: to registries and to other sites
    #[command(after_help = "Examples:\n  \
        wherry wan status     limits, what was spent today, and why nothing comes, if nothing does\n  \
        wherry wan pause      on one node, for the whole site: at once, and until somebody resumes\n  \
        wherry wan resume\n\n\
        What is on its way stays and goes on afterwards. Nodes of the site go on giving each other the layers that \
        they have, and what has come of those that are on their way. Limits \
        are set by --wan-down, --wan-up, --wan-budget and --wan-window of 'wherry up', alike on all nodes of a site.")]
    Wan(WanArgs),
    /// Watch a site of four nodes share an image while its cloud goes away, on this machine and in a minute
    #[command(
        after_help = "Starts five real nodes on loopback with folders of their own, and removes every trace of \
        them at the end.\nExit status 0 means that everything that wherry promises was seen to happen."
    )]
    Demo(DemoArgs),
    /// Have a container runtime of this machine use the gateway, or no longer
    #[command(after_help = "Examples:\n  \
        wherry setup docker --dry-run       shows what would change, and changes nothing\n  \
        sudo wherry setup containerd        for kubelets and nerdctl: all registries\n  \
        sudo wherry setup podman --registry docker.io --registry registry.example\n  \
        sudo wherry setup docker --undo\n\n\
        What an administrator has written stays as it is: lines are added or, with --undo, taken away; a file that is \
        somebody else's as a whole is refused with what to put into it. The runtime itself is not restarted: what \
        that takes is said. Exit status 1 also where everything is written but no gateway answers.")]
    Setup(SetupArgs),
    /// Find out why a pull does not go through wherry, and say what to do
    #[command(after_help = "Examples:\n  \
        wherry doctor                              the node, the gateway, and all runtimes that are installed\n  \
        wherry doctor containerd                   one runtime\n  \
        sudo wherry doctor docker quay.io/org/app:1  and whether a pull of this image goes through wherry\n\n\
        Each line is ok, note or wrong, with what to do below it. Nothing is changed. Root sees what others may not: what \
        daemons are told, and files that are root's. A runtime that does not know of the gateway is wrong only where no other \
        does, or it is the one that is named. Exit status 1 means that something is wrong.")]
    Doctor(DoctorArgs),
    /// Decide which nodes may talk to each other
    #[command(after_help = "How a node joins:\n  \
        operator$ wherry network init\n  \
        new node$ wherry network show                prints its peer id, 12D3KooW…\n  \
        operator$ wherry network admit 12D3KooW…     prints one line\n  \
        new node$ wherry network join 'LINE'\n\n\
        A node that was never admitted makes a network of its own at its first start, and talks to nobody.")]
    Network(NetworkArgs),
    /// Print completions for a shell
    #[command(after_help = "Examples:\n  \
        wherry completions bash > /etc/bash_completion.d/wherry\n  \
        wherry completions fish > ~/.config/fish/completions/wherry.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl Command {
    /// Whether its output is for scripts.
    pub(super) const fn is_json(&self) -> bool {
        match self {
            Self::Up(_) | Self::Completions { .. } => false,
            Self::Config(args) => args.json,
            Self::Pull(args) => args.node.json,
            Self::Inspect(args) => args.image.node.json,
            Self::Why(args) => args.node.json,
            Self::Diff(args) => args.node.json,
            Self::Cat(args) => args.node.json,
            Self::Unpack(args) => args.node.json,
            Self::Rm(args) => args.node.json,
            Self::Pin(args) | Self::Unpin(args) => args.node.json,
            Self::Check(args) => args.node.json,
            Self::Preload(args) => args.node.json,
            Self::Publish(args) => args.node.json,
            Self::Cancel(args) => args.node.json,
            Self::Wan(args) => args.node.json,
            Self::Images(node) | Self::Peers(node) | Self::Status(node) => node.json,
            Self::Import(args) => args.node.json,
            Self::Export(args) => args.node.json,
            Self::Demo(args) => args.json,
            Self::Setup(args) => args.json,
            Self::Doctor(args) => args.node.json,
            Self::Network(args) => args.json,
        }
    }
}

/// The flags of all keys; the parser keeps names for as long as the process lives.
static LONGS: LazyLock<Vec<String>> = LazyLock::new(|| KEYS.iter().map(Key::long).collect());

/// Flags for everything that can be set about a node, from the one table of keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The file of `--config`.
    pub(super) file: Option<String>,
    /// Flags by key.
    pub(super) flags: Vec<(&'static str, Vec<String>)>,
}

impl Settings {
    pub(super) fn sources(&self, environment: &Environment) -> Result<Sources, Failure> {
        environment.sources(self.file.as_deref(), &self.flags)
    }
}

impl clap::Args for Settings {
    fn augment_args(mut command: Clap) -> Clap {
        command = command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("Configuration file [default: /etc/wherry/wherry.toml, if it exists]"),
        );
        let defaults = crate::config::Config::new("");
        for (key, long) in KEYS.iter().zip(LONGS.iter()) {
            let arg = Arg::new(key.name).long(long.as_str());
            // What depends on the user is told in words by the key itself.
            let default = match key.value(&defaults) {
                Some(serde_json::Value::String(text)) if !matches!(key.name, "data" | "control") => {
                    format!(" [default: {text}]")
                }
                _ => String::new(),
            };
            let arg = match key.flag {
                Flag::Value(placeholder) => arg
                    .value_name(placeholder)
                    .allow_hyphen_values(false)
                    .action(if key.many { ArgAction::Append } else { ArgAction::Set }),
                Flag::No | Flag::Yes => arg.action(ArgAction::SetTrue),
            };
            let repeat = if key.many { " (may be repeated)" } else { "" };
            let about = match key.flag {
                Flag::Value(_) | Flag::Yes => format!("{}{repeat}{default}", key.about),
                Flag::No => format!("Do not {}{}", key.about[..1].to_lowercase(), &key.about[1..]),
            };
            command = command.arg(arg.help(about));
        }
        command
    }

    fn augment_args_for_update(command: Clap) -> Clap {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self { file: matches.get_one::<String>("config").cloned(), flags: Vec::new() };
        for key in &KEYS {
            match key.flag {
                Flag::Value(_) => {
                    if let Some(values) = matches.get_many::<String>(key.name) {
                        settings.flags.push((key.name, values.cloned().collect()));
                    }
                }
                Flag::Yes | Flag::No if matches.get_flag(key.name) => {
                    settings.flags.push((key.name, vec![(key.flag == Flag::Yes).to_string()]));
                }
                Flag::Yes | Flag::No => {}
            }
        }
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// Which node to talk to.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct NodeArgs {
    /// Data folder of the node to talk to; its socket is DIR/control.sock [variable: WHERRY_DATA]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) data: Option<String>,
    /// Control socket of the node to talk to [variable: WHERRY_CONTROL]
    #[arg(long, value_name = "PATH", global = true)]
    pub(super) control: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl NodeArgs {
    /// A client of the node that is meant.
    pub(super) fn client(&self, environment: &Environment) -> Client {
        let flags: Vec<_> = [("data", &self.data), ("control", &self.control)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, vec![value.clone()?])))
            .collect();
        Client::first_of(control_sockets(&environment.lenient_sources(&flags)))
    }

    /// How another command about this image reaches the same node.
    pub(super) fn command(&self, name: &str, reference: &str) -> String {
        let flags = [("--data", &self.data), ("--control", &self.control)];
        let flags =
            flags.into_iter().filter_map(|(flag, value)| Some(format!(" {flag} {}", value.as_ref()?)));
        format!("wherry {name}{} {reference}", flags.collect::<String>())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// The image: alpine, docker.io/library/alpine:3, host:5000/a/b@sha256:…; without a registry it is one of the node's
    /// default origin. One that is here in part also by its digest alone, or the first 12 digits of it
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) reference: String,
    /// Of an image for several platforms, the one for this, such as linux/arm64 or linux/arm/v7 [default: the node's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(super) platform: Option<Platform>,
    /// Ask the registry what the tag means even if it said so within tag_ttl
    #[arg(long)]
    pub(super) refresh: bool,
    /// How long to go on trying while the registry is out of reach and nothing comes; 0 for not at all [default: 10m once
    /// anything of the image has come in this pull, and not at all before]
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    pub(super) wait: Option<Duration>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// The image: alpine, docker.io/library/alpine:3, host:5000/a/b@sha256:…; or its digest alone, of which 12 digits are
    /// enough, with sha256: or without
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) reference: String,
    /// Of an image for several platforms, the one for this, such as linux/arm64 or linux/arm/v7 [default: the node's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(super) platform: Option<Platform>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImagesArgs {
    /// The images, by name or digest
    #[arg(value_name = "IMAGE", value_parser = image, required = true)]
    pub(super) references: Vec<String>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct OneImageArgs {
    /// The image, by name or digest
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) reference: String,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct WanArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    #[command(subcommand)]
    pub(super) command: WanCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(super) enum WanCommand {
    /// Show the limits, what was spent today, and which limit says no now
    Status,
    /// Have the whole site take and give nothing over these links, until it is resumed
    Pause,
    /// Have the whole site go on
    Resume,
}

#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The image, by name or digest
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) reference: String,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The images, by name or digest; if none is named, everything that is stored
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) references: Vec<String>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// An archive, a folder with an OCI layout, or - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    pub(super) from: PathBuf,
    /// What to call the image in there, if there is one alone
    #[arg(long, value_name = "REF", value_parser = reference)]
    pub(super) name: Option<String>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The image: alpine, docker.io/library/alpine:3, host:5000/a/b@sha256:…; or its digest alone, of which 12 digits are
    /// enough, with sha256: or without
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(super) reference: String,
    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE|-", default_value = "-")]
    pub(super) output: PathBuf,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Leave nodes and folders as they are at the end, until Ctrl-C
    #[arg(long)]
    pub(super) keep: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct NetworkArgs {
    /// Data folder of the node [variable: WHERRY_DATA]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) data: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Make a network whose operator is this machine, and its first member
    #[command(
        after_help = "The operator key is DATA/network/operator.key: keep a copy where no edge machine is. Who \
        has it can admit any node."
    )]
    Init {
        /// For how many days this node is admitted; the operator's own node renews itself
        #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = days())]
        days: u32,
    },
    /// Admit a node, and print the line that makes it a member
    #[command(after_help = "Example:\n  \
        wherry network admit 12D3KooW… --days 90 --bootstrap /ip4/192.0.2.7/tcp/4050")]
    Admit {
        /// The node's peer id, as 'wherry network show' prints it there
        #[arg(value_name = "PEER_ID")]
        peer: wherry_proto::NodeId,
        /// For how many days
        #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = days())]
        days: u32,
        /// Multiaddress of a node to begin with, put into the line (may be repeated)
        #[arg(long, value_name = "MULTIADDR")]
        bootstrap: Vec<String>,
    },
    /// Make this node a member by a line of 'wherry network admit'
    #[command(
        after_help = "It may have run before, in the network of its own that its first start made. While it runs, \
        it goes on as it is until it is restarted; 'wherry status' says so."
    )]
    Join {
        /// The line, quoted or not
        #[arg(value_name = "LINE", required = true)]
        line: Vec<String>,
        /// Leave the network that this node belongs to
        #[arg(long)]
        replace: bool,
    },
    /// Show this node's peer id, its network, and until when it is admitted
    Show,
}

/// A text that can be a reference, as it was given: which registry is meant without one, only the node knows.
pub(super) fn reference(text: &str) -> Result<String, NameError> {
    text.parse::<Reference>().map(|_| text.to_owned())
}

/// A name as above, a digest, or the beginning of one: the image is here.
pub(super) fn image(text: &str) -> Result<String, NameError> {
    Wanted::parse_with(text, &Names::default()).map(|_| text.to_owned())
}

/// How long to wait, in whole seconds.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    let is_meant = |time: &Duration| time.subsec_nanos() == 0 && *time <= MAX_WAIT;
    parse_duration(text).filter(is_meant).ok_or_else(|| {
        format!(
            "a time in whole seconds such as 90s, 10m or 1h30m is meant, up to {}",
            show_duration(MAX_WAIT)
        )
    })
}

/// The words of a command line, with a negative number behind a flag made its value: it would be taken for a flag that
/// there is not.
pub(super) fn joined(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let is_flag = |word: &OsString| {
        word.len() > 2 && word.to_str().is_some_and(|it| it.starts_with("--") && !it.contains('='))
    };
    let is_negative = |word: &OsString| {
        let number = word.to_str().and_then(|it| it.strip_prefix('-'));
        number.is_some_and(|it| it.starts_with(|it: char| it.is_ascii_digit() || it == '.'))
    };
    let mut out: Vec<OsString> = Vec::new();
    for word in words {
        match out.last_mut() {
            Some(flag) if is_flag(flag) && is_negative(&word) => {
                flag.push("=");
                flag.push(word);
            }
            _ => out.push(word),
        }
    }
    out
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(crate::identity::MAX_DAYS))
}
