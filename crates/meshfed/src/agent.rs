//! `meshfed agent`.
use crate::cli::{AgentOptions, Logging};
use std::process::ExitCode;
pub fn run(_o: AgentOptions, _l: &Logging) -> anyhow::Result<ExitCode> {
    anyhow::bail!("x")
}
