//! Writing resources. The same value gives the same bytes each time.
//!
//! What Envoy cannot say is not said: two [`AllowPolicy`](meshfed_proxy_config::AllowPolicy) of
//! one name are one policy, the last, and an empty string for a rewrite is none.

use meshfed_proxy_config::{Cluster, Endpoints, Listener, RouteTable, TrustBundle, VirtualHost};

use crate::pb::core::{DataSource, data_source::Specifier};
use crate::pb::tls::{CertificateValidationContext, Secret, TlsCertificate, secret};
use crate::proto::Any;
use crate::wire::pack;

pub fn listener(l: &Listener) -> Any {
    pack(&crate::listener::encode(l))
}

pub fn cluster(c: &Cluster) -> Any {
    pack(&crate::cluster::encode(c))
}

pub fn endpoints(e: &Endpoints) -> Any {
    pack(&crate::endpoints::encode(e))
}

pub fn routes(t: &RouteTable) -> Any {
    pack(&crate::routes::encode(t))
}

/// The table of this name for a client that gets its virtual hosts one by one.
pub fn separate_routes(table: &str) -> Any {
    pack(&crate::routes::encode_separate(table))
}

pub fn virtual_host(host: &VirtualHost) -> Any {
    pack(&crate::routes::encode_host(host))
}

/// `name` is the one that TLS settings refer to.
pub fn trust(name: &str, bundle: &TrustBundle) -> Any {
    pack(&crate::trust::encode(name, bundle))
}

/// A proxy's own certificate chain and private key, both PEM, as the secret `name`.
///
/// Only for the Unix socket of an agent beside the proxy; ADS never carries a private key.
pub fn identity(name: &str, chain_pem: &str, key_pem: &str) -> Any {
    pack(&Secret {
        name: name.to_string(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(chain_pem),
            private_key: inline(key_pem),
            ..Default::default()
        })),
    })
}

/// PEM roots that vouch for a server, as the secret `name`; for an agent's socket as well.
pub fn root(name: &str, pem: &str) -> Any {
    pack(&Secret {
        name: name.to_string(),
        r#type: Some(secret::Type::ValidationContext(
            CertificateValidationContext {
                trusted_ca: inline(pem),
                ..Default::default()
            },
        )),
    })
}

fn inline(pem: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineString(pem.to_string())),
        ..Default::default()
    })
}
