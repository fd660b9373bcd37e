//! Rates: how they are written, and how bytes are paced by them.

/// The lowest rate that can be set, in bytes a second: a chunk of 512 KiB takes a minute.
pub const MIN_RATE: u64 = 8_000;

/// The highest, in bytes a second: 1 Tbit/s.
const MAX_RATE: u64 = 125_000_000_000;

/// How much of a rate that was not used may be made up for, in microseconds.
const SLACK: u64 = 200_000;

const UNITS: [(&str, u64); 4] = [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// Reads a rate such as `4Mbit/s`, `500 kB/s` or `1.5MB/s`, in bytes a second. Letters count: `b` is no byte.
///
/// `None` if it is none, or not between [`MIN_RATE`] and 1 Tbit/s.
pub fn parse_rate(text: &str) -> Option<u64> {
    let text = text.trim().strip_suffix("/s")?;
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = (&text[..split], text[split..].trim_start());
    let (prefix, bits) = match unit.strip_suffix("bit") {
        Some(prefix) => (prefix, true),
        None => (unit.strip_suffix('B')?, false),
    };
    let scale = UNITS.iter().find(|(name, _)| *name == prefix)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || whole.len() > 12 || fraction.len() > 9 {
        return None;
    }
    let part = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
    let tail = part(fraction)?.checked_mul(scale)? / 10u64.pow(fraction.len() as u32);
    let rate = part(whole)?.checked_mul(scale)?.checked_add(tail)? / if bits { 8 } else { 1 };
    (MIN_RATE..=MAX_RATE).contains(&rate).then_some(rate)
}

/// Writes a rate so that [`parse_rate`] gives the same, in bits as long as that is round, such as `4Mbit/s`.
pub fn show_rate(rate: u64) -> String {
    let written = |number: u64, name: &str| {
        let (unit, scale) =
            UNITS.iter().rev().find(|(_, scale)| number.is_multiple_of(*scale)).unwrap_or(&UNITS[0]);
        format!("{}{unit}{name}/s", number / scale)
    };
    if (rate * 8).is_multiple_of(1_000) { written(rate * 8, "bit") } else { written(rate, "B") }
}

/// Bytes that pass one after the other at a rate. Times are in microseconds of a clock that never goes back.
#[derive(Debug, Default)]
pub struct Pace {
    // When all that has passed is paid for.
    paid: u64,
    // Whether what passed last came before more of the rate lay unused than may be made up for.
    full: bool,
}

impl Pace {
    /// When the next byte may pass.
    pub fn next(&self, now: u64) -> u64 {
        self.paid.max(now)
    }

    /// Whether the rate is what holds up what passes: whatever is slower leaves more and more of it unused.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// So many bytes have passed, or are about to: when the next one may. At that time, on average, no more have passed
    /// than the rate allows, in bytes a second.
    pub fn pass(&mut self, now: u64, bytes: u64, rate: u64) -> u64 {
        let from = self.paid.max(now.saturating_sub(SLACK));
        self.full = from == self.paid;
        let cost = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(rate.max(1)));
        self.paid = from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
        self.next(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, rate) in [
            ("4Mbit/s", 500_000),
            (" 4 Mbit/s ", 500_000),
            ("512kbit/s", 64_000),
            ("500kB/s", 500_000),
            ("1.5MB/s", 1_500_000),
            ("1Gbit/s", 125_000_000),
            ("64000bit/s", 8_000),
            ("8000B/s", 8_000),
        ] {
            assert_eq!(parse_rate(text), Some(rate), "{text}");
        }
        for bad in [
            "",
            "4",
            "4M",
            "4Mbit",
            "4Mb/s",
            "4mbit/s",
            "4KB/s",
            "4MiB/s",
            "Mbit/s",
            ".5Mbit/s",
            "5.Mbit/s",
            "-4Mbit/s",
            "0Mbit/s",
            "63kbit/s",
            "2Tbit/s",
            "9000Gbit/s",
            "99999999999999999999Gbit/s",
            "4Mbit/s/s",
            "é/s",
            "1e3MB/s",
        ] {
            assert_eq!(parse_rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn rates_are_written_short() {
        for text in ["4Mbit/s", "512kbit/s", "1Gbit/s", "500001B/s"] {
            assert_eq!(show_rate(parse_rate(text).unwrap()), text);
        }
    }

    proptest! {
        #[test]
        fn a_rate_goes_round(rate in MIN_RATE..=MAX_RATE) {
            prop_assert_eq!(parse_rate(&show_rate(rate)), Some(rate));
        }

        #[test]
        fn no_text_harms(text in "\\PC{0,20}|[0-9.]{0,25}[kMG]?(bit|B)/s") {
            if let Some(rate) = parse_rate(&text) {
                prop_assert!((MIN_RATE..=MAX_RATE).contains(&rate));
            }
        }

        /// Whoever takes a piece, waits as told and takes the next has the rate, whatever the pieces are and however late
        /// it wakes.
        #[test]
        fn a_rate_is_held_whatever_the_pieces(
            rate in MIN_RATE..2_000_000,
            pieces in prop::collection::vec((1..600_000u64, 0..150_000u64), 2..60),
        ) {
            let (mut pace, mut now) = (Pace::default(), 10_000_000);
            let begun = now;
            let mut passed = 0;
            // A source that has less than the rate to give cannot be made to give more.
            let suffices = pieces.iter().all(|(bytes, late)| bytes * 1_000_000 / rate > *late);
            for (bytes, late) in pieces {
                // What has passed before this piece is paid for, but for the slack that is made up for once.
                let allowed = (now - begun + SLACK) as u128 * u128::from(rate) / 1_000_000 + 1;
                prop_assert!(u128::from(passed) <= allowed, "{} bytes by {}", passed, now - begun);
                passed += bytes;
                let next = pace.pass(now, bytes, rate);
                prop_assert!(next >= now);
                now = next + late;
            }
            // Waking late costs nothing as long as it is less than the slack.
            let least = u128::from((now - begun).saturating_sub(SLACK)) * u128::from(rate) / 1_000_000;
            prop_assert!(!suffices || u128::from(passed) >= least, "{} bytes by {}", passed, now - begun);
        }
    }
}
