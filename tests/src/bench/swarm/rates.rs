//! How fast a link is, and when.

/// Bits a second that a link is set to, over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// Always the same.
    Steady(f64),
    /// One of these after another, each for so many seconds, in an order that depends on the seed alone.
    Changing { choices: [f64; 4], seconds: f64, seed: u64 },
}

impl Rate {
    /// The rate at so many seconds from the start.
    pub(crate) fn at(&self, time: f64) -> f64 {
        match self {
            Self::Steady(rate) => *rate,
            Self::Changing { choices, seconds, seed } => {
                let step = (time.max(0.0) / seconds) as u64;
                choices[(mix(seed.wrapping_add(step)) % 4) as usize]
            }
        }
    }

    /// The first moment after this one at which the rate may be another.
    fn next_change(&self, time: f64) -> Option<f64> {
        match self {
            Self::Steady(_) => None,
            Self::Changing { seconds, .. } => Some(((time / seconds).floor() + 1.0) * seconds),
        }
    }

    /// The bits that a link of this rate carries from the start until then.
    pub(crate) fn carried(&self, until: f64) -> f64 {
        let (mut time, mut bits) = (0.0, 0.0);
        while time < until {
            let end = self.next_change(time).map_or(until, |change| change.min(until));
            bits += self.at(time) * (end - time);
            time = end;
        }
        bits
    }

    /// The least number of seconds in which a link of this rate carries so many bits.
    pub(crate) fn time_for(&self, mut bits: f64) -> f64 {
        let mut time = 0.0;
        loop {
            let rate = self.at(time);
            let end = self.next_change(time).unwrap_or(f64::INFINITY);
            if bits <= rate * (end - time) {
                return time + bits / rate;
            }
            bits -= rate * (end - time);
            time = end;
        }
    }

    /// The rate divided by this.
    pub(crate) fn slower(self, by: f64) -> Self {
        match self {
            Self::Steady(rate) => Self::Steady(rate / by),
            Self::Changing { choices, seconds, seed } => {
                Self::Changing { choices: choices.map(|rate| rate / by), seconds, seed }
            }
        }
    }

    /// The same in slow motion: the rate divided by this, and the times between its changes multiplied, so that as many of them
    /// come while so many bits do.
    pub(crate) fn in_slow_motion(self, by: f64) -> Self {
        match self.slower(by) {
            Self::Changing { choices, seconds, seed } => {
                Self::Changing { choices, seconds: seconds * by, seed }
            }
            steady @ Self::Steady(_) => steady,
        }
    }
}

/// A number that looks like chance and depends on the seed alone (splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changing() -> Rate {
        Rate::Changing { choices: [1e6, 2e6, 4e6, 8e6], seconds: 10.0, seed: 3 }
    }

    #[test]
    fn a_steady_link_takes_bits_over_rate() {
        assert_eq!(Rate::Steady(4e6).time_for(128e6), 32.0);
        assert_eq!(Rate::Steady(4e6).carried(32.0), 128e6);
    }

    #[test]
    fn a_changing_link_keeps_its_rate_for_ten_seconds_and_is_the_same_in_every_run() {
        let rate = changing();
        let seen: Vec<f64> = (0..40).map(|step| rate.at(f64::from(step) * 10.0)).collect();
        for (step, &bits) in seen.iter().enumerate() {
            assert_eq!(rate.at(step as f64 * 10.0 + 9.99), bits);
        }
        assert_eq!(seen, (0..40).map(|step| changing().at(f64::from(step) * 10.0)).collect::<Vec<_>>());
        let other = Rate::Changing { choices: [1e6, 2e6, 4e6, 8e6], seconds: 10.0, seed: 1000 };
        assert_ne!(seen, (0..40).map(|step| other.at(f64::from(step) * 10.0)).collect::<Vec<_>>());
        for choice in [1e6, 2e6, 4e6, 8e6] {
            assert!(seen.contains(&choice), "{choice} comes in 40 steps");
        }
    }

    #[test]
    fn what_a_changing_link_carries_and_the_time_that_it_takes_are_two_sides_of_one_thing() {
        let rate = changing();
        assert_eq!(rate.carried(15.0), 10.0 * rate.at(0.0) + 5.0 * rate.at(10.0));
        for bits in [1.0, 1e6, 33e6, 128e6, 1e9] {
            let time = rate.time_for(bits);
            assert!((rate.carried(time) / bits - 1.0).abs() < 1e-9, "{bits} bits in {time} s");
        }
    }

    #[test]
    fn a_rate_that_is_divided_takes_so_many_times_longer_on_a_steady_link() {
        assert_eq!(Rate::Steady(4e6).slower(2.0).time_for(128e6), 64.0);
        assert_eq!(changing().slower(4.0).at(0.0), changing().at(0.0) / 4.0);
    }

    #[test]
    fn in_slow_motion_everything_takes_so_many_times_longer_on_any_link() {
        for rate in [Rate::Steady(4e6), changing()] {
            for bits in [1e6, 33e6, 128e6, 1e9] {
                let (before, after) = (rate.time_for(bits), rate.in_slow_motion(4.0).time_for(bits));
                assert!((after / before - 4.0).abs() < 1e-9, "{bits} bits in {before} s and {after} s");
            }
        }
    }
}
