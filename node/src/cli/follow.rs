//! What a command hears of work that takes its time at the node.

use tokio::time::{MissedTickBehavior, interval};

use super::failure::Failure;
use super::progress::TICK;
use super::stop::Stop;
use crate::control::{Progress, Step};

/// What there is to show.
pub(super) enum Heard<E> {
    /// Something happened.
    Event(E),
    /// Time has passed.
    Tick,
}

/// How it ended for the command.
pub(super) enum End<D> {
    /// The work is over.
    Over(Result<D, Failure>),
    /// Ctrl-C or SIGTERM came before, with the exit status that says which.
    Stopped(u8),
}

/// Follows the work to its end, or until the command is stopped.
pub(super) async fn follow<E, D>(
    lines: &mut Progress<E, D>,
    stop: &mut Stop,
    mut hear: impl FnMut(Heard<E>) -> Result<(), Failure>,
) -> End<D>
where
    E: serde::de::DeserializeOwned,
    D: serde::de::DeserializeOwned,
{
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let heard = tokio::select! {
            step = lines.next() => match step {
                Ok(Step::Event(event)) => Heard::Event(event),
                Ok(Step::Done(summary)) => return End::Over(Ok(summary)),
                Err(error) => return End::Over(Err(error.into())),
            },
            _ = ticks.tick() => Heard::Tick,
            status = stop.asked() => return End::Stopped(status),
        };
        if let Err(error) = hear(heard) {
            return End::Over(Err(error));
        }
    }
}
