use std::collections::BTreeSet;
use std::time::Duration;

use meshfed_proxy_config::*;
use meshfed_xds::encode;
use meshfed_xds::proto::Any;

use super::*;
use crate::engine::RejectionCause;

/// Remembers what took effect, in order.
#[derive(Default)]
struct Fake {
    applied: Vec<String>,
    /// A name that is rejected.
    bad: Option<&'static str>,
    /// A bundle by which connections go on.
    used: Option<&'static str>,
    /// A listener that cannot be applied although it is good.
    fails: Option<&'static str>,
    /// A listener whose address somebody else has.
    unbound: Option<&'static str>,
}

impl Apply for Fake {
    fn check(&mut self, change: &Change) -> Result<(), Rejection> {
        let name = match change {
            Change::Listener(l) => l.name.as_str(),
            Change::Cluster(c) => &*c.name,
            _ => return Ok(()),
        };
        if self.unbound == Some(name) {
            return Err(Rejection {
                name: name.to_owned(),
                cause: Box::new(RejectionCause::Bind(crate::listener::BindError::InUse(
                    ([127, 0, 0, 1], 15443).into(),
                ))),
            });
        }
        if self.bad == Some(name) {
            return Err(Rejection {
                name: name.to_owned(),
                cause: Box::new(RejectionCause::Cluster(
                    crate::cluster::ClusterError::ConnectTimeout,
                )),
            });
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) -> Result<(), Rejection> {
        if let Change::Listener(l) = &change
            && self.fails == Some(l.name.as_str())
        {
            return Err(Rejection {
                name: l.name.clone(),
                cause: Box::new(RejectionCause::Cluster(
                    crate::cluster::ClusterError::ConnectTimeout,
                )),
            });
        }
        self.applied.push(match change {
            Change::Trust(name, _) => format!("+trust {name}"),
            Change::Cluster(c) => format!("+cluster {}", c.name),
            Change::Endpoints(e) => format!("+endpoints {}", e.name),
            Change::Listener(l) => format!("+listener {}", l.name),
            Change::Routes(r) => format!("+routes {}", r.name),
            Change::SeparateRoutes(name) => format!("+separate routes {name}"),
            Change::VirtualHost(h) => format!("+host {}", h.name),
            Change::RemoveTrust(name) => format!("-trust {name}"),
            Change::RemoveCluster(name) => format!("-cluster {name}"),
            Change::RemoveEndpoints(name) => format!("-endpoints {name}"),
            Change::RemoveListener(name) => format!("-listener {name}"),
            Change::RemoveRoutes(name) => format!("-routes {name}"),
            Change::RemoveVirtualHost(name) => format!("-host {name}"),
        });
        Ok(())
    }

    fn uses_trust(&self, name: &str) -> bool {
        self.used == Some(name)
    }
}

struct Scene {
    subscriber: Subscriber,
    fake: Fake,
    requests: Vec<DeltaDiscoveryRequest>,
}

impl Scene {
    fn new() -> Self {
        let mut subscriber = Subscriber::default();
        subscriber.begin(Node::default());
        Self {
            subscriber,
            fake: Fake::default(),
            requests: Vec::new(),
        }
    }

    /// Receives a response; gives what took effect by it.
    fn receive(&mut self, kind: TypeUrl, added: Vec<(&str, Any)>, removed: &[&str]) -> Vec<String> {
        let resource = |(name, any): (&str, Any)| Resource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(any),
            ..Default::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: kind.as_str().to_owned(),
            nonce: format!("nonce-{}", kind.label()),
            resources: added.into_iter().map(resource).collect(),
            removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
            ..Default::default()
        };
        self.requests = self.subscriber.receive(response, &mut self.fake);
        let ack = self.requests.last().unwrap();
        assert_eq!(ack.type_url, kind.as_str());
        assert_eq!(ack.response_nonce, format!("nonce-{}", kind.label()));
        std::mem::take(&mut self.fake.applied)
    }

    fn refusal(&self) -> &str {
        let ack = self.requests.last().unwrap();
        ack.error_detail.as_ref().map_or("", |s| &s.message)
    }

    /// What the requests after the last response subscribe to (`+`) and no longer (`-`).
    fn wants(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for request in &self.requests {
            let kind = TypeUrl::parse(&request.type_url).unwrap().label();
            let on = request.resource_names_subscribe.iter();
            names.extend(on.map(|n| format!("+{kind} {n}")));
            let off = request.resource_names_unsubscribe.iter();
            names.extend(off.map(|n| format!("-{kind} {n}")));
        }
        names
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn cluster(name: &'static str, eds: &str, trust: Option<&str>) -> (&'static str, Any) {
    (name, cluster_any(name, eds, trust))
}

fn cluster_any(name: &str, eds: &str, trust: Option<&str>) -> Any {
    encode::cluster(&Cluster {
        name: name.into(),
        discovery: Discovery::Eds(eds.into()),
        connect_timeout: Duration::from_secs(1),
        tls: trust.map(|trust| UpstreamTls {
            trust: trust.into(),
            server: ServerIds::AnyOf("a.local".parse().unwrap()),
            sni: Some("outbound_.1_._.a".into()),
            alpn: vec![],
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    })
}

fn listener(name: &'static str, trust: &str) -> (&'static str, Any) {
    let any = encode::listener(&Listener {
        name: name.into(),
        address: "127.0.0.1:15443".parse().unwrap(),
        chains: vec![FilterChain {
            name: "c".into(),
            server_names: vec![ServerName::Suffix("a.local".into())],
            tls: Some(DownstreamTls {
                trust: trust.into(),
                client_ids: vec![],
                alpn: vec![],
            }),
            drain: DEFAULT_DRAIN,
            network: Network::Tcp(Tcp {
                target: TcpTarget::SniCluster,
                allow: None,
                idle_timeout: Duration::from_secs(60),
            }),
        }],
        handshake_timeout: Duration::from_secs(5),
    });
    (name, any)
}

fn http_listener(name: &'static str, table: &str) -> (&'static str, Any) {
    let any = encode::listener(&Listener {
        name: name.into(),
        address: "127.0.0.1:15001".parse().unwrap(),
        chains: vec![FilterChain {
            name: "c".into(),
            server_names: vec![],
            tls: None,
            drain: DEFAULT_DRAIN,
            network: Network::Http(Http {
                stat_prefix: "p".into(),
                routes: HttpRoutes::Rds(table.into()),
                allow: None,
                forward_client_id: false,
                append_forwarded_for: false,
                accept_connect: true,
                stream_idle_timeout: Duration::ZERO,
            }),
        }],
        handshake_timeout: Duration::from_secs(1),
    });
    (name, any)
}

fn endpoints(name: &'static str) -> (&'static str, Any) {
    (name, endpoints_any(name))
}

fn endpoints_any(name: &str) -> Any {
    encode::endpoints(&Endpoints {
        name: name.into(),
        localities: vec![],
    })
}

fn trust(name: &'static str) -> (&'static str, Any) {
    let domains = [("a.local".parse().unwrap(), "pem".into())].into();
    (name, encode::trust(name, &TrustBundle { domains }))
}

#[test]
fn a_cluster_is_used_when_its_endpoints_and_trust_are_there() {
    let mut scene = Scene::new();
    let cluster = cluster("c", "e", Some("t"));
    assert!(
        scene
            .receive(TypeUrl::Cluster, vec![cluster], &[])
            .is_empty()
    );
    assert_eq!(scene.refusal(), "");
    assert_eq!(scene.wants(), set(&["+endpoints e", "+trust t"]));
    let applied = scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    assert_eq!(applied, ["+endpoints e"]);
    let applied = scene.receive(TypeUrl::Trust, vec![trust("t")], &[]);
    assert_eq!(applied, ["+trust t", "+cluster c"]);
    assert!(scene.wants().is_empty());
}

#[test]
fn the_old_version_stays_until_the_new_one_is_complete_and_then_its_references_are_left() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![cluster("c", "old", None)], &[]);
    scene.receive(TypeUrl::Endpoints, vec![endpoints("old")], &[]);
    let applied = scene.receive(TypeUrl::Cluster, vec![cluster("c", "new", None)], &[]);
    assert!(applied.is_empty(), "{applied:?}");
    assert_eq!(scene.wants(), set(&["+endpoints new"]));
    let applied = scene.receive(TypeUrl::Endpoints, vec![endpoints("new")], &[]);
    assert_eq!(applied, ["+endpoints new", "+cluster c", "-endpoints old"]);
    assert_eq!(scene.wants(), set(&["-endpoints old"]));
}

#[test]
fn virtual_hosts_apply_as_they_come_and_their_table_waits_for_none_of_them() {
    let host = |name: &'static str| {
        let host = VirtualHost {
            name: name.into(),
            domains: vec![name.into()],
            routes: vec![],
        };
        (name, encode::virtual_host(&host))
    };
    let mut scene = Scene::new();
    let kind = TypeUrl::VirtualHosts;
    let applied = scene.receive(kind, vec![host("t/a"), host("t/b")], &[]);
    assert_eq!(applied, ["+host t/a", "+host t/b"]);
    let table = ("t", encode::separate_routes("t"));
    let applied = scene.receive(TypeUrl::Routes, vec![table.clone()], &[]);
    assert!(applied.is_empty(), "no listener has asked for it");
    scene.receive(TypeUrl::Listener, vec![http_listener("l", "t")], &[]);
    assert_eq!(scene.wants(), set(&["+routes t"]));
    let applied = scene.receive(TypeUrl::Routes, vec![table], &[]);
    assert_eq!(applied, ["+separate routes t", "+listener l"]);
    assert_eq!(scene.receive(kind, vec![], &["t/a"]), ["-host t/a"]);
    let requests = scene.subscriber.begin(Node::default());
    let of_kind = requests.iter().find(|r| r.type_url == kind.as_str());
    let known = &of_kind.unwrap().initial_resource_versions;
    assert_eq!(known.keys().collect::<Vec<_>>(), ["t/b"]);
}

#[test]
fn what_does_not_exist_is_an_answer_too() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![cluster("c", "e", None)], &[]);
    let applied = scene.receive(TypeUrl::Endpoints, vec![], &["e"]);
    assert_eq!(applied, ["-endpoints e", "+cluster c"]);
}

#[test]
fn a_reference_of_two_is_fetched_once_and_left_with_the_last() {
    let mut scene = Scene::new();
    let both = vec![cluster("c1", "e", None), cluster("c2", "e", None)];
    scene.receive(TypeUrl::Cluster, both, &[]);
    assert_eq!(scene.wants(), set(&["+endpoints e"]));
    scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    let applied = scene.receive(TypeUrl::Cluster, vec![], &["c1"]);
    assert_eq!(applied, ["-cluster c1"]);
    assert!(scene.wants().is_empty());
    let applied = scene.receive(TypeUrl::Cluster, vec![], &["c2"]);
    assert_eq!(applied, ["-cluster c2", "-endpoints e"]);
    assert_eq!(scene.wants(), set(&["-endpoints e"]));
}

#[test]
fn trust_that_connections_go_on_by_is_followed_until_they_have_ended_or_it_is_withdrawn() {
    for withdrawn in [false, true] {
        let mut scene = Scene::new();
        scene.receive(TypeUrl::Listener, vec![listener("l", "t")], &[]);
        scene.receive(TypeUrl::Trust, vec![trust("t")], &[]);
        scene.fake.used = Some("t");
        let applied = scene.receive(TypeUrl::Listener, vec![], &["l"]);
        assert_eq!(applied, ["-listener l"]);
        assert!(scene.wants().is_empty());
        let again = scene.subscriber.begin(Node::default());
        let asks = again.iter().any(|r| r.resource_names_subscribe == ["t"]);
        assert!(asks, "also on a new stream: {again:?}");
        let applied = scene.receive(TypeUrl::Trust, vec![trust("t")], &[]);
        assert_eq!(applied, ["+trust t"]);
        scene.fake.used = None;
        let applied = match withdrawn {
            true => scene.receive(TypeUrl::Trust, vec![], &["t"]),
            false => scene.receive(TypeUrl::Cluster, vec![], &[]),
        };
        assert_eq!(applied[0], "-trust t");
        assert_eq!(scene.wants(), set(&["-trust t"]));
    }
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_others_apply() {
    let mut scene = Scene::new();
    scene.fake.bad = Some("rejected");
    let garbage = Any {
        type_url: TypeUrl::Cluster.as_str().into(),
        value: vec![0xff; 3],
    };
    let resources = vec![
        ("garbage", garbage),
        cluster("rejected", "e", None),
        ("misnamed", cluster("other", "e", None).1),
        cluster("good", "e", None),
    ];
    scene.receive(TypeUrl::Cluster, resources, &[]);
    let lines: Vec<_> = scene.refusal().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[1].contains("rejected"), "{lines:#?}");
    assert!(lines[2].contains("misnamed"), "{lines:#?}");
    let applied = scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    assert_eq!(applied, ["+endpoints e", "+cluster good"]);
}

#[test]
fn a_listener_whose_address_is_not_to_be_had_is_asked_for_by_its_name_until_it_is_or_goes() {
    let again = |scene: &Scene| {
        let request = scene.subscriber.ask_again();
        request.map(|r| (r.type_url, r.resource_names_subscribe))
    };
    let l = || listener("l", "t");
    for bound in [true, false] {
        let mut scene = Scene::new();
        scene.fake.unbound = Some("l");
        scene.receive(TypeUrl::Listener, vec![l(), listener("m", "t")], &[]);
        assert!(scene.refusal().contains("127.0.0.1:15443"));
        scene.receive(TypeUrl::Trust, vec![trust("t")], &[]);
        scene.receive(TypeUrl::Cluster, vec![], &[]);
        assert_eq!(scene.subscriber.missing(), "the address of listener \"l\"");
        assert!(!scene.subscriber.is_ready());
        let asked = (TypeUrl::Listener.as_str().to_owned(), vec!["l".to_owned()]);
        assert_eq!(again(&scene), Some(asked.clone()));
        scene.receive(TypeUrl::Listener, vec![l()], &[]);
        assert_eq!(again(&scene), Some(asked));
        assert!(!scene.wants().contains("-listener l"));
        if bound {
            scene.fake.unbound = None;
            scene.receive(TypeUrl::Listener, vec![l()], &[]);
            assert_eq!(scene.refusal(), "");
        } else {
            scene.receive(TypeUrl::Listener, vec![], &["l"]);
        }
        assert!(scene.wants().contains("-listener l"), "{:?}", scene.wants());
        assert!(scene.subscriber.is_ready());
        assert_eq!(again(&scene), None);
        let known = scene.subscriber.begin(Node::default()).swap_remove(1);
        let known = known.initial_resource_versions;
        assert_eq!(known.contains_key("l"), bound);
    }
}

#[test]
fn ready_comes_with_the_first_complete_clusters_and_listeners_and_stays() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![cluster("c", "e", None)], &[]);
    scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    assert!(!scene.subscriber.is_ready());
    scene.receive(TypeUrl::Listener, vec![listener("l", "t")], &[]);
    assert!(!scene.subscriber.is_ready());
    assert!(scene.subscriber.missing().contains("trust \"t\""));
    let applied = scene.receive(TypeUrl::Trust, vec![trust("t")], &[]);
    assert_eq!(applied, ["+trust t", "+listener l"]);
    assert!(scene.subscriber.is_ready());
    scene.receive(TypeUrl::Cluster, vec![cluster("c2", "e2", None)], &[]);
    assert!(scene.subscriber.is_ready());
}

#[test]
fn an_empty_configuration_is_complete() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![], &[]);
    scene.receive(TypeUrl::Listener, vec![], &[]);
    assert!(scene.subscriber.is_ready());
}

#[test]
fn more_names_than_a_request_may_have_are_asked_for_by_several() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..=NAMES_A_REQUEST).map(|n| format!("{n:05}")).collect();
    let clusters = names.iter().map(|name| cluster_any(name, name, None));
    let clusters = names.iter().map(String::as_str).zip(clusters).collect();
    scene.receive(TypeUrl::Cluster, clusters, &[]);
    let last = names.last().unwrap();
    let known = [&names[0], last].map(|name| (name.as_str(), endpoints_any(name)));
    scene.receive(TypeUrl::Endpoints, known.into(), &[]);
    let requests = scene.subscriber.begin(Node::default());
    let of_endpoints = |r: &&DeltaDiscoveryRequest| r.type_url == TypeUrl::Endpoints.as_str();
    let requests: Vec<_> = requests.iter().filter(of_endpoints).collect();
    let [first, second] = requests[..] else {
        panic!("{} requests", requests.len());
    };
    assert_eq!(first.resource_names_subscribe.len(), NAMES_A_REQUEST);
    let known: Vec<_> = first.initial_resource_versions.keys().collect();
    assert_eq!(known, [&names[0]]);
    assert_eq!(
        &second.resource_names_subscribe[..],
        std::slice::from_ref(last)
    );
    assert!(second.initial_resource_versions.is_empty());
}

#[test]
fn a_new_stream_tells_what_is_known_and_asks_for_what_is_wanted() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![cluster("c", "e", Some("t"))], &[]);
    scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    let node = Node {
        id: "me".into(),
        ..Default::default()
    };
    let requests = scene.subscriber.begin(node);
    let summary: Vec<_> = requests
        .iter()
        .map(|r| {
            let known: Vec<_> = r.initial_resource_versions.keys().cloned().collect();
            let kind = TypeUrl::parse(&r.type_url).unwrap().label();
            (kind, r.resource_names_subscribe.join(","), known.join(","))
        })
        .collect();
    let expected = [
        ("cluster", "", "c"),
        ("listener", "", ""),
        ("virtual_hosts", "*", ""),
        ("trust", "t", ""),
        ("endpoints", "e", "e"),
    ];
    let expected = expected.map(|(k, n, v)| (k, n.to_owned(), v.to_owned()));
    assert_eq!(summary, expected);
    let nodes: Vec<_> = requests.iter().filter(|r| r.node.is_some()).collect();
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0], &requests[0]);
}

#[test]
fn what_nobody_asked_for_is_passed_over_and_an_unknown_kind_is_refused() {
    let mut scene = Scene::new();
    let applied = scene.receive(TypeUrl::Endpoints, vec![endpoints("surprise")], &[]);
    assert!(applied.is_empty());
    let response = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/unknown".into(),
        nonce: "n".into(),
        ..Default::default()
    };
    let requests = scene.subscriber.receive(response, &mut scene.fake);
    assert_eq!(requests.len(), 1);
    assert!(requests[0].error_detail.is_some());
}

#[test]
fn a_removal_that_comes_when_nobody_asks_any_more_is_no_answer_to_a_later_question() {
    let mut scene = Scene::new();
    scene.receive(TypeUrl::Cluster, vec![cluster("c", "e", None)], &[]);
    scene.receive(TypeUrl::Endpoints, vec![endpoints("e")], &[]);
    scene.receive(TypeUrl::Cluster, vec![], &["c"]);
    assert_eq!(scene.wants(), set(&["-endpoints e"]));
    // The control plane took the acknowledgement, and said this before it read that nobody asks.
    scene.receive(TypeUrl::Endpoints, vec![], &["e"]);
    let applied = scene.receive(TypeUrl::Cluster, vec![cluster("c", "e", None)], &[]);
    assert_eq!(scene.wants(), set(&["+endpoints e"]));
    assert!(
        applied.is_empty(),
        "its endpoints are not there: {applied:?}"
    );
}

#[test]
fn what_could_not_be_applied_is_not_said_to_be_there_on_a_new_stream() {
    let mut scene = Scene::new();
    scene.fake.fails = Some("l");
    scene.receive(TypeUrl::Routes, vec![], &[]);
    scene.receive(TypeUrl::Listener, vec![http_listener("l", "t")], &[]);
    scene.receive(TypeUrl::Routes, vec![], &["t"]);
    let requests = scene.subscriber.begin(Node::default());
    let of_kind = requests
        .iter()
        .find(|r| r.type_url == TypeUrl::Listener.as_str());
    let known = &of_kind.unwrap().initial_resource_versions;
    assert!(known.is_empty(), "{known:?}");
}

#[test]
fn what_follows_from_a_response_is_asked_for_before_it_is_acknowledged() {
    let mut subscriber = Subscriber::default();
    subscriber.begin(Node::default());
    let (name, any) = cluster("c", "e", None);
    let response = DeltaDiscoveryResponse {
        type_url: TypeUrl::Cluster.as_str().to_owned(),
        nonce: "n".to_owned(),
        resources: vec![Resource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(any),
            ..Default::default()
        }],
        ..Default::default()
    };
    let requests = subscriber.receive(response, &mut Fake::default());
    let kinds: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(
        kinds,
        [TypeUrl::Endpoints.as_str(), TypeUrl::Cluster.as_str()]
    );
}
