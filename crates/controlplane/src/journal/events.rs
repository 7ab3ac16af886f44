//! Posts news as Events: the same again is counted, and a flood about one object is cut.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use meshfed_federation::news::{About, News};
use tracing::debug;

use crate::apply::explain;

/// Who reports.
const COMPONENT: &str = "meshfed";
/// The same news within this time is one Event with a count. Shorter than Events live.
const SERIES: SignedDuration = SignedDuration::from_mins(30);
/// Events about one object that may come at once; more come as time passes.
const BURST: u32 = 25;
const ONE_MORE_EVERY: SignedDuration = SignedDuration::from_secs(20);
/// Series and objects that are remembered.
const REMEMBERED: usize = 4096;

/// Posts events; whatever fails is left, since events are hints.
pub(super) struct Poster {
    client: Client,
    book: Book,
}

impl Poster {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            book: Book::default(),
        }
    }

    pub async fn post(&mut self, all: Vec<News>) {
        for news in all {
            let now = Timestamp::now();
            let namespace = news.about.key.namespace.clone();
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            let result = match self.book.enter(&news, now) {
                Posting::New(name) => {
                    let event = event(&news, name, now);
                    api.create(&PostParams::default(), &event).await
                }
                Posting::Again(name, count) => {
                    let patch = serde_json::json!({"count": count, "lastTimestamp": Time(now)});
                    let patch = Patch::Merge(patch);
                    let counted = api.patch(&name, &PatchParams::default(), &patch).await;
                    match counted {
                        // It was deleted meanwhile.
                        Err(kube::Error::Api(status)) if status.code == 404 => {
                            let event = event(&news, name, now);
                            api.create(&PostParams::default(), &event).await
                        }
                        other => other,
                    }
                }
                Posting::TooMany => {
                    let object = &news.about.key;
                    debug!(%object, reason = news.reason, "too many events about this object");
                    continue;
                }
            };
            if let Err(error) = result {
                let error = explain(&error);
                debug!(object = %news.about.key, error, "an event was not posted");
            }
        }
    }
}

fn event(news: &News, name: String, now: Timestamp) -> Event {
    let About {
        kind,
        api_version,
        key,
        uid,
    } = &news.about;
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(key.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            kind: Some(kind.to_string()),
            api_version: Some(api_version.to_string()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some(if news.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(news.reason.clone()),
        message: Some(news.message.clone()),
        count: Some(1),
        event_time: None::<MicroTime>,
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            ..EventSource::default()
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        ..Event::default()
    }
}

/// What becomes of a piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Posting {
    /// An Event of this name.
    New(String),
    /// The Event of this name, for the nth time.
    Again(String, i32),
    TooMany,
}

/// Which events there are, and how many each object has had.
#[derive(Debug, Default)]
struct Book {
    series: BTreeMap<(About, String, String), Series>,
    objects: BTreeMap<About, Allowance>,
}

#[derive(Debug)]
struct Series {
    name: String,
    count: i32,
    last: Timestamp,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Timestamp,
}

impl Book {
    fn enter(&mut self, news: &News, now: Timestamp) -> Posting {
        self.forget_old(now);
        if !self.allow(&news.about, now) {
            return Posting::TooMany;
        }
        let key = (
            news.about.clone(),
            news.reason.clone(),
            news.message.clone(),
        );
        if let Some(series) = self.series.get_mut(&key) {
            series.count = series.count.saturating_add(1);
            series.last = now;
            return Posting::Again(series.name.clone(), series.count);
        }
        // As Kubernetes names them: the object, and the time in nanoseconds.
        let mut unique = now.as_nanosecond();
        let taken = |name: &str, all: &BTreeMap<_, Series>| all.values().any(|s| s.name == name);
        let mut name = format!("{}.{unique:x}", news.about.key.name);
        while taken(&name, &self.series) {
            unique += 1;
            name = format!("{}.{unique:x}", news.about.key.name);
        }
        let series = Series {
            name: name.clone(),
            count: 1,
            last: now,
        };
        self.series.insert(key, series);
        Posting::New(name)
    }

    fn allow(&mut self, about: &About, now: Timestamp) -> bool {
        let allowance = self.objects.entry(about.clone()).or_insert(Allowance {
            left: BURST,
            since: now,
        });
        let waited = now.duration_since(allowance.since);
        let gained = waited.as_secs() / ONE_MORE_EVERY.as_secs();
        if gained > 0 {
            let gained = u32::try_from(gained).unwrap_or(BURST);
            allowance.left = allowance.left.saturating_add(gained).min(BURST);
            allowance.since = now;
        }
        if allowance.left == 0 {
            return false;
        }
        allowance.left -= 1;
        true
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.series
            .retain(|_, series| now.duration_since(series.last) < SERIES);
        let full = ONE_MORE_EVERY.as_secs() * i64::from(BURST);
        self.objects
            .retain(|_, a| now.duration_since(a.since).as_secs() < full);
        // A flood about ever new objects.
        while self.series.len() > REMEMBERED {
            self.series.pop_first();
        }
        while self.objects.len() > REMEMBERED {
            self.objects.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use meshfed_federation::world::ObjectKey;

    use super::*;

    fn news(name: &str, message: &str) -> News {
        News {
            about: About {
                kind: "ServiceMeshPeer".into(),
                api_version: "federation.maistra.io/v1".into(),
                key: ObjectKey::new("red-mesh-system", name),
                uid: "u".to_owned(),
            },
            warning: true,
            reason: "NotConnected".to_owned(),
            message: message.to_owned(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_same_again_is_counted_and_something_else_is_not() {
        let mut book = Book::default();
        let Posting::New(first) = book.enter(&news("green", "503"), at(0)) else {
            panic!("it is new");
        };
        let again = Posting::Again(first.clone(), 2);
        assert_eq!(book.enter(&news("green", "503"), at(5)), again);
        let other = book.enter(&news("green", "refused"), at(5));
        assert!(matches!(&other, Posting::New(name) if *name != first));
        let late = book.enter(&news("green", "503"), at(5 + 1800));
        assert!(matches!(late, Posting::New(_)));
    }

    #[test]
    fn a_flood_about_one_object_is_cut_and_others_are_heard() {
        let mut book = Book::default();
        let mut posted = 0;
        for n in 0..1000 {
            let posting = book.enter(&news("green", &n.to_string()), at(0));
            posted += u32::from(posting != Posting::TooMany);
        }
        assert_eq!(posted, BURST);
        assert_ne!(book.enter(&news("blue", "503"), at(0)), Posting::TooMany);
        assert_eq!(book.enter(&news("green", "x"), at(19)), Posting::TooMany);
        assert_ne!(book.enter(&news("green", "x"), at(20)), Posting::TooMany);
        assert_eq!(book.enter(&news("green", "y"), at(20)), Posting::TooMany);
    }
}
