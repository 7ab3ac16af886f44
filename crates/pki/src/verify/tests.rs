use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

use super::*;
use crate::fixtures::{HOUR, Odd, mk_ca, mk_id, mk_identity, mk_trust};
use crate::{CertificateAuthority, Identity};

const RED: &str = "red-mesh.local";
const GREEN: &str = "green-mesh.local";
const INGRESS: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/ingress";

fn verifier(bundles: &[(&str, &CertificateAuthority)], allowed: Allowed) -> SpiffeVerifier {
    SpiffeVerifier::new(mk_trust(bundles), allowed)
}

fn verify_at(
    verifier: &SpiffeVerifier,
    chain: &[CertificateDer<'static>],
    role: PeerRole,
    now: SystemTime,
) -> Result<SpiffeId, HandshakeRefusal> {
    verifier.verify(&chain[0], &chain[1..], role, x509::to_unix(now))
}

fn verify(
    verifier: &SpiffeVerifier,
    chain: &[CertificateDer<'static>],
) -> Result<SpiffeId, HandshakeRefusal> {
    verify_at(verifier, chain, PeerRole::Client, SystemTime::now())
}

fn label(result: Result<SpiffeId, HandshakeRefusal>) -> &'static str {
    result.unwrap_err().label()
}

#[test]
fn a_certificate_of_the_right_domain_root_and_name_is_accepted_in_both_roles() {
    let red = mk_ca(RED);
    let identity = mk_identity(&red, INGRESS);
    let one = Allowed::OneOf([mk_id(INGRESS)].into());
    let domain = Allowed::Domain(RED.parse().unwrap());
    for allowed in [Allowed::Bundle, one, domain] {
        let verifier = verifier(&[(RED, &red)], allowed);
        for role in [PeerRole::Client, PeerRole::Server] {
            let accepted = verify_at(&verifier, &identity.chain, role, SystemTime::now());
            assert_eq!(accepted, Ok(mk_id(INGRESS)));
        }
    }
}

#[test]
fn the_trust_domain_chooses_the_roots() {
    let (red, green) = (mk_ca(RED), mk_ca(GREEN));
    let both = verifier(&[(RED, &red), (GREEN, &green)], Allowed::Bundle);

    // Green's authority vouches for a red name: trusted here, but not for that.
    let forged = mk_identity(&green, INGRESS);
    assert_eq!(label(verify(&both, &forged.chain)), "unknown_ca");

    let only_green = verifier(&[(GREEN, &green)], Allowed::Bundle);
    let honest = mk_identity(&red, INGRESS);
    assert_eq!(
        label(verify(&only_green, &honest.chain)),
        "wrong_trust_domain"
    );
}

#[test]
fn with_a_common_root_the_trust_domain_still_separates() {
    let shared = mk_ca("corporate");
    let red = mk_identity(&shared, INGRESS);
    let for_green = verifier(&[(GREEN, &shared)], Allowed::Bundle);
    assert_eq!(label(verify(&for_green, &red.chain)), "wrong_trust_domain");

    let green_only = Allowed::Domain(GREEN.parse().unwrap());
    let for_both = verifier(&[(RED, &shared), (GREEN, &shared)], green_only);
    assert_eq!(label(verify(&for_both, &red.chain)), "wrong_trust_domain");
}

#[test]
fn another_authority_of_the_same_name_is_unknown() {
    let (real, namesake) = (mk_ca(RED), mk_ca(RED));
    let verifier = verifier(&[(RED, &real)], Allowed::Bundle);
    let forged = mk_identity(&namesake, INGRESS);
    assert_eq!(label(verify(&verifier, &forged.chain)), "unknown_ca");
}

#[test]
fn the_right_domain_is_not_enough_where_ids_are_listed() {
    let red = mk_ca(RED);
    let allowed = Allowed::OneOf([mk_id(INGRESS)].into());
    let verifier = verifier(&[(RED, &red)], allowed);
    let other = mk_identity(&red, "spiffe://red-mesh.local/ns/red-mesh-system/sa/egress");
    let refusal = verify(&verifier, &other.chain).unwrap_err();
    assert_eq!(refusal.label(), "wrong_identity");
    assert_eq!(refusal.claimed_id(), other.id.as_ref());
}

#[test]
fn an_empty_list_of_servers_accepts_none() {
    let red = mk_ca(RED);
    let identity = mk_identity(&red, INGRESS);
    let verifier = verifier(&[(RED, &red)], Allowed::OneOf(BTreeSet::new()));
    assert!(verify(&verifier, &identity.chain).is_err());
}

#[test]
fn times_are_looked_at_on_every_certificate_up_to_the_root() {
    let red = mk_ca(RED);
    let verifier = verifier(&[(RED, &red)], Allowed::Bundle);
    let chain = mk_identity(&red, INGRESS).chain;
    let at = |time| label(verify_at(&verifier, &chain, PeerRole::Client, time));
    let now = SystemTime::now();
    assert_eq!(at(now + 2 * HOUR), "expired");
    assert_eq!(at(red.not_after() + HOUR), "root_expired");
    assert_eq!(at(now - 24 * HOUR), "root_expired");

    // The root made a minute later than the leaf's own first second.
    let skewed = CertificateAuthority::self_signed(RED, now - HOUR).unwrap();
    let leaf = mk_identity(&skewed, INGRESS).chain;
    let verifier = SpiffeVerifier::new(mk_trust(&[(RED, &skewed)]), Allowed::Bundle);
    let early = verify_at(
        &verifier,
        &leaf,
        PeerRole::Client,
        now - Duration::from_secs(600),
    );
    assert_eq!(label(early), "not_yet_valid");
}

#[test]
fn exactly_one_spiffe_name_is_needed() {
    let red = mk_ca(RED);
    let verifier = verifier(&[(RED, &red)], Allowed::Bundle);
    let egress = "spiffe://red-mesh.local/ns/red-mesh-system/sa/egress";
    for uris in [
        &[][..],
        &[INGRESS, egress],
        &[INGRESS, "https://red-mesh.local"],
        &["https://red-mesh.local/ns/a/sa/b"],
        &["red-mesh.local/ns/a/sa/b"],
        &["spiffe://red-mesh.local/elsewhere"],
    ] {
        let (leaf, _) = Odd::with_uris(uris).signed_by(&red);
        assert_eq!(label(verify(&verifier, &[leaf])), "not_spiffe", "{uris:?}");
    }
}

#[test]
fn a_certificate_for_other_uses_is_refused() {
    let red = mk_ca(RED);
    let verifier = verifier(&[(RED, &red)], Allowed::Bundle);
    let with = |change: &dyn Fn(&mut Odd)| {
        let mut odd = Odd::with_uris(&[INGRESS]);
        change(&mut odd);
        odd.signed_by(&red).0
    };
    let server_only = with(&|o| o.usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let chain = [server_only];
    assert_eq!(label(verify(&verifier, &chain)), "wrong_usage");
    assert!(verify_at(&verifier, &chain, PeerRole::Server, SystemTime::now()).is_ok());

    let ca = with(&|o| o.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(label(verify(&verifier, &[ca])), "wrong_usage");
    let signs = with(&|o| o.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert_eq!(label(verify(&verifier, &[signs])), "wrong_usage");
    let encrypts = with(&|o| o.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    assert_eq!(label(verify(&verifier, &[encrypts])), "wrong_usage");
}

#[test]
fn long_chains_and_large_certificates_are_refused_unread() {
    let red = mk_ca(RED);
    let verifier = verifier(&[(RED, &red)], Allowed::Bundle);
    let leaf = mk_identity(&red, INGRESS).chain.remove(0);
    let chain = vec![leaf.clone(); MAX_PEER_CHAIN + 1];
    assert_eq!(label(verify(&verifier, &chain)), "too_large");
    let large = CertificateDer::from(vec![0; MAX_CERTIFICATE_LEN + 1]);
    assert_eq!(label(verify(&verifier, &[leaf, large])), "too_large");
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let red = mk_ca(RED);
    let verifier = verifier(&[(RED, &red)], Allowed::Bundle);
    let junk = CertificateDer::from(b"not a certificate".to_vec());
    assert_eq!(label(verify(&verifier, &[junk])), "bad_certificate");
    let mut longer = mk_identity(&red, INGRESS).chain[0].to_vec();
    longer.push(0);
    let longer = CertificateDer::from(longer);
    assert_eq!(label(verify(&verifier, &[longer])), "bad_certificate");
}

#[test]
fn a_refusal_survives_the_way_through_rustls() {
    let refusal = HandshakeRefusal::WrongIdentity { id: mk_id(INGRESS) };
    let tls = rustls::Error::from(refusal.clone());
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
    assert_eq!(HandshakeRefusal::from(&io), refusal);
    let wrapped = std::io::Error::other(io);
    assert_eq!(HandshakeRefusal::find(&wrapped), Some(refusal));
}

/// Authorities are dear to make, so the property below draws from these.
static DOMAINS: [&str; 4] = ["a.local", "b.local", "a.local.b", "b"];
static AUTHORITIES: LazyLock<Vec<CertificateAuthority>> =
    LazyLock::new(|| DOMAINS.iter().map(|d| mk_ca(d)).collect());
/// `IDENTITIES[by][of]`: authority `by` vouches for a name in domain `of`.
static IDENTITIES: LazyLock<Vec<Vec<Identity>>> = LazyLock::new(|| {
    AUTHORITIES
        .iter()
        .map(|ca| {
            DOMAINS
                .iter()
                .map(|domain| mk_identity(ca, &format!("spiffe://{domain}/ns/n/sa/s")))
                .collect()
        })
        .collect()
});

fn any_allowed() -> impl Strategy<Value = Allowed> {
    prop_oneof![
        Just(Allowed::Bundle),
        (0..DOMAINS.len()).prop_map(|d| Allowed::Domain(DOMAINS[d].parse().unwrap())),
        proptest::collection::vec(0..DOMAINS.len(), 0..3).prop_map(|ds| {
            Allowed::OneOf(
                ds.iter()
                    .map(|d| mk_id(&format!("spiffe://{}/ns/n/sa/s", DOMAINS[*d])))
                    .collect(),
            )
        }),
    ]
}

proptest! {
    /// Acceptance is exactly: the bundle of the certificate's own domain holds its authority, and
    /// the domain and name are allowed. So no certificate of one domain passes for another's bundle.
    #[test]
    fn no_certificate_passes_by_the_bundle_of_another_domain(
        bundles in proptest::collection::btree_map(0..DOMAINS.len(), 0..DOMAINS.len(), 0..4),
        allowed in any_allowed(),
        by in 0..DOMAINS.len(),
        of in 0..DOMAINS.len(),
        role in prop_oneof![Just(PeerRole::Client), Just(PeerRole::Server)],
    ) {
        let stores: Vec<_> = bundles
            .iter()
            .map(|(domain, ca)| (DOMAINS[*domain], &AUTHORITIES[*ca]))
            .collect();
        let verifier = verifier(&stores, allowed.clone());
        let identity = &IDENTITIES[by][of];
        let id = identity.id.clone().unwrap();
        let accepted = verify_at(&verifier, &identity.chain, role, SystemTime::now()).is_ok();
        let expected = bundles.get(&of) == Some(&by)
            && match &allowed {
                Allowed::Bundle => true,
                Allowed::Domain(domain) => domain.as_str() == DOMAINS[of],
                Allowed::OneOf(ids) => ids.contains(&id),
            };
        prop_assert_eq!(accepted, expected);
    }

    /// Whatever bytes a peer sends as its certificate, they are refused without a panic.
    #[test]
    fn arbitrary_bytes_are_refused(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (good, ca) = (&IDENTITIES[0][0], &AUTHORITIES[0]);
        let mut bytes = good.chain[0].to_vec();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let changed = bytes != good.chain[0].as_ref();
        let verifier = verifier(&[(DOMAINS[0], ca)], Allowed::Bundle);
        let result = verify(&verifier, &[CertificateDer::from(bytes)]);
        prop_assert_eq!(result.is_err(), changed);
    }
}
