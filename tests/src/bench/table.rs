//! The table that a run ends with.

use std::fmt;

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// The figure, or in a comparison its ratio, is at least this.
    AtLeast(f64),
    /// The figure, or in a comparison its ratio, is at most this.
    AtMost(f64),
    /// There is no goal: the figure is to be known.
    None,
}

impl Goal {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::None => None,
        }
    }
}

struct Row {
    what: String,
    value: String,
    beside: String,
    ratio: String,
    goal: String,
    met: Option<bool>,
}

/// Rows in the order in which they were measured.
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a figure that stands alone.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str, goal: Goal) {
        self.row(what, text(value, unit), String::new(), String::new(), goal, value);
    }

    /// Adds a figure beside what it is measured against.
    pub(crate) fn beside(&mut self, what: &str, value: f64, other: f64, unit: &str, goal: Goal) {
        let ratio = value / other;
        self.row(what, text(value, unit), text(other, unit), format!("{ratio:.2}"), goal, ratio);
    }

    /// Adds a figure of which less is better beside what it is measured against; the ratio says how many times less.
    pub(crate) fn times_less(&mut self, what: &str, value: f64, other: f64, unit: &str, goal: Goal) {
        let ratio = other / value;
        self.row(what, text(value, unit), text(other, unit), format!("{ratio:.2}"), goal, ratio);
    }

    fn row(&mut self, what: &str, value: String, beside: String, ratio: String, goal: Goal, judged: f64) {
        let met = goal.met(judged);
        let goal = match goal {
            Goal::AtLeast(least) => format!("≥ {least}"),
            Goal::AtMost(most) => format!("≤ {most}"),
            Goal::None => String::new(),
        };
        eprintln!("  {what}: {value} {beside} {ratio}");
        self.rows.push(Row { what: what.to_owned(), value, beside, ratio, goal, met });
    }

    /// Whether some goal was missed.
    pub(crate) fn missed(&self) -> bool {
        self.rows.iter().any(|row| row.met == Some(false))
    }
}

fn text(value: f64, unit: &str) -> String {
    if value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.2} {unit}") }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        writeln!(f, "{:wide$}  {:>14}  {:>14}  {:>6}  {:>6}", "", "wherry", "beside", "ratio", "goal")?;
        for row in &self.rows {
            let met = row.met.map_or("", |met| if met { "met" } else { "MISSED" });
            let Row { what, value, beside, ratio, goal, .. } = row;
            writeln!(f, "{what:wide$}  {value:>14}  {beside:>14}  {ratio:>6}  {goal:>6}  {met}")?;
        }
        Ok(())
    }
}

/// The middle one of some measurements; the lower one of two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
