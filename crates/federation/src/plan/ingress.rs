//! An ingress gateway: where peers come in.
//!
//! 15443 carries service traffic. One filter chain per peer is chosen by the end of the SNI; only
//! that peer's `clientID`, vouched for by that peer's roots, finishes the handshake; the SNI then
//! names the cluster, and only exported names have one. 8188 carries discovery: the identity of
//! the caller, never its SNI or Host, decides whose list it gets.

use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{
    AllowPolicy, Cluster, DEFAULT_DRAIN, Discovery, DownstreamTls, FilterChain, HeaderMatch, Http,
    HttpRoutes, Listener, Network, PathMatch, ProxyConfig, Route, RouteAction, RouteTable,
    ServerIds, ServerName, Tcp, TcpTarget, TrustBundle, UpstreamProtocol, UpstreamTls, VirtualHost,
    sni,
};

use super::gateways::GatewayAddress;
use super::local::LocalService;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh, bundle, peer_trust};
use crate::names::{ExportedHost, PeerName};

/// Header in which a proxy says who its client is.
pub const CLIENT_CERTIFICATE_HEADER: &str = "x-forwarded-client-cert";
const DISCOVERY_CLUSTER: &str = "control-plane-discovery";
const DISCOVERY_TRUST: &str = "discovery-clients";
/// A list may be 64 MiB; a watch has no limit.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);

/// A peer that may come in here.
#[derive(Debug, Clone)]
pub struct IngressPeer<'a> {
    pub name: &'a PeerName,
    pub trust_domain: &'a TrustDomain,
    /// PEM certificates that vouch for it.
    pub roots: &'a Arc<str>,
    pub client_id: &'a SpiffeId,
    /// How long connections of an export that is gone may go on.
    pub drain: Duration,
    /// What it may call, under which name.
    pub exports: Vec<(ExportedHost, Arc<LocalService>)>,
}

/// The configuration of an ingress gateway.
pub fn config(
    mesh: &Mesh<'_>,
    addresses: &[GatewayAddress],
    peers: &[IngressPeer<'_>],
) -> ProxyConfig {
    let mut config = ProxyConfig::default();
    config.trust.extend([mesh.trust()]);
    for peer in peers {
        let roots = bundle(peer.trust_domain, peer.roots);
        config.trust.insert(peer_trust(peer.name).into(), roots);
        for (exported, service) in &peer.exports {
            for (i, port) in service.ports.iter().enumerate() {
                let bare = (i == 0).then(|| exported.as_str().into());
                let names = [sni(port.number, exported.as_str())]
                    .into_iter()
                    .chain(bare);
                mesh.add_local(&mut config, service, port, names, peer.drain);
            }
        }
    }
    let all_roots = peers
        .iter()
        .map(|p| (p.trust_domain.clone(), p.roots.clone()))
        .collect();
    config.trust.insert(
        DISCOVERY_TRUST.into(),
        Arc::new(TrustBundle { domains: all_roots }),
    );
    let control_plane = discovery_cluster(mesh);
    config
        .clusters
        .insert(control_plane.name.clone(), Arc::new(control_plane));
    for address in addresses {
        for listener in [
            service_listener(address, peers),
            discovery_listener(mesh, address, peers),
        ] {
            config
                .listeners
                .insert(listener.name.as_str().into(), Arc::new(listener));
        }
    }
    config
}

fn service_listener(address: &GatewayAddress, peers: &[IngressPeer<'_>]) -> Listener {
    Listener {
        name: format!("{}_{}", address.ip, address.service_port),
        address: (address.ip, address.service_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: peers.iter().map(service_chain).collect(),
    }
}

fn service_chain(peer: &IngressPeer<'_>) -> FilterChain {
    let suffix = ExportedHost::suffix_for(peer.name);
    FilterChain {
        name: format!("exports-to-{}", peer.name),
        server_names: vec![ServerName::Suffix(suffix.clone())],
        tls: Some(DownstreamTls {
            trust: peer_trust(peer.name),
            client_ids: vec![peer.client_id.clone()],
            alpn: Vec::new(),
        }),
        drain: peer.drain,
        network: Network::Tcp(Tcp {
            target: TcpTarget::SniCluster,
            allow: Some(vec![AllowPolicy {
                name: peer.name.to_string(),
                principals: vec![peer.client_id.clone()],
                server_name_suffix: Some(format!(".{suffix}")),
            }]),
            idle_timeout: IDLE_TIMEOUT,
        }),
    }
}

fn discovery_listener(
    mesh: &Mesh<'_>,
    address: &GatewayAddress,
    peers: &[IngressPeer<'_>],
) -> Listener {
    let client_ids: Vec<SpiffeId> = peers.iter().map(|p| p.client_id.clone()).collect();
    // Without a peer nobody is let in, rather than everybody.
    let allow = peers
        .iter()
        .map(|peer| AllowPolicy {
            name: peer.name.to_string(),
            principals: vec![peer.client_id.clone()],
            server_name_suffix: None,
        })
        .collect();
    let chain = FilterChain {
        name: "discovery".to_owned(),
        server_names: Vec::new(),
        tls: Some(DownstreamTls {
            trust: DISCOVERY_TRUST.to_owned(),
            // Left open, so that a caller with a wrong identity is told 403.
            client_ids: Vec::new(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        }),
        drain: DEFAULT_DRAIN,
        network: Network::Http(Http {
            stat_prefix: "discovery".to_owned(),
            routes: HttpRoutes::Inline(RouteTable::new(
                "discovery",
                [VirtualHost {
                    name: "discovery".into(),
                    domains: vec!["*".to_owned()],
                    routes: peers
                        .iter()
                        .flat_map(|peer| discovery_routes(mesh, peer))
                        .collect(),
                }],
            )),
            allow: Some(allow),
            forward_client_id: true,
            append_forwarded_for: true,
            accept_connect: false,
            stream_idle_timeout: Duration::ZERO,
        }),
    };
    Listener {
        name: format!("{}_{}", address.ip, address.discovery_port),
        address: (address.ip, address.discovery_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: if client_ids.is_empty() {
            Vec::new()
        } else {
            vec![chain]
        },
    }
}

/// `/v1/services/` and `/v1/watch` lead to the caller's own list, whatever else it asks for.
fn discovery_routes(mesh: &Mesh<'_>, peer: &IngressPeer<'_>) -> [Route; 2] {
    [
        ("/v1/services/", LIST_TIMEOUT),
        ("/v1/watch", Duration::ZERO),
    ]
    .map(|(path, timeout)| Route {
        name: format!("{}{path}", peer.name),
        path: PathMatch::Exact(path.to_owned()),
        headers: vec![HeaderMatch::Suffix {
            name: CLIENT_CERTIFICATE_HEADER.to_owned(),
            value: format!(";URI={}", peer.client_id),
        }],
        action: RouteAction::Forward {
            cluster: DISCOVERY_CLUSTER.to_owned(),
            rewrite_authority: Some(control_plane_host(mesh)),
            rewrite_path: Some(format!("{}/{}", path.trim_end_matches('/'), peer.name)),
            timeout,
            remove_headers: vec![CLIENT_CERTIFICATE_HEADER.to_owned()],
        },
    })
}

fn discovery_cluster(mesh: &Mesh<'_>) -> Cluster {
    Cluster {
        name: DISCOVERY_CLUSTER.into(),
        discovery: Discovery::Static(vec![mesh.discovery_address]),
        connect_timeout: CONNECT_TIMEOUT,
        tls: Some(UpstreamTls {
            trust: super::proxy::MESH_TRUST.into(),
            server: ServerIds::OneOf(vec![mesh.control_plane_id.clone()]),
            sni: Some(control_plane_host(mesh).into()),
            alpn: vec!["http/1.1".to_owned()],
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    }
}

/// `<istiod account>.<system namespace>.svc.<cluster domain>`.
fn control_plane_host(mesh: &Mesh<'_>) -> String {
    format!(
        "{}.{}.svc.{}",
        mesh.control_plane_id.service_account(),
        mesh.system_namespace,
        mesh.cluster_domain
    )
}
