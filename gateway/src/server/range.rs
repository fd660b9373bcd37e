//! Range requests, as RFC 9110 has them.

use std::ops::Range;

/// The most ranges in one request. Clients that fetch the parts of a layer that they lack ask for as many at once, and for half
/// as many where these are refused.
pub const MAX_RANGES: usize = 1024;

/// What a `Range` header asks of a content of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// Everything: there is no range, or one that the server may ignore because it is malformed, has another
    /// unit, or asks for more bytes in several parts than there are in all.
    Whole,
    /// These bytes, which exist; never empty.
    Part(Range<u64>),
    /// Several such parts, in the order in which they were asked for, which clients count on.
    Parts(Vec<Range<u64>>),
    /// Well-formed, but outside the content, or it ends before it begins.
    Unsatisfiable,
    /// More than [`MAX_RANGES`].
    TooMany,
}

/// Reads a `Range` header for a content of `size` bytes.
pub fn parse_range(header: &str, size: u64) -> Span {
    let Some((unit, specs)) = header.split_once('=') else { return Span::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Span::Whole;
    }
    let (mut parts, mut count, mut asked) = (Vec::new(), 0_usize, 0_u64);
    // An element of a list may be empty, and then is none.
    for spec in specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        count += 1;
        if count > MAX_RANGES {
            return Span::TooMany;
        }
        match parse_one(spec, size) {
            Span::Part(part) => {
                asked = asked.saturating_add(part.end - part.start);
                parts.push(part);
            }
            Span::Unsatisfiable => {}
            malformed => return malformed,
        }
    }
    match parts.as_slice() {
        [] if count == 0 => Span::Whole,
        [] => Span::Unsatisfiable,
        // What of several parts is outside the content is left out.
        [part] => Span::Part(part.clone()),
        // The same bytes again and again would have the server send many times what it has.
        _ if asked > size => Span::Whole,
        _ => Span::Parts(parts),
    }
}

fn parse_one(spec: &str, size: u64) -> Span {
    let Some((first, last)) = spec.split_once('-') else { return Span::Whole };
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
    fn several_ranges_come_in_the_order_in_which_they_were_asked_for() {
        for (header, expected) in [
            ("bytes=1-2,4-5", Span::Parts(vec![1..3, 4..6])),
            ("bytes=7-8, 0-1 ,-1", Span::Parts(vec![7..9, 0..2, 9..10])),
            ("bytes=,1-2,,4-", Span::Parts(vec![1..3, 4..10])),
            // They may touch and overlap, as long as they are not more than there is.
            ("bytes=0-4,5-9", Span::Parts(vec![0..5, 5..10])),
            ("bytes=0-3,2-6", Span::Parts(vec![0..4, 2..7])),
            ("bytes=0-8,2-6", Span::Whole),
            ("bytes=0-,0-,0-", Span::Whole),
            // Those that are outside are left out.
            ("bytes=1-2,10-,5-3", Span::Part(1..3)),
            ("bytes=10-,12-13", Span::Unsatisfiable),
            ("bytes=1-2,x", Span::Whole),
        ] {
            assert_eq!(parse_range(header, 10), expected, "{header}");
        }
        let many = |count: u64| {
            let ranges: Vec<String> = (0..count).map(|i| format!("{}-{}", 2 * i, 2 * i)).collect();
            parse_range(&format!("bytes={}", ranges.join(",")), 1 << 20)
        };
        let Span::Parts(parts) = many(MAX_RANGES as u64) else { panic!() };
        assert_eq!(parts.len(), MAX_RANGES);
        assert_eq!(many(MAX_RANGES as u64 + 1), Span::TooMany);
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=,",
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
