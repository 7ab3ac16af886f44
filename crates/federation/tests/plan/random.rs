//! Three meshes with random services, names and rules: every name leads to the right endpoints of
//! the right mesh on the right port, and nothing else can be reached, whatever is asked for.
//!
//! What is right is worked out a second time here, from the documents and without the code under
//! test: see [`Story::expected`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use meshfed_federation::plan::ProxyKey;
use meshfed_federation::plan::proxy::MESH_TRUST;
use meshfed_proxy_config::{Network, ServerIds, TcpTarget, UpstreamTls};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::meshes::{Membership, Meshes, Peering, created, subnet};
use crate::trace::{Net, Proxy, Reached};

const COLOURS: [&str; 3] = ["red", "green", "blue"];
/// `c` is there and no member.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 3] = ["x", "y", "z"];
const SHARED_SUFFIX: &str = "shared.example";

#[derive(Debug, Clone)]
struct Service {
    namespace: &'static str,
    name: &'static str,
    created: u32,
    /// Number and whether it is TCP.
    ports: Vec<(u16, bool)>,
    share: Option<&'static str>,
    hidden: bool,
    endpoints: u8,
    sidecar: bool,
}

/// Missing and `*` match anything; in an alias they keep what is there.
type Part = Option<&'static str>;

#[derive(Debug, Clone)]
struct ByName {
    namespace: Part,
    name: Part,
    alias: (Part, Part),
}

#[derive(Debug, Clone)]
enum ExportRule {
    ByName(ByName),
    /// Label `share` is this, or is not `no`.
    ByLabel {
        namespace: Part,
        value: Option<&'static str>,
        aliases: Vec<ByName>,
    },
}

#[derive(Debug, Clone)]
struct ImportRule {
    by_name: ByName,
    suffix: Part,
    as_local: bool,
}

/// What one mesh has decided about one peer.
#[derive(Debug, Clone)]
struct Sharing {
    created: u32,
    exports: Vec<ExportRule>,
    imports: Vec<ImportRule>,
    suffix: Part,
}

#[derive(Debug, Clone)]
struct Mesh {
    services: Vec<Service>,
    /// By number of the other mesh; its own is not used.
    sharing: Vec<Sharing>,
    shared_gateways: bool,
}

#[derive(Debug, Clone)]
struct Story {
    meshes: Vec<Mesh>,
    /// What the mesh calls each of the others.
    names: Vec<Vec<String>>,
}

fn part(of: &'static [&'static str]) -> impl Strategy<Value = Part> {
    prop_oneof![
        2 => prop::sample::select(of).prop_map(Some),
        1 => Just(Some("*")),
        1 => Just(None),
    ]
}

fn by_name() -> impl Strategy<Value = ByName> {
    let alias = (part(&["a", "p"]), part(&["x", "q"]));
    (part(&["a", "b", "p"]), part(&["x", "y", "q"]), alias).prop_map(|(namespace, name, alias)| {
        ByName {
            namespace,
            name,
            alias,
        }
    })
}

fn export_rule() -> impl Strategy<Value = ExportRule> {
    let by_label = (
        part(&["a", "b"]),
        prop::option::of(Just("yes")),
        prop::collection::vec(by_name(), 0..3),
    );
    prop_oneof![
        by_name().prop_map(ExportRule::ByName),
        by_label.prop_map(|(namespace, value, aliases)| ExportRule::ByLabel {
            namespace,
            value,
            aliases
        }),
    ]
}

fn import_rule() -> impl Strategy<Value = ImportRule> {
    let suffix = prop::option::weighted(0.2, Just(SHARED_SUFFIX));
    (by_name(), suffix, any::<bool>(), 0..3_usize).prop_map(
        |(mut by_name, suffix, as_local, namespace)| {
            if as_local {
                by_name.alias.0 = Some(NAMESPACES[namespace]);
            }
            ImportRule {
                by_name,
                suffix,
                as_local,
            }
        },
    )
}

fn sharing() -> impl Strategy<Value = Sharing> {
    (
        0..3_u32,
        prop::collection::vec(export_rule(), 0..4),
        prop::collection::vec(import_rule(), 0..4),
        prop::option::weighted(0.3, Just(SHARED_SUFFIX)),
    )
        .prop_map(|(created, exports, imports, suffix)| Sharing {
            created,
            exports,
            imports,
            suffix,
        })
}

fn service(namespace: &'static str, name: &'static str) -> impl Strategy<Value = Option<Service>> {
    let ports = prop::sample::subsequence(
        vec![(80, true), (9080, true), (5432, true), (53, false)],
        1..4,
    );
    let share = prop::option::of(prop::sample::select(vec!["yes", "no"]));
    let rare = prop::bool::weighted(0.2);
    let rest = (0..3_u8, any::<bool>());
    prop::option::weighted(
        0.7,
        (0..3_u32, ports, share, rare, rest).prop_map(
            move |(created, ports, share, hidden, (endpoints, sidecar))| Service {
                namespace,
                name,
                created,
                ports,
                share,
                hidden,
                endpoints,
                sidecar,
            },
        ),
    )
}

fn mesh() -> impl Strategy<Value = Mesh> {
    let services: Vec<_> = NAMESPACES
        .into_iter()
        .flat_map(|namespace| NAMES.map(|name| service(namespace, name)))
        .collect();
    (services, prop::collection::vec(sharing(), 3), any::<bool>()).prop_map(
        |(services, sharing, shared_gateways)| Mesh {
            services: services.into_iter().flatten().collect(),
            sharing,
            shared_gateways,
        },
    )
}

fn story() -> impl Strategy<Value = Story> {
    // Each mesh gives its peers names of its own, some of which mean another mesh elsewhere.
    let names = prop::sample::select(vec![
        [
            ["-", "partner", "red-mesh"],
            ["acme", "-", "blue-mesh"],
            ["green-mesh", "acme", "-"],
        ],
        [["-", "m1", "m2"], ["m1", "-", "m2"], ["m1", "m2", "-"]],
        [["-", "m2", "m1"], ["m2", "-", "m1"], ["m2", "m1", "-"]],
    ]);
    (prop::collection::vec(mesh(), 3), names).prop_map(|(meshes, names)| Story {
        meshes,
        names: names
            .iter()
            .map(|all| all.iter().map(|name| (*name).to_owned()).collect())
            .collect(),
    })
}

/// Namespace and name.
type Key = (String, String);

fn fits(part: Part, text: &str) -> bool {
    part.is_none_or(|part| part == "*" || part == text)
}

fn or(part: Part, text: &str) -> String {
    part.filter(|part| *part != "*").unwrap_or(text).to_owned()
}

impl ByName {
    fn renames(&self, (namespace, name): &Key) -> Option<Key> {
        let matches = fits(self.namespace, namespace) && fits(self.name, name);
        matches.then(|| (or(self.alias.0, namespace), or(self.alias.1, name)))
    }

    fn json(&self) -> Value {
        let mut all = json!({"alias": {}});
        for (object, field, part) in [
            ("", "namespace", self.namespace),
            ("", "name", self.name),
            ("alias", "namespace", self.alias.0),
            ("alias", "name", self.alias.1),
        ] {
            let Some(part) = part else { continue };
            match object {
                "" => all[field] = json!(part),
                _ => all[object][field] = json!(part),
            }
        }
        all
    }
}

impl ExportRule {
    fn renames(&self, service: &Service) -> Option<Key> {
        let key = (service.namespace.to_owned(), service.name.to_owned());
        match self {
            Self::ByName(by_name) => by_name.renames(&key),
            Self::ByLabel {
                namespace,
                value,
                aliases,
            } => {
                let picked = match value {
                    Some(value) => service.share == Some(value),
                    None => service.share != Some("no"),
                };
                if !picked || !fits(*namespace, service.namespace) {
                    return None;
                }
                let alias = aliases.iter().find_map(|alias| alias.renames(&key));
                Some(alias.unwrap_or(key))
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::ByName(by_name) => {
                json!({"type": "NameSelector", "nameSelector": by_name.json()})
            }
            Self::ByLabel {
                namespace,
                value,
                aliases,
            } => {
                let selector = match value {
                    Some(value) => json!({"matchLabels": {"share": value}}),
                    None => json!({"matchExpressions": [
                        {"key": "share", "operator": "NotIn", "values": ["no"]}]}),
                };
                let aliases: Vec<Value> = aliases.iter().map(ByName::json).collect();
                let mut all = json!({"selector": selector, "aliases": aliases});
                if let Some(namespace) = namespace {
                    all["namespace"] = json!(namespace);
                }
                json!({"type": "LabelSelector", "labelSelector": all})
            }
        }
    }
}

impl ImportRule {
    fn json(&self) -> Value {
        let mut all = json!({"type": "NameSelector", "importAsLocal": self.as_local,
            "nameSelector": self.by_name.json()});
        if let Some(suffix) = self.suffix {
            all["domainSuffix"] = json!(suffix);
        }
        all
    }
}

impl Service {
    fn is_member(&self) -> bool {
        self.namespace != "c"
    }

    fn tcp_ports(&self) -> impl Iterator<Item = u16> {
        let tcp = self.ports.iter().filter(|(_, tcp)| *tcp);
        tcp.map(|(number, _)| *number)
    }

    /// Workloads listen 1000 above the service's port.
    fn addresses(&self, mesh: usize, port: u16) -> Reached {
        let each = (0..self.endpoints).map(|i| {
            let address = format!("{}:{}", self.ip(mesh, i), port + 1000);
            (mesh, address.parse::<SocketAddr>().unwrap())
        });
        each.collect()
    }

    fn ip(&self, mesh: usize, endpoint: u8) -> String {
        let row = NAMESPACES
            .iter()
            .position(|n| *n == self.namespace)
            .unwrap();
        let column = NAMES.iter().position(|n| *n == self.name).unwrap();
        let place = 150 + 10 * row + 3 * column + usize::from(endpoint);
        format!("{}.{place}", subnet(COLOURS[mesh]))
    }

    fn apply(&self, lab: &mut Lab, mesh: usize) {
        let (namespace, name) = (self.namespace, self.name);
        let app = format!("{namespace}-{name}");
        let mut labels = json!({});
        if let Some(share) = self.share {
            labels["share"] = json!(share);
        }
        let mut annotations = json!({});
        if self.hidden {
            annotations["networking.istio.io/exportTo"] = json!(".");
        }
        let transport = |tcp: bool| if tcp { "TCP" } else { "UDP" };
        let ports = self.ports.iter().map(|(number, tcp)| {
            json!({"name": format!("p{number}"), "port": number, "protocol": transport(*tcp),
                "targetPort": number + 1000})
        });
        let behind = self.ports.iter().map(|(number, tcp)| {
            json!({"name": format!("p{number}"), "port": number + 1000, "protocol": transport(*tcp)})
        });
        let ips: Vec<String> = (0..self.endpoints).map(|i| self.ip(mesh, i)).collect();
        lab.apply_json(json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels,
                "annotations": annotations, "creationTimestamp": created(self.created)},
            "spec": {"ports": ports.collect::<Vec<_>>(), "selector": {"app": app}},
        }));
        lab.apply_json(json!({
            "kind": "EndpointSlice",
            "metadata": {"name": app, "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": behind.collect::<Vec<_>>(),
            "endpoints": ips.iter().map(|ip| json!({"addresses": [ip]})).collect::<Vec<_>>(),
        }));
        for ip in ips.iter().filter(|_| self.sidecar) {
            lab.apply_json(json!({
                "kind": "Pod",
                "metadata": {
                    "name": format!("{app}-{}", ip.rsplit('.').next().unwrap()),
                    "namespace": namespace,
                    "labels": {"app": app, "security.istio.io/tlsMode": "istio"},
                    "annotations": {"meshfed.io/app": "127.0.0.1:7000"},
                },
                "status": {"podIP": ip},
            }));
        }
    }
}

impl Story {
    /// What `from` offers to `to`, by exported name; of two with one name the older has it.
    fn exported(&self, from: usize, to: usize) -> BTreeMap<Key, &Service> {
        let mesh = &self.meshes[from];
        let mut services: Vec<&Service> = mesh
            .services
            .iter()
            .filter(|s| s.is_member() && !s.hidden && s.tcp_ports().next().is_some())
            .collect();
        services.sort_by_key(|s| (s.created, s.namespace, s.name));
        let mut all = BTreeMap::new();
        for service in services {
            let rules = &mesh.sharing[to].exports;
            if let Some(key) = rules.iter().find_map(|rule| rule.renames(service)) {
                all.entry(key).or_insert(service);
            }
        }
        all
    }

    /// What `here` imports: by host name the services behind it, each with its mesh.
    fn imported(&self, here: usize) -> BTreeMap<String, Vec<(usize, &Service)>> {
        let mesh = &self.meshes[here];
        let mut peers: Vec<usize> = (0..self.meshes.len()).filter(|m| *m != here).collect();
        peers.sort_by_key(|peer| (mesh.sharing[*peer].created, &self.names[here][*peer]));
        let mut all: BTreeMap<String, Vec<(usize, &Service)>> = BTreeMap::new();
        for peer in peers {
            let sharing = &mesh.sharing[peer];
            for (key, service) in self.exported(peer, here) {
                let rules = sharing.imports.iter();
                let mut picked = rules.filter_map(|rule| Some((rule, rule.by_name.renames(&key)?)));
                let Some((rule, (namespace, name))) = picked.next() else {
                    continue;
                };
                if rule.as_local && namespace == "c" {
                    continue;
                }
                let default = format!("svc.{}-imports.local", self.names[here][peer]);
                let suffix = match rule.as_local {
                    true => "svc.cluster.local".to_owned(),
                    false => rule
                        .suffix
                        .or(sharing.suffix)
                        .map_or(default, str::to_owned),
                };
                let holders = all
                    .entry(format!("{name}.{namespace}.{suffix}"))
                    .or_default();
                // Each peer may share a local name once.
                let joins = rule.as_local && holders.iter().all(|(mesh, _)| *mesh != peer);
                if holders.is_empty() || joins {
                    holders.push((peer, service));
                }
            }
        }
        all
    }

    /// Every authority that a workload in namespace `a` may call, and where it leads.
    fn expected(&self, here: usize) -> BTreeMap<String, Reached> {
        let mut by_host: BTreeMap<(String, u16), Reached> = BTreeMap::new();
        let local = self.meshes[here].services.iter().filter(|s| s.is_member());
        let local = local.map(|service| {
            let host = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            (host, here, service)
        });
        let imported = self.imported(here).into_iter().flat_map(|(host, behind)| {
            let each = behind.into_iter();
            each.map(move |(mesh, service)| (host.clone(), mesh, service))
        });
        for (host, mesh, service) in local.chain(imported) {
            for port in service.tcp_ports() {
                let reached = by_host.entry((host.clone(), port)).or_default();
                reached.extend(service.addresses(mesh, port));
            }
        }
        let mut all = BTreeMap::new();
        for ((host, port), reached) in by_host {
            for name in short_names(&host) {
                all.insert(format!("{name}:{port}"), reached.clone());
                if port == 80 {
                    all.insert(name, reached.clone());
                }
            }
        }
        all
    }

    fn bench(&self) -> Meshes {
        let members: Vec<Membership> = (0..3)
            .map(|mesh| Membership {
                colour: COLOURS[mesh],
                shared_gateways: self.meshes[mesh].shared_gateways,
                peerings: (0..3)
                    .filter(|other| *other != mesh)
                    .map(|other| Peering {
                        mesh: other,
                        name: self.names[mesh][other].clone(),
                        created: self.meshes[mesh].sharing[other].created,
                    })
                    .collect(),
            })
            .collect();
        let mut meshes = Meshes::new(&members);
        for (mesh, lab) in meshes.labs.iter_mut().enumerate() {
            self.furnish(lab, mesh);
        }
        meshes.settle();
        meshes
    }

    fn furnish(&self, lab: &mut Lab, mesh: usize) {
        let system = lab.system();
        NAMESPACES.iter().for_each(|name| lab.namespace(name));
        lab.apply_json(json!({
            "kind": "ServiceMeshMemberRoll",
            "metadata": {"name": "default", "namespace": system},
            "spec": {"members": ["a", "b"]},
        }));
        lab.workload("a", "client", 30);
        for service in &self.meshes[mesh].services {
            service.apply(lab, mesh);
        }
        for other in (0..3).filter(|other| *other != mesh) {
            let sharing = &self.meshes[mesh].sharing[other];
            let metadata = json!({"name": self.names[mesh][other], "namespace": system});
            let exports: Vec<Value> = sharing.exports.iter().map(ExportRule::json).collect();
            lab.apply_json(json!({"kind": "ExportedServiceSet", "metadata": metadata,
                "spec": {"exportRules": exports}}));
            let imports: Vec<Value> = sharing.imports.iter().map(ImportRule::json).collect();
            let mut spec = json!({"importRules": imports});
            if let Some(suffix) = sharing.suffix {
                spec["domainSuffix"] = json!(suffix);
            }
            lab.apply_json(
                json!({"kind": "ImportedServiceSet", "metadata": metadata, "spec": spec}),
            );
        }
    }
}

/// The full name, and for the cluster's own what a resolver in namespace `a` completes to it.
fn short_names(host: &str) -> Vec<String> {
    let mut all = vec![host.to_owned()];
    if let Some(short) = host.strip_suffix(".svc.cluster.local") {
        all.extend([format!("{short}.svc"), short.to_owned()]);
        all.extend(short.strip_suffix(".a").map(str::to_owned));
    }
    all
}

/// Every SNI that means something to somebody.
fn names_anywhere(net: &Net<'_>) -> BTreeSet<String> {
    let proxies = net.proxies();
    let clusters = proxies
        .iter()
        .flat_map(|(_, proxy)| proxy.config.clusters.keys());
    clusters.map(ToString::to_string).collect()
}

/// Where the gateways of this side listen for service traffic.
fn doors<'a>(net: &Net<'a>, side: &str) -> Vec<(Proxy<'a>, SocketAddr)> {
    let mut all = Vec::new();
    for (key, proxy) in net.proxies() {
        if !matches!(&key, ProxyKey::Gateway(name) if name.starts_with(side)) {
            continue;
        }
        for listener in proxy.config.listeners.values() {
            let by_sni = listener.chains.iter().any(|chain| {
                matches!(&chain.network, Network::Tcp(tcp) if tcp.target == TcpTarget::SniCluster)
            });
            if by_sni {
                all.push((proxy.clone(), listener.address));
            }
        }
    }
    all
}

/// What `from` can reach behind a door, by whatever name and with whatever trust it has.
fn forced(
    net: &Net<'_>,
    from: &Proxy<'_>,
    door: &(Proxy<'_>, SocketAddr),
    snis: &BTreeSet<String>,
) -> Reached {
    let mut reached = Reached::new();
    for (sni, trust) in snis
        .iter()
        .flat_map(|sni| from.config.trust.keys().map(move |t| (sni, t)))
    {
        let tls = UpstreamTls {
            trust: trust.clone(),
            server: ServerIds::AnyOf(door.0.id.trust_domain().clone()),
            sni: Some(sni.as_str().into()),
            alpn: Vec::new(),
        };
        // Refusals are what should happen; what gets through is judged by the caller.
        reached.extend(net.connect(from, door.1, Some(&tls)).unwrap_or_default());
    }
    reached
}

/// All endpoints of these services.
fn all_of<'s>(services: impl Iterator<Item = (usize, &'s Service)>) -> Reached {
    let each = services.flat_map(|(mesh, service)| {
        let ports = service.tcp_ports();
        ports.flat_map(move |port| service.addresses(mesh, port))
    });
    each.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_name_leads_to_what_was_exported_and_imported_under_it_and_no_other_name_exists(
        story in story()
    ) {
        let meshes = story.bench();
        let net = meshes.net();
        for (here, colour) in COLOURS.iter().enumerate() {
            let client = net.sidecar(here, "a", "client-v1");
            let expected = story.expected(here);
            let known = net.authorities(&client);
            prop_assert_eq!(&known, &expected.keys().cloned().collect(), "names in {}", colour);
            for (authority, reached) in &expected {
                prop_assert_eq!(&net.request(&client, authority), &Ok(reached.clone()), "{}", authority);
            }
        }
    }

    #[test]
    fn whoever_forces_a_name_on_a_gateway_reaches_only_what_is_shared_with_its_mesh(
        story in story()
    ) {
        let meshes = story.bench();
        let net = meshes.net();
        let snis = names_anywhere(&net);
        let egresses = doors(&net, "egress");
        for door in &egresses {
            let here = door.0.mesh;
            let client = net.sidecar(here, "a", "client-v1");
            prop_assert!(client.config.trust.contains_key(MESH_TRUST));
            let allowed = all_of(story.imported(here).into_values().flatten());
            let reached = forced(&net, &client, door, &snis);
            prop_assert!(reached.is_subset(&allowed), "{}: {:?}", door.0.id, reached);
        }
        for door in doors(&net, "ingress") {
            for (egress, _) in &egresses {
                let (to, from) = (egress.mesh, door.0.mesh);
                let allowed = match to == from {
                    true => Reached::new(),
                    false => all_of(story.exported(from, to).into_values().map(|s| (from, s))),
                };
                let reached = forced(&net, egress, &door, &snis);
                prop_assert!(reached.is_subset(&allowed), "{} by {}: {:?}", door.0.id, egress.id, reached);
            }
        }
    }
}
