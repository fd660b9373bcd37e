//! When to try again.

use std::time::Duration;

use super::{OriginError, OriginSettings};

/// How one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// For good.
    Final(OriginError),
    /// In a way that may pass; the origin may have said when.
    Passing(OriginError, Option<Duration>),
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        Self::Final(error)
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Retry<'a> {
    settings: &'a OriginSettings,
    made: u32,
}

impl<'a> Retry<'a> {
    pub(super) const fn new(settings: &'a OriginSettings) -> Self {
        Self { settings, made: 0 }
    }

    /// Waits until the next attempt, or gives up with the error.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), OriginError> {
        let (error, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error, asked) => (error, asked),
        };
        self.made += 1;
        if self.made >= self.settings.attempts {
            return Err(error);
        }
        let wait = match asked {
            Some(asked) if asked > self.settings.max_retry => return Err(error),
            Some(asked) => asked,
            None => self.backoff(getrandom::u32().unwrap_or(u32::MAX / 2)),
        };
        tracing::debug!(%error, wait_ms = wait.as_millis() as u64, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The pause after so many attempts; `dice` is anything.
    fn backoff(&self, dice: u32) -> Duration {
        let doubled = self.settings.first_retry.saturating_mul(1 << (self.made - 1).min(16));
        let full = doubled.min(self.settings.max_retry);
        full - full.mul_f64(0.5 * f64::from(dice) / f64::from(u32::MAX))
    }
}

/// A `Retry-After` header: seconds. Dates are not looked at: they would need clocks that agree.
pub(super) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_within_half_and_the_whole() {
        let settings = OriginSettings::default();
        for (made, full) in [(1, 500), (2, 1000), (3, 2000), (6, 10_000), (60, 10_000)] {
            let retry = Retry { settings: &settings, made };
            assert_eq!(retry.backoff(0), Duration::from_millis(full));
            assert_eq!(retry.backoff(u32::MAX), Duration::from_millis(full / 2));
        }
    }
}
