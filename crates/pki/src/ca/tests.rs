use super::*;
use crate::fixtures::{HOUR, mk_ca, mk_id};
use crate::new_csr;

const RATINGS: &str = "spiffe://red-mesh.local/ns/bookinfo/sa/ratings";

fn mk_csr() -> String {
    new_csr(&KeyPair::generate().unwrap(), &mk_id(RATINGS)).unwrap()
}

fn pem_of(cert: &rcgen::Certificate) -> String {
    x509::to_pem(cert.der())
}

/// A root, an intermediate below it, and the intermediate as Secret `cacerts`.
fn mk_intermediate(path_len: u8) -> CaPem {
    let now = SystemTime::now();
    let params = |name: &str, path_len| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (now - HOUR).into();
        params.not_after = (now + HOUR * 24).into();
        params
    };
    let root_key = KeyPair::generate().unwrap();
    let root_params = params("root", path_len);
    let root = root_params.self_signed(root_key.signer()).unwrap();
    let issuer = Issuer::new(root_params, root_key.signer());
    let ca_key = KeyPair::generate().unwrap();
    let ca = params("intermediate", 0)
        .signed_by(ca_key.signer(), &issuer)
        .unwrap();
    CaPem {
        root_cert: pem_of(&root),
        ca_cert: pem_of(&ca),
        ca_key: ca_key.to_pkcs8_pem().to_string(),
        cert_chain: pem_of(&ca) + &pem_of(&root),
    }
}

#[test]
fn a_workload_gets_the_identity_that_we_give_whatever_it_asked_for() {
    let ca = mk_ca("red-mesh.local");
    let asked = mk_id("spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod");
    let csr = new_csr(&KeyPair::generate().unwrap(), &asked).unwrap();
    let now = SystemTime::now();
    let issued = ca.sign_workload(&csr, &mk_id(RATINGS), HOUR, now).unwrap();
    assert_eq!(issued.certificates.len(), 1);

    let chain = x509::pem_certificates(&issued.to_pem()).unwrap();
    assert_eq!(crate::peer_id(&chain).unwrap(), mk_id(RATINGS));
    let leaf = x509::parse(&chain[0]).unwrap();
    assert_eq!(
        x509::system_time(leaf.validity().not_after),
        issued.not_after
    );
    assert_eq!(issued.not_after, whole_seconds(now + HOUR));
    assert!(x509::may_authenticate(&leaf));
    assert!(!leaf.is_ca());
}

#[test]
fn two_certificates_for_one_key_have_different_serials() {
    let ca = mk_ca("red-mesh.local");
    let csr = mk_csr();
    let serial_of = || {
        let issued = ca
            .sign_workload(&csr, &mk_id(RATINGS), HOUR, SystemTime::now())
            .unwrap();
        let chain = x509::pem_certificates(&issued.to_pem()).unwrap();
        x509::parse(&chain[0]).unwrap().raw_serial_as_string()
    };
    assert_ne!(serial_of(), serial_of());
}

#[test]
fn nothing_outlives_its_authority_and_an_expired_one_signs_nothing() {
    let ca = mk_ca("red-mesh.local");
    let now = SystemTime::now();
    let issued = ca
        .sign_workload(&mk_csr(), &mk_id(RATINGS), Duration::MAX, now)
        .unwrap();
    assert_eq!(issued.not_after, ca.not_after());

    let later = ca.not_after() + HOUR;
    let refused = ca.sign_workload(&mk_csr(), &mk_id(RATINGS), HOUR, later);
    assert!(matches!(refused, Err(IssueError::CaExpired { .. })));
    let refused = CertificateAuthority::from_pem_at(&ca.to_pem(), later);
    assert!(matches!(refused, Err(CaError::RootExpired { .. })));
}

#[test]
fn an_authority_survives_its_secret() {
    let ca = mk_ca("red-mesh.local");
    let again = CertificateAuthority::from_pem(&ca.to_pem()).unwrap();
    assert_eq!(again.to_pem(), ca.to_pem());
    assert_eq!(again.not_after(), ca.not_after());
}

#[test]
fn a_given_intermediate_is_sent_along_and_its_root_is_not() {
    let pem = mk_intermediate(1);
    let ca = CertificateAuthority::from_pem(&pem).unwrap();
    let issued = ca
        .sign_workload(&mk_csr(), &mk_id(RATINGS), HOUR, SystemTime::now())
        .unwrap();
    assert_eq!(issued.certificates.len(), 2);
    assert_eq!(issued.certificates[1], pem.ca_cert);
    assert_eq!(ca.root_pem(), pem.root_cert);
}

#[test]
fn a_chain_that_peers_would_refuse_is_refused_at_once() {
    let good = mk_intermediate(1);
    let other = mk_intermediate(1);

    let mut foreign_root = good.clone();
    foreign_root.root_cert = other.root_cert.clone();
    let too_deep = mk_intermediate(0);
    for pem in [foreign_root, too_deep] {
        let refused = CertificateAuthority::from_pem(&pem);
        assert!(
            matches!(refused, Err(CaError::ChainBroken { .. })),
            "{refused:?}"
        );
    }

    let mut foreign_key = good.clone();
    foreign_key.ca_key = other.ca_key.clone();
    let refused = CertificateAuthority::from_pem(&foreign_key);
    assert!(matches!(refused, Err(CaError::KeyMismatch)), "{refused:?}");
}

#[test]
fn each_fault_of_the_secret_has_its_own_line() {
    let good = mk_intermediate(1);
    let with = |change: &dyn Fn(&mut CaPem)| {
        let mut pem = good.clone();
        change(&mut pem);
        CertificateAuthority::from_pem(&pem).unwrap_err()
    };
    assert!(matches!(
        with(&|p| p.root_cert.clear()),
        CaError::Root(TrustError::Empty)
    ));
    assert!(matches!(
        with(&|p| p.root_cert = "hello".to_string()),
        CaError::Root(TrustError::NotPem)
    ));
    assert!(matches!(
        with(&|p| p.ca_cert.clear()),
        CaError::NoCertificate
    ));
    assert!(matches!(
        with(&|p| p.ca_key.clear()),
        CaError::Key(KeyError::NotPem)
    ));
    assert!(matches!(
        with(&|p| p.cert_chain = p.ca_cert.repeat(MAX_CA_CHAIN + 1)),
        CaError::Chain
    ));

    let root = mk_ca("red-mesh.local");
    let leaf = root
        .issue_client("admin", &[], HOUR, SystemTime::now())
        .unwrap()
        .to_pem();
    let error = with(&|p| {
        p.root_cert = root.root_pem().to_string();
        p.ca_cert = leaf.chain.clone();
        p.ca_key = leaf.key.to_string();
    });
    assert!(matches!(error, CaError::NotACa), "{error:?}");
}

#[test]
fn what_an_authority_shows_holds_no_key() {
    let ca = mk_ca("red-mesh.local");
    let secret = ca.to_pem().ca_key.clone();
    let secret = secret.lines().nth(1).unwrap();
    assert!(!format!("{ca:?}").contains(secret));
    assert!(!format!("{:?}", ca.to_pem()).contains(secret));
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let ca = mk_ca("red-mesh.local");
    let sign = |csr: &str| {
        ca.sign_workload(csr, &mk_id(RATINGS), HOUR, SystemTime::now())
            .unwrap_err()
    };
    assert!(matches!(
        sign(&"x".repeat(MAX_CSR_LEN + 1)),
        IssueError::CsrTooLong
    ));
    assert!(matches!(sign("hello"), IssueError::CsrUnreadable));

    // Our own request with another key put in its place: the signature no longer fits.
    let der = |pem: &str| {
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .unwrap()
            .to_vec()
    };
    let mine = KeyPair::generate().unwrap();
    let stolen = KeyPair::generate().unwrap();
    let mut forged = der(&new_csr(&mine, &mk_id(RATINGS)).unwrap());
    let (from, to) = (
        mine.signer().public_key_raw(),
        stolen.signer().public_key_raw(),
    );
    let at = forged
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    forged[at..at + to.len()].copy_from_slice(to);
    let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged));
    assert!(matches!(sign(&forged), IssueError::CsrSignature));
}

#[test]
fn a_server_certificate_has_its_names_and_a_client_one_its_user() {
    let ca = mk_ca("red-mesh.local");
    let now = SystemTime::now();
    let istiod = mk_id("spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod");
    let server = ca
        .issue_server(
            &["kubernetes.default.svc".to_string()],
            &["127.0.0.1".parse().unwrap()],
            Some(&istiod),
            HOUR,
            now,
        )
        .unwrap();
    assert_eq!(server.id.as_ref(), Some(&istiod));
    let leaf = EndEntityCert::try_from(&server.chain[0]).unwrap();
    for name in ["kubernetes.default.svc", "127.0.0.1"] {
        leaf.verify_is_valid_for_subject_name(&name.try_into().unwrap())
            .unwrap();
    }
    assert!(
        leaf.verify_is_valid_for_subject_name(&"127.0.0.2".try_into().unwrap())
            .is_err()
    );

    let client = ca
        .issue_client("admin", &["system:masters".to_string()], HOUR, now)
        .unwrap();
    assert_eq!(client.id, None);
    let leaf = x509::parse(&client.chain[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "O=system:masters, CN=admin");

    let refused = ca.issue_server(&["no name é".to_string()], &[], None, HOUR, now);
    assert!(matches!(refused, Err(IssueError::Name(_))));
}
