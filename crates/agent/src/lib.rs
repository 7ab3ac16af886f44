//! What stands between a workload and its control plane: certificates.
//!
//! A key is made here and never leaves; the control plane signs it for whoever can show a
//! ServiceAccount token; and before the certificate ends, the next one is there.
//!
//! ```text
//! token, CSR --CaClient--> control plane --certificate--> IdentityKeeper --> IdentityCell
//!                                                              |
//!                                                 (beside an Envoy) SDS on a Unix socket
//! ```
//!
//! Our own proxy uses [`IdentityKeeper`] directly; an [`Agent`] runs beside a stock Envoy.

mod agent;
mod ca_client;
mod control_plane;
mod first_contact;
mod keeper;
mod sds;
mod secrets;
mod socket;
mod token;

pub use agent::{Agent, AgentError, AgentOptions, EnvoyOptions};
pub use ca_client::{CaClient, CertificateError};
pub use control_plane::{ConnectError, ControlPlane, ControlPlaneOptions, RootSource};
pub use first_contact::{FirstContactError, first_contact, first_contact_tls};
pub use keeper::{IdentityKeeper, IdentityMetrics};
pub use socket::SocketError;
pub use token::{TokenError, TokenSource};
