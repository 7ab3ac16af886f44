//! The server as kube-rs sees it, in process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;
mod owners;
mod watches;

use std::{collections::BTreeMap, pin::pin, time::Duration};

use common::{eventually, start};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Event, Namespace, Secret, Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams, PropagationPolicy, WatchEvent, WatchParams,
    },
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _, reflector,
        watcher::{self, InitialListStrategy, watcher},
    },
};
use serde_json::{Value, json};

fn mk_config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": value}})).unwrap()
}

fn widgets(client: &Client, version: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("example.com", version, "Widget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "widgets");
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn mk_widget(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}))
    .unwrap()
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let made = api
        .create(&PostParams::default(), &mk_config_map("a", "1"))
        .await
        .unwrap();
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    assert_eq!(made.namespace().as_deref(), Some("default"));
    let error = api
        .create(&PostParams::default(), &mk_config_map("a", "1"))
        .await
        .unwrap_err();
    assert_eq!(code(&error), 409);

    let mut changed = made.clone();
    changed.data = Some(BTreeMap::from([("k".into(), "2".into())]));
    let replaced = api
        .replace("a", &PostParams::default(), &changed)
        .await
        .unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    let error = api
        .replace("a", &PostParams::default(), &changed)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(s) if s.reason == "Conflict"),
        "{error}"
    );

    let patch = json!({"data": {"k": null, "l": "3"}});
    let patched = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!(
        patched.data,
        Some(BTreeMap::from([("l".into(), "3".into())]))
    );
    let patch = json!({"metadata": {"finalizers": ["example.com/f"]}});
    api.patch("a", &PatchParams::default(), &Patch::Strategic(&patch))
        .await
        .unwrap();

    let deleted = api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(
        deleted
            .left()
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    let patch = json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}});
    let error = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap_err();
    assert_eq!(code(&error), 422);
    let patch = json!({"metadata": {"finalizers": null}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
    assert_eq!(
        code(&api.delete("a", &DeleteParams::default()).await.unwrap_err()),
        404
    );
}

#[tokio::test]
async fn two_versions_share_one_storage() {
    let s = start();
    let (v1, beta) = (widgets(&s.client, "v1"), widgets(&s.client, "v1beta1"));
    v1.create(&PostParams::default(), &mk_widget("w", &json!({"size": 3})))
        .await
        .unwrap();
    let seen = beta.get("w").await.unwrap();
    assert_eq!(
        seen.types.as_ref().unwrap().api_version,
        "example.com/v1beta1"
    );
    assert_eq!(seen.data["spec"], json!({"size": 3, "colour": "red"}));
}

#[tokio::test]
async fn generation_counts_intent_and_status_is_apart() {
    let s = start();
    let api = widgets(&s.client, "v1");
    let mut widget = mk_widget("w", &json!({"size": 3}));
    widget.data["status"] = json!({"ready": "no"});
    let made = api.create(&PostParams::default(), &widget).await.unwrap();
    assert_eq!(
        (made.meta().generation, made.data.get("status")),
        (Some(1), None)
    );

    let patch = Patch::Merge(json!({"spec": {"size": 4}, "status": {"ready": "yes"}}));
    let status = api
        .patch_status("w", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(status.data["spec"]["size"], 3);
    assert_eq!(status.data["status"]["ready"], "yes");
    assert_eq!(status.meta().generation, Some(1));

    let patch = Patch::Merge(json!({"spec": {"size": 4}, "status": {"ready": "no"}}));
    let main = api
        .patch("w", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        (&main.data["spec"]["size"], &main.data["status"]["ready"]),
        (&json!(4), &json!("yes"))
    );
    assert_eq!(main.meta().generation, Some(2));

    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let labelled = api
        .patch("w", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(labelled.meta().generation, Some(2));
    let again = api
        .patch("w", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        again.resource_version(),
        labelled.resource_version(),
        "nothing changed"
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_the_field() {
    let s = start();
    let api = widgets(&s.client, "v1");
    for (spec, field, message) in [
        (json!({}), "spec.size", "Required value"),
        (json!({"size": "x"}), "spec.size", "must be of type integer"),
        (json!({"size": 11}), "spec.size", "less than or equal to 10"),
        (
            json!({"size": 1, "colour": "blue"}),
            "spec.colour",
            "supported values: \"red\", \"green\"",
        ),
        (
            json!({"size": 9, "colour": "green"}),
            "spec.size",
            "green widgets are small",
        ),
        (
            json!({"size": 1, "parts": [{"name": "a"}, {"name": "a"}]}),
            "spec.parts[1]",
            "Duplicate value",
        ),
    ] {
        let error = api
            .create(&PostParams::default(), &mk_widget("w", &spec))
            .await
            .unwrap_err();
        let kube::Error::Api(status) = error else {
            panic!("{error}")
        };
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        let causes = status.details.unwrap().causes;
        assert_eq!(causes[0].field, field, "{spec}");
        assert!(causes[0].message.contains(message), "{causes:?}");
    }
    let services: Api<Service> = Api::default_namespaced(s.client.clone());
    for (spec, field) in [
        (json!({"ports": []}), "spec.ports"),
        (
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            "spec.ports[0].name",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "spec.ports[0].nodePort",
        ),
        (json!({"ports": [{"port": 70000}]}), "spec.ports[0].port"),
        (
            json!({"clusterIP": "x", "ports": [{"port": 80}]}),
            "spec.clusterIP",
        ),
    ] {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap();
        let error = services
            .create(&PostParams::default(), &service)
            .await
            .unwrap_err();
        let kube::Error::Api(status) = error else {
            panic!("{error}")
        };
        assert_eq!(status.details.unwrap().causes[0].field, field, "{spec}");
    }
}

#[tokio::test]
async fn immutable_fields_stay() {
    let s = start();
    let secrets: Api<Secret> = Api::default_namespaced(s.client.clone());
    let secret = json!({"metadata": {"name": "s"}, "immutable": true, "stringData": {"a": "b"}});
    let secret: Secret = serde_json::from_value(secret).unwrap();
    let made = secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    assert_eq!(made.data.unwrap()["a"].0, b"b");
    assert!(made.string_data.is_none());
    let patch = Patch::Merge(json!({"stringData": {"a": "c"}}));
    let error = secrets
        .patch("s", &PatchParams::default(), &patch)
        .await
        .unwrap_err();
    assert_eq!(code(&error), 422);

    let services: Api<Service> = Api::default_namespaced(s.client.clone());
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    let made = services
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
    let port = &made.spec.as_ref().unwrap().ports.as_ref().unwrap()[0];
    assert_eq!(port.protocol.as_deref(), Some("TCP"));
    assert!(port.target_port.is_some());
    let given = Patch::Merge(json!({"spec": {"clusterIP": "10.0.0.1"}}));
    services
        .patch("s", &PatchParams::default(), &given)
        .await
        .unwrap();
    let other = Patch::Merge(json!({"spec": {"clusterIP": "10.0.0.2"}}));
    let error = services
        .patch("s", &PatchParams::default(), &other)
        .await
        .unwrap_err();
    assert_eq!(code(&error), 422);
    // What was allocated is kept when a replacement leaves it out.
    let mut plain = service;
    plain.metadata.resource_version = services.get("s").await.unwrap().resource_version();
    let replaced = services
        .replace("s", &PostParams::default(), &plain)
        .await
        .unwrap();
    assert_eq!(
        replaced.spec.unwrap().cluster_ip.as_deref(),
        Some("10.0.0.1")
    );
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let s = start();
    let namespaces: Api<Namespace> = Api::all(s.client.clone());
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    let made = namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Active"));
    let maps: Api<ConfigMap> = Api::namespaced(s.client.clone(), "team");
    maps.create(&PostParams::default(), &mk_config_map("plain", "1"))
        .await
        .unwrap();
    let mut held = mk_config_map("held", "1");
    held.finalizers_mut().push("example.com/hold".into());
    maps.create(&PostParams::default(), &held).await.unwrap();
    let deleted = namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    let status = deleted.left().unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Terminating"));
    let error = maps
        .create(&PostParams::default(), &mk_config_map("late", "1"))
        .await
        .unwrap_err();
    assert_eq!(code(&error), 403);
    eventually("the plain map is deleted", async || {
        maps.get_opt("plain").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(namespaces.get_opt("team").await.unwrap().is_some());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually("the namespace is gone", async || {
        namespaces
            .get_opt("team")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    let error = maps
        .create(&PostParams::default(), &mk_config_map("late", "1"))
        .await
        .unwrap_err();
    assert_eq!(code(&error), 404);
}

#[tokio::test]
async fn dependents_go_with_their_owner_as_the_policy_says() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    for policy in [
        PropagationPolicy::Background,
        PropagationPolicy::Foreground,
        PropagationPolicy::Orphan,
    ] {
        let owner = api
            .create(&PostParams::default(), &mk_config_map("owner", "1"))
            .await
            .unwrap();
        let mut child = mk_config_map("child", "1");
        child.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: "owner".into(),
            uid: owner.uid().unwrap(),
            ..OwnerReference::default()
        }]);
        api.create(&PostParams::default(), &child).await.unwrap();
        let params = DeleteParams {
            propagation_policy: Some(policy.clone()),
            ..DeleteParams::default()
        };
        api.delete("owner", &params).await.unwrap();
        eventually("the owner is gone", async || {
            api.get_opt("owner").await.unwrap().is_none().then_some(())
        })
        .await;
        if matches!(policy, PropagationPolicy::Orphan) {
            let child = api.get("child").await.unwrap();
            assert!(child.owner_references().is_empty());
            api.delete("child", &DeleteParams::default()).await.unwrap();
        } else {
            eventually("the child is gone", async || {
                api.get_opt("child").await.unwrap().is_none().then_some(())
            })
            .await;
        }
    }
    // An owner that never was.
    let mut lost = mk_config_map("lost", "1");
    lost.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "nobody".into(),
        uid: "0123abcd-0000-4000-8000-00000000beef".into(),
        ..OwnerReference::default()
    }]);
    api.create(&PostParams::default(), &lost).await.unwrap();
    eventually("the lost child is gone", async || {
        api.get_opt("lost").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_are_one_storage_under_two_groups() {
    let s = start();
    let core: Api<Event> = Api::default_namespaced(s.client.clone());
    let events: Api<k8s_openapi::api::events::v1::Event> =
        Api::default_namespaced(s.client.clone());
    let event = serde_json::from_value(json!({
        "metadata": {"name": "e"}, "eventTime": "2026-11-21T00:00:00.000000Z", "action": "Act",
        "reason": "Because", "note": "said", "type": "Normal", "reportingController": "c", "reportingInstance": "i",
        "regarding": {"kind": "Widget", "name": "w", "namespace": "default"}}))
    .unwrap();
    events.create(&PostParams::default(), &event).await.unwrap();
    let seen = core.get("e").await.unwrap();
    assert_eq!(seen.message.as_deref(), Some("said"));
    assert_eq!(seen.involved_object.name.as_deref(), Some("w"));
    let selected = ListParams::default().fields("involvedObject.name=w,involvedObject.kind=Widget");
    assert_eq!(core.list(&selected).await.unwrap().items.len(), 1);
    assert_eq!(
        events.list(&selected).await.unwrap().items[0]
            .note
            .as_deref(),
        Some("said")
    );
    let other = ListParams::default().fields("involvedObject.name=x");
    assert!(core.list(&other).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_preconditions_hold() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let made = api.create(&dry, &mk_config_map("a", "1")).await.unwrap();
    assert!(made.uid().is_some());
    assert!(api.get_opt("a").await.unwrap().is_none());
    let made = api
        .create(&PostParams::default(), &mk_config_map("a", "1"))
        .await
        .unwrap();
    api.delete("a", &DeleteParams::default().dry_run())
        .await
        .unwrap();
    let wrong = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: Some("0123abcd-0000-4000-8000-00000000beef".into()),
        resource_version: None,
    });
    assert_eq!(code(&api.delete("a", &wrong).await.unwrap_err()), 409);
    let right = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: made.uid(),
        resource_version: made.resource_version(),
    });
    api.delete("a", &right).await.unwrap();
}

#[tokio::test]
async fn generated_names_differ() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"generateName": "m-"}})).unwrap();
    let first = api
        .create(&PostParams::default(), &map)
        .await
        .unwrap()
        .name_any();
    let second = api
        .create(&PostParams::default(), &map)
        .await
        .unwrap()
        .name_any();
    assert!(first.starts_with("m-") && first.len() == 7 && first != second);
}

#[tokio::test]
async fn what_was_stored_before_a_rule_existed_can_still_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut lax = common::options(dir.path());
    let mut strict = lax.clone();
    for version in &mut lax.crds[0].spec.versions {
        let text = serde_json::to_string(&version.schema).unwrap();
        version.schema =
            serde_json::from_str(&text.replace("\"maximum\":10.0", "\"maximum\":99.0")).unwrap();
    }
    strict.crds = vec![common::widgets()];
    let server = meshfed_apiserver::ApiServer::open(lax).unwrap();
    let api = widgets(&Client::new(server.service(), "default"), "v1");
    api.create(
        &PostParams::default(),
        &mk_widget("w", &json!({"size": 50})),
    )
    .await
    .unwrap();
    drop((server, api));
    let server = eventually("the directory is free", async || {
        meshfed_apiserver::ApiServer::open(strict.clone()).ok()
    })
    .await;
    let api = widgets(&Client::new(server.service(), "default"), "v1");
    let params = PatchParams::default();
    let status = Patch::Merge(json!({"status": {"ready": "no"}}));
    api.patch_status("w", &params, &status).await.unwrap();
    let other = Patch::Merge(json!({"spec": {"free": {"a": 1}}}));
    api.patch("w", &params, &other).await.unwrap();
    let worse = Patch::Merge(json!({"spec": {"size": 60}}));
    assert_eq!(
        code(&api.patch("w", &params, &worse).await.unwrap_err()),
        422
    );
}
