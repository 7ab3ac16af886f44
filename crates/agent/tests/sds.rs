//! Secrets over the agent's socket.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Authority, ControlPlane, ISTIOD, PATIENCE, RATINGS, TOKEN, id};
use hyper_util::rt::TokioIo;
use meshfed_agent::{
    Agent, AgentError, AgentOptions, EnvoyOptions, IdentityMetrics, RootSource, TokenSource,
};
use meshfed_runtime::Drain;
use meshfed_testkit::{eventually, temp_dir};
use meshfed_xds::bootstrap::NodeOptions;
use meshfed_xds::proto::secret_discovery_service_client::SecretDiscoveryServiceClient;
use meshfed_xds::proto::{DeltaDiscoveryRequest, DiscoveryRequest};
use meshfed_xds::{ROOT_SECRET, TypeUrl};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

struct Beside {
    _drain: Drain,
    _dir: meshfed_testkit::TempDir,
    agent_dir: std::path::PathBuf,
    client: SecretDiscoveryServiceClient<Channel>,
}

async fn agent(control_plane: &ControlPlane, root: RootSource) -> Beside {
    let dir = temp_dir();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let agent_dir = dir.path().join("agent");
    let mut options = control_plane.options();
    options.root = root;
    let agent = Agent::bind(AgentOptions {
        control_plane: options,
        id: id(RATINGS),
        token: TokenSource::File(token_file),
        dir: agent_dir.clone(),
        metrics: IdentityMetrics::default(),
    })
    .await
    .unwrap();
    let socket = agent.socket().to_path_buf();
    let (drain, watch) = Drain::new();
    tokio::spawn(agent.run(watch));
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
        .unwrap();
    Beside {
        _drain: drain,
        _dir: dir,
        agent_dir,
        client: SecretDiscoveryServiceClient::new(channel),
    }
}

fn ask(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: TypeUrl::Trust.as_str().to_string(),
        resource_names: names.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = timeout(PATIENCE, stream.message()).await;
    message.expect("in time").unwrap().expect("not ended")
}

fn pem(authority: &Arc<Authority>) -> RootSource {
    RootSource::Pem(authority.ca.root_pem().into())
}

#[tokio::test(flavor = "current_thread")]
async fn the_certificate_and_each_renewal_come_over_both_forms_of_the_stream() {
    let authority = Authority::new();
    *authority.ttl.lock().unwrap() = Duration::from_secs(4);
    let control_plane = ControlPlane::start(&authority).await;
    let mut beside = agent(&control_plane, pem(&authority)).await;

    let (asks, stream) = mpsc::channel(4);
    asks.send(ask(&["default"])).await.unwrap();
    let mut world = beside
        .client
        .stream_secrets(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let (deltas, stream) = mpsc::channel(4);
    let subscribe = DeltaDiscoveryRequest {
        type_url: TypeUrl::Trust.as_str().to_string(),
        resource_names_subscribe: vec!["default".to_string(), "no such secret".to_string()],
        ..Default::default()
    };
    deltas.send(subscribe).await.unwrap();
    let mut delta = beside
        .client
        .delta_secrets(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();

    let (first, second) = (next(&mut world).await, next(&mut world).await);
    assert_eq!(first.resources.len(), 1);
    assert_ne!(first.version_info, second.version_info);
    assert_ne!(first.nonce, second.nonce);
    assert_ne!(first.resources[0].value, second.resources[0].value);

    let (first, second) = (next(&mut delta).await, next(&mut delta).await);
    assert_eq!(first.resources[0].name, "default");
    assert_ne!(first.resources[0].version, second.resources[0].version);
}

#[tokio::test(flavor = "current_thread")]
async fn one_question_gives_one_answer_or_the_reason() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let mut beside = agent(&control_plane, pem(&authority)).await;
    let both = eventually(PATIENCE, async || {
        let asked = ask(&["default", ROOT_SECRET]);
        let answer = beside.client.fetch_secrets(asked).await?.into_inner();
        if answer.resources.len() == 2 {
            Ok(answer)
        } else {
            Err(tonic::Status::unavailable("only the root so far"))
        }
    })
    .await;
    assert_eq!(both.type_url, TypeUrl::Trust.as_str());

    let missing = beside.client.fetch_secrets(ask(&["other"])).await;
    assert_eq!(missing.unwrap_err().code(), Code::Unavailable);
    let wrong = DiscoveryRequest {
        type_url: TypeUrl::Cluster.as_str().to_string(),
        ..ask(&["default"])
    };
    let wrong = beside.client.fetch_secrets(wrong).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = beside.client.fetch_secrets(ask(&names)).await;
    assert_eq!(many.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_root_is_passed_on() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let dir = temp_dir();
    let file = dir.path().join("root-cert.pem");
    std::fs::write(&file, authority.ca.root_pem()).unwrap();
    let mut beside = agent(&control_plane, RootSource::File(file.clone())).await;
    let (asks, stream) = mpsc::channel(4);
    asks.send(ask(&[ROOT_SECRET])).await.unwrap();
    let mut roots = beside
        .client
        .stream_secrets(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let before = next(&mut roots).await;

    let both = format!(
        "{}{}",
        authority.ca.root_pem(),
        Authority::new().ca.root_pem()
    );
    let beside_it = dir.path().join("new");
    std::fs::write(&beside_it, &both).unwrap();
    std::fs::rename(&beside_it, &file).unwrap();
    let after = next(&mut roots).await;
    assert_ne!(before.version_info, after.version_info);
    let text = String::from_utf8_lossy(&after.resources[0].value);
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn a_second_agent_in_the_same_place_is_refused() {
    let authority = Authority::new();
    let control_plane = ControlPlane::start(&authority).await;
    let beside = agent(&control_plane, pem(&authority)).await;
    let refused = Agent::bind(AgentOptions {
        control_plane: control_plane.options(),
        id: id(RATINGS),
        token: TokenSource::File("/nowhere".into()),
        dir: beside.agent_dir.clone(),
        metrics: IdentityMetrics::default(),
    })
    .await;
    assert!(matches!(refused, Err(AgentError::Socket(_))));
}

#[tokio::test(flavor = "current_thread")]
async fn in_another_trust_domain_envoys_get_another_certificate_and_a_bootstrap_for_their_next_start()
 {
    let authority = Authority::new();
    let moved = |id: &str| id.replace("red-mesh.local", "red2.local");
    let tokens = [(TOKEN.to_owned(), id(&moved(RATINGS)))].into();
    *authority.tokens.lock().unwrap() = tokens;
    let any = "127.0.0.1:0".parse().unwrap();
    let control_plane = ControlPlane::start_with(&authority, any, &moved(ISTIOD), |r| r).await;
    let dir = temp_dir();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let mut agent = Agent::bind(AgentOptions {
        control_plane: control_plane.options(),
        id: id(RATINGS),
        token: TokenSource::File(token_file),
        dir: dir.path().join("agent"),
        metrics: IdentityMetrics::default(),
    })
    .await
    .unwrap();
    let bootstrap = dir.path().join("envoy.json");
    let envoy = EnvoyOptions {
        node: NodeOptions::default(),
        admin: "127.0.0.1:15000".parse().unwrap(),
        max_connections: 10,
    };
    agent.write_bootstrap(&bootstrap, envoy).unwrap();
    let says = |id: &str| std::fs::read_to_string(&bootstrap).unwrap().contains(id);
    assert!(says(ISTIOD));
    let identity = agent.identity();
    let (_drain, watch) = Drain::new();
    tokio::spawn(agent.run(watch));
    eventually(PATIENCE, async || {
        let held = identity.identity().and_then(|held| held.id.clone());
        let is_done = held == Some(id(&moved(RATINGS))) && says(&moved(ISTIOD));
        is_done.then_some(()).ok_or(held)
    })
    .await;
    assert!(!says(ISTIOD));
}
