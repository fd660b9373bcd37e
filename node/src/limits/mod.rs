//! Limits of the links that lead out of the site: to origins and to other sites.
//!
//! Rates, a budget of bytes a day, hours of the week and a pause, held by the site as a whole. The [`Book`] decides and is
//! pure; [`Limits`] is the book with a clock, for those who take and give.

mod book;
mod rate;
mod window;
mod words;

pub use book::{ACTIVE_TIME, Book, Limit, LimitSettings, Limited, MAX_SPENDERS, Now, Spent, Way};
pub use rate::{MIN_RATE, Pace, parse_rate, show_rate};
pub use window::{Hours, MAX_WINDOWS, Moment, Window, hours};
pub use words::{explain, moment, show_time};
