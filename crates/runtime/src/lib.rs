//! What every process of meshfed needs to live and to end well.
//!
//! ```text
//! ShutdownSignal --> Drain --watch--> every listener, stream and task --guards--> Drain
//! Supervisor: a task that ends early ends the process
//! Readiness  <--guards-- whatever must be there first
//! Metrics, LogHandle, Readiness --> Admin server on loopback
//! AccessLog: one file of lines for each component
//! ```

pub mod accept;
pub mod access_log;
pub mod admin;
pub mod drain;
pub mod files;
pub mod logging;
pub mod metrics;
pub mod readiness;
pub mod signal;
pub mod supervisor;

pub use accept::Acceptor;
pub use access_log::{AccessLog, AccessLogError, AccessLogMetrics};
pub use admin::{Admin, AdminError, AdminServer, ConfigDump};
pub use drain::{Drain, DrainEnd, DrainGuard, DrainWatch};
pub use files::{create_private_dir, write_private, write_public};
pub use logging::{LogConfig, LogError, LogFormat, LogHandle, check_level};
pub use metrics::Metrics;
pub use readiness::{Readiness, ReadyGuard};
pub use signal::{ShutdownSignal, shutdown_signal};
pub use supervisor::{Supervisor, TaskEnded, TaskError};
