//! The server as a whole.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use crate::{
    api::{Api, Clock, MOST_WATCHES, Reporter, Target, View, WriteReport, random_uid},
    error::OpenError,
    http::{InProcess, Limits, ServeError, serve},
    janitor, json,
    registry::{Registry, definition_object},
    store::{
        Change, Committed, Expect, Observers, Store, Stored, Write, WriteError, format_uid, io,
    },
    token::{TokenSigner, TokenVerifier},
};

/// Namespaces that are always there.
const NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// What a server is made of.
#[derive(Clone)]
pub struct Options {
    /// Made if it does not exist, with mode 0700. Holds `api.redb`, `api.lock` and `sa-signer.pem`.
    pub data_dir: PathBuf,
    /// The kinds besides the builtin ones.
    pub crds: Vec<CustomResourceDefinition>,
    /// The issuer of ServiceAccount tokens, and their audience if none is asked for.
    pub issuer: String,
    pub clock: Clock,
    pub limits: Limits,
}

impl Options {
    /// With the usual issuer and limits, and the system's clock.
    pub fn new(data_dir: impl Into<PathBuf>, crds: Vec<CustomResourceDefinition>) -> Self {
        Self {
            data_dir: data_dir.into(),
            crds,
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            clock: Arc::new(SystemTime::now),
            limits: Limits::default(),
        }
    }
}

/// A Kubernetes-style API server. It lives until the last clone, service and watch of it is
/// dropped; its data directory is free again then.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) api: Arc<Api>,
    limits: Limits,
}

impl ApiServer {
    /// Opens the data directory and starts the threads that write and clean up. It blocks for as
    /// long as reading the directory takes.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let dir = &options.data_dir;
        make_dir(dir)?;
        let registry = Registry::new(&options.crds)?;
        let (tasks, receiver) = std::sync::mpsc::channel();
        let namespaces = registry.namespaces;
        let reports = Arc::new(OnceLock::new());
        let observers = Observers {
            before: Box::new({
                let reports = Arc::clone(&reports);
                move |committed| report(&reports, committed)
            }),
            after: Box::new(move |committed| janitor::observe(namespaces, &tasks, committed)),
        };
        let store = Store::open(dir, registry.store_kinds(), namespaces, observers)?;
        let signer = TokenSigner::open(&dir.join("sa-signer.pem"), &options.issuer)?;
        let api = Arc::new(Api {
            registry,
            store,
            clock: options.clock,
            signer,
            watches: Arc::new(Semaphore::new(MOST_WATCHES)),
            view: OnceLock::new(),
            reports,
            ending: watch::Sender::new(false),
        });
        let server = Self {
            api,
            limits: options.limits,
        };
        // Callers are often in an async runtime, where waiting for the writer is not allowed.
        let ensured = std::thread::scope(|scope| {
            let ensure = scope.spawn(|| server.ensure_objects(&options.crds));
            ensure.join().unwrap_or(Err(WriteError::Closed))
        });
        ensured.map_err(|error| OpenError::Database {
            path: dir.join("api.redb"),
            message: error.to_string(),
        })?;
        janitor::start(&server.api, receiver)?;
        Ok(server)
    }

    /// The API without a network, for `kube::Client::new`. Requests act as `system:masters`.
    pub fn service(&self) -> InProcess {
        InProcess {
            api: Arc::clone(&self.api),
        }
    }

    /// Serves HTTPS until `drain` is ready; watches end then at once, other requests finish.
    ///
    /// `tls` must offer `h2` and `http/1.1`, and verify client certificates against the mesh's root
    /// when they are sent, but not demand them: clients with tokens have none. See
    /// [`crate::tls_config`].
    pub async fn serve_https(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        drain: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        serve(
            Arc::clone(&self.api),
            listener,
            tls,
            self.limits.clone(),
            drain,
        )
        .await
    }

    /// Judges ServiceAccount tokens of this server.
    pub fn token_verifier(&self) -> TokenVerifier {
        TokenVerifier {
            api: Arc::clone(&self.api),
        }
    }

    /// Serves a document from now on. There is one; false if there is one already.
    pub fn serve_view(&self, view: View) -> bool {
        self.api.view.set(view).is_ok()
    }

    /// Tells of every write from outside of this process, when it is on disk and before anybody sees
    /// it. `to` must not block. False if somebody listens already.
    pub fn report_writes(&self, to: impl Fn(WriteReport) + Send + Sync + 'static) -> bool {
        self.api.reports.set(Box::new(to)).is_ok()
    }

    /// Ends all watches, for good. Readers in this process would otherwise keep the server alive.
    pub fn end_watches(&self) {
        self.api.ending.send_replace(true);
    }

    /// Whether writes reach the disk; `/readyz` says the same.
    pub fn is_healthy(&self) -> bool {
        self.api.store.is_healthy()
    }

    /// The last resource version.
    pub fn revision(&self) -> u64 {
        self.api.store.read().revision
    }

    fn ensure_objects(&self, crds: &[CustomResourceDefinition]) -> Result<(), WriteError> {
        let now = self.api.time_text();
        for name in NAMESPACES {
            let object = json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"},
            });
            self.ensure("", "namespaces", object, |_, _| false)?;
        }
        self.drop_definitions_but(crds)?;
        for crd in crds {
            if let Some(object) = definition_object(crd, &now) {
                let differs = |old: &Value, new: &Value| old.get("spec") != new.get("spec");
                self.ensure(
                    "apiextensions.k8s.io",
                    "customresourcedefinitions",
                    object,
                    differs,
                )?;
            }
        }
        Ok(())
    }

    /// Objects of a kind that is not defined any more stay on the disk; its definition does not.
    fn drop_definitions_but(&self, crds: &[CustomResourceDefinition]) -> Result<(), WriteError> {
        let kind = self.api.registry.definitions;
        let known = |name: &str| {
            crds.iter()
                .any(|crd| crd.metadata.name.as_deref() == Some(name))
        };
        let old: Vec<Arc<Stored>> = {
            let cache = self.api.store.read();
            let objects = cache.kind(kind).objects.values();
            objects
                .filter(|object| !known(object.name()))
                .cloned()
                .collect()
        };
        for object in old {
            self.api.store.write_blocking(Write {
                kind,
                key: object.key.clone(),
                expect: Expect::Revision(object.revision),
                change: Change::Delete,
                into_namespace: false,
                by: None,
            })?;
        }
        Ok(())
    }

    /// Writes an object if it is not there, or differs.
    fn ensure(
        &self,
        group: &str,
        plural: &str,
        mut object: Value,
        differs: impl Fn(&Value, &Value) -> bool,
    ) -> Result<(), WriteError> {
        let api = &self.api;
        let Some(ty) = api.registry.find(group, plural) else {
            return Ok(());
        };
        let target = Target {
            ty: Arc::clone(ty),
            version: 0,
            namespace: String::new(),
            name: json::text(&object, &["metadata", "name"]).to_owned(),
        };
        let key = target.key();
        let current = api.store.read().get(ty.store, &key).cloned();
        let old = current.as_deref().map(Stored::to_value);
        if old.as_ref().is_some_and(|old| !differs(old, &object)) {
            return Ok(());
        }
        if let Some(metadata) = json::metadata_mut(&mut object) {
            let old = old.as_ref().map(json::metadata);
            let kept = |field: &str| old.and_then(|old| old.get(field).cloned());
            let uid = kept("uid").unwrap_or_else(|| format_uid(random_uid()).into());
            let made = kept("creationTimestamp").unwrap_or_else(|| api.time_text().into());
            metadata.insert("uid".to_owned(), uid);
            metadata.insert("creationTimestamp".to_owned(), made);
        }
        let Ok(stored) = target.to_stored(object) else {
            return Ok(());
        };
        let write = Write {
            kind: ty.store,
            key,
            expect: current.map_or(Expect::Absent, |current| Expect::Revision(current.revision)),
            change: Change::Put(Box::new(stored)),
            into_namespace: false,
            by: None,
        };
        api.store.write_blocking(write).map(drop)
    }
}

/// Tells of the writes that somebody else asked for.
fn report(reports: &OnceLock<Reporter>, committed: &[Committed]) {
    let Some(to) = reports.get() else { return };
    for write in committed {
        let Some(by) = &write.by else { continue };
        let object = &write.event.object;
        to(WriteReport {
            user: by.user.clone(),
            groups: by.groups.clone(),
            verb: by.verb,
            kind: by.kind.clone(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: format_uid(object.uid),
            revision: write.event.revision,
        });
    }
}

fn make_dir(dir: &std::path::Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io(dir))
}
