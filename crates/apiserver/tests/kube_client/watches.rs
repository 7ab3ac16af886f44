//! Lists and watches.

use super::*;

#[tokio::test]
async fn lists_are_selected_and_paged_consistently() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    for n in 0..7 {
        let mut map = mk_config_map(&format!("m{n}"), "x");
        map.labels_mut()
            .insert("odd".into(), (n % 2 == 1).to_string());
        api.create(&PostParams::default(), &map).await.unwrap();
    }
    let odd = api
        .list(&ListParams::default().labels("odd=true"))
        .await
        .unwrap();
    assert_eq!(odd.items.len(), 3);
    let one = api
        .list(&ListParams::default().fields("metadata.name=m2"))
        .await
        .unwrap();
    assert_eq!(one.items.len(), 1);
    let bad = api
        .list(&ListParams::default().fields("spec.what=1"))
        .await
        .unwrap_err();
    assert_eq!(code(&bad), 400);

    let first = api.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    // A change between pages is not seen by the second.
    api.delete("m5", &DeleteParams::default()).await.unwrap();
    let next = ListParams::default()
        .limit(9)
        .continue_token(first.metadata.continue_.as_ref().unwrap());
    let second = api.list(&next).await.unwrap();
    let names: Vec<String> = second.iter().map(|map| map.name_any()).collect();
    assert_eq!(names, ["m3", "m4", "m5", "m6"]);
    assert_eq!(
        second.metadata.resource_version,
        first.metadata.resource_version
    );

    let everywhere: Api<ConfigMap> = Api::all(s.client.clone());
    let metadata: Vec<PartialObjectMeta<ConfigMap>> = everywhere
        .list_metadata(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert_eq!(metadata.len(), 6);
    assert!(metadata.iter().all(|m| m.metadata.name.is_some()));

    api.delete_collection(
        &DeleteParams::default(),
        &ListParams::default().labels("odd=false"),
    )
    .await
    .unwrap();
    assert_eq!(
        api.list(&ListParams::default()).await.unwrap().items.len(),
        2
    );
}

#[tokio::test]
async fn watchers_follow_by_list_and_by_streaming_list() {
    for strategy in [
        InitialListStrategy::ListWatch,
        InitialListStrategy::StreamingList,
    ] {
        let s = start();
        let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
        api.create(&PostParams::default(), &mk_config_map("a", "1"))
            .await
            .unwrap();
        let config = watcher::Config {
            initial_list_strategy: strategy,
            ..watcher::Config::default()
        };
        let (reader, writer) = reflector::store();
        let mut events = pin!(reflector(writer, watcher(api.clone(), config)).applied_objects());
        assert_eq!(events.next().await.unwrap().unwrap().name_any(), "a");
        api.create(&PostParams::default(), &mk_config_map("b", "1"))
            .await
            .unwrap();
        assert_eq!(events.next().await.unwrap().unwrap().name_any(), "b");
        api.delete("a", &DeleteParams::default()).await.unwrap();
        let patch = Patch::Merge(json!({"data": {"k": "2"}}));
        api.patch("b", &PatchParams::default(), &patch)
            .await
            .unwrap();
        let changed = events.next().await.unwrap().unwrap();
        assert_eq!(changed.data.unwrap()["k"], "2");
        let names: Vec<String> = reader.state().iter().map(|map| map.name_any()).collect();
        assert_eq!(names, ["b"]);
    }
}

#[tokio::test]
async fn a_selective_watch_sees_objects_come_into_view_and_leave() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let start = s.server.revision().to_string();
    let params = WatchParams::default().labels("in=yes").timeout(60);
    let mut watch = api.watch(&params, &start).await.unwrap().boxed();
    api.create(&PostParams::default(), &mk_config_map("a", "1"))
        .await
        .unwrap();
    for value in [json!("yes"), json!("yes"), json!("no")] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"in": value, "n": "1"}}}));
        api.patch("a", &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": {"in": "yes"}}}));
    api.patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(match watch.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["added", "deleted", "added", "deleted"]);
}

#[tokio::test]
async fn an_expired_watch_is_told_so_and_a_watcher_lists_again() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let first = s.server.revision().to_string();
    // More than the history keeps of large objects.
    let filler = "x".repeat(500_000);
    for _ in 0..3 {
        for n in 0..8 {
            let patch = Patch::Merge(json!({"data": {"k": format!("{n}{filler}")}}));
            if api.get_opt("a").await.unwrap().is_none() {
                api.create(&PostParams::default(), &mk_config_map("a", "1"))
                    .await
                    .unwrap();
            }
            api.patch("a", &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
    }
    let future = (s.server.revision() + 1000).to_string();
    for revision in [first, future] {
        let mut watch = api
            .watch(&WatchParams::default(), &revision)
            .await
            .unwrap()
            .boxed();
        let WatchEvent::Error(status) = watch.try_next().await.unwrap().unwrap() else {
            panic!("a revision that is not known")
        };
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        assert!(watch.next().await.is_none());
    }

    // A watcher that falls behind recovers by itself.
    let mut events = watcher(api.clone(), watcher::Config::default()).boxed();
    let names = async |events: &mut futures::stream::BoxStream<'_, _>| loop {
        match events.next().await.unwrap() {
            Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => {
                let map: ConfigMap = map;
                return map.name_any();
            }
            Ok(_) | Err(watcher::Error::WatchError(_)) => {}
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(names(&mut events).await, "a");
    for n in 0..24 {
        let patch = Patch::Merge(json!({"data": {"k": format!("{n}{filler}")}}));
        api.patch("a", &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
    api.create(&PostParams::default(), &mk_config_map("b", "1"))
        .await
        .unwrap();
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        while names(&mut events).await != "b" {}
    });
    found.await.unwrap();
}

#[tokio::test]
async fn a_quiet_watch_ends_with_how_far_it_is() {
    let s = start();
    let api: Api<ConfigMap> = Api::default_namespaced(s.client.clone());
    let from = s.server.revision().to_string();
    let params = WatchParams::default().timeout(1);
    let mut watch = api.watch(&params, &from).await.unwrap().boxed();
    // Something of another kind happens.
    let namespaces: Api<Namespace> = Api::all(s.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let WatchEvent::Bookmark(bookmark) = watch.try_next().await.unwrap().unwrap() else {
        panic!("nothing of this kind happened")
    };
    assert_eq!(
        bookmark.metadata.resource_version,
        s.server.revision().to_string()
    );
    assert!(watch.next().await.is_none());
}
