//! The kinds that every Kubernetes has, as far as the controllers need them.

use std::sync::Arc;

use super::{
    Definitions, NameForm, OpenApi, Registry, ResourceType, Strategy, Version, cells, columns,
    rules, service,
};
use crate::{
    schema::{Schema, SchemaError, builtin::Builtins},
    store::{KindId, StoreKind},
};

struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    all: bool,
    namespaced: bool,
    status: bool,
    generation: bool,
    name_form: NameForm,
    /// The end of the name of its definition.
    definition: &'static str,
    selectable: &'static [&'static str],
    /// `name|type|description` and `*` in front for the wide ones; NAME and AGE are added.
    columns: &'static [(&'static str, cells::Cell)],
    strategy: Strategy,
}

const NONE: Strategy = Strategy {
    prepare: |_, _| {},
    validate: |_, _, _| {},
};

const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    short: &[],
    all: false,
    namespaced: true,
    status: false,
    generation: false,
    name_form: NameForm::Subdomain,
    definition: "",
    selectable: &[],
    columns: &[],
    strategy: NONE,
};

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source.component",
    "type",
];

/// Names of an Event's fields in events.k8s.io, and in the core group.
const EVENT_NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

const ROWS: &[Row] = &[
    Row {
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        namespaced: false,
        status: true,
        name_form: NameForm::Label,
        definition: "core.v1.Namespace",
        selectable: &["status.phase"],
        columns: &[("Status|string|The status of the namespace", |o, _| {
            cells::text(o, &["status", "phase"])
        })],
        strategy: Strategy {
            prepare: rules::prepare_namespace,
            ..NONE
        },
        ..ROW
    },
    Row {
        kind: "Service",
        plural: "services",
        short: &["svc"],
        all: true,
        status: true,
        name_form: NameForm::ServiceLabel,
        definition: "core.v1.Service",
        selectable: &["spec.clusterIP", "spec.type"],
        columns: &[
            ("Type|string|How the service is exposed", |o, _| {
                cells::text(o, &["spec", "type"])
            }),
            ("Cluster-IP|string|The address inside the mesh", |o, _| {
                cells::cluster_ip(o)
            }),
            (
                "External-IP|string|The addresses for clients outside",
                |o, _| cells::external_ip(o),
            ),
            (
                "Port(s)|string|Ports, and node ports after the colon",
                |o, _| cells::service_ports(o),
            ),
            (
                "*Selector|string|Labels of the workloads behind it",
                |o, _| cells::labels(o, &["spec", "selector"]),
            ),
        ],
        strategy: Strategy {
            prepare: service::prepare,
            validate: service::validate,
        },
        ..ROW
    },
    Row {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        generation: true,
        definition: "discovery.v1.EndpointSlice",
        columns: &[
            ("AddressType|string|The type of its addresses", |o, _| {
                cells::text(o, &["addressType"])
            }),
            ("Ports|string|The ports of each endpoint", |o, _| {
                cells::slice_ports(o)
            }),
            ("Endpoints|string|The first addresses", |o, _| {
                cells::slice_endpoints(o)
            }),
        ],
        strategy: Strategy {
            validate: rules::validate_endpoint_slice,
            ..NONE
        },
        ..ROW
    },
    Row {
        kind: "ConfigMap",
        plural: "configmaps",
        short: &["cm"],
        definition: "core.v1.ConfigMap",
        columns: &[("Data|string|The number of its entries", |o, _| {
            cells::count(o, &["data", "binaryData"])
        })],
        strategy: Strategy {
            validate: rules::validate_config_map,
            ..NONE
        },
        ..ROW
    },
    Row {
        kind: "Secret",
        plural: "secrets",
        definition: "core.v1.Secret",
        selectable: &["type"],
        columns: &[
            ("Type|string|What the secret is for", |o, _| {
                cells::text(o, &["type"])
            }),
            ("Data|string|The number of its entries", |o, _| {
                cells::count(o, &["data"])
            }),
        ],
        strategy: Strategy {
            prepare: rules::prepare_secret,
            validate: rules::validate_secret,
        },
        ..ROW
    },
    Row {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        short: &["sa"],
        definition: "core.v1.ServiceAccount",
        columns: &[("Secrets|string|The number of its secrets", |o, _| {
            cells::count(o, &["secrets"])
        })],
        ..ROW
    },
    Row {
        kind: "Event",
        plural: "events",
        short: &["ev"],
        definition: "core.v1.Event",
        selectable: EVENT_FIELDS,
        columns: cells::EVENT,
        strategy: Strategy {
            prepare: rules::prepare_event,
            validate: rules::validate_event,
        },
        ..ROW
    },
    Row {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        definition: "coordination.v1.Lease",
        columns: &[("Holder|string|Who holds it", |o, _| {
            cells::text(o, &["spec", "holderIdentity"])
        })],
        strategy: Strategy {
            validate: rules::validate_lease,
            ..NONE
        },
        ..ROW
    },
    Row {
        kind: "Pod",
        plural: "pods",
        short: &["po"],
        all: true,
        status: true,
        definition: "core.v1.Pod",
        selectable: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        columns: cells::POD,
        strategy: Strategy {
            validate: rules::validate_pod,
            ..NONE
        },
        ..ROW
    },
    Row {
        kind: "Node",
        plural: "nodes",
        short: &["no"],
        namespaced: false,
        status: true,
        definition: "core.v1.Node",
        selectable: &["spec.unschedulable"],
        columns: cells::NODE,
        ..ROW
    },
    Row {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        short: &["crd", "crds"],
        namespaced: false,
        status: true,
        definition: "apiextensions.v1.CustomResourceDefinition",
        columns: &[("Created At|date|When it was made", |o, _| {
            cells::text(o, &["metadata", "creationTimestamp"])
        })],
        ..ROW
    },
];

/// Adds all builtin kinds; returns the schema of ObjectMeta.
pub fn add(registry: &mut Registry, definitions: &Definitions) -> Result<Arc<Schema>, SchemaError> {
    let mut schemas = Builtins::new(definitions);
    for row in ROWS {
        let schema = schemas.schema(row.definition)?;
        registry.add(resource(row, schema));
    }
    let schema = schemas.schema("events.v1.Event")?;
    let mut events = resource(
        &Row {
            group: "events.k8s.io",
            kind: "Event",
            plural: "events",
            short: &["ev"],
            definition: "events.v1.Event",
            selectable: EVENT_FIELDS,
            columns: cells::EVENT,
            strategy: Strategy {
                prepare: rules::prepare_event,
                validate: rules::validate_event,
            },
            ..ROW
        },
        schema,
    );
    if let Some(core) = registry.find("", "events") {
        events.store = core.store;
        events.stored_as = core.stored_as.clone();
    }
    for version in &mut events.versions {
        version.renamed = EVENT_NAMES;
    }
    registry.add_sharing(events);
    schemas.object_meta()
}

fn resource(row: &Row, schema: Arc<Schema>) -> ResourceType {
    let mut version = Version::new(
        row.group,
        row.version,
        row.kind,
        schema,
        OpenApi::Builtin(row.definition),
    );
    version.status = row.status;
    // Events and definitions say when in columns of their own.
    let named = !row
        .columns
        .iter()
        .any(|(header, _)| header.starts_with("Last Seen"));
    let aged = named && row.plural != "customresourcedefinitions";
    version.columns = columns::builtin(row.columns, named, aged);
    let text = |text: &&str| (*text).to_owned();
    ResourceType {
        group: row.group.to_owned(),
        plural: row.plural.to_owned(),
        singular: row.kind.to_lowercase(),
        kind: row.kind.to_owned(),
        list_kind: format!("{}List", row.kind),
        short_names: row.short.iter().map(text).collect(),
        categories: if row.all {
            vec!["all".to_owned()]
        } else {
            Vec::new()
        },
        namespaced: row.namespaced,
        store: KindId(0),
        stored_as: StoreKind::default(),
        versions: vec![version],
        selectable: row.selectable.iter().map(text).collect(),
        name_form: row.name_form,
        strategy: row.strategy,
        custom: false,
        generation: row.generation,
        read_only: row.plural == "customresourcedefinitions",
        status_on_create: !row.status || row.plural == "nodes",
        warning: None,
    }
}
