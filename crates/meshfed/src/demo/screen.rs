//! What the demo shows: each step as it happens, colours and a running clock only on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// Writes to standard output. A reader that goes away is no reason to stop the meshes.
#[derive(Debug)]
pub struct Screen {
    began: Instant,
    terminal: bool,
}

/// A step under way; it is shown as failed unless it is [`done`](Step::done).
#[derive(Debug)]
pub struct Step<'a> {
    screen: &'a Screen,
    text: String,
    finished: bool,
}

impl Screen {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            terminal: std::io::stdout().is_terminal(),
        }
    }

    /// Announces a step. On a terminal the line is shown at once and completed later.
    pub fn step(&self, text: impl Into<String>) -> Step<'_> {
        let text = text.into();
        if self.terminal {
            self.write(format_args!("  ...  {text}"));
        }
        Step {
            screen: self,
            text,
            finished: false,
        }
    }

    pub fn heading(&self, text: &str) {
        if self.terminal {
            self.write(format_args!("\n\x1b[1m{text}\x1b[0m\n"));
        } else {
            self.write(format_args!("\n{text}\n"));
        }
    }

    pub fn line(&self, text: impl Display) {
        self.write(format_args!("  {text}\n"));
    }

    fn end_of_step(&self, mark: &str, color: u8, text: &str) {
        let at = self.began.elapsed().as_secs_f64();
        if self.terminal {
            self.write(format_args!(
                "\r\x1b[K\x1b[{color}m{mark:>5}\x1b[0m  {text}  \x1b[2m{at:.1} s\x1b[0m\n"
            ));
        } else {
            self.write(format_args!("{mark:>5}  {text}  {at:.1} s\n"));
        }
    }

    fn write(&self, text: std::fmt::Arguments<'_>) {
        let mut out = std::io::stdout().lock();
        let _reader_gone = out.write_fmt(text).and_then(|()| out.flush());
    }
}

impl Step<'_> {
    pub fn done(mut self) {
        self.finished = true;
        self.screen.end_of_step("ok", 32, &self.text);
    }

    /// Completes the step with something to add.
    pub fn done_with(mut self, more: impl Display) {
        self.finished = true;
        let text = format!("{}: {more}", self.text);
        self.screen.end_of_step("ok", 32, &text);
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.screen.end_of_step("FAIL", 31, &self.text);
        }
    }
}
