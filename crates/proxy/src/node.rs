//! What a proxy says about itself to the control plane, in the keys that Istio uses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use meshfed_xds::proto::{Node as Wire, Struct, Value, value::Kind};

/// Metadata key: whether the application answers, `true` or `false`.
pub const READY: &str = "READY";

/// The role of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Beside one workload.
    Sidecar,
    /// At the border of the mesh.
    Gateway,
}

/// A port of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPort {
    /// May be empty.
    pub name: String,
    pub port: u16,
}

/// Who a proxy is.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: NodeKind,
    /// Pod name of the workload, or name of the gateway's instance.
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// The first one stands in the node's id. At least one.
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    /// Ports that the application listens on.
    pub ports: Vec<WorkloadPort>,
    pub cluster_id: String,
    pub network: String,
    /// Further metadata, as texts.
    pub metadata: BTreeMap<String, String>,
}

impl Node {
    /// `sidecar~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`, or `router~…`.
    pub fn id(&self) -> String {
        let kind = match self.kind {
            NodeKind::Sidecar => "sidecar",
            NodeKind::Gateway => "router",
        };
        let ip = match self.addresses.first() {
            Some(ip) => ip.to_string(),
            None => "0.0.0.0".to_owned(),
        };
        let (name, namespace) = (&self.name, &self.namespace);
        format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local")
    }

    /// The node as it is sent. `ready`: whether the application answers, if that is known.
    pub(crate) fn to_wire(&self, ready: Option<bool>) -> Wire {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let mut fields: BTreeMap<String, Value> = self
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .collect();
        let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
        set("NAME", text(&self.name));
        set("NAMESPACE", text(&self.namespace));
        set("SERVICE_ACCOUNT", text(&self.service_account));
        set("INSTANCE_IPS", text(&addresses.join(",")));
        set("CLUSTER_ID", text(&self.cluster_id));
        set("NETWORK", text(&self.network));
        set("POD_PORTS", text(&self.ports_json()));
        let labels = self.labels.iter().map(|(k, v)| (k.clone(), text(v)));
        set(
            "LABELS",
            Value {
                kind: Some(Kind::StructValue(Struct {
                    fields: labels.collect(),
                })),
            },
        );
        if let Some(ready) = ready {
            set(
                READY,
                Value {
                    kind: Some(Kind::BoolValue(ready)),
                },
            );
        }
        Wire {
            id: self.id(),
            cluster: match self.labels.get("app") {
                Some(app) => format!("{app}.{}", self.namespace),
                None => format!("{}.{}", self.name, self.namespace),
            },
            metadata: Some(Struct {
                fields: fields.into_iter().collect(),
            }),
            user_agent_name: "meshfed".to_owned(),
            ..Default::default()
        }
    }

    /// Istio's form of the ports: JSON inside a text.
    fn ports_json(&self) -> String {
        let mut json = String::from("[");
        for (n, WorkloadPort { name, port }) in self.ports.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            // A port name is a DNS label; what is none is left away rather than escaped.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            let name = if name.bytes().all(plain) { name } else { "" };
            let _ = write!(
                json,
                "{comma}{{\"name\":\"{name}\",\"containerPort\":{port},\"protocol\":\"TCP\"}}"
            );
        }
        json.push(']');
        json
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_tells_its_workload() {
        let node = Node {
            kind: NodeKind::Sidecar,
            name: "ratings-v1-1".into(),
            namespace: "bookinfo".into(),
            service_account: "ratings".into(),
            addresses: vec!["127.1.0.9".parse().unwrap(), "::1".parse().unwrap()],
            labels: [("app".into(), "ratings".into())].into(),
            ports: vec![
                WorkloadPort {
                    name: "http".into(),
                    port: 9080,
                },
                WorkloadPort {
                    name: "\"bad".into(),
                    port: 1,
                },
            ],
            cluster_id: "red".into(),
            network: "red-network".into(),
            metadata: [("MESH_ID".into(), "red-mesh".into())].into(),
        };
        let wire = node.to_wire(Some(false));
        assert_eq!(
            wire.id,
            "sidecar~127.1.0.9~ratings-v1-1.bookinfo~bookinfo.svc.cluster.local"
        );
        assert_eq!(wire.cluster, "ratings.bookinfo");
        let fields = wire.metadata.unwrap().fields;
        let get = |key: &str| fields[key].kind.clone().unwrap();
        assert_eq!(
            get("INSTANCE_IPS"),
            Kind::StringValue("127.1.0.9,::1".into())
        );
        assert_eq!(get("MESH_ID"), Kind::StringValue("red-mesh".into()));
        assert_eq!(get(READY), Kind::BoolValue(false));
        assert_eq!(
            get("POD_PORTS"),
            Kind::StringValue(
                "[{\"name\":\"http\",\"containerPort\":9080,\"protocol\":\"TCP\"},\
                 {\"name\":\"\",\"containerPort\":1,\"protocol\":\"TCP\"}]"
                    .into()
            )
        );
    }
}
