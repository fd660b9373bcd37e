//! Sizes and times as people write and read them.

use std::time::Duration;

const UNITS: [(&str, u64); 11] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
];

/// Reads a size such as `20GiB`, `1.5 GB` or `1048576`; capitals do not matter, `K` … `P` alone mean KiB … PiB.
///
/// `None` when it is none, or does not fit into 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim_start());
    let scale = match unit {
        "" => 1,
        _ => {
            UNITS
                .iter()
                .find(|(name, _)| {
                    name.eq_ignore_ascii_case(unit)
                        || unit.len() == 1 && name.len() == 3 && same_letter(name, unit)
                })?
                .1
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return None;
    }
    let tail = match fraction {
        "" => 0,
        digits => {
            let power = 10u128.pow(u32::try_from(digits.len()).ok()?);
            u64::try_from(digits.parse::<u128>().ok()? * u128::from(scale) / power).ok()?
        }
    };
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(tail)
}

fn same_letter(name: &str, unit: &str) -> bool {
    name[..1].eq_ignore_ascii_case(unit)
}

/// Writes a size in binary units with three digits, such as `1.42 GiB`.
pub fn show_size(bytes: u64) -> String {
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    for (unit, next) in [("KiB", "MiB"), ("MiB", "GiB"), ("GiB", "TiB"), ("TiB", "PiB"), ("PiB", "")] {
        value /= 1024.0;
        // 1023.5 would be written as 1024, which is one of the next unit.
        if value < 1023.5 || next.is_empty() {
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

/// Writes a size so that [`parse_size`] gives exactly the same, such as `20GiB`.
pub fn show_exact_size(bytes: u64) -> String {
    for (unit, scale) in UNITS[..6].iter().rev() {
        if bytes != 0 && bytes.is_multiple_of(*scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    format!("{bytes}B")
}

const TIMES: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// Reads a duration such as `30s`, `1h30m` or `250ms`. A number without a unit is none, except `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let scale = TIMES.iter().find(|(name, _)| *name == &tail[..letters])?.1;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = tail[letters..].trim_start();
    }
    Some(Duration::from_millis(total))
}

/// Writes a duration so that [`parse_duration`] gives the same to the millisecond, such as `1h30m`.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, scale) in TIMES[..5].iter().rev() {
        if rest >= *scale {
            out += &format!("{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    out
}

/// Writes how long ago something was with its largest unit alone, such as `3 days`.
pub fn show_age(age: Duration) -> String {
    const STEPS: [(u64, &str); 6] = [
        (31_536_000, "year"),
        (604_800, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let seconds = age.as_secs();
    for (length, name) in STEPS {
        // Two of a unit at least, but for seconds: "1 day" would hide up to half of the truth.
        let count = seconds / length;
        if count >= 2 || length == 1 {
            return format!("{count} {name}{}", if count == 1 { "" } else { "s" });
        }
    }
    String::new()
}

/// Writes the day of a time in seconds since 1970 as `2026-11-23`, in UTC.
pub fn show_date(seconds: u64) -> String {
    // Years are counted from March 0000, so that the day that is sometimes missing is the last of its year; they
    // repeat every 146,097 days.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + carry)
}

/// Writes seconds as a person reads them on a stopwatch: `0.42 s`, `12.3 s`, `3m 20s`, `2h 05m`.
pub fn show_seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        match seconds.round() as u64 {
            whole @ ..6_000 => format!("{}m {:02}s", whole / 60, whole % 60),
            whole => format!("{}h {:02}m", whole / 3_600, whole / 60 % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let gib = 1 << 30;
        for (text, size) in [
            ("20GiB", 20 * gib),
            ("20 gib", 20 * gib),
            ("20G", 20 * gib),
            ("1.5GiB", gib + gib / 2),
            ("1.5 kB", 1500),
            ("0.1MB", 100_000),
            ("7", 7),
            ("7B", 7),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for bad in [
            "",
            "GiB",
            ".5GiB",
            "5.",
            "1..5",
            "-1",
            "5 apples",
            "5XiB",
            "20000000PiB",
            "1,5GiB",
            "0x10",
            "1e9",
            "é",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_exact_size_goes_round() {
        for size in [0, 1, 1023, 1024, 1025, 20 << 30, u64::MAX, 1 << 50] {
            assert_eq!(parse_size(&show_exact_size(size)), Some(size));
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_235, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (1 << 20, "1.00 MiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(show_size(size), text);
        }
    }

    #[test]
    fn durations_need_their_unit_and_go_round() {
        for (text, seconds) in [("30s", 30), ("1h30m", 5400), ("2d", 172_800), ("1m 5s", 65), ("0", 0)] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(text), Some(duration), "{text}");
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration), "{text}");
        }
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for bad in ["", "30", "s", "5 minutes", "-1s", "1.5h", "99999999999999999999s", "9999999999999999w"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_795_392_000, "2026-11-23"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(show_date(seconds), date);
        }
    }

    #[test]
    fn ages_and_stopwatches_are_short() {
        assert_eq!(show_age(Duration::from_secs(1)), "1 second");
        assert_eq!(show_age(Duration::from_secs(119)), "119 seconds");
        assert_eq!(show_age(Duration::from_secs(7200)), "2 hours");
        assert_eq!(show_age(Duration::from_secs(86_400 * 20)), "2 weeks");
        assert_eq!(show_seconds(0.4219), "0.42 s");
        assert_eq!(show_seconds(200.2), "3m 20s");
        assert_eq!(show_seconds(7_500.0), "2h 05m");
    }
}
