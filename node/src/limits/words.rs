//! Limits in plain words, and the clock on the wall.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use super::book::{Limit, LimitSettings, Limited};
use super::window::Moment;
use crate::config::units::show_exact_size;

/// The time, and what the clock on this machine's wall shows.
pub fn moment() -> Moment {
    let utc = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Moment { utc, offset: offset(utc) }
}

fn timestamp(utc: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(utc).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
}

fn offset(utc: u64) -> i32 {
    TimeZone::system().to_offset(timestamp(utc)).seconds()
}

/// A time in seconds since the Unix epoch as the wall's clock shows it, such as `2026-11-26 05:00`.
pub fn show_time(utc: u64, offset: i32) -> String {
    let zone = TimeZone::fixed(Offset::from_seconds(offset).unwrap_or(Offset::UTC));
    timestamp(utc).to_zoned(zone).strftime("%Y-%m-%d %H:%M").to_string()
}

/// Which limit keeps bytes from outside the site from coming in, since when, until when, and what can be done.
pub fn explain(limited: &Limited, settings: &LimitSettings, offset: i32) -> String {
    let since = show_time(limited.since, offset);
    let until = limited.until.map(|until| show_time(until, offset)).unwrap_or_default();
    match limited.by {
        Limit::Pause => format!(
            "this site has taken nothing from outside since {since}, when somebody had it pause; 'wherry wan resume' on \
             any of its nodes ends that"
        ),
        Limit::Window => {
            let windows: Vec<String> = settings.windows.iter().map(ToString::to_string).collect();
            format!(
                "this site takes bytes from outside only at {} (wan_window): not since {since}, and next at {until}",
                windows.join(" and ")
            )
        }
        Limit::Budget => format!(
            "the {} that this site may take from outside in a day (wan_budget) have been used up since {since}; the next \
             day begins at {until}",
            show_exact_size(settings.budget.unwrap_or(0))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::window::Window;

    #[test]
    fn a_limit_says_which_it_is_since_when_and_until_when() {
        let settings = LimitSettings {
            budget: Some(2 << 30),
            windows: vec![Window::parse("01:00-05:00").unwrap(), Window::parse("Sat 00:00-24:00").unwrap()],
            ..LimitSettings::default()
        };
        let said = |by, until| explain(&Limited { by, since: 1_795_564_800, until }, &settings, 3600);
        let pause = said(Limit::Pause, None);
        assert!(pause.contains("since 2026-11-25 01:00") && pause.contains("'wherry wan resume'"), "{pause}");
        let window = said(Limit::Window, Some(1_795_564_800 + 3600));
        assert!(
            window.contains("only at 01:00-05:00 and Sat 00:00-24:00")
                && window.contains("next at 2026-11-25 02:00"),
            "{window}"
        );
        let budget = said(Limit::Budget, Some(1_795_564_800));
        assert!(budget.contains("the 2GiB") && budget.contains("begins at 2026-11-25 01:00"), "{budget}");
    }

    #[test]
    fn the_clock_on_the_wall_is_within_a_day_of_the_worlds() {
        assert!(moment().offset.abs() < 86_400);
    }
}
