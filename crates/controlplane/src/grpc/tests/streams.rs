//! Configuration over streams, from the first request to the end.

use super::*;

#[tokio::test]
async fn a_proxy_cannot_ask_for_what_is_not_its_own() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));
    plane.source.set("reviews", Some(mk_config(&["secret"])));
    for (metadata, code) in [
        (("SERVICE_ACCOUNT", "reviews"), Code::PermissionDenied),
        (("NAMESPACE", "red-mesh-system"), Code::PermissionDenied),
        (("INSTANCE_IPS", "nowhere"), Code::InvalidArgument),
    ] {
        let mut ads = plane.ads(plane.identity(RATINGS)).await;
        ads.subscribe(Some(mk_node(&[metadata])), TypeUrl::Endpoints, &["secret"])
            .await;
        assert_eq!(
            ads.receive().await.unwrap_err().code(),
            code,
            "{metadata:?}"
        );
    }
    // Without a claim it gets its own, in which the other's names do not exist.
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["secret"])
        .await;
    let response = ads.receive().await.unwrap();
    assert!(response.resources.is_empty());
    assert_eq!(response.removed_resources, ["secret"]);

    let unknown = "spiffe://red-mesh.local/ns/bookinfo/sa/details";
    let mut ads = plane.ads(plane.identity(unknown)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &[])
        .await;
    assert_eq!(ads.receive().await.unwrap_err().code(), Code::Unavailable);

    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(None, TypeUrl::Endpoints, &[]).await;
    assert_eq!(
        ads.receive().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_change_reaches_the_proxy_and_its_answers_reach_the_source() {
    let plane = Plane::start().await;
    let first = mk_config(&["a"]);
    plane.source.set("ratings", Some(first.clone()));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    ads.accept().await;
    ads.subscribe(None, TypeUrl::Endpoints, &["a", "b"]).await;
    let response = ads.accept().await;
    assert_eq!(names(&response), ["a"]);
    assert_eq!(response.removed_resources, ["b"]);
    ads.subscribe(None, TypeUrl::Listener, &[]).await;
    ads.accept().await;
    let synced = plane
        .source
        .reported(|r| matches!(r, Report::Synced(_)))
        .await;
    assert_eq!(synced, Report::Synced(first));

    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let response = ads.receive().await.unwrap();
    assert_eq!(names(&response), ["b"]);
    ads.answer(&response, Some("endpoints of b: not here"))
        .await;
    let nacked = plane
        .source
        .reported(|r| matches!(r, Report::Nacked { .. }))
        .await;
    assert!(matches!(
        nacked,
        Report::Nacked { kind: TypeUrl::Endpoints, message, .. } if message == "endpoints of b: not here"
    ));
}

#[tokio::test]
async fn a_proxy_that_reconnects_is_told_only_what_is_new() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["a", "b"])
        .await;
    let versions: HashMap<String, String> = ads
        .accept()
        .await
        .resources
        .into_iter()
        .map(|resource| (resource.name, resource.version))
        .collect();
    drop(ads);

    plane.source.set("ratings", Some(mk_config(&["b", "c"])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.send(DeltaDiscoveryRequest {
        node: Some(mk_node(&[])),
        type_url: TypeUrl::Endpoints.as_str().to_string(),
        resource_names_subscribe: ["a", "b", "c"].map(str::to_string).to_vec(),
        initial_resource_versions: versions,
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    assert_eq!(names(&ads.accept().await), ["c"]);
    assert_eq!(ads.accept().await.removed_resources, ["a"]);
}

#[tokio::test]
async fn a_control_plane_that_knows_nothing_yet_takes_nothing_away() {
    let mut plane = Plane::start().await;
    let known = mk_config(&["a"]);
    let version = {
        let encoder = crate::ads::Encoder::default();
        let encoded = encoder.encode(&known, TypeUrl::Endpoints, "a").unwrap();
        encoded.version.to_string()
    };
    plane.source.set("ratings", None);
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.send(DeltaDiscoveryRequest {
        node: Some(mk_node(&[])),
        type_url: TypeUrl::Endpoints.as_str().to_string(),
        resource_names_subscribe: ["a", "b"].map(str::to_string).to_vec(),
        initial_resource_versions: HashMap::from([("a".to_string(), version)]),
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    plane.node_set(|set| !set.is_empty()).await;

    // Had it said that `a` is gone, that would come first.
    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let response = ads.accept().await;
    assert_eq!(names(&response), ["b"]);
    assert!(response.removed_resources.is_empty());
}

#[tokio::test]
async fn a_connected_proxy_is_seen_with_its_readiness_until_it_is_gone() {
    let mut plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let ads = plane.ads(plane.identity(RATINGS)).await;
    let node = mk_node(&[
        ("NAME", "ratings-1"),
        ("INSTANCE_IPS", "127.0.9.1"),
        ("READY", "false"),
    ]);
    ads.subscribe(Some(node), TypeUrl::Cluster, &[]).await;
    let seen = plane.node_set(|set| !set.is_empty()).await;
    let node = seen.values().next().unwrap();
    let connection = node.connection;
    assert_eq!(node.identity, RATINGS.parse().unwrap());
    assert_eq!(
        (node.name.as_deref(), node.ready),
        (Some("ratings-1"), Some(false))
    );

    // A request that says nothing but a changed node.
    let node = mk_node(&[
        ("NAME", "ratings-1"),
        ("INSTANCE_IPS", "127.0.9.1"),
        ("READY", "true"),
    ]);
    ads.send(DeltaDiscoveryRequest {
        node: Some(node),
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    plane
        .node_set(|set| set.values().any(|node| node.ready == Some(true)))
        .await;
    drop(ads);
    plane.node_set(|set| set.is_empty()).await;
    assert_eq!(*plane.source.left.lock().unwrap(), [connection]);
}

#[tokio::test]
async fn a_stream_that_is_ended_from_here_does_not_end_the_registration() {
    let mut plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let too_long = "x".repeat(meshfed_xds::MAX_NAME_LEN + 1);
    let mut last = None;
    for _ in 0..2 {
        let mut ads = plane.ads(plane.identity(RATINGS)).await;
        ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &[&too_long])
            .await;
        let ended = ads.receive().await.unwrap_err();
        assert_eq!(ended.code(), Code::ResourceExhausted);
        plane.node_set(|set| set.is_empty()).await;
        let registered = plane.registrations.borrow_and_update().clone();
        let connections: Vec<_> = registered.keys().copied().collect();
        assert_eq!(connections.len(), 1, "one registration for one proxy");
        assert_ne!(last, Some(connections[0]));
        last = Some(connections[0]);
    }
    // It is back, and then goes by itself.
    let ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    plane.node_set(|set| !set.is_empty()).await;
    drop(ads);
    let gone = plane.registrations.wait_for(|set| set.is_empty());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
}

#[tokio::test]
async fn state_of_the_world_is_served_as_well() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));
    let channel = plane.connect(Some(plane.identity(RATINGS))).await.unwrap();
    let (requests, stream) = mpsc::channel(8);
    requests
        .send(DiscoveryRequest {
            node: Some(mk_node(&[])),
            type_url: TypeUrl::Endpoints.as_str().to_string(),
            resource_names: vec!["a".to_string()],
            ..DiscoveryRequest::default()
        })
        .await
        .unwrap();
    let mut responses = AggregatedDiscoveryServiceClient::new(channel)
        .stream_aggregated_resources(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.version_info.len(), 16);
}

#[tokio::test]
async fn a_drain_ends_streams_and_connections() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    ads.accept().await;
    let drained = tokio::spawn(plane.drain.drain(PATIENCE));
    assert_eq!(ads.receive().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(drained.await.unwrap(), meshfed_runtime::DrainEnd::Finished);
    assert!(TcpStream::connect(plane.address).await.is_err());
}
