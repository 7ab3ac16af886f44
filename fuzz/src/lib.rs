//! One function for each parser of what others send. It panics if something does not hold that must
//! hold for every input.

pub mod exchange;

use meshfed_federation::discovery::extension::{MAX_REPORT_BYTES, Report};
use meshfed_federation::discovery::message::{EventDecoder, Limits, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_pki::{SpiffeId, TrustDomain, TrustStore, peer_certificate};
use rustls_pki_types::CertificateDer;

/// A parser by name.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 8] = [
    ("list", list),
    ("events", events),
    ("report", report),
    ("exchange", exchange::client),
    ("asked", exchange::server),
    ("spiffe_id", spiffe_id),
    ("certificate", certificate),
    ("roots", roots),
];

/// A list that is taken is written again with the checksum that it has.
pub fn list(data: &[u8]) {
    let limits = Limits::default();
    let Ok(received) = decode_list(data, &limits) else {
        return;
    };
    if let Ok(services) = RemoteServices::check(received, &limits) {
        let again = decode_list(&services.to_list().encode(), &limits);
        let again = again.expect("what we write can be read");
        let again = RemoteServices::check(again, &limits).expect("and is taken");
        assert!(again.iter().eq(services.iter()));
    }
}

/// The events are the same however the body is cut.
pub fn events(data: &[u8]) {
    let decode = |size: usize| {
        let mut decoder = EventDecoder::new(Limits::default());
        let mut events = Vec::new();
        for chunk in data.chunks(size) {
            if decoder.push(chunk, &mut events).is_err() {
                break;
            }
        }
        events
    };
    assert_eq!(decode(1), decode(usize::MAX));
}

/// A report that is taken is one that we could have sent.
pub fn report(data: &[u8]) {
    if let Ok(report) = Report::decode(data) {
        let text = report.encode();
        assert!(text.len() <= MAX_REPORT_BYTES);
        assert!(text.bytes().all(|b| matches!(b, b' '..=b'~')));
        Report::decode(text.as_bytes()).expect("what we write can be read");
    }
}

/// An identity that is taken is written as it is read.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string().parse::<SpiffeId>().as_ref(), Ok(&id));
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
    }
}

/// The certificate that a peer shows in a handshake.
pub fn certificate(data: &[u8]) {
    let chain = [CertificateDer::from(data)];
    if let Ok(certificate) = peer_certificate(&chain) {
        let _is_written = format!("{certificate:?}");
    }
}

/// The root that another administrator handed over.
pub fn roots(data: &[u8]) {
    let (Ok(pem), Ok(domain)) = (std::str::from_utf8(data), "a.local".parse()) else {
        return;
    };
    let _taken_or_refused = TrustStore::single(domain, pem);
}
