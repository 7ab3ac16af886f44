//! What is known of a peer, as the plan and the statuses use it.

use std::sync::Arc;

use jiff::Timestamp;

use crate::discovery::message::DecodeError;
use crate::discovery::remote::{RemoteFault, RemoteServices};

/// The last good list of a peer and how it came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteState {
    pub services: Arc<RemoteServices>,
    /// When the last whole list was taken.
    pub last_full_sync: Option<Timestamp>,
    /// Whether that list's checksum was its own. A list is not refused for it.
    pub list_checksum_agrees: bool,
    pub watch: WatchState,
    /// The peer has told for some time that it does not know us, so that nothing is exported.
    pub withdrawn: bool,
    /// What is wrong with what the peer sends; gone with the next good list.
    pub error: Option<RemoteError>,
}

/// Our connection to the peer's control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchState {
    pub connected: bool,
    pub last_connected: Option<Timestamp>,
    pub last_disconnect: Option<Timestamp>,
    /// Such as `503 Service Unavailable`; stays after the next connect.
    pub last_disconnect_status: Option<String>,
    pub last_event: Option<Timestamp>,
}

/// Why something that a peer sent was not taken. The last good list stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    #[error(transparent)]
    Unreadable(DecodeError),
    #[error(transparent)]
    Refused(RemoteFault),
    /// It may be a control plane that has just started.
    #[error("the peer's list is suddenly empty and not believed until it stays so")]
    SuddenlyEmpty,
    /// As a control plane told a tool.
    #[error("{0}")]
    Told(String),
}
