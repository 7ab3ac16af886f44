//! meshfed: a federation of service meshes that do not trust each other.
//!
//! This crate is the command line and the wiring of the roles, nothing else.

mod agent;
mod cli;
mod demo;
mod join;
mod proxies;
mod tools;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use tools::Tool;

/// A list of a peer comes as many small pieces and goes as others. The system's allocator keeps what
/// became free between them, per thread, and needs about twice the memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::answer(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // One line with all causes: what was attempted, on what, and why it failed.
            tools::remark(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let logging = cli.logging();
    match cli.command {
        Command::Up(options) => up::run(options.resolve()?, &logging),
        Command::Gateway(options) => proxies::gateway(options, &logging),
        Command::Sidecar(options) => proxies::sidecar(options, &logging),
        Command::Agent(options) => agent::run(options, &logging),
        Command::Demo(options) => demo::run(options, &logging),
        Command::Status(options) => Ok(tools::run(Tool::Status(options))),
        Command::Explain(command) => Ok(tools::run(Tool::Explain(command))),
        Command::Diff(options) => Ok(tools::run(Tool::Diff(options))),
        Command::Peer(command) => Ok(tools::run(Tool::Peer(command))),
        Command::Crds { output } => cli::print_crds(output),
        Command::Completions { shell } => cli::print_completions(shell),
    }
}
