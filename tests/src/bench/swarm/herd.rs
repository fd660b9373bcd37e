//! All clients of a scenario, which begin at the same instant.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wherry_tests::blobs::Image;
use wherry_tests::netns::Space;

use super::interrupt;
use super::pull::Pull;

/// How often what happens meanwhile has its turn.
const TICK: Duration = Duration::from_millis(20);

/// Where a client lives and what it asks.
pub(crate) struct Client<'a> {
    /// Its namespace.
    pub(crate) space: &'a Space,
    /// The registry or gateway.
    pub(crate) server: SocketAddr,
}

/// What came of a client's pull.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    /// When it was done, in seconds from the common start; none if it never was.
    pub(crate) seconds: Option<f64>,
    /// How often something had to be asked for again.
    pub(crate) failures: usize,
    /// What failed last.
    pub(crate) last_failure: Option<String>,
}

/// What happens while clients pull.
pub(crate) trait Meanwhile {
    /// Called every few milliseconds, with the time since the start.
    fn tick(&mut self, now: Duration) -> Result<()>;

    /// Called when time is up or something failed: whatever clients still read from has to end.
    fn abandon(&mut self);
}

/// Lets all clients pull from the same instant on, until all are done or time is up.
pub(crate) fn pull(
    clients: &[Client<'_>],
    image: &Image,
    limit: Duration,
    meanwhile: &mut impl Meanwhile,
) -> Result<Vec<Pulled>> {
    let stop = AtomicBool::new(false);
    let finished = AtomicUsize::new(0);
    let gate = Barrier::new(clients.len() + 1);
    let start = OnceLock::new();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for client in clients {
            let (gate, stop, finished, start) = (&gate, &stop, &finished, &start);
            threads.push(scope.spawn(move || {
                let entered = client.space.enter();
                gate.wait();
                let begun = *start.get_or_init(Instant::now);
                let pull = Pull::new(client.server, image, stop);
                let seconds = (entered.is_ok() && pull.run()).then(|| begun.elapsed().as_secs_f64());
                finished.fetch_add(1, Ordering::Relaxed);
                entered?;
                Ok(Pulled { seconds, failures: pull.failures(), last_failure: pull.last_failure() })
            }));
        }
        gate.wait();
        let begun = *start.get_or_init(Instant::now);
        let mut went = Ok(());
        while finished.load(Ordering::Relaxed) < clients.len() {
            went = interrupt::check().and_then(|()| meanwhile.tick(begun.elapsed()));
            if went.is_err() || begun.elapsed() > limit {
                stop.store(true, Ordering::Relaxed);
                meanwhile.abandon();
                break;
            }
            std::thread::sleep(TICK);
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Pulled>>| {
            thread.join().ok().context("a client's thread panicked")?
        };
        let pulled: Vec<Result<Pulled>> = threads.into_iter().map(join).collect();
        went?;
        pulled.into_iter().collect()
    })
}
