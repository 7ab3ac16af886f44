//! The pure core of meshfed: no I/O, no clock, no randomness of its own.
//!
//! * [`world`]: everything that is known, and [`plan`]: everything that follows from it.
//! * [`names`]: every name that crosses a border between meshes, parsed once into a checked type.
//! * [`rules`]: which services a rule set exports or imports, under which name, and why.
//! * [`discovery`]: the protocol between two control planes as state machines: bytes and ticks in,
//!   actions out.
//! * [`bundle`]: what another mesh applies to make this one its peer.
//! * [`difference`]: what two states of the mesh share differently, and with whom.
//! * [`observations`]: what a control plane sees outside of the API, as a document for tools.
//! * [`summary`]: the mesh on one screen, problems first.
//! * [`whatif`]: what would be shared if some objects were others.
//! * [`explain`]: why a service is shared, or what stands in the way.
//! * [`protocol`] and [`moment`]: what a port speaks, and time as a value.
//!
//! ```text
//!  resources of the API --+
//!  what peers export    --+--> World --plan()--> Plan --+--> Services of gateways, statuses
//!  who watches          --+                             +--> configuration of every proxy
//!        ^                                              +--> exports by peer ----> discovery::server
//!        +---- discovery::client <-- whom to ask -------+
//! ```
//!
//! What one mesh exports is what the other one hears:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use meshfed_federation::discovery::client::{Action, Client, ClientSettings, RemoteState};
//! use meshfed_federation::discovery::export::{Export, Shown};
//! use meshfed_federation::discovery::extension::Health;
//! use meshfed_federation::discovery::server::{Answer, Server, ServerSettings};
//! use meshfed_federation::moment::Moment;
//! use meshfed_federation::names::{ExportedHost, ServiceKey};
//!
//! let now = Moment::after("2026-01-01T00:00:00Z".parse()?, Duration::from_secs(1));
//! let key = ServiceKey::parse("bookinfo", "ratings")?;
//! let shown = Shown {
//!     key: key.clone(),
//!     host: ExportedHost::ours(&key, &"green-mesh".parse()?),
//!     ports: Arc::default(),
//!     accounts: Arc::default(),
//! };
//! let mut server = Server::new(ServerSettings::default());
//! let export = Export::new(shown, Health::default());
//! server.set_exports(&[(key.clone(), Arc::new(export))].into_iter().collect(), now);
//!
//! let mut client = Client::new(ClientSettings::default(), 1, RemoteState::default());
//! let mut actions = client.tick(now);
//! while let Some(action) = actions.pop() {
//!     actions.extend(match action {
//!         Action::OpenWatch(id) => client.watch_opened(id, false, now),
//!         Action::GetList(id) => {
//!             if let Answer::List(document) = server.list("10.0.0.1", None, now) {
//!                 client.list_data(id, &document.body(false), now);
//!             }
//!             client.list_done(id, None, now)
//!         }
//!         Action::Cancel(_) | Action::Changed { .. } => Vec::new(),
//!     });
//! }
//! assert!(client.state().services.get(&key).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bundle;
pub mod difference;
pub mod discovery;
pub mod explain;
pub mod moment;
pub mod names;
pub mod news;
pub mod observations;
pub mod plan;
pub mod protocol;
pub mod rules;
pub mod summary;
mod text;
pub mod whatif;
pub mod world;
