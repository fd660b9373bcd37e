//! What a pull shows: rates, time left, and what it waits for.

use std::time::{Duration, Instant};

use wherry_proto::Digest;

use super::progress::PullLines;
use super::tally::Tally;
use super::tests::digest;
use crate::control::api::{Away, PullEvent, WaitsFor};
use crate::limits::{Limit, Limited};

#[test]
fn plain_progress_tells_rate_and_time_left_now_and_then() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let mut lines = PullLines::new(begun);
    let other = Digest::sha256(b"other");
    let resolved =
        PullEvent::Resolved { reference: "r/a:1".to_owned(), digest: digest(), blobs: 2, bytes: 200 << 20 };
    assert_eq!(lines.line(&resolved, at(0)).unwrap(), format!("r/a:1 is {}: 2 blobs, 200 MiB", digest()));
    let here = PullEvent::LayerStarted { digest: other, size: 100 << 20, present: true, here: 100 << 20 };
    assert_eq!(lines.line(&here, at(0)).unwrap(), format!("{} here already, 100 MiB", other.short()));
    let started = PullEvent::LayerStarted { digest: digest(), size: 100 << 20, present: false, here: 0 };
    assert_eq!(lines.line(&started, at(0)), None);
    let progress = |mib: u64| PullEvent::Progress {
        digest: digest(),
        bytes: mib << 20,
        from_peers: mib << 20,
        from_origin: 0,
    };
    assert_eq!(lines.line(&progress(0), at(0)), None);
    assert_eq!(lines.line(&progress(10), at(1)), None);
    assert_eq!(lines.line(&progress(50), at(5)).unwrap(), "150 MiB of 200 MiB, 10.0 MiB/s, 5.00 s left");
    assert_eq!(lines.line(&progress(60), at(6)), None);
    let done = PullEvent::LayerDone { digest: digest(), from_peers: 90 << 20, from_origin: 10 << 20 };
    assert_eq!(
        lines.line(&done, at(10)).unwrap(),
        format!(
            "{} done, 100 MiB in 10.0 s (90.0 MiB from peers, 10.0 MiB from the origin)",
            digest().short()
        )
    );
    // An event about a blob that was never started is no reason to fail.
    let unknown = PullEvent::LayerDone { digest: Digest::sha256(b"x"), from_peers: 0, from_origin: 0 };
    assert_eq!(lines.line(&unknown, at(11)), None);
}

#[test]
fn what_was_here_before_counts_for_what_is_here_but_not_for_rate_and_time_left() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let mut lines = PullLines::new(begun);
    let resolved =
        PullEvent::Resolved { reference: "r/a:1".to_owned(), digest: digest(), blobs: 1, bytes: 100 << 20 };
    lines.line(&resolved, at(0));
    let started =
        PullEvent::LayerStarted { digest: digest(), size: 100 << 20, present: false, here: 60 << 20 };
    let partly = format!("{} 60.0 MiB of 100 MiB here already", digest().short());
    assert_eq!(lines.line(&started, at(0)).unwrap(), partly);
    let progress = |bytes: u64, came: u64| PullEvent::Progress {
        digest: digest(),
        bytes: bytes << 20,
        from_peers: 0,
        from_origin: came << 20,
    };
    // Until its turn has come the node does not know what of it links.
    assert_eq!(lines.line(&progress(0, 0), at(0)), None);
    assert_eq!(lines.line(&progress(70, 10), at(5)).unwrap(), "70.0 MiB of 100 MiB, 2.00 MiB/s, 15.0 s left");
    let done = PullEvent::LayerDone { digest: digest(), from_peers: 0, from_origin: 40 << 20 };
    assert_eq!(
        lines.line(&done, at(20)).unwrap(),
        format!("{} done, 40.0 MiB in 20.0 s (0 B from peers, 40.0 MiB from the origin)", digest().short())
    );
}

#[test]
fn progress_that_stands_still_says_so_in_place_of_a_time_that_grows() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let mut lines = PullLines::new(begun);
    let mut tally = Tally::default();
    let started = PullEvent::LayerStarted { digest: digest(), size: 100 << 20, present: false, here: 0 };
    let progress =
        PullEvent::Progress { digest: digest(), bytes: 10 << 20, from_peers: 0, from_origin: 10 << 20 };
    for (event, second) in [(&started, 0), (&progress, 4)] {
        assert_eq!((lines.line(event, at(second)), tally.event(event, at(second))), (None, None));
    }
    assert_eq!(lines.tick(at(6)).unwrap(), "10.0 MiB of 10.0 MiB, 1.67 MiB/s, 0.00 s left");
    assert!(tally.rows(100, 30, at(6))[0].ends_with("10.0 MiB of 100 MiB  1.67 MiB/s  54.0 s left"));
    // Nothing comes any more, however often the node says so.
    assert_eq!(lines.line(&progress, at(11)), None);
    tally.event(&progress, at(11));
    assert!(tally.rows(100, 30, at(11))[0].ends_with("10.0 MiB of 100 MiB              waits"));
    assert_eq!(lines.tick(at(66)).unwrap(), "10.0 MiB of 10.0 MiB, waits: nothing has arrived for 62.0 s");
    assert_eq!(lines.tick(at(76)), None);
}

#[test]
fn what_waits_says_for_what_in_place_of_a_rate_and_a_time() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let (mut tally, other) = (Tally::default(), Digest::sha256(b"other"));
    for digest in [digest(), other] {
        let started = PullEvent::LayerStarted { digest, size: 100 << 20, present: false, here: 0 };
        tally.event(&started, begun);
    }
    let progress = |digest, bytes| PullEvent::Progress { digest, bytes, from_peers: 0, from_origin: bytes };
    let stuck =
        |digest| PullEvent::Stuck { digest, waits_for: WaitsFor::Origin, origin: "r.example/a".to_owned() };
    // Plain lines tell it as soon as it is so.
    let mut lines = PullLines::new(begun);
    let started = PullEvent::LayerStarted { digest: digest(), size: 100 << 20, present: false, here: 0 };
    assert_eq!(lines.line(&started, begun), None);
    assert!(lines.line(&stuck(digest()), at(2)).unwrap().contains("waits for this node's link"));
    assert_eq!(lines.line(&stuck(digest()), at(4)), None);
    // A little has come, and would make a rate that means nothing.
    tally.event(&progress(digest(), 1790), at(2));
    assert!(tally.all(at(4)).contains("/s, "), "{}", tally.all(at(4)));
    assert_eq!(tally.event(&stuck(digest()), at(4)), None);
    assert!(tally.all(at(4)).contains("/s, "), "the other one may come");
    tally.event(&stuck(other), at(4));
    assert_eq!(tally.all(at(4)), "1.75 KiB of 1.75 KiB, waits for this node's link to r.example/a");
    assert!(tally.rows(100, 30, at(4))[0].ends_with(" waits"), "{:#?}", tally.rows(100, 30, at(4)));
    let said = tally.all(at(8));
    assert!(said.ends_with("r.example/a; nothing has arrived for 6.00 s"), "{said}");
    // It goes on, until a limit says no.
    tally.event(&progress(other, 9 << 20), at(9));
    assert!(tally.all(at(9)).contains("/s, "), "{}", tally.all(at(9)));
    let why = "until 22:00".to_owned();
    let waiting =
        PullEvent::Waiting { limited: Limited { by: Limit::Window, since: 0, until: Some(9) }, why };
    assert_eq!(tally.event(&waiting, at(10)).unwrap(), "waiting: until 22:00");
    assert_eq!(tally.event(&waiting, at(12)), None, "it was said");
    assert!(tally.all(at(10)).ends_with(", waits: until 22:00"), "{}", tally.all(at(10)));
    assert!(tally.rows(100, 30, at(10))[1].ends_with(" waits"), "{:#?}", tally.rows(100, 30, at(10)));
    tally.event(&stuck(digest()), at(12));
    assert!(
        tally.all(at(12)).ends_with(", waits: until 22:00"),
        "one waits for it still: {}",
        tally.all(at(12))
    );
    tally.event(&progress(other, 10 << 20), at(13));
    assert!(tally.all(at(13)).contains("/s, "), "{}", tally.all(at(13)));
    // The next evening, and then somebody else is what is waited for.
    assert_eq!(tally.event(&waiting, at(20)).unwrap(), "waiting: until 22:00");
    for blob in [digest(), other] {
        tally.event(&stuck(blob), at(30));
    }
    assert!(tally.all(at(30)).contains(", waits for this node's link"), "{}", tally.all(at(30)));
}

#[test]
fn an_origin_that_is_away_is_named_with_how_long_it_is_waited_for() {
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let mut tally = Tally::default();
    let started =
        PullEvent::LayerStarted { digest: digest(), size: 100 << 20, present: false, here: 4 << 20 };
    tally.event(&started, begun);
    let origin = "r.example/a".to_owned();
    let away = |seconds_left| PullEvent::Away {
        digest: digest(),
        away: Away { origin: origin.clone(), why: "connection refused".to_owned(), seconds_left },
    };
    assert_eq!(
        tally.event(&away(600), at(3)).unwrap(),
        "waiting: r.example/a is out of reach: connection refused; trying again for 10m"
    );
    assert_eq!(tally.event(&away(597), at(6)), None, "it was said");
    // That it is tried again is no news.
    let stuck =
        PullEvent::Stuck { digest: digest(), waits_for: WaitsFor::Origin, origin: "r.example/a".to_owned() };
    tally.event(&stuck, at(9));
    assert_eq!(
        tally.all(at(9)),
        "4.00 MiB of 4.00 MiB, waits until r.example/a is in reach again, 9m 54s more at most; nothing has arrived for \
         9.00 s"
    );
    let progress =
        PullEvent::Progress { digest: digest(), bytes: 5 << 20, from_peers: 0, from_origin: 1 << 20 };
    tally.event(&progress, at(20));
    assert!(!tally.all(at(20)).contains("waits"), "{}", tally.all(at(20)));
    assert!(tally.event(&away(600), at(30)).is_some(), "it is gone once more");
}
