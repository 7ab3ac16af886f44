//! Why a service is shared, or the first thing in the way.

use meshfed_federation::difference::Sharing;
use meshfed_federation::discovery::extension::{Health, Report};
use meshfed_federation::explain::{Explanation, explain_export, explain_import};
use meshfed_federation::names::ServiceKey;
use meshfed_federation::world::ObjectKey;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::lab::{Lab, going, red_and_green};
use crate::properties::{lab, pick, red, services};

const SYSTEM: &str = "red-mesh-system";
const HOME: &str = "red-mesh-bookinfo";

fn export(lab: &Lab, namespace: &str, name: &str) -> Explanation {
    let key = ServiceKey::parse(namespace, name).unwrap();
    explain_export(
        &lab.world,
        &lab.plan(),
        &key,
        &"green-mesh".parse().unwrap(),
    )
}

fn import(lab: &Lab, name: &str, namespace: &str) -> Explanation {
    let key = ServiceKey::parse(namespace, name).unwrap();
    explain_import(&lab.world, &lab.plan(), &key, &"red-mesh".parse().unwrap())
}

fn set(kind: &str, mesh: &str, peer: &str, list: &str, rules: Value) -> Value {
    json!({
        "kind": kind,
        "metadata": {"name": peer, "namespace": format!("{mesh}-system")},
        "spec": {list: rules},
    })
}

fn export_rules(red: &mut Lab, rules: Value) {
    red.apply_json(set(
        "ExportedServiceSet",
        "red-mesh",
        "green-mesh",
        "exportRules",
        rules,
    ));
}

fn import_rules(green: &mut Lab, rules: Value) {
    green.apply_json(set(
        "ImportedServiceSet",
        "green-mesh",
        "red-mesh",
        "importRules",
        rules,
    ));
}

/// What stands in the way of ratings' export after a change.
fn in_the_way(change: impl FnOnce(&mut Lab)) -> String {
    let (mut red, _) = red_and_green();
    change(&mut red);
    let said = export(&red, HOME, "ratings");
    let obstacle = said.obstacle.expect("something is in the way");
    let command = obstacle.command.unwrap_or_default();
    let shared = if said.shared { " (exported)" } else { "" };
    format!(
        "{}{shared}: {}\n=> {}\n$ {command}",
        obstacle.reason, obstacle.message, obstacle.remedy
    )
}

/// The same of its import.
fn in_the_way_of_import(change: impl FnOnce(&mut Lab)) -> String {
    let (_, mut green) = red_and_green();
    change(&mut green);
    let said = import(&green, "red-ratings", "bookinfo");
    let obstacle = said.obstacle.expect("something is in the way");
    let command = obstacle.command.unwrap_or_default();
    let shared = if said.shared { " (imported)" } else { "" };
    format!(
        "{}{shared}: {}\n=> {}\n$ {command}",
        obstacle.reason, obstacle.message, obstacle.remedy
    )
}

#[test]
fn a_service_that_is_exported_with_its_names_and_its_path() {
    let (red, _) = red_and_green();
    let said = export(&red, HOME, "ratings");
    assert!(said.shared && said.obstacle.is_none());
    insta::assert_snapshot!(said);
    insta::assert_json_snapshot!(said);
}

#[test]
fn a_service_that_is_imported_with_its_names_and_its_path() {
    let (_, green) = red_and_green();
    let said = import(&green, "red-ratings", "bookinfo");
    assert!(said.shared && said.obstacle.is_none());
    insta::assert_snapshot!(said);
}

#[test]
fn colours_are_there_when_they_are_asked_for() {
    let (red, _) = red_and_green();
    let said = export(&red, HOME, "ratings");
    assert!(format!("{said:#}").contains("\x1b[32mis exported\x1b[0m"));
    assert!(!said.to_string().contains('\x1b'));
}

#[test]
fn every_rule_says_what_came_of_it() {
    let (mut red, _) = red_and_green();
    export_rules(
        &mut red,
        json!([
            {"type": "NameSelector", "nameSelector": {"namespace": "elsewhere", "name": "ratings"}},
            {"type": "LabelSelector", "labelSelector": {"selector": {
                "matchLabels": {"share": "yes"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]},
                "aliases": [{"namespace": "*", "name": "x", "alias": {"namespace": "y"}}]}},
            {"type": "NameSelector", "nameSelector": {"name": "rating"}},
            {"type": "NameSelector", "nameSelector": {"name": "*", "alias": {"namespace": "shop"}}},
            {"type": "NameSelector", "nameSelector": {}},
        ]),
    );
    insta::assert_snapshot!(export(&red, HOME, "ratings"));
}

#[test]
fn a_rule_that_cannot_be_read_ends_its_set() {
    insta::assert_snapshot!(in_the_way(|red| export_rules(
        red,
        json!([
            {"type": "NameSelector", "nameSelector": {"name": "other"}},
            {"type": "Selector"},
            {"type": "NameSelector", "nameSelector": {"name": "ratings"}},
        ])
    )));
    let (mut red, _) = red_and_green();
    export_rules(
        &mut red,
        json!([{"type": "Selector"}, {"type": "NameSelector", "nameSelector": {}}]),
    );
    insta::assert_snapshot!(export(&red, HOME, "ratings"));
}

#[test]
fn a_namespace_or_a_service_that_is_not_there() {
    let (red, _) = red_and_green();
    insta::assert_snapshot!(export(&red, "nowhere", "ratings"));
    insta::assert_snapshot!(export(&red, HOME, "rating"));
}

#[test]
fn a_service_that_goes_or_has_no_port() {
    insta::assert_snapshot!(in_the_way(|red| {
        red.edit_service(HOME, "ratings", |service| going(&mut service.metadata));
    }));
    insta::assert_snapshot!(in_the_way(|red| {
        red.edit_service(HOME, "ratings", |service| {
            service.spec.as_mut().unwrap().type_ = Some("ExternalName".to_owned());
        });
    }));
}

#[test]
fn a_namespace_that_is_no_member() {
    let roll = ObjectKey::new(SYSTEM, "default");
    insta::assert_snapshot!(in_the_way(|red| {
        red.apply_json(json!({
            "kind": "ServiceMeshMemberRoll",
            "metadata": {"name": "default", "namespace": SYSTEM},
            "spec": {"members": []},
        }));
    }));
    insta::assert_snapshot!(in_the_way(|red| red.delete(|r| &mut r.member_rolls, &roll)));
    let (mut red, _) = red_and_green();
    red.service(SYSTEM, "ratings", json!({}));
    red.apply_json(json!({"kind": "Namespace", "metadata": {"name": SYSTEM}}));
    let said = export(&red, SYSTEM, "ratings").obstacle.unwrap();
    assert_eq!(said.reason, "SystemNamespace");
}

#[test]
fn a_service_that_is_hidden_from_the_control_plane() {
    let hide = |labels: bool| {
        in_the_way(|red| {
            red.edit_service(HOME, "ratings", |service| {
                let entry = ("networking.istio.io/exportTo".to_owned(), ".".to_owned());
                let metadata = &mut service.metadata;
                if labels {
                    metadata.labels.get_or_insert_default().extend([entry]);
                } else {
                    metadata.annotations.get_or_insert_default().extend([entry]);
                }
            });
        })
    };
    insta::assert_snapshot!(hide(false));
    assert!(hide(true).contains("label service ratings"));
}

#[test]
fn a_mesh_a_peer_or_a_set_that_is_not_there() {
    let key = ObjectKey::new(SYSTEM, "green-mesh");
    insta::assert_snapshot!(in_the_way(|red| {
        red.delete(
            |r| &mut r.control_planes,
            &ObjectKey::new(SYSTEM, "red-mesh"),
        );
    }));
    insta::assert_snapshot!(in_the_way(|red| red.delete(|r| &mut r.peers, &key)));
    insta::assert_snapshot!(in_the_way(|red| red.delete(|r| &mut r.exports, &key)));
    insta::assert_snapshot!(in_the_way(|red| export_rules(red, json!([]))));
}

#[test]
fn a_peer_that_cannot_be_used() {
    let root = ObjectKey::new(SYSTEM, "green-mesh-ca-root-cert");
    insta::assert_snapshot!(in_the_way(|red| red.delete(|r| &mut r.config_maps, &root)));
    insta::assert_snapshot!(in_the_way(|red| {
        red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    }));
    insta::assert_snapshot!(in_the_way(|red| {
        red.edit_peer("green-mesh", |peer| going(&mut peer.metadata));
    }));
}

#[test]
fn a_gateway_that_is_missing_or_has_no_address() {
    insta::assert_snapshot!(in_the_way(|red| {
        red.edit_peer("green-mesh", |peer| {
            peer.spec.gateways.ingress.name = "in".to_owned()
        });
    }));
    // An egress gateway lets nobody in.
    let egress = in_the_way(|red| {
        red.edit_peer("green-mesh", |peer| {
            peer.spec.gateways.ingress.name = "egress-green-mesh".to_owned();
        });
    });
    assert!(egress.starts_with("GatewayMissing"), "{egress}");
    let service = ObjectKey::new(SYSTEM, "ingress-green-mesh");
    insta::assert_snapshot!(in_the_way(|red| red.delete(|r| &mut r.services, &service)));
}

#[test]
fn a_name_that_an_older_service_has() {
    insta::assert_snapshot!(
        in_the_way(|red| export_rules(
            red,
            json!([
                {"type": "NameSelector", "nameSelector": {"namespace": HOME,
                    "alias": {"namespace": "shop", "name": "one"}}},
            ])
        ))
        .replace("reviews", "<the older>")
        .replace("details", "<the older>")
    );
}

#[test]
fn what_is_exported_and_not_reached_all_the_same() {
    insta::assert_snapshot!(in_the_way(|red| {
        red.world.observed.insert_gateway(
            "ingress-green-mesh",
            meshfed_federation::world::GatewayState {
                ready: false,
                refused: None,
            },
        );
    }));
    insta::assert_snapshot!(in_the_way(|red| {
        red.world
            .observed
            .insert_peer("green-mesh", Default::default());
    }));
    let slice = ObjectKey::new(HOME, "ratings-mesh");
    insta::assert_snapshot!(in_the_way(
        |red| red.delete(|r| &mut r.endpoint_slices, &slice)
    ));
}

#[test]
fn a_service_that_the_peer_does_not_export() {
    let (_, green) = red_and_green();
    insta::assert_snapshot!(import(&green, "rating", "bookinfo"));
}

#[test]
fn an_import_that_no_set_or_rule_picks() {
    let key = ObjectKey::new("green-mesh-system", "red-mesh");
    insta::assert_snapshot!(in_the_way_of_import(
        |green| green.delete(|r| &mut r.imports, &key)
    ));
    insta::assert_snapshot!(in_the_way_of_import(|green| import_rules(green, json!([]))));
}

#[test]
fn an_import_by_labels_cannot_be_read() {
    insta::assert_snapshot!(in_the_way_of_import(|green| {
        import_rules(green, json!([{"type": "LabelSelector"}]));
    }));
}

#[test]
fn a_peer_that_was_never_heard_or_knows_nothing_of_us() {
    insta::assert_snapshot!(in_the_way_of_import(|green| {
        green
            .world
            .observed
            .insert_peer("red-mesh", Default::default());
    }));
    insta::assert_snapshot!(in_the_way_of_import(|green| {
        green.edit_remote("red-mesh", |remote| {
            remote.services = Default::default();
            remote.withdrawn = true;
        });
    }));
}

#[test]
fn an_import_whose_name_is_taken() {
    insta::assert_snapshot!(in_the_way_of_import(|green| {
        import_rules(
            green,
            json!([{"type": "NameSelector", "nameSelector": {
            "alias": {"namespace": "a", "name": "b"}}}]),
        );
        // Two services of the peer, one name: the first by namespace and name has it.
        let mut list = green.world.observed.peers["red-mesh"]
            .remote
            .services
            .to_list();
        for service in &mut list.services {
            if service.name == "red-ratings" {
                continue;
            }
            let host = service.hostname.replacen(&service.name, "aaa", 1);
            (service.name, service.hostname) = (
                "aaa".to_owned(),
                host.replace(&service.namespace, "bookinfo"),
            );
            service.namespace = "bookinfo".to_owned();
        }
        green.hears("red-mesh", &list);
    }));
}

#[test]
fn an_egress_gateway_that_is_missing() {
    insta::assert_snapshot!(in_the_way_of_import(|green| {
        green.edit_peer("red-mesh", |peer| {
            peer.spec.gateways.egress.name = "out".to_owned()
        });
    }));
}

#[test]
fn what_is_imported_from_a_peer_that_is_away_may_fail() {
    let said = in_the_way_of_import(|green| {
        green.edit_remote("red-mesh", |remote| remote.watch.connected = false);
    });
    let begin =
        "NotConnected (imported): red-mesh is not connected, so what it last exported is used";
    assert!(said.starts_with(begin), "{said}");
}

#[test]
fn a_service_without_a_ready_endpoint_in_the_other_mesh_is_in_nobodys_reach() {
    let (red, mut green) = red_and_green();
    let mut list = red.exports_to("green-mesh");
    for service in &mut list.services {
        service.health = Some(Health {
            ready_endpoints: 0,
            capacity: 3,
            draining: false,
        });
    }
    green.hears("red-mesh", &list);
    let said = import(&green, "red-ratings", "bookinfo");
    assert!(said.shared, "{said}");
    let obstacle = said.obstacle.unwrap();
    assert_eq!(obstacle.reason, "NoReadyEndpoint");
    assert!(
        obstacle.message.contains("none of its 3 endpoints"),
        "{obstacle:?}"
    );
    let only_there = obstacle.message.ends_with("callers get 503 at once");
    assert!(only_there, "{obstacle:?}");
    import_rules(
        &mut green,
        json!([{"type": "NameSelector", "importAsLocal": true,
            "nameSelector": {"alias": {"namespace": "bookinfo"}}}]),
    );
    let obstacle = import(&green, "red-ratings", "bookinfo").obstacle.unwrap();
    let under_our_name = obstacle.message.ends_with("under this name is called");
    assert!(under_our_name, "{obstacle:?}");
}

#[test]
fn an_import_as_local_says_whether_there_is_a_service_that_it_joins() {
    let (_, mut green) = red_and_green();
    import_rules(
        &mut green,
        json!([{"type": "NameSelector", "importAsLocal": true,
            "nameSelector": {"alias": {"namespace": "bookinfo"}}}]),
    );
    let said = import(&green, "red-ratings", "bookinfo").to_string();
    let alone = "there is no Service bookinfo/red-ratings here that shares in its calls";
    assert!(said.contains(alone), "{said}");
    green.service("bookinfo", "red-ratings", json!({}));
    let said = import(&green, "red-ratings", "bookinfo").to_string();
    assert!(
        said.contains("the service of this name here shares in its calls"),
        "{said}"
    );
}

#[test]
fn what_the_peer_says_of_an_export_is_said() {
    let (mut red, _) = red_and_green();
    let mut reason = |services: &[&str], imported: u32, error: Option<&str>| {
        let mut state = (*red.world.observed.peers["green-mesh"]).clone();
        let keys = services.iter();
        state.watchers[0].report = Some(Report {
            imported,
            services: (keys.map(|name| ServiceKey::parse("bookinfo", name).unwrap())).collect(),
            last_sync: None,
            error: error.map(str::to_owned),
        });
        red.world.observed.insert_peer("green-mesh", state);
        let said = export(&red, HOME, "ratings");
        assert!(said.shared, "{said}");
        said.obstacle.map(|o| o.reason)
    };
    assert_eq!(reason(&["red-ratings"], 1, None), None);
    assert_eq!(reason(&["red-ratings"], 1, Some("it is too long")), None);
    assert_eq!(reason(&["other"], 2, None), None, "it names only some");
    assert_eq!(reason(&["other"], 1, None).unwrap(), "NotImportedThere");
    let wrong = reason(&[], 0, Some("it is too long"));
    assert_eq!(wrong.unwrap(), "PeerReportsError");
}

#[test]
fn a_remedy_adds_to_a_list_that_is_not_there() {
    let said = in_the_way(|red| export_rules(red, json!([])));
    assert!(
        said.ends_with(
            "patch exportedserviceset green-mesh --type=merge -p '{\"spec\":{\"exportRules\":[\
             {\"type\":\"NameSelector\",\"nameSelector\":{\"namespace\":\"red-mesh-bookinfo\",\"name\":\"ratings\"}}]}}'"
        ),
        "{said}"
    );
    let said = in_the_way_of_import(|green| import_rules(green, json!([])));
    assert!(
        said.starts_with("NoRule: ") && said.contains("--type=merge"),
        "{said}"
    );
    let said = in_the_way(|red| {
        red.apply_json(json!({
            "kind": "ServiceMeshMemberRoll",
            "metadata": {"name": "default", "namespace": SYSTEM},
            "spec": {},
        }));
    });
    assert!(
        said.ends_with(
            "patch servicemeshmemberroll default --type=merge -p \
             '{\"spec\":{\"members\":[\"red-mesh-bookinfo\"]}}'"
        ),
        "{said}"
    );
}

#[test]
fn what_hides_a_service_is_named_be_it_annotation_label_or_both() {
    let hidden = |annotation: &str, label: &str| {
        let (mut red, _) = red_and_green();
        red.edit_service(HOME, "ratings", |service| {
            let mark = |value: &str| {
                [("networking.istio.io/exportTo".to_owned(), value.to_owned())].into()
            };
            service.metadata.annotations = Some(mark(annotation));
            service.metadata.labels = Some(mark(label));
        });
        export(&red, HOME, "ratings")
            .obstacle
            .map(|o| (o.message, o.command.unwrap()))
    };
    let away =
        |verb| format!("kubectl -n {HOME} {verb} service ratings networking.istio.io/exportTo-");
    let (annotation, label) = (away("annotate"), away("label"));
    assert_eq!(hidden("*", "*"), None);
    for (by_annotation, by_label, what, command) in [
        (
            "other",
            "*",
            "its annotation networking",
            annotation.clone(),
        ),
        ("*", "other", "its label networking", label.clone()),
        ("", ".", "its label networking", label.clone()),
        (
            ".",
            "other",
            "its annotation and its label networking",
            format!("{annotation} && {label}"),
        ),
    ] {
        let (message, said) = hidden(by_annotation, by_label).unwrap();
        assert!(message.starts_with(what), "{message}");
        assert_eq!(said, command);
    }
}

#[test]
fn imports_that_ended_by_silence_say_so() {
    let said = in_the_way_of_import(|green| {
        green.edit_peer("red-mesh", |peer| {
            let setting = (
                "meshfed.io/imports-outlive-contact".to_owned(),
                "1h".to_owned(),
            );
            peer.metadata.annotations = Some([setting].into());
        });
        green.edit_remote("red-mesh", |remote| {
            remote.watch.connected = false;
            remote.last_contact = Some("2027-10-05T10:00:00Z".parse().unwrap());
        });
    });
    let begin = "ImportsExpired: nothing was heard of red-mesh since 2027-10-05T10:00:00Z";
    assert!(said.starts_with(begin), "{said}");
}

#[test]
fn what_is_wrong_with_other_imports_is_not_said_of_this_one() {
    let (red, mut green) = red_and_green();
    let mut list = red.exports_to("green-mesh");
    let like = list.services[0].clone();
    for number in 0..20 {
        let mut more = like.clone();
        more.name = format!("a-{number}");
        more.hostname = format!("a-{number}.{}.svc.green-mesh-exports.local", more.namespace);
        more.accounts = vec!["elsewhere.local/ns/a/sa/b".to_owned()];
        list.services.push(more);
    }
    let mut last = list.services.pop().unwrap();
    last.accounts = like.accounts;
    last.ports = Vec::new();
    list.services.push(last);
    import_rules(
        &mut green,
        json!([{"type": "NameSelector", "nameSelector": {}}]),
    );
    green.hears("red-mesh", &list);
    let reason = |name: &str| {
        let obstacle = import(&green, name, &like.namespace).obstacle.unwrap();
        (obstacle.reason, obstacle.message)
    };
    let (foreign, message) = reason("a-18");
    assert_eq!(foreign, "ForeignAccounts");
    let begin = "none of its service accounts is in the peer's trust domain red-mesh.local";
    assert!(message.starts_with(begin), "{message}");
    assert_eq!(reason("a-19").0, "NoPort");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_explanation_says_what_the_plan_does(
        services in services(), picks in prop::collection::vec(pick(), 0..4),
    ) {
        let lab = lab(red(&services, &picks));
        let plan = lab.plan();
        let sharing = Sharing::of(&lab.world, &plan);
        let peer = "green-mesh".parse().unwrap();
        for namespace in ["a", "b", "c"] {
            for name in ["x", "y", "z"] {
                let key = ServiceKey::parse(namespace, name).unwrap();
                let said = explain_export(&lab.world, &plan, &key, &peer);
                let exported = sharing.exposed().any(|entry| {
                    entry.what.peer == "green-mesh" && entry.what.service == key.to_string()
                });
                prop_assert_eq!(said.shared, exported, "{}", said);
                prop_assert!(said.shared || said.obstacle.is_some(), "{}", said);
                let reason = said.obstacle.map(|o| o.reason).unwrap_or_default();
                prop_assert_ne!(reason, "NotImported");
            }
        }
    }

    #[test]
    fn an_explanation_of_an_import_says_what_the_plan_does(
        offers in prop::collection::btree_set(("[ab]", "[xyz]"), 0..6),
        picks in prop::collection::vec(pick(), 0..4),
    ) {
        use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
        let mut green = Lab::of_examples("green");
        let rules: Vec<Value> = picks.iter().map(crate::properties::rule).collect();
        import_rules(&mut green, json!(rules));
        let list = offers.iter().map(|(namespace, name)| Service {
            name: name.clone(),
            namespace: namespace.clone(),
            hostname: format!("{name}.{namespace}.svc.green-mesh-exports.local"),
            ports: vec![ServicePort { name: String::new(), port: 80, protocol: "HTTP".into() }],
            ..Service::default()
        });
        green.hears("red-mesh", &ServiceList::new(list.collect()));
        let sharing = Sharing::of(&green.world, &green.plan());
        for namespace in ["a", "b"] {
            for name in ["x", "y", "z"] {
                let said = import(&green, name, namespace);
                let host = format!("{name}.{namespace}.svc.green-mesh-exports.local");
                let imported = sharing.imported().any(|entry| entry.what.exported_name == host);
                prop_assert_eq!(said.shared, imported, "{}", said);
                let reason = said.obstacle.as_ref().map(|o| o.reason.as_str());
                prop_assert_ne!(reason, Some("NotImported"), "{}", said);
            }
        }
    }
}
