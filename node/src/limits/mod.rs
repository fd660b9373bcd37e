//! Limits of the links that lead out of the site: to origins and to other sites.
//!
//! Rates, a budget of bytes a day, hours of the week and a pause, held by the site as a whole. The [`Book`] decides and is
//! pure; [`Limits`] is the book with a clock, for those who take and give; [`Talk`] tells the neighbours, who use the same
//! links. A neighbour is believed what it says of itself: it is a member, and could as well use up the link.

mod book;
mod gate;
mod keep;
mod rate;
mod report;
mod talk;
mod window;
mod words;

pub use book::{
    ACTIVE_TIME, Book, HeldTo, LEAST_UNWRITTEN, Limit, LimitSettings, Limited, MAX_SPENDERS, Now, Spent,
    UNWRITTEN, Way,
};
pub use gate::{LimitError, LimitParts, Limits, MomentClock};
pub use rate::{MIN_RATE, Pace, parse_rate, show_rate};
pub use report::WanStatus;
pub use talk::{Talk, tell_all};
pub use window::{Hours, MAX_WINDOWS, Moment, Window, hours};
pub use words::{explain, moment, show_time};
