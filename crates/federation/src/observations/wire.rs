//! The parts of the document whose types are written in their own way elsewhere.

use std::sync::Arc;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::ObservationsError;
use crate::discovery::client::{AnsweredBy, FaultKind, RemoteError, RemoteState, WatchState};
use crate::discovery::extension::Report;
use crate::discovery::message::{Limits, decode_list};
use crate::discovery::remote::RemoteServices;
use crate::discovery::server::SourceStatus;
use crate::world::{Farewell, PeerState};

/// A time in RFC 3339.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instant(pub Timestamp);

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

type Moment = Option<Instant>;

/// What is seen of a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Peer {
    /// What it exports, in the form of the discovery protocol.
    services: Box<RawValue>,
    last_full_sync: Moment,
    last_contact: Moment,
    list_checksum_agrees: bool,
    extended: bool,
    withdrawn: bool,
    error: Option<Fault>,
    watch: Watch,
    watchers: Vec<Watcher>,
    farewell: Leaving,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            services: RawValue::NULL.to_owned(),
            last_full_sync: None,
            last_contact: None,
            list_checksum_agrees: false,
            extended: false,
            withdrawn: false,
            error: None,
            watch: Watch::default(),
            watchers: Vec::new(),
            farewell: Leaving::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Watch {
    connected: bool,
    last_connected: Moment,
    last_disconnect: Moment,
    last_disconnect_status: Option<String>,
    last_disconnect_cause: Option<String>,
    last_disconnect_by: AnsweredBy,
    last_event: Moment,
    error: Option<Fault>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Leaving {
    told: Moment,
    let_go: Option<String>,
    forgotten: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watcher {
    source: String,
    connected: bool,
    last_connected: Moment,
    last_disconnect: Moment,
    last_event: Moment,
    last_full_sync: Moment,
    /// In the form of its header.
    report: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fault {
    kind: FaultKind,
    text: String,
}

impl Fault {
    fn of(error: &RemoteError) -> Self {
        Self {
            kind: error.kind(),
            text: error.to_string(),
        }
    }

    fn told(self) -> RemoteError {
        RemoteError::Told(self.kind, self.text)
    }
}

impl Peer {
    pub fn of(state: &PeerState) -> Self {
        let remote = &*state.remote;
        let watch = &remote.watch;
        let list = String::from_utf8(remote.services.to_list().encode()).ok();
        Self {
            services: list
                .and_then(|list| RawValue::from_string(list).ok())
                .unwrap_or_else(|| RawValue::NULL.to_owned()),
            last_full_sync: remote.last_full_sync.map(Instant),
            last_contact: remote.last_contact.map(Instant),
            extended: remote.extended,
            list_checksum_agrees: remote.list_checksum_agrees,
            withdrawn: remote.withdrawn,
            error: remote.error.as_ref().map(Fault::of),
            watch: Watch {
                connected: watch.connected,
                last_connected: watch.last_connected.map(Instant),
                last_disconnect: watch.last_disconnect.map(Instant),
                last_disconnect_status: watch.last_disconnect_status.clone(),
                last_disconnect_cause: watch.last_disconnect_cause.clone(),
                last_disconnect_by: watch.last_disconnect_by,
                last_event: watch.last_event.map(Instant),
                error: watch.error.as_ref().map(Fault::of),
            },
            watchers: state
                .watchers
                .iter()
                .map(|watcher| Watcher {
                    source: watcher.source.clone(),
                    connected: watcher.connected,
                    last_connected: watcher.last_connected.map(Instant),
                    last_disconnect: watcher.last_disconnect.map(Instant),
                    last_event: watcher.last_event.map(Instant),
                    last_full_sync: watcher.last_full_sync.map(Instant),
                    report: watcher.report.as_ref().map(Report::encode),
                })
                .collect(),
            farewell: Leaving {
                told: state.farewell.told.map(Instant),
                let_go: state.farewell.let_go.clone(),
                forgotten: state.farewell.forgotten.clone(),
            },
        }
    }

    pub fn into_state(self, peer: &str) -> Result<PeerState, ObservationsError> {
        let at = |moment: Moment| moment.map(|instant| instant.0);
        let watch = self.watch;
        Ok(PeerState {
            remote: Arc::new(RemoteState {
                services: Arc::new(services(&self.services, peer)?),
                last_full_sync: at(self.last_full_sync),
                last_contact: at(self.last_contact),
                extended: self.extended,
                list_checksum_agrees: self.list_checksum_agrees,
                withdrawn: self.withdrawn,
                error: self.error.map(Fault::told),
                watch: WatchState {
                    connected: watch.connected,
                    last_connected: at(watch.last_connected),
                    last_disconnect: at(watch.last_disconnect),
                    last_disconnect_status: watch.last_disconnect_status,
                    last_disconnect_cause: watch.last_disconnect_cause,
                    last_disconnect_by: watch.last_disconnect_by,
                    last_event: at(watch.last_event),
                    error: watch.error.map(Fault::told),
                },
            }),
            watchers: self
                .watchers
                .into_iter()
                .map(|watcher| SourceStatus {
                    source: watcher.source,
                    connected: watcher.connected,
                    last_connected: at(watcher.last_connected),
                    last_disconnect: at(watcher.last_disconnect),
                    last_event: at(watcher.last_event),
                    last_full_sync: at(watcher.last_full_sync),
                    report: (watcher.report.as_deref())
                        .and_then(|report| Report::decode(report.as_bytes()).ok()),
                })
                .collect(),
            farewell: Farewell {
                told: at(self.farewell.told),
                let_go: self.farewell.let_go,
                forgotten: self.farewell.forgotten,
            },
        })
    }
}

/// The control plane has kept the peer within its limits already, and these may be set.
fn services(list: &RawValue, peer: &str) -> Result<RemoteServices, ObservationsError> {
    if list.get() == RawValue::NULL.get() {
        return Ok(RemoteServices::default());
    }
    let limits = Limits {
        list_bytes: usize::MAX,
        services: usize::MAX,
        ..Limits::default()
    };
    let refused = |fault: String| ObservationsError::List {
        peer: peer.to_owned(),
        fault,
    };
    let received = decode_list(list.get().as_bytes(), &limits);
    let received = received.map_err(|error| refused(error.to_string()))?;
    RemoteServices::check(received, &limits).map_err(|error| refused(error.to_string()))
}
