//! An object that has got another owner survives the end of the one before.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams, PropagationPolicy};
use serde_json::json;

use super::common::{eventually, start};

fn mk(name: &str, owner: Option<(&str, &str)>) -> ConfigMap {
    let owners = owner.map(
        |(name, uid)| json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}]),
    );
    serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}})).unwrap()
}

/// Until the object is gone.
async fn gone(api: &Api<ConfigMap>, name: &str) {
    let is_gone = async || api.get_opt(name).await.unwrap().is_none().then_some(());
    eventually("it is gone", is_gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_another_owner_by_now_stays() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let create = async |name: &str, owner: Option<(&str, &str)>| {
        let made = api.create(&PostParams::default(), &mk(name, owner)).await;
        made.unwrap()
    };
    let b_uid = create("b", None).await.metadata.uid.unwrap();
    let (mut lost, mut adopted) = (0, 0);
    for n in 0..100 {
        let a = create("a", None).await;
        let owner = Some(("a", a.metadata.uid.as_deref().unwrap()));
        let mut moved = create("d", owner).await;
        // Goes with its owner after `d` was judged.
        create("e", owner).await;
        moved.metadata.owner_references = mk("d", Some(("b", &b_uid))).metadata.owner_references;
        let params = DeleteParams::default();
        let (deleted, replaced) = tokio::join!(api.delete("a", &params), async {
            // At another moment of what follows from the removal each time, and now and then beside it.
            if n % 10 != 0 {
                tokio::time::sleep(Duration::from_micros((n % 60) * 20)).await;
            }
            api.replace("d", &PostParams::default(), &moved).await
        });
        deleted.unwrap();
        gone(&api, "e").await;
        // What was adopted after it had been taken away is made anew by whoever adopts it.
        if replaced.is_ok() {
            adopted += 1;
            match api.delete("d", &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        gone(&api, "d").await;
    }
    assert!(adopted > 0);
    assert_eq!(lost, 0, "of {adopted}");
}

#[tokio::test]
async fn who_has_another_owner_does_not_go_with_the_first_in_the_foreground() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let params = PostParams::default();
    let a = api.create(&params, &mk("a", None)).await.unwrap();
    let b = api.create(&params, &mk("b", None)).await.unwrap();
    let mut d = mk("d", Some(("a", &a.metadata.uid.unwrap())));
    let more = mk("d", Some(("b", &b.metadata.uid.unwrap())));
    let owners = d.metadata.owner_references.as_mut().unwrap();
    owners.extend(more.metadata.owner_references.unwrap());
    api.create(&params, &d).await.unwrap();
    let foreground = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    api.delete("a", &foreground).await.unwrap();
    // It goes when nothing of it is left.
    gone(&api, "a").await;
    let d = api.get("d").await.unwrap();
    let owners = d.metadata.owner_references.unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!(owners[0].name, "b");
}
