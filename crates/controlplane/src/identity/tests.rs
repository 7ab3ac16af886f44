//! Who may come with a certificate of a trust domain that the mesh had before.

use meshfed_pki::{ClientTls, ServerIds, ServerTls, client_config, server_config_optional_client};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Authorities of several meshes under one root.
fn below_one_root<const N: usize>(names: [&str; N]) -> [CertificateAuthority; N] {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + 24 * HOUR).into();
        params
    };
    let root_key = KeyPair::generate().unwrap();
    let root = params("root").self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::new(params("root"), root_key);
    names.map(|name| {
        let key = KeyPair::generate().unwrap();
        let ca = params(name).signed_by(&key, &issuer).unwrap().pem();
        CertificateAuthority::from_pem(&CaPem {
            root_cert: root.clone(),
            ca_key: key.serialize_pem(),
            cert_chain: ca.clone(),
            ca_cert: ca,
        })
        .unwrap()
    })
}

/// Whether a server that trusts in this accepts a workload of this domain, certified by `by`.
async fn accepts(trust: &Arc<TrustStore>, by: &CertificateAuthority, domain: &str) -> bool {
    let cell = |id: &str| {
        let id: SpiffeId = format!("spiffe://{domain}/ns/{id}").parse().unwrap();
        let issued = by.issue_server(&[], &[], Some(&id), HOUR, SystemTime::now());
        Arc::new(IdentityCell::new(Some(issued.unwrap())))
    };
    let acceptor = TlsAcceptor::from(
        server_config_optional_client(ServerTls {
            identity: cell("system/sa/istiod"),
            trust: trust.clone(),
            client_ids: Vec::new(),
            alpn: Vec::new(),
        })
        .unwrap(),
    );
    let domain: TrustDomain = domain.parse().unwrap();
    let connector = TlsConnector::from(
        client_config(ClientTls {
            identity: cell("bookinfo/sa/ratings"),
            trust: Arc::new(TrustStore::single(domain.clone(), by.root_pem()).unwrap()),
            server: ServerIds::AnyOf(domain),
            alpn: Vec::new(),
        })
        .unwrap(),
    );
    let (here, there) = tokio::io::duplex(64 * 1024);
    let name = "istiod.test".try_into().unwrap();
    let (accepted, connected) = tokio::join!(acceptor.accept(here), connector.connect(name, there));
    connected.unwrap();
    accepted.is_ok()
}

#[tokio::test]
async fn of_a_trust_domain_before_only_our_own_authority_vouches_and_of_ours_the_root() {
    let [ours, others] = below_one_root(["red", "green"]);
    let pem = ours.to_pem();
    let again = CertificateAuthority::from_pem(&pem).unwrap();
    let own = OwnIdentity::new(again, Vec::new(), Vec::new()).unwrap();
    let [now, before] = ["red2.local", "red.local"];
    let former = [before.parse().unwrap(), now.parse().unwrap()];
    let trust = own.trust_with(&now.parse().unwrap(), &former).unwrap();
    for (by, domain, accepted) in [
        (&ours, now, true),
        (&ours, before, true),
        (&others, now, true),
        (&others, before, false),
        (&ours, "red3.local", false),
    ] {
        assert_eq!(accepts(&trust, by, domain).await, accepted, "{domain}");
    }
}
