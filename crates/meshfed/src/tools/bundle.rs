//! `meshfed peer bundle`: what the administrator of another mesh applies to peer with this one.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use meshfed_federation::bundle::{Bundle, BundleRequest, bundle};
use meshfed_federation::names::{Label, PeerName};
use meshfed_federation::plan::is_remote_address;
use serde_json::json;

use super::Access;
use super::mesh::Mesh;
use super::output::{self, Format};

#[derive(Debug, Clone, Subcommand)]
pub enum PeerCommand {
    /// Print what another mesh applies to make this mesh its peer; nothing in it is secret
    Bundle(Box<BundleOptions>),
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Two meshes become peers with four commands:
  meshfed peer bundle --kubeconfig red --for green-mesh | kubectl --kubeconfig green apply -f -
  meshfed peer bundle --kubeconfig green --for red-mesh | kubectl --kubeconfig red apply -f -")]
pub struct BundleOptions {
    #[command(flatten)]
    access: Access,

    /// The other mesh, by the name that its ServiceMeshPeer has or will have here
    #[arg(long = "for", value_name = "NAME")]
    peer: PeerName,

    /// What the other mesh is to call this one [default: the ServiceMeshControlPlane's name]
    #[arg(long = "as", value_name = "NAME")]
    own_name: Option<PeerName>,

    /// Where the other mesh reaches our ingress gateway [default: its Service's addresses]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', value_parser = address)]
    address: Vec<String>,

    /// Our ingress gateway for it [default: the ServiceMeshPeer's, else ingress-<for>]
    #[arg(long, value_name = "NAME")]
    ingress: Option<String>,

    /// Our egress gateway for it [default: the ServiceMeshPeer's, else egress-<for>]
    #[arg(long, value_name = "NAME")]
    egress: Option<String>,

    /// Namespace of the other mesh's control plane [default: <for>-system]
    #[arg(long, value_name = "NAMESPACE", help_heading = "The other mesh")]
    their_namespace: Option<Label>,

    /// The other mesh's ingress gateway for us [default: ingress-<as>]
    #[arg(long, value_name = "NAME", help_heading = "The other mesh")]
    their_ingress: Option<Label>,

    /// The other mesh's egress gateway for us [default: egress-<as>]
    #[arg(long, value_name = "NAME", help_heading = "The other mesh")]
    their_egress: Option<Label>,

    /// How it is printed [default: yaml, with comments]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

/// An address as a ServiceMeshPeer may have it.
fn address(text: &str) -> Result<String, &'static str> {
    if is_remote_address(text) {
        Ok(text.to_owned())
    } else {
        Err("write an IP address or a DNS name, without a port")
    }
}

pub async fn run(command: &PeerCommand) -> anyhow::Result<ExitCode> {
    let PeerCommand::Bundle(options) = command;
    let mesh = Mesh::look(&options.access).await?;
    let text = |label: &Option<Label>| label.as_ref().map(ToString::to_string);
    let request = BundleRequest {
        own_name: options.own_name.clone(),
        ingress: options.ingress.clone(),
        egress: options.egress.clone(),
        addresses: options.address.clone(),
        their_namespace: options.their_namespace.clone(),
        their_ingress: text(&options.their_ingress),
        their_egress: text(&options.their_egress),
        ..BundleRequest::new(options.peer.clone())
    };
    let bundle = bundle(&mesh.world, &mesh.plan, &request)?;
    output::write(&shown(&bundle, options.output)?)?;
    Ok(ExitCode::SUCCESS)
}

fn shown(bundle: &Bundle, format: Option<Format>) -> anyhow::Result<String> {
    if format == Some(Format::Json) {
        let list = json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": [bundle.root, bundle.peer],
        });
        return output::encode(&list, Format::Json);
    }
    let mut text = String::new();
    for note in &bundle.notes {
        writeln!(text, "# {}", output::one_line(note))?;
    }
    text.push_str(&output::encode(&bundle.root, Format::Yaml)?);
    text.push_str("---\n");
    text.push_str(&output::encode(&bundle.peer, Format::Yaml)?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_a_peer_may_have() {
        for good in [
            "10.0.0.1",
            "fd00::1",
            "red.example.com",
            "Red.example.com",
            "gateway",
        ] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "http://x y",
            "127.0.0.1:80",
            "[::1]",
            "a..b",
            "-a",
            "a_b",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
