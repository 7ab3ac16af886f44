//! The signals that end a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from the moment it is made.
#[derive(Debug)]
pub struct ShutdownSignal {
    interrupt: Signal,
    terminate: Signal,
}

/// Listens for SIGINT and SIGTERM from now on; they no longer kill the process.
pub fn shutdown_signal() -> io::Result<ShutdownSignal> {
    Ok(ShutdownSignal {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
    })
}

impl ShutdownSignal {
    /// The name of the next signal. Call it again during a drain: a second one means now.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_are_told_by_name_and_do_not_kill() {
        let mut signals = shutdown_signal().unwrap();
        for (flag, name) in [("-TERM", "SIGTERM"), ("-INT", "SIGINT")] {
            let sent = std::process::Command::new("kill")
                .args([flag, &std::process::id().to_string()])
                .status()
                .unwrap();
            assert!(sent.success());
            assert_eq!(signals.recv().await, name);
        }
    }
}
