//! What the documents say about names and ways, from the client in one mesh to the endpoints in
//! another.

use std::sync::Arc;

use meshfed_federation::discovery::extension::Health;
use meshfed_federation::plan::{Plan, ProxyKey};
use meshfed_federation::world::ObjectKey;
use meshfed_proxy_config::{Network, ServerName, TcpTarget};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::meshes::{Membership, Meshes, created, subnet};
use crate::trace::Reached;

const RED: usize = 0;
const GREEN: usize = 1;
const BLUE: usize = 2;
const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// Three meshes that call each other by colour, each with the member namespace `bookinfo` and a
/// client in it.
fn three() -> Meshes {
    furnished(&[
        Membership::of("red", &[(GREEN, "green-mesh"), (BLUE, "blue-mesh")]),
        Membership::of("green", &[(RED, "red-mesh"), (BLUE, "blue-mesh")]),
        Membership::of("blue", &[(RED, "red-mesh"), (GREEN, "green-mesh")]),
    ])
}

fn furnished(members: &[Membership]) -> Meshes {
    let mut meshes = Meshes::new(members);
    for lab in &mut meshes.labs {
        let system = lab.system();
        lab.namespace("bookinfo");
        lab.apply_json(json!({
            "kind": "ServiceMeshMemberRoll",
            "metadata": {"name": "default", "namespace": system},
            "spec": {"members": ["bookinfo"]},
        }));
        lab.workload("bookinfo", "client", 30);
    }
    meshes
}

fn export(lab: &mut Lab, peer: &str, rules: Value) {
    let namespace = lab.system();
    lab.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": peer, "namespace": namespace},
        "spec": {"exportRules": rules},
    }));
}

fn import(lab: &mut Lab, peer: &str, spec: Value) {
    let namespace = lab.system();
    lab.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": peer, "namespace": namespace},
        "spec": spec,
    }));
}

fn everything() -> Value {
    json!([{"type": "NameSelector", "nameSelector": {}}])
}

/// Imports everything into `bookinfo`, joined to the local services.
fn joined() -> Value {
    json!({"importRules": [{"type": "NameSelector", "importAsLocal": true,
        "nameSelector": {"alias": {"namespace": "bookinfo"}}}]})
}

/// A service of `bookinfo` with these ports (name, number, name of the slice's port, target) and
/// the endpoints at these last numbers.
fn service(lab: &mut Lab, colour: &str, name: &str, spec: Value, targets: Value, last: &[u8]) {
    lab.apply_json(json!({
        "kind": "Service",
        "metadata": {"name": name, "namespace": "bookinfo"},
        "spec": spec,
    }));
    let endpoints = last
        .iter()
        .map(|last| json!({"addresses": [format!("{}.{last}", subnet(colour))]}));
    lab.apply_json(json!({
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "bookinfo",
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": targets,
        "endpoints": endpoints.collect::<Vec<_>>(),
    }));
}

/// `ratings` on 9080 with one endpoint.
fn ratings(lab: &mut Lab, colour: &str, last: u8) {
    let spec = json!({"ports": [{"name": "http", "port": 9080}]});
    let targets = json!([{"name": "http", "port": 9080}]);
    service(lab, colour, "ratings", spec, targets, &[last]);
}

fn at(mesh: usize, last: u8, port: u16) -> (usize, std::net::SocketAddr) {
    let address = format!("{}.{last}:{port}", subnet(COLOURS[mesh]));
    (mesh, address.parse().unwrap())
}

fn request(meshes: &Meshes, from: usize, authority: &str) -> Result<Reached, String> {
    let net = meshes.net();
    net.request(&net.sidecar(from, "bookinfo", "client-v1"), authority)
}

/// Reason and message of an imported set's Ready.
fn ready(plan: &Plan, set: &str) -> (String, String) {
    let mut all = plan.statuses.imports.iter();
    let (_, status) = all.find(|(key, _)| key.name == set).unwrap();
    let ready = &status.conditions[0];
    (
        ready.reason.clone().unwrap(),
        ready.message.clone().unwrap(),
    )
}

#[test]
fn each_mesh_has_a_name_of_its_own_at_its_peer() {
    let mut meshes = furnished(&[
        Membership::of("red", &[(GREEN, "partner")]),
        Membership::of("green", &[(RED, "acme")]),
    ]);
    ratings(&mut meshes.labs[RED], "red", 200);
    export(&mut meshes.labs[RED], "partner", everything());
    import(
        &mut meshes.labs[GREEN],
        "acme",
        json!({"importRules": everything()}),
    );
    meshes.settle();
    let shown = |plan: &Plan| {
        let exports = plan.statuses.exports.values();
        let imports = plan.statuses.imports.values();
        let exported = exports.flat_map(|s| s.exported_services.iter());
        let imported = imports.flat_map(|s| s.imported_services.iter());
        let exported = exported.map(|s| (&s.exported_name, &s.local_service.hostname));
        let imported = imported.map(|s| (&s.exported_name, &s.local_service.hostname));
        let both = exported.chain(imported);
        both.map(|(name, host)| format!("{name} = {host}"))
            .collect::<Vec<_>>()
    };
    let exported = "ratings.bookinfo.svc.partner-exports.local";
    assert_eq!(
        shown(&meshes.plans[RED]),
        [format!("{exported} = ratings.bookinfo.svc.cluster.local")]
    );
    assert_eq!(
        shown(&meshes.plans[GREEN]),
        [format!(
            "{exported} = ratings.bookinfo.svc.acme-imports.local"
        )]
    );
    assert_eq!(
        request(
            &meshes,
            GREEN,
            "ratings.bookinfo.svc.acme-imports.local:9080"
        ),
        Ok(Reached::from([at(RED, 200, 9080)]))
    );
    for name in ["partner-exports", "partner-imports", "red-mesh-imports"] {
        let authority = format!("ratings.bookinfo.svc.{name}.local:9080");
        assert!(request(&meshes, GREEN, &authority).is_err(), "{authority}");
    }
}

#[test]
fn a_local_service_that_imports_join_is_exported_with_its_own_endpoints_alone() {
    let mut meshes = three();
    for (mesh, colour) in COLOURS.iter().enumerate() {
        let lab = &mut meshes.labs[mesh];
        ratings(lab, colour, 200);
        for peer in ["red-mesh", "green-mesh", "blue-mesh"] {
            if peer != format!("{colour}-mesh") {
                export(lab, peer, everything());
                import(lab, peer, joined());
            }
        }
    }
    meshes.settle();
    let own = |mesh| at(mesh, 200, 9080);
    let all = Reached::from([own(RED), own(GREEN), own(BLUE)]);
    for mesh in [RED, GREEN, BLUE] {
        // Each reaches each once: nothing goes round by a third mesh or back to where it came from.
        let reached = request(&meshes, mesh, "ratings:9080");
        assert_eq!(reached, Ok(all.clone()));
        let plan = &meshes.plans[mesh];
        for exports in plan.exports.values() {
            let names: Vec<&str> = exports
                .values()
                .map(|s| s.shown().key.name.as_str())
                .collect();
            assert_eq!(names, ["ratings"]);
        }
    }
    // Blue takes green's service under a name of its own, and gets green's endpoints, not red's.
    import(
        &mut meshes.labs[BLUE],
        "green-mesh",
        json!({"importRules": everything()}),
    );
    meshes.settle();
    assert_eq!(
        request(
            &meshes,
            BLUE,
            "ratings.bookinfo.svc.green-mesh-imports.local:9080"
        ),
        Ok(Reached::from([own(GREEN)]))
    );
}

#[test]
fn an_import_is_never_exported_again() {
    let mut meshes = three();
    ratings(&mut meshes.labs[RED], "red", 200);
    export(&mut meshes.labs[RED], "green-mesh", everything());
    for rules in [json!({"importRules": everything()}), joined()] {
        import(&mut meshes.labs[GREEN], "red-mesh", rules);
        for peer in ["red-mesh", "blue-mesh"] {
            export(&mut meshes.labs[GREEN], peer, everything());
        }
        import(
            &mut meshes.labs[BLUE],
            "green-mesh",
            json!({"importRules": everything()}),
        );
        meshes.settle();
        let plan = &meshes.plans[GREEN];
        assert!(ready(plan, "red-mesh").1.starts_with("1 of 1"));
        assert!(plan.exports.values().all(|exports| exports.is_empty()));
        let blue = meshes.net().sidecar(BLUE, "bookinfo", "client-v1");
        assert!(meshes.net().authorities(&blue).is_empty());
    }
}

#[test]
fn each_port_leads_to_its_own_target_port_whatever_the_service_is_like() {
    let mut meshes = three();
    let red = &mut meshes.labs[RED];
    let ports = json!([
        {"name": "http-web", "port": 80, "targetPort": "web"},
        {"name": "tcp-db", "port": 5432, "targetPort": 15432},
        {"name": "udp", "port": 53, "protocol": "UDP"},
    ]);
    let targets = json!([
        {"name": "tcp-db", "port": 15432},
        {"name": "udp", "port": 53, "protocol": "UDP"},
        {"name": "http-web", "port": 8080},
    ]);
    service(
        red,
        "red",
        "many",
        json!({"ports": ports}),
        targets.clone(),
        &[201, 202],
    );
    let headless = json!({"clusterIP": "None", "ports": ports});
    service(red, "red", "headless", headless, targets.clone(), &[203]);
    service(
        red,
        "red",
        "empty",
        json!({"ports": ports}),
        targets.clone(),
        &[],
    );
    service(
        red,
        "red",
        "only-udp",
        json!({"ports": [{"port": 53, "protocol": "UDP"}]}),
        targets,
        &[204],
    );
    export(red, "green-mesh", everything());
    import(
        &mut meshes.labs[GREEN],
        "red-mesh",
        json!({"importRules": everything(), "domainSuffix": "shop.example"}),
    );
    meshes.settle();
    let reach = |authority: &str| request(&meshes, GREEN, authority);
    for authority in [
        "many.bookinfo.shop.example",
        "many.bookinfo.shop.example:80",
    ] {
        let web = Reached::from([at(RED, 201, 8080), at(RED, 202, 8080)]);
        assert_eq!(reach(authority), Ok(web));
    }
    let databases = Reached::from([at(RED, 201, 15432), at(RED, 202, 15432)]);
    assert_eq!(reach("many.bookinfo.shop.example:5432"), Ok(databases));
    assert_eq!(
        reach("headless.bookinfo.shop.example:5432"),
        Ok(Reached::from([at(RED, 203, 15432)]))
    );
    assert_eq!(reach("empty.bookinfo.shop.example"), Ok(Reached::new()));
    assert!(reach("many.bookinfo.shop.example:53").is_err());
    assert!(reach("only-udp.bookinfo.shop.example:53").is_err());
    let known = &meshes.labs[GREEN].world.observed.peers["red-mesh"]
        .remote
        .services;
    let protocols: Vec<String> = known
        .iter()
        .flat_map(|s| {
            s.ports
                .iter()
                .map(move |p| format!("{} {} {}", s.key.name, p.number, p.protocol))
        })
        .filter(|text| text.starts_with("many"))
        .collect();
    assert_eq!(protocols, ["many 80 HTTP", "many 5432 TCP"]);
}

#[test]
fn a_service_follows_its_rules_through_all_states_of_coming_and_going() {
    let mut meshes = three();
    export(
        &mut meshes.labs[RED],
        "green-mesh",
        json!([{"type": "NameSelector", "nameSelector": {"namespace": "later", "name": "ratings"}}]),
    );
    import(
        &mut meshes.labs[GREEN],
        "red-mesh",
        json!({"importRules": [{"type": "NameSelector", "nameSelector": {"name": "ratings"}}]}),
    );
    let authority = "ratings.later.svc.red-mesh-imports.local:9080";
    let mut reached = Vec::new();
    let mut look = |meshes: &mut Meshes| {
        meshes.settle();
        reached.push(request(meshes, GREEN, authority).ok().map(|r| r.len()));
    };
    look(&mut meshes); // Nothing of it is there.
    let service = json!({
        "kind": "Service",
        "metadata": {"name": "ratings", "namespace": "later"},
        "spec": {"ports": [{"name": "http", "port": 9080}], "selector": {"app": "ratings"}},
    });
    meshes.labs[RED].namespace("later");
    meshes.labs[RED].apply_json(service.clone());
    look(&mut meshes); // Its namespace is no member yet.
    meshes.labs[RED].apply_json(json!({
        "kind": "ServiceMeshMember",
        "metadata": {"name": "default", "namespace": "later"},
        "spec": {"controlPlaneRef": {"name": "red-mesh", "namespace": "red-mesh-system"}},
    }));
    look(&mut meshes); // It has no endpoint yet.
    meshes.labs[RED].workload("later", "ratings", 200);
    look(&mut meshes); // All is there.
    let key = ObjectKey::new("later", "ratings");
    let services = &mut meshes.labs[RED].world.resources.services;
    let present = services.get_mut(&key).unwrap();
    crate::lab::going(&mut std::sync::Arc::make_mut(present).metadata);
    look(&mut meshes); // It is being deleted.
    meshes.labs[RED].delete(|r| &mut r.services, &key);
    look(&mut meshes); // It is gone.
    meshes.labs[RED].apply_json(service);
    look(&mut meshes); // It is back.
    assert_eq!(reached, [None, None, Some(0), Some(1), None, None, Some(1)]);
}

#[test]
fn of_two_peers_that_would_give_one_name_the_older_keeps_it_whatever_else_changes() {
    let mut red = Membership::of("red", &[(GREEN, "zebra"), (BLUE, "aardvark")]);
    red.peerings[0].created = 1;
    red.peerings[1].created = 2;
    let mut meshes = furnished(&[
        red,
        Membership::of("green", &[(RED, "red-mesh")]),
        Membership::of("blue", &[(RED, "red-mesh")]),
    ]);
    for (mesh, colour) in [(GREEN, "green"), (BLUE, "blue")] {
        ratings(&mut meshes.labs[mesh], colour, 200);
        export(&mut meshes.labs[mesh], "red-mesh", everything());
    }
    let shared = json!({"importRules": everything(), "domainSuffix": "shop.example"});
    // The set of the younger peer is the older one.
    import(&mut meshes.labs[RED], "aardvark", shared.clone());
    import(&mut meshes.labs[RED], "zebra", shared.clone());
    let check = |meshes: &mut Meshes| {
        meshes.settle();
        let name = "ratings.bookinfo.shop.example:9080";
        let green = Reached::from([at(GREEN, 200, 9080)]);
        assert_eq!(request(meshes, RED, name), Ok(green));
        assert_eq!(ready(&meshes.plans[RED], "zebra").0, "RulesApplied");
        let (reason, message) = ready(&meshes.plans[RED], "aardvark");
        assert_eq!(reason, "NotImported");
        assert!(
            message.starts_with(
                "bookinfo/ratings: ratings.bookinfo.shop.example is already the name of \
                 bookinfo/ratings of zebra"
            ),
            "{message}"
        );
    };
    check(&mut meshes);
    // Made again, the set of the winner is the youngest object of all.
    let key = ObjectKey::new("red-mesh-system", "zebra");
    meshes.labs[RED].delete(|r| &mut r.imports, &key);
    import(&mut meshes.labs[RED], "zebra", shared);
    check(&mut meshes);
    // The peers export more, and less, under other names.
    for (mesh, name) in [(GREEN, "a"), (BLUE, "b")] {
        meshes.labs[mesh].service("bookinfo", name, json!({}));
        check(&mut meshes);
    }
    ratings(&mut meshes.labs[RED], "red", 201);
    check(&mut meshes);
}

#[test]
fn endpoints_of_several_peers_and_of_a_local_service_answer_under_one_local_name() {
    let mut meshes = three();
    for (mesh, colour) in [(GREEN, "green"), (BLUE, "blue")] {
        ratings(&mut meshes.labs[mesh], colour, 200);
        export(&mut meshes.labs[mesh], "red-mesh", everything());
    }
    let mut located = joined();
    located["locality"] = json!({"region": "us-west", "zone": "a", "subzone": "1"});
    import(&mut meshes.labs[RED], "green-mesh", located);
    meshes.settle();
    let name = "ratings.bookinfo.svc.cluster.local:9080";
    let reach = |meshes: &Meshes| request(meshes, RED, name).unwrap();
    assert_eq!(reach(&meshes), Reached::from([at(GREEN, 200, 9080)]));
    import(&mut meshes.labs[RED], "blue-mesh", joined());
    meshes.settle();
    let both = Reached::from([at(GREEN, 200, 9080), at(BLUE, 200, 9080)]);
    assert_eq!(reach(&meshes), both);
    ratings(&mut meshes.labs[RED], "red", 200);
    meshes.settle();
    let mut all = both;
    all.insert(at(RED, 200, 9080));
    assert_eq!(reach(&meshes), all);
    let net = meshes.net();
    let client = net.sidecar(RED, "bookinfo", "client-v1");
    let endpoints = &client.config.endpoints["outbound|9080||ratings.bookinfo.svc.cluster.local"];
    let places: Vec<(&str, &str, &str)> = endpoints
        .localities
        .iter()
        .map(|l| &l.locality)
        .map(|l| (l.region.as_str(), l.zone.as_str(), l.subzone.as_str()))
        .collect();
    // Without a locality of their own: the local endpoint and the peer's whose set names none.
    assert_eq!(places, [("", "", ""), ("us-west", "a", "1")]);
    // Red still has what is its own when a peer takes its back.
    export(&mut meshes.labs[GREEN], "red-mesh", json!([]));
    meshes.settle();
    all.remove(&at(GREEN, 200, 9080));
    assert_eq!(reach(&meshes), all);
}

#[test]
fn peers_behind_one_egress_gateway_share_a_local_name_too() {
    let mut red = Membership::of("red", &[(GREEN, "green-mesh"), (BLUE, "blue-mesh")]);
    red.peerings[1].created = 1;
    red.shared_gateways = true;
    let mut meshes = furnished(&[
        red,
        Membership::of("green", &[(RED, "red-mesh")]),
        Membership::of("blue", &[(RED, "red-mesh")]),
    ]);
    for (mesh, colour) in [(GREEN, "green"), (BLUE, "blue")] {
        ratings(&mut meshes.labs[mesh], colour, 200);
        export(&mut meshes.labs[mesh], "red-mesh", everything());
    }
    import(&mut meshes.labs[RED], "green-mesh", joined());
    meshes.settle();
    let (green, blue) = (at(GREEN, 200, 9080), at(BLUE, 200, 9080));
    let reached = |meshes: &Meshes| request(meshes, RED, "ratings:9080");
    assert_eq!(reached(&meshes), Ok(Reached::from([green])));
    assert_eq!(shared(&meshes.plans[RED]), []);

    import(&mut meshes.labs[RED], "blue-mesh", joined());
    meshes.settle();
    assert_eq!(reached(&meshes), Ok(Reached::from([green, blue])));
    let (reason, _) = ready(&meshes.plans[RED], "blue-mesh");
    assert_eq!(reason, "RulesApplied");
    let hidden = |peer: &str| format!("outbound_.9080_._.ratings.bookinfo.svc.{peer}.remote");
    let both = |green: u32, blue: u32| {
        let all = [(hidden("green-mesh"), green), (hidden("blue-mesh"), blue)];
        all.map(|(name, weight)| (Arc::from(name), weight))
    };
    assert_eq!(shared(&meshes.plans[RED]), both(1, 1));
    // To our workloads, the gateway is one endpoint.
    let endpoints = |meshes: &Meshes| {
        let net = meshes.net();
        let client = net.sidecar(RED, "bookinfo", "client-v1");
        let all = &client.config.endpoints["outbound|9080||ratings.bookinfo.svc.cluster.local"];
        all.localities
            .iter()
            .map(|l| l.endpoints.len())
            .sum::<usize>()
    };
    assert_eq!(endpoints(&meshes), 1);

    // Each gets its share by what it has, and one that drains nothing while there is the other.
    let fares = |meshes: &mut Meshes, mesh: usize, ready_endpoints: u32, draining: bool| {
        let mut list = meshes.labs[mesh].exports_to("red-mesh");
        for service in &mut list.services {
            service.health = Some(Health {
                ready_endpoints,
                capacity: 9,
                draining,
            });
        }
        let red = &mut meshes.labs[RED];
        red.hears(&format!("{}-mesh", COLOURS[mesh]), &list);
        red.plan()
    };
    fares(&mut meshes, GREEN, 5, false);
    let plan = fares(&mut meshes, BLUE, 2, false);
    assert_eq!(shared(&plan), both(5, 2));
    let plan = fares(&mut meshes, BLUE, 2, true);
    assert_eq!(shared(&plan), both(5, 2)[..1]);
    let plan = fares(&mut meshes, GREEN, 0, false);
    assert_eq!(shared(&plan), both(5, 2)[1..]);

    // What is left of two is as if it had been alone.
    export(&mut meshes.labs[GREEN], "red-mesh", json!([]));
    meshes.settle();
    assert_eq!(reached(&meshes), Ok(Reached::from([blue])));
    assert_eq!(shared(&meshes.plans[RED]), []);
}

/// What the connections for the port of ratings are spread over at red's egress gateway.
fn shared(plan: &Plan) -> Vec<(Arc<str>, u32)> {
    let egress = plan.proxies.iter().find_map(|(key, config)| match key {
        ProxyKey::Gateway(name) if name.starts_with("egress") => Some(config),
        _ => None,
    });
    let chains = egress.unwrap().listeners.values().flat_map(|l| &l.chains);
    let mut found = chains.filter_map(|chain| match &chain.network {
        Network::Tcp(tcp) => match &tcp.target {
            TcpTarget::Weighted(all) => Some((&chain.server_names, all.clone())),
            _ => None,
        },
        Network::Http(_) => None,
    });
    let Some((names, all)) = found.next() else {
        return Vec::new();
    };
    let host = "ratings.bookinfo.svc.cluster.local";
    let asked = [format!("outbound_.9080_._.{host}"), host.to_owned()];
    assert_eq!(*names, asked.map(ServerName::Exact));
    all
}

#[test]
fn nothing_joins_a_namespace_that_is_no_member() {
    let mut meshes = three();
    ratings(&mut meshes.labs[GREEN], "green", 200);
    export(&mut meshes.labs[GREEN], "red-mesh", everything());
    let red = &mut meshes.labs[RED];
    red.namespace("elsewhere");
    import(
        red,
        "green-mesh",
        json!({"importRules": [{"type": "NameSelector", "importAsLocal": true,
            "nameSelector": {"alias": {"namespace": "elsewhere"}}}]}),
    );
    meshes.settle();
    let name = "ratings.elsewhere.svc.cluster.local:9080";
    assert!(request(&meshes, RED, name).is_err());
    let (reason, message) = ready(&meshes.plans[RED], "green-mesh");
    assert_eq!(reason, "NotImported");
    assert!(message.contains("no member"), "{message}");
    // A member that does not exist yet is one: the name is there before the namespace.
    meshes.labs[RED].apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system",
            "creationTimestamp": created(0)},
        "spec": {"members": ["bookinfo", "elsewhere"]},
    }));
    let key = ObjectKey::new("", "elsewhere");
    meshes.labs[RED].delete(|r| &mut r.namespaces, &key);
    meshes.settle();
    let green = Reached::from([at(GREEN, 200, 9080)]);
    assert_eq!(request(&meshes, RED, name), Ok(green));
}
