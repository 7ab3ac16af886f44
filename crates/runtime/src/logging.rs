//! Logging to standard error, with a level that can be changed while the process runs.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as format, reload};

/// The longest filter that is read, in bytes.
const MAX_FILTER_LEN: usize = 1024;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; with colours on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(s: &str) -> Result<Self, LogError> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// How and how much is logged.
#[derive(Debug, Clone)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as
    /// `info,meshfed_proxy=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_string(),
        }
    }
}

/// Why logging could not be set.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log format {0:?} is neither text nor json")]
    Format(String),
    #[error(
        "the log level {0:?} is neither error, warn, info, debug or trace nor a list such as info,meshfed_proxy=debug"
    )]
    Level(String),
    #[error("logging was set before in this process")]
    AlreadySet,
}

/// Reads and changes the level. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    level: Arc<Mutex<String>>,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("level", &self.level())
            .finish_non_exhaustive()
    }
}

/// Sets the logging of the whole process; once.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        LogFormat::Text => format::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => format::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| LogError::AlreadySet)?;
    Ok(LogHandle {
        filter: handle,
        level: Arc::new(Mutex::new(config.level.clone())),
    })
}

impl LogHandle {
    /// The level or directives in force.
    pub fn level(&self) -> String {
        self.level
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the level; nothing changes on an error.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let filter = parse(level)?;
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        self.filter
            .reload(filter)
            .map_err(|_| LogError::Level(level.to_string()))?;
        *current = level.to_string();
        Ok(())
    }
}

/// Whether a level or directives can be read.
///
/// # Errors
///
/// They cannot.
pub fn check_level(level: &str) -> Result<(), LogError> {
    parse(level).map(drop)
}

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    let refused = || LogError::Level(level.chars().take(120).collect());
    if level.trim().is_empty() || level.len() > MAX_FILTER_LEN {
        return Err(refused());
    }
    // A lone word that is no level would be read as the name of a module, and silence the rest.
    if !level.contains(['=', ','])
        && level
            .parse::<tracing_subscriber::filter::LevelFilter>()
            .is_err()
    {
        return Err(refused());
    }
    EnvFilter::try_new(level).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read_and_nonsense_is_refused() {
        for good in [
            "info",
            "DEBUG",
            "off",
            "info,meshfed_proxy=debug",
            "meshfed_pki=trace",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "loud",
            "meshfed_proxy=loud",
            "a=b=c",
            &"a".repeat(2000),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_level_is_changed_while_the_process_runs() {
        let handle = init(&LogConfig::default()).unwrap();
        assert!(tracing::enabled!(tracing::Level::INFO));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set_level("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(handle.set_level("loud").is_err());
        assert_eq!(handle.level(), "debug");
        assert!(matches!(
            init(&LogConfig::default()),
            Err(LogError::AlreadySet)
        ));
    }

    #[test]
    fn formats_are_named_as_on_the_command_line() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert_eq!(LogFormat::Text.to_string(), "text");
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
