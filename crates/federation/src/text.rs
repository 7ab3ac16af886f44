//! Text for people: colours where they were asked for, columns, spans of time.
//!
//! What is shown implements [`Display`](std::fmt::Display); its alternate form (`{:#}`) has colours.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ink(bool);

impl Ink {
    pub fn of(f: &fmt::Formatter<'_>) -> Self {
        Self(f.alternate())
    }

    pub fn bold(self, text: impl fmt::Display) -> String {
        self.with("1", text)
    }

    pub fn good(self, text: impl fmt::Display) -> String {
        self.with("32", text)
    }

    pub fn bad(self, text: impl fmt::Display) -> String {
        self.with("31", text)
    }

    pub fn doubtful(self, text: impl fmt::Display) -> String {
        self.with("33", text)
    }

    fn with(self, code: &str, text: impl fmt::Display) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// Rows in columns, two spaces apart, each line with an indent of two.
pub(crate) fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| visible(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            line.push(' ');
            line.push_str(cell);
            let pad = width.saturating_sub(visible(cell)) + 1;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Characters that are seen: all but colours.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut hidden = false;
    for c in text.chars() {
        match c {
            '\x1b' => hidden = true,
            'm' if hidden => hidden = false,
            _ if hidden => {}
            _ => count += 1,
        }
    }
    count
}

/// `12s`, `5m`, `3h`, `12d`: the largest unit of a span.
pub(crate) fn span(length: SignedDuration) -> String {
    let seconds = length.as_secs().abs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `5m ago`, or a dash.
pub(crate) fn ago(now: Timestamp, at: Option<Timestamp>) -> String {
    at.map_or_else(
        || "-".to_owned(),
        |at| format!("{} ago", span(now.duration_since(at))),
    )
}

/// What a peer or an object calls itself may hold control characters, which a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table;

    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let ink = Ink::of(f);
            let row = |a: String, b: &str| vec![a, b.to_owned()];
            table(
                f,
                &[
                    row("NAME".to_owned(), "STATE"),
                    row(ink.bad("a"), "b"),
                    row(String::new(), ""),
                ],
            )
        }
    }

    #[test]
    fn columns_stand_where_they_do_without_colours() {
        assert_eq!(Table.to_string(), "  NAME  STATE\n  a     b\n\n");
        assert_eq!(
            format!("{Table:#}"),
            "  NAME  STATE\n  \x1b[31ma\x1b[0m     b\n\n"
        );
    }

    #[test]
    fn spans_have_one_unit() {
        let of = |s| span(SignedDuration::from_secs(s));
        assert_eq!(
            [of(5), of(90), of(7200), of(172_800)],
            ["5s", "1m", "2h", "2d"]
        );
    }
}
