//! Waiting for something that can be observed, with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to rest between two looks at a condition. Short, so that tests are not slower than what they test.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Looks again and again until `look` yields something.
///
/// # Errors
/// When `deadline` has passed; the text names `what` and how long it was waited for. Errors of `look` itself
/// end the wait at once.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > deadline {
            bail!("{what}: did not happen within {} s", deadline.as_secs_f32());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Looks again and again until `holds` is true.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, deadline, || Ok(holds()?.then_some(())))
}
