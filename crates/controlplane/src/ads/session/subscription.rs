//! What a client has asked for of one kind, what it has, and what there is to say about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshfed_proxy_config::ProxyConfig;
use meshfed_xds::TypeUrl;

use super::super::encoder::{Encoded, Encoder, Version, has, names, names_of_difference};
use super::{Answer, MAX_MESSAGE, MAX_UNKNOWN, MAX_UNKNOWN_BYTES, Reply};

#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// What the client has, as far as we know.
    pub(super) sent: Has,
    /// Names that it was told do not exist.
    pub(super) absent: BTreeSet<Arc<str>>,
    /// Names about which there may be something to say.
    pub(super) open: BTreeSet<Arc<str>>,
    /// What the client has and the configuration has not.
    pub(super) gone: BTreeSet<Arc<str>>,
    /// Endpoints that were due again when they went, as they were: the client waits for them before it
    /// answers for their cluster, and until then nothing can go.
    pub(super) last: BTreeMap<Arc<str>, Arc<Encoded>>,
    /// Everything must be looked at, as it is not known what is new to the client.
    pub(super) unseen: bool,
    pub(super) last_nonce: String,
    /// The response that was not answered yet; at most one for each kind.
    pub(super) outstanding: Option<Outstanding>,
    /// It refused what it was sent last.
    pub(super) refused: bool,
    /// What there was in responses that it refused. It is said again with the next change: what was refused
    /// is not forgotten when something else is accepted.
    suspects: BTreeSet<Arc<str>>,
    /// The last response was full, so that the next one belongs to it.
    pub(super) more: bool,
    /// The response that was not answered yet belongs to the one before.
    pub(super) continues: bool,
    /// A response is due even if it is empty: the client waits for it.
    pub(super) owed: bool,
}

#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) version: Version,
    /// Of its resources.
    pub(super) names: Vec<Arc<str>>,
}

/// What a client has, by name.
#[derive(Debug, Default)]
pub(super) struct Has {
    pub(super) resources: BTreeMap<Arc<str>, Sent>,
    pub(super) version: Version,
}

impl Has {
    pub(super) fn get(&self, name: &str) -> Option<&Sent> {
        self.resources.get(name)
    }

    pub(super) fn insert(&mut self, name: Arc<str>, sent: Sent) {
        let version = sent.version;
        let before = self.resources.insert(name, sent);
        self.toggle(before.and_then(|sent| sent.version));
        self.toggle(version);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let before = self.resources.remove(name);
        self.toggle(before.and_then(|sent| sent.version));
    }

    fn toggle(&mut self, version: Option<Version>) {
        if let Some(version) = version {
            self.version = self.version.toggled(version);
        }
    }
}

#[derive(Debug)]
pub(super) struct Sent {
    /// `None`: it has one, but not of ours, or one that is due again.
    pub(super) version: Option<Version>,
    /// State of the world only, where what is gone is said again until it may go.
    pub(super) resource: Option<Arc<Encoded>>,
}

/// The resources of one kind as they are now.
pub(super) struct Current<'c> {
    pub(super) encoder: &'c Encoder,
    pub(super) config: &'c ProxyConfig,
    pub(super) kind: TypeUrl,
    /// The client gets the virtual hosts of its route tables one by one.
    pub(super) separate: bool,
}

impl Current<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        has(self.config, self.kind, name)
    }

    fn names(&self) -> Vec<Arc<str>> {
        names(self.config, self.kind)
    }

    /// The resource, unless it is of this version.
    fn other_than(&self, name: &str, version: Option<Version>) -> Option<Arc<Encoded>> {
        if self.kind == TypeUrl::Routes && self.separate {
            let table = Encoder::separate_routes(self.config, name)?;
            return (Some(table.version) != version).then_some(table);
        }
        let Some(version) = version else {
            return self.encoder.encode(self.config, self.kind, name);
        };
        self.encoder
            .encode_other(self.config, self.kind, name, version)
    }
}

impl Subscription {
    /// Notes what differs between two configurations.
    pub(super) fn note(
        &mut self,
        kind: TypeUrl,
        before: &ProxyConfig,
        now: &ProxyConfig,
        encoder: &Encoder,
    ) {
        let differing = names_of_difference(kind, before, now);
        if !differing.is_empty() {
            self.repeat_suspects();
        }
        for name in differing {
            // What comes next may be what was refused before, mended.
            self.more = false;
            if has(now, kind, &name) {
                self.gone.remove(&name);
                self.last.remove(&name);
                self.open.insert(name);
                continue;
            }
            let doubted = |sent: &Sent| sent.version.is_none() && self.open.contains(&name);
            if kind == TypeUrl::Endpoints
                && self.sent.get(&name).is_some_and(doubted)
                && let Some(last) = encoder.encode(before, kind, &name)
            {
                self.last.insert(name.clone(), last);
            }
            // Or a client that does not answer would have us remember all names that there ever were.
            if !self.names.contains(&name) {
                self.open.remove(&name);
            }
            if self.sent.get(&name).is_some() {
                self.gone.insert(name);
            }
        }
    }

    /// The client asks again for what it was sent: it has it no more, or has refused it and may accept it now.
    pub(super) fn lost(&mut self, name: &str) {
        if self.suspects.contains(name) {
            self.repeat_suspects();
        }
        self.sent.remove(name);
    }

    fn repeat_suspects(&mut self) {
        for name in std::mem::take(&mut self.suspects) {
            if self.doubt(&name) {
                self.open.insert(name);
            }
        }
    }

    /// What the client has of this name is no longer what it should have, whatever its version. It still has
    /// it, so if it goes now, it goes like all else that is gone: after what refers to it.
    pub(super) fn doubt(&mut self, name: &Arc<str>) -> bool {
        let Some(sent) = self.sent.get(name) else {
            return false;
        };
        let resource = sent.resource.clone();
        let version = None;
        self.sent.insert(name.clone(), Sent { version, resource });
        true
    }

    /// What there is to say about the open names: what the client should have and has not, and the
    /// names that it asked for, that do not exist, and of which it was not told so. When that is
    /// `bytes`, or so many `names` were looked at, the rest stays open.
    pub(super) fn settle_open(
        &mut self,
        current: &Current<'_>,
        (bytes, names): (usize, usize),
    ) -> (Vec<Arc<Encoded>>, Vec<Arc<str>>) {
        if std::mem::take(&mut self.unseen) {
            // By the shorter way: a gateway has thousands of endpoints, a sidecar asks for a few.
            if self.wildcard {
                self.open.extend(current.names());
            }
            self.open.extend(self.names.iter().cloned());
            let lost = |name: &&Arc<str>| !current.has(name);
            self.gone = self.sent.resources.keys().filter(lost).cloned().collect();
        }
        let mut changed = Vec::new();
        let mut absent = Vec::new();
        let mut taken = 0;
        let mut looked_at = 0;
        while taken < bytes
            && looked_at < names
            && let Some(name) = self.open.pop_first()
        {
            looked_at += 1;
            let asked = self.names.contains(&name);
            let sent = self.sent.get(&name);
            if let Some(last) = self.last.remove(&name) {
                taken += last.name.len() + last.resource.value.len();
                changed.push(last);
            } else if !current.has(&name) {
                if asked && sent.is_none() && !self.absent.contains(&name) {
                    absent.push(name);
                }
            } else if (self.wildcard || asked)
                && let Some(resource) = current.other_than(&name, sent.and_then(|s| s.version))
            {
                taken += resource.name.len() + resource.resource.value.len();
                changed.push(resource);
            }
        }
        (changed, absent)
    }

    /// Judged when names are added only: what the configuration has may become less before the
    /// client hears of it.
    pub(super) fn has_room(&self, room: usize) -> bool {
        let names = self.names.len();
        if names <= room + self.sent.resources.len() {
            return true;
        }
        // Of one that comes back in several requests, what went while it was away is unknown.
        names <= MAX_UNKNOWN
            && self.names.iter().map(|name| name.len()).sum::<usize>() <= MAX_UNKNOWN_BYTES
    }

    /// Whether it refused what it was sent last, or something before that was not said again since.
    pub(super) fn refuses(&self) -> bool {
        self.refused || !self.suspects.is_empty()
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.suspects.remove(name);
        self.last.remove(name);
        self.sent.remove(name);
        self.gone.remove(name);
    }

    pub(super) fn forget_unwanted(&mut self) {
        if !self.wildcard {
            let sent = self.sent.resources.keys();
            let unwanted: Vec<Arc<str>> = sent
                .filter(|name| !self.names.contains(*name))
                .cloned()
                .collect();
            for name in unwanted {
                self.forget(&name);
            }
        }
        self.absent.retain(|name| self.names.contains(name));
    }

    pub(super) fn answer(&mut self, kind: TypeUrl, reply: Reply) -> Option<Answer> {
        if reply.nonce.is_empty() || reply.nonce != self.last_nonce {
            return None;
        }
        let Outstanding { version, names } = self.outstanding.take()?;
        if reply.error.is_some() {
            self.suspects.extend(names);
        } else {
            for name in names {
                self.suspects.remove(&name);
            }
        }
        self.refused = reply.error.is_some() || (self.continues && self.refused);
        Some(Answer {
            kind,
            version,
            refused: reply
                .error
                .map(|message| message.chars().take(MAX_MESSAGE).collect()),
        })
    }
}
