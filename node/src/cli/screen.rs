//! Rows at the end of a terminal that are drawn over and over.

use std::io::{self, Write as _};

use rustix::termios::tcgetwinsize;

/// Columns and rows of a terminal that does not tell.
const UNKNOWN: (usize, usize) = (80, 24);

/// The rows that are on standard error now. The cursor stays at the start of the line below them: what the terminal
/// itself writes there, such as ^C, is gone with the next drawing and moves nothing.
#[derive(Default)]
pub(super) struct Screen {
    // How many columns each row takes.
    drawn: Vec<usize>,
}

impl Screen {
    /// The size of the terminal now, in columns and rows.
    pub(super) fn size() -> (usize, usize) {
        match tcgetwinsize(io::stderr()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => UNKNOWN,
        }
    }

    /// Replaces the rows; the lines stay above them for good. There must be fewer rows than the terminal has, and none
    /// as wide as it.
    pub(super) fn draw(&mut self, lines: &[String], rows: &[String]) {
        // A terminal that is gone is noticed when the result is written.
        let _ = io::stderr().write_all(self.drawing(lines, rows, Self::size().0).as_bytes());
    }

    fn drawing(&mut self, lines: &[String], rows: &[String], width: usize) -> String {
        // Rows that have become too wide have been broken by the terminal.
        let up: usize = self.drawn.iter().map(|columns| columns.div_ceil(width.max(1)).max(1)).sum();
        let mut out = if up > 0 { format!("\r\x1b[{up}A\x1b[J") } else { String::new() };
        for line in lines.iter().chain(rows) {
            out += line;
            out.push('\n');
        }
        self.drawn = rows.iter().map(|row| row.chars().count()).collect();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_is_gone_before_anything_else_is_drawn() {
        let mut screen = Screen::default();
        let rows = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>();
        assert_eq!(screen.drawing(&rows(&["is"]), &rows(&["one", "two"]), 80), "is\none\ntwo\n");
        assert_eq!(screen.drawing(&[], &rows(&["three"]), 80), "\r\x1b[2A\x1b[Jthree\n");
        // A terminal that became narrower shows five columns as three rows.
        assert_eq!(screen.drawing(&rows(&["done"]), &[], 2), "\r\x1b[3A\x1b[Jdone\n");
        assert_eq!(screen.drawing(&[], &[], 2), "");
    }
}
