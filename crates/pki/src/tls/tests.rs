use std::io;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::Acceptor;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConnection, HandshakeKind, NamedGroup, ServerConnection};

use super::*;
use crate::fixtures::{HOUR, Odd, mk_ca, mk_cell, mk_id, mk_identity, mk_trust};
use crate::{CertificateAuthority, HandshakeRefusal, Identity, peer_id};

const RED: &str = "red-mesh.local";
const GREEN: &str = "green-mesh.local";
const INGRESS: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/ingress";
const EGRESS: &str = "spiffe://green-mesh.local/ns/green-mesh-system/sa/egress";
const SNI: &str = "outbound_.9080_._.ratings.bookinfo.svc.green-mesh-exports.local";

/// Red's ingress and green's egress, with each other's roots.
struct Meshes {
    red: CertificateAuthority,
    green: CertificateAuthority,
}

impl Meshes {
    fn new() -> Self {
        Self {
            red: mk_ca(RED),
            green: mk_ca(GREEN),
        }
    }

    fn server_tls(&self) -> ServerTls {
        ServerTls {
            identity: mk_cell(mk_identity(&self.red, INGRESS)),
            trust: mk_trust(&[(GREEN, &self.green)]),
            client_ids: vec![mk_id(EGRESS)],
            alpn: Vec::new(),
        }
    }

    fn server(&self) -> Arc<ServerConfig> {
        server_config(self.server_tls()).unwrap()
    }

    fn client_tls(&self, identity: Option<Identity>) -> ClientTls {
        ClientTls {
            identity: Arc::new(IdentityCell::new(identity)),
            trust: mk_trust(&[(RED, &self.red)]),
            server: ServerIds::OneOf(vec![mk_id(INGRESS)]),
            alpn: Vec::new(),
        }
    }

    fn client_as(&self, identity: Option<Identity>) -> Arc<ClientConfig> {
        client_config(self.client_tls(identity)).unwrap()
    }

    fn client(&self) -> Arc<ClientConfig> {
        self.client_as(Some(mk_identity(&self.green, EGRESS)))
    }
}

/// What each end saw.
struct Handshake {
    client: Result<ClientConnection, rustls::Error>,
    server: Result<ServerConnection, rustls::Error>,
}

impl Handshake {
    fn refusal_at_server(&self) -> HandshakeRefusal {
        HandshakeRefusal::from(self.server.as_ref().err().unwrap())
    }

    fn refusal_at_client(&self) -> HandshakeRefusal {
        HandshakeRefusal::from(self.client.as_ref().err().unwrap())
    }

    fn ok(self) -> (ClientConnection, ServerConnection) {
        (self.client.unwrap(), self.server.unwrap())
    }
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Handshake {
    let name = ServerName::try_from(SNI).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_failed, mut server_failed) = (None, None);
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let sent = wire.len();
        feed(&wire, |rd| server.read_tls(rd));
        if let Err(e) = server.process_new_packets() {
            server_failed.get_or_insert(e);
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |rd| client.read_tls(rd));
        if let Err(e) = client.process_new_packets() {
            client_failed.get_or_insert(e);
        }
        if sent + wire.len() == 0 {
            break;
        }
    }
    Handshake {
        client: client_failed.map_or(Ok(client), Err),
        server: server_failed.map_or(Ok(server), Err),
    }
}

fn feed(mut wire: &[u8], mut read: impl FnMut(&mut dyn io::Read) -> io::Result<usize>) {
    while !wire.is_empty() {
        // An end that has failed reads no more.
        if read(&mut wire).is_err() {
            return;
        }
    }
}

#[test]
fn two_meshes_shake_hands_with_a_post_quantum_key_exchange() {
    let meshes = Meshes::new();
    let (client, server) = shake(meshes.client(), meshes.server()).ok();
    assert_eq!(
        peer_id(client.peer_certificates().unwrap()).unwrap(),
        mk_id(INGRESS)
    );
    assert_eq!(
        peer_id(server.peer_certificates().unwrap()).unwrap(),
        mk_id(EGRESS)
    );
    assert_eq!(
        server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        server.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
    assert_eq!(server.server_name(), Some(SNI));
}

#[test]
fn an_older_peer_with_tls_1_2_is_accepted_and_verified() {
    let meshes = Meshes::new();
    let old = |tls: ClientTls| {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SpiffeVerifier::new(
                tls.trust,
                Allowed::Domain(RED.parse().unwrap()),
            )))
            .with_client_cert_resolver(Arc::new(Resolver(tls.identity)));
        config.resumption = Resumption::disabled();
        Arc::new(config)
    };
    let good = old(meshes.client_tls(Some(mk_identity(&meshes.green, EGRESS))));
    let (_, server) = shake(good, meshes.server()).ok();
    assert_eq!(
        server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    let bad = old(meshes.client_tls(Some(mk_identity(&meshes.red, EGRESS))));
    assert_eq!(
        shake(bad, meshes.server()).refusal_at_server().label(),
        "unknown_ca"
    );
}

#[test]
fn rsa_keys_are_accepted_from_peers() {
    let meshes = Meshes::new();
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let key = crate::KeyPair::from_pem(&rsa.serialize_pem()).unwrap();
    let id = mk_id(EGRESS);
    let csr = crate::new_csr(&key, &id).unwrap();
    let issued = meshes
        .green
        .sign_workload(&csr, &id, HOUR, std::time::SystemTime::now())
        .unwrap();
    let identity = Identity::from_pem(&issued.to_pem(), &key.to_pkcs8_pem()).unwrap();
    shake(meshes.client_as(Some(identity)), meshes.server()).ok();
}

#[test]
fn every_kind_of_forged_client_is_refused_with_its_reason() {
    let meshes = Meshes::new();
    let stranger = mk_ca(GREEN);
    let odd = |uris: &[&str]| {
        let (leaf, key) = Odd::with_uris(uris).signed_by(&meshes.green);
        // `Identity` would refuse these names, so the client is put together by hand.
        let signing = provider()
            .key_provider
            .load_private_key(key.pkcs8().clone_key())
            .unwrap();
        Arc::new(CertifiedKey::new(vec![leaf], signing))
    };
    let other = "spiffe://green-mesh.local/ns/green-mesh-system/sa/other";
    let cases = [
        (None, "no_certificate"),
        (Some(mk_identity(&stranger, EGRESS)), "unknown_ca"),
        (
            Some(mk_identity(&meshes.red, INGRESS)),
            "wrong_trust_domain",
        ),
        (
            Some(mk_identity(&meshes.green, INGRESS)),
            "wrong_trust_domain",
        ),
        (Some(mk_identity(&meshes.green, other)), "wrong_identity"),
    ];
    for (identity, expected) in cases {
        let handshake = shake(meshes.client_as(identity), meshes.server());
        assert_eq!(handshake.refusal_at_server().label(), expected);
        assert_eq!(handshake.refusal_at_client().label(), "peer_alert");
    }
    for uris in [&[][..], &[EGRESS, other]] {
        let mut client = ClientConfig::clone(&meshes.client());
        client.client_auth_cert_resolver = Arc::new(Fixed(odd(uris)));
        let handshake = shake(Arc::new(client), meshes.server());
        assert_eq!(handshake.refusal_at_server().label(), "not_spiffe");
    }
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

#[test]
fn a_client_refuses_servers_in_the_same_way() {
    let meshes = Meshes::new();
    let serve = |identity: Option<Identity>| {
        let mut tls = meshes.server_tls();
        tls.identity = Arc::new(IdentityCell::new(identity));
        server_config(tls).unwrap()
    };
    let stranger = mk_ca(RED);
    let other = "spiffe://red-mesh.local/ns/red-mesh-system/sa/other";
    let cases = [
        (mk_identity(&stranger, INGRESS), "unknown_ca"),
        (mk_identity(&meshes.green, EGRESS), "wrong_trust_domain"),
        (mk_identity(&meshes.red, other), "wrong_identity"),
    ];
    for (identity, expected) in cases {
        let handshake = shake(meshes.client(), serve(Some(identity)));
        assert_eq!(handshake.refusal_at_client().label(), expected);
    }
    let handshake = shake(meshes.client(), serve(None));
    assert_eq!(handshake.refusal_at_server().label(), "no_own_certificate");
}

#[derive(Debug)]
struct Later(std::time::Duration);

impl TimeProvider for Later {
    fn current_time(&self) -> Option<UnixTime> {
        let now = UnixTime::now().as_secs() + self.0.as_secs();
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            now,
        )))
    }
}

#[test]
fn time_comes_from_the_configuration_and_an_expired_client_is_refused() {
    let meshes = Meshes::new();
    let mut server = ServerConfig::clone(&meshes.server());
    server.time_provider = Arc::new(Later(2 * HOUR));
    let handshake = shake(meshes.client(), Arc::new(server));
    assert_eq!(handshake.refusal_at_server().label(), "expired");
}

#[test]
fn a_client_may_come_without_a_certificate_where_that_is_allowed_but_not_with_a_bad_one() {
    let meshes = Meshes::new();
    let server = || server_config_optional_client(meshes.server_tls()).unwrap();
    let (_, connection) = shake(meshes.client_as(None), server()).ok();
    assert!(connection.peer_certificates().is_none());
    shake(meshes.client(), server()).ok();
    let forged = meshes.client_as(Some(mk_identity(&meshes.red, EGRESS)));
    assert_eq!(
        shake(forged, server()).refusal_at_server().label(),
        "unknown_ca"
    );
}

#[test]
fn a_session_is_never_resumed() {
    let meshes = Meshes::new();
    let server = meshes.server();
    // A client that would resume if it could.
    let mut client = ClientConfig::clone(&meshes.client());
    client.resumption = Resumption::default();
    let client = Arc::new(client);
    for _ in 0..2 {
        let (client, server) = shake(client.clone(), server.clone()).ok();
        assert_ne!(client.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_ne!(server.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_rotated_identity_is_presented_without_a_new_configuration() {
    let meshes = Meshes::new();
    let tls = meshes.server_tls();
    let cell = tls.identity.clone();
    let server = server_config(tls).unwrap();
    let presented = |server: &Arc<ServerConfig>| {
        let (client, _) = shake(meshes.client(), server.clone()).ok();
        client.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let first = presented(&server);
    let next = mk_identity(&meshes.red, INGRESS);
    let leaf = next.chain[0].clone();
    cell.set(next);
    assert_ne!(first, leaf);
    assert_eq!(presented(&server), leaf);
}

#[test]
fn plain_http_and_garbage_are_named() {
    let meshes = Meshes::new();
    for text in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0xff; 64]] {
        let mut server = ServerConnection::new(meshes.server()).unwrap();
        feed(text, |rd| server.read_tls(rd));
        let error = server.process_new_packets().unwrap_err();
        assert_eq!(HandshakeRefusal::from(&error).label(), "garbage");
    }
}

#[test]
fn alpn_is_chosen_after_the_client_hello_and_no_overlap_is_no_error() {
    let meshes = Meshes::new();
    let mut tls = meshes.server_tls();
    tls.alpn = vec!["h2".to_string(), "http/1.1".to_string()];
    let config = server_config(tls).unwrap();
    let configs = ServerConfigs::new(&config);

    for (offers, expected) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["istio-peer-exchange"], None),
        (&["istio-peer-exchange", "h2"], Some("h2")),
        (&[], None),
    ] {
        let mut tls = meshes.client_tls(Some(mk_identity(&meshes.green, EGRESS)));
        tls.alpn = offers.iter().map(|p| p.to_string()).collect();
        let client = client_config(tls).unwrap();

        let mut hello = ClientConnection::new(client.clone(), SNI.try_into().unwrap()).unwrap();
        let mut wire = Vec::new();
        hello.write_tls(&mut wire).unwrap();
        let mut acceptor = Acceptor::default();
        feed(&wire, |rd| acceptor.read_tls(rd));
        let accepted = acceptor.accept().unwrap().unwrap();
        let chosen = configs.choose(&accepted.client_hello());

        let (client, _) = shake(client, chosen).ok();
        assert_eq!(
            client.alpn_protocol(),
            expected.map(str::as_bytes),
            "{offers:?}"
        );
    }
}

#[test]
fn our_preference_chooses_the_protocol() {
    let ours = ["h2".to_string(), "http/1.1".to_string()];
    assert_eq!(alpn_for(&[b"http/1.1", b"h2"], &ours), [b"h2".to_vec()]);
    assert_eq!(alpn_for(&[b"http/1.1"], &ours), [b"http/1.1".to_vec()]);
    assert!(alpn_for(&[b"spdy"], &ours).is_empty());
    assert!(alpn_for(&[b"h2"], &[]).is_empty());
}
