//! Names, parsed once at the edge into types that cannot be wrong.
//!
//! | type | form |
//! | --- | --- |
//! | [`Label`] | a DNS-1123 label |
//! | [`PeerName`] | the name of a ServiceMeshPeer |
//! | [`ServiceKey`] | namespace and name of a service |
//! | [`ExportedHost`] | `<name>.<ns>.svc.<peer>-exports.local` |
//! | [`RemoteHost`] | `<name>.<ns>.svc.<peer>.remote` |
//! | [`ImportedHost`] | `<name>.<ns>.<suffix>` |
//! | [`DiscoveryHost`] | `discovery.<system-ns>.svc.<peer>.local` |

mod host;
mod label;
mod suffix;

pub use host::{DiscoveryHost, ExportedHost, ImportedHost, RemoteHost};
pub use label::{Label, MAX_PEER_NAME_LEN, PeerName, ServiceKey};
pub use suffix::DomainSuffix;

/// Longest DNS label, in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL_LEN: usize = 63;
/// Longest host name, in bytes, as it is written without a trailing dot (RFC 1035, section 2.3.4).
pub const MAX_HOST_LEN: usize = 253;
/// Longest host that still fits into [`MAX_HOST_LEN`] behind `outbound_.65535_._.`, the form in
/// which it stands in an SNI.
pub const MAX_SNI_HOST_LEN: usize = MAX_HOST_LEN - "outbound_.65535_._.".len();

/// Why a text is not the name that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "{0:?} is not a DNS label: 1 to 63 of a-z, 0-9 and '-', a letter or digit at both ends"
    )]
    NotALabel(String),
    #[error(
        "the peer name {0:?} is longer than 55 bytes, so that \"<peer>-exports\" is no DNS label"
    )]
    PeerNameTooLong(String),
    #[error("{0:?} is not a DNS domain: labels of a-z, 0-9 and '-', joined by '.'")]
    NotADomain(String),
    #[error(
        "the DNS domain {0:?} is longer than {MAX_SNI_HOST_LEN} bytes, so that no name in it fits into an SNI"
    )]
    DomainTooLong(String),
    #[error("the name {0:?} is longer than {MAX_SNI_HOST_LEN} bytes, so that it fits into no SNI")]
    HostTooLong(String),
    #[error("the host name {host:?} is not {name}.{namespace}.svc.<label>-exports.local")]
    NotAnExportedHost {
        host: String,
        name: Label,
        namespace: Label,
    },
}

/// Error messages repeat what was given, but never at a length that the sender chose. Three dots are
/// where more was.
pub(crate) fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_REPEATED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Characters of what was given that an error message repeats.
const MAX_REPEATED: usize = 120;

#[cfg(test)]
mod tests;
