//! The origins of one transfer: which is read now, which have failed, and which one a wrong digest is laid to.

use super::{OriginFailure, Route};

/// The most origins that one transfer remembers as having the blob.
const MAX_ROUTES: usize = 8;

/// Origins in the order in which they are tried. One reading is of one origin, so that it is known who sent what.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: Vec<Known>,
    current: usize,
    wrong: Vec<String>,
}

#[derive(Debug)]
struct Known {
    route: Route,
    failure: Option<OriginFailure>,
    // Whether bytes of the present attempt came from it.
    was_read: bool,
}

impl Routes {
    /// Adds an origin; `false` if it is known, or there are too many.
    pub(super) fn add(&mut self, route: Route) -> bool {
        let is_new = self.known.len() < MAX_ROUTES && self.known.iter().all(|known| known.route != route);
        if is_new {
            self.known.push(Known { route, failure: None, was_read: false });
        }
        is_new
    }

    /// The origin to read next: the first that has not failed.
    pub(super) fn choose(&mut self) -> Option<Route> {
        self.current = self.known.iter().position(|known| known.failure.is_none())?;
        self.known.get(self.current).map(|known| known.route.clone())
    }

    /// A chunk came from the origin that is read.
    pub(super) fn gave(&mut self) {
        if let Some(known) = self.known.get_mut(self.current) {
            known.was_read = true;
        }
    }

    /// The origin that was read cannot give the rest. When no other is left: why each of them cannot.
    pub(super) fn failed(&mut self, failure: OriginFailure) -> Option<String> {
        if let Some(known) = self.known.get_mut(self.current) {
            known.failure = Some(failure);
        }
        if self.known.iter().any(|known| known.failure.is_none()) {
            return None;
        }
        let single = self.known.len() == 1;
        let texts = self.known.iter().map(|Known { route, failure, .. }| {
            let why = failure.as_ref().map_or("", |failure| failure.message.as_str());
            if single { why.to_owned() } else { format!("{route}: {why}") }
        });
        Some(texts.collect::<Vec<_>>().join("; "))
    }

    /// The first of those that were out of reach when they were read, and why.
    pub(super) fn away(&self) -> Option<(&Route, &str)> {
        let failed = self.known.iter().filter_map(|known| Some((&known.route, known.failure.as_ref()?)));
        failed.filter(|(_, failure)| failure.away).map(|(route, why)| (route, why.message.as_str())).next()
    }

    /// Where was read in this attempt.
    pub(super) fn read(&self) -> impl Iterator<Item = &Route> {
        self.known.iter().filter(|known| known.was_read).map(|known| &known.route)
    }

    /// What was read in this attempt has not the digest: names those who sent it.
    pub(super) fn sent_wrong_bytes(&mut self) -> String {
        let senders = self.known.iter().filter(|known| known.was_read);
        self.wrong = senders.map(|known| known.route.to_string()).collect();
        self.wrong.join(" or ")
    }

    /// A further attempt begins, with the next origin.
    pub(super) fn turn(&mut self) {
        if self.current < self.known.len() {
            let last = self.known.remove(self.current);
            self.known.push(last);
        }
        self.known.iter_mut().for_each(|known| known.was_read = false);
    }

    /// Who sent bytes that have not the digest when it last happened.
    pub(super) fn wrong(&self) -> &[String] {
        &self.wrong
    }

    /// The origin that is read, or was last.
    pub(super) fn current(&self) -> String {
        self.known.get(self.current).map_or_else(String::new, |known| known.route.to_string())
    }

    /// All of them, be they in reach or not.
    pub(super) fn all(&self) -> Vec<Route> {
        self.known.iter().map(|known| known.route.clone()).collect()
    }

    /// The names of all of them.
    pub(super) fn names(&self) -> Vec<String> {
        self.known.iter().map(|known| known.route.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn route(host: &str) -> Route {
        Route { host: host.parse().unwrap(), repository: "a/b".parse().unwrap() }
    }

    fn failure(message: &str, away: bool) -> OriginFailure {
        OriginFailure { message: message.to_owned(), retry: away, away }
    }

    fn two() -> Routes {
        let mut routes = Routes::default();
        assert!(routes.add(route("one.example")) && routes.add(route("two.example")));
        assert!(!routes.add(route("one.example")));
        routes
    }

    #[test]
    fn each_origin_is_tried_before_all_are_said_to_have_failed() {
        let mut routes = two();
        assert_eq!(routes.choose(), Some(route("one.example")));
        assert_eq!(routes.failed(failure("is down", true)), None);
        assert_eq!(routes.choose(), Some(route("two.example")));
        let why = routes.failed(failure("knows nothing", false)).unwrap();
        assert_eq!(why, "one.example/a/b: is down; two.example/a/b: knows nothing");
        assert_eq!(routes.choose(), None);
        assert_eq!(routes.away(), Some((&route("one.example"), "is down")));
    }

    #[test]
    fn only_the_origin_that_was_read_is_named_for_wrong_bytes_and_the_other_is_next() {
        let mut routes = two();
        routes.choose();
        routes.gave();
        assert_eq!(routes.sent_wrong_bytes(), "one.example/a/b");
        routes.turn();
        assert_eq!(routes.choose(), Some(route("two.example")));
        routes.gave();
        assert_eq!(routes.sent_wrong_bytes(), "two.example/a/b");
    }

    #[test]
    fn both_are_named_where_an_attempt_has_bytes_of_both() {
        let mut routes = two();
        routes.choose();
        routes.gave();
        routes.failed(failure("broke off", true));
        routes.choose();
        routes.gave();
        assert_eq!(routes.sent_wrong_bytes(), "one.example/a/b or two.example/a/b");
    }
}
