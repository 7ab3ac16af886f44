//! Watches the API and turns what it sees into changes of the world.
//!
//! One task per kind. A watch that ends is taken up again by kube-rs with backoff; the last state
//! stays meanwhile.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use meshfed_federation::with_mesh_wide;
use meshfed_federation::world::{ObjectKey, Resources, Shared};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::warn;

/// A change of one kind of resources, ready to be made.
pub type Change = Box<dyn FnOnce(&mut Resources) + Send>;

/// What a watch has to tell.
pub enum Observation {
    /// An object came, changed or went.
    Changed(Change),
    /// The first list of a kind is complete, and is this.
    Listed(Change),
}

impl Debug for Observation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Changed(_) => "Changed",
            Self::Listed(_) => "Listed",
        })
    }
}

/// Where a kind stands in [`Resources`].
type Field<K> = fn(&mut Resources) -> &mut Shared<ObjectKey, K>;

/// Starts a task for every kind that plans depend on. Returns how many there are: as many
/// [`Observation::Listed`] come before the world is whole.
pub fn start(
    client: &Client,
    system_namespace: &str,
    out: &mpsc::Sender<Observation>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> usize {
    let before = tasks.len();
    let all = |client: &Client| client.clone();
    macro_rules! every {
        ($($field:ident),+) => {$(
            tasks.spawn(observe(Api::all(all(client)), |r| &mut r.$field, out.clone()));
        )+};
    }
    with_mesh_wide!(every);
    let config_maps = Api::namespaced(client.clone(), system_namespace);
    tasks.spawn(observe(config_maps, |r| &mut r.config_maps, out.clone()));
    tasks.len() - before
}

async fn observe<K>(api: Api<K>, field: Field<K>, out: mpsc::Sender<Observation>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default,
{
    let mut events = watcher(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut listing = Vec::new();
    // A later list, after a watch that broke, is a change like any other.
    let mut first = true;
    while let Some(event) = events.next().await {
        let observation = match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listing.push((key_of(&object), Arc::new(object)));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                let whole = std::mem::take(&mut listing).into_iter().collect();
                let change: Change = Box::new(move |r| *field(r) = whole);
                if std::mem::take(&mut first) {
                    Observation::Listed(change)
                } else {
                    Observation::Changed(change)
                }
            }
            Ok(watcher::Event::Apply(object)) => {
                let (key, object) = (key_of(&object), Arc::new(object));
                Observation::Changed(Box::new(move |r| {
                    field(r).insert(key, object);
                }))
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = key_of(&object);
                Observation::Changed(Box::new(move |r| {
                    field(r).remove(&key);
                }))
            }
            Err(error) => {
                let kind = K::kind(&K::DynamicType::default()).into_owned();
                warn!(kind, error = %error, "watching the API failed, trying again");
                continue;
            }
        };
        if out.send(observation).await.is_err() {
            return;
        }
    }
}

fn key_of<K: Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
