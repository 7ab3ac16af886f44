//! The answer to `services`, written once for all who ask for it.

use std::sync::{Arc, OnceLock};

use super::Exports;
use crate::discovery::extension::ListTag;
use crate::discovery::message::encode_list;

/// A list of exports and its encoded forms, which are made when they are first asked for: outside
/// of whatever lock the [`Server`](super::Server) is behind.
#[derive(Debug)]
pub struct Document {
    exports: Exports,
    tag: ListTag,
    plain: OnceLock<Arc<[u8]>>,
    with_health: OnceLock<Arc<[u8]>>,
}

impl Document {
    pub(super) fn new(exports: Exports, tag: ListTag) -> Self {
        Self {
            exports,
            tag,
            plain: OnceLock::new(),
            with_health: OnceLock::new(),
        }
    }

    pub fn tag(&self) -> ListTag {
        self.tag
    }

    /// The body: byte for byte the reference's, or with the health of each service.
    pub fn body(&self, with_health: bool) -> Arc<[u8]> {
        let form = if with_health {
            &self.with_health
        } else {
            &self.plain
        };
        form.get_or_init(|| {
            let mut all: Vec<_> = self.exports.values().collect();
            all.sort_unstable_by(|a, b| a.shown().host.cmp(&b.shown().host));
            let services: Vec<_> = all.iter().map(|e| e.encoded(with_health)).collect();
            encode_list(self.tag.checksum, &services).into()
        })
        .clone()
    }
}
