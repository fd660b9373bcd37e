//! Range requests, as RFC 9110 has them.

use std::ops::Range;

/// What a `Range` header asks of a content of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// Everything: there is no range, or one that the server may ignore because it is malformed, has another
    /// unit, or asks for several parts.
    Whole,
    /// These bytes, which exist; never empty.
    Part(Range<u64>),
    /// Well-formed, but outside the content, or it ends before it begins.
    Unsatisfiable,
}

/// Reads a `Range` header for a content of `size` bytes.
pub fn parse_range(header: &str, size: u64) -> Span {
    let Some((unit, spec)) = header.split_once('=') else { return Span::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Span::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Span::Whole };
    if first.is_empty() {
        return match number(last) {
            None => Span::Whole,
            Some(0) => Span::Unsatisfiable,
            Some(_) if size == 0 => Span::Unsatisfiable,
            Some(suffix) => Span::Part(size - suffix.min(size)..size),
        };
    }
    let Some(first) = number(first) else { return Span::Whole };
    let end = if last.is_empty() {
        size
    } else {
        match number(last) {
            None => return Span::Whole,
            Some(last) if last < first => return Span::Unsatisfiable,
            Some(last) => size.min(last.saturating_add(1)),
        }
    };
    if first >= size { Span::Unsatisfiable } else { Span::Part(first..end) }
}

/// Digits and nothing else. What exceeds 64 bits lies behind the end of anything, and is taken as the most
/// that 64 bits hold.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_ranges_are_honoured() {
        for (header, expected) in [
            ("bytes=0-", Span::Part(0..10)),
            ("bytes=0-0", Span::Part(0..1)),
            ("bytes=3-7", Span::Part(3..8)),
            ("Bytes=3-99", Span::Part(3..10)),
            ("bytes=9-", Span::Part(9..10)),
            ("bytes=-3", Span::Part(7..10)),
            ("bytes=-99", Span::Part(0..10)),
            ("bytes= 3-7 ", Span::Part(3..8)),
            ("bytes=3-99999999999999999999999", Span::Part(3..10)),
            ("bytes=10-", Span::Unsatisfiable),
            ("bytes=10-20", Span::Unsatisfiable),
            ("bytes=99999999999999999999999-", Span::Unsatisfiable),
            ("bytes=-0", Span::Unsatisfiable),
            // RFC 9110 leaves the choice, and other registries refuse it.
            ("bytes=5-3", Span::Unsatisfiable),
        ] {
            assert_eq!(parse_range(header, 10), expected, "{header}");
        }
        for header in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_eq!(parse_range(header, 0), Span::Unsatisfiable, "{header} of nothing");
        }
    }

    #[test]
    fn what_is_malformed_or_multiple_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes=--1",
            "bytes=1-2-3",
            "0-1",
            "bytes=0x1-2",
            "bytes=1.5-2",
        ] {
            assert_eq!(parse_range(header, 10), Span::Whole, "{header}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_always_inside(header in "(bytes=)?[0-9,a-c+ -]{0,24}|\\PC{0,30}", size in any::<u64>()) {
            crate::hostile::ranges(&[&size.to_le_bytes(), header.as_bytes()].concat());
        }

        #[test]
        fn what_was_asked_is_what_is_given(first in 0u64..100, len in 1u64..100, size in 1u64..150) {
            let last = first + len - 1;
            let span = parse_range(&format!("bytes={first}-{last}"), size);
            let expected = if first >= size { Span::Unsatisfiable } else { Span::Part(first..size.min(last + 1)) };
            prop_assert_eq!(span, expected);
        }
    }
}
