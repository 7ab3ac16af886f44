//! Exports that the tests of both ends are made of.

use std::sync::Arc;

use super::export::{Export, Shown, ShownPort};
use super::extension::Health;
use crate::names::{ExportedHost, ServiceKey};
use crate::protocol::Protocol;

/// A service of the namespace `a` with one port, as it is exported to `green`.
pub(super) fn export(name: &str, port: u16, health: Health) -> (ServiceKey, Arc<Export>) {
    let key = ServiceKey::parse("a", name).unwrap();
    let shown = Shown {
        host: ExportedHost::ours(&key, &"green".parse().unwrap()),
        key: key.clone(),
        ports: [ShownPort {
            name: "http".into(),
            number: port,
            protocol: Protocol::Http,
        }]
        .into(),
        accounts: Arc::default(),
    };
    (key, Arc::new(Export::new(shown, health)))
}
