//! What origins say of how much they will still give.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::HeaderMap;

use crate::name::Host;

/// How many manifests a registry still gives within its own time, as Docker Hub says it: `76;w=21600`.
const REMAINING: &str = "ratelimit-remaining";

/// Of how many origins it is remembered that are neither configured nor Docker Hub; what further ones say is not.
const MAX_ORIGINS: usize = 64;

/// The last word of each origin that counts.
#[derive(Debug, Default)]
pub(super) struct Remaining(Mutex<BTreeMap<Host, u64>>);

impl Remaining {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Host, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, host: &Host, is_configured: bool, headers: &HeaderMap) {
        let Some(left) = headers.get(REMAINING).and_then(|value| value.to_str().ok()).and_then(read) else {
            return;
        };
        let mut known = self.lock();
        if is_configured || host.is_docker_io() || known.len() < MAX_ORIGINS || known.contains_key(host) {
            known.insert(host.clone(), left);
        }
    }

    pub(super) fn all(&self) -> Vec<(Host, u64)> {
        self.lock().iter().map(|(host, left)| (host.clone(), *left)).collect()
    }
}

fn read(value: &str) -> Option<u64> {
    value.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_with_and_without_its_window() {
        assert_eq!(read("76;w=21600"), Some(76));
        assert_eq!(read(" 100 "), Some(100));
        for nonsense in ["", ";w=1", "-1", "many"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
