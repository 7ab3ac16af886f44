//! What a [`Client`](super::Client) asks of the shell, and how that ends.

use serde::{Deserialize, Serialize};

use crate::names::clip;

/// Names one request of a [`Client`](super::Client). Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// GET `/v1/watch`.
    OpenWatch(RequestId),
    /// GET `/v1/services/`.
    GetList(RequestId),
    /// Drop this request and its connection.
    Cancel(RequestId),
    /// [`Client::state`](super::Client::state) is another one now; `services` tells whether the services changed too.
    Changed { services: bool },
}

/// Who gave an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AnsweredBy {
    /// Our egress gateway does not say, as it is none of our proxies.
    #[default]
    Unknown,
    /// Our egress gateway itself.
    Egress,
    /// Who is behind it: the peer's ingress gateway, or its control plane.
    Peer,
}

/// Why a request ended without a good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An answer other than 200: its code and reason.
    Status(u16, String),
    /// A gateway on the way got no further: its code and reason, what it says about it, and which it is.
    Gateway {
        code: u16,
        reason: String,
        says: String,
        by: AnsweredBy,
    },
    /// No answer, or it broke off: the cause in words.
    Transport(String),
}

impl Failure {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Status(code, reason) | Self::Gateway { code, reason, .. } => {
                clip(format!("{code} {reason}").trim_end())
            }
            Self::Transport(cause) => clip(cause),
        }
    }

    /// Whether it tells of the way to the peer rather than of the peer.
    pub(super) fn is_of_the_way(&self) -> bool {
        match self {
            Self::Status(code, _) => (502..=504).contains(code),
            Self::Gateway { .. } | Self::Transport(_) => true,
        }
    }

    pub(super) fn by(&self) -> AnsweredBy {
        match self {
            Self::Gateway { by, .. } => *by,
            Self::Status(..) | Self::Transport(_) => AnsweredBy::Unknown,
        }
    }

    pub(super) fn says(&self) -> Option<String> {
        match self {
            Self::Gateway { says, .. } if !says.is_empty() => Some(clip(says)),
            _ => None,
        }
    }
}
