//! `meshfed explain`: why a service is shared with a peer, or not.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use clap::{Args, Subcommand};
use meshfed_federation::explain::{explain_export, explain_import};
use meshfed_federation::names::{PeerName, ServiceKey};
use meshfed_federation::world::World;

use super::mesh::Mesh;
use super::output::{self, Format};
use super::{Access, exit};

const STATUS: &str = "Exit status: 0 it works, 1 something is in the way, 2 error";

#[derive(Debug, Clone, Subcommand)]
pub enum ExplainCommand {
    /// Why a service of this mesh is exported to a peer, or what is in the way
    #[command(after_help = STATUS)]
    Export {
        /// The service in this mesh, such as bookinfo/ratings
        #[arg(value_name = "NAMESPACE/NAME")]
        service: Local,
        #[command(flatten)]
        options: ExplainOptions,
    },
    /// Why a service of a peer is imported, or what is in the way
    #[command(after_help = STATUS)]
    Import {
        /// The service as the peer exports it, such as ratings.bookinfo
        #[arg(value_name = "NAME.NAMESPACE")]
        service: Remote,
        #[command(flatten)]
        options: ExplainOptions,
    },
}

#[derive(Debug, Clone, Args)]
pub struct ExplainOptions {
    /// The ServiceMeshPeer's name
    #[arg(long, value_name = "NAME")]
    peer: PeerName,

    #[command(flatten)]
    access: Access,

    /// For machines, instead of text
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

/// `NAMESPACE/NAME`
#[derive(Debug, Clone)]
pub struct Local(ServiceKey);

/// `NAME.NAMESPACE`, or a whole exported name.
#[derive(Debug, Clone)]
pub struct Remote {
    key: ServiceKey,
    /// The exported name, if it was given.
    host: Option<String>,
}

impl FromStr for Local {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').ok_or("write it as NAMESPACE/NAME")?;
        let key = ServiceKey::parse(namespace, name).map_err(|error| error.to_string())?;
        Ok(Self(key))
    }
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('.').ok_or("write it as NAME.NAMESPACE")?;
        let (namespace, end) = rest.split_once('.').unwrap_or((rest, ""));
        let exported = end.starts_with("svc.") && end.ends_with("-exports.local");
        if !end.is_empty() && !exported {
            return Err("write it as NAME.NAMESPACE, as the peer exports it".to_owned());
        }
        let key = ServiceKey::parse(namespace, name).map_err(|error| error.to_string())?;
        let host = exported.then(|| text.to_owned());
        Ok(Self { key, host })
    }
}

impl Remote {
    /// Refuses a name by which the peer does not export the service.
    fn check(&self, peer: &PeerName, world: &World) -> anyhow::Result<()> {
        let state = world.observed.peers.get(peer.as_str());
        let known = state.and_then(|state| state.remote.services.get(&self.key));
        if let (Some(given), Some(known)) = (&self.host, known)
            && known.host.as_str() != given
        {
            bail!("{peer} exports it as {}, not as {given}", known.host);
        }
        Ok(())
    }
}

pub async fn run(command: &ExplainCommand) -> anyhow::Result<ExitCode> {
    let (ExplainCommand::Export { options, .. } | ExplainCommand::Import { options, .. }) = command;
    let Mesh {
        world, plan, seen, ..
    } = Mesh::look(&options.access).await?;
    let answer = match command {
        ExplainCommand::Export { service, .. } => {
            explain_export(&world, &plan, &service.0, &options.peer)
        }
        ExplainCommand::Import { service, .. } => {
            service.check(&options.peer, &world)?;
            explain_import(&world, &plan, &service.key, &options.peer)
        }
    };
    output::print(&answer, options.output)?;
    for unknown in &seen.unknown {
        output::remark(&format!("not known: {unknown}"));
    }
    Ok(exit(answer.obstacle.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_in_two_ways() {
        assert_eq!("a/b".parse::<Local>().unwrap().0.to_string(), "a/b");
        for text in ["b.a", "b.a.svc.green-mesh-exports.local"] {
            assert_eq!(
                text.parse::<Remote>().unwrap().key.to_string(),
                "a/b",
                "{text}"
            );
        }
        for bad in ["a", "a/", "/a", "A/b", "a/b/c"] {
            assert!(bad.parse::<Local>().is_err(), "{bad}");
        }
        for bad in ["a", "a.", ".a", "a.b.c", "a.b.svc.cluster.local"] {
            assert!(bad.parse::<Remote>().is_err(), "{bad}");
        }
    }
}
