//! TLS settings of listeners and clusters.
//!
//! The own certificate is an SDS secret of the agent beside the proxy. Peers are judged twice: by
//! the trust bundle (the SPIFFE validator, an SDS secret over ADS) and by exact names here, which
//! Envoy joins into one validation context.

use std::mem::take;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{DownstreamTls, OWN_IDENTITY, ServerIds, UpstreamTls};

use crate::pb::matcher::string_matcher::MatchPattern;
use crate::pb::tls::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use crate::pb::tls::downstream_tls_context::SessionTicketKeysType;
use crate::pb::tls::tls_parameters::TlsProtocol;
use crate::pb::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext, subject_alt_name_matcher::SanType,
};
use crate::pb::{BoolValue, UInt32Value, core, raw_buffer};
use crate::wire::{self, Path, Read, nothing_else, pack, required, unpack};
use crate::{Reason, SDS_CLUSTER};

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";
/// Key exchange groups, best first, as the proxies of this project use them.
const GROUPS: [&str; 3] = ["X25519MLKEM768", "X25519", "P-256"];
/// Longest protocol name in ALPN (RFC 7301).
const MAX_ALPN_LEN: usize = 255;
/// Stands for an empty list of servers: no certificate has this for a URI. No matcher at all would
/// let everyone in.
const NOBODY: &str = "nobody";
const NAMES: &str = "combined_validation_context.default_validation_context";

pub(crate) fn downstream(tls: &DownstreamTls) -> core::TransportSocket {
    let ids = tls.client_ids.iter().map(exactly).collect();
    socket(
        TLS_SOCKET,
        pack(&DownstreamTlsContext {
            common_tls_context: Some(common(&tls.trust, ids, &tls.alpn)),
            ..downstream_template()
        }),
    )
}

pub(crate) fn read_downstream(at: &Path<'_>, s: core::TransportSocket) -> Read<DownstreamTls> {
    let at = &at.field("typed_config");
    let mut m: DownstreamTlsContext = unpack(at, &config(at, s, TLS_SOCKET)?)?;
    let c = take(&mut m.common_tls_context);
    nothing_else(at, &m, &downstream_template())?;

    let at = &at.field("common_tls_context");
    let c = read_common(at, c)?;
    let client_ids = c
        .names
        .into_iter()
        .map(|n| match n {
            PeerName::Id(id) => Ok(id),
            PeerName::Domain(_) | PeerName::Nobody => {
                Err(at.field(NAMES).refuse(Reason::Unsupported))
            }
        })
        .collect::<Read<Vec<SpiffeId>>>()?;
    Ok(DownstreamTls {
        trust: c.trust,
        client_ids,
        alpn: c.alpn,
    })
}

pub(crate) fn upstream(tls: &UpstreamTls) -> core::TransportSocket {
    let ids = match &tls.server {
        ServerIds::OneOf(ids) if ids.is_empty() => vec![MatchPattern::Exact(NOBODY.to_string())],
        ServerIds::OneOf(ids) => ids.iter().map(exactly).collect(),
        ServerIds::AnyOf(domain) => vec![MatchPattern::Prefix(format!("{}/", domain.uri()))],
    };
    socket(
        TLS_SOCKET,
        pack(&UpstreamTlsContext {
            common_tls_context: Some(common(&tls.trust, ids, &tls.alpn)),
            sni: tls.sni.as_deref().unwrap_or_default().to_owned(),
            ..upstream_template()
        }),
    )
}

pub(crate) fn read_upstream(at: &Path<'_>, s: core::TransportSocket) -> Read<UpstreamTls> {
    let at = &at.field("typed_config");
    let mut m: UpstreamTlsContext = unpack(at, &config(at, s, TLS_SOCKET)?)?;
    let c = take(&mut m.common_tls_context);
    let sni = take(&mut m.sni);
    nothing_else(at, &m, &upstream_template())?;

    let at = &at.field("common_tls_context");
    let mut c = read_common(at, c)?;
    let server = match (c.names.pop(), c.names.is_empty()) {
        // Nothing but the bundle would decide; a server is always asked for by name or domain.
        (None, _) => return Err(at.field(NAMES).refuse(Reason::Missing)),
        (Some(PeerName::Nobody), true) => ServerIds::OneOf(Vec::new()),
        (Some(PeerName::Domain(domain)), true) => ServerIds::AnyOf(domain),
        (Some(last), _) => {
            c.names.push(last);
            let ids = c.names.into_iter().map(|n| match n {
                PeerName::Id(id) => Ok(id),
                PeerName::Domain(_) | PeerName::Nobody => {
                    Err(at.field(NAMES).refuse(Reason::Unsupported))
                }
            });
            ServerIds::OneOf(ids.collect::<Read<_>>()?)
        }
    };
    Ok(UpstreamTls {
        trust: c.trust.into(),
        server,
        sni: (!sni.is_empty()).then(|| sni.into()),
        alpn: c.alpn,
    })
}

/// No TLS, said explicitly.
pub(crate) fn plain() -> core::TransportSocket {
    socket(RAW_SOCKET, pack(&raw_buffer::RawBuffer {}))
}

/// A secret that the agent beside the proxy keeps.
pub(crate) fn own_identity() -> SdsSecretConfig {
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: SDS_CLUSTER.to_string(),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }],
        ..Default::default()
    };
    SdsSecretConfig {
        name: OWN_IDENTITY.to_string(),
        sds_config: Some(core::ConfigSource {
            resource_api_version: core::ApiVersion::V3.into(),
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::ApiConfigSource(source),
            ),
            ..Default::default()
        }),
    }
}

pub(crate) fn tls_params() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ecdh_curves: GROUPS.map(String::from).to_vec(),
        ..Default::default()
    }
}

/// A client is always asked for its certificate, and never let in by an earlier session: a ticket
/// would outlive the trust and the names that it was given under.
fn downstream_template() -> DownstreamTlsContext {
    DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(
            true,
        )),
        ..Default::default()
    }
}

fn upstream_template() -> UpstreamTlsContext {
    UpstreamTlsContext {
        max_session_keys: Some(UInt32Value { value: 0 }),
        ..Default::default()
    }
}

fn common_template() -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(tls_params()),
        tls_certificate_sds_secret_configs: vec![own_identity()],
        ..Default::default()
    }
}

fn common(trust: &str, ids: Vec<MatchPattern>, alpn: &[String]) -> CommonTlsContext {
    let names = ids.into_iter().map(|p| SubjectAltNameMatcher {
        matcher: Some(wire::text(p)),
        ..matcher_template()
    });
    CommonTlsContext {
        alpn_protocols: alpn.to_vec(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: names.collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(SdsSecretConfig {
                    name: trust.to_string(),
                    sds_config: Some(wire::ads()),
                }),
                ..Default::default()
            },
        )),
        ..common_template()
    }
}

fn matcher_template() -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        ..Default::default()
    }
}

/// What a certificate must say to be accepted.
enum PeerName {
    Id(SpiffeId),
    Domain(TrustDomain),
    Nobody,
}

struct Common {
    trust: String,
    names: Vec<PeerName>,
    alpn: Vec<String>,
}

fn read_common(at: &Path<'_>, m: Option<CommonTlsContext>) -> Read<Common> {
    let mut m = required(at, m)?;
    let alpn = take(&mut m.alpn_protocols);
    let validation = m.validation_context_type.take();
    nothing_else(at, &m, &common_template())?;
    for (i, p) in alpn.iter().enumerate() {
        if p.is_empty() || p.len() > MAX_ALPN_LEN {
            return Err(at.item("alpn_protocols", i).refuse(Reason::OutOfRange));
        }
    }

    let at = &at.field("combined_validation_context");
    let Some(ValidationContextType::CombinedValidationContext(mut v)) = validation else {
        return Err(at.refuse(Reason::Missing));
    };
    let names = take(&mut v.default_validation_context);
    let secret = take(&mut v.validation_context_sds_secret_config);
    nothing_else(at, &v, &CombinedCertificateValidationContext::default())?;

    let at_secret = &at.field("validation_context_sds_secret_config");
    let mut secret = required(at_secret, secret)?;
    let trust = wire::name(&at_secret.field("name"), take(&mut secret.name))?;
    let from_ads = SdsSecretConfig {
        sds_config: Some(wire::ads()),
        ..Default::default()
    };
    nothing_else(at_secret, &secret, &from_ads)?;

    let at = &at.field("default_validation_context");
    let mut names = names.unwrap_or_default();
    let matchers = take(&mut names.match_typed_subject_alt_names);
    nothing_else(at, &names, &CertificateValidationContext::default())?;
    let names = matchers
        .into_iter()
        .enumerate()
        .map(|(i, m)| read_peer_name(&at.item("match_typed_subject_alt_names", i), m))
        .collect::<Read<_>>()?;
    Ok(Common { trust, names, alpn })
}

fn read_peer_name(at: &Path<'_>, mut m: SubjectAltNameMatcher) -> Read<PeerName> {
    let text = m.matcher.take();
    nothing_else(at, &m, &matcher_template())?;
    let at = &at.field("matcher");
    match wire::read_text(at, required(at, text)?)? {
        MatchPattern::Exact(id) if id == NOBODY => Ok(PeerName::Nobody),
        MatchPattern::Exact(id) => wire::read_id(at, &id).map(PeerName::Id),
        MatchPattern::Prefix(p) => match read_domain(&p) {
            Some(domain) => Ok(PeerName::Domain(domain)),
            None => Err(at.refuse(Reason::BadName(wire::clip(&p)))),
        },
        _ => Err(at.refuse(Reason::Unsupported)),
    }
}

fn exactly(id: &SpiffeId) -> MatchPattern {
    MatchPattern::Exact(id.to_string())
}

fn read_domain(prefix: &str) -> Option<TrustDomain> {
    let domain = prefix.strip_prefix("spiffe://")?.strip_suffix('/')?;
    domain.parse().ok()
}

fn socket(name: &str, config: crate::pb::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn config(at: &Path<'_>, s: core::TransportSocket, name: &str) -> Read<crate::pb::Any> {
    if s.name != name {
        return Err(at.refuse(Reason::WrongType(wire::clip(&s.name))));
    }
    match s.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => Err(at.refuse(Reason::Missing)),
    }
}
