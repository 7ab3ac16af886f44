//! The administrator's tools: what is, why it is so, and what would be.
//!
//! Each lists the resources with the user's own access, takes what the control plane sees beside
//! them, and plans as the control plane does.

mod bundle;
mod diff;
mod explain;
mod mesh;
mod output;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

pub use self::bundle::PeerCommand;
pub use self::diff::DiffOptions;
pub use self::explain::ExplainCommand;
pub use self::output::{Format, encode, one_line, remark, write};
pub use self::status::StatusOptions;

/// Exit status of a tool that found something: a change, an obstacle, a problem.
const FOUND: u8 = 1;
/// Exit status of a tool that could not do its work, and of a command line that makes no sense.
pub const FAILED: u8 = 2;

/// Where the mesh's API is, and how the answer looks.
#[derive(Debug, Clone, Args)]
pub struct Access {
    /// File with clusters, users and contexts [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", help_heading = "Access")]
    pub context: Option<String>,

    /// Namespace of the control plane [default: that of the only ServiceMeshControlPlane]
    #[arg(short, long, value_name = "NAMESPACE", help_heading = "Access")]
    pub namespace: Option<String>,
}

/// Which tool to run.
#[derive(Debug)]
pub enum Tool {
    Status(StatusOptions),
    Peer(PeerCommand),
    Explain(ExplainCommand),
    Diff(DiffOptions),
}

/// Runs a tool. What goes wrong is one line on standard error.
pub fn run(tool: Tool) -> ExitCode {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            runtime.block_on(async {
                match tool {
                    Tool::Status(options) => status::run(&options).await,
                    Tool::Peer(command) => bundle::run(&command).await,
                    Tool::Explain(command) => explain::run(&command).await,
                    Tool::Diff(options) => diff::run(&options).await,
                }
            })
        });
    done.unwrap_or_else(|error| {
        remark(&format!("{error:#}"));
        ExitCode::from(FAILED)
    })
}

/// 0, or [`FOUND`].
fn exit(found: bool) -> ExitCode {
    ExitCode::from(if found { FOUND } else { 0 })
}
