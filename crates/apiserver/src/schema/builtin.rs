//! The schemas of the kinds that every Kubernetes has, made from the API types of `k8s-openapi`;
//! what those leave out (merge keys, list types) is a table here.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{
            ConfigMap, Event as CoreEvent, Namespace, Node, Pod, Secret, Service, ServiceAccount,
        },
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
};
use serde_json::{Map, Value, json};

use super::{Compiler, Schema, SchemaError};

/// Definition, property, the merge key (empty for lists of scalars), the list's map keys.
const MERGE_KEYS: &[(&str, &str, &str, &[&str])] = &[
    ("meta.v1.ObjectMeta", "finalizers", "", &[]),
    ("meta.v1.ObjectMeta", "ownerReferences", "uid", &["uid"]),
    (
        "core.v1.ServiceSpec",
        "ports",
        "port",
        &["port", "protocol"],
    ),
    ("core.v1.ServiceStatus", "conditions", "type", &["type"]),
    ("core.v1.NamespaceStatus", "conditions", "type", &["type"]),
    ("core.v1.NodeSpec", "podCIDRs", "", &[]),
    ("core.v1.NodeStatus", "addresses", "type", &[]),
    ("core.v1.NodeStatus", "conditions", "type", &["type"]),
    ("core.v1.ServiceAccount", "secrets", "name", &["name"]),
    ("core.v1.PodSpec", "containers", "name", &["name"]),
    ("core.v1.PodSpec", "initContainers", "name", &["name"]),
    ("core.v1.PodSpec", "ephemeralContainers", "name", &["name"]),
    ("core.v1.PodSpec", "volumes", "name", &["name"]),
    ("core.v1.PodSpec", "imagePullSecrets", "name", &["name"]),
    ("core.v1.PodSpec", "hostAliases", "ip", &["ip"]),
    ("core.v1.PodSpec", "resourceClaims", "name", &["name"]),
    ("core.v1.PodSpec", "schedulingGates", "name", &["name"]),
    (
        "core.v1.PodSpec",
        "topologySpreadConstraints",
        "topologyKey",
        &["topologyKey", "whenUnsatisfiable"],
    ),
    ("core.v1.PodStatus", "conditions", "type", &["type"]),
    ("core.v1.PodStatus", "podIPs", "ip", &["ip"]),
    ("core.v1.Container", "env", "name", &["name"]),
    (
        "core.v1.Container",
        "ports",
        "containerPort",
        &["containerPort", "protocol"],
    ),
    (
        "core.v1.Container",
        "volumeMounts",
        "mountPath",
        &["mountPath"],
    ),
    (
        "core.v1.Container",
        "volumeDevices",
        "devicePath",
        &["devicePath"],
    ),
    ("core.v1.EphemeralContainer", "env", "name", &["name"]),
    (
        "core.v1.EphemeralContainer",
        "volumeMounts",
        "mountPath",
        &["mountPath"],
    ),
];

type Make = fn() -> Value;

/// Definition, property, default.
const DEFAULTS: &[(&str, &str, Make)] = &[
    ("core.v1.ServiceSpec", "type", || json!("ClusterIP")),
    ("core.v1.ServiceSpec", "sessionAffinity", || json!("None")),
    ("core.v1.ServicePort", "protocol", || json!("TCP")),
    ("core.v1.Secret", "type", || json!("Opaque")),
    ("core.v1.ContainerPort", "protocol", || json!("TCP")),
    ("core.v1.PodSpec", "restartPolicy", || json!("Always")),
    ("core.v1.PodSpec", "dnsPolicy", || json!("ClusterFirst")),
    ("core.v1.PodSpec", "terminationGracePeriodSeconds", || {
        json!(30)
    }),
    ("core.v1.PodSpec", "schedulerName", || {
        json!("default-scheduler")
    }),
    ("core.v1.PodSpec", "securityContext", || json!({})),
    ("core.v1.PodSpec", "enableServiceLinks", || json!(true)),
    ("core.v1.Container", "terminationMessagePath", || {
        json!("/dev/termination-log")
    }),
    ("core.v1.Container", "terminationMessagePolicy", || {
        json!("File")
    }),
    ("core.v1.Container", "resources", || json!({})),
    ("core.v1.Container", "imagePullPolicy", || {
        json!("IfNotPresent")
    }),
    ("core.v1.NamespaceSpec", "finalizers", || {
        json!(["kubernetes"])
    }),
    ("core.v1.NamespaceStatus", "phase", || json!("Active")),
    ("core.v1.Namespace", "spec", || json!({})),
    ("core.v1.Namespace", "status", || json!({})),
    ("core.v1.PodStatus", "phase", || json!("Pending")),
    ("core.v1.Pod", "status", || json!({})),
    ("core.v1.Service", "status", || json!({"loadBalancer": {}})),
    ("discovery.v1.EndpointPort", "protocol", || json!("TCP")),
    ("discovery.v1.EndpointPort", "name", || json!("")),
    ("discovery.v1.EndpointSlice", "endpoints", || json!([])),
];

/// Definition, property, allowed values.
const ENUMS: &[(&str, &str, &[&str])] = &[
    (
        "core.v1.ServiceSpec",
        "type",
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    ),
    (
        "core.v1.ServiceSpec",
        "sessionAffinity",
        &["ClientIP", "None"],
    ),
    (
        "core.v1.ServiceSpec",
        "externalTrafficPolicy",
        &["Cluster", "Local"],
    ),
    (
        "core.v1.ServiceSpec",
        "internalTrafficPolicy",
        &["Cluster", "Local"],
    ),
    ("core.v1.ServicePort", "protocol", &["SCTP", "TCP", "UDP"]),
    ("core.v1.ContainerPort", "protocol", &["SCTP", "TCP", "UDP"]),
    (
        "discovery.v1.EndpointPort",
        "protocol",
        &["SCTP", "TCP", "UDP"],
    ),
    (
        "discovery.v1.EndpointSlice",
        "addressType",
        &["FQDN", "IPv4", "IPv6"],
    ),
    (
        "core.v1.PodSpec",
        "restartPolicy",
        &["Always", "Never", "OnFailure"],
    ),
];

/// The definitions of all builtin kinds by name (`io.k8s.api.core.v1.Service`), as OpenAPI has
/// them. They are large: made when asked for, and not kept.
pub fn definitions() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut generator = SchemaGenerator::new(settings);
    add::<Namespace>(&mut generator);
    add::<Service>(&mut generator);
    add::<EndpointSlice>(&mut generator);
    add::<ConfigMap>(&mut generator);
    add::<Secret>(&mut generator);
    add::<ServiceAccount>(&mut generator);
    add::<CoreEvent>(&mut generator);
    add::<Event>(&mut generator);
    add::<Lease>(&mut generator);
    add::<Pod>(&mut generator);
    add::<Node>(&mut generator);
    add::<CustomResourceDefinition>(&mut generator);
    let mut definitions = generator.take_definitions(false);
    complete(&mut definitions);
    definitions
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The schemas of the builtin kinds, sharing what they have in common.
pub struct Builtins<'a>(Compiler<'a>);

impl<'a> Builtins<'a> {
    pub fn new(definitions: &'a Map<String, Value>) -> Self {
        Self(Compiler::builtin(definitions))
    }

    /// A definition by the end of its name, like `core.v1.Service`.
    pub fn schema(&mut self, name: &str) -> Result<Arc<Schema>, SchemaError> {
        self.0.definition(&full_name(name))
    }

    pub fn object_meta(&mut self) -> Result<Arc<Schema>, SchemaError> {
        self.schema("meta.v1.ObjectMeta")
    }
}

/// The whole name of a definition.
pub fn full_name(name: &str) -> String {
    if name.starts_with("meta.") {
        format!("io.k8s.apimachinery.pkg.apis.{name}")
    } else if name.starts_with("apiextensions.") {
        format!("io.k8s.apiextensions-apiserver.pkg.apis.{name}")
    } else {
        format!("io.k8s.api.{name}")
    }
}

fn complete(definitions: &mut Map<String, Value>) {
    for (definition, property, key, map_keys) in MERGE_KEYS {
        edit(definitions, definition, property, |schema| {
            schema.insert("x-kubernetes-patch-strategy".to_owned(), json!("merge"));
            if !key.is_empty() {
                schema.insert("x-kubernetes-patch-merge-key".to_owned(), json!(key));
            }
            if !map_keys.is_empty() {
                schema.insert("x-kubernetes-list-type".to_owned(), json!("map"));
                schema.insert("x-kubernetes-list-map-keys".to_owned(), json!(map_keys));
            } else if key.is_empty() {
                schema.insert("x-kubernetes-list-type".to_owned(), json!("set"));
            }
        });
    }
    for (definition, property, default) in DEFAULTS {
        edit(definitions, definition, property, |schema| {
            schema.insert("default".to_owned(), default());
        });
    }
    for (definition, property, allowed) in ENUMS {
        edit(definitions, definition, property, |schema| {
            schema.insert("enum".to_owned(), json!(allowed));
        });
    }
    definitions.values_mut().for_each(wrap_references);
    // JSONSchemaProps contains itself; in a definition it is kept as it is.
    if let Some(schema) = definitions.get_mut(&full_name("apiextensions.v1.JSONSchemaProps")) {
        *schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    let quantity = "io.k8s.apimachinery.pkg.api.resource.Quantity";
    if let Some(quantity) = definitions.get_mut(quantity).and_then(Value::as_object_mut) {
        quantity.insert("format".to_owned(), json!("quantity"));
    }
}

/// A reference with something beside it is written as `allOf`, as OpenAPI 3.0 wants it.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.len() > 1
                && let Some(reference) = fields.remove("$ref")
            {
                fields.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
            fields.values_mut().for_each(wrap_references);
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn edit(
    definitions: &mut Map<String, Value>,
    definition: &str,
    property: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let schema = definitions
        .get_mut(&full_name(definition))
        .and_then(|schema| {
            schema
                .get_mut("properties")?
                .get_mut(property)?
                .as_object_mut()
        });
    debug_assert!(schema.is_some(), "{definition} has no {property}");
    if let Some(schema) = schema {
        change(schema);
    }
}
