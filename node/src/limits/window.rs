//! Times of the week at which the links that lead out of the site may be used.

use std::fmt;

/// Seconds of a minute, a day and a week.
const MINUTE: u32 = 60;
const DAY: u32 = 86_400;
const WEEK: u32 = 7 * DAY;

/// The days as people write them. The first is that of 1970-01-01.
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// The most windows that may be set.
pub const MAX_WINDOWS: usize = 64;

/// A moment, and how the clock on the wall shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the Unix epoch.
    pub utc: u64,
    /// By how many seconds the wall's clock is ahead of that.
    pub offset: i32,
}

impl Moment {
    /// Seconds since 1970-01-01 00:00 on the wall; what lies before counts as that.
    const fn wall(self) -> u64 {
        self.utc.saturating_add_signed(self.offset as i64)
    }

    /// Which day it is on the wall, in days since 1970-01-01.
    pub fn day(self) -> u32 {
        u32::try_from(self.wall() / u64::from(DAY)).unwrap_or(u32::MAX)
    }

    /// When the next day begins, in seconds since the Unix epoch, unless the wall's clock is changed before.
    pub const fn next_day(self) -> u64 {
        self.utc + (DAY as u64 - self.wall() % DAY as u64)
    }

    /// Seconds since the last Thursday began on the wall.
    const fn of_week(self) -> u32 {
        (self.wall() % WEEK as u64) as u32
    }
}

/// Some hours of some days: from a time on, for at most a day, on each of these days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    // Those of DAYS, a bit each.
    days: u8,
    // The first and the last day as it was written; all of them if it names none.
    named: Option<(u8, u8)>,
    // In seconds of the day.
    from: u32,
    // In seconds: not more than a day.
    len: u32,
}

impl Window {
    /// Reads `01:00-05:00`, `22:00-06:00` (which ends on the next day), `Sat 00:00-24:00` or `Mon-Fri 20:00-06:00`.
    ///
    /// `None` if it is nothing like these, or has no length.
    pub fn parse(text: &str) -> Option<Self> {
        let (days, hours) = match text.trim().rsplit_once(char::is_whitespace) {
            Some((days, hours)) => (Some(days.trim()), hours),
            None => (None, text.trim()),
        };
        let named = match days {
            None => None,
            Some(days) => {
                let (first, last) = days.split_once('-').unwrap_or((days, days));
                Some((day(first)?, day(last)?))
            }
        };
        let days = match named {
            None => 0x7f,
            Some((first, last)) => {
                let count = (last + 7 - first) % 7;
                (0..=count).fold(0, |days, step| days | 1 << ((first + step) % 7))
            }
        };
        let (from, to) = hours.split_once('-')?;
        let (from, to) = (time(from)?, time(to)?);
        if from == DAY || from == to {
            return None;
        }
        let len = if to > from { to - from } else { DAY - from + to };
        Some(Self { days, named, from, len })
    }

    /// When in the week it opens, and for how long it is open.
    fn openings(self) -> impl Iterator<Item = (u32, u32)> {
        (0..7u32)
            .filter(move |day| self.days & 1 << day != 0)
            .map(move |day| (day * DAY + self.from, self.len))
    }
}

fn day(text: &str) -> Option<u8> {
    DAYS.iter().position(|day| day.eq_ignore_ascii_case(text)).map(|day| day as u8)
}

fn time(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let fits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| text.parse::<u32>().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes).filter(|_| minutes.len() == 2)?);
    let time = (hours * 60 + minutes) * MINUTE;
    (minutes < 60 && time <= DAY).then_some(time)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named {
            Some((first, last)) if first == last => write!(f, "{} ", DAYS[usize::from(first)])?,
            Some((first, last)) => write!(f, "{}-{} ", DAYS[usize::from(first)], DAYS[usize::from(last)])?,
            None => {}
        }
        let end = self.from + self.len;
        let end = if end > DAY { end - DAY } else { end };
        let clock = |time: u32| format!("{:02}:{:02}", time / 3600, time / MINUTE % 60);
        write!(f, "{}-{}", clock(self.from), clock(end))
    }
}

/// Whether some windows are open, and since when and until when they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hours {
    /// One is open, or there are none.
    Open {
        /// When the last of those closes that follow each other without a gap, in seconds since the Unix epoch; `None`
        /// if that is never.
        until: Option<u64>,
    },
    /// All are closed.
    Closed {
        /// When the last one closed, in seconds since the Unix epoch.
        since: u64,
        /// When the next one opens.
        until: u64,
    },
}

/// Looks whether one of these windows is open.
pub fn hours(windows: &[Window], now: Moment) -> Hours {
    let openings: Vec<(u32, u32)> = windows.iter().flat_map(|window| window.openings()).collect();
    if openings.is_empty() {
        return Hours::Open { until: None };
    }
    let at = now.of_week();
    // For how long the windows that are open at a time of the week still are.
    let open_for = |at: u32| {
        let left = openings.iter().filter_map(|(from, len)| len.checked_sub((at + WEEK - from) % WEEK));
        left.max().filter(|left| *left > 0)
    };
    let mut ahead = 0;
    while let Some(left) = open_for((at + ahead) % WEEK) {
        ahead += left;
        if ahead >= WEEK {
            return Hours::Open { until: None };
        }
    }
    if ahead > 0 {
        return Hours::Open { until: Some(now.utc + u64::from(ahead)) };
    }
    // There is at least one opening, so both are found.
    let closed = openings.iter().map(|(from, len)| (at + 2 * WEEK - (from + len)) % WEEK).min().unwrap_or(0);
    let opens = openings.iter().map(|(from, _)| (from + WEEK - at) % WEEK).min().unwrap_or(0);
    Hours::Closed { since: now.utc.saturating_sub(u64::from(closed)), until: now.utc + u64::from(opens) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-25, a Wednesday, 00:00.
    const WEDNESDAY: u64 = 1_795_564_800;

    fn at(hours: u64, minutes: u64) -> Moment {
        Moment { utc: WEDNESDAY + hours * 3600 + minutes * 60, offset: 0 }
    }

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|text| Window::parse(text).unwrap()).collect()
    }

    #[test]
    fn windows_are_read_as_people_write_them_and_written_as_they_are_read() {
        for text in
            ["01:00-05:00", "22:00-06:00", "Sat 00:00-24:00", "Mon-Fri 20:30-06:00", "Fri-Mon 00:00-24:00"]
        {
            assert_eq!(Window::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Window::parse(" sat  1:00-5:00 "), Window::parse("Sat 01:00-05:00"));
        for bad in [
            "",
            "01:00",
            "01:00-",
            "1-5",
            "01:00-01:00",
            "24:00-05:00",
            "00:00-24:01",
            "25:00-26:00",
            "01:60-02:00",
            "Sab 01:00-02:00",
            "Sat",
            "Sat-01:00-02:00",
            "-Sat 01:00-02:00",
            "01:00-05:00 Sat",
            "001:00-02:00",
            "+1:00-02:00",
            "01:0-02:00",
            "é",
        ] {
            assert_eq!(Window::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_window_opens_and_closes_on_the_minute() {
        let night = windows(&["01:00-05:00"]);
        let closed = |since: Moment, until: Moment| Hours::Closed { since: since.utc, until: until.utc };
        assert_eq!(
            hours(&night, at(0, 59)),
            Hours::Closed { since: at(5, 0).utc - 86_400, until: at(1, 0).utc }
        );
        assert_eq!(hours(&night, at(1, 0)), Hours::Open { until: Some(at(5, 0).utc) });
        assert_eq!(hours(&night, at(5, 0)), closed(at(5, 0), at(25, 0)));
        assert_eq!(hours(&[], at(5, 0)), Hours::Open { until: None });
    }

    #[test]
    fn a_window_may_go_over_midnight_and_belongs_to_the_day_on_which_it_opens() {
        let late = windows(&["Wed 22:00-06:00"]);
        assert_eq!(hours(&late, at(29, 59)), Hours::Open { until: Some(at(30, 0).utc) });
        let Hours::Closed { until, .. } = hours(&late, at(5, 0)) else {
            panic!("Tuesday night is not named")
        };
        assert_eq!(until, at(22, 0).utc);
    }

    #[test]
    fn windows_that_follow_each_other_are_one_and_a_whole_week_never_closes() {
        let two = windows(&["01:00-05:00", "05:00-07:00", "04:00-06:00"]);
        assert_eq!(hours(&two, at(2, 0)), Hours::Open { until: Some(at(7, 0).utc) });
        assert_eq!(hours(&windows(&["00:00-24:00"]), at(2, 0)), Hours::Open { until: None });
        assert_eq!(hours(&windows(&["12:00-24:00", "00:00-12:00"]), at(2, 0)), Hours::Open { until: None });
    }

    #[test]
    fn the_clock_on_the_wall_counts() {
        let night = windows(&["01:00-05:00"]);
        let east = Moment { offset: 3600, ..at(0, 0) };
        assert_eq!(hours(&night, east), Hours::Open { until: Some(at(4, 0).utc) });
        assert_eq!((at(0, 0).day(), Moment { offset: -1, ..at(0, 0) }.day()), (20_782, 20_781));
        assert_eq!(east.next_day(), at(23, 0).utc);
    }

    fn window() -> impl Strategy<Value = Window> {
        ((0..1440u32), (1..=1440u32), prop::option::of((0..7u8, 0..7u8))).prop_map(|(from, len, days)| {
            // A whole day is written from midnight to midnight alone.
            let from = if len == 1440 { 0 } else { from };
            let end = from + len;
            let end = if end > 1440 { end - 1440 } else { end };
            let clock = |minutes: u32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
            let days = days.map_or(String::new(), |(first, last)| {
                format!("{}-{} ", DAYS[usize::from(first)], DAYS[usize::from(last)])
            });
            Window::parse(&format!("{days}{}-{}", clock(from), clock(end))).unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_is_said_of_the_hours_is_so(
            windows in prop::collection::vec(window(), 1..4), utc in WEDNESDAY..WEDNESDAY + 14 * 86_400,
            offset in -50_000..50_000i32,
        ) {
            let is_open = |utc| matches!(hours(&windows, Moment { utc, offset }), Hours::Open { .. });
            // Windows begin and end on the minute of the wall, so one look a minute sees all of them.
            match hours(&windows, Moment { utc, offset }) {
                Hours::Open { until: None } => prop_assert!((0..10_080).all(|minute| is_open(utc + minute * 60))),
                Hours::Open { until: Some(until) } => {
                    prop_assert!(until > utc && !is_open(until) && is_open(until - 1));
                    prop_assert!((utc..until).step_by(60).all(is_open));
                }
                Hours::Closed { since, until } => {
                    prop_assert!(since <= utc && utc < until && until <= utc + u64::from(WEEK));
                    prop_assert!(is_open(until) && !is_open(until - 1) && is_open(since - 1) && !is_open(since));
                    prop_assert!((since..until).step_by(60).all(|utc| !is_open(utc)));
                }
            }
        }

        #[test]
        fn a_window_goes_round(window in window()) {
            prop_assert_eq!(Window::parse(&window.to_string()), Some(window));
        }

        #[test]
        fn no_text_harms(text in "\\PC{0,30}|[A-Za-z]{0,3}[ -]{0,2}[0-9:-]{0,12}") {
            if let Some(window) = Window::parse(&text) {
                prop_assert_eq!(Window::parse(&window.to_string()), Some(window));
            }
        }
    }
}
