//! The secrets that an agent hands out, as they are now.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use meshfed_pki::Identity;
use meshfed_xds::proto::Any;
use meshfed_xds::{OWN_IDENTITY, ROOT_SECRET, encode};

/// A secret with a version that changes when its content does.
#[derive(Clone)]
pub(crate) struct Versioned {
    pub(crate) version: String,
    pub(crate) secret: Any,
}

/// By name. One that is not there yet is not answered for yet.
#[derive(Clone, Default)]
pub(crate) struct Secrets(BTreeMap<&'static str, Versioned>);

impl Secrets {
    pub(crate) fn get(&self, name: &str) -> Option<&Versioned> {
        self.0.get(name)
    }

    pub(crate) fn set_identity(&mut self, identity: &Identity) {
        let pem = identity.to_pem();
        self.set(
            OWN_IDENTITY,
            encode::identity(OWN_IDENTITY, &pem.chain, &pem.key),
        );
    }

    pub(crate) fn set_root(&mut self, pem: &str) {
        self.set(ROOT_SECRET, encode::root(ROOT_SECRET, pem));
    }

    fn set(&mut self, name: &'static str, secret: Any) {
        let mut hasher = DefaultHasher::new();
        secret.value.hash(&mut hasher);
        let version = format!("{:016x}", hasher.finish());
        self.0.insert(name, Versioned { version, secret });
    }
}
