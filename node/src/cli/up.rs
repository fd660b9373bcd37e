//! `wherry up`: the node, from its first log line to its end.

use std::io;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::args::Settings;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{note, print};
use super::stop::Stop;
use crate::config::{Config, LogFormat, load};
use crate::node::{self, Setup};
use crate::status::Addresses;

/// How long a node may take to end once it was asked to.
const END: Duration = Duration::from_secs(9);

/// How long threads that are in the middle of a disk access may take after that.
const THREADS: Duration = Duration::from_millis(900);

pub(super) fn run(settings: &Settings, environment: &Environment) -> Result<(), Failure> {
    let sources = settings.sources(environment)?;
    let loaded = load(&sources).inspect_err(|_| environment.warn_of_unknown_variables())?;
    let config = loaded.config;
    log_to_stderr(&config, environment);
    for problem in environment.unknown_variables() {
        tracing::warn!("{problem}");
    }
    let runtime = Builder::new_multi_thread().enable_all().thread_name("wherry").build()?;
    let outcome = runtime.block_on(serve(config));
    runtime.shutdown_timeout(THREADS);
    outcome
}

async fn serve(config: Config) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let shutdown = CancellationToken::new();
    let setup = Setup { config, shutdown: shutdown.clone() };
    let running = tokio::select! {
        running = node::start(setup) => running?,
        // Nothing serves yet, so nothing has to be finished.
        _ = stop.asked() => return Ok(()),
    };
    tell(&running.addresses);
    let mut ended = running.ended;
    tokio::select! {
        outcome = ended.as_mut() => return Ok(outcome?),
        _ = stop.asked() => {}
    }
    tracing::info!("stopping: clients may finish what they are reading; once more to end at once");
    shutdown.cancel();
    tokio::select! {
        outcome = timeout(END, ended) => match outcome {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(Failure::new(format!("the node did not end within {} s and was cut off", END.as_secs()))),
        },
        status = stop.asked() => {
            note("ended at once");
            // The store is made for this: what a kill leaves behind is what it finds at the next start.
            std::process::exit(status.into())
        }
    }
}

/// Says where everything is, a service a line, and then that it is ready.
fn tell(addresses: &Addresses) {
    // A node goes on when whoever started it does not listen.
    let _ = print(&readiness(addresses));
}

pub(super) fn readiness(addresses: &Addresses) -> String {
    format!(
        "gateway {}\nstatus {}\npeers {}\nbulk {}\ncontrol {}\nready\n",
        addresses.gateway,
        addresses.status,
        addresses.peers,
        addresses.bulk,
        addresses.control.display()
    )
}

fn log_to_stderr(config: &Config, environment: &Environment) {
    // The configuration accepts only what is a filter.
    let filter = EnvFilter::try_new(&config.log).unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(environment.stderr_is_terminal)
        // It would panic on a closed standard error.
        .log_internal_errors(false);
    // Only a second subscriber in the same process fails, and then the first one stays.
    let _ = match config.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
