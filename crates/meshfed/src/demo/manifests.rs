//! The example files, and how an administrator applies them.

use anyhow::{Context as _, bail};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _, discovery};
use meshfed_controlplane::apply::explain;

/// One file under `examples/`.
#[derive(Debug, Clone, Copy)]
pub struct Manifest {
    /// Path below `examples/`.
    pub path: &'static str,
    text: &'static str,
    /// Only for a federation of three.
    pub third: bool,
}

macro_rules! manifest {
    ($path:literal) => {
        Manifest {
            path: $path,
            text: include_str!(concat!("../../../../examples/", $path)),
            third: false,
        }
    };
    ($path:literal, third) => {
        Manifest {
            third: true,
            ..manifest!($path)
        }
    };
}

/// What the administrator of each mesh applies, in order.
pub const RED: &[Manifest] = &[
    manifest!("red-mesh/00-namespaces.yaml"),
    manifest!("red-mesh/10-control-plane.yaml"),
    manifest!("red-mesh/11-member-roll.yaml"),
    manifest!("red-mesh/20-bookinfo.yaml"),
    manifest!("red-mesh/30-peer-green-mesh.yaml"),
    manifest!("red-mesh/31-export-to-green-mesh.yaml"),
    manifest!("red-mesh/40-peer-blue-mesh.yaml", third),
    manifest!("red-mesh/41-export-to-blue-mesh.yaml", third),
];
pub const GREEN: &[Manifest] = &[
    manifest!("green-mesh/00-namespaces.yaml"),
    manifest!("green-mesh/10-control-plane.yaml"),
    manifest!("green-mesh/11-member-roll.yaml"),
    manifest!("green-mesh/20-client.yaml"),
    manifest!("green-mesh/30-peer-red-mesh.yaml"),
    manifest!("green-mesh/31-import-from-red-mesh.yaml"),
    manifest!("green-mesh/40-peer-blue-mesh.yaml", third),
];
pub const BLUE: &[Manifest] = &[
    manifest!("blue-mesh/00-namespaces.yaml", third),
    manifest!("blue-mesh/10-control-plane.yaml", third),
    manifest!("blue-mesh/11-member-roll.yaml", third),
    manifest!("blue-mesh/20-client.yaml", third),
    manifest!("blue-mesh/30-peer-red-mesh.yaml", third),
    manifest!("blue-mesh/31-import-from-red-mesh.yaml", third),
    manifest!("blue-mesh/40-peer-green-mesh.yaml", third),
];

/// The second byte of the examples' addresses: 127.64.0.0/16.
pub const NETWORK: u8 = 64;

impl Manifest {
    /// The text, with the addresses moved to 127.`network`.0.0/16.
    pub fn text(&self, network: u8) -> String {
        self.text
            .replace(&format!("127.{NETWORK}."), &format!("127.{network}."))
    }
}

/// Creates the objects of a YAML stream, or merges them into those that are there.
///
/// # Errors
///
/// The text is no YAML, an object has no kind or name, or the API refuses one.
pub async fn apply(client: &Client, text: &str) -> anyhow::Result<()> {
    let objects: Vec<DynamicObject> =
        serde_saphyr::from_multiple(text).context("the manifest is not valid YAML")?;
    for object in objects {
        let name = object.name_any();
        let Some(types) = &object.types else {
            bail!("the object {name:?} has no apiVersion and kind");
        };
        let kind = types.kind.clone();
        let gvk = GroupVersionKind::try_from(types)
            .with_context(|| format!("the apiVersion of {kind} {name} makes no sense"))?;
        let (resource, _) = discovery::pinned_kind(client, &gvk)
            .await
            .with_context(|| format!("the API does not know the kind {kind}"))?;
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let written = match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&object))
                    .await
            }
            other => other,
        };
        if let Err(error) = written {
            bail!("the API refuses {kind} {name}: {}", explain(&error));
        }
    }
    Ok(())
}
