//! `meshfed status`: the mesh on one screen.

use std::process::ExitCode;

use clap::Args;
use meshfed_federation::summary::summary;

use super::mesh::Mesh;
use super::output::{self, Format};
use super::{Access, exit};

#[derive(Debug, Clone, Args)]
#[command(after_help = "Exit status: 0 no problems, 1 problems, 2 the mesh cannot be looked at")]
pub struct StatusOptions {
    #[command(flatten)]
    access: Access,

    /// For machines, instead of text
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

pub async fn run(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::look(&options.access).await?;
    let summary = summary(&mesh.world, &mesh.plan, &mesh.seen);
    output::print(&summary, options.output)?;
    Ok(exit(!summary.problems.is_empty()))
}
