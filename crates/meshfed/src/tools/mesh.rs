//! The mesh as a tool sees it: resources from the API, and what its control plane sees beside them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Request;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use meshfed_api::ServiceMeshControlPlane;
use meshfed_federation::observations::{self, Observations, Seen};
use meshfed_federation::plan::{Plan, plan};
use meshfed_federation::with_mesh_wide;
use meshfed_federation::world::{ObjectKey, Resources, Shared, World};
use serde::de::DeserializeOwned;

use super::Access;

/// Time to reach the API, and for each of its answers.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(60);

/// A mesh and what follows from what is known of it.
#[derive(Debug)]
pub struct Mesh {
    pub world: World,
    pub plan: Plan,
    pub seen: Seen,
    /// The namespace in which the user works, by the context.
    pub home: String,
}

impl Mesh {
    /// Looks at the mesh.
    ///
    /// # Errors
    ///
    /// There is no access to the API, or it is not clear which mesh is meant.
    pub async fn look(access: &Access) -> anyhow::Result<Self> {
        let client = connect(access).await?;
        let home = client.default_namespace().to_owned();
        let document = document(&client).await?;
        let namespace = namespace(&client, access, document.as_ref()).await?;
        let resources = resources(&client, &namespace).await?;
        let now = Timestamp::now();
        let seen = match document {
            Some(seen) => seen,
            None => Seen::from_statuses(&resources, &namespace, now),
        };
        let world = seen.world(resources, now);
        let plan = plan(&world);
        Ok(Self {
            world,
            plan,
            seen,
            home,
        })
    }
}

async fn connect(access: &Access) -> anyhow::Result<Client> {
    let kubeconfig = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path)
            .map_err(unusable)
            .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?,
        None => Kubeconfig::read()
            .map_err(unusable)
            .context("there is no usable kubeconfig; name one with --kubeconfig or KUBECONFIG")?,
    };
    let options = KubeConfigOptions {
        context: access.context.clone(),
        ..KubeConfigOptions::default()
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(unusable)
        .context("the kubeconfig leads to no API server")?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(ANSWER);
    if is_loopback(&config) {
        config.proxy_url = None;
    }
    Client::try_from(config)
        .map_err(|error| without_credentials(error).context("the kubeconfig cannot be used"))
}

/// What is wrong with a kubeconfig, without a word of what is in it: it holds tokens and keys.
fn unusable(error: KubeconfigError) -> anyhow::Error {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => anyhow::anyhow!(
                "it is no kubeconfig, as line {}, column {} shows",
                at.line(),
                at.column()
            ),
            None => anyhow::anyhow!("it is no kubeconfig"),
        },
        // Its causes say the same again.
        other => anyhow::anyhow!("{other}"),
    }
}

fn is_loopback(config: &Config) -> bool {
    let host = config.cluster_url.host().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// What the control plane sees outside of the API; `None` where that is not served or not to be seen.
async fn document(client: &Client) -> anyhow::Result<Option<Seen>> {
    let [group, version, plural] = observations::PATH;
    let request = Request::get(format!("/apis/{group}/{version}/{plural}"))
        .body(Vec::new())
        .context("the request cannot be made")?;
    match client.request_text(request).await {
        Ok(text) => Observations::decode(text.as_bytes())
            .map(Some)
            .context("the control plane's observations cannot be read; is it another version?"),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(None),
        Err(error) => Err(unreachable(error)),
    }
}

fn unreachable(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("the API refuses: {}", status.message),
        other => without_credentials(other).context("the API cannot be reached"),
    }
}

/// An error with its causes, without what a credential plugin was called with or printed: that may be a token.
fn without_credentials(error: kube::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    let plugin = error.chain().find_map(|cause| cause.downcast_ref());
    match plugin {
        Some(AuthError::AuthExecParse(_)) => {
            anyhow::anyhow!("the answer of the credential plugin cannot be read")
        }
        Some(AuthError::AuthExecRun { out, .. }) => anyhow::anyhow!(
            "the credential plugin of the kubeconfig failed, {}; call it by hand to see why",
            out.status
        ),
        _ => said_once(&error),
    }
}

/// An error with its causes in one text; many of them end with the text of their own cause.
fn said_once(error: &anyhow::Error) -> anyhow::Error {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if let Some(last) = said.last_mut()
            && let Some(before) = last.strip_suffix(&cause)
        {
            *last = before.trim_end_matches([':', ' ']).to_owned();
        }
        said.push(cause);
    }
    said.retain(|text| !text.is_empty());
    anyhow::anyhow!("{}", said.join(": "))
}

/// The namespace of the mesh that is meant.
async fn namespace(
    client: &Client,
    access: &Access,
    document: Option<&Seen>,
) -> anyhow::Result<String> {
    let served = document.map(|seen| seen.mesh.system_namespace.as_str());
    match (&access.namespace, served) {
        (Some(asked), Some(served)) if asked != served => {
            bail!("the mesh of this API server has its control plane in {served}, not in {asked}")
        }
        (Some(asked), _) => return Ok(asked.clone()),
        (None, Some(served)) => return Ok(served.to_owned()),
        (None, None) => {}
    }
    let all = list::<ServiceMeshControlPlane>(Api::all(client.clone())).await?;
    let namespaces: BTreeSet<String> = all.into_iter().map(|(key, _)| key.namespace).collect();
    let mut namespaces = namespaces.into_iter();
    match (namespaces.next(), namespaces.next()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(two)) => {
            bail!("there are several meshes, in {one}, {two} and so on; name one with --namespace")
        }
        (None, _) => bail!(
            "there is no ServiceMeshControlPlane; name the namespace where it will be with --namespace"
        ),
    }
}

/// Everything that a plan depends on.
async fn resources(client: &Client, system: &str) -> anyhow::Result<Resources> {
    let mut all = Resources::default();
    macro_rules! every {
        ($($field:ident),+) => {
            let ($($field),+) = tokio::try_join!($(Box::pin(every(client, |r| &r.$field))),+)?;
            $(all.$field = $field.into_iter().collect();)+
        };
    }
    with_mesh_wide!(every);
    let config_maps = list(Api::namespaced(client.clone(), system)).await?;
    all.config_maps = config_maps.into_iter().collect();
    Ok(all)
}

/// All objects of the kind that stands in a field.
async fn every<K>(
    client: &Client,
    _field: fn(&Resources) -> &Shared<ObjectKey, K>,
) -> anyhow::Result<Vec<(ObjectKey, Arc<K>)>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    list(Api::all(client.clone())).await
}

async fn list<K>(api: Api<K>) -> anyhow::Result<Vec<(ObjectKey, Arc<K>)>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let list = api.list(&ListParams::default()).await.map_err(|error| {
        let plural = K::plural(&K::DynamicType::default()).into_owned();
        unreachable(error).context(format!("cannot list {plural}"))
    })?;
    let keyed = list.items.into_iter().map(|object| {
        let namespace = object.namespace().unwrap_or_default();
        (
            ObjectKey::new(namespace, object.name_any()),
            Arc::new(object),
        )
    });
    Ok(keyed.collect())
}
