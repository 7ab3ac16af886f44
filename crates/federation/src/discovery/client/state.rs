//! What is known of a peer, as the plan and the statuses use it.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AnsweredBy;
use crate::discovery::message::DecodeError;
use crate::discovery::remote::{RemoteFault, RemoteServices};

/// The last good list of a peer and how it came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteState {
    pub services: Arc<RemoteServices>,
    /// When the last whole list was taken, or said to be the one that we have.
    pub last_full_sync: Option<Timestamp>,
    /// When the peer's control plane was last heard: an event or an answer to `services` that
    /// could be read.
    pub last_contact: Option<Timestamp>,
    /// The peer announces the extension.
    pub extended: bool,
    /// Whether that list's checksum was its own. A list is not refused for it.
    pub list_checksum_agrees: bool,
    pub watch: WatchState,
    /// The peer has told for some time that it does not know us, so that nothing is exported.
    pub withdrawn: bool,
    /// What is wrong with the peer's list; gone with the next good one.
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
    /// What the gateway that gave this answer said about it, if it did.
    pub last_disconnect_cause: Option<String>,
    /// Who that was.
    pub last_disconnect_by: AnsweredBy,
    pub last_event: Option<Timestamp>,
    /// Why we cut it off; gone when another one lasts.
    pub error: Option<RemoteError>,
}

impl RemoteState {
    /// What was kept of a peer from an earlier life of ours. `lost_at`: when the contact had ended already then.
    pub fn kept(
        services: Arc<RemoteServices>,
        last_contact: Option<Timestamp>,
        lost_at: Option<Timestamp>,
    ) -> Self {
        let watch = WatchState {
            last_disconnect: lost_at,
            ..WatchState::default()
        };
        Self {
            services,
            last_contact,
            watch,
            ..Self::default()
        }
    }

    /// When the contact ended; `None` while it lasts, and as long as nobody knows.
    pub fn lost_at(&self) -> Option<Timestamp> {
        (self.watch.last_disconnect).filter(|_| !self.watch.connected)
    }

    /// What is wrong with what the peer sends, if anything.
    pub fn fault(&self) -> Option<&RemoteError> {
        self.error.as_ref().or(self.watch.error.as_ref())
    }
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
    #[error("{1}")]
    Told(FaultKind, String),
    /// The watch is open, and yet no list comes: the cause in words.
    #[error("the peer's list does not come: {0}")]
    NoList(String),
    #[error("the peer sends events without end; its watch was cut off and is opened again later")]
    TooManyEvents,
    #[error(
        "the peer's list changed and its watch, which was open, told nothing of it; \
         the watch was opened anew"
    )]
    SilentWatch,
}

impl RemoteError {
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Unreadable(DecodeError::ListTooLong { .. })
            | Self::Refused(RemoteFault::TooLarge { .. }) => FaultKind::TooManyBytes,
            Self::Unreadable(DecodeError::TooManyServices { .. })
            | Self::Refused(RemoteFault::TooMany { .. } | RemoteFault::TooManyPorts { .. }) => {
                FaultKind::TooManyServices
            }
            Self::Unreadable(_) => FaultKind::Unreadable,
            Self::Refused(_) => FaultKind::Refused,
            Self::SuddenlyEmpty => FaultKind::SuddenlyEmpty,
            Self::NoList(_) => FaultKind::NoList,
            Self::TooManyEvents => FaultKind::TooManyEvents,
            Self::SilentWatch => FaultKind::SilentWatch,
            Self::Told(kind, _) => *kind,
        }
    }
}

/// What is wrong, as far as it matters for what can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    TooManyServices,
    TooManyBytes,
    Unreadable,
    Refused,
    SuddenlyEmpty,
    NoList,
    TooManyEvents,
    SilentWatch,
}

impl FaultKind {
    /// A reason of a condition.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooManyServices | Self::TooManyBytes => "ListTooLarge",
            Self::Unreadable => "UnreadableList",
            Self::Refused => "BadList",
            Self::SuddenlyEmpty => "SuddenlyEmpty",
            Self::NoList => "NoList",
            Self::TooManyEvents => "TooManyEvents",
            Self::SilentWatch => "SilentWatch",
        }
    }

    /// What the administrator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::TooManyBytes => {
                "ask the peer's administrator to export less, or raise meshfed.io/max-list-bytes"
            }
            Self::TooManyServices => {
                "ask the peer's administrator to export less, or raise meshfed.io/max-services"
            }
            Self::Unreadable | Self::Refused | Self::TooManyEvents => {
                "ask the peer's administrator what its control plane sends"
            }
            Self::SuddenlyEmpty => {
                "ask the peer's administrator whether this is meant; \
                 meshfed.io/hold-empty-list says how long it is held"
            }
            Self::NoList => "ask the peer's administrator why, or look at both gateways' logs",
            Self::SilentWatch => {
                "while this comes again, changes arrive with the next whole list only: \
                 ask the peer's administrator what holds its events back"
            }
        }
    }
}
