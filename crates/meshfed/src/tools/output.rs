//! How answers look.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

/// For machines; without it the answer is text for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Yaml,
}

/// Prints an answer. Text has colours on a terminal, unless `NO_COLOR` is set.
pub fn print<T: Serialize + Display>(answer: &T, format: Option<Format>) -> anyhow::Result<()> {
    let text = match format {
        Some(format) => encode(answer, format)?,
        None if colours() => format!("{answer:#}"),
        None => answer.to_string(),
    };
    write(&text)
}

/// An answer for machines.
pub fn encode<T: Serialize>(answer: &T, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(answer)? + "\n",
        Format::Yaml => serde_saphyr::to_string(answer)?,
    })
}

fn colours() -> bool {
    let asked_not = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    std::io::stdout().is_terminal() && !asked_not && !dumb
}

/// Writes to standard output. A reader that has seen enough is no failure.
pub fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write"),
        _ => Ok(()),
    }
}

/// Remarks for people go to standard error, so that they do not get into what is piped on. Where
/// nobody can read them they are lost.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr(), "meshfed: {}", one_line(text));
}

/// Texts of others may hold anything.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_control() || c.is_whitespace()) {
        if !word.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line("a\n  b\u{1b}[31mc\r\n"), "a b [31mc");
    }
}
