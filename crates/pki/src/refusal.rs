//! Why a TLS handshake failed, as a value.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::{CertificateError, OtherError};

use crate::SpiffeId;
use crate::x509::{self, PeerIdError};

/// Why a handshake did not succeed. [`label`](Self::label) is short and stable, for metrics and
/// access logs; `Display` is for people.
///
/// The verifiers of this crate put it into the [`rustls::Error`]; the `From` implementations take
/// it out again and name every other failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeRefusal {
    #[error("the peer presented no certificate")]
    NoCertificate,
    #[error("the peer's certificate is no SPIFFE certificate: {0}")]
    NotSpiffe(PeerIdError),
    #[error("the trust domain of {id} is not trusted here")]
    WrongTrustDomain { id: SpiffeId },
    #[error("the certificate of {id} does not lead to a trusted root of its trust domain")]
    UnknownCa { id: SpiffeId },
    #[error("every trusted root of the trust domain of {id} has expired or is not valid yet")]
    RootExpired { id: SpiffeId },
    #[error("a certificate in the chain of {id} has expired at {}", x509::shown(*.not_after))]
    Expired { id: SpiffeId, not_after: SystemTime },
    #[error("a certificate in the chain of {id} is valid only from {}; are the clocks right?", x509::shown(*.not_before))]
    NotYetValid {
        id: SpiffeId,
        not_before: SystemTime,
    },
    #[error("the certificate of {id} may not be used for this end of TLS")]
    WrongUsage { id: SpiffeId },
    #[error("{id} is authentic, but not one of the identities that are accepted here")]
    WrongIdentity { id: SpiffeId },
    #[error("the peer's certificate chain is longer than is accepted")]
    TooLarge,
    #[error("the peer's certificate cannot be used: {0}")]
    BadCertificate(String),
    #[error("the peer refused the handshake with the alert {0}")]
    PeerAlert(String),
    #[error("the peer does not speak TLS, or sent garbage")]
    Garbage,
    #[error("the peer supports no TLS version, cipher or protocol that is accepted here: {0}")]
    Incompatible(String),
    #[error("the peer broke the rules of TLS: {0}")]
    Misbehaved(String),
    #[error("this end has no certificate yet")]
    NoOwnCertificate,
    #[error("the peer closed the connection during the handshake")]
    Closed,
    #[error("the handshake took too long")]
    Timeout,
    #[error("the handshake failed: {0}")]
    Other(String),
}

impl HandshakeRefusal {
    /// Every label that [`label`](Self::label) can give.
    pub const LABELS: [&'static str; 19] = [
        "no_certificate",
        "not_spiffe",
        "wrong_trust_domain",
        "unknown_ca",
        "root_expired",
        "expired",
        "not_yet_valid",
        "wrong_usage",
        "wrong_identity",
        "too_large",
        "bad_certificate",
        "peer_alert",
        "garbage",
        "incompatible",
        "misbehaved",
        "no_own_certificate",
        "closed",
        "timeout",
        "other",
    ];

    /// A short name that stays the same between versions.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::NotSpiffe(_) => "not_spiffe",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::UnknownCa { .. } => "unknown_ca",
            Self::RootExpired { .. } => "root_expired",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::WrongUsage { .. } => "wrong_usage",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::TooLarge => "too_large",
            Self::BadCertificate(_) => "bad_certificate",
            Self::PeerAlert(_) => "peer_alert",
            Self::Garbage => "garbage",
            Self::Incompatible(_) => "incompatible",
            Self::Misbehaved(_) => "misbehaved",
            Self::NoOwnCertificate => "no_own_certificate",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Other(_) => "other",
        }
    }

    /// The identity that the peer claimed, if it got that far. It is proven only for
    /// [`WrongIdentity`](Self::WrongIdentity).
    pub fn claimed_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::WrongTrustDomain { id }
            | Self::UnknownCa { id }
            | Self::RootExpired { id }
            | Self::Expired { id, .. }
            | Self::NotYetValid { id, .. }
            | Self::WrongUsage { id }
            | Self::WrongIdentity { id } => Some(id),
            _ => None,
        }
    }

    /// Looks for a TLS failure in an error and its causes, for libraries (hyper, tonic) that wrap
    /// what a handshake gave. `None` if there is none.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(tls.into());
            }
            // The source of an `io::Error` is the source of what it wraps, not the wrapped itself.
            next = match error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
            {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }
}

impl From<HandshakeRefusal> for rustls::Error {
    fn from(refusal: HandshakeRefusal) -> Self {
        match refusal {
            HandshakeRefusal::NoCertificate => Self::NoCertificatesPresented,
            // `Other` sends the alert certificate_unknown whatever the reason. The more telling
            // alerts belong to variants that cannot carry the identity into our own log.
            other => Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(other)))),
        }
    }
}

impl From<&rustls::Error> for HandshakeRefusal {
    fn from(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<Self>() {
                    Some(refusal) => refusal.clone(),
                    None => Self::BadCertificate(other.to_string()),
                }
            }
            Tls::InvalidCertificate(other) => Self::BadCertificate(other.to_string()),
            Tls::NoCertificatesPresented => Self::NoCertificate,
            Tls::AlertReceived(alert) => Self::PeerAlert(format!("{alert:?}")),
            Tls::InvalidMessage(_) | Tls::PeerSentOversizedRecord => Self::Garbage,
            Tls::PeerIncompatible(why) => Self::Incompatible(format!("{why:?}")),
            Tls::NoApplicationProtocol => Self::Incompatible("NoApplicationProtocol".to_string()),
            Tls::PeerMisbehaved(why) => Self::Misbehaved(format!("{why:?}")),
            Tls::InappropriateMessage { .. }
            | Tls::InappropriateHandshakeMessage { .. }
            | Tls::DecryptError => Self::Misbehaved(error.to_string()),
            // The one way in which a certificate resolver can say that it has none.
            Tls::General(text) if text == "no server certificate chain resolved" => {
                Self::NoOwnCertificate
            }
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<&io::Error> for HandshakeRefusal {
    /// From the error of a failed accept or connect.
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = tls_error(error) {
            return tls.into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other(error.to_string()),
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
